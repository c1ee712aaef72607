"""LoTLIP: language-image pre-training for long text understanding (Wu et al., NeurIPS 2024).

This package is the science: captions, tokenizer, towers, losses, data order, training loop and
evaluation. It knows nothing of Ray, MLflow or S3; `lotlip_platform` adds those.
"""

from lotlip.export import load
from lotlip.model import LoTLIP, ModelConfig

__all__ = ["LoTLIP", "ModelConfig", "load"]
