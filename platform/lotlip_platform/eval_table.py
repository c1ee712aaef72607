"""Evaluations as tables: laid out as the paper's, published figures beside one's own.

A row is a model under one protocol, which it tells; what was not run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol as Interface

from lotlip.evaluate.published.measure import Result
from lotlip.evaluate.published.references import REFERENCES, SOURCES, Reference
from lotlip.evaluate.published.suite import PUBLISHED, Kind
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.tables import aligned, markdown

_NOT_RUN, _NOT_TOLD = "not run", "-"
Cells = list[list[str]]


class EvaluatedModel(Interface):
    """An evaluated model, see `eval_suite.Evaluated`."""

    @property
    def model(self) -> str: ...
    @property
    def results(self) -> Sequence[Result]: ...


def report_text(
    models: Sequence[EvaluatedModel], differences: Sequence[Mapping[str, Interval]]
) -> str:
    """For a terminal."""
    return _report(models, differences, lambda title: f"\n{title}", aligned)


def report_markdown(
    models: Sequence[EvaluatedModel], differences: Sequence[Mapping[str, Interval]]
) -> str:
    """For a page."""
    return _report(models, differences, lambda title: f"\n## {title}\n", markdown)


def _report(
    models: Sequence[EvaluatedModel],
    differences: Sequence[Mapping[str, Interval]],
    heading: Callable[[str], str],
    table: Callable[[Cells], str],
) -> str:
    lines: list[str] = []
    for title, cells in (
        ("Long texts: recall@1, image to text / text to image", _long(models)),
        ("Short texts: recall, image to text / text to image", _short(models)),
        ("Zero-shot classification: top-1", _classes(models)),
    ):
        lines += [heading(title), table(cells)]
    lines += ["", *_notes(models)]
    for place, result in enumerate(models[0].results):
        asked = result.asked
        title = f"{PUBLISHED[asked.benchmark].title}, {asked.protocol.name}: 95% intervals"
        lines += [heading(title), table(_details(models, differences, place))]
    for one in models:
        lines += [heading(f"How {one.model} was asked"), *_protocols(one.results)]
    return "\n".join(lines).strip() + "\n"


def _long(models: Sequence[EvaluatedModel]) -> Cells:
    return _rows(models, "long", {"": "r1"}, lambda one, name, _: one.recall.get(name))


def _short(models: Sequence[EvaluatedModel]) -> Cells:
    def published(one: Reference, name: str, k: str) -> tuple[float, float] | None:
        return (one.recall if k == "r1" else one.recall_5 or {}).get(name)

    return _rows(models, "short", {" R@1": "r1", " R@5": "r5"}, published)


def _rows(
    models: Sequence[EvaluatedModel],
    kind: Kind,
    ks: Mapping[str, str],
    published: Callable[[Reference, str, str], tuple[float, float] | None],
) -> Cells:
    """Models down, benchmarks across."""
    columns = [(name, k) for name in _of_kind(kind) for k in ks.values()]
    titles = [f"{PUBLISHED[name].title}{k}" for name in _of_kind(kind) for k in ks]
    cells = [["model", "protocol", *titles]]
    for label, protocol, results in _own_rows(models, kind):
        row = []
        for name, k in columns:
            result = results.get(name)
            both = [f"{way}_{k}" for way in ("image_to_text", "text_to_image")]
            row.append(_pair(result, both) if result else _NOT_RUN)
        cells.append([label, protocol, *row])
    for one in REFERENCES:
        found = [published(one, name, k) for name, k in columns]
        if any(found):
            told = [f"{pair[0]:.1f} / {pair[1]:.1f}" if pair else _NOT_TOLD for pair in found]
            cells.append([one.model, _told_protocol(one), *told])
    return cells


def _classes(models: Sequence[EvaluatedModel]) -> Cells:
    names = _of_kind("classes")
    cells = [["model", "protocol", *(PUBLISHED[name].title for name in names)]]
    for label, protocol, results in _own_rows(models, "classes"):
        row = [
            _marked(results[name], _percent(results[name].shares["top1"]))
            if name in results
            else _NOT_RUN
            for name in names
        ]
        cells.append([label, protocol, *row])
    for one in REFERENCES:
        found = one.top1 or {}
        if found:
            told = [f"{found[name]:.1f}" if name in found else _NOT_TOLD for name in names]
            cells.append([one.model, _told_protocol(one), *told])
    return cells


def _own_rows(
    models: Sequence[EvaluatedModel], kind: Kind
) -> list[tuple[str, str, Mapping[str, Result]]]:
    """Label, protocol and results by benchmark; of a kind that was not run, too."""
    rows = []
    for one in models:
        protocols = dict.fromkeys(result.asked.how for result in one.results)
        for protocol in protocols:
            results = {
                result.asked.benchmark: result
                for result in one.results
                if result.asked.how == protocol and PUBLISHED[result.asked.benchmark].kind == kind
            }
            rows.append((one.model, protocol, results))
    return rows


def _details(
    models: Sequence[EvaluatedModel], differences: Sequence[Mapping[str, Interval]], place: int
) -> Cells:
    """Metrics down, models across."""
    compared = [f"difference to {models[1].model}"] if differences else []
    told = [f"{one.model} ({one.results[place].asked.context_length} tokens)" for one in models]
    cells = [["", "n", *told, *compared]]
    own = models[0].results[place]
    for name in own.shares:
        row = [f"{len(own.answers[name].hits_Q):,}"]
        row += [_interval(one.results[place].shares.get(name)) for one in models]
        if differences:
            row.append(_interval(differences[place].get(name), signed=True))
        cells.append([name, *row])
    for name in own.medians:
        ranks = [one.results[place].medians[name] for one in models]
        told = [f"{r.value:.0f} [{r.low:.0f}, {r.high:.0f}]" for r in ranks]
        cells.append([name, "", *told, *([""] if differences else [])])
    for name in ("headless", "moved"):
        if name in own.changes:
            row = [_interval(one.results[place].changes.get(name), signed=True) for one in models]
            cells.append([f"{name} less the same whole", "", *row, *([""] if differences else [])])
    return cells


def _notes(models: Sequence[EvaluatedModel]) -> list[str]:
    """What the rows' marks mean, and where the others' figures come from."""
    lines = ["Figures with a source were published by others, not measured here:"]
    lines += [f"- [{name}] {one.where}, {one.date}" for name, one in SOURCES.items()]
    for result in models[0].results:
        asked, about = result.asked, PUBLISHED[result.asked.benchmark]
        if is_part(result):
            lines.append(
                f"* of {about.title} {asked.num_images:,} images of {about.num_images:,} were "
                "there: not to be compared with figures of the whole."
            )
    return list(dict.fromkeys(lines))


def _protocols(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        asked, about = result.asked, PUBLISHED[result.asked.benchmark]
        cut = f"{asked.num_cut:,} of the texts were longer" if asked.num_cut else "none was longer"
        quirk = ""
        if asked.protocol.official:
            if about.kind == "long":
                quirk += "; cut at every full stop, as the authors' data loaders do"
            quirk += f"; {about.quirk}" if about.quirk else ""
            if not asked.splits_sentences:
                quirk += "; read by the model's own tokenizer"
        lines.append(
            f"- {about.title}, {asked.protocol.name}: {asked.num_images:,} images, "
            f"{asked.num_texts:,} texts ({about.files}); {about.assembly}{quirk}; at most "
            f"{asked.context_length} tokens, {cut}; images in RGB; digest {asked.digest[:16]}."
        )
    return lines


def _of_kind(kind: Kind) -> list[str]:
    return [name for name, about in PUBLISHED.items() if about.kind == kind]


def _told_protocol(one: Reference) -> str:
    return f"{SOURCES[one.source].protocol} [{one.source}]"


def _pair(result: Result, names: Sequence[str]) -> str:
    return _marked(result, " / ".join(_percent(result.shares[name]) for name in names))


def _marked(result: Result, text: str) -> str:
    return f"{text}*" if is_part(result) else text


def is_part(result: Result) -> bool:
    """Whether not all of a benchmark was there."""
    about = PUBLISHED[result.asked.benchmark]
    return (result.asked.num_images, result.asked.num_texts) != (about.num_images, about.num_texts)


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f}"


def _interval(share: Interval | None, *, signed: bool = False) -> str:
    if share is None:
        return ""
    sign = "+" if signed else ""
    low, high = (f"{100 * end:{sign}.1f}" for end in (share.low, share.high))
    return f"{100 * share.value:{sign}.1f} [{low}, {high}]"
