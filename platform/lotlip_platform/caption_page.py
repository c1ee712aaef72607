"""Captioners compared on a page: numbers, a picture, and captions to read beside their images."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Sequence

from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.data.shards import read_samples
from lotlip.relabel.audit import AuditConfig, faults
from lotlip_platform.caption_agreement import Agreement
from lotlip_platform.dataset_views import Stats, stats_figure
from lotlip_platform.page import embedded, page, thumbnail
from lotlip_platform.storage import open_store

_SIDE_PX = 256
_STYLE = """
.sample { display: flex; gap: 1rem; border-top: 1px solid #ddd; padding: 1rem 0; }
.sample img { width: 12rem; align-self: flex-start; }
.sample dl { margin: 0; flex: 1; } .sample dt { color: #666; } .sample dd { margin: 0 0 .6rem 0; }
.fault { color: #b00020; }
"""


def caption_page(stats: Stats, agreement: Agreement | None, *, num_samples: int) -> str:
    """An HTML page of one file, with the first samples. Raises: DataError at a bad one."""
    store = open_store(stats.uri)
    samples = itertools.islice(read_samples(store, read_manifest(store)), num_samples)
    parts = [
        f"<h1>Captions</h1><p class='of'>{html.escape(stats.uri)}: {stats.num_read:,} of "
        f"{stats.num_samples:,} samples read, digest {stats.digest}</p>",
        _table(comparison(stats, agreement)),
        f"<figure><img src='{embedded(stats_figure(stats))}' alt='Captioners compared'></figure>",
        *(_between(agreement) if agreement else ()),
        "<h2>To read</h2>",
        *(_sample(sample) for sample in samples),
    ]
    return page(f"Captions of {stats.uri}", "\n".join(parts), style=_STYLE)


def comparison(stats: Stats, agreement: Agreement | None = None) -> list[list[str]]:
    """A row for each kind of caption, the head first."""
    head = ["", "captions", f"{stats.unit}, mean", "5% to 95%", "longest", "different words"]
    head += ["twice or more", "most frequent opening", "fails the audit"]
    rows = []
    for name, profile in stats.profiles.items():
        spread = stats.spread(name)
        opening, share = profile.openings(1)[0]
        failed = ", ".join(
            f"{rule} {_percent(number / profile.num)}"
            for rule, number in sorted(profile.failed.items())
        )
        rows.append(
            [
                name,
                f"{profile.num:,}",
                f"{spread['mean']:.1f}",
                f"{spread['p5']:g} to {spread['p95']:g}",
                f"{spread['max']:,}",
                f"{profile.num_words:,}",
                _percent(profile.num_duplicates / profile.num),
                f"{opening or '(no word)'} … {_percent(share)}",
                failed or "-",
            ]
        )
    if agreement:
        head += ["cosine with its image", "with another"]
        for row in rows:
            captioner = row[0].removeprefix("long.")
            known = captioner in agreement.with_image
            row.append(f"{agreement.with_image[captioner]:.3f}" if known else "-")
            row.append(f"{agreement.with_others[captioner]:.3f}" if known else "-")
    return [head, *rows]


def _between(agreement: Agreement) -> Iterable[str]:
    names = list(agreement.between)
    rows = [[one, *(f"{agreement.between[one][other]:.3f}" for other in names)] for one in names]
    yield (
        f"<h2>Agreement</h2><p>Cosines between captions of the same image, means over "
        f"{agreement.num_samples:,} samples.</p>"
    )
    yield _table([["", *names], *rows])


def _sample(sample: Sample) -> str:
    texts = [f"<dt>short</dt><dd>{html.escape(sample.short)}</dd>"]
    for name, caption in sorted(sample.long.items()):
        failed = ", ".join(faults(caption, sample.short, AuditConfig(), is_whole=True))
        mark = f" <span class='fault'>{failed}</span>" if failed else ""
        texts.append(f"<dt>{html.escape(name)}{mark}</dt><dd>{html.escape(caption)}</dd>")
    picture = thumbnail(sample.image, _SIDE_PX)
    return (
        f"<div class='sample'><img src='{picture}' alt='{html.escape(sample.key)}'>"
        f"<dl>{''.join(texts)}</dl></div>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    )
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<div class='wide'><table><tr>{head}</tr>{lines}</table></div>"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
