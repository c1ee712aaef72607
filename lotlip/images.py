"""Encoded images to the arrays a model takes.

Shape suffixes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lotlip.errors import ConfigError, DataError

MAX_PIXELS = 100_000_000  # more is taken for an attack or a mistake
_REDUCIBLE = ("JPEG", "MPO")
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_STORABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Of strangers' files; other decoders start programs, or are seldom looked after."""
_QUALITY = 92
_REDUCED = 1.25
"""What is decoded at reduced size has at least so many times the pixels it is resized to, in each
direction: it then differs from the whole image, resized, no more than bilinear from bicubic."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random crops during training; evaluation takes the centre."""

    min_crop_area: float = 0.9
    """Smallest share of the image's area that a crop keeps; 1 with `flip` off switches
    augmentation off, so that features of a locked tower are the same in each epoch."""
    flip: bool = False
    """Mirror half of the images; leave off where captions speak of left and right."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_crop_area <= 1.0:
            raise ConfigError(f"augment.min_crop_area={self.min_crop_area} must be in (0, 1]")


def decode(
    encoded: bytes, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The image in RGB, whatever its mode was; transparency is put on white.

    `formats` are Pillow's names of those that are taken; without, all that it knows are.

    Raises: DataError if it isn't an image, is cut short, or is larger than `max_pixels`, which its
    header tells.
    """
    return _decoded(_opened(encoded, max_pixels, formats))


def _opened(
    encoded: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The image, of which only the header was read. Raises: DataError."""
    with _explained():
        image = Image.open(io.BytesIO(encoded), formats=formats)
    if image.width * image.height > max_pixels:
        raise DataError(f"image of {image.width} x {image.height} px is too large")
    return image


def _decoded(image: Image.Image) -> Image.Image:
    with _explained():
        image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits of grey at 255 rather than scale them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise DataError("image does not decode: it is of no known format") from error
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise DataError(f"image does not decode: {error}") from error


def stored(encoded: bytes, *, longest_side_px: int = 0) -> tuple[bytes, str]:
    """The image as shards keep it, and its suffix there: as it is, or as a JPEG.

    Made anew is what has another format than JPEG, PNG or WebP, or a side longer than
    `longest_side_px`, if that isn't 0. Raises: DataError, see `decode`; it is decoded whole.
    """
    image = _opened(encoded, formats=_STORABLE)
    suffix, longest = _SUFFIXES.get(image.format or "", ""), max(image.size)
    is_large = 0 < longest_side_px < longest
    if suffix and not is_large:
        if image.format in _REDUCIBLE:
            # All of its data is read, but few of its pixels are made.
            image.draft(None, (1, 1))
        _decoded(image)
        return encoded, suffix
    if is_large and image.format in _REDUCIBLE:
        least = _REDUCED * longest_side_px / longest
        _reduce(image, image.width * least, image.height * least)
    image = _decoded(image)
    if is_large:
        image.thumbnail((longest_side_px, longest_side_px), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    with _explained():  # JPEGs have a largest size
        image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue(), "jpg"


def media_type(encoded: bytes) -> str:
    """As in `image/jpeg`. Raises: DataError if it is no image."""
    name = _opened(encoded).format or "JPEG"
    return f"image/{'jpeg' if name == 'MPO' else name.lower()}"


def centre_crop(image: Image.Image, size_px: int) -> np.ndarray:
    """The largest square in the middle, resized (bicubic) to [size, size, 3] uint8, read-only."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, size_px, (left, top, left + side, top + side))


def random_crop(
    encoded: bytes, size_px: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """A crop of random area, aspect ratio (3:4 to 4:3) and place, [size, size, 3] uint8, read-only.

    As timm's RandomResizedCrop, but one that doesn't fit is made to, rather than drawn again. A
    JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough for the crop. What isn't
    augmented is the centre crop of the whole image, as in evaluation.

    Raises: DataError, see `decode`.
    """
    image = _opened(encoded)
    if image.format not in _REDUCIBLE:
        image = _decoded(image)  # which may change the size of some formats
    if config.min_crop_area == 1.0:
        pixels = centre_crop(_decoded(image), size_px)
    else:
        area = image.width * image.height * rng.uniform(config.min_crop_area, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(np.sqrt(area * ratio), image.width)
        height = min(np.sqrt(area / ratio), image.height)
        left = rng.uniform(0, image.width - width)
        top = rng.uniform(0, image.height - height)
        least = _REDUCED * size_px
        scale = _reduce(image, image.width * least / width, image.height * least / height)
        box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        pixels = _resized(_decoded(image), size_px, box)
    if config.flip and rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return pixels


def _reduce(image: Image.Image, width: float, height: float) -> float:
    """Have the image decoded as small as leaves so many pixels, if it can be; by which factor."""
    whole = image.width
    drafted = image.draft(None, (ceil(width), ceil(height)))
    return drafted[1][2] / whole if drafted else 1.0


def normalise(pixels_BHWC: Tensor) -> Tensor:
    """uint8 pixels [B, H, W, 3] to the model's input: floats in [-1, 1], [B, 3, H, W]."""
    return pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def _resized(
    image: Image.Image, size_px: int, box: tuple[float, float, float, float]
) -> np.ndarray:
    whole = box == (0, 0, size_px, size_px) and image.size == (size_px, size_px)
    if not whole:
        image = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)
