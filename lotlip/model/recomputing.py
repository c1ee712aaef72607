"""Activation checkpointing: time for memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def through(module: nn.Module, *inputs: Any, recomputes: bool) -> Any:
    """What the module makes of the inputs; backward may compute it again, with the same dropout."""
    if recomputes and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
