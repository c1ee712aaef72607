"""What training carries from step to step, as tensors by name: no pickles."""

from __future__ import annotations

from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lotlip.errors import CheckpointError
from lotlip.model import LoTLIP
from lotlip.model.pretrained import load_exactly

_MODEL, _OPTIMIZER, _STEP = "model.", "optimizer.", "step"


@dataclass
class TrainState:
    """The model, its optimiser and how far they are. Dropout draws from (seed, step) anew."""

    model: LoTLIP
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done."""


def to_bytes(state: TrainState) -> bytes:
    """The state as one safetensors file."""
    tensors = {_MODEL + name: value for name, value in state.model.state_dict().items()}
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    for parameter, moments in state.optimizer.state.items():
        for moment, value in moments.items():
            tensors[f"{_OPTIMIZER}{names[id(parameter)]}.{moment}"] = value
    tensors[_STEP] = torch.tensor(state.step)
    # Copies: tensors that share memory, or views, are refused by safetensors.
    return safetensors.torch.save({k: v.detach().cpu().clone() for k, v in tensors.items()})


def from_bytes(state: TrainState, content: bytes, where: str) -> None:
    """Fill a state that was built from the same config. Raises: CheckpointError."""
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error
    if _STEP not in tensors:
        raise CheckpointError(f"{where} is not a training state: it has no step")
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
    state.step = int(tensors[_STEP])


def _moments_of(moments: dict[str, Tensor], name: str, parameter: Tensor) -> dict[str, Tensor]:
    prefix = f"{_OPTIMIZER}{name}."
    return {
        key.removeprefix(prefix): value if key.endswith(".step") else value.to(parameter.device)
        for key, value in moments.items()
        if key.startswith(prefix)
    }
