"""What a model is made of, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lotlip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """A vision transformer (Dosovitskiy et al. 2021) with pre-norm blocks, as timm builds it."""

    image_size_px: int = 224
    """Width and height of the square that an image is cropped and resized to."""
    patch_size_px: int = 16
    """Width and height of what becomes one token."""
    width: int = 768
    """Values of a token; the perceptrons are four times as wide."""
    num_layers: int = 12
    """Blocks of attention and perceptron."""
    num_heads: int = 12
    """Attention heads; they share the width between them."""
    stem: Literal["patch", "conv"] = "patch"
    """How pixels become tokens: one strided convolution, or four small ones (Xiao et al. 2021),
    which learn from far fewer images."""
    pool: Literal["token", "mean"] = "token"
    """The image feature: the class token, or the mean over the patches (then there is no class
    token)."""
    projection: bool = False
    """A trainable linear map from `width` to `embed_dim` behind the tower; without it they must
    be equal, as in the official model."""
    pretrained: str = ""
    """A Hugging Face or timm folder or hub name with weights to start from, or `builtin:scenes`.
    Empty: random weights."""
    locked_layers: int = 0
    """0: everything learns. -1: the whole tower is locked (LiT, Zhai et al. 2022). n > 0: the
    stem and the first n blocks are locked. The projection always learns."""

    def __post_init__(self) -> None:
        _positive("model.image", self, "image_size_px", "patch_size_px", "width", "num_layers")
        if self.image_size_px % self.patch_size_px:
            raise ConfigError(
                f"model.image.image_size_px={self.image_size_px} is not a multiple of "
                f"model.image.patch_size_px={self.patch_size_px}"
            )
        if self.stem == "conv" and self.patch_size_px != 16:
            raise ConfigError(
                f"model.image.stem=conv halves the image four times: it needs "
                f"model.image.patch_size_px=16, got {self.patch_size_px}"
            )
        _heads_divide("model.image", self.width, self.num_heads)
        _locked_within("model.image", self.locked_layers, self.num_layers)

    @property
    def num_patches(self) -> int:
        return (self.image_size_px // self.patch_size_px) ** 2


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """BERT (Devlin et al. 2019) with corner tokens (Wu et al. 2024, section 3.3)."""

    num_corner_tokens: int = 2
    """m, the learnable tokens directly after [CLS]; 0 gives plain BERT."""
    corner_mask: bool = True
    """Nobody looks at corner tokens, and they not at [CLS] (section 3.3); false has all tokens of
    a text look at each other."""
    vocab_size: int = 30522
    """Rows for word pieces; the corner tokens' rows come behind them."""
    context_length: int = 128
    """Longest text in tokens, [CLS], corner tokens and every [SEP] included."""
    num_positions: int = 512
    """Rows of the position table; BERT's has 512."""
    width: int = 768
    """Values of a token; the perceptrons are four times as wide."""
    num_layers: int = 12
    """Layers of attention and perceptron."""
    num_heads: int = 12
    """Attention heads; they share the width between them."""
    dropout: float = 0.0
    """Share of values dropped in training, in attention and behind it."""
    pretrained: str = ""
    """A Hugging Face BERT folder or hub name with weights to start from. Empty: random."""
    locked_layers: int = 0
    """0: everything learns. -1: the whole tower but the corner tokens is locked. n > 0: the
    embeddings, but not the corner tokens', and the first n layers are locked."""

    def __post_init__(self) -> None:
        _positive("model.text", self, "vocab_size", "width", "num_layers")
        if self.num_corner_tokens < 0:
            raise ConfigError(
                f"model.text.num_corner_tokens={self.num_corner_tokens} must be 0 or more"
            )
        if not self.num_corner_tokens + 3 <= self.context_length <= self.num_positions:
            raise ConfigError(
                f"model.text.context_length={self.context_length} must be between "
                f"num_corner_tokens + 3 = {self.num_corner_tokens + 3} and "
                f"num_positions = {self.num_positions}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.text.dropout={self.dropout} must be in [0, 1)")
        _heads_divide("model.text", self.width, self.num_heads)
        _locked_within("model.text", self.locked_layers, self.num_layers)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Both towers and the space they share."""

    preset: str = "vit-b-16"
    """The preset the other fields start from; see PRESETS."""
    embed_dim: int = 768
    """Values of an image or text feature."""
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    """The image tower."""
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    """The text tower."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """What it is trained with: softmax contrasts each image and text with all others of the batch;
    sigmoid judges each pair by itself (Zhai et al. 2023), with a bias that is learnt."""

    def __post_init__(self) -> None:
        _positive("model", self, "embed_dim")
        if not self.image.projection and self.image.width != self.embed_dim:
            raise ConfigError(
                f"model.image.width={self.image.width} differs from model.embed_dim="
                f"{self.embed_dim}: set model.image.projection=true or make them equal"
            )


def _positive(path: str, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{path}.{name}={getattr(config, name)} must be 1 or more")


def _heads_divide(path: str, width: int, num_heads: int) -> None:
    if num_heads < 1 or width % num_heads:
        raise ConfigError(f"{path}.num_heads={num_heads} must divide {path}.width={width}")


def _locked_within(path: str, locked_layers: int, num_layers: int) -> None:
    if not -1 <= locked_layers <= num_layers:
        raise ConfigError(
            f"{path}.locked_layers={locked_layers} must be -1 (all), 0 (none) or at most "
            f"{path}.num_layers={num_layers}"
        )


PRESETS = {
    "tiny": ModelConfig(
        preset="tiny",
        embed_dim=32,
        image=ImageTowerConfig(
            image_size_px=32, patch_size_px=16, width=32, num_layers=2, num_heads=2
        ),
        text=TextTowerConfig(
            vocab_size=1024,
            context_length=96,
            num_positions=128,
            width=32,
            num_layers=2,
            num_heads=2,
        ),
    ),
    "scenes": ModelConfig(
        preset="scenes",
        embed_dim=128,
        image=ImageTowerConfig(
            image_size_px=96,
            width=128,
            num_layers=2,
            num_heads=4,
            stem="conv",
            pool="mean",
            projection=True,
            pretrained="builtin:scenes",
            locked_layers=-1,
        ),
        text=TextTowerConfig(
            vocab_size=1024,
            context_length=128,
            num_positions=128,
            width=64,
            num_layers=2,
            num_heads=4,
        ),
    ),
    "small": ModelConfig(
        preset="small",
        embed_dim=192,
        image=ImageTowerConfig(image_size_px=96, width=192, num_layers=6, num_heads=3),
        text=TextTowerConfig(vocab_size=8192, width=192, num_layers=6, num_heads=3),
    ),
    "vit-b-32": ModelConfig(
        preset="vit-b-32",
        image=ImageTowerConfig(patch_size_px=32),
        text=TextTowerConfig(dropout=0.1),
    ),
    "vit-b-16": ModelConfig(preset="vit-b-16", text=TextTowerConfig(dropout=0.1)),
}
"""`tiny` is for tests, `scenes` for the procedural data set on a laptop, `small` for experiments;
`vit-b-32` and `vit-b-16` are the sizes of the released LoTLIP models."""
