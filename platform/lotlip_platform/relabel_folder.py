"""What a relabelling keeps beside its run folder's other files, until and after it is done.

RUN/answers/SHARD/...jsonl          answers of shards that aren't committed yet
RUN/dropped/SHARD.jsonl             captions that were not kept, and samples that could not be used
RUN/shards/SHARD.json               the entry of a committed shard, written behind the shard itself

A shard without an entry is no part of the data set, and is written again.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

from lotlip.data.manifest import Shard
from lotlip.data.store import Store
from lotlip.errors import CheckpointError
from lotlip.relabel.asking import Answer, Place

_ANSWERS, _DROPPED, _ENTRIES = "answers", "dropped", "shards"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What captioning took and brought, of a shard or of all."""

    num_samples: int = 0
    """Written."""
    num_captions: int = 0
    """Kept."""
    num_dropped: int = 0
    """Captions that the audit did not keep, or that nobody gave."""
    num_unusable: int = 0
    """Samples of the source that could not be written, or not be asked about."""
    num_answers: int = 0
    """Texts that the captioner gave, those that were asked for again included."""
    num_attempts: int = 0
    """Requests that were made."""
    input_tokens: int = 0
    output_tokens: int = 0
    worker_s: float = 0.0
    """Of workers; but for what killed ones had spent on their last shard."""

    def __add__(self, other: Tally) -> Tally:
        names = (one.name for one in fields(self))
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A committed shard."""

    shard: Shard
    captions: Mapping[str, Mapping[str, float]]
    """As a manifest has them."""
    tally: Tally
    failed: Mapping[str, int] = field(default_factory=dict)
    """How many answers failed each rule of the audit, kept or not."""
    revision: str = ""
    """Of the model."""


class RelabelFolder:
    """Reads and writes it. Every object is written wholly or not at all."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def entries(self) -> dict[str, Entry]:
        """Of the shards that are committed, by the shard's name. Raises: CheckpointError."""
        found = {}
        for name in self._store.list(f"{_ENTRIES}/"):
            try:
                content = json.loads(self._store.read(name))
                shard = Shard(**{**content["shard"], "offsets": tuple(content["shard"]["offsets"])})
                tally = Tally(**content["tally"])
                entry = Entry(**{**content, "shard": shard, "tally": tally})
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self._store.uri}/{name} is damaged: {error!r}") from error
            found[shard.name] = entry
        return found

    def commit(self, entry: Entry, dropped: Sequence[Mapping[str, Any]]) -> None:
        """Make a written shard part of the data set; its answers are needed no longer."""
        stem = _stem(entry.shard.name)
        lines = "".join(f"{json.dumps(one)}\n" for one in dropped)
        self._store.write(f"{_DROPPED}/{stem}.jsonl", lines.encode())
        content = json.dumps(asdict(entry), indent=1)
        self._store.write(f"{_ENTRIES}/{stem}.json", content.encode())
        self._forget(stem)

    def forget_answers(self) -> None:
        """Of all shards, once they are committed."""
        self._forget("")

    def answers(self, shard: str) -> AnswerLog:
        return AnswerLog(self._store.at(_ANSWERS).at(_stem(shard)))

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Captions that were not kept, and samples that could not be used, shard by shard."""
        for name in self._store.list(f"{_DROPPED}/"):
            with self._store.open(name) as file:
                yield from (json.loads(line) for line in file)

    def _forget(self, stem: str) -> None:
        for name in self._store.list(f"{_ANSWERS}/{stem}/" if stem else f"{_ANSWERS}/"):
            self._store.delete(name)


class AnswerLog:
    """The answers about a shard, from one worker at a time.

    They are written as they come, many at a time where the store is slower than they: a caller
    waits for its own only.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._life = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._pending: list[Answer] = []
        self._num_parts = 0
        self._writer = ThreadPoolExecutor(max_workers=1)

    def read(self) -> dict[Place, Answer]:
        """What earlier lives were told."""
        found: dict[Place, Answer] = {}
        for name in self._store.list():
            for line in self._store.read(name).splitlines():
                content = json.loads(line)
                answer = Answer(**{**content, "place": Place(*content["place"])})
                found.setdefault(answer.place, answer)
        return found

    def keep(self, answers: Iterable[Answer]) -> Future[None]:
        """Done once they are in the store, all or none; what it raises, if they can't be."""
        with self._lock:
            self._pending += answers
        return self._writer.submit(self._write)

    def close(self) -> None:
        self._writer.shutdown()

    def _write(self) -> None:
        with self._lock:
            taken, self._pending = self._pending, []
        if not taken:  # an earlier one took them along
            return
        self._num_parts += 1
        lines = "".join(f"{json.dumps(asdict(answer))}\n" for answer in taken)
        try:
            self._store.write(f"{self._life}-{self._num_parts:06d}.jsonl", lines.encode())
        except BaseException:
            with self._lock:  # whoever waits for them asks again
                self._pending = taken + self._pending
            raise


def _stem(shard: str) -> str:
    return PurePosixPath(shard).with_suffix("").as_posix()
