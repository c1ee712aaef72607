"""What the paper finds, as comparisons between trials, and what ours say of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lotlip.evaluate.retrieval import Interval
from lotlip_platform.sweep_ledger import Score, difference, mean_interval

SHORT_METRICS = ("short_text_to_image_r1", "colour_class_zero_shot_top1")
LONG_METRICS = ("long_text_to_image_r1", "long_image_to_text_r1")
SHORT_ONLY, LONG_ONLY, BOTH = "short captions only", "long captions only", "short and long"
LOTLIP, WEIGHTED = "LoTLIP", "short and long, long weighted 3x"
ARMS = (SHORT_ONLY, LONG_ONLY, BOTH, LOTLIP, WEIGHTED)

Scores = Mapping[str, Score]
"""Of a sweep, by the labels of its points."""


@dataclass(frozen=True)
class Difference:
    """Between two points, in a metric."""

    ours: str
    theirs: str
    metric: str
    interval: Interval

    @property
    def said(self) -> Literal["more", "less", "undecided"]:
        """What its interval supports."""
        if self.interval.low > 0:
            return "more"
        return "less" if self.interval.high < 0 else "undecided"


@dataclass(frozen=True)
class Claim:
    """A finding of the paper: `ours` are more than `theirs`."""

    text: str
    differences: Sequence[Difference]
    needs: Claim | None = None
    """What must be reproduced first, or there is nothing to find."""

    @property
    def verdict(self) -> Literal["reproduced", "not reproduced", "undecided"]:
        said = {difference.said for difference in self.differences}
        if "less" in said:
            return "not reproduced"
        is_possible = self.needs is None or self.needs.verdict == "reproduced"
        return "reproduced" if said == {"more"} and is_possible else "undecided"


def compare(scores: Scores, ours: str, theirs: str, metrics: Iterable[str]) -> list[Difference]:
    """The means of one point less those of another."""
    found = []
    for metric in metrics:
        values = (values_of(scores[label], metric).values() for label in (ours, theirs))
        interval = difference(*map(list, values))
        assert interval is not None, "findings are of several seeds"
        found.append(Difference(ours, theirs, metric, interval))
    return found


def values_of(score: Score, metric: str) -> dict[int, float]:
    """By seed, of the trials that came to their end."""
    ended = [record for record in score.records if record.status == "finished"]
    return {r.seed: r.results[-1]["metrics"][metric]["value"] for r in ended}


def claims(arms: Scores, lengths: Scores) -> list[Claim]:
    """All of them; `lengths` go from the shortest captions to the longest."""
    cost = Claim(
        "Long captions beside short ones cost short-text ability, too.",
        compare(arms, SHORT_ONLY, BOTH, SHORT_METRICS),
    )
    return [
        Claim(
            "Short captions overshadow the rest: who learns from them alone understands long texts "
            "less than who learns from both.",
            compare(arms, BOTH, SHORT_ONLY, LONG_METRICS),
        ),
        Claim(
            "Long captions alone cost short-text ability.",
            compare(arms, SHORT_ONLY, LONG_ONLY, SHORT_METRICS),
        ),
        cost,
        Claim(
            "Corner tokens bring some of that back.",
            compare(arms, LOTLIP, BOTH, SHORT_METRICS),
            needs=cost,
        ),
        Claim(
            "Corner tokens help to understand long texts.",
            compare(arms, LOTLIP, BOTH, LONG_METRICS),
        ),
        Claim("Longer captions pay.", _gains(lengths)),
        Claim("Longer captions pay less and less.", _diminishing(lengths)),
    ]


def _gains(lengths: Scores) -> list[Difference]:
    steps = pairwise(lengths)
    return [d for short, long in steps for d in compare(lengths, long, short, LONG_METRICS[:1])]


def _diminishing(lengths: Scores) -> list[Difference]:
    """What a text token more brings, on the way to each length less than on the way before."""
    metric = LONG_METRICS[0]
    slopes = {}
    for short, long in pairwise(lengths):
        tokens = lengths[long].tokens_a_sample - lengths[short].tokens_a_sample
        less, more = (values_of(lengths[label], metric) for label in (short, long))
        by_seed = {seed: (more[seed] - less[seed]) / tokens for seed in more.keys() & less.keys()}
        slopes[f"a token, from {_value(short)} to {_value(long)}"] = by_seed
    found = []
    for before, after in pairwise(slopes):
        both = slopes[before].keys() & slopes[after].keys()
        less = [slopes[before][seed] - slopes[after][seed] for seed in sorted(both)]
        found.append(Difference(before, after, metric, mean_interval(less)))
    return found


def length_of(label: str) -> float:
    """Sentences of a sub-caption; infinite if it has all of them."""
    return float(label.rpartition("=")[2]) or math.inf


def _value(label: str) -> str:
    length = length_of(label)
    return "all" if math.isinf(length) else f"{length:.0f}"
