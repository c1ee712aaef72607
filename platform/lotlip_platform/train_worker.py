"""What runs on each training worker: the loop, its checkpoints and its evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train.torch
import torch

from lotlip import distributed, export
from lotlip.data.manifest import read_manifest
from lotlip.data.pipeline import Source
from lotlip.data.sample import Sample
from lotlip.errors import CheckpointError
from lotlip.evaluate.benchmarks import Report, read_benchmark, retrieval_figure, run_benchmark
from lotlip.model import LoTLIP
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train import state as train_state
from lotlip.train.loop import Step, train_steps
from lotlip.train.optim import make_optimizer
from lotlip.train.state import TrainState
from lotlip.train.trace import StepTrace, joined
from lotlip_platform.config import build_config
from lotlip_platform.features import check_tower
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import open_store
from lotlip_platform.train_config import TrainConfig

Send = Callable[[dict[str, Any]], None]
"""Tells the driver; of every kind of event below, one dictionary."""


def train_worker(arguments: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    `arguments`: the resolved `config` as plain values, the addresses of the `run` folder and of
    the `data` (or its features) to train on, the `environment` that leads to the store, the
    driver's current `folder` and its `mailbox`.
    """
    os.environ.update(arguments["environment"])
    if os.path.isdir(arguments["folder"]):
        os.chdir(arguments["folder"])  # relative paths in the config mean what the user meant
    config = build_config(TrainConfig, arguments["config"])
    folder = RunFolder(open_store(arguments["run"]))
    mailbox = arguments["mailbox"]

    send = _Sender(mailbox)
    send({"kind": "born", "node": ray.get_runtime_context().get_node_id()})
    try:
        _train(config, folder, arguments["data"], send)
    finally:
        # The calls before this one have arrived, too, once it is answered.
        ray.get(mailbox.put.remote({"kind": "ended", "rank": distributed.rank()}))


class _Sender:
    """Tells the driver, and hears from it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox, self._answer = mailbox, None

    def __call__(self, event: dict[str, Any]) -> None:
        self._answer = self._mailbox.put.remote(event)

    def to_stop(self) -> bool:
        """Whether the last answer, if it is there, says to save and stop."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        return ray.get(self._answer)


def _train(config: TrainConfig, folder: RunFolder, data: str, send: _Sender) -> None:
    tokenizer = folder.read_tokenizer()
    if tokenizer is None:
        raise CheckpointError(
            f"a worker does not see what the driver wrote to {folder.uri}: on several machines "
            "store= must be s3:// or a folder that all share"
        )
    source = make_source(config, tokenizer, data)
    held_out = _held_out(config)
    state = _resumed(config, tokenizer, folder, send)
    check_tower(source.manifest.made_by, state.model.image_tower)
    meter = _Meter(send)
    traced: list[StepTrace] = []
    steps = train_steps(
        state,
        source,
        loop=config.train,
        optim=config.optim,
        data=config.data,
        to_stop=send.to_stop,
    )
    for step in steps:
        meter.take(step)
        if config.train.trace:
            traced.append(StepTrace(step=step.step, epoch=step.epoch, samples=step.trace))
        last = step.step == config.train.num_steps
        if step.step % config.train.log_every_steps == 0 or last:
            meter.log(step)
        every = config.train.eval_every_steps
        if held_out and every and step.step % every == 0 and not last:
            _evaluate(config, state.model, held_out, step.step, send)
        due = step.step % config.train.save_every_steps == 0 or last or step.to_stop
        if due and config.train.trace:
            of_ranks = distributed.gather_objects(traced)
            traced = []
            if distributed.rank() == 0:
                folder.write_trace(joined(of_ranks))
        if due and distributed.rank() == 0:
            content = train_state.to_bytes(state)
            folder.save_checkpoint(step.step, content, keep_last=config.checkpoint.keep_last)
            send({"kind": "saved", "step": step.step})
        if step.to_stop and not last:
            send({"kind": "stopped", "step": step.step})
            return
    _finish(config, state, held_out, folder, send)


def make_source(config: TrainConfig, tokenizer: Tokenizer, data: str) -> Source:
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
    )


def initial_model(config: TrainConfig, tokenizer: Tokenizer) -> LoTLIP:
    """The model that training starts from: the same on the driver and on every worker.

    Raises: CheckpointError, ConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build(config.model, tokenizer)


def _held_out(config: TrainConfig) -> list[Sample]:
    if not config.eval.data:
        return []
    store = open_store(config.eval.data)
    return read_benchmark(store, read_manifest(store), config.eval.num_samples)


def _resumed(
    config: TrainConfig, tokenizer: Tokenizer, folder: RunFolder, send: Send
) -> TrainState:
    """The state to train on from: that of the newest checkpoint, or a new one."""
    model = initial_model(config, tokenizer).to(ray.train.torch.get_device())
    state = TrainState(model, make_optimizer(model, config.optim))

    def note(text: str) -> None:
        if distributed.rank() == 0:
            send({"kind": "note", "text": text})

    checkpoint = folder.latest_checkpoint(on_damage=note)
    if checkpoint is not None:
        where, content = checkpoint
        train_state.from_bytes(state, content, where)
        note(f"resuming at step {state.step} of {config.train.num_steps}")
    if distributed.rank() == 0:
        folder.drop_trace(behind=state.step)
    return state


def _evaluate(
    config: TrainConfig, model: LoTLIP, held_out: list[Sample], step: int, send: Send
) -> Report:
    """Every worker takes part, rank 0 reports."""
    report, features = run_benchmark(config.eval.benchmark, model, held_out)
    if distributed.rank() == 0:
        send({"kind": "evaluated", "step": step, "report": report})
        if step == config.train.num_steps:
            figure = retrieval_figure(features, held_out)
            send({"kind": "file", "name": "figures/retrieval.png", "content": figure})
    return report


def _finish(
    config: TrainConfig, state: TrainState, held_out: list[Sample], folder: RunFolder, send: Send
) -> None:
    """Evaluate and export what was learnt; the result, written last, marks the run as done."""
    if distributed.rank() == 0:
        folder.write_model(export.to_files(state.model))  # first: an evaluation may fail
    report = _evaluate(config, state.model, held_out, state.step, send) if held_out else None
    if distributed.rank() == 0:
        folder.join_trace()
        metrics = report.metrics if report else {}
        folder.write_result(
            {
                "steps": state.step,
                "digest": export.digest(state.model),
                "metrics": {name: vars(interval) for name, interval in metrics.items()},
            }
        )


@dataclass
class _Meter:
    """Averages the steps between two logs; rank 0 sends them, bad samples come from all."""

    send: Send
    steps: list[Step] = field(default_factory=list)

    def take(self, step: Step) -> None:
        self.steps.append(step)
        if step.bad:
            samples = [{"epoch": step.epoch, **vars(bad)} for bad in step.bad]
            self.send({"kind": "bad", "samples": samples})
        if distributed.rank() == 0:
            self.send({"kind": "step", "step": step.step, "loss": step.loss})

    def log(self, step: Step) -> None:
        seconds = sum(taken.step_s for taken in self.steps)
        world = distributed.world_size()
        if distributed.rank() == 0 and seconds > 0:
            metrics = {
                "train/loss": sum(taken.loss for taken in self.steps) / len(self.steps),
                "train/scale": step.scale,
                "train/lr": step.lr,
                "train/grad_norm": step.grad_norm,
                "train/epoch": float(step.epoch),
                "train/samples_per_s": world * sum(s.num_samples for s in self.steps) / seconds,
                "train/tokens_per_s": world * sum(s.num_tokens for s in self.steps) / seconds,
                "train/data_wait_share": sum(s.data_wait_s for s in self.steps) / seconds,
            }
            self.send({"kind": "metrics", "step": step.step, "metrics": metrics})
        self.steps = []
