"""`lotlip gc`: the checkpoints of runs that have come to their end, which nothing needs any more.

A run that is done has its model, its result, its metrics and its trace in its folder, and what is
registered has a copy in MLflow: none of that is touched, whatever happens here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lotlip.errors import DataError
from lotlip_platform.checkpoints import FOLDER, Checkpoints
from lotlip_platform.ownership import is_alive
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import open_store

_PART = f"/{FOLDER}/step-"


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of one run."""

    run: str
    """Its folder, below the store."""
    num_checkpoints: int
    num_bytes: int
    needed: str
    """Why they must stay; empty: they may go."""


def find(uri: str) -> list[RunCheckpoints]:
    """All runs below an address that have checkpoints. Raises: DataError, CheckpointError."""
    store = open_store(uri)
    sizes: dict[str, int] = defaultdict(int)
    steps: dict[str, set[str]] = defaultdict(set)
    for name, version in store.versions().items():
        # A store of runs has their folders; the folder of a single run has no name before it.
        run, part, rest = f"/{name}".rpartition(_PART)
        if part:
            run = run.removeprefix("/")
            sizes[run] += version.num_bytes
            steps[run].add(rest.partition("/")[0])
    if "" in sizes:
        raise DataError(f"{uri} is the folder of a run: give the folder that it lies in")
    return [
        RunCheckpoints(run, len(steps[run]), sizes[run], _needed(RunFolder(store.at(run))))
        for run in sorted(sizes)
    ]


def remove(
    uri: str,
    found: Sequence[RunCheckpoints],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Remove those that may go; the bytes. What became needed meanwhile stays. Raises: DataError.

    Interrupted, the rest is there for the next time.
    """
    store, freed = open_store(uri), 0
    going = [one for one in found if not one.needed]
    for done, one in enumerate(going, start=1):
        folder = store.at(one.run)
        if not _needed(RunFolder(folder)):
            Checkpoints(folder).drop_later(0)
            freed += one.num_bytes
        on_progress(done, len(going))
    return freed


def _needed(folder: RunFolder) -> str:
    """Why the checkpoints of a run must stay; empty if nothing needs them."""
    if folder.read_result() is None:
        return "not finished: the same command goes on from them"
    if is_alive(folder, folder.read_owner()):
        return "it is just being finished"
    if not folder.store.exists("model/model.safetensors"):
        return "its model is not there"
    kept = folder.read_config().get("checkpoint", {}).get("keep_best", 0)
    return f"checkpoint.keep_best={kept} asked to keep them" if kept else ""
