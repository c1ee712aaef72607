"""Weights made elsewhere: the authors' checkpoints, BERT and vision transformers from Hugging Face.

Every key is accounted for: one that is missing, left over or of the wrong shape is an error that
names it. So is a setting beside the weights that our towers don't compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lotlip.errors import CheckpointError, ConfigError
from lotlip.model.config import ModelConfig
from lotlip.model.image_tower import ImageTower
from lotlip.model.layouts import (
    Shapes,
    arranged,
    bert_layout,
    check_tensors,
    is_bert_buffer,
    official_layout,
    timm_layout,
    vit_layout,
)
from lotlip.model.lotlip import LoTLIP
from lotlip.model.text_tower import TextTower
from lotlip.model.weight_files import read_json, read_tensors
from lotlip.tokenizer import Tokenizer

ASSETS = Path(__file__).parent.parent / "assets"

_IMAGE_HEADS = ("classifier.", "head.", "fc_norm.")
_BERT_HEADS = ("cls.", "classifier.", "qa_outputs.")
# What our towers compute, by the keys of transformers' config.json.
_BERT_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-12,),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
_VIT_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("vit",),
    "hidden_act": ("gelu",),
    # transformers says 1e-12 of weights that Google trained with 1e-6, as timm has them.
    "layer_norm_eps": (1e-6, 1e-12),
    "qkv_bias": (True,),
}


def build(config: ModelConfig, tokenizer: Tokenizer | None = None) -> LoTLIP:
    """A model with the pretrained towers its config names, the rest drawn at random.

    Raises: CheckpointError, and ConfigError if the tokenizer doesn't fit the text tower.
    """
    if tokenizer is not None:
        check_tokenizer(config, tokenizer)
    model = LoTLIP(config, tokenizer)
    if config.image.pretrained:
        load_image_tower(model.image_tower, config.image.pretrained)
    if config.text.pretrained:
        load_bert(model.text_tower, config.text.pretrained)
    return model


def check_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raises: ConfigError where tokenizer and text tower disagree."""
    for name in ("num_corner_tokens", "context_length", "vocab_size"):
        ours, theirs = getattr(config.text, name), getattr(tokenizer, name)
        if ours != theirs:
            raise ConfigError(f"model.text.{name}={ours}, but the tokenizer was made for {theirs}")


def load_image_tower(tower: ImageTower, source: str) -> None:
    """Fill an image tower from a folder or hub name, in timm's or transformers' layout.

    A classification head and transformers' pooler are left out; nothing else is.
    """
    folder = find_folder(source, "model.image.pretrained")
    _check_settings(folder, _VIT_SETTINGS, tower.config.num_heads, "model.image")
    state = read_tensors(folder)
    prefix = _prefix("vit.", "embeddings.", state)
    heads = _IMAGE_HEADS
    if any(key.startswith(f"{prefix}embeddings.") for key in state):
        heads += (f"{prefix}pooler.",)
        layout = vit_layout(_shapes(tower), prefix)
    else:
        layout = timm_layout(_shapes(tower))
    kept = {key: value for key, value in state.items() if not key.startswith(heads)}
    tower.load_state_dict(arranged(kept, layout, str(folder)))


def load_bert(tower: TextTower, source: str) -> None:
    """Fill a text tower from a Hugging Face BERT folder or hub name; corner tokens stay random.

    Heads are left out. Where the pretrained model has no pooler, ours stays random.
    """
    folder = find_folder(source, "model.text.pretrained")
    _check_settings(folder, _BERT_SETTINGS, tower.config.num_heads, "model.text")
    state = read_tensors(folder)
    prefix = _prefix("bert.", "embeddings.", state)
    kept = {
        key: value
        for key, value in state.items()
        if not key.startswith(_BERT_HEADS) and not is_bert_buffer(key, prefix)
    }
    layout = bert_layout(_shapes(tower), kept, prefix)
    if not any(key.startswith(f"{prefix}pooler.") for key in kept):
        layout = {name: origin for name, origin in layout.items() if "pooler" not in name}
    tower.load_state_dict({**tower.state_dict(), **arranged(kept, layout, str(folder))})


def load_official(state_dict: Mapping[str, Tensor], model_config: ModelConfig) -> LoTLIP:
    """The model of a checkpoint of the authors (github.com/wuw2019/LoTLIP), without a tokenizer.

    Two things have no counterpart here and are dropped: BERT's `position_ids` buffer and the
    embedding of segment 1, which their tokenizer never uses.
    Raises: CheckpointError that names the key.
    """
    model = LoTLIP(model_config)
    prefix = _prefix("module.", "visual.", state_dict)
    text = f"{prefix}text.transformer."
    kept = {key: value for key, value in state_dict.items() if not is_bert_buffer(key, text)}
    layout = official_layout(_shapes(model), kept, prefix)
    model.load_state_dict(arranged(kept, layout, "the official checkpoint"))
    return model.eval()


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Like load_state_dict, with an error in one line. Raises: CheckpointError."""
    check_tensors(state, _shapes(module), where)
    module.load_state_dict(dict(state))


def find_folder(source: str, key: str) -> Path:
    """The local folder of pretrained weights: as given, shipped with us, or fetched from the hub.

    Raises: CheckpointError that names the config key.
    """
    if source.startswith("builtin:"):
        folder = ASSETS / f"{source.removeprefix('builtin:')}-image-tower"
        if not folder.is_dir():
            raise CheckpointError(f"{key}={source}: there is no such weight in this package")
        return folder
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"{key}={source}: no such folder")
    from huggingface_hub import snapshot_download  # only here is the network needed

    try:
        patterns = ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"]
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{key}={source} is no local folder and could not be fetched from the Hugging Face "
            f"hub: {reason}"
        ) from error


def _check_settings(
    folder: Path, computed: Mapping[str, tuple[Any, ...]], num_heads: int, key: str
) -> None:
    """The weights have the same keys and shapes for all of these; transformers' config tells."""
    path = folder / "config.json"
    settings = read_json(path) if path.is_file() else {}
    found = settings.get("num_attention_heads")
    if found not in (None, num_heads):
        raise CheckpointError(f"{folder} has {found} heads, but {key}.num_heads={num_heads}")
    for name, values in computed.items():
        found = settings.get(name)
        if found is not None and found not in values:
            raise CheckpointError(
                f"{path} says {name}={found}, the tower of {key} computes {name}={values[0]} only"
            )


def _prefix(prefix: str, first: str, state: Mapping[str, Tensor]) -> str:
    """The prefix, if a file has it before the keys that start with `first`."""
    return prefix if any(key.startswith(prefix + first) for key in state) else ""


def _shapes(module: nn.Module) -> Shapes:
    return {name: value.shape for name, value in module.state_dict().items()}
