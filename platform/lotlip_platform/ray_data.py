"""Ray Data as we use it: quiet, and with the user's errors told as such."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataContext
from ray.exceptions import RayError

from lotlip import errors
from lotlip.errors import ClusterError, LotlipError


class Unseen:
    """Variables of the environment that Ray Data, which tells its arguments, has nothing to tell
    of."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return "Unseen()"


def quiet_ray_data(partitions: int = 0) -> None:
    """No bars and plans of its own; shuffles into so many partitions, if it isn't 0."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if partitions:
        context.default_hash_shuffle_parallelism = partitions
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def result_of(make: Callable[[], str]) -> pa.Table:
    """The row that a step of a data set ends in: a text, or an error of the user's.

    As a value: Ray Data would try again what it takes for an accident.
    """
    kind = text = ""
    try:
        text = make()
    except LotlipError as error:
        kind, text = type(error).__name__, str(error)
    return pa.table({"kind": [kind], "text": [text]})


def results(rows: ray.data.Dataset) -> Iterator[str]:
    """The texts that the last step gave, as they get ready.

    Raises: LotlipError as a step met it; ClusterError if Ray gives up.
    """
    try:
        for row in rows.iter_rows():
            if row["kind"]:
                raise getattr(errors, row["kind"], LotlipError)(row["text"])
            yield row["text"]
    except RayError as error:
        if (ours := _ours(error)) is not None:
            raise type(ours)(str(ours).splitlines()[0]) from None  # the rest is Ray Data's advice
        reason = " ".join(str(error).split())[-300:]
        raise ClusterError(
            f"Ray could not go on: {reason}; run the command again to go on"
        ) from error


def _ours(error: BaseException | None) -> LotlipError | None:
    """An error of the user's below those of Ray."""
    while error is not None:
        below: Any = getattr(error, "cause", None)
        # What Ray wraps an error in is of the error's own class, too.
        if isinstance(error, LotlipError) and not isinstance(error, RayError):
            return error
        error = below if isinstance(below, BaseException) else error.__cause__
    return None
