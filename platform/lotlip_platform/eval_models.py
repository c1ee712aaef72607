"""Models that are evaluated, by their names: of this project, and other people's."""

from __future__ import annotations

from lotlip.errors import ConfigError
from lotlip.evaluate.encoders import (
    Encoder,
    HuggingFaceEncoder,
    LoTLIPEncoder,
    OpenClipEncoder,
)
from lotlip_platform.registry import fetch


def encoder_of(model: str) -> Encoder:
    """Raises: LotlipError."""
    kind, colon, rest = model.partition(":")
    if colon and kind == "hf":
        return HuggingFaceEncoder(rest)
    if colon and kind == "open_clip":
        architecture, colon, checkpoint = rest.partition(":")
        if not (architecture and colon and checkpoint):
            raise ConfigError(
                f"{model} is not of the form open_clip:ARCHITECTURE:CHECKPOINT, as in "
                "open_clip:ViT-B-16-quickgelu:openai"
            )
        return OpenClipEncoder(architecture, checkpoint)
    return LoTLIPEncoder(fetch(model))
