"""A trial as the driver of a sweep sees it: prepared, followed, and written down."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lotlip.configuration import to_dict
from lotlip.data.manifest import Manifest
from lotlip.errors import ConfigError, DataError, LotlipError
from lotlip.tokenizer import Tokenizer
from lotlip_platform.cluster import store_environment
from lotlip_platform.config import flat
from lotlip_platform.listener import Listener, Watch
from lotlip_platform.mailbox import Event
from lotlip_platform.ownership import Owner
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.shard_versions import TrainingData
from lotlip_platform.sweep_config import SweepConfig, Trial
from lotlip_platform.sweep_ledger import Ledger, Status, TrialRecord
from lotlip_platform.sweep_trial import VALUE
from lotlip_platform.train import (
    checked_data,
    make_tokenizer,
    pinned,
    tracked_training,
    training_data,
)
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.train_worker import initial_model


class Preparation:
    """What trials need before they start; what they have in common is made once."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._manifests: dict[str, Manifest | LotlipError] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._data: dict[str, str] = {}

    def check(self, trial: Trial) -> Manifest:
        """The manifest of its data. Raises: ConfigError, DataError."""
        key = _key(trial.config, "data", "captions", "eval", "cluster", "train.global_batch")
        if key not in self._manifests:
            try:
                self._manifests[key] = checked_data(trial.config, self._watch)
            except (ConfigError, DataError) as error:  # the same for all: asked for once
                self._manifests[key] = error
        found = self._manifests[key]
        if isinstance(found, LotlipError):
            raise found
        return found

    def tokenizer(self, config: TrainConfig, manifest: Manifest) -> Tokenizer:
        """As `make_tokenizer` makes it; the captions are read once."""
        text = config.model.text
        key = f"{_key(config, 'tokenizer', 'data.train')} {text.vocab_size}"
        learnt = self._tokenizers.get(key)
        if learnt is None:
            learnt = self._tokenizers[key] = make_tokenizer(config, manifest)
        return learnt.adapted(text.num_corner_tokens, text.context_length)

    def data(self, config: TrainConfig, manifest: Manifest, tokenizer: Tokenizer) -> str:
        """The address of what is trained on; features of a locked tower are computed once."""
        key = _key(config, "model.image", "model.text.pretrained", "data")
        if not config.model.image.pretrained:  # a tower of random weights is drawn with the others
            key += _key(config, "model", "train.seed")
        if key not in self._data:
            model = initial_model(config, tokenizer)  # what it can't load, it says now
            tower, watch = model.image_tower, self._watch
            self._data[key] = training_data(config, manifest, tower, watch)
        return self._data[key]


def _key(config: TrainConfig, *names: str) -> str:
    """What the config has in keys, or groups, of these names."""
    values = flat(to_dict(config))
    return repr({key: value for key, value in values.items() if key.startswith(names)})


@dataclass(frozen=True)
class Parent:
    """The sweep that trials are of."""

    config: SweepConfig
    folder: RunFolder
    uri: str
    """Of the tracking server."""
    owner: Owner
    ledger: Ledger
    beside: Executor
    """For what no trial need wait for."""


class Throughput:
    """Samples and text tokens a second, over all steps of this start of the sweep."""

    def __init__(self, global_batch: int, *, resumes: bool = False) -> None:
        """Of training that `resumes` nobody knows at which step: it counts from the first log."""
        self._global_batch = global_batch
        self._step = math.inf if resumes else 0
        self._samples = self._tokens = self._seconds = 0.0

    def take(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of the steps since the last ones."""
        if "train/samples_per_s" in values:
            if self._step < step:  # else it goes on from a checkpoint before
                samples = (step - self._step) * self._global_batch
                seconds = samples / values["train/samples_per_s"]
                self._samples += samples
                self._tokens += seconds * values["train/tokens_per_s"]
                self._seconds += seconds
            self._step = step

    @property
    def means(self) -> dict[str, float]:
        """By the names of the metrics; empty if none were told."""
        if not self._seconds:
            return {}
        return {
            "train/samples_per_s": self._samples / self._seconds,
            "train/tokens_per_s": self._tokens / self._seconds,
        }


class TrialRun:
    """One trial, from its preparation to its end in this start of the sweep."""

    def __init__(
        self, trial: Trial, known: TrialRecord | None, parent: Parent, watch: Watch
    ) -> None:
        self.trial, self._parent, self._watch = trial, parent, watch
        self._folder = RunFolder(parent.folder.store.at("trials").at(trial.name))
        cluster = trial.config.cluster
        num_workers = cluster.fewest_and_most[1]
        self.record = known or TrialRecord(
            name=trial.name,
            point=trial.point,
            seed=trial.seed,
            num_samples=0,
        )
        train = trial.config.train
        self.record.num_samples = train.num_steps * train.global_batch
        self.record.num_cpus = num_workers * cluster.cpus_per_worker
        self.record.num_gpus = num_workers * cluster.gpus_per_worker
        self.between_s = 0.0
        """How long its workers were without work before it; 0 if they were started for it."""
        self._life, self._before_s = "", 0.0
        self.was_over = self.record.is_over
        self._stack = ExitStack()
        self._listener: Listener | None = None
        self._ending: Future[str] | None = None
        self._throughput = Throughput(train.global_batch, resumes=bool(self.record.results))

    @property
    def seconds(self) -> float:
        """Of training, over all starts."""
        return self.record.results[-1]["seconds"] if self.record.results else 0.0

    def check(self, preparation: Preparation) -> None:
        """Raises: ConfigError if the trial, or the sweep's metric, was another one before."""
        self._manifest = preparation.check(self.trial)
        self._folder.check_claim(self.trial.config, self._manifest.digest, fixed="eval")
        metric, results = self._parent.config.metric, self.record.results
        if results and metric not in results[-1]["metrics"]:
            raise ConfigError(
                f"metric={metric} is not measured by the trials of {self._parent.folder.uri}; "
                f"these are: {', '.join(results[-1]['metrics'])}"
            )

    def prepare(self, preparation: Preparation) -> None:
        """Make its run folder, unless the trial is over. Raises: LotlipError."""
        if not self.was_over:
            self._take_result()
        if self.was_over:
            return
        config = self.trial.config
        tokenizer = self._folder.read_tokenizer()
        tokenizer = tokenizer or preparation.tokenizer(config, self._manifest)
        uri = preparation.data(config, self._manifest, tokenizer)
        self._folder.claim(config, self._manifest.digest)
        self._folder.write_tokenizer(tokenizer)
        self._parent.owner.cover(self._folder)
        self._data: TrainingData = pinned(self._folder, uri)
        self.record.status, self.record.error = "running", ""
        self._parent.ledger.write(self.record)

    def refuse(self, reason: str) -> None:
        """It can't be prepared."""
        self.record.status, self.record.error = "failed", reason
        self._parent.ledger.write(self.record)
        self._tell({"kind": "trial", "status": "failed"})

    def _take_result(self) -> None:
        """Of training that was done when the driver was killed, before it was wound up."""
        result = self._folder.read_result()
        if result is None or not result["metrics"]:
            return
        if self.record.samples_seen < self.record.num_samples:
            self._add(self.record.num_samples, result["metrics"], self.seconds)
        self.start()
        self.end("finished")
        self.settle()
        self.was_over = True

    def _add(self, samples: int, metrics: dict[str, Any], seconds: float) -> None:
        """The result at so many samples; after a failure some come again."""
        results = self.record.results
        speed = self._throughput.means or (results[-1]["speed"] if results else {})
        while results and results[-1]["samples"] >= samples:
            results.pop()
        results.append(
            {
                "samples": samples,
                "metrics": metrics,
                "speed": speed,
                "seconds": seconds,
                "time_ms": int(time.time() * 1000),
            }
        )

    def for_tune(self) -> dict[str, Any]:
        """What `TrialActor` gets."""
        config, cluster = self.trial.config, self.trial.config.cluster
        asks = {
            "trial": self.trial.name,
            "num_workers": cluster.fewest_and_most[1],
            "cpus_per_worker": cluster.cpus_per_worker,
            "gpus_per_worker": cluster.gpus_per_worker,
            "max_step_s": cluster.max_step_s,
            "max_failures": self._parent.config.max_failures,
            "metric": self._parent.config.metric,
            "num_steps": config.train.num_steps,
            "global_batch": config.train.global_batch,
            "replay": [self._replayed(result) for result in self.record.results],
        }
        if self.was_over:
            return {**asks, "arguments": {}}
        arguments = {
            "config": to_dict(config),
            "run": self._folder.uri,
            "data": self._data.uri,
            "tags": self._data.tags,
            "owner": self._parent.owner.token,
            "environment": store_environment(),
            "folder": os.getcwd(),
        }
        return {**asks, "arguments": arguments}

    def _replayed(self, result: dict[str, Any]) -> dict[str, Any]:
        """A result of an earlier start, as the scheduler is to see it again."""
        is_last = result is self.record.results[-1]
        through = is_last and self.was_over
        value = result["metrics"][self._parent.config.metric]["value"]
        shown = {key: result[key] for key in ("samples", "metrics", "seconds")}
        told = {VALUE: value, "events": [], "error": "", "is_new": False, "between_s": 0.0}
        return {**shown, **told, "through": through, "done": through}

    def start(self) -> None:
        """Tune has started it."""
        if self.was_over or self._listener is not None:
            return
        config, journal = self.trial.config, self._parent.folder.read_tracked()["journal"]
        tags = {f"point.{key}": str(value) for key, value in self.trial.point.items()}
        tracked = self._stack.enter_context(
            tracked_training(
                config,
                self._parent.uri,
                self._folder,
                self._manifest,
                self._tell,
                parent=journal,
                tags={"sweep": self._parent.config.name, **tags},
            )
        )
        self._tracked = tracked
        self._listener = Listener(self._folder, tracked, self._tell, config.cluster)
        self._tell({"kind": "trial", "status": "running"})

    def take(self, result: dict[str, Any]) -> None:
        """Take what came since the last result out of this one."""
        events: list[Event] = result.pop("events")
        if self._listener is None:  # an earlier start's, told again
            return
        self._listener.take(events)
        self.between_s = result["between_s"]
        for event in events:
            if event["kind"] == "metrics":
                self._throughput.take(event["step"], event["values"])
        if result["error"]:
            self.end("failed", result["error"])
            return
        if not result["is_new"]:
            return
        if self._life != result["life"]:  # Tune has started it, for the first time or anew
            self._life, self._before_s = result["life"], self.seconds
        self._add(result["samples"], result["metrics"], self._before_s + result["seconds"])
        self._parent.ledger.write(self.record)
        if result["through"]:
            self.end("finished")
        else:
            self._tell({"kind": "trial", "status": "running"})

    def end(self, status: Status, error: str = "") -> None:
        """It has ended, or goes on with the next start of the sweep: then it is `running`.

        What that takes is done beside: the next trial doesn't wait for it. `settle` does.
        """
        listener, self._listener = self._listener, None
        if listener is None and (self.was_over or status != "failed"):
            return
        self.record.status, self.record.error = status, error
        self._ending = self._parent.beside.submit(self._wind_up, listener)
        self._tell({"kind": "trial", "status": status})

    def settle(self, *, wait: bool = True) -> None:
        """See to it that its end is written down; a trial of which something was lost has failed.

        Raises: LotlipError if that can't be done.
        """
        if self._ending is None or not (wait or self._ending.done()):
            return
        ending, self._ending = self._ending, None
        if failure := ending.result():
            self.record.status, self.record.error = "failed", failure
            self._parent.ledger.write(self.record)
            self._tell({"kind": "trial", "status": "failed"})

    def _wind_up(self, listener: Listener | None) -> str:
        """Write down how it ended; why it failed after all, if it did."""
        try:
            if listener is not None:
                with contextlib.suppress(KeyboardInterrupt), self._stack:
                    self._tell_tracking(listener)
        except LotlipError as failure:
            if self.record.status != "failed":
                return str(failure)
        self._parent.ledger.write(self.record)
        return ""

    def _tell_tracking(self, listener: Listener) -> None:
        """Raises: LotlipError if it failed, KeyboardInterrupt if it is to go on later."""
        if self.record.status == "running":
            raise KeyboardInterrupt
        if self.record.status == "stopped":
            self._tracked.tag({"stopped": f"early, after {self.record.samples_seen} samples"})
        listener.record_bad_samples()
        if self.record.status == "failed":
            raise LotlipError(self.record.error)
        if self.record.status == "finished":
            listener.check_ledger()
            listener.draw_curves(self.trial.config)

    def _tell(self, event: Event) -> None:
        self._watch({**event, "trial": self.record})
