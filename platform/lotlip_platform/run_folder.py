"""The folder of a training run in the store: config, tokenizer, checkpoints, model, result.

RUN/config.json                     the resolved config; a run is resumed with the same only
RUN/tokenizer/...
RUN/run.json                        its journal, lives so far, and the MLflow run once there is one
RUN/shards.json                     the versions of the shards that it trains on
RUN/owner.json                      the process that trains it, see `ownership`
RUN/checkpoints/...                 see `checkpoints`
RUN/model/...                       the exported model, once training is done
RUN/bad_samples.jsonl               samples that could not be used
RUN/trace.jsonl                     with train.trace: what each step was trained on
RUN/metrics.jsonl                   what was measured, over all lives of the run
RUN/result.json                     the final metrics; written last
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lotlip.configuration import from_dict, to_dict
from lotlip.data.store import Store
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.evaluate.retrieval import Interval
from lotlip.tokenizer import Tokenizer
from lotlip.train.trace import StepTrace, read_trace
from lotlip_platform.config import flat

_CONFIG, _RUN, _OWNER, _RESULT = "config.json", "run.json", "owner.json", "result.json"
_SHARDS = "shards.json"
BAD, TRACE, METRICS = GROWING = "bad_samples", "trace", "metrics"
"""Files that grow with training; until it is done they are in parts, BAD/step-00000500.jsonl."""
_MAY_CHANGE = frozenset(
    (
        *("cluster", "tracking", "checkpoint", "eval", "scenes"),
        *("data.max_bad_fraction", "data.num_loader_processes", "data.features"),
        *("train.log_every_steps", "train.eval_every_steps", "train.save_every_steps"),
        *("train.trace", "train.max_skipped_steps", "train.micro_batch", "train.recompute"),
        "train.compile",
        *("account", "audit.max_dropped_share"),
        *(
            f"captioner.endpoint.{name}"
            for name in ("url", "concurrency", "requests_per_minute", "tokens_per_minute")
        ),
        *("captioner.endpoint.timeout_s", "captioner.endpoint.max_attempts"),
        # With it the last bit of what a model makes, and at times a word of a caption.
        *("captioner.huggingface.batch_size", "captioner.vllm.batch_size"),
        "captioner.vllm.shards_at_once",
        # The run itself knows by which revision it was begun.
        *("captioner.huggingface.revision", "captioner.vllm.revision"),
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

    @property
    def is_claimed(self) -> bool:
        """Whether there is a run here."""
        return self.store.exists(_CONFIG)

    def check_claim(self, config: Any, data_digest: str, *, fixed: str = "") -> None:
        """Raises: ConfigError that names the first key in which an earlier run here differs.

        The group `fixed` must not differ either, though it might in a run by itself.
        """
        if not self.is_claimed:
            return
        may_change = _MAY_CHANGE - {fixed}
        now = _claimed(config, data_digest)
        earlier = _with_new_keys(self._read_json(_CONFIG), config)
        key = _first_difference(earlier, now, may_change)
        if key:
            raise ConfigError(
                f"{self.uri} holds a run with another {key}: give this one another name=..., or "
                "delete that folder"
            )

    def claim(self, config: Any, data_digest: str) -> None:
        """Make the folder this config's own, on the data of this manifest."""
        self.check_claim(config, data_digest)
        self._write_json(_CONFIG, _claimed(config, data_digest))

    def read_config(self) -> dict[str, Any]:
        """The plain values of the config that the run was begun with."""
        return self._read_json(_CONFIG)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        for name, content in tokenizer.to_files().items():
            self.store.write(f"tokenizer/{name}", content)

    def read_tokenizer(self) -> Tokenizer | None:
        names = self.store.list("tokenizer/")
        if len(names) < 2:
            return None
        files = {name.removeprefix("tokenizer/"): self.store.read(name) for name in names}
        return Tokenizer.from_files(files)

    def write_model(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.store.write(f"model/{name}", content)

    def read_model(self) -> dict[str, bytes]:
        names = self.store.list("model/")
        return {name.removeprefix("model/"): self.store.read(name) for name in names}

    def write_part(self, of: str, step: int, lines: Sequence[str]) -> None:
        """Add to a file of the run what came since the last checkpoint, with that of `step`.

        Parts, since objects in S3 can't be appended to.
        """
        if lines:
            self.store.write(_part(of, step), "".join(f"{line}\n" for line in lines).encode())

    def drop_parts(self, of: str, behind: int) -> None:
        """Remove what was added behind a step: it is trained again."""
        for name in self._parts(of):
            if name > _part(of, behind):
                self.store.delete(name)

    def join_parts(self, of: str) -> None:
        """Make one file of the parts, which stay."""
        parts = self._parts(of)
        if not parts:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "joined"
            with path.open("wb") as file:
                for name in parts:
                    file.write(self.store.read(name))
            self.store.write_file(f"{of}.jsonl", path)

    def read_parts(self, of: str) -> Iterator[bytes]:
        """The lines of a file of the run as far as it goes."""
        whole = f"{of}.jsonl"
        parts = self._parts(of)
        # Of a run that is done parts may be left, and not all of them.
        if not parts or self.store.exists(_RESULT):
            parts = [whole] * self.store.exists(whole)
        for name in parts:
            with self.store.open(name) as file:
                yield from file

    def write_bad_samples(self, samples: Iterable[Mapping[str, Any]]) -> bytes:
        """Write the whole list, one JSON object a line; what was written."""
        content = "".join(json.dumps(sample) + "\n" for sample in samples).encode()
        self.store.write(f"{BAD}.jsonl", content)
        return content

    def read_bad_samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read_parts(BAD)]

    def read_metrics(self) -> list[dict[str, Any]]:
        """`step`, `time_ms` and `values` of all that was measured up to the last checkpoint."""
        return [json.loads(line) for line in self.read_parts(METRICS)]

    def read_trace(self) -> Iterator[StepTrace]:
        """The trace as far as it goes. Raises: DataError if there is none."""
        steps = read_trace(self.read_parts(TRACE), f"{self.uri}/{TRACE}.jsonl")
        first = next(steps, None)
        if first is None:
            raise DataError(f"{self.uri} has no trace: train with train.trace=true")
        yield first
        yield from steps

    def _parts(self, of: str) -> list[str]:
        return self.store.list(f"{of}/")

    def write_result(self, result: Mapping[str, Any]) -> None:
        self._write_json(_RESULT, result)

    def read_result(self) -> dict[str, Any] | None:
        """The result of a run that is done, None for any other."""
        return self._read_json(_RESULT) if self.store.exists(_RESULT) else None

    def metrics(self) -> dict[str, Interval]:
        """Of the evaluation behind the training; empty if there was none, or it isn't done."""
        found = (self.read_result() or {}).get("metrics", {})
        return {name: Interval(**values) for name, values in found.items()}

    def write_tracked(self, tracked: Mapping[str, Any]) -> None:
        self._write_json(_RUN, tracked)

    def read_tracked(self) -> dict[str, Any]:
        return self._read_json(_RUN) if self.store.exists(_RUN) else {}

    def write_shards(self, data: str, tags: Mapping[str, str]) -> None:
        """Keep which versions of the shards at `data` the run trains on."""
        self._write_json(_SHARDS, {"data": data, "tags": dict(tags)})

    def read_shards(self, data: str) -> dict[str, str]:
        """Empty if the run has not trained on `data` yet."""
        kept = self._read_json(_SHARDS) if self.store.exists(_SHARDS) else {}
        return kept["tags"] if kept.get("data") == data else {}

    def write_owner(self, owner: Mapping[str, Any]) -> None:
        self._write_json(_OWNER, owner)

    def read_owner(self) -> dict[str, Any]:
        """Empty if nobody trains this run."""
        return self._read_json(_OWNER) if self.store.exists(_OWNER) else {}

    def delete_owner(self) -> None:
        self.store.delete(_OWNER)

    def check_owner(self, token: str) -> None:
        """Raises: CheckpointError if the run is another process's now."""
        if self.read_owner().get("token") != token:
            raise CheckpointError(f"another process has taken over {self.uri}: nothing is saved")

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


def _part(of: str, step: int) -> str:
    return f"{of}/step-{step:08d}.jsonl"


def _claimed(config: Any, data_digest: str) -> dict[str, Any]:
    return {**to_dict(config), "data_digest": data_digest}


def _with_new_keys(earlier: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    """What was claimed before, keys that there weren't then at their defaults."""
    values = dict(earlier)
    digest = values.pop("data_digest", "")
    try:
        return _claimed(from_dict(type(config), values), digest)
    except ConfigError:  # some key has gone since: the difference will tell
        return earlier


def _first_difference(
    earlier: Mapping[str, Any], now: Mapping[str, Any], may_change: frozenset[str]
) -> str:
    before, after = flat(earlier), flat(now)
    for key in {**before, **after}:
        free = any(key == name or key.startswith(f"{name}.") for name in may_change)
        if not free and before.get(key) != after.get(key):
            return f"{key}={before.get(key)!r}"
    return ""
