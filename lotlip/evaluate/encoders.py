"""Models that a published benchmark can be put to: ours, and other people's, by one interface.

Shape suffixes: N images, T texts, D width.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lotlip import export
from lotlip.errors import CheckpointError, ConfigError, DataError
from lotlip.evaluate.embed import best_device, embed_images, embed_texts
from lotlip.images import decode
from lotlip.model import LoTLIP

_TEXTS_AT_ONCE = 64
_IMAGES_AT_ONCE = 64
_CHUNK_BYTES = 1 << 20


class Encoder(Protocol):
    """A dual encoder. Features are unit vectors of one space, float32 on the CPU."""

    @property
    def digest(self) -> str:
        """A short name for exactly these weights and what goes with them."""
        ...

    @property
    def longest_text(self) -> int:
        """Tokens that it can read."""
        ...

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        """[N, D]. Raises: DataError that names the one that does not decode."""
        ...

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, int]:
        """[T, D], and how many of the texts had to be cut.

        `official` has LoTLIP's own tokenizer split as its authors' does; others have one way.
        """
        ...


class LoTLIPEncoder:
    """A model of this project, or the authors', converted."""

    def __init__(self, model: LoTLIP) -> None:
        self._model = model.to(best_device())
        self.digest = export.digest(self._model)

    @property
    def longest_text(self) -> int:
        return self._model.config.text.num_positions

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        return normalize(embed_images(self._model, encoded, names), dim=-1)

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, int]:
        features = embed_texts(self._model, texts, official=official, context_length=context_length)
        tokenizer = self._model.tokenizer
        assert tokenizer is not None, "a model that was loaded has its tokenizer"
        lengths = [tokenizer.full_length(text, official=official) for text in texts]
        return normalize(features, dim=-1), sum(length > context_length for length in lengths)


class HuggingFaceEncoder:
    """CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023) and their kin, from a folder in the
    layout of transformers, with the processor that is in it."""

    def __init__(self, folder: str) -> None:
        """Raises: CheckpointError."""
        from transformers import AutoModel, AutoProcessor

        self._folder = Path(folder).expanduser()
        if not (self._folder / "config.json").is_file():
            raise CheckpointError(f"hf:{folder} is no folder of a Hugging Face model")
        try:
            self._model: Any = AutoModel.from_pretrained(self._folder).to(best_device()).eval()
            self._processor: Any = AutoProcessor.from_pretrained(self._folder)
        except Exception as error:  # whatever is wrong with the folder
            reason = str(error).strip().splitlines()[0][:200]
            raise CheckpointError(f"hf:{folder} can't be loaded: {reason}") from error
        if not hasattr(self._model, "get_text_features"):
            raise CheckpointError(f"hf:{folder} is no dual encoder, as CLIP and SigLIP are")
        files = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        self.digest = _digest([(str(path.relative_to(self._folder)), path) for path in files])

    @property
    def longest_text(self) -> int:
        return int(self._model.config.text_config.max_position_embeddings)

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        def embed(images: Sequence[Image.Image]) -> Tensor:
            pixels = self._processor.image_processor(images, return_tensors="pt").to(
                _on(self._model)
            )
            return _features(self._model.get_image_features(**pixels))

        return _images_in_batches(encoded, names, embed)

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, int]:
        tokenizer, cut = self._processor.tokenizer, 0
        # SigLIP was trained on texts padded to the full length, and reads no mask.
        padding = "max_length" if self._model.config.model_type.startswith("siglip") else True

        def embed(batch: Sequence[str]) -> Tensor:
            nonlocal cut
            ids = tokenizer(
                list(batch),
                padding=padding,
                truncation=True,
                max_length=context_length,
                return_tensors="pt",
            )
            lengths = [len(one) for one in tokenizer(list(batch), verbose=False)["input_ids"]]
            cut += sum(length > context_length for length in lengths)
            return _features(self._model.get_text_features(**ids.to(_on(self._model))))

        return _in_batches(texts, embed, _TEXTS_AT_ONCE), cut


class OpenClipEncoder:
    """A model of open_clip, where it is installed."""

    def __init__(self, architecture: str, pretrained: str) -> None:
        """`pretrained` is a file, or a tag that open_clip knows. Raises: ConfigError."""
        try:
            open_clip: Any = importlib.import_module("open_clip")
        except ImportError as error:
            raise ConfigError(
                f"open_clip:{architecture} needs open_clip, which does not import here ({error}): "
                "pip install open_clip_torch"
            ) from error
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=pretrained
            )
            self._tokenize = open_clip.get_tokenizer(architecture)
        except Exception as error:  # whatever is wrong with the name or the file
            reason = str(error).strip().splitlines()[0][:200]
            raise CheckpointError(
                f"open_clip:{architecture}:{pretrained} can't be loaded: {reason}"
            ) from error
        self._model: Any = model.to(best_device()).eval()
        self._preprocess: Any = preprocess
        hashed = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            hashed.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        self.digest = hashed.hexdigest()[:16]

    @property
    def longest_text(self) -> int:
        return int(self._model.context_length)

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        def embed(images: Sequence[Image.Image]) -> Tensor:
            pixels = torch.stack([self._preprocess(image) for image in images])
            return self._model.encode_image(pixels.to(_on(self._model)))

        return _images_in_batches(encoded, names, embed)

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, int]:
        cut = 0

        def embed(batch: Sequence[str]) -> Tensor:
            nonlocal cut
            ids = self._tokenize(list(batch), context_length=self.longest_text)
            # Its tokenizers tell no lengths: a text that fills all places was probably cut.
            cut += int((ids != 0).all(dim=1).sum())
            return self._model.encode_text(ids.to(_on(self._model)))

        return _in_batches(texts, embed, _TEXTS_AT_ONCE), cut


def _images_in_batches(
    encoded: Sequence[bytes], names: Sequence[str], embed: Callable[[Any], Tensor]
) -> Tensor:
    """Raises: DataError that names an image that doesn't decode."""

    def opened(places: Sequence[int]) -> Tensor:
        images = []
        for place in places:
            try:
                images.append(decode(encoded[place]))
            except DataError as error:
                raise DataError(f"{names[place]}: {error}") from error
        return embed(images)

    return _in_batches(range(len(encoded)), opened, _IMAGES_AT_ONCE)


def _in_batches(items: Sequence[Any], embed: Callable[[Any], Tensor], at_once: int) -> Tensor:
    with torch.no_grad():
        batches = [items[start : start + at_once] for start in range(0, len(items), at_once)]
        features = [normalize(embed(batch).float(), dim=-1).cpu() for batch in batches]
    return torch.cat(features)


def _features(found: Any) -> Tensor:
    """Newer versions of transformers give the features with what they were made of."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _on(model: Any) -> torch.device:
    return next(model.parameters()).device


def _digest(files: Sequence[tuple[str, Path]]) -> str:
    hashed = hashlib.sha256()
    for name, path in files:
        hashed.update(name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hashed.update(chunk)
    return hashed.hexdigest()[:16]
