"""What a worker keeps of its steps, until they are logged or saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lotlip import distributed
from lotlip.train.loop import Step
from lotlip.train.trace import StepTrace, joined
from lotlip_platform.run_folder import BAD, METRICS, TRACE, RunFolder
from lotlip_platform.system_metrics import Machine

Send = Callable[[dict[str, Any]], None]
"""Tells the driver an event of one of the kinds that `listener` lists."""


class Records:
    """What the run folder keeps of the steps, gathered until the next checkpoint."""

    def __init__(self, folder: RunFolder, owner: str, send: Send) -> None:
        self._folder, self._owner, self._send = folder, owner, send
        self._traced: list[StepTrace] = []
        self._bad: list[dict[str, Any]] = []
        self._measured: list[dict[str, Any]] = []
        self._unwritten: dict[tuple[str, int], list[str]] = {}
        """Lines by file and step; a save that fails leaves them to the next."""

    def take(self, step: Step) -> None:
        self._bad += [{"epoch": step.epoch, **vars(bad)} for bad in step.bad]
        if step.trace:
            self._traced.append(StepTrace(step=step.step, epoch=step.epoch, samples=step.trace))

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Keep metrics by name, and tell them. For worker 0."""
        event = {"step": step, "time_ms": int(time.time() * 1000), "values": dict(values)}
        self._measured.append(event)
        self._send({"kind": "metrics", **event})

    def cut(self, step: int) -> Callable[[], None]:
        """Bring together what all workers have; what writes it, for worker 0, unless the run is
        another process's now.

        Every worker must call it at the same step.
        """
        of_ranks = distributed.collect_objects((self._bad, self._traced))
        self._bad, self._traced = [], []
        if distributed.rank() == 0:
            traces = joined([traced for _, traced in of_ranks])
            self._unwritten |= {
                (BAD, step): [json.dumps(sample) for bads, _ in of_ranks for sample in bads],
                (TRACE, step): [one.to_line() for one in traces],
                (METRICS, step): [json.dumps(event) for event in self._measured],
            }
        self._measured = []

        def write() -> None:
            self._folder.check_owner(self._owner)
            for (of, at), lines in list(self._unwritten.items()):
                self._folder.write_part(of, at, lines)
                del self._unwritten[of, at]

        return write


@dataclass
class Meter:
    """Averages the steps between two logs, on worker 0; bad samples are told by all."""

    send: Send
    records: Records
    peak_flops: float
    """Of a worker's device in a second; 0 if it isn't known."""
    machine: Machine = field(default_factory=Machine)
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
            flops = sum(taken.flops for taken in self.steps)
            metrics = {
                "train/loss": step.mean_loss,
                "train/scale": step.scale,
                "train/lr": step.lr,
                "train/grad_norm": step.grad_norm,
                "train/epoch": float(step.epoch),
                "train/step_s": seconds / len(self.steps),
                "train/skipped_steps": float(step.num_skipped),
                "train/samples_per_s": world * sum(s.num_samples for s in self.steps) / seconds,
                "train/tokens_per_s": world * sum(s.num_tokens for s in self.steps) / seconds,
                "train/worker_tflops_per_s": flops / seconds / 1e12,
                "train/data_wait_share": sum(s.data_wait_s for s in self.steps) / seconds,
            }
            if self.peak_flops:
                metrics["train/mfu"] = flops / seconds / self.peak_flops
            self.records.measured(step.step, {**metrics, **self.machine.measure()})
        self.steps = []
