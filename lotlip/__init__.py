"""LoTLIP: language-image pre-training for long text understanding (Wu et al., NeurIPS 2024).

This package is the science: captions, tokenizer, towers, losses, data order, training loop and
evaluation. It knows nothing of Ray, MLflow or S3; `lotlip_platform` adds those.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lotlip.export import load
    from lotlip.model import LoTLIP, ModelConfig

__all__ = ["LoTLIP", "ModelConfig", "load"]

_HOMES = {"LoTLIP": "lotlip.model", "ModelConfig": "lotlip.model", "load": "lotlip.export"}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `lotlip --help` need not spend.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
