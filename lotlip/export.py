"""A model as a folder, without pickles.

model.safetensors        the weights, names as in `LoTLIP.state_dict()`
config.json              the ModelConfig
vocab.txt, tokenizer_config.json
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import safetensors.torch

from lotlip.configuration import from_dict, to_dict
from lotlip.errors import CheckpointError, ConfigError
from lotlip.foreign_export import HF_MODEL_TYPE
from lotlip.model.config import ModelConfig
from lotlip.model.layouts import arranged, hf_layout
from lotlip.model.lotlip import LoTLIP
from lotlip.model.pretrained import check_tokenizer, load_exactly, load_official
from lotlip.model.weight_files import read_json, read_official, read_tensors
from lotlip.tokenizer import Tokenizer

_FORMAT = "lotlip-model-v1"
_WEIGHTS = "model.safetensors"


def to_files(model: LoTLIP) -> dict[str, bytes]:
    """The files of a model folder, by name."""
    if model.tokenizer is None:
        raise CheckpointError("a model without tokenizer cannot be exported")
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    config = {"format": _FORMAT, "model": to_dict(model.config)}
    return {
        _WEIGHTS: safetensors.torch.save(weights),
        "config.json": json.dumps(config, indent=2).encode(),
        **model.tokenizer.to_files(),
    }


def save(model: LoTLIP, folder: Path) -> None:
    """Write a model folder; `load` reads it. Raises: CheckpointError; nothing is written then."""
    files = to_files(model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as temporary:
            for name, content in files.items():
                (Path(temporary) / name).write_bytes(content)
            folder.mkdir(exist_ok=True)
            for name in files:
                os.replace(Path(temporary) / name, folder / name)
    except OSError as error:
        raise CheckpointError(f"cannot write a model to {folder}: {error.strerror}") from error


def load(path: str | Path) -> LoTLIP:
    """The model in an exported folder, in evaluation mode and with its tokenizer.

    Folders in the style of Hugging Face, see `foreign_export`, are read, too. The path of the
    weights in the folder will do as well.

    Raises: CheckpointError if it is no such folder, is damaged or does not fit its config.
    """
    folder = Path(path).expanduser()
    if folder.is_file() and folder.name == _WEIGHTS:
        folder = folder.parent
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file: export folders are loaded; for the authors' model.pt run "
            f"lotlip convert-official {folder} DEST first"
        )
    if not folder.is_dir():
        raise CheckpointError(f"there is no model at {folder}: no such folder")
    content = read_json(folder / "config.json")
    is_hf = content.get("model_type") == HF_MODEL_TYPE
    if not is_hf and content.get("format") != _FORMAT:
        raise CheckpointError(f"{folder}/config.json is not of format {_FORMAT}: is it a model?")
    try:
        config = from_dict(ModelConfig, content.get("lotlip" if is_hf else "model"), "model")
        tokenizer = Tokenizer.load(folder)
        check_tokenizer(config, tokenizer)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{folder} is damaged or of another version: {error}") from error
    try:
        model = LoTLIP(config, tokenizer)
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}/config.json tells of a model that can't be built: {reason}"
        ) from error
    state = read_tensors(folder)
    if is_hf:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        state = arranged(state, hf_layout(shapes, state), str(folder))
    load_exactly(model, state, str(folder))
    return model.eval()


def convert_official(
    checkpoint: Path, destination: Path, *, bert: Path, model_config: ModelConfig
) -> LoTLIP:
    """Turn the authors' checkpoint into an export folder.

    `bert` is a folder with the vocabulary of the BERT it was trained from: the checkpoint has
    none. Raises: CheckpointError, ConfigError; nothing is written then.
    """
    model = load_official(read_official(checkpoint), model_config)
    text = model_config.text
    model.tokenizer = Tokenizer.from_bert(
        bert, num_corner_tokens=text.num_corner_tokens, context_length=text.context_length
    )
    check_tokenizer(model_config, model.tokenizer)
    save(model, destination)
    return model


def digest(model: LoTLIP) -> str:
    """A short name for exactly these weights, this config and this tokenizer."""
    hashed = hashlib.sha256()
    for name, content in sorted(to_files(model).items()):
        hashed.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return hashed.hexdigest()[:16]
