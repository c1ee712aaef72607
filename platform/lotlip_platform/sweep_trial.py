"""A trial of a sweep on the cluster: the workers of a training run under Ray Tune.

Tune holds a placement group for each trial that runs at a time: a bundle for the `TrialActor`, one
for each worker. The workers are actors of the `TrialActor` in that group, and stay for the trials
that come after. So whatever dies, Tune's group and all in it end with it; where Ray Train is run
within Tune, groups of trials that were stopped early are left behind (ray#54305). The workers run
what those of `lotlip train` run.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lotlip.errors import LotlipError
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.mailbox import Event, Mailbox
from lotlip_platform.train_worker import work
from lotlip_platform.workers import Workers

_LOOK_S = 0.1
"""Between two looks at what the workers have told."""
_TELL_S = 5.0
_START_S = 120.0
_STOP_S = 60.0
"""In which workers that are told to stop must have saved."""
_MESSAGE_S = 300.0
"""In which workers must answer each other."""
VALUE = "value"
"""The name under which Tune knows the sweep's metric."""
_NOTHING_NEW: dict[str, Any] = {"samples": 0, "metrics": {}, VALUE: math.nan}
"""Tune wants all of it in each result; schedulers pass over one at 0 samples."""
_ACTOR_CPUS = 0.01
"""Tune refuses a bundle of nothing for the trial's actor: the first worker gives so much of its."""


def cpus_of_worker(cpus_per_worker: float, rank: int) -> float:
    """That Ray holds for a worker, so that trials and their actors fill a machine to its last."""
    return round(cpus_per_worker - (_ACTOR_CPUS if rank == 0 else 0), 4)


class TrialWorker:
    """The actor in which one worker trains, trial after trial."""

    def __init__(self, num_cpus: float, on_gpu: bool) -> None:
        self._device = torch.device("cuda" if on_gpu else "cpu")
        torch.set_num_threads(max(1, int(num_cpus)))

    def address(self) -> str:
        """Where workers can meet."""
        with socket.socket() as found:
            found.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{found.getsockname()[1]}"

    def run(self, arguments: Mapping[str, Any], rank: int, world_size: int, address: str) -> str:
        """Train to the end, or until told to stop; the user's error if there is one."""
        try:
            with _process_group(self._device, rank, world_size, address):
                work(arguments, self._device)
        except LotlipError as users_own:
            return str(users_own)
        finally:
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return ""


@contextmanager
def _process_group(
    device: torch.device, rank: int, world_size: int, address: str
) -> Iterator[None]:
    if world_size == 1:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=address,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=_MESSAGE_S),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


class TrialActor(tune.Trainable):
    """What Tune starts, asks for results, and gives the next trial to.

    A trial is, in Tune's config, the `arguments` of `train_worker`, all but mailbox and life; what
    it asks of the cluster; and the `replay` of the results that it had before, of which the last
    one says whether it is done.

    A result has the `events` of the workers since the last one; the `samples` seen, the `metrics`
    then, and that by which trials are compared as VALUE; whether that `is_new`; the `seconds` of
    training in this `life` of the trial; whether it is `through`, and the `error` that ended it;
    and `between_s`, how long its workers were without work before it, 0 if they are new.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._workers: list[Any] = []
        mailbox: Any = ray.remote(num_cpus=0)(Mailbox)
        self._mailbox = mailbox.remote()
        self._running: dict[ray.ObjectRef, int] = {}
        self._began: float | None = None
        """When the workers started to train, while they do."""
        self._idle_since: float | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end()
        self._kill()

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        gpus = {"GPU": config["gpus_per_worker"]} if config["gpus_per_worker"] else {}
        workers = [
            {"CPU": cpus_of_worker(config["cpus_per_worker"], rank), **gpus}
            for rank in range(config["num_workers"])
        ]
        return tune.PlacementGroupFactory([{"CPU": _ACTOR_CPUS}, *workers], strategy="PACK")

    def step(self) -> dict[str, Any]:
        """The next result; the workers train on meanwhile. Now and then one of nothing new."""
        if self._replay:
            return self._replay.pop(0)
        began = time.monotonic()
        while True:
            if result := self._result():
                return result
            if self._failure:
                self._failures += 1
                if self._failures > self._trial["max_failures"]:
                    return self._through(self._failure)
                self._note(f"the workers failed ({self._failure}): starting them again")
                self._start()
            if time.monotonic() - began > _TELL_S:  # Tune can't stop a trial before it hears of it
                return self._result_of(_NOTHING_NEW, through=False)
            self._look()

    def _begin(self, trial: dict[str, Any]) -> None:
        self._trial, self._life = trial, uuid.uuid4().hex
        self._replay: list[dict[str, Any]] = list(trial["replay"])
        self._events: list[Event] = []
        self._evaluated: list[Event] = []
        self._failures, self._failure = 0, ""
        self._last: dict[str, Any] = {"samples": 0, "metrics": {}, VALUE: math.nan}
        if self._replay:
            self._last = {name: self._replay[-1][name] for name in self._last}
        self._spent_s, self._began, self._between_s = 0.0, None, 0.0
        if not (self._replay and self._replay[-1]["through"]):
            self._start()

    def _start(self) -> None:
        """Start training, on the workers of the last trial if there are any."""
        trial, self._failure = self._trial, ""
        self._watched = Workers(ClusterConfig(max_step_s=trial["max_step_s"]))
        try:
            if not self._workers:
                self._idle_since = None
                self._workers = [self._worker(rank) for rank in range(self._num_workers)]
            ray.get(self._mailbox.tell_to_stop.remote(False))
            address = ray.get(self._workers[0].address.remote(), timeout=_START_S)
            ray.get(self._mailbox.take.remote())  # what those told that were killed
        except RayError as error:
            self._fail(str(error))
            return
        self._began = time.monotonic()
        if self._idle_since is not None:
            self._between_s = self._began - self._idle_since
        life = f"{time.time_ns():x}"
        arguments = {**trial["arguments"], "mailbox": self._mailbox, "life": life}
        self._running = {
            worker.run.remote(arguments, rank, self._num_workers, address): rank
            for rank, worker in enumerate(self._workers)
        }

    @property
    def _num_workers(self) -> int:
        return self._trial["num_workers"]

    def _worker(self, rank: int) -> Any:
        """A worker in its part of Tune's placement group, of which the first is this actor's."""
        group = ray.util.get_current_placement_group()
        assert group is not None, "Tune starts trials in groups"
        gpus = self._trial["gpus_per_worker"]
        options = {
            "num_cpus": cpus_of_worker(self._trial["cpus_per_worker"], rank),
            "num_gpus": gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=1 + rank
            ),
        }
        worker: Any = ray.remote(**options)(TrialWorker)
        return worker.remote(self._trial["cpus_per_worker"], bool(gpus))

    def _look(self) -> None:
        """Take what the workers tell, and see whether they live, and whether they have ended."""
        done, _ = ray.wait(list(self._running), timeout=_LOOK_S)
        self._take()
        for ref in done:
            self._running.pop(ref)
            if not self._running:
                self._idle_since = time.monotonic()
            try:
                error = ray.get(ref)
            except RayError as failure:  # a worker died; the others may wait for it for ever
                self._fail(_reason(failure))
                return
            if error:
                self._failures = self._trial["max_failures"]  # it would come again
                self._fail(error, kill=bool(self._running))
                return
            if not self._running:
                self._spent_s, self._began = self._seconds, None
        if fault := self._watched.hung():
            self._watched.kill()
            self._fail(fault)

    def _take(self) -> None:
        for event in ray.get(self._mailbox.take.remote()):
            if event["kind"] in ("born", "beat", "ended"):
                self._watched.take(event)
                continue
            self._events.append(event)
            if event["kind"] == "evaluated":
                self._evaluated.append(event)

    def _result(self) -> dict[str, Any] | None:
        """What is to be told now, if there is something."""
        early = [event for event in self._evaluated if not self._is_last(event)]
        if early:
            self._evaluated.remove(early[0])
            return self._told(early[0], through=False)
        return None if self._running or self._failure else self._through("")

    def _is_last(self, evaluated: Event) -> bool:
        """Whether it is the evaluation at the end, which is told once the run is all written."""
        return evaluated["step"] == self._trial["num_steps"]

    def _through(self, error: str) -> dict[str, Any]:
        if self._evaluated and not error:
            return self._told(self._evaluated.pop(), through=True)
        return self._result_of(self._last, through=True, error=error)

    def _told(self, evaluated: Event, *, through: bool) -> dict[str, Any]:
        metrics, name = evaluated["metrics"], self._trial["metric"]
        if name not in metrics:
            self._end()
            known = f"these are: {', '.join(metrics)}"
            error = f"metric={name} is not measured by eval.benchmark; {known}"
            return self._result_of(self._last, through=True, error=error)
        self._last = {
            "samples": evaluated["step"] * self._trial["global_batch"],
            "metrics": {key: vars(interval) for key, interval in metrics.items()},
            VALUE: metrics[name].value,
        }
        return self._result_of(self._last, through=through)

    def _result_of(
        self, known: dict[str, Any], *, through: bool, error: str = ""
    ) -> dict[str, Any]:
        return {
            **known,
            "events": self._taken(),
            "seconds": self._seconds,
            "life": self._life,
            "between_s": self._between_s,
            "is_new": known is not _NOTHING_NEW,
            "through": through,
            "done": through,
            "error": error,
        }

    @property
    def _seconds(self) -> float:
        """Of training in this life, also if workers died."""
        now = self._began and time.monotonic() - self._began
        return self._spent_s + (now or 0.0)

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _note(self, text: str) -> None:
        self._events.append({"kind": "note", "text": text})

    def _fail(self, reason: str, *, kill: bool = True) -> None:
        self._failure, self._spent_s, self._began = reason, self._seconds, None
        if kill:
            self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._running = [], {}

    def _end(self) -> None:
        """Have workers that still train save and end: Tune has stopped the trial."""
        if not self._running:
            return
        with contextlib.suppress(RayError):
            ray.get(self._mailbox.tell_to_stop.remote(True))
            waited = ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOP_S)
            if not waited[1] and not any(ray.get(waited[0])):
                self._running = {}
                self._idle_since = time.monotonic()
                ray.get(self._mailbox.take.remote())
                return
        self._kill()


def _reason(failure: RayError) -> str:
    lines = [line.strip() for line in str(failure).splitlines()]
    return next((line for line in reversed(lines) if line), type(failure).__name__)[:200]
