"""What runs on each training worker: the loop, its checkpoints and its evaluations."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

import ray
import ray.train.torch
import torch

from lotlip import distributed, export
from lotlip.data.manifest import read_manifest
from lotlip.data.pipeline import Source
from lotlip.data.sample import Sample
from lotlip.errors import CheckpointError, ConfigError
from lotlip.evaluate.benchmarks import Report, read_benchmark, retrieval_figure, run_benchmark
from lotlip.model import LoTLIP
from lotlip.model.pretrained import build
from lotlip.tokenizer import Tokenizer
from lotlip.train import state as train_state
from lotlip.train.loop import train_steps
from lotlip.train.optim import make_optimizer
from lotlip.train.state import TrainState
from lotlip_platform.checkpoints import Checkpoints, Saver, Writer
from lotlip_platform.config import build_config
from lotlip_platform.features import check_tower
from lotlip_platform.pulse import Pulse
from lotlip_platform.run_folder import GROWING, RunFolder
from lotlip_platform.step_log import Meter, Records, Send
from lotlip_platform.storage import open_store
from lotlip_platform.train_config import TrainConfig


def train_worker(arguments: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    `arguments`: the resolved `config` as plain values, the addresses of the `run` folder and of
    the `data` (or its features) to train on, the `tags` of its shards' versions, the `environment`
    that leads to the store, the driver's current `folder`, its `mailbox` and its token as `owner`
    of the run, and a name for this `life` of the workers.
    """
    os.environ.update(arguments["environment"])
    if os.path.isdir(arguments["folder"]):
        os.chdir(arguments["folder"])  # relative paths in the config mean what the user meant
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
            _train(config, folder, arguments, send, pulse)
    finally:
        # The calls before this one have arrived, too, once it is answered.
        ray.get(mailbox.put.remote({"kind": "ended", "rank": distributed.rank()}))


class Teller:
    """Tells the driver, and hears from it."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._answer: ray.ObjectRef | None = None
        """Not yet read. Later ones don't take its place, or it would never be there in time."""
        self._told = False
        self._lock = threading.Lock()
        """Training, saving and beating threads tell."""

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            answer = self._mailbox.put.remote(event)
            self._answer = self._answer or answer

    def to_stop(self) -> bool:
        """Whether the driver has said to save and stop, as far as its answers are here."""
        with self._lock:
            if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
                self._told = ray.get(self._answer)
                self._answer = None
            return self._told

    def note(self, text: str) -> None:
        self({"kind": "note", "text": text})


def _train(
    config: TrainConfig,
    folder: RunFolder,
    arguments: Mapping[str, Any],
    send: Teller,
    pulse: Pulse,
) -> None:
    tokenizer = folder.read_tokenizer()
    if tokenizer is None:
        raise CheckpointError(
            f"a worker does not see what the driver wrote to {folder.uri}: on several machines "
            "store= must be s3:// or a folder that all share"
        )
    source = _source(config, tokenizer, arguments["data"], arguments["tags"])
    held_out = _held_out(config)
    state = _resumed(config, tokenizer, folder, send)
    check_tower(source.manifest.made_by, state.model.image_tower)
    records = Records(folder, arguments["owner"], send)
    meter = Meter(send, records)
    writer = Writer(arguments["life"], distributed.rank(), distributed.world_size())
    saver = Saver(Checkpoints(folder.store), writer, config.checkpoint, note=send.note)
    metric: float | None = None

    def to_stop() -> bool:
        pulse.at("step")  # it is asked when the step's data is there
        return send.to_stop()

    steps = train_steps(
        state,
        source,
        loop=config.train,
        optim=config.optim,
        data=config.data,
        to_stop=to_stop,
    )
    pulse.at("data")
    for step in steps:
        pulse.stepped(step.own_s, step.step_s)
        pulse.at("log")
        meter.take(step)
        records.take(step)
        last = step.step == config.train.num_steps
        save = step.step % config.train.save_every_steps == 0 or last or step.to_stop
        if step.step % config.train.log_every_steps == 0 or last:
            meter.log(step)
        every = config.train.eval_every_steps
        # Not where training is to stop: a machine may have little time left to save.
        at_rest = last or step.to_stop
        if held_out and every and step.step % every == 0 and not at_rest:
            pulse.at("evaluation")
            report = _evaluate(config, state.model, held_out, step.step, send, records)
            metric = _best_by(config, report)
        if save:
            pulse.at("save")
            saver.save(
                step.step,
                train_state.to_bytes(state, distributed.rank(), distributed.world_size()),
                metric=metric,
                before_commit=records.cut(step.step),
                after_commit=lambda at=step.step: send({"kind": "saved", "step": at}),
            )
        if step.to_stop and not last:
            saver.finish()
            if writer.rank == 0:  # whose save is through when all is committed
                send({"kind": "stopped", "step": step.step})
            return
        pulse.at("data")
    pulse.at("end")
    saver.finish()
    _finish(config, state, held_out, folder, send, records)


def _source(
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
    config: TrainConfig, tokenizer: Tokenizer, folder: RunFolder, send: Teller
) -> TrainState:
    """The state to train on from: that of the newest checkpoint, or a new one."""
    model = initial_model(config, tokenizer).to(ray.train.torch.get_device())
    state = TrainState(model, make_optimizer(model, config.optim))

    def note(text: str) -> None:
        if distributed.rank() == 0:
            send.note(text)

    checkpoints = Checkpoints(folder.store)
    checkpoint = checkpoints.latest(on_damage=note)
    if checkpoint is not None:
        where, shares = checkpoint
        train_state.from_bytes(state, shares, where)
        note(f"resuming at step {state.step} of {config.train.num_steps}")
    if distributed.rank() == 0:
        checkpoints.drop_later(state.step)
        for of in GROWING:
            folder.drop_parts(of, behind=state.step)
    return state


def _evaluate(
    config: TrainConfig,
    model: LoTLIP,
    held_out: list[Sample],
    step: int,
    send: Send,
    records: Records,
) -> Report:
    """Every worker takes part, rank 0 reports."""
    report, features = run_benchmark(config.eval.benchmark, model, held_out)
    if distributed.rank() == 0:
        send({"kind": "evaluated", "step": step, "report": report})
        of = f"eval/{report.benchmark}"
        values = {f"{of}/{name}": interval.value for name, interval in report.metrics.items()}
        records.measured(step, values)
        if step == config.train.num_steps:
            figure = retrieval_figure(features, held_out)
            send({"kind": "file", "name": "figures/retrieval.png", "content": figure})
    return report


def _best_by(config: TrainConfig, report: Report) -> float | None:
    """What tells the best checkpoints. Raises: ConfigError if it isn't measured."""
    name = config.checkpoint.best_metric
    if not config.checkpoint.keep_best:
        return None
    if name not in report.metrics:
        raise ConfigError(
            f"checkpoint.best_metric={name} is not measured by eval.benchmark="
            f"{config.eval.benchmark}; these are: {', '.join(report.metrics)}"
        )
    return report.metrics[name].value


def _finish(
    config: TrainConfig,
    state: TrainState,
    held_out: list[Sample],
    folder: RunFolder,
    send: Send,
    records: Records,
) -> None:
    """Evaluate and export what was learnt; the result, written last, marks the run as done."""
    if distributed.rank() == 0:
        folder.write_model(export.to_files(state.model))  # first: an evaluation may fail
    report = None
    if held_out:
        report = _evaluate(config, state.model, held_out, state.step, send, records)
    write = records.cut(
        state.step + 1
    )  # behind the last checkpoint: it is done again after a failure
    if distributed.rank() == 0:
        write()
        for of in GROWING:
            folder.join_parts(of)
        read = config.train.num_steps * config.train.global_batch
        metrics = report.metrics if report else {}
        folder.write_result(
            {
                "steps": state.step,
                "samples": {"read": read, "used": read - state.num_bad},
                "digest": export.digest(state.model),
                "metrics": {name: vars(interval) for name, interval in metrics.items()},
            }
        )
        for of in GROWING:  # not before: without a result, training may come back to them
            folder.drop_parts(of, behind=0)
