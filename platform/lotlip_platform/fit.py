"""One life of the training workers under Ray Train.

`trainer.fit` blocks, and its run can't be ended from outside. So it is called in a Ray task, which
owns the controller and the workers: while the task runs the driver listens to the workers, and
when the driver is interrupted it cancels the task, and all of them end with it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch

from lotlip.configuration import to_dict
from lotlip.errors import ClusterError, LotlipError
from lotlip_platform.cluster import beside_driver, store_environment
from lotlip_platform.local_services import home
from lotlip_platform.shard_versions import TrainingData
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.train_worker import train_worker

_LISTEN_S = 0.3
_ABORT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended the workers early."""

    reason: str
    """One line."""
    users_own: LotlipError | None
    """What starting the workers again would meet again."""


def fit(
    config: TrainConfig,
    *,
    num_workers: int,
    run: str,
    data: TrainingData,
    owner: str,
    mailbox: Any,
    listen: Callable[[], None],
) -> Failure | None:
    """Run `train_worker` on so many workers until all have ended, or one failed.

    `run` is an address, `owner` is the token that allows to save, `listen` is called all the while.

    Raises: ClusterError if the cluster itself is lost, and what `listen` raises; the workers are
    ended then.
    """
    arguments = {
        "config": to_dict(config),
        "run": run,
        "data": data.uri,
        "tags": data.tags,
        "owner": owner,
        "environment": store_environment(),
        "folder": os.getcwd(),
        "mailbox": mailbox,
        "life": f"{time.time_ns():x}",
    }
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=beside_driver())(_fit)
    fitting = task.remote(config, num_workers, arguments, str(home() / "ray-train"))
    try:
        while not ray.wait([fitting], timeout=_LISTEN_S)[0]:
            listen()
        failure = ray.get(fitting)
        listen()
        return failure
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"lost the Ray cluster: {_last_line(error)}; the run resumes from its last "
            "checkpoint when started again"
        ) from error
    finally:
        _end(fitting)


def _end(fitting: ray.ObjectRef) -> None:
    """End a task that still runs; one that doesn't is left as it is.

    Cancelling is Ctrl-C to it, on which Ray Train ends its workers and gives back what it held. A
    controller that is just killed leaves its placement group behind as long as the driver lives.
    """
    with contextlib.suppress(ray.exceptions.RayError):  # the cluster may be lost
        ray.cancel(fitting)
        if not ray.wait([fitting], timeout=_ABORT_S)[0]:
            ray.cancel(fitting, force=True)


def _fit(
    config: TrainConfig, num_workers: int, arguments: dict[str, Any], storage: str
) -> Failure | None:
    cluster = config.cluster
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": cluster.cpus_per_worker, **gpus},
        ),
        run_config=ray.train.RunConfig(
            name=f"{config.name}-{time.time_ns()}", storage_path=storage
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver judges it
        return Failure(reason=_last_line(error), users_own=_lotlip_error(error))
    return None


def _lotlip_error(failure: BaseException | None) -> LotlipError | None:
    """The user's error inside what Ray raised, if there is one."""
    if failure is None or isinstance(failure, LotlipError):
        return failure
    inner = [*getattr(failure, "worker_failures", {}).values(), getattr(failure, "cause", None)]
    found = (_lotlip_error(error) for error in [*inner, failure.__cause__])
    return next((error for error in found if error is not None), None)


def _last_line(failure: Exception) -> str:
    inner = list(getattr(failure, "worker_failures", {}).values())
    lines = [line.strip() for line in str(inner[0] if inner else failure).splitlines()]
    return next((line for line in reversed(lines) if line), type(failure).__name__)[:200]
