"""The loss of a batch and its gradient: of all images at once, or some at a time.

Some at a time (GradCache, Gao et al. 2021): features of the whole batch are computed without what
backward needs; the loss of the whole batch gives their gradients; then the features are computed
once more, some images at a time, each time with its part of the way back. The gradient is that of
the whole batch, the memory that of the largest part.

Shape suffixes: B images on this worker, S captions, L tokens, N text features, D embedding width.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from lotlip import distributed
from lotlip.images import normalise
from lotlip.model import LoTLIP


class Stopwatch:
    """Times a block of work on a device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * on_gpu)]
        self._times = [0.0, 0.0]

    def __enter__(self) -> Stopwatch:
        self._mark(0)
        return self

    def __exit__(self, *error: object) -> None:
        self._mark(1)

    def _mark(self, end: int) -> None:
        if self._events:
            self._events[end].record()
        else:
            self._times[end] = time.perf_counter()

    def seconds(self) -> float:
        """To be asked once a later result has come back from the device."""
        if self._events:
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._times[1] - self._times[0]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of a batch, with their captions."""

    images: Tensor
    """Pixels or features, as in `pipeline.Batch`."""
    ids_BSL: Tensor
    seed: int
    """Of dropout, which must be the same whenever the part is computed."""


def parts_of(
    images: Tensor, ids_BSL: Tensor, micro_batch: int, seed: tuple[int, int]
) -> list[Part]:
    """A worker's batch in parts of at most so many images; 0 for one part. `seed` is a step's."""
    size = micro_batch or len(images)
    pieces = zip(images.split(size), ids_BSL.split(size), strict=True)
    return [
        Part(images=some, ids_BSL=ids, seed=hash((*seed, distributed.rank(), number)))
        for number, (some, ids) in enumerate(pieces)
    ]


def take_gradient(
    model: LoTLIP,
    parallel: nn.Module,
    parts: Sequence[Part],
    *,
    precision: str,
    short_first: bool,
    long_weight: float,
) -> tuple[Tensor, Stopwatch]:
    """Add the gradient of the batch's loss to the model's parameters.

    `parallel` is the model as `distributed.data_parallel` gives it. Returns this worker's share of
    the loss, and what tells how long its features took.
    """

    def encode(through: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        device = model.logit_scale.device
        torch.manual_seed(part.seed)
        images = part.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = normalise(images)
        with autocast(precision, device):
            return through(images, part.ids_BSL, short_first)

    if len(parts) == 1:
        with Stopwatch(model.logit_scale.device) as watch:
            image_BD, text_BND = encode(parallel, parts[0])
        loss = model.loss(image_BD, text_BND, long_weight=long_weight)
        with record_function("backward"):
            loss.backward()
        return loss.detach(), watch
    with torch.no_grad(), Stopwatch(model.logit_scale.device) as watch:
        pairs = [encode(model, part) for part in parts]
    image_BD, text_BND = (torch.cat(some).requires_grad_() for some in zip(*pairs, strict=True))
    loss = model.loss(image_BD, text_BND, long_weight=long_weight)
    own = [p for p in (model.logit_scale, model.logit_bias) if p is not None]
    with record_function("loss"):
        of_loss = torch.autograd.grad(loss, [image_BD, text_BND, *own])
    grad_image_BD, grad_text_BND, *grads = of_loss
    size = len(parts[0].images)
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        with contextlib.nullcontext() if is_last else _unsynchronised(parallel):
            rows = slice(number * size, (number + 1) * size)
            image_BD, text_BND = encode(parallel, part)
            # Its gradient is that of the loss, as far as it goes through these features.
            stand_in = (text_BND * grad_text_BND[rows]).sum()
            stand_in = stand_in + (image_BD * grad_image_BD[rows]).sum()
            if is_last:
                stand_in = stand_in + sum(p * grad for p, grad in zip(own, grads, strict=True))
            with record_function("backward"):
                stand_in.backward()
    return loss.detach(), watch


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a model runs at a precision; features come out in fp32 always."""
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = precision == "bf16" or (precision == "auto" and supported)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _unsynchronised(parallel: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Gradients of the workers are brought together once, with the last part."""
    if isinstance(parallel, DistributedDataParallel):
        return parallel.no_sync()
    return contextlib.nullcontext()
