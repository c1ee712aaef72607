"""AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lotlip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) as CLIP training uses it."""

    lr: float = 5e-4
    """Peak learning rate, reached after the warm-up."""
    beta1: float = 0.9
    """Decay of AdamW's mean of the gradients."""
    beta2: float = 0.98
    """Decay of its mean of their squares."""
    eps: float = 1e-6
    """Added to its denominator."""
    weight_decay: float = 0.2
    """Not applied to norms, biases, single vectors and the temperature."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises linearly; then it falls along half a cosine."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name}={getattr(self, name)} must be above 0")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optim.{name}={getattr(self, name)} must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name}={getattr(self, name)} must be in [0, 1)")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """An optimiser of the parameters that learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of step 1..num_steps: linear to the peak, then half a cosine down to 0."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
