"""The training loop: a generator that yields after each step.

It runs alike in a test, a notebook and a Ray worker; whoever consumes it decides what is logged,
evaluated and saved.

Shape suffixes: B images on this worker, H and W pixels, C channels, S captions, L tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lotlip import distributed
from lotlip.data.order import streams_of
from lotlip.data.pipeline import (
    BadSample,
    Batch,
    DataConfig,
    SampleTrace,
    Source,
    batches,
)
from lotlip.data.prefetch import prefetched
from lotlip.errors import ConfigError, DataError, LotlipError
from lotlip.model import LoTLIP
from lotlip.train.flops import step_flops
from lotlip.train.gradient import parts_of, take_gradient
from lotlip.train.optim import OptimConfig, learning_rate
from lotlip.train.state import TrainState

_NUM_LISTED = 5  # bad samples, in the error that stops a run


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how training runs."""

    num_samples: int
    """Samples seen in total; an epoch is what the data set has, less what doesn't fill a batch."""
    global_batch: int = 128
    """Samples a step over all workers: each is the others' negative."""
    seed: int = 0
    """Weights, order of samples, drawn captions and augmentation are functions of it."""
    micro_batch: int = 0
    """Images of a worker that are computed at a time, where its whole share of a batch takes too
    much memory; the gradient is the same, but for dropout, which each part draws for itself. The
    towers run forward twice. 0: all at once."""
    recompute: bool = False
    """Compute the towers' layers again in backward, rather than keep what it needs of them."""
    compile: bool = False
    """Have torch compile the towers, which takes a minute in the first step, and a C++ compiler."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast; auto takes it on GPUs that support it, and fp32 elsewhere."""
    long_weight: float = 1.0
    """Weight in the loss of each feature of a long caption; that of the short caption is 1."""
    max_skipped_steps: int = 0
    """Steps whose loss or gradient may turn out not finite: they change nothing, are counted in
    the metric train/skipped_steps, and one more ends the run."""
    log_every_steps: int = 10
    """Metrics are means over so many steps."""
    eval_every_steps: int = 0
    """0: evaluate at the end only."""
    save_every_steps: int = 500
    """Steps between checkpoints; one is always written behind the last step."""
    trace: bool = False
    """Write what each step was trained on to `trace.jsonl` in the run folder, for `lotlip trace
    diff` to compare."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch", "log_every_steps", "save_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be 1 or more")
        for name in ("eval_every_steps", "seed", "max_skipped_steps", "micro_batch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be 0 or more")
        if not self.long_weight > 0:
            raise ConfigError(f"train.long_weight={self.long_weight} must be above 0")
        if self.num_samples < self.global_batch:
            raise ConfigError(
                f"train.num_samples={self.num_samples} is less than one batch of "
                f"train.global_batch={self.global_batch}"
            )

    @property
    def num_steps(self) -> int:
        return self.num_samples // self.global_batch


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step did, on this worker unless said otherwise."""

    step: int
    """1 for the first."""
    epoch: int
    loss: float
    """Of the global batch."""
    mean_loss: float
    """Over the steps since the last multiple of `train.log_every_steps`, if they were finite."""
    scale: float
    lr: float
    grad_norm: float
    """Before clipping; of the global batch."""
    num_samples: int
    num_tokens: int
    """Text tokens without padding."""
    flops: float
    """Floating-point operations by the model, see `flops`."""
    data_wait_s: float
    own_s: float
    """Until this worker's features were there; from then on it needs those of the others."""
    step_s: float
    """Of the whole step, waiting for data included."""
    bad: tuple[BadSample, ...]
    num_skipped: int
    """Steps so far that changed nothing, see `train.max_skipped_steps`."""
    trace: tuple[SampleTrace, ...]
    """Of this worker's samples, with `train.trace`."""
    store_faults: int
    """That reading this worker's part of the batch met and got over."""
    to_stop: bool
    """Whether a worker was told that training is to stop here."""


def train_steps(
    state: TrainState,
    source: Source,
    *,
    loop: LoopConfig,
    optim: OptimConfig,
    data: DataConfig,
    to_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Train from `state.step` to the end, on the device the model is on.

    Call it on every worker with the same arguments, in a process group if there are several.
    `to_stop` is asked in each step; what one worker answers, all learn in the same step, from
    `Step.to_stop`: training goes on, whoever consumes the steps ends it.

    Raises: ConfigError for a batch, streams and workers that don't fit, DataError, LotlipError
    for a loss that isn't finite.
    """
    model = _set_up(state.model, loop)
    steps_per_epoch, short_first = source.epoch(0).steps, source.captions.short_caption
    allowance = _BadSampleAllowance(data.max_bad_fraction, source, state)
    while state.step < loop.num_steps:
        epoch = state.step // steps_per_epoch
        began = time.perf_counter()
        for batch in _rest_of_epoch(state, source, data.num_loader_processes):
            waited = time.perf_counter() - began
            lr = learning_rate(optim, state.step + 1, loop.num_steps)
            done = _update(state, model, batch, short_first, lr, loop, optim, to_stop())
            state.step += 1
            state.num_used += done.num_used
            allowance.count(done.num_bad, is_first=state.step - 1 == epoch * steps_per_epoch)
            anew = (state.step - 1) % loop.log_every_steps == 0
            lengths_BS, pixels = (batch.ids_BSL != 0).sum(dim=2), batch.images.ndim == 4
            yield Step(
                step=state.step,
                epoch=epoch,
                loss=done.loss,
                mean_loss=state.count_loss(done.loss, anew=anew),
                scale=float(state.model.scale().detach()),
                lr=lr,
                grad_norm=done.grad_norm,
                num_samples=len(batch.keys),
                num_tokens=int(lengths_BS.sum()),
                flops=step_flops(
                    state.model.config, lengths_BS, short_first=short_first, pixels=pixels
                ),
                data_wait_s=waited,
                own_s=waited + done.features_s,
                step_s=time.perf_counter() - began,
                bad=batch.bad,
                num_skipped=state.num_skipped,
                trace=batch.trace,
                store_faults=batch.store_faults,
                to_stop=done.to_stop,
            )
            allowance.check(epoch, batch.bad)
            if state.step == loop.num_steps:
                break
            began = time.perf_counter()


def _set_up(model: LoTLIP, loop: LoopConfig) -> nn.Module:
    """The model as all workers train it. Raises: ConfigError if it can't be compiled here."""
    model.image_tower.recomputes = model.text_tower.recomputes = loop.recompute
    if loop.compile:
        model.compile_towers()
    return distributed.data_parallel(model).train()


def _rest_of_epoch(state: TrainState, source: Source, num_processes: int) -> Iterator[Batch]:
    """This worker's batches from `state.step` to the end of its epoch."""
    epoch, start_step = divmod(state.step, source.epoch(0).steps)
    found = batches(
        source,
        epoch=epoch,
        start_step=start_step,
        streams=streams_of(distributed.rank(), distributed.world_size(), source.order.num_streams),
        num_processes=num_processes,
    )
    device = state.model.logit_scale.device
    return _on_gpu(found, device) if device.type == "cuda" else found


def _on_gpu(found: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches whose images are on the GPU before they are asked for."""
    stream = torch.cuda.Stream(device)

    def moved() -> Iterator[Batch]:
        for batch in found:
            with torch.cuda.stream(stream):
                images = batch.images.pin_memory().to(device, non_blocking=True)
            stream.synchronize()  # in a thread of its own
            yield replace(batch, images=images)

    for batch in prefetched(moved(), depth=1):
        # Or its memory would be taken for the next one while kernels still read it.
        batch.images.record_stream(torch.cuda.current_stream(device))
        yield batch


@dataclass(frozen=True, kw_only=True)
class _Update:
    """What all workers know of a step."""

    loss: float
    num_used: int
    num_bad: int
    grad_norm: float
    to_stop: bool
    features_s: float
    """It took this worker so long to compute its features."""


def _update(
    state: TrainState,
    model: nn.Module,
    batch: Batch,
    short_first: bool,
    lr: float,
    loop: LoopConfig,
    optim: OptimConfig,
    to_stop: bool,
) -> _Update:
    """One optimizer step."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    loss, watch = take_gradient(
        state.model,
        model,
        parts_of(batch.images, batch.ids_BSL, loop.micro_batch, (loop.seed, state.step)),
        precision=loop.precision,
        short_first=short_first,
        # Long captions alone all weigh the same.
        long_weight=loop.long_weight if short_first else 1.0,
    )
    with record_function("optimiser"):
        grad_norm = _clipped(model, optim.max_grad_norm)
    # In one message, so that all workers know the same and stop at the same step.
    num_bad, num_used = len(batch.bad), len(batch.keys) - len(batch.bad)
    own = torch.cat([loss[None], loss.new_tensor([num_used, num_bad, to_stop])])
    value, *counts = distributed.mean(own).tolist()
    num_used, num_bad, num_to_stop = (round(n * distributed.world_size()) for n in counts)
    if torch.isfinite(torch.tensor([value, grad_norm])).all():
        with record_function("optimiser"):
            state.optimizer.step()
        state.model.clamp_scale_()
    elif state.num_skipped < loop.max_skipped_steps:
        state.num_skipped += 1  # all workers see the same numbers, and skip the same step
    else:
        raise LotlipError(
            f"step {state.step + 1}: the loss is {value}, the gradient's norm {grad_norm}; lower "
            f"optim.lr={optim.lr} or lengthen optim.warmup_steps={optim.warmup_steps}"
        )
    return _Update(
        loss=value,
        num_used=num_used,
        num_bad=num_bad,
        grad_norm=grad_norm,
        to_stop=num_to_stop > 0,
        features_s=watch.seconds(),
    )


def _clipped(model: nn.Module, max_norm: float) -> float:
    limit = max_norm or float("inf")
    norm: Tensor = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return float(norm)


class _BadSampleAllowance:
    """Stops training when an epoch has too many bad samples."""

    def __init__(self, max_fraction: float, source: Source, state: TrainState) -> None:
        self._max_fraction, self._state = max_fraction, state
        self._limit = int(max_fraction * source.manifest.num_samples)
        self._own: list[tuple[int, BadSample]] = []

    def count(self, num_bad: int, *, is_first: bool) -> None:
        """Add those that all workers met in a step; `is_first` of an epoch, which counts anew."""
        self._state.num_bad_in_epoch = num_bad + (0 if is_first else self._state.num_bad_in_epoch)

    def check(self, epoch: int, bad: Sequence[BadSample]) -> None:
        """Raises: DataError with the last bad samples of all workers, once there are too many.

        `bad` are this worker's of the step. What is counted all workers know, so each raises.
        """
        self._own = [*self._own, *((self._state.step, one) for one in bad)][-_NUM_LISTED:]
        if self._state.num_bad_in_epoch <= self._limit:
            return
        of_ranks = distributed.gather_objects(self._own)
        met = sorted((pair for own in of_ranks for pair in own), key=lambda pair: pair[0])
        last = "; ".join(f"{b.shard}[{b.index}]: {b.reason}" for _, b in met[-_NUM_LISTED:])
        raise DataError(
            f"{self._state.num_bad_in_epoch} bad samples in epoch {epoch}, more than "
            f"data.max_bad_fraction={self._max_fraction} allows (a run folder lists all in "
            f"bad_samples.jsonl); the last: {last or 'before training was resumed'}"
        )
