"""Models that a published benchmark can be put to: ours, and other people's, by one interface.

Shape suffixes: N images, T texts, D width.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
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
from lotlip.tokenizer import whole_characters

_TEXTS_AT_ONCE = 64
_IMAGES_AT_ONCE = 64
_CHUNK_BYTES = 1 << 20
_TOLD_APART = ("castle", "garden")
"""Equally long: a tokenizer without a vocabulary reads letters, or words, as unknown ones."""


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

    @property
    def splits_sentences(self) -> bool:
        """Whether its tokenizer heeds `official`."""
        ...

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        """[N, D]. Raises: DataError that names the one that does not decode."""
        ...

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, Tensor]:
        """[T, D], and which of the texts had to be cut [T]. Raises: ConfigError for a
        `context_length` that it can't read.

        `official` has LoTLIP's own tokenizer split as its authors' does; others have one way.
        """
        ...


class LoTLIPEncoder:
    """A model of this project, or the authors', converted."""

    splits_sentences = True

    def __init__(self, model: LoTLIP) -> None:
        self.model = model.to(best_device())
        self.digest = export.digest(self.model)

    @property
    def longest_text(self) -> int:
        return self.model.config.text.num_positions

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        return normalize(embed_images(self.model, encoded, names), dim=-1)

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, Tensor]:
        features = embed_texts(self.model, texts, official=official, context_length=context_length)
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "a model that was loaded has its tokenizer"
        lengths = [tokenizer.full_length(text, official=official) for text in texts]
        return normalize(features, dim=-1), torch.tensor(lengths) > context_length


class HuggingFaceEncoder:
    """CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023) and their kin, from a folder in the
    layout of transformers, with the processor that is in it. Computed in single precision."""

    splits_sentences = False

    def __init__(self, folder: str) -> None:
        """Raises: CheckpointError."""
        from transformers import AutoModel, AutoProcessor

        self._folder = Path(folder).expanduser()
        if not (self._folder / "config.json").is_file():
            raise CheckpointError(
                f"hf:{folder} is no folder, on this machine's disk, of a Hugging Face model"
            )
        _quiet_transformers()
        try:
            loaded: Any = AutoModel.from_pretrained(
                self._folder, dtype=torch.float32, output_loading_info=True
            )
            model, told = loaded
            self._model: Any = model.to(best_device()).eval()
            self._processor: Any = AutoProcessor.from_pretrained(self._folder)
        except Exception as error:  # whatever is wrong with the folder
            raise CheckpointError(f"hf:{folder} can't be loaded: {_line(error)}") from error
        if not hasattr(self._model, "get_text_features"):
            raise CheckpointError(f"hf:{folder} is no dual encoder, as CLIP and SigLIP are")
        # They would be random, and others each time.
        if lacking := sorted({*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])}):
            raise CheckpointError(
                f"hf:{folder} lacks {len(lacking)} weights of its model, or has them in another "
                f"shape: {', '.join(lacking[:3])}; were its keys renamed?"
            )
        ids = [self._processor.tokenizer(word, verbose=False)["input_ids"] for word in _TOLD_APART]
        if ids[0] == ids[1]:
            raise CheckpointError(
                f"hf:{folder} has a tokenizer that can't tell {_TOLD_APART[0]} from "
                f"{_TOLD_APART[1]}: are all of its files there, as tokenizer.json?"
            )
        files = [
            (path.relative_to(self._folder).as_posix(), path)
            for path in sorted(self._folder.rglob("*"))
            if path.is_file() and not path.relative_to(self._folder).as_posix().startswith(".")
        ]
        images = type(self._processor.image_processor).__name__
        self.digest = f"{_digest(files)}-{images}-{version('transformers')}"

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
    ) -> tuple[Tensor, Tensor]:
        tokenizer = self._processor.tokenizer
        is_siglip = self._model.config.model_type.startswith("siglip")
        if context_length <= (special := tokenizer.num_special_tokens_to_add()):
            raise ConfigError(
                f"hf:{self._folder} puts {special} tokens around a text: it can't read "
                f"{context_length}"
            )
        texts = [whole_characters(text) for text in texts]
        if is_siglip and "Gemma" in type(tokenizer).__name__:
            # SigLIP 2 was trained on lower case, and not all tokenizers that come with it know.
            texts = [text.lower() for text in texts]

        def embed(batch: Sequence[str]) -> Tensor:
            ids = tokenizer(
                batch,
                padding=True,
                truncation=True,
                max_length=context_length,
                return_tensors="pt",
            )
            if is_siglip:
                # It was trained on texts padded to the full length, padding being read as well.
                ids.pop("attention_mask", None)
                ids = tokenizer.pad(
                    *(ids, "max_length", self.longest_text), return_attention_mask=False
                )
            return _features(self._model.get_text_features(**ids.to(_on(self._model))))

        lengths = [len(tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return _in_batches(texts, embed, _TEXTS_AT_ONCE), torch.tensor(lengths) > context_length


class OpenClipEncoder:
    """A model of open_clip, where it is installed."""

    splits_sentences = False

    def __init__(self, architecture: str, pretrained: str) -> None:
        """`pretrained` is a file, or a tag that open_clip knows. Raises: ConfigError."""
        try:
            open_clip: Any = importlib.import_module("open_clip")
        except ImportError as error:
            raise ConfigError(
                f"open_clip:{architecture} needs open_clip, which does not import here ({error}): "
                "pip install open_clip_torch"
            ) from error
        where = f"open_clip:{architecture}:{pretrained}"
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model, _, preprocess = open_clip.create_model_and_transforms(
                    architecture, pretrained=pretrained
                )
                self._tokenize = open_clip.get_tokenizer(architecture)
        except Exception as error:  # whatever is wrong with the name or the file
            raise CheckpointError(f"{where} can't be loaded: {_line(error)}") from error
        if any("QuickGELU mismatch" in str(one.message) for one in said):
            raise CheckpointError(
                f"{where} has weights that were trained with another GELU: give "
                f"open_clip:{architecture}-quickgelu:{pretrained}, or the one without"
            )
        self._model: Any = model.to(best_device()).eval()
        self._preprocess: Any = preprocess
        about = (architecture, _told_transforms(preprocess), version("open_clip_torch"))
        hashed = hashlib.sha256(repr(about).encode())
        for name, value in sorted(self._model.state_dict().items()):
            hashed.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        self.digest = hashed.hexdigest()[:16]

    @property
    def longest_text(self) -> int:
        # That of a text tower of transformers may be longer than what it was trained with.
        return int(self._tokenize.context_length)

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        def embed(images: Sequence[Image.Image]) -> Tensor:
            pixels = torch.stack([self._preprocess(image) for image in images])
            return self._model.encode_image(pixels.to(_on(self._model)))

        return _images_in_batches(encoded, names, embed)

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, Tensor]:
        room = 2 * self.longest_text
        *_, before_last, last = self._tokenize([""], context_length=room)[0]
        if context_length < self.longest_text and before_last != last:
            raise ConfigError(
                f"a tokenizer that ends with a token of its own reads {self.longest_text} tokens, "
                f"not {context_length}: leave --context out"
            )

        def embed(batch: Sequence[str]) -> Tensor:
            ids = self._tokenize(batch, context_length=context_length)
            full = ids.new_full((len(batch), self.longest_text), last)  # padded, as in training
            full[:, :context_length] = ids
            return self._model.encode_text(full.to(_on(self._model)))

        def used(length: int) -> Tensor:
            """Its tokenizers tell no lengths, but what a text fills differs from padding."""
            ids, empty = (self._tokenize(some, context_length=length) for some in (texts, [""]))
            return (ids != empty).sum(dim=1)

        texts = [whole_characters(text) for text in texts]
        is_cut = used(context_length) < used(room)
        return _in_batches(texts, embed, _TEXTS_AT_ONCE), is_cut


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


def _quiet_transformers() -> None:
    """What it says of loading; what matters of it is an error here."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _told_transforms(transforms: Any) -> str:
    """Without places in memory, which functions are told with: they differ by process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transforms))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
