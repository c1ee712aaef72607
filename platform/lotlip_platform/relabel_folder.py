"""What a relabelling keeps beside its run folder's other files, until and after it is done.

RUN/answers/SHARD/...jsonl          answers of shards that aren't committed yet
RUN/shards, RUN/rejected            see `shard_ledger`
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from lotlip.data.store import Store
from lotlip.errors import ConfigError
from lotlip.relabel.asking import Answer, Place
from lotlip_platform.shard_ledger import Entry, ShardLedger, stem_of

_ANSWERS, _ENGINE, _MODEL = "answers", "engine_s.json", "model.json"


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


class RelabelFolder:
    """Answers and shards of a relabelling."""

    def __init__(self, store: Store) -> None:
        self.ledger = ShardLedger(store)
        self._answers = store.at(_ANSWERS)

    def answers(self, shard: str) -> AnswerLog:
        return AnswerLog(self._answers.at(stem_of(shard)))

    def commit(self, entry: Entry, rejected: Iterable[Mapping[str, Any]]) -> None:
        """Make a written shard part of the data set; its answers are needed no longer."""
        self.ledger.commit(entry, rejected)
        self.forget_answers(entry.shard.name)

    def revision(self) -> str:
        """Of the model that the run was begun with; empty if it wasn't."""
        store = self.ledger.store
        return json.loads(store.read(_MODEL))["revision"] if store.exists(_MODEL) else ""

    def claim_revision(self, revision: str) -> None:
        """Note which model the run is by. Raises: ConfigError if it began with another one."""
        store = self.ledger.store
        if not store.exists(_MODEL):
            store.write(_MODEL, json.dumps({"revision": revision}).encode())
            return
        before = self.revision()
        if before != revision:
            raise ConfigError(
                f"{store.uri} was begun with revision {before or 'unknown'} of the model, which "
                f"now is {revision or 'unknown'}: bring the old one back (a revision of the hub "
                "can be named), or give this run another name and target"
            )

    def add_engine_s(self, seconds: float) -> None:
        """Note that engines beside the shards' workers were at work."""
        self.ledger.store.write(_ENGINE, json.dumps(self.engine_s() + seconds).encode())

    def engine_s(self) -> float:
        """Of workers, in all lives of the run."""
        store = self.ledger.store
        return float(json.loads(store.read(_ENGINE))) if store.exists(_ENGINE) else 0.0

    def forget_answers(self, shard: str = "") -> None:
        """Of a shard, or of all once they are committed."""
        for name in self._answers.list(f"{stem_of(shard)}/" if shard else ""):
            self._answers.delete(name)


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
