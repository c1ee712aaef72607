"""Work on shards, a Ray task for each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from lotlip.errors import ClusterError, LotlipError

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
        raise
    except RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"Ray lost a task: {reason}; run the command again") from error
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)
