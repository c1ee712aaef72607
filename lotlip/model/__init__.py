"""The model of the paper: towers, corner tokens, and weights made elsewhere."""

from lotlip.model.config import PRESETS, ImageTowerConfig, ModelConfig, TextTowerConfig
from lotlip.model.lotlip import LoTLIP

__all__ = ["PRESETS", "ImageTowerConfig", "LoTLIP", "ModelConfig", "TextTowerConfig"]
