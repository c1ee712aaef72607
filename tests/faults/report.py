"""The figures of `make faults`: a table in the terminal and in docs/reliability.md."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from run import Injected, Round

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARKS = re.compile(r"(<!-- make faults -->\n).*(<!-- end -->\n)", re.DOTALL)
KILL_EVERY_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rounds together."""

    seed: int
    num_rounds: int
    num_steps: int
    faults: Sequence[Injected]
    damages: dict[str, int]
    """In the data, met in each epoch of each round, by kind."""
    num_hangs: int
    num_lost_or_doubled: int
    num_trace_differences: int
    wrong: Sequence[str]
    goodput: float
    """Useful step time / wall time, under all these faults."""

    @classmethod
    def of(
        cls, rounds: Sequence[Round], steps: int, step_s: float, damages: dict[str, int], seed: int
    ) -> Report:
        wall_s = sum(done.seconds for done in rounds)
        return cls(
            seed=seed,
            num_rounds=len(rounds),
            num_steps=steps,
            faults=[fault for done in rounds for fault in done.faults if fault.has_met],
            damages=damages,
            num_hangs=sum(done.num_hangs for done in rounds),
            num_lost_or_doubled=sum(done.num_lost_or_doubled for done in rounds),
            num_trace_differences=sum(done.num_trace_differences for done in rounds),
            wrong=[line for done in rounds for line in done.wrong],
            goodput=len(rounds) * steps * step_s / wall_s if wall_s else 0.0,
        )

    @property
    def is_bad(self) -> bool:
        return bool(
            self.wrong or self.num_hangs or self.num_lost_or_doubled or self.num_trace_differences
        )

    def recoveries_s(self, kind: str = "") -> list[float]:
        """Of one kind of fault, or of all that end a process of the run."""
        return [
            fault.recovery_s
            for fault in self.faults
            if fault.recovery_s and (fault.kind.name == kind if kind else fault.kind.is_deadly)
        ]


def printed(report: Report) -> str:
    """The tables, as Markdown."""
    names = dict.fromkeys(fault.kind.name for fault in report.faults)
    lines = ["| fault | times | recovery, s: p50 | p95 |", "|---|---|---|---|"]
    for name in sorted(names):
        times = sum(fault.kind.name == name for fault in report.faults)
        lines.append(f"| {name} | {times} | {_percentiles(report.recoveries_s(name))} |")
    for name, times in report.damages.items():
        lines.append(f"| {name}, in the data | {times * report.num_rounds} | - | - |")
    num_faults = len(report.faults) + sum(report.damages.values()) * report.num_rounds
    deadly = report.recoveries_s()
    at_a_kill = 1 - float(np.percentile(deadly, 95)) / KILL_EVERY_S if deadly else 1.0
    lines += [
        "",
        "| over all | |",
        "|---|---|",
        f"| faults | {num_faults} in {report.num_rounds} runs of {report.num_steps} steps |",
        f"| hangs | {report.num_hangs} |",
        f"| samples lost or doubled | {report.num_lost_or_doubled} |",
        f"| steps whose trace differs | {report.num_trace_differences} |",
        f"| else wrong: weights, bad samples, exit codes, MLflow runs | {len(report.wrong)} |",
        f"| recovery where a process died, s: p50, p95 | {_percentiles(deadly, ', ')} |",
        f"| goodput under all these faults | {report.goodput:.2f} |",
        f"| goodput with one kill in 30 minutes, at the p95 of recovery | {at_a_kill:.3f} |",
    ]
    return "\n".join([*lines, "", *report.wrong])


def write_report(report: Report) -> None:
    """Into the page, in place of the last one."""
    memory_gb = psutil.virtual_memory().total / 2**30
    machine = f"{psutil.cpu_count()} cores of {platform.machine()}, {memory_gb:.0f} GiB"
    head = f"`make faults` on {date.today().isoformat()}, {machine}, seed {report.seed}:\n\n"
    text = f"{head}{printed(report)}\n"
    PAGE.write_text(MARKS.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))


def _percentiles(seconds: Sequence[float], between: str = " | ") -> str:
    if not seconds:
        return f"-{between}-"
    return between.join(f"{value:.1f}" for value in np.percentile(seconds, (50, 95)))
