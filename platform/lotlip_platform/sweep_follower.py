"""The trials of a sweep under Ray Tune, followed by the driver."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from lotlip.errors import ClusterError, LotlipError
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.listener import Watch
from lotlip_platform.local_services import home
from lotlip_platform.ownership import Owner
from lotlip_platform.preemption import StopRequest
from lotlip_platform.sweep_config import SweepConfig
from lotlip_platform.sweep_run import TrialRun
from lotlip_platform.sweep_trial import VALUE, TrialActor
from lotlip_platform.tracked_run import TrackedRun

_STARVED_S = 180.0
"""How long no trial may run while some wait: what they ask for does not come."""
_FOR_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow have all of it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stop_signals` has it
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one says much even if it is not to
}


class Follower(tune.Callback):
    """Runs the trials under Tune, and follows them."""

    def __init__(
        self,
        config: SweepConfig,
        runs: Sequence[TrialRun],
        owner: Owner,
        tracked: TrackedRun,
        request: StopRequest,
        watch: Watch,
    ) -> None:
        self._watch = watch
        self._config, self._owner, self._tracked, self._request = config, owner, tracked, request
        self._runs = {run.trial.name: run for run in runs}
        self._began = self._moved = time.monotonic()
        self.overhead_s: float | None = None
        self._trouble: LotlipError | None = None
        """What ends the sweep. Tune would make a traceback of what its callbacks raise."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps callbacks; the ledger is all that a next start needs

    def fit(self) -> None:
        """Raises: LotlipError."""
        os.environ.update(_FOR_TUNE)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        runs = list(self._runs.values())
        concurrent = self._config.max_concurrent
        concurrent = concurrent or min(_most_at_a_time(run.trial.config.cluster) for run in runs)
        storage, name = home() / "ray-tune", f"{self._config.name}-{time.time_ns():x}"
        before_s = sum(run.seconds for run in runs)
        tuner = tune.Tuner(
            TrialActor,
            param_space=tune.grid_search([run.for_tune() for run in runs]),
            tune_config=tune.TuneConfig(
                metric=VALUE,
                mode=self._config.mode,
                scheduler=_scheduler(self._config, runs),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # run folders do
                stop=_Stop(self._over),
                failure_config=tune.FailureConfig(max_failures=self._config.max_failures),
                callbacks=[self],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            for run in runs:
                run.end("running")  # those that are not through
            for run in runs:
                with self._troubled():
                    run.settle()
            shutil.rmtree(storage / name, ignore_errors=True)
        if self._trouble is not None:
            raise self._trouble
        self._tell_spent(sum(run.record.status == "running" for run in runs))
        trained = [run for run in runs if not run.was_over]
        spent_s = (time.monotonic() - self._began) * min(concurrent, len(trained))
        training_s = sum(run.seconds for run in runs) - before_s
        self.overhead_s = max(0.0, spent_s - training_s) / max(1, len(trained))

    def _over(self) -> bool:
        """Whether all trials are to stop."""
        return bool(self._request.by or self._trouble or self._spent())

    def _spent(self) -> str:
        """The budget that is used up, if one is."""
        budget = self._config.budget
        seen = sum(run.record.samples_seen for run in self._runs.values())
        hours = (time.monotonic() - self._began) / 3600
        if budget.max_samples and seen >= budget.max_samples:
            return f"budget.max_samples={budget.max_samples}"
        if budget.max_hours and hours >= budget.max_hours:
            return f"budget.max_hours={budget.max_hours:g}"
        return ""

    def _tell_spent(self, num_left: int) -> None:
        if num_left and not self._request.by and (spent := self._spent()):
            text = f"{spent} is spent, {num_left} trials are not through; with more they go on"
            self._watch({"kind": "note", "text": text})

    def _tell_progress(self) -> None:
        records = [run.record for run in self._runs.values()]
        ends = Counter(record.status for record in records)
        over = sum(record.num_samples for record in records if record.status != "running")
        still = sum(record.samples_seen for record in records if record.status == "running")
        total = sum(record.num_samples for record in records)
        counts = {end: ends[end] for end in ("finished", "stopped", "failed")}
        self._watch({"kind": "progress", "done": over + still, "total": total, **counts})

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        with self._troubled():
            self._owner.check()
            for run in self._runs.values():
                run.settle(wait=False)
        self._tracked.attend()
        waiting = [trial for trial in trials if not trial.is_finished()]
        if not waiting or any(trial.status == "RUNNING" for trial in waiting):
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > _STARVED_S:
            wait = sum(run.record.status == "running" for run in self._runs.values())
            self._trouble = ClusterError(
                f"no trial has run for {_STARVED_S:.0f} s though {wait} wait; free in the "
                f"cluster: {ray.available_resources().get('CPU', 0):g} CPUs, "
                f"{ray.available_resources().get('GPU', 0):g} GPUs"
            )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self._troubled():
            self._runs[trial.config["trial"]].start()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        with self._troubled():
            self._runs[trial.config["trial"]].take(result)
        self._tell_progress()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its last result has ended it already, or Tune has stopped it."""
        with self._troubled():
            self._runs[trial.config["trial"]].end("running" if self._over() else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its actor died").strip().splitlines()
        with self._troubled():
            self._runs[trial.config["trial"]].end("failed", lines[-1][:200])

    @contextmanager
    def _troubled(self) -> Iterator[None]:
        try:
            yield
        except LotlipError as error:
            self._trouble = self._trouble or error


class _Stop(tune.Stopper):
    """Ends all trials when it is time to."""

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._is_over()


def _scheduler(config: SweepConfig, runs: Sequence[TrialRun]) -> TrialScheduler:
    early = config.early_stopping
    if early.scheduler == "none":
        return FIFOScheduler()
    loops = [run.trial.config.train for run in runs]
    first = max(loop.eval_every_steps * loop.global_batch for loop in loops)
    return ASHAScheduler(
        time_attr="samples",
        grace_period=early.grace_samples or first,
        reduction_factor=early.reduction_factor,
        max_t=1 + max(loop.num_samples for loop in loops),  # the end is no early stop
    )


def _most_at_a_time(asked: ClusterConfig) -> int:
    has, workers = ray.cluster_resources(), asked.fewest_and_most[1]
    fitting = [has.get("CPU", 0.0) / (workers * asked.cpus_per_worker)]
    if asked.gpus_per_worker:
        fitting.append(has.get("GPU", 0.0) / (workers * asked.gpus_per_worker))
    return max(1, int(min(fitting)))
