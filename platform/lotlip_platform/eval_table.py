"""Evaluations as tables: laid out as the paper's, published figures beside one's own.

A row is a model under one protocol, which it tells; what was not run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol as Interface

from lotlip.evaluate.published.measure import CHANGES_OF_THE_WHOLE, Result
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
    kinds = {result.asked.about.kind for result in models[0].results}
    if kinds - {"data"}:
        for title, cells in (
            ("Long texts: recall@1, image to text / text to image", _long(models)),
            ("Short texts: recall, image to text / text to image", _short(models)),
            ("Zero-shot classification: top-1", _classes(models)),
        ):
            lines += [heading(title), table(cells)]
        lines += ["", *_sources()]
    if "data" in kinds:
        title = "Data sets: recall@1, image to text / text to image"
        lines += [heading(title), table(_data_sets(models))]
    lines += _notes(models)
    for place, result in enumerate(models[0].results):
        asked = result.asked
        title = f"{asked.about.title}, {asked.protocol.name}: 95% intervals"
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
            _marked(results[name], _percent(results[name].answered.shares["top1"]))
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


def _data_sets(models: Sequence[EvaluatedModel]) -> Cells:
    asked = [result.asked for result in models[0].results if result.asked.about.kind == "data"]
    names = list(dict.fromkeys(one.benchmark for one in asked))
    ways = ("image_to_text_r1", "text_to_image_r1")
    cells = [
        ["model", "protocol", *(f"{name}, {of}" for name in names for of in ("long", "short"))]
    ]
    for label, protocol, results in _own_rows(models, "data"):
        if not results:
            continue  # a protocol of published ones alone
        row = []
        for name in names:
            for of in ("long", "short"):
                of_both = [f"{of}_{way}" for way in ways]
                row.append(_pair(results[name], of_both) if name in results else _NOT_RUN)
        cells.append([label, protocol, *row])
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
                if result.asked.how == protocol and result.asked.about.kind == kind
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
    answered = [one.results[place].answered for one in models]
    for name in dict.fromkeys(name for one in answered for name in one.shares):
        # Of changed texts, those that the model reads whole: not the same for both.
        nums = [
            f"{len(one.answers[name].hits_Q):,}" if name in one.answers else "0" for one in answered
        ]
        row = [" / ".join(dict.fromkeys(nums))]
        row += [_interval(one.shares.get(name)) for one in answered]
        if differences:
            row.append(_interval(differences[place].get(name), signed=True))
        cells.append([name, *row])
    for name in answered[0].medians:
        row = [_rank(one.medians[name]) for one in answered]
        if differences:
            row.append(_rank(differences[place][name], signed=True))
        cells.append([name, "", *row])
    for name in CHANGES_OF_THE_WHOLE:
        if any(name in one.changes for one in answered):
            row = [_interval(one.changes.get(name), signed=True) for one in answered]
            cells.append([f"{name} less the same whole", "", *row, *([""] if differences else [])])
    return cells


def _sources() -> list[str]:
    """Where the others' figures come from."""
    lines = ["Figures with a source were published by others, not measured here:"]
    return lines + [f"- [{name}] {one.where}, {one.date}" for name, one in SOURCES.items()]


def _notes(models: Sequence[EvaluatedModel]) -> list[str]:
    """What the rows' marks mean."""
    parts = [result.asked for result in models[0].results if result.asked.is_part]
    lines = [
        f"* of {asked.about.title} {asked.num_images:,} images of {asked.about.num_images:,} were "
        "asked: not to be compared with figures of the whole."
        for asked in parts
    ]
    return ["", *dict.fromkeys(lines)] if lines else []


def _protocols(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        asked, about = result.asked, result.asked.about
        texts = "classes" if about.kind == "classes" else "texts"
        cut = f"{asked.num_cut:,} {texts} were longer" if asked.num_cut else "none was longer"
        cut += f", {asked.num_blank:,} have no word" if asked.num_blank else ""
        lines.append(
            f"- {about.title}, {asked.protocol.name}: {asked.num_images:,} images, "
            f"{asked.num_texts:,} {texts} ({about.files}); {about.assembly}; {asked.rules}; "
            f"at most {asked.context_length} tokens, {cut}; images in RGB; digests: questions "
            f"{asked.digest[:16]}, images {asked.images_digest[:16]}."
        )
    return lines


def _of_kind(kind: Kind) -> list[str]:
    return [name for name, about in PUBLISHED.items() if about.kind == kind]


def _told_protocol(one: Reference) -> str:
    return f"{SOURCES[one.source].protocol} [{one.source}]"


def _pair(result: Result, names: Sequence[str]) -> str:
    return _marked(result, " / ".join(_percent(result.answered.shares[name]) for name in names))


def _marked(result: Result, text: str) -> str:
    return f"{text}*" if result.asked.is_part else text


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f}"


def _rank(rank: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{rank.value:{sign}.0f} [{rank.low:{sign}.0f}, {rank.high:{sign}.0f}]"


def _interval(share: Interval | None, *, signed: bool = False) -> str:
    if share is None:
        return ""
    sign = "+" if signed else ""
    low, high = (f"{100 * end:{sign}.1f}" for end in (share.low, share.high))
    return f"{100 * share.value:{sign}.1f} [{low}, {high}]"
