"""Work on shards, a Ray task for each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from lotlip.data.manifest import Shard
from lotlip.data.store import Store
from lotlip.errors import ClusterError, DataError, LotlipError

T = TypeVar("T")


def in_tasks(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, gpus: float = 0.0
) -> Generator[tuple[int, T], None, None]:
    """The place and result of each call, as they get ready; Ray must be connected.

    Raises: LotlipError as the function raised it, ClusterError if Ray lost a task. Closing the
    generator cancels what is left.
    """
    task = ray.remote(num_gpus=gpus)(function)
    pending = {task.remote(*arguments): place for place, arguments in enumerate(calls)}
    try:
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(ready), ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, LotlipError):
            raise error.cause from None
        reason = str(error).strip().splitlines()[-1][:200]
        raise ClusterError(f"a task on a shard failed: {reason}") from error
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"Ray lost a task: {reason}; run the command again") from error
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)


def check_all_here(store: Store, shards: Sequence[Shard]) -> None:
    """Tasks on other machines may write a folder's shards out of our sight. Raises: DataError."""
    present = set(store.list("shard-"))
    missing = [shard.name for shard in shards if shard.name not in present]
    if missing:
        raise DataError(
            f"{store.uri} lacks {missing[0]} and {len(missing) - 1} more shards after writing: "
            "with Ray on several machines use an s3:// address or a folder that all of them see"
        )
