"""`lotlip models compare`: two models on the same items, and where they differ most."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lotlip.data.manifest import read_manifest
from lotlip.data.sample import Sample
from lotlip.evaluate.benchmarks import (
    Benchmark,
    Features,
    caption_labels,
    long_caption,
    read_benchmark,
)
from lotlip.evaluate.embed import best_device
from lotlip.evaluate.ranks import retrieval_ranks
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.evaluate import check_benchmarks, in_percent
from lotlip_platform.page import page, thumbnail
from lotlip_platform.registry import fetch
from lotlip_platform.storage import open_store
from lotlip_platform.tables import aligned

_NUM_QUERIES = 6  # of each model, where it does better than the other
_NUM_HITS = 4
_SIDE_PX = 160
_STYLE = """
.query { border-top: 2px solid #888; margin-top: 2rem; padding-top: .5rem; }
.query p { margin: .3rem 0; } .sides { display: flex; gap: 1rem; flex-wrap: wrap; }
.hits { display: flex; gap: .4rem; } .hits figure { margin: 0; text-align: center; }
.hits img { width: 96px; height: 96px; object-fit: cover; border: 3px solid #ddd; }
.hits .right img { border-color: #1a7f37; } .hits figcaption { font-size: 12px; }
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A metric of both models, and the first one's less the second one's."""

    metric: str
    first: Interval
    second: Interval
    difference: Interval
    """With its 95% interval from the paired bootstrap over the same queries."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A long caption, and what each model finds by it."""

    caption: str
    image: bytes
    """The right one."""
    ranks: tuple[int, int]
    hits: tuple[tuple[Hit, ...], tuple[Hit, ...]]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that was found."""

    image: bytes
    score: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on one benchmark."""

    models: tuple[str, str]
    benchmark: str
    data: str
    num_samples: int
    rows: tuple[Row, ...]
    queries: tuple[Query, ...]
    """Where their ranks of the right image differ most, in both directions."""

    def table(self) -> str:
        """For a terminal: per cent, with 95% intervals."""
        head = ["", *self.models, "difference"]
        return aligned([head, *(_cells(row) for row in self.rows)])

    def to_json(self) -> dict[str, Any]:
        return {
            "models": self.models,
            "benchmark": self.benchmark,
            "data": self.data,
            "num_samples": self.num_samples,
            "metrics": [asdict(row) for row in self.rows],
        }


def compare(
    first: str,
    second: str,
    benches: Mapping[str, str],
    *,
    num_samples: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> list[Comparison]:
    """Put two models to the same benchmarks.

    Names and `benches` as for `evaluate`. Raises: LotlipError.
    """
    check_benchmarks(benches)
    models = [fetch(name).to(best_device()) for name in (first, second)]
    found = []
    for name, uri in benches.items():
        note(f"{name} on {uri}")
        store = open_store(uri)
        samples = read_benchmark(store, read_manifest(store), num_samples)
        benchmark = Benchmark(name, samples)
        (one, seen_by_one), (two, seen_by_two) = (benchmark.meet(model) for model in models)
        found.append(
            Comparison(
                models=(first, second),
                benchmark=name,
                data=uri,
                num_samples=len(samples),
                rows=tuple(
                    Row(
                        metric=metric,
                        first=one.metrics[metric],
                        second=two.metrics[metric],
                        difference=one.answers[metric].beyond(two.answers[metric]),
                    )
                    for metric in one.answers
                ),
                queries=_most_different(samples, seen_by_one, seen_by_two),
            )
        )
    return found


def comparison_page(comparisons: Sequence[Comparison]) -> str:
    """The page: tables, and side by side what the models find. Raises: DataError."""
    first, second = comparisons[0].models
    title = f"{first} and {second}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for comparison in comparisons:
        parts.append(
            f"<h2>{html.escape(comparison.benchmark)}</h2><p class='of'>"
            f"{comparison.num_samples:,} samples of {html.escape(comparison.data)}; per cent with "
            "95% intervals; differences by the paired bootstrap over the same queries.</p>"
        )
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", first, second))
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in comparison.rows
        )
        parts.append(f"<div class='wide'><table><tr>{head}<th>difference</th></tr>{rows}</table>")
        parts.append("</div><h2>Where they differ most</h2>")
        if not comparison.queries:
            parts.append("<p>Both give every long caption's image the same rank.</p>")
        parts += [_query(query, comparison.models) for query in comparison.queries]
    return page(title, "\n".join(parts), style=_STYLE)


def _cells(row: Row) -> list[str]:
    shares = [in_percent(interval) for interval in (row.first, row.second)]
    by = row.difference
    return [
        row.metric,
        *shares,
        f"{100 * by.value:+.1f} [{100 * by.low:+.1f}, {100 * by.high:+.1f}]",
    ]


def _most_different(
    samples: Sequence[Sample], first: Features, second: Features
) -> tuple[Query, ...]:
    """Long captions whose image the one finds much further up than the other."""
    captions = [long_caption(sample) for sample in samples]
    labels_N = caption_labels(captions)
    ranks = [
        retrieval_ranks(seen.long_ND, seen.image_ND, (labels_N, labels_N)).tolist()
        for seen in (first, second)
    ]
    gained = [math.log(two / one) for one, two in zip(*ranks, strict=True)]
    order = sorted(range(len(samples)), key=lambda index: -gained[index])
    ahead = [index for index in order[:_NUM_QUERIES] if gained[index] > 0]
    behind = [index for index in order[::-1][:_NUM_QUERIES] if gained[index] < 0]
    return tuple(
        Query(
            caption=captions[index],
            image=samples[index].image,
            ranks=(ranks[0][index], ranks[1][index]),
            hits=(
                _hits(samples, first, labels_N, index),
                _hits(samples, second, labels_N, index),
            ),
        )
        for index in (*ahead, *behind)
    )


def _hits(
    samples: Sequence[Sample], seen: Features, labels_N: Tensor, query: int
) -> tuple[Hit, ...]:
    scores_N = seen.image_ND @ seen.long_ND[query]
    best = scores_N.topk(min(_NUM_HITS, len(samples))).indices.tolist()
    return tuple(
        Hit(
            image=samples[index].image,
            score=float(scores_N[index]),
            is_right=bool(labels_N[index] == labels_N[query]),
        )
        for index in best
    )


def _query(query: Query, models: tuple[str, str]) -> str:
    sides = "".join(
        f"<div><p><b>{html.escape(name)}</b>: the right image is number {rank:,}</p>"
        f"<div class='hits'>{''.join(_hit(hit) for hit in hits)}</div></div>"
        for name, rank, hits in zip(models, query.ranks, query.hits, strict=True)
    )
    right = f"<div><p>right</p><div class='hits'>{_figure(query.image, 'right', '')}</div></div>"
    return (
        f"<div class='query'><p>{html.escape(query.caption)}</p>"
        f"<div class='sides'>{right}{sides}</div></div>"
    )


def _hit(hit: Hit) -> str:
    return _figure(hit.image, "right" if hit.is_right else "", f"{hit.score:.3f}")


def _figure(image: bytes, kind: str, text: str) -> str:
    return (
        f"<figure class='{kind}'><img alt='' src='{thumbnail(image, _SIDE_PX)}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )
