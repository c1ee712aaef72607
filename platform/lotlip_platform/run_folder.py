"""The folder of a training run in the store: config, tokenizer, checkpoints, model, result.

RUN/config.json                     the resolved config; a run is resumed with the same only
RUN/tokenizer/...
RUN/run.json                        the MLflow run, once there is one
RUN/checkpoints/step-00000500/      state.safetensors, then commit.json
RUN/model/...                       the exported model, once training is done
RUN/trace.jsonl                     with train.trace: what each step was trained on; until training
                                    is done in parts, trace/step-00000500.jsonl
RUN/result.json                     the final metrics; written last
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lotlip.configuration import to_dict
from lotlip.data.store import Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.tokenizer import Tokenizer
from lotlip.train.trace import StepTrace, read_trace
from lotlip_platform.config import flat

_CONFIG, _RUN, _RESULT = "config.json", "run.json", "result.json"
_TRACE = "trace.jsonl"
_BAD = "bad_samples.jsonl"
_STATE, _COMMIT = "state.safetensors", "commit.json"
_MAY_CHANGE = frozenset(
    (
        *("cluster", "tracking", "checkpoint", "eval"),
        *("data.max_bad_fraction", "data.num_loader_processes", "data.features"),
        *("train.log_every_steps", "train.eval_every_steps", "train.save_every_steps"),
        "train.trace",
    )
)
"""Keys and groups that don't change what is learnt: a run resumes with other ones."""


class RunFolder:
    """Reads and writes one run's folder. Every object is written wholly or not at all."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def uri(self) -> str:
        return self.store.uri

    def check_claim(self, config: Any, data_digest: str) -> None:
        """Raises: ConfigError that names the first key in which an earlier run here differs."""
        if not self.store.exists(_CONFIG):
            return
        key = _first_difference(self._read_json(_CONFIG), _claimed(config, data_digest))
        if key:
            raise ConfigError(
                f"{self.uri} holds a run with another {key}: give this one another name=..., or "
                "delete that folder"
            )

    def claim(self, config: Any, data_digest: str) -> None:
        """Make the folder this config's own, on the data of this manifest."""
        self.check_claim(config, data_digest)
        self._write_json(_CONFIG, _claimed(config, data_digest))

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        for name, content in tokenizer.to_files().items():
            self.store.write(f"tokenizer/{name}", content)

    def read_tokenizer(self) -> Tokenizer | None:
        names = self.store.list("tokenizer/")
        if len(names) < 2:
            return None
        files = {name.removeprefix("tokenizer/"): self.store.read(name) for name in names}
        return Tokenizer.from_files(files)

    def save_checkpoint(self, step: int, state: bytes, *, keep_last: int) -> None:
        """Write a checkpoint, commit it, then remove the oldest beyond `keep_last`.

        Those of later steps go as well: they were damaged, or training would not be here again.
        """
        name = f"checkpoints/step-{step:08d}"
        self.store.write(f"{name}/{_STATE}", state)
        commit = {"sha256": hashlib.sha256(state).hexdigest(), "num_bytes": len(state)}
        self._write_json(f"{name}/{_COMMIT}", commit)
        committed = self._committed()
        end = committed.index(name.removeprefix("checkpoints/")) + 1
        for old in [*committed[: max(0, end - keep_last)], *committed[end:]]:
            # The commit goes first: what is left of a removal is never taken for a checkpoint.
            self.store.delete(f"checkpoints/{old}/{_COMMIT}")
            self.store.delete(f"checkpoints/{old}/{_STATE}")

    def latest_checkpoint(self, on_damage: Callable[[str], None]) -> tuple[str, bytes] | None:
        """Address and content of the newest whole checkpoint.

        A damaged one is told to `on_damage`, and the one before it is taken.
        """
        for name in reversed(self._committed()):
            state = self._read_state(name)
            where = f"{self.uri}/checkpoints/{name}"
            if state is not None:
                return where, state
            on_damage(f"{where} is damaged: going back to the checkpoint before it")
        return None

    def write_model(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.store.write(f"model/{name}", content)

    def read_model(self) -> dict[str, bytes]:
        names = self.store.list("model/")
        return {name.removeprefix("model/"): self.store.read(name) for name in names}

    def write_bad_samples(self, samples: Iterable[Mapping[str, Any]]) -> bytes:
        """Write the list, one JSON object a line; what was written."""
        content = "".join(json.dumps(sample) + "\n" for sample in samples).encode()
        self.store.write(_BAD, content)
        return content

    def read_bad_samples(self) -> list[dict[str, Any]]:
        if not self.store.exists(_BAD):
            return []
        return [json.loads(line) for line in self.store.read(_BAD).splitlines()]

    def write_trace(self, steps: Sequence[StepTrace]) -> None:
        """Write the trace of the steps since the last checkpoint."""
        content = "".join(f"{step.to_line()}\n" for step in steps)
        self.store.write(_trace_part(steps[-1].step), content.encode())

    def drop_trace(self, behind: int) -> None:
        """Remove what was traced behind a step: it is trained again."""
        for name in self._trace_parts():
            if name > _trace_part(behind):
                self.store.delete(name)

    def join_trace(self) -> None:
        """Make the parts one file, once training is done."""
        parts = self._trace_parts()
        if not parts:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _TRACE
            with path.open("wb") as file:
                for name in parts:
                    file.write(self.store.read(name))
            self.store.write_file(_TRACE, path)
        for name in parts:
            self.store.delete(name)

    def read_trace(self) -> Iterator[StepTrace]:
        """The trace as far as it goes. Raises: DataError if there is none."""
        names = [_TRACE] if self.store.exists(_TRACE) else self._trace_parts()
        if not names:
            raise DataError(f"{self.uri} has no trace: train with train.trace=true")
        for name in names:
            with self.store.open(name) as file:
                yield from read_trace(file, f"{self.uri}/{name}")

    def _trace_parts(self) -> list[str]:
        return self.store.list("trace/")

    def write_result(self, result: Mapping[str, Any]) -> None:
        self._write_json(_RESULT, result)

    def read_result(self) -> dict[str, Any] | None:
        """The result of a run that is done, None for any other."""
        return self._read_json(_RESULT) if self.store.exists(_RESULT) else None

    def write_tracked(self, tracked: Mapping[str, Any]) -> None:
        self._write_json(_RUN, tracked)

    def read_tracked(self) -> dict[str, Any]:
        return self._read_json(_RUN) if self.store.exists(_RUN) else {}

    def _committed(self) -> list[str]:
        """Names of committed checkpoints, the oldest first."""
        names = self.store.list("checkpoints/")
        found = (re.fullmatch(rf"checkpoints/(step-\d+)/{_COMMIT}", name) for name in names)
        return sorted(match[1] for match in found if match)

    def _read_state(self, name: str) -> bytes | None:
        """The content of a checkpoint, None if it isn't what was committed."""
        try:
            commit = self._read_json(f"checkpoints/{name}/{_COMMIT}")
        except CheckpointError:
            return None
        if not self.store.exists(f"checkpoints/{name}/{_STATE}"):
            return None
        state = self.store.read(f"checkpoints/{name}/{_STATE}")
        return state if hashlib.sha256(state).hexdigest() == commit.get("sha256") else None

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.store.write(name, json.dumps(content, indent=1).encode())

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.store.read(name))
        except ValueError as error:
            raise CheckpointError(f"{self.uri}/{name} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.uri}/{name} is damaged: it holds no keys")
        return content


def _trace_part(last_step: int) -> str:
    return f"trace/step-{last_step:08d}.jsonl"


def _claimed(config: Any, data_digest: str) -> dict[str, Any]:
    return {**to_dict(config), "data_digest": data_digest}


def _first_difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, after = flat(earlier), flat(now)
    for key in {**before, **after}:
        free = any(key == name or key.startswith(f"{name}.") for name in _MAY_CHANGE)
        if not free and before.get(key) != after.get(key):
            return f"{key}={before.get(key)!r}"
    return ""
