"""Weights made elsewhere: the authors' checkpoints, BERT and vision transformers from Hugging Face.

Nothing is unpickled beyond tensors. Every key is accounted for: one that is missing, left over or
of the wrong shape is an error that names it.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lotlip.errors import CheckpointError, ConfigError
from lotlip.model.config import ModelConfig
from lotlip.model.image_tower import ImageTower
from lotlip.model.lotlip import LoTLIP
from lotlip.model.text_tower import TextTower
from lotlip.tokenizer import Tokenizer

ASSETS = Path(__file__).parent.parent / "assets"

_BERT_TO_OURS = (
    (r"embeddings\.word_embeddings\.", "embeddings.words."),
    (r"embeddings\.position_embeddings\.", "embeddings.positions."),
    (r"embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"layers.\1.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.output."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"layers.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"layers.\1.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"layers.\1.fc2."),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"layers.\1.norm2."),
    (r"pooler\.dense\.", "pooler."),
)
_VIT_TO_OURS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(\w+)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
_TIMM_HEADS = ("head.", "fc_norm.")
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
    _check_heads(folder, tower.config.num_heads, "model.image")
    state = {
        key.removeprefix("vit."): value
        for key, value in read_tensors(folder).items()
        if not key.startswith(("classifier.", *_TIMM_HEADS))
    }
    if "embeddings.patch_embeddings.projection.weight" in state:
        state = {key: value for key, value in state.items() if not key.startswith("pooler.")}
        state = _with_fused_qkv(_renamed(state, _VIT_TO_OURS))
    load_exactly(tower, state, str(folder))


def load_bert(tower: TextTower, source: str) -> None:
    """Fill a text tower from a Hugging Face BERT folder or hub name; corner tokens stay random.

    Pretraining heads are left out. Where the pretrained model has no pooler, ours stays random.
    """
    folder = find_folder(source, "model.text.pretrained")
    _check_heads(folder, tower.config.num_heads, "model.text")
    state = read_tensors(folder)
    if any(key.startswith("bert.") for key in state):
        state = {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}
    legacy = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    state = _bert_state(_renamed(state, legacy), str(folder))
    own = tower.state_dict()
    state["embeddings.corners"] = own["embeddings.corners"]
    for name in ("pooler.weight", "pooler.bias"):
        state.setdefault(name, own[name])
    load_exactly(tower, state, str(folder))


def load_official(state_dict: Mapping[str, Tensor], model_config: ModelConfig) -> LoTLIP:
    """The model of a checkpoint of the authors (github.com/wuw2019/LoTLIP), without a tokenizer.

    Two things have no counterpart here and are dropped: BERT's `position_ids` buffer and the
    embedding of segment 1, which their tokenizer never uses.
    Raises: CheckpointError that names the key.
    """
    where = "the official checkpoint"
    model = LoTLIP(model_config)
    ours: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key.startswith("visual.trunk."):
            ours["image_tower." + key.removeprefix("visual.trunk.")] = value
        elif key.startswith("text.transformer."):
            text[key.removeprefix("text.transformer.")] = value
        else:
            ours[key.replace("text.proj.", "text_projection.")] = value
    text = _bert_state(text, where)
    words = text.get("embeddings.words.weight")
    if words is not None:
        vocab_size = model_config.text.vocab_size
        text["embeddings.words.weight"] = words[:vocab_size]
        text["embeddings.corners"] = words[vocab_size:]
    ours.update({"text_tower." + key: value for key, value in text.items()})
    load_exactly(model, ours, where)
    return model.eval()


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in the authors' `model.pt` or in one of their training checkpoints.

    Raises: CheckpointError if the file isn't a PyTorch file of tensors.
    """
    content = _torch_load(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not _is_state_dict(state):
        raise CheckpointError(f"{path} holds no state dict of tensors: is it a model.pt of LoTLIP?")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Like load_state_dict, with an error in one line. Raises: CheckpointError."""
    own = module.state_dict()
    missing, left_over = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing:
        raise CheckpointError(f"{where} lacks {_first(missing)}")
    if left_over:
        raise CheckpointError(f"{where} has {_first(left_over)}, which this model has no place for")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{where}: {key} has shape {list(value.shape)}, the model needs "
                f"{list(own[key].shape)}"
            )
    module.load_state_dict(dict(state))


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


def _check_heads(folder: Path, num_heads: int, key: str) -> None:
    """The weights have the same shapes for any number of heads; transformers' config tells it."""
    path = folder / "config.json"
    found = read_json(path).get("num_attention_heads") if path.is_file() else None
    if found not in (None, num_heads):
        raise CheckpointError(f"{folder} has {found} heads, but {key}.num_heads={num_heads}")


def _bert_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our names for the tensors of a BERT model."""
    dropped = ("embeddings.position_ids", "embeddings.token_type_ids")
    ours = _renamed({k: v for k, v in state.items() if k not in dropped}, _BERT_TO_OURS)
    segments = ours.pop("embeddings.token_type_embeddings.weight", None)
    if segments is None:
        raise CheckpointError(f"{where} lacks embeddings.token_type_embeddings.weight")
    ours["embeddings.segment"] = segments[0]
    return ours


def _renamed(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def _with_fused_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers keeps query, key and value apart; timm and we stack them."""
    fused = dict(state)
    for key in [key for key in state if ".attn.query." in key]:
        names = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(name in fused for name in names):
            fused[key.replace(".query.", ".qkv.")] = torch.cat([fused.pop(n) for n in names])
    return fused


def _first(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} more)"


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
