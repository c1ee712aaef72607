"""docs/findings.md, from the trials of the sweeps."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any

import psutil
import torch
from claims import (
    ARMS,
    LONG_METRICS,
    LOTLIP,
    SHORT_METRICS,
    WEIGHTED,
    Claim,
    Difference,
    Scores,
    claims,
    compare,
    length_of,
    values_of,
)

from lotlip.evaluate.retrieval import Interval
from lotlip_platform.sweep_ledger import Score

_METRICS = (*LONG_METRICS[:1], *SHORT_METRICS)
_WEIGHT = "Corner tokens, or the weight they give to the long caption?"
_SHARES = ("short 1/2", "short 1/4")


def findings_page(
    of_arms: Sequence[Score],
    of_lengths: Sequence[Score],
    of_weights: Sequence[Score],
    of_sizes: Sequence[Score],
    *,
    num_tested: int,
) -> str:
    arms = _by_label(of_arms, key=lambda score: ARMS.index(score.label))
    lengths = _by_label(of_lengths, key=lambda score: length_of(score.label))
    weights, sizes = (_by_label(of, key=_size) for of in (of_weights, of_sizes))
    found = claims(arms, lengths)
    summary = "\n".join(f"| {claim.text} | **{claim.verdict}** |" for claim in found)
    details = "\n".join(_section(number, claim) for number, claim in enumerate(found, 1))
    same_weight = [
        *compare(arms, LOTLIP, WEIGHTED, _METRICS),
        *_at_same_weight(weights),
        *_at_same_weight(sizes),
    ]
    return f"""# Findings

What the paper (Wu et al. 2024) finds, asked again in miniature: procedural scenes, a locked image
tower, text towers of two layers. `make findings` trains all of it and writes this page
({_machine()}).

{_seeds(arms)} seeds of first weights, order and captions; one training set, and {num_tested:,}
held-out scenes of the split `test`, on which nothing was chosen: intervals are over seeds, not over
data. A difference is one of means in percentage points, with its 95% interval (Welch). A claim is
reproduced if all of its intervals are above 0, not reproduced if one is below 0, else undecided.
Intervals are not corrected for their number. Speeds are of trials side by side.

| The paper's finding | here |
|---|---|
{summary}

What corner tokens bring may be due to their number or to the weight that they give to the long
caption. {_in_words(same_weight)} The [last section](#{_anchor(_WEIGHT)}) has the numbers.

## The arms

{_table(arms)}

![The arms](figures/findings_arms.png)

`long weighted 3x` is the control that the paper lacks: no corner tokens, but as much weight on the
long caption as those of LoTLIP give it.

{details}

![Caption length](figures/findings_caption_length.png)

## {_WEIGHT}

m corner tokens are m more terms of the long caption in the loss: with m = 2 the short caption has a
quarter of it, with m = 0 a half. LoTLIP and its control above have seen two epochs. Each share is
tried with and without corner tokens (`sweep/weights`) after one epoch and after three, and a
quarter also in a smaller and a larger text tower after two (`sweep/weights_size`; the others have a
width of 64).

{_table(weights)}

{_table(sizes)}

![Corner tokens and weight](figures/findings_weights.png)

What corner tokens add at the same share:

{_differences(same_weight)}

What the weight adds without any corner token:

{_differences(_of_weight(weights))}
"""


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^a-z0-9 ]", "", heading.lower()).replace(" ", "-")


def _seeds(arms: Scores) -> str:
    numbers = sorted({len(values_of(score, _METRICS[0])) for score in arms.values()})
    return " or ".join(map(str, numbers))


def _machine() -> str:
    return (
        f"{psutil.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, "
        f"{date.today().isoformat()}"
    )


def _by_label(scores: Sequence[Score], *, key: Callable[[Score], Any]) -> Scores:
    return {score.label: score for score in sorted(scores, key=key)}


def _size(score: Score) -> tuple[int, str]:
    return int(score.label.rpartition("=")[2]), score.label


def _section(number: int, claim: Claim) -> str:
    per_token = any("a token" in difference.ours for difference in claim.differences)
    how = (
        " What a text token more brings, in points, on the way to one length less than on the way "
        "to the one before; means over seeds of such differences, with Student's intervals. How "
        "many tokens a length has is taken as known."
    )
    return f"""## {number}. {claim.text}

**{claim.verdict.capitalize()}.**{how if per_token else ""}

{_differences(claim.differences)}
"""


def _table(scores: Scores) -> str:
    names = " | ".join(f"`{metric}`" for metric in _METRICS)
    rows = [f"| | {names} | samples/s |", f"|---|{'---|' * (len(_METRICS) + 1)}"]
    for label, score in scores.items():
        cells = " | ".join(_percent(score.interval_of(metric)) for metric in _METRICS)
        rows.append(f"| {label} | {cells} | {score.samples_per_s:,.0f} |")
    return "\n".join(rows)


def _percent(interval: Interval) -> str:
    half = 50 * (interval.high - interval.low)
    return f"{100 * interval.value:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def _differences(found: Sequence[Difference]) -> str:
    rows = ["| more? | than | in | difference | |", "|---|---|---|---|---|"]
    for one in found:
        value, low, high = (
            100 * x for x in (one.interval.value, one.interval.low, one.interval.high)
        )
        digits = 1 if max(abs(low), abs(high)) >= 1 else 3
        told = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        rows.append(f"| {one.ours} | {one.theirs} | `{one.metric}` | {told} | {one.said} |")
    return "\n".join(rows)


def _at_same_weight(scores: Scores) -> list[Difference]:
    """m = 2 less m = 0 for each share and each other key of the points."""
    found = []
    for label in scores:
        if label.startswith("m = 2"):
            found += compare(scores, label, label.replace("m = 2", "m = 0", 1), _METRICS)
    return found


def _of_weight(scores: Scores) -> list[Difference]:
    heavy = [label for label in scores if label.startswith(f"m = 0, {_SHARES[1]}")]
    pairs = [(label, label.replace(_SHARES[1], _SHARES[0])) for label in heavy]
    return [d for ours, theirs in pairs for d in compare(scores, ours, theirs, _METRICS)]


def _in_words(found: Sequence[Difference]) -> str:
    number = {said: [d for d in found if d.said == said] for said in ("more", "less", "undecided")}
    return (
        f"Of {len(found)} comparisons at the same weight corner tokens are ahead in "
        f"{_told(number['more'])}, behind in {_told(number['less'])}, and not told apart in "
        f"{len(number['undecided'])}."
    )


def _told(found: Iterable[Difference]) -> str:
    told = [f"`{d.metric}` ({d.ours.removeprefix('m = 2, ')})" for d in found]
    return "; ".join(told) if told else "none"
