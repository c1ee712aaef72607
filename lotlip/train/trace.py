"""What each step was trained on, to see whether two runs were given the same.

A trace is a JSON object a line, one for each step:

    {"step": 1, "epoch": 0, "digest": "5f1c...", "samples": [["00000012", "short;scenes[0:7]",
    "9ac0e1f2"], ...]}

The samples stand in the order of their positions, whichever workers held them: key, captions drawn
(captioner and sentences), and a checksum of what the towers saw, pixels or features and tokens. The
digest is that of the samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from lotlip.data.pipeline import SampleTrace
from lotlip.errors import DataError


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """What the workers, or one of them, trained on in a step."""

    step: int
    epoch: int
    samples: tuple[SampleTrace, ...]

    def to_line(self) -> str:
        samples = [list(sample) for sample in self.samples]
        digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()[:16]
        content = {"step": self.step, "epoch": self.epoch, "digest": digest, "samples": samples}
        return json.dumps(content)


def joined(of_ranks: Sequence[Sequence[StepTrace]]) -> list[StepTrace]:
    """The steps of all workers, from those of each in the order of the ranks."""
    return [
        StepTrace(
            step=parts[0].step,
            epoch=parts[0].epoch,
            samples=tuple(chain.from_iterable(part.samples for part in parts)),
        )
        for parts in zip(*of_ranks, strict=True)
    ]


def read_trace(lines: Iterable[str | bytes], where: str) -> Iterator[StepTrace]:
    """The steps of a trace. Raises: DataError if it is none."""
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            samples = tuple(SampleTrace(*sample) for sample in content["samples"])
            step = StepTrace(step=content["step"], epoch=content["epoch"], samples=samples)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}: line {number} is not a step of a trace") from error
        yield step


class Comparison(NamedTuple):
    """How two traces relate."""

    num_equal: int
    """Steps from the first on."""
    parts: bool
    """Whether the next ones differ, and not only one trace ends before the other."""
    text: str
    """What comes then; empty if both end there."""


def compare(ours: Iterable[StepTrace], theirs: Iterable[StepTrace]) -> Comparison:
    """How far two traces are the same. Raises: what reading them raises."""
    num_equal = 0
    for mine, other in zip_longest(ours, theirs):
        if mine is None or other is None:
            return Comparison(
                num_equal, False, f"the {'second' if other is None else 'first'} ends"
            )
        if mine != other:
            return Comparison(num_equal, True, _difference(mine, other))
        num_equal += 1
    return Comparison(num_equal, False, "")


def _difference(mine: StepTrace, other: StepTrace) -> str:
    if (mine.step, mine.epoch) != (other.step, other.epoch):
        return (
            f"step {mine.step} of epoch {mine.epoch} stands where the other has step {other.step} "
            f"of epoch {other.epoch}"
        )
    where = f"step {mine.step} (epoch {mine.epoch})"
    if len(mine.samples) != len(other.samples):
        return f"{where}: {len(mine.samples)} samples against {len(other.samples)}"
    differing = [
        place
        for place, (a, b) in enumerate(zip(mine.samples, other.samples, strict=True))
        if a != b
    ]
    first, second = mine.samples[differing[0]], other.samples[differing[0]]
    what = next(name for name in first._fields if getattr(first, name) != getattr(second, name))
    of = "" if what == "key" else f" of {first.key}"
    return (
        f"{where}: {len(differing)} of {len(mine.samples)} samples differ, the first at position "
        f"{differing[0]}: {what}{of} {getattr(first, what)!r} against {getattr(second, what)!r}"
    )
