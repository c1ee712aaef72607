"""`make faults`: break everything around a run, at random, and see what is lost.

    run.py [--faults 200] [--seed 0] [--report]

A run of two workers on a Ray of four nodes, with data and checkpoints in S3, is left alone once,
and then trained again, round after round of twenty faults. Each round must end with the very same
weights, the very same trace and one whole run in MLflow. Prints a table; exit code 1 if anything
hung, was lost, doubled or different. With --report the table goes into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

from faults import Kind, NothingThere, draw
from report import Report, printed, write_report
from rig import BUCKET, Episode, Rig, Trainee, rig

from lotlip.train.trace import StepTrace, compare
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import open_store

FAULTS_A_ROUND = 20
STEPS_A_FAULT = 40
AT_ONCE = 0.15
"""Share of the faults that come while the run still recovers from the one before."""
HANG_S = 180.0
NUM_DAMAGED = 6
STOPPED = (130, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of a trainer process that was told to stop, or killed."""


@dataclass
class Injected:
    """A fault, and what became of it."""

    kind: Kind
    at: float
    step: int
    """The last step before it."""
    has_workers: bool
    """Whether the workers live on, or there have been new ones since."""
    recovery_s: float = 0.0
    """Until a step that had not been there before, whatever else came meanwhile."""
    episode: Episode | None = None
    """Of S3, if it is one."""

    @property
    def has_met(self) -> bool:
        """Whether it has done anything; an episode may end with the run."""
        return self.episode is None or self.episode.num_broken > 0


@dataclass
class Round:
    """What a round of faults has done to a run."""

    faults: list[Injected] = field(default_factory=list)
    num_hangs: int = 0
    wrong: list[str] = field(default_factory=list)
    """What is not as it is in the run that was left alone, one line each."""
    num_trace_differences: int = 0
    num_lost_or_doubled: int = 0
    seconds: float = 0.0
    """From the first step to the end of the last."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.faults < 1:
        parser.error("--faults must be 1 or more")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends what was started
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    rounds = []
    firsts = range(0, given.faults, FAULTS_A_ROUND)
    sizes = [min(FAULTS_A_ROUND, given.faults - first) for first in firsts]
    num_steps = (max(sizes) + 2) * STEPS_A_FAULT
    with (
        tempfile.TemporaryDirectory() as folder,
        rig(Path(folder), given.seed, NUM_DAMAGED) as (services, damages),
    ):
        base = left_alone(services, num_steps)
        say(f"left alone: {num_steps} steps, {1000 * base.step_s:.0f} ms each")
        for number, size in enumerate(sizes):
            rng = random.Random(f"{given.seed}-{number}")
            rounds.append(one_round(services, base, f"round-{number}", size, rng))
            report = Report.of(rounds, num_steps, base.step_s, damages, given.seed)
            if given.report:  # what there is so far: whoever stops it keeps that
                write_report(report)
    print(printed(report))
    return 1 if report.is_bad else 0


@dataclass(frozen=True)
class Base:
    """The run that was left alone."""

    num_steps: int
    step_s: float
    folder: RunFolder
    trace: list[StepTrace]
    logged: dict[int, float]
    """The loss in MLflow by step."""


def left_alone(services: Rig, num_steps: int) -> Base:
    trainee = Trainee(services, "alone", num_steps)
    if trainee.wait(600) != 0:
        raise SystemExit(f"the run that was left alone failed: {trainee.last_words}")
    times = [event["time"] for event in trainee.events if event["kind"] == "step"]
    folder = folder_of("alone")
    return Base(
        num_steps=num_steps,
        step_s=(times[-1] - times[0]) / (len(times) - 1),
        folder=folder,
        trace=list(folder.read_trace()),
        logged=logged_of(services, "alone")[0],
    )


def one_round(services: Rig, base: Base, name: str, num_faults: int, rng: random.Random) -> Round:
    """Train while the faults come."""
    done = Round()
    trainee = Trainee(services, name, base.num_steps)
    kinds = draw(rng, num_faults)
    due_steps = sorted(rng.sample(range(20, base.num_steps - STEPS_A_FAULT), num_faults))
    moved = time.monotonic()
    due_at = None
    while True:
        time.sleep(0.05)
        services.attend()
        before = trainee.highest
        new = trainee.look()
        recovered(done, new)
        if trainee.highest > before:
            moved = time.monotonic()
        if trainee.process.poll() is not None:
            recovered(done, trainee.look())
            if trainee.process.returncode == 0:
                break
            if trainee.process.returncode not in STOPPED:
                done.wrong.append(f"{name}: the trainer process failed: {trainee.last_words}")
            trainee.start()  # as whoever runs it would, or what restarts jobs
        if time.monotonic() - moved > HANG_S:
            done.num_hangs += 1
            done.wrong.append(f"{name}: no new step for {HANG_S:.0f} s: {trainee.last_words}")
            trainee.process.kill()
            services.attend(at_once=True)
            return done
        count = len(done.faults)
        if count == num_faults:
            continue
        is_due = trainee.highest >= due_steps[count]
        if is_due or (due_at is not None and time.monotonic() > due_at):
            kind = kinds[count]
            fault = Injected(kind, time.time(), trainee.highest, has_workers=not kind.is_deadly)
            try:
                fault.episode = kind.act(services, trainee, rng)
            except NothingThere:  # later
                kinds.append(kinds.pop(count))
                continue
            say(f"{name}, step {trainee.highest}: {kind.name}")
            done.faults.append(fault)
            # The next one may come before the run is back.
            soon = rng.random() < AT_ONCE
            due_at = time.monotonic() + rng.uniform(0.0, 15.0) if soon else None
    services.attend(at_once=True)
    check(services, base, name, trainee, done)
    return done


def recovered(done: Round, new: list[dict[str, Any]]) -> None:
    """Note the steps that a fault had kept from being made."""
    for event in new:
        for fault in done.faults:
            if event["time"] < fault.at:
                continue
            if event["kind"] == "born":
                fault.has_workers = True
            # What comes first may have been under way when the workers died.
            elif event["kind"] == "step" and fault.has_workers and event["step"] > fault.step:
                fault.recovery_s = fault.recovery_s or event["time"] - fault.at


def check(services: Rig, base: Base, name: str, trainee: Trainee, done: Round) -> None:
    """Compare with the run that was left alone."""
    times = [event["time"] for event in trainee.events if event["kind"] == "step"]
    done.seconds = max(times) - min(times)
    folder = folder_of(name)
    trace = list(folder.read_trace())
    found = compare(trace, base.trace)
    done.num_trace_differences = max(len(trace), len(base.trace)) - found.num_equal
    counts, of_base = (
        Counter((step.epoch, sample.key) for step in steps for sample in step.samples)
        for steps in (trace, base.trace)
    )
    done.num_lost_or_doubled = sum(((counts - of_base) + (of_base - counts)).values())
    result, expected = folder.read_result(), base.folder.read_result()
    if result != expected:
        done.wrong.append(f"{name}: the result is {result}, left alone {expected}")
    if folder.read_bad_samples() != base.folder.read_bad_samples():
        done.wrong.append(f"{name}: other bad samples than those of the run left alone")
    if found.text:
        done.wrong.append(f"{name}: the traces part: {found.text}")
    services.mlflow.wait_until_it_answers()
    logged, status = logged_of(services, name)
    if logged != base.logged:
        done.wrong.append(f"{name}: other losses in MLflow than those of the run left alone")
    if status != ["FINISHED"]:
        done.wrong.append(f"{name}: its runs in MLflow are {status}")
    say(f"{name}: {len(done.faults)} faults in {done.seconds:.0f} s, {done.wrong or 'all equal'}")


def logged_of(services: Rig, name: str) -> tuple[dict[int, float], list[str]]:
    """The loss by step of the runs of this name in MLflow, once all is sent, and their states."""
    from mlflow import MlflowClient

    from lotlip_platform.journal import journals
    from lotlip_platform.track import sync

    os.environ["LOTLIP_HOME"] = services.environment()["LOTLIP_HOME"]
    deadline = time.monotonic() + 120
    while journals() and time.monotonic() < deadline:
        list(sync())  # what another process still sends comes later
        time.sleep(0.5)
    client = MlflowClient(services.mlflow.url)
    runs = client.search_runs(["1"], f"attributes.run_name = '{name}'")
    history = [p for run in runs for p in client.get_metric_history(run.info.run_id, "train/loss")]
    by_step = {point.step: point.value for point in history}
    if len(by_step) < len(history):
        by_step[-1] = float("nan")  # doubled: equal to nothing
    return by_step, [run.info.status for run in runs]


def folder_of(name: str) -> RunFolder:
    return RunFolder(open_store(f"{BUCKET}/runs/{name}"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
