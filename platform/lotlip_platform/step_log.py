"""What a worker keeps of its steps, until they are logged or saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lotlip import distributed
from lotlip.train.loop import Step
from lotlip.train.trace import StepTrace, joined
from lotlip_platform.run_folder import BAD, TRACE, RunFolder

Send = Callable[[dict[str, Any]], None]
"""Tells the driver an event of one of the kinds that `listener` lists."""


class Records:
    """What the run folder keeps of the steps, gathered until the next checkpoint."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._traced: list[StepTrace] = []
        self._bad: list[dict[str, Any]] = []

    def take(self, step: Step) -> None:
        self._bad += [{"epoch": step.epoch, **vars(bad)} for bad in step.bad]
        if step.trace:
            self._traced.append(StepTrace(step=step.step, epoch=step.epoch, samples=step.trace))

    def cut(self, step: int) -> Callable[[], None]:
        """Bring together what all workers have; what writes it, for worker 0.

        Every worker must call it at the same step.
        """
        of_ranks = distributed.collect_objects((self._bad, self._traced))
        self._bad, self._traced = [], []
        bad = [json.dumps(sample) for bads, _ in of_ranks for sample in bads]
        trace = [one.to_line() for one in joined([traced for _, traced in of_ranks])]

        def write() -> None:
            self._folder.write_part(BAD, step, bad)
            self._folder.write_part(TRACE, step, trace)

        return write


@dataclass
class Meter:
    """Averages the steps between two logs; rank 0 sends them, bad samples come from all."""

    send: Send
    steps: list[Step] = field(default_factory=list)

    def take(self, step: Step) -> None:
        self.steps.append(step)
        if step.bad:
            samples = [{"epoch": step.epoch, **vars(bad)} for bad in step.bad]
            self.send({"kind": "bad", "samples": samples})
        if distributed.rank() == 0:
            self.send({"kind": "step", "step": step.step, "loss": step.loss})

    def log(self, step: Step) -> None:
        seconds = sum(taken.step_s for taken in self.steps)
        world = distributed.world_size()
        if distributed.rank() == 0 and seconds > 0:
            metrics = {
                "train/loss": _mean_of_finite([taken.loss for taken in self.steps]),
                "train/scale": step.scale,
                "train/lr": step.lr,
                "train/grad_norm": step.grad_norm,
                "train/epoch": float(step.epoch),
                "train/skipped_steps": float(step.num_skipped),
                "train/samples_per_s": world * sum(s.num_samples for s in self.steps) / seconds,
                "train/tokens_per_s": world * sum(s.num_tokens for s in self.steps) / seconds,
                "train/data_wait_share": sum(s.data_wait_s for s in self.steps) / seconds,
            }
            self.send({"kind": "metrics", "step": step.step, "metrics": metrics})
        self.steps = []


def _mean_of_finite(values: list[float]) -> float:
    """Skipped steps have no loss that could be averaged."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
