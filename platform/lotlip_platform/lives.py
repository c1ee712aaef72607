"""The lives of a run's workers: they are started, listened to, and started again.

A life ends when training is done, when a worker died, when the run is told to stop, when Ray drains
a machine that it uses, or when there is room for more workers and the config allows them.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray

from lotlip.errors import ClusterError, LotlipError
from lotlip_platform.cluster import beside_driver
from lotlip_platform.fit import fit
from lotlip_platform.job_environment import how_to_go_on
from lotlip_platform.listener import Listener, Watch
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.ownership import Owner
from lotlip_platform.preemption import Stopped, StopRequest, draining_nodes, stop_signals
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.scaling import most_that_fit, room, worker_counts
from lotlip_platform.shard_versions import TrainingData
from lotlip_platform.tracked_run import TrackedRun
from lotlip_platform.train_config import TrainConfig

_LOOK_S = 2.0
"""Between two looks at which machines come and go."""
_SETTLED_S = 10.0
"""How long there must be room for more workers before they are started."""
_WAITING_S = 60.0
_KILL_AGAIN_S = 30.0


def run_workers(
    config: TrainConfig,
    data: TrainingData,
    folder: RunFolder,
    tracked: TrackedRun,
    owner: Owner,
    watch: Watch,
    command: str,
) -> None:
    """Run the workers to the end of training.

    Raises: LotlipError; Stopped on the first SIGINT or SIGTERM, once they have saved, or
    KeyboardInterrupt if they have nothing to save yet, and on a second signal.
    """
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=beside_driver())(Mailbox).remote()
    listener = Listener(folder, tracked, watch, config.cluster)
    try:
        with stop_signals() as request:
            failures = 0
            while True:
                life = _Life(config, mailbox, listener, request)

                def attend(life: _Life = life) -> None:
                    owner.check()
                    tracked.attend()
                    life.attend()

                failure = fit(
                    config,
                    num_workers=life.num_workers,
                    run=folder.uri,
                    data=data,
                    owner=owner.token,
                    mailbox=mailbox,
                    listen=attend,
                )
                if failure is not None and failure.users_own is not None:
                    raise failure.users_own
                is_done = failure is None or folder.read_result() is not None
                if listener.stopped_at is None and is_done:
                    break
                if request.by:
                    raise _stopped(config, listener.stopped_at, request, tracked, command)
                reason = life.fault or (failure.reason if failure else "")
                if reason:
                    failures += 1
                    _check_failures(reason, failures, config.cluster.max_failures)
                    listener.note(f"the workers failed ({reason}): starting them again")
    except BaseException:
        with contextlib.suppress(LotlipError):  # what came first is what is told
            listener.record_bad_samples()
        raise
    listener.record_bad_samples()
    listener.check_ledger()
    listener.draw_curves(config)


class _Life:
    """What the driver does while the workers train."""

    def __init__(
        self, config: TrainConfig, mailbox: Any, listener: Listener, request: StopRequest
    ) -> None:
        """Raises: KeyboardInterrupt if the run is to stop."""
        self._cluster, self._mailbox = config.cluster, mailbox
        self._listener, self._request = listener, request
        self._counts = worker_counts(config.cluster, config.data.order.num_streams)
        self.num_workers = self._as_many_as_fit()
        self._began = self._looked = time.monotonic()
        self._told = self._waiting_told = self._straggler_told = False
        self._kill_at = 0.0
        self.fault = ""
        """What is wrong with the workers, if that is why they are to end."""
        self._could_grow = 0
        listener.start_life()
        mailbox.tell_to_stop.remote(False)

    def attend(self) -> None:
        """Raises: KeyboardInterrupt if the run is to stop before there is anything to save."""
        self._listener.take(ray.get(self._mailbox.take.remote()))
        self._tell_of_waiting()
        self._look_at_workers()
        if self._told:
            return
        if self._request.by:
            if not self._listener.is_training:
                raise KeyboardInterrupt
            self._stop(f"{self._request.by}: stopping after this step; a second one ends at once")
        elif self._listener.is_training and time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self._look_at_machines()

    def _look_at_workers(self) -> None:
        workers = self._listener.workers
        if fault := workers.hung():
            if time.monotonic() > self._kill_at:
                self.fault, self._kill_at = fault, time.monotonic() + _KILL_AGAIN_S
                self._listener.note(f"{fault}: killing the workers")
                workers.kill()
        elif not self._told and (fault := workers.too_large()):
            self.fault = fault
            self._stop(f"{fault}: saving, then starting the workers again")
        elif not self._straggler_told and (straggler := workers.straggler()):
            self._straggler_told = True
            self._listener.note(straggler)

    def _look_at_machines(self) -> None:
        if self._listener.workers.nodes & draining_nodes():
            self._stop("Ray drains a machine of this run: saving, then going on elsewhere")
        elif self.num_workers < self._counts[-1]:
            most = most_that_fit(self._counts, self.num_workers + room(self._cluster))
            self._could_grow = self._could_grow + 1 if most > self.num_workers else 0
            if self._could_grow * _LOOK_S >= _SETTLED_S:
                self._stop(f"there is room for {most} workers: saving, then going on with them")

    def _as_many_as_fit(self) -> int:
        """The number of workers to start. A fixed one is Ray's to wait for."""
        if len(self._counts) == 1:
            return self._counts[0]
        began, told = time.monotonic(), False
        while True:
            waited = time.monotonic() - began
            most = most_that_fit(self._counts, room(self._cluster))
            # Those of the last life give back what they held a little later.
            if most == self._counts[-1] or (most and waited > _SETTLED_S):
                self._listener.note(f"{most} workers")
                return most
            if waited > _WAITING_S and not told:
                told = True
                self._listener.note(f"waiting for room for {self._counts[0]} workers")
            if self._request.by:
                raise KeyboardInterrupt
            time.sleep(0.5)

    def _tell_of_waiting(self) -> None:
        waited = not self._listener.workers.nodes and time.monotonic() - self._began > _WAITING_S
        if waited and not self._waiting_told:
            self._waiting_told = True
            free = ray.available_resources()
            self._listener.note(
                f"still waiting for workers after {_WAITING_S:.0f} s; free in the cluster: "
                f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
            )

    def _stop(self, why: str) -> None:
        self._told = True
        self._listener.note(why)
        self._mailbox.tell_to_stop.remote(True)


def _check_failures(reason: str, failures: int, max_failures: int) -> None:
    """Raises: ClusterError if the workers have failed too often."""
    if failures > max_failures:
        raise ClusterError(
            f"training failed {failures} times, last with: {reason}; the run "
            "resumes from its last checkpoint when started again"
        )


def _stopped(
    config: TrainConfig,
    at: int | None,
    request: StopRequest,
    tracked: TrackedRun,
    command: str,
) -> KeyboardInterrupt:
    if at is None:  # they failed meanwhile, or training was done
        return KeyboardInterrupt()
    tracked.tag(
        {
            "stopped": f"preempted by {request.by} at step {at} of {config.train.num_steps}",
            "continue_with": how_to_go_on(command or "lotlip train with the same config"),
        }
    )
    return Stopped(at, config.train.num_steps)
