"""`lotlip models export`: a model, by any of its names, as files for others."""

from __future__ import annotations

from typing import Literal

from lotlip.errors import ConfigError
from lotlip.export import to_files
from lotlip.foreign_export import hf_files, official_file
from lotlip.model import LoTLIP
from lotlip_platform.registered_version import card_of
from lotlip_platform.registry import fetch
from lotlip_platform.storage import open_store

Layout = Literal["lotlip", "hf", "official"]


def export(model: str, destination: str, layout: Layout, tracking_uri: str = "") -> list[str]:
    """Write a model into an empty folder, here or in S3; the names of the files.

    `model` is any name that `registry.fetch` takes. Raises: LotlipError; nothing is written then.
    """
    store = open_store(destination)
    if there := store.list():
        raise ConfigError(f"{destination} holds {there[0]} already: take a new folder")
    card = card_of(model, tracking_uri) if layout == "hf" else ""
    files = _files(fetch(model, tracking_uri), layout, card)
    # The weights last: without them it isn't taken for a model.
    for name in sorted(files, key=lambda name: name.startswith("model.")):
        store.write(name, files[name])
    return sorted(files)


def _files(model: LoTLIP, layout: Layout, card: str) -> dict[str, bytes]:
    if layout == "lotlip":
        return to_files(model)
    if layout == "hf":
        return hf_files(model, card)
    assert model.tokenizer is not None, "a model that was loaded has its tokenizer"
    return {"model.pt": official_file(model), **model.tokenizer.to_files()}
