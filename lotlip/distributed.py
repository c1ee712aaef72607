"""The little of torch.distributed that training needs; everything works without it, too.

Shape suffixes: B rows on this worker, G rows of all workers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def data_parallel(model: nn.Module) -> nn.Module:
    """The model, averaging its gradients over the workers."""
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model)


def gather(rows: Tensor) -> Tensor:
    """Rows of all workers in the order of their ranks, [B, ...] to [G, ...].

    Gradients flow: the gradient of a row is summed over the workers that used it. Every worker
    must bring the same number of rows.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[assignment]
    return gathered


def mean(value: Tensor) -> Tensor:
    """The mean of a value over the workers, without gradient."""
    return total(value) / world_size()


def total(value: Tensor) -> Tensor:
    """The sum of a value over the workers, without gradient."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: Tensor) -> Tensor:
    """The largest of the workers, element by element, without gradient."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: Tensor, how: Any) -> Tensor:
    if world_size() == 1:
        return value.detach()
    joined = value.detach().clone()
    dist.all_reduce(joined, how)
    return joined


def gather_objects(value: Any) -> list[Any]:
    """A small value of each worker, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def collect_objects(value: Any) -> list[Any]:
    """A value of each worker, in the order of their ranks, on worker 0; nothing on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        gathered = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # A copy: autograd may use the incoming gradient elsewhere, too.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.num_rows, ctx.num_rows)
