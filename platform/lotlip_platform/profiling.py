"""`lotlip profile`: where the time of a training step goes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from lotlip.errors import ConfigError, LotlipError
from lotlip.train.flops import peak_flops
from lotlip.train.loop import Step, train_steps
from lotlip.train.optim import make_optimizer
from lotlip.train.state import TrainState
from lotlip_platform.cluster import connected
from lotlip_platform.listener import Watch
from lotlip_platform.scaling import worker_counts
from lotlip_platform.train import checked_data, make_tokenizer, training_data
from lotlip_platform.train_config import TrainConfig
from lotlip_platform.train_worker import initial_model, source_of

_WARM_UP = 3
"""Steps before those that are profiled: the first ones allocate, and fill the loader."""
_PARTS = ("image tower", "text tower", "loss", "backward", "optimiser")
"""Named by `record_function` where they are."""


@dataclass(frozen=True)
class Share:
    """One part of a step."""

    what: str
    seconds: float
    """Of a step, on the average."""
    share: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was found out."""

    step_s: float
    samples_per_s: float
    tokens_per_s: float
    flops_per_s: float
    mfu: float
    """Share of what the device can do in bf16; 0 if that isn't known."""
    shares: Sequence[Share]
    operations: str
    """torch's own table: the most expensive operations."""
    trace: Path


def profile_training(
    config: TrainConfig, trace: Path, *, num_steps: int = 10, on_event: Watch
) -> Profile:
    """Train some steps as one worker, alone, without anything that is kept of a run.

    Its share of the batch is that of one of `cluster.num_workers`. The trace is one for
    ui.perfetto.dev. Raises: LotlipError.
    """
    if num_steps < 1:
        raise ConfigError(f"--steps {num_steps} must be 1 or more")
    manifest = checked_data(config, on_event)
    tokenizer = make_tokenizer(config, manifest)
    config = _of_one_worker(config, num_steps + _WARM_UP)
    loop = config.train
    device = torch.device("cuda" if config.cluster.gpus_per_worker else "cpu")
    model = initial_model(config, tokenizer)
    with connected() if config.data.features else nullcontext():
        data = training_data(config, manifest, model.image_tower, on_event)
    model.to(device)
    state = TrainState(model, make_optimizer(model, config.optim))
    source = source_of(config, tokenizer, data, {})
    steps = train_steps(state, source, loop=loop, optim=config.optim, data=config.data)
    for _ in range(_WARM_UP):
        next(steps)
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    taken = []
    with profile(activities=activities) as profiler:
        for step in steps:
            taken.append(step)
            on_event({"kind": "step", "step": len(taken), "loss": step.loss})
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    except (OSError, RuntimeError) as error:
        raise LotlipError(f"cannot write {trace}: {error}") from error
    return _profile(profiler, taken, trace, peak_flops(device))


def _of_one_worker(config: TrainConfig, num_steps: int) -> TrainConfig:
    """With its share of the batch and of the streams."""
    data, loop = config.data, config.train
    workers = worker_counts(config.cluster, data.order.num_streams)[0]
    batch = loop.global_batch // workers
    order = replace(data.order, num_streams=data.order.num_streams // workers)
    return replace(
        config,
        data=replace(data, order=order),
        train=replace(loop, global_batch=batch, num_samples=num_steps * batch),
        cluster=replace(config.cluster, num_workers=1),
    )


def table(found: Profile) -> str:
    """For people."""
    lines = [f"{'part of a step':<16}{'ms':>9}{'share':>8}"]
    lines += [f"{s.what:<16}{1000 * s.seconds:>9.1f}{s.share:>8.0%}" for s in found.shares]
    lines += [
        f"{'all of it':<16}{1000 * found.step_s:>9.1f}",
        "",
        f"{found.samples_per_s:,.1f} samples/s, {found.tokens_per_s:,.0f} text tokens/s, "
        f"{found.flops_per_s / 1e12:.3f} TFLOP/s"
        + (f" = {found.mfu:.0%} of the device's bf16 peak" if found.mfu else ""),
        "",
        found.operations,
    ]
    return "\n".join(lines)


def _profile(profiler: profile, taken: Sequence[Step], trace: Path, peak: float) -> Profile:
    seconds = sum(step.step_s for step in taken)
    averages = profiler.key_averages()
    on_gpu = any(event.device_time_total for event in averages)
    time_of: dict[str, float] = {}
    for event in averages:
        if event.device_type.name == "CPU":
            spent = event.device_time_total if on_gpu else event.cpu_time_total
            # A GPU's backward is started by a thread of its own.
            is_backward = on_gpu and event.key.startswith("autograd::engine::evaluate_function")
            name = "backward" if is_backward else event.key
            time_of[name] = time_of.get(name, 0.0) + spent / 1e6
    parts = {"data": sum(step.data_wait_s for step in taken)}
    parts |= {name: time_of.get(name, 0.0) for name in _PARTS}
    parts["rest"] = max(0.0, seconds - sum(parts.values()))
    flops = sum(step.flops for step in taken) / seconds
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return Profile(
        step_s=seconds / len(taken),
        samples_per_s=sum(step.num_samples for step in taken) / seconds,
        tokens_per_s=sum(step.num_tokens for step in taken) / seconds,
        flops_per_s=flops,
        mfu=flops / peak if peak else 0.0,
        shares=[Share(name, s / len(taken), s / seconds) for name, s in parts.items()],
        operations=averages.table(sort_by=order, row_limit=12, max_name_column_width=40),
        trace=trace,
    )
