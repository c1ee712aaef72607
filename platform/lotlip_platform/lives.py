"""The lives of a run's workers: they are started, listened to, and started again.

A life ends when training is done, when a worker died, when the run is told to stop, or when Ray
drains a machine that it uses.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray

from lotlip.errors import ClusterError, LotlipError
from lotlip_platform import tracking
from lotlip_platform.cluster import beside_driver
from lotlip_platform.fit import Failure, fit
from lotlip_platform.listener import Listener, Watch
from lotlip_platform.mailbox import Mailbox
from lotlip_platform.preemption import Stopped, StopRequest, draining_nodes, stop_signals
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.train_config import TrainConfig

_LOOK_FOR_DRAINS_S = 2.0
_WAITING_S = 60.0


def run_workers(
    config: TrainConfig,
    data: str,
    folder: RunFolder,
    tracked: tracking.TrackedRun,
    watch: Watch,
    command: str,
) -> None:
    """Run the workers to the end of training.

    Raises: LotlipError; Stopped on the first SIGINT or SIGTERM, once they have saved, or
    KeyboardInterrupt if they have nothing to save yet, and on a second signal.
    """
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=beside_driver())(Mailbox).remote()
    listener = Listener(folder, tracked, watch)
    try:
        with stop_signals() as request:
            failures = 0
            while True:
                life = _Life(mailbox, listener, request)
                failure = fit(
                    config, run=folder.uri, data=data, mailbox=mailbox, listen=life.attend
                )
                if failure is not None and failure.users_own is not None:
                    raise failure.users_own
                if request.by:
                    raise _stopped(config, listener.stopped_at, request, tracked, command)
                if listener.stopped_at is not None:  # a machine was drained: go on elsewhere
                    continue
                if failure is None:
                    break
                failures += 1
                _check_failures(failure, failures, config.cluster.max_failures)
                listener.note(f"the workers failed ({failure.reason}): starting them again")
    except BaseException:
        with contextlib.suppress(LotlipError):  # what came first is what is told
            listener.record_bad_samples()
        raise
    listener.record_bad_samples()
    listener.check_ledger()
    listener.draw_curves(config)


class _Life:
    """What the driver does while the workers train."""

    def __init__(self, mailbox: Any, listener: Listener, request: StopRequest) -> None:
        self._mailbox, self._listener, self._request = mailbox, listener, request
        self._looked, self._told, self._began = 0.0, False, time.monotonic()
        self._waits_told = False
        listener.start_life()
        mailbox.tell_to_stop.remote(False)

    def attend(self) -> None:
        """Raises: KeyboardInterrupt if the run is to stop before there is anything to save."""
        self._listener.take(self._mailbox)
        self._tell_of_waiting()
        if self._told:
            return
        if self._request.by:
            if not self._listener.is_training:
                raise KeyboardInterrupt
            self._stop(f"{self._request.by}: stopping after this step; a second one ends at once")
        elif time.monotonic() - self._looked > _LOOK_FOR_DRAINS_S:
            self._looked = time.monotonic()
            if self._listener.is_training and self._listener.nodes & draining_nodes():
                self._stop("Ray drains a machine of this run: saving, then going on elsewhere")

    def _tell_of_waiting(self) -> None:
        waited = not self._listener.nodes and time.monotonic() - self._began > _WAITING_S
        if waited and not self._waits_told:
            self._waits_told = True
            free = ray.available_resources()
            self._listener.note(
                f"still waiting for workers after {_WAITING_S:.0f} s; free in the cluster: "
                f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
            )

    def _stop(self, why: str) -> None:
        self._told = True
        self._listener.note(why)
        self._mailbox.tell_to_stop.remote(True)


def _check_failures(failure: Failure, failures: int, max_failures: int) -> None:
    """Raises: ClusterError if the workers have failed too often."""
    if failures > max_failures:
        raise ClusterError(
            f"training failed {failures} times, last with: {failure.reason}; the run "
            "resumes from its last checkpoint when started again"
        )


def _stopped(
    config: TrainConfig,
    at: int | None,
    request: StopRequest,
    tracked: tracking.TrackedRun,
    command: str,
) -> KeyboardInterrupt:
    if at is None:  # they failed meanwhile, or training was done
        return KeyboardInterrupt()
    tracked.tag_later(
        {
            "stopped": f"preempted by {request.by} at step {at} of {config.train.num_steps}",
            "continue_with": command or "lotlip train with the same config",
        }
    )
    return Stopped(at, config.train.num_steps)
