"""What training carries from step to step, as tensors by name: no pickles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lotlip.errors import CheckpointError
from lotlip.model import LoTLIP
from lotlip.model.pretrained import load_exactly

_MODEL, _OPTIMIZER = "model.", "optimizer."
_COUNTS = ("step", "num_used", "num_bad_in_epoch", "num_skipped", "loss_sum", "num_losses")


@dataclass
class TrainState:
    """The model, its optimiser and how far they are. Dropout draws from (seed, step) anew."""

    model: LoTLIP
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done."""
    num_used: int = 0
    """Samples that were trained on, of all workers; not those that took the place of bad ones."""
    num_bad_in_epoch: int = 0
    """Bad samples that all workers met in the current epoch."""
    num_skipped: int = 0
    """Steps that changed nothing, since their gradients weren't finite."""
    loss_sum: float = 0.0
    """Of the finite losses since metrics were logged last."""
    num_losses: int = 0

    def count_loss(self, loss: float, *, anew: bool) -> float:
        """Count a step's loss, as the first one if `anew`; the mean of those counted.

        It is part of the state: a run that is resumed logs what it would have logged.
        """
        if anew:
            self.loss_sum, self.num_losses = 0.0, 0
        if math.isfinite(loss):
            self.loss_sum += loss
            self.num_losses += 1
        return self.loss_sum / self.num_losses if self.num_losses else math.nan


def to_bytes(state: TrainState, share: int = 0, num_shares: int = 1) -> bytes:
    """One of `num_shares` shares of the state, about equally large, as a safetensors file."""
    tensors = {_MODEL + name: value for name, value in state.model.state_dict().items()}
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    for parameter, moments in state.optimizer.state.items():
        for moment, value in moments.items():
            tensors[f"{_OPTIMIZER}{names[id(parameter)]}.{moment}"] = value
    total = sum(value.nbytes for value in tensors.values())
    own, before = {}, 0
    for name, value in sorted(tensors.items()):
        if before * num_shares // max(1, total) == share:
            own[name] = value
        before += value.nbytes
    if share == 0:
        own |= {name: torch.from_numpy(np.array(getattr(state, name))) for name in _COUNTS}
    # Copies: tensors that share memory, or views, are refused by safetensors.
    return safetensors.torch.save({k: v.detach().cpu().clone() for k, v in own.items()})


def from_bytes(state: TrainState, shares: Sequence[bytes], where: str) -> None:
    """Fill a state that was built from the same config, from all shares. Raises: CheckpointError.

    The number of shares need not be that of the workers now.
    """
    tensors: dict[str, Tensor] = {}
    for content in shares:
        try:
            tensors |= safetensors.torch.load(content)
        except SafetensorError as error:
            raise CheckpointError(f"{where} is damaged: {error}") from error
    missing = [name for name in _COUNTS if name not in tensors]
    if missing:
        raise CheckpointError(f"{where} is not a training state: it has no {missing[0]}")
    model = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
    load_exactly(state.model, model, where)
    moments = {k: v for k, v in tensors.items() if k.startswith(_OPTIMIZER)}
    state.optimizer.state.clear()
    num_used = 0
    for name, parameter in state.model.named_parameters():
        own = _moments_of(moments, name, parameter) if parameter.requires_grad else {}
        if own:
            state.optimizer.state[parameter] = own
        num_used += len(own)
    if num_used < len(moments):
        raise CheckpointError(
            f"{where} has moments of parameters that don't learn here: resume with the locked "
            "layers it was trained with"
        )
    for name in _COUNTS:
        setattr(state, name, tensors[name].item())


def _moments_of(moments: dict[str, Tensor], name: str, parameter: Tensor) -> dict[str, Tensor]:
    prefix = f"{_OPTIMIZER}{name}."
    return {
        key.removeprefix(prefix): value.to(parameter.device)
        for key, value in moments.items()
        if key.startswith(prefix)
    }
