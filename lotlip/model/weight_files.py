"""Tensors and settings from files that others made. Nothing is unpickled beyond tensors."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lotlip.errors import CheckpointError

# What torch.load answers to bytes that aren't a PyTorch file, or were one.
_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in the authors' `model.pt` or in one of their training checkpoints.

    Raises: CheckpointError if the file isn't a PyTorch file of tensors.
    """
    content = _torch_load(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not _is_state_dict(state):
        raise CheckpointError(f"{path} holds no state dict of tensors: is it a model.pt of LoTLIP?")
    return state


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """What model.safetensors holds, else pytorch_model.bin. Raises: CheckpointError."""
    path = folder / "model.safetensors"
    try:
        if path.is_file():
            return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not (folder / "pytorch_model.bin").is_file():
        raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    state = _torch_load(folder / "pytorch_model.bin")
    if not _is_state_dict(state):
        raise CheckpointError(f"{folder}/pytorch_model.bin holds no state dict of tensors")
    return state


def read_json(path: Path) -> dict:
    """A JSON object from a model folder. Raises: CheckpointError."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: is it a model?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except _DAMAGED as error:
        message = f"{path} is not a PyTorch file of plain tensors; nothing else is loaded"
        raise CheckpointError(message) from error


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
