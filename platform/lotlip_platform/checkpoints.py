"""Checkpoints: every worker writes its share, beside training, and one commit makes them count.

RUN/checkpoints/step-00000500/LIFE-0-of-2.safetensors   the share of worker 0 of 2
RUN/checkpoints/step-00000500/LIFE-0-of-2.json          its size and checksum, once it is written
RUN/checkpoints/step-00000500/commit.json               names all shares; written last, by worker 0

LIFE is new whenever the workers are started, so what a dead life left behind is never taken for the
share of a living one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lotlip.data.store import Store
from lotlip.errors import CheckpointError, ConfigError, DataError, LotlipError

_COMMIT = "commit.json"
FOLDER = "checkpoints"
_PAUSES_S = (1.0, 4.0, 15.0)
"""Before another attempt to write; the store has tried several times by itself each time."""
_SHARES_S = 600.0
"""How long worker 0 waits for the shares of the others."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run while it trains."""

    keep_last: int = 2
    """Newest checkpoints kept; the one before is what a damaged one falls back to."""
    keep_best: int = 0
    """Checkpoints kept besides, those that are best by `best_metric` in the evaluation before
    them."""
    best_metric: str = "long_text_to_image_r1"
    """Metric of the benchmark `eval.benchmark`, the higher the better."""
    max_failed_saves: int = 3
    """Checkpoints in a row that may fail to be written before the run stops."""

    def __post_init__(self) -> None:
        for name, least in (("keep_last", 1), ("keep_best", 0), ("max_failed_saves", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"checkpoint.{name}={getattr(self, name)} must be {least} or more"
                )


@dataclass(frozen=True)
class Writer:
    """Which worker of which life writes."""

    life: str
    rank: int
    num_workers: int

    def share(self, rank: int) -> str:
        return f"{self.life}-{rank}-of-{self.num_workers}"


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write_share(self, step: int, writer: Writer, content: bytes) -> None:
        """Write this worker's share. Raises: DataError."""
        name = f"{_place(step)}/{writer.share(writer.rank)}"
        self._store.write(f"{name}.safetensors", content)
        told = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        self._store.write(f"{name}.json", json.dumps(told).encode())

    def await_shares(self, step: int, writer: Writer) -> list[dict[str, Any]]:
        """What the workers wrote: names, sizes, checksums. Raises: DataError if one is late."""
        shares = []
        deadline = time.monotonic() + _SHARES_S
        for rank in range(writer.num_workers):
            name = writer.share(rank)
            while not self._store.exists(f"{_place(step)}/{name}.json"):
                if time.monotonic() > deadline:
                    raise DataError(
                        f"the share of worker {rank} is missing in {self._uri(step)} after "
                        f"{_SHARES_S:.0f} s"
                    )
                time.sleep(0.1)
            told = json.loads(self._store.read(f"{_place(step)}/{name}.json"))
            shares.append({"name": f"{name}.safetensors", **told})
        return shares

    def commit(self, step: int, shares: list[dict[str, Any]], metric: float | None) -> None:
        """Make the checkpoint count."""
        commit = {"step": step, "metric": metric, "shares": shares}
        self._store.write(f"{_place(step)}/{_COMMIT}", json.dumps(commit, indent=1).encode())

    def prune(self, step: int, config: CheckpointConfig) -> None:
        """Remove those before `step` that are neither among the last nor among the best."""
        committed = [number for number in self._committed() if number <= step]
        kept = set(committed[-config.keep_last :])
        if config.keep_best:
            metrics = {number: self._metric(number) for number in committed}
            rated = [number for number in committed if metrics[number] is not None]
            kept |= set(sorted(rated, key=lambda n: metrics[n] or 0.0)[-config.keep_best :])
        # Not later ones: another worker may have begun to write the next.
        self._remove(lambda number: number < step and number not in kept)

    def drop_later(self, step: int) -> None:
        """Remove those behind `step`: they are damaged, or training would not be back there."""
        self._remove(lambda number: number > step)

    def _remove(self, is_gone: Callable[[int], bool]) -> None:
        gone = [name for name in self._store.list(f"{FOLDER}/") if is_gone(_step_of(name))]
        # Commits go first: what is left of a removal is never taken for a checkpoint.
        for name in sorted(gone, key=lambda name: not name.endswith(f"/{_COMMIT}")):
            self._store.delete(name)

    def latest(self, on_damage: Callable[[str], None]) -> tuple[str, list[bytes]] | None:
        """Address and shares of the newest whole checkpoint.

        A damaged one is told to `on_damage`, and the one before it is taken.
        """
        for step in reversed(self._committed()):
            shares = self._read(step)
            if shares is not None:
                return self._uri(step), shares
            on_damage(f"{self._uri(step)} is damaged: going back to the checkpoint before it")
        return None

    def _committed(self) -> list[int]:
        """Steps of committed checkpoints, the oldest first."""
        names = self._store.list(f"{FOLDER}/")
        return sorted(_step_of(name) for name in names if name.endswith(f"/{_COMMIT}"))

    def _read(self, step: int) -> list[bytes] | None:
        """The shares of a checkpoint, None if they aren't what was committed."""
        try:
            contents = []
            for share in self._read_commit(step)["shares"]:
                contents.append(self._store.read(f"{_place(step)}/{share['name']}"))
                if hashlib.sha256(contents[-1]).hexdigest() != share["sha256"]:
                    return None
        except (CheckpointError, KeyError, TypeError):
            return None
        except DataError:
            if self._all_there(step):
                raise  # the store fails, the checkpoint may be whole
            return None
        return contents or None

    def _all_there(self, step: int) -> bool:
        shares = self._read_commit(step)["shares"]
        return all(self._store.exists(f"{_place(step)}/{share['name']}") for share in shares)

    def _metric(self, step: int) -> float | None:
        with contextlib.suppress(CheckpointError):
            return self._read_commit(step).get("metric")
        return None

    def _read_commit(self, step: int) -> Mapping[str, Any]:
        """Raises: CheckpointError."""
        try:
            content = json.loads(self._store.read(f"{_place(step)}/{_COMMIT}"))
        except ValueError as error:
            raise CheckpointError(f"{self._uri(step)}/{_COMMIT} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self._uri(step)}/{_COMMIT} is damaged: it holds no keys")
        return content

    def _uri(self, step: int) -> str:
        return f"{self._store.uri}/{_place(step)}"


def _place(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def _step_of(name: str) -> int:
    """The step of an object's checkpoint; 0 if it belongs to none."""
    found = re.match(rf"{FOLDER}/step-(\d+)/", name)
    return int(found[1]) if found else 0


class Saver:
    """Writes a worker's checkpoints in a thread while training goes on, one at a time."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        writer: Writer,
        config: CheckpointConfig,
        note: Callable[[str], None],
    ) -> None:
        self._checkpoints, self._writer, self._config, self._note = (
            checkpoints,
            writer,
            config,
            note,
        )
        self._thread: threading.Thread | None = None
        self._failure: LotlipError | None = None
        self._num_failed = 0

    def save(
        self,
        step: int,
        content: bytes,
        *,
        metric: float | None,
        before_commit: Callable[[], None],
        after_commit: Callable[[], None],
    ) -> None:
        """Begin to write this worker's share of a checkpoint, once the one before is through.

        The last two are called on worker 0, in the thread: around the commit.

        Raises: LotlipError of the last save, if as many failed in a row as may fail.
        """
        self._await()
        if self._num_failed >= self._config.max_failed_saves:
            assert self._failure is not None, "what failed"
            raise self._failure

        def write() -> None:
            self._failure = None
            try:
                _insist(lambda: self._checkpoints.write_share(step, self._writer, content))
                if self._writer.rank == 0:
                    _insist(before_commit)
                    shares = self._checkpoints.await_shares(step, self._writer)
                    _insist(lambda: self._checkpoints.commit(step, shares, metric))
                    after_commit()
                    self._checkpoints.prune(step, self._config)
            except LotlipError as error:
                self._failure = error
            except Exception as error:  # noqa: BLE001 - a thread's errors would be seen by nobody
                self._failure = CheckpointError(f"{type(error).__name__}: {error}")

        self._begin(write)

    def _begin(self, write: Callable[[], None]) -> None:
        self._write = write
        self._thread = threading.Thread(target=write, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last save. Raises: LotlipError if it failed as often as saves may."""
        self._await()
        while self._failure is not None and self._num_failed < self._config.max_failed_saves:
            self._begin(self._write)
            self._await()
        if self._failure is not None:
            raise self._failure

    def _await(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._failure is None:
            self._num_failed = 0
            return
        self._num_failed += 1
        self._note(
            f"saving a checkpoint failed ({self._failure}): training goes on, "
            f"{self._num_failed} of checkpoint.max_failed_saves={self._config.max_failed_saves}"
        )


def _insist(write: Callable[[], None]) -> None:
    """Try again after a while. Raises: LotlipError of the last attempt."""
    for pause_s in _PAUSES_S:
        try:
            return write()
        except DataError:
            time.sleep(pause_s)
    return write()
