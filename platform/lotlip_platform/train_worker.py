"""What runs on each training worker: the loop, its checkpoints and its evaluations."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
import ray.train.torch
import torch

from lotlip import distributed, export
from lotlip.data.manifest import read_manifest
from lotlip.data.pipeline import Source
from lotlip.errors import CheckpointError, ConfigError
from lotlip.evaluate.benchmarks import (
    Benchmark,
    Report,
    long_caption,
    read_benchmark,
    retrieval_figure,
)
from lotlip.model import LoTLIP
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train import state as train_state
from lotlip.train.flops import peak_flops
from lotlip.train.loop import Step, train_steps
from lotlip.train.optim import make_optimizer
from lotlip.train.state import TrainState
from lotlip_platform.attention_page import attention_files
from lotlip_platform.checkpoints import Checkpoints, Saver, Writer
from lotlip_platform.config import build_config
from lotlip_platform.features import check_tower
from lotlip_platform.log_keeping import log_kept
from lotlip_platform.pulse import Pulse
from lotlip_platform.run_folder import GROWING, RunFolder
from lotlip_platform.step_log import Meter, Records
from lotlip_platform.storage import open_store
from lotlip_platform.teller import Teller
from lotlip_platform.train_config import TrainConfig


def train_worker(arguments: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    work(arguments, ray.train.torch.get_device())


def work(arguments: Mapping[str, Any], device: torch.device) -> None:
    """One worker's part in a run, on its device; in a process group, if there are several.

    `arguments`: the resolved `config` as plain values, the addresses of the `run` folder and of
    the `data` (or its features) to train on, the `tags` of its shards' versions, the `environment`
    that leads to the store, the driver's current `folder`, its `mailbox` and its token as `owner`
    of the run, and a name for this `life` of the workers.
    """
    os.environ.update(arguments["environment"])
    if os.path.isdir(arguments["folder"]):
        os.chdir(arguments["folder"])  # relative paths in the config mean what the user meant
    with log_kept(f"rank-{distributed.rank():04d}"):
        _work(arguments, device)


def _work(arguments: Mapping[str, Any], device: torch.device) -> None:
    config = build_config(TrainConfig, arguments["config"])
    folder = RunFolder(open_store(arguments["run"]))
    mailbox = arguments["mailbox"]

    send = Teller(mailbox)
    send(
        {
            "kind": "born",
            "rank": distributed.rank(),
            "node": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    )
    try:
        with Pulse(send, distributed.rank()).told() as pulse:
            _Worker(config, folder, arguments, device, send, pulse).train()
    finally:
        # The calls before this one have arrived, too, once it is answered.
        ray.get(mailbox.put.remote({"kind": "ended", "rank": distributed.rank()}))


class _Worker:
    """One worker's part in a run, from the newest checkpoint to the end, or to a stop.

    All workers call each other's collectives: none of its methods is for some of them only.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        arguments: Mapping[str, Any],
        device: torch.device,
        send: Teller,
        pulse: Pulse,
    ) -> None:
        """Raises: LotlipError."""
        tokenizer = folder.read_tokenizer()
        if tokenizer is None:
            raise CheckpointError(
                f"a worker does not see what the driver wrote to {folder.uri}: on several machines "
                "store= must be s3:// or a folder that all share"
            )
        self._config, self._folder, self._send, self._pulse = config, folder, send, pulse
        self._device = device
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        self._source = source_of(config, tokenizer, arguments["data"], arguments["tags"])
        self._benchmark = _benchmark(config)
        self._records = Records(folder, arguments["owner"], send)
        self._meter = Meter(send, self._records, peak_flops(device))
        self._checkpoints = Checkpoints(folder.store)
        writer = Writer(arguments["life"], self._rank, self._world_size)
        self._saver = Saver(self._checkpoints, writer, config.checkpoint, note=send.note)
        self._state = self._resumed(tokenizer)
        check_tower(self._source.manifest.made_by, self._state.model.image_tower)
        self._faults = folder.store.num_faults
        self._metric: float | None = None
        """Of the last evaluation, by which the best checkpoints are kept."""

    def train(self) -> None:
        """Raises: LotlipError."""
        loop = self._config.train
        self._say(
            f"one of {self._world_size} workers, {self._device.type} on {socket.gethostname()}, "
            f"process {os.getpid()}, from step {self._state.step} of {loop.num_steps}"
        )
        for step in self._steps():
            self._pulse.stepped(step.own_s, step.step_s)
            self._pulse.at("log")
            self._meter.take(step)
            self._tell_faults(step)
            self._records.take(step)
            last = step.step == loop.num_steps
            if step.step % loop.log_every_steps == 0 or last:
                self._meter.log(step)
                self._say(
                    f"step {step.step} of {loop.num_steps}: loss {step.mean_loss:.4f}, "
                    f"{step.step_s:.3f} s, {step.data_wait_s:.3f} s of it for data"
                )
            # Not where training is to stop: a machine may have little time left to save.
            every, at_rest = loop.eval_every_steps, last or step.to_stop
            if self._benchmark and every and step.step % every == 0 and not at_rest:
                self._pulse.at("evaluation")
                self._metric = self._best_by(self._evaluate(self._benchmark))
            if step.step % loop.save_every_steps == 0 or at_rest:
                self._pulse.at("save")
                self._save()
            if step.to_stop and not last:
                self._saver.finish()
                if self._rank == 0:  # whose save is through when all is committed
                    self._send({"kind": "stopped", "step": step.step})
                return
            self._pulse.at("data")
        self._pulse.at("end")
        self._saver.finish()
        self._finish()

    def _tell_faults(self, step: Step) -> None:
        """What the store did wrong, and was got over, in reading and in saving."""
        before, self._faults = self._faults, self._folder.store.num_faults
        if count := step.store_faults + self._faults - before:
            self._send({"kind": "faults", "count": count})

    def _say(self, text: str) -> None:
        """For the log of this worker, which a job keeps."""
        now = time.strftime("%H:%M:%S", time.gmtime())
        # Ray Train makes another line of what `print` prints.
        sys.stdout.write(f"{now} {self._config.name} rank {self._rank}: {text}\n")
        sys.stdout.flush()

    def _steps(self) -> Iterator[Step]:
        def to_stop() -> bool:
            self._pulse.at("step")  # it is asked when the step's data is there
            return self._send.to_stop()

        self._pulse.at("data")
        return train_steps(
            self._state,
            self._source,
            loop=self._config.train,
            optim=self._config.optim,
            data=self._config.data,
            to_stop=to_stop,
        )

    def _resumed(self, tokenizer: Tokenizer) -> TrainState:
        """The state to train on from: that of the newest checkpoint, or a new one."""
        model = initial_model(self._config, tokenizer).to(self._device)
        state = TrainState(model, make_optimizer(model, self._config.optim))
        checkpoint = self._checkpoints.latest(on_damage=self._note_once)
        if checkpoint is not None:
            where, shares = checkpoint
            train_state.from_bytes(state, shares, where)
            self._note_once(f"resuming at step {state.step} of {self._config.train.num_steps}")
        if self._rank == 0:
            self._checkpoints.drop_later(state.step)
            for of in GROWING:
                self._folder.drop_parts(of, behind=state.step)
        return state

    def _note_once(self, text: str) -> None:
        """What all workers see, one tells."""
        if self._rank == 0:
            self._send.note(text)

    def _save(self) -> None:
        step, began = self._state.step, time.monotonic()
        self._saver.save(
            step,
            train_state.to_bytes(self._state, self._rank, self._world_size),
            metric=self._metric,
            before_commit=self._records.cut(step),
            after_commit=lambda: self._send(
                {"kind": "saved", "step": step, "seconds": time.monotonic() - began}
            ),
        )

    def _evaluate(self, benchmark: Benchmark) -> Report:
        """Every worker takes part, worker 0 reports."""
        config, step = self._config, self._state.step
        report, features = benchmark.meet(self._state.model)
        if self._rank == 0:
            self._send({"kind": "evaluated", "step": step, "metrics": report.metrics})
            of = f"eval/{report.benchmark}"
            values = {f"{of}/{name}": interval.value for name, interval in report.metrics.items()}
            self._records.measured(step, values)
            if step == config.train.num_steps:
                pictures = {
                    "retrieval.png": retrieval_figure(features, benchmark.samples),
                    **attention_files(self._state.model, long_caption(benchmark.samples[0])),
                }
                for name, content in pictures.items():
                    self._send({"kind": "file", "name": f"figures/{name}", "content": content})
        return report

    def _best_by(self, report: Report) -> float | None:
        """What tells the best checkpoints. Raises: ConfigError if it isn't measured."""
        name = self._config.checkpoint.best_metric
        if not self._config.checkpoint.keep_best:
            return None
        if name not in report.answers:
            raise ConfigError(
                f"checkpoint.best_metric={name} is not measured by eval.benchmark="
                f"{self._config.eval.benchmark}; these are: {', '.join(report.answers)}"
            )
        return report.metrics[name].value

    def _finish(self) -> None:
        """Evaluate and export what was learnt; the result, written last, marks the run as done."""
        state, folder = self._state, self._folder
        if self._rank == 0:
            folder.write_model(export.to_files(state.model))  # first: an evaluation may fail
        report = self._evaluate(self._benchmark) if self._benchmark else None
        # Behind the last checkpoint: it is done again after a failure.
        write = self._records.cut(state.step + 1)
        if self._rank > 0:
            return
        write()
        for of in GROWING:
            folder.join_parts(of)
        read = self._config.train.num_steps * self._config.train.global_batch
        metrics = report.metrics if report else {}
        folder.write_result(
            {
                "steps": state.step,
                "samples": {"read": read, "used": state.num_used},
                "digest": export.digest(state.model),
                "metrics": {name: vars(interval) for name, interval in metrics.items()},
            }
        )
        for of in GROWING:  # not before: without a result, training may come back to them
            folder.drop_parts(of, behind=0)


def source_of(
    config: TrainConfig, tokenizer: Tokenizer, data: str, tags: Mapping[str, str]
) -> Source:
    """What the batches are made of. Raises: DataError."""
    store = open_store(data)
    return Source(
        store=store,
        manifest=read_manifest(store, of_features=True),
        tokenizer=tokenizer,
        captions=config.captions,
        augment=config.augment,
        order=config.data.order,
        image_size_px=config.model.image.image_size_px,
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        trace=config.train.trace,
        tags=tags,
    )


def initial_model(config: TrainConfig, tokenizer: Tokenizer | None) -> LoTLIP:
    """The model that training starts from: the same on the driver and on every worker.

    Without a tokenizer it can't take texts.

    Raises: CheckpointError, ConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build(config.model, tokenizer)


def _benchmark(config: TrainConfig) -> Benchmark | None:
    asked = config.eval
    if not asked.data:
        return None
    store = open_store(asked.data)
    samples = read_benchmark(store, read_manifest(store), asked.num_samples, asked.captioner)
    return Benchmark(asked.benchmark, samples)
