"""`lotlip convert-official`: the authors' checkpoint as an export folder, here or in S3."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lotlip.data.store import FolderStore
from lotlip.errors import ConfigError
from lotlip.export import convert_official
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.pretrained import find_folder
from lotlip_platform.storage import open_store

_WEIGHTS = "model.safetensors"


def convert(checkpoint: Path, destination: str, *, bert: str, preset: str) -> LoTLIP:
    """Turn a checkpoint into an export folder at a path or an s3:// address.

    `bert` is a folder or hub name with the vocabulary that the text tower was trained with.

    Raises: ConfigError for an unknown preset and for a destination that holds something,
    CheckpointError, DataError; nothing is written then.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset {preset} must be one of {', '.join(PRESETS)}")
    store = open_store(destination)
    if store.list():
        raise ConfigError(f"{store.uri} holds something already: choose another DEST")
    folder, config = find_folder(bert, "--bert"), PRESETS[preset]
    if isinstance(store, FolderStore):
        return convert_official(checkpoint, store.root, bert=folder, model_config=config)
    with tempfile.TemporaryDirectory() as temporary:
        export = Path(temporary) / "model"
        model = convert_official(checkpoint, export, bert=folder, model_config=config)
        # The weights last: without them it isn't taken for a model.
        for path in sorted(export.iterdir(), key=lambda path: path.name == _WEIGHTS):
            store.write_file(path.name, path)
    return model
