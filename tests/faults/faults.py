"""The faults: what each kind does to a run, and when it has done it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from rig import Episode, Rig, Trainee

Act = Callable[[Rig, Trainee, random.Random], Episode | None]
"""What begins an episode of S3 returns it. Raises: NothingThere."""


class NothingThere(Exception):
    """There is nothing at present that could be broken in this way."""


MLFLOW_AWAY_S = 25.0  # longer than a request waits


def kill_worker(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    _signal_worker(trainee, rng, signal.SIGKILL)


def freeze_worker(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    _signal_worker(trainee, rng, signal.SIGSTOP)


def _signal_worker(trainee: Trainee, rng: random.Random, number: signal.Signals) -> None:
    """To a worker; there may be none, in the middle of a start."""
    workers = trainee.workers()
    if not workers:
        raise NothingThere
    try:
        os.kill(rng.choice(workers)["pid"], number)
    except ProcessLookupError as error:
        raise NothingThere from error


def kill_trainer(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    trainee.process.kill()


def stop_run(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    trainee.process.terminate()


def kill_node(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    """A machine of the run is gone, and another one comes."""
    alive = {node.node_id for node in rig.nodes}
    used = sorted(alive & {worker["node"] for worker in trainee.workers()})
    rig.kill_node(rng.choice(used or sorted(alive)))
    rig.add_node()


def kill_mlflow(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    _mlflow_away(rig, signal.SIGKILL, rig.mlflow.start)


def freeze_mlflow(rig: Rig, trainee: Trainee, rng: random.Random) -> None:
    _mlflow_away(rig, signal.SIGSTOP, lambda: rig.mlflow.signal(signal.SIGCONT))


def _mlflow_away(rig: Rig, number: signal.Signals, heal: Callable[[], None]) -> None:
    """For a while."""
    if rig.heal_mlflow is not None:  # it is away already
        raise NothingThere
    rig.mlflow.signal(number)
    rig.heal_mlflow = heal
    rig.mlflow_back_at = time.monotonic() + MLFLOW_AWAY_S


def breaks_s3(*faults: str, share: float = 0.5) -> Act:
    """For a while so many requests fail in this way; at least one does."""

    def act(rig: Rig, trainee: Trainee, rng: random.Random) -> Episode:
        return rig.s3.begin(rng.choice(faults), share)

    return act


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    act: Act
    weight: int
    """How often it is drawn."""
    is_deadly: bool = False
    """Whether a process of the run dies of it."""


KINDS = (
    Kind("kill -9 of a worker", kill_worker, 3, is_deadly=True),
    Kind("frozen worker (SIGSTOP)", freeze_worker, 1, is_deadly=True),
    Kind("kill -9 of the trainer process", kill_trainer, 2, is_deadly=True),
    Kind("kill -9 of a whole node", kill_node, 2, is_deadly=True),
    Kind("SIGTERM", stop_run, 2, is_deadly=True),
    Kind("S3: 503", breaks_s3("503"), 1),
    Kind("S3: connection reset", breaks_s3("reset"), 1),
    Kind("S3: truncated answer", breaks_s3("truncate"), 1),
    Kind("S3: lying or missing length", breaks_s3("short_length", "no_length_cut"), 1),
    Kind("S3: hanging answer", breaks_s3("hang", share=0.1), 1),
    Kind("S3: slow answer", breaks_s3("slow"), 1),
    Kind("MLflow killed", kill_mlflow, 1),
    Kind("MLflow frozen", freeze_mlflow, 1),
)


def draw(rng: random.Random, num_faults: int) -> list[Kind]:
    """Kinds in the order in which they come; each at least once, if there is room."""
    bag: list[Kind] = []
    while len(bag) < num_faults:
        once = [kind for kind in KINDS for _ in range(kind.weight)]
        firsts = rng.sample(KINDS, len(KINDS)) if not bag else []
        rng.shuffle(once)
        bag += firsts + once
    drawn = bag[:num_faults]
    rng.shuffle(drawn)
    return drawn
