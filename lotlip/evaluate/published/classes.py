"""Zero-shot classification: ImageNet with CLIP's 80 templates, and CIFAR with its 18.

Class names and templates are those that Radford et al. 2021 published with CLIP.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lotlip.evaluate.published.files import Files
from lotlip.evaluate.published.sets import Labelled, PixelImages

_IMAGENET = Path(__file__).parent.parent.parent / "assets" / "imagenet" / "imagenet.json"
_IMAGE = re.compile(r"(?:^|/)([^/]+/[^/]+)/[^/]+\.(?:jpeg|jpg|png)$", re.IGNORECASE)
_OF_CIFAR = tuple(
    f"a {quality}photo of {article} {size}{{}}."
    for article in ("a", "the")
    for quality, size in (
        *(("", ""), ("blurry ", ""), ("black and white ", ""), ("low contrast ", "")),
        *(("high contrast ", ""), ("bad ", ""), ("good ", ""), ("", "small "), ("", "big ")),
    )
)
_CIFAR_SIDE_PX = 32


def imagenet(files: Files) -> Labelled:
    """ImageNet-1k (Russakovsky et al. 2015): the validation images in a folder for each class."""
    classes, _ = imagenet_names()
    number = {f"val/{wnid}": index for index, (wnid, _) in enumerate(classes)}
    return _of_folders(files, number, "val/n01440764 (valprep.sh sorts the images into them)")


def imagenet_v2(files: Files) -> Labelled:
    """ImageNet-V2 (Recht et al. 2019): folders are numbers, 0 to 999."""
    top = "imagenetv2-matched-frequency-format-val"
    return _of_folders(files, {f"{top}/{index}": index for index in range(1000)}, f"{top}/0")


def cifar10(files: Files) -> Labelled:
    """CIFAR-10 (Krizhevsky 2009), the Python version, its test batch."""
    folder = "cifar-10-batches-py"
    names = _unpickled(files, f"{folder}/batches.meta")["label_names"]
    return _cifar(files, f"{folder}/test_batch", "labels", names)


def cifar100(files: Files) -> Labelled:
    """CIFAR-100 (Krizhevsky 2009), the Python version, its test batch by fine labels."""
    names = _unpickled(files, "cifar-100-python/meta")["fine_label_names"]
    return _cifar(files, "cifar-100-python/test", "fine_labels", names)


@cache
def imagenet_names() -> tuple[Sequence[tuple[str, str]], Sequence[str]]:
    """WordNet id and name of the 1,000 classes in their order, and the 80 templates."""
    kept = json.loads(_IMAGENET.read_text(encoding="utf-8"))
    return [(wnid, name) for wnid, name in kept["classes"]], kept["templates"]


def _of_folders(files: Files, number: Mapping[str, int], such_as: str) -> Labelled:
    # The folder that was given may be the one that holds the classes' folders.
    above = f"{files.store.uri.rstrip('/').rpartition('/')[2]}/"
    found = [
        (place, match[1]) for place in files.versions if (match := _IMAGE.search(above + place))
    ]
    ours = [(place, number[folder]) for place, folder in sorted(found) if folder in number]
    there = {label for _, label in ours}
    missing = [folder for folder, label in number.items() if label not in there]
    if missing and not files.partial:
        raise files.wrong(
            f"{files.store.uri} has images of {len(there):,} of {len(number):,} classes, none in a "
            f"folder {missing[0]}; folders are named {such_as}"
        )
    classes, templates = imagenet_names()
    prompts = [[template.format(name) for template in templates] for _, name in classes]
    images = files.images([place for place, _ in ours])
    return Labelled(images, [label for _, label in ours], prompts)


def _cifar(files: Files, name: str, labels: str, classes: Sequence[str]) -> Labelled:
    kept = _unpickled(files, name)
    flat = np.asarray(kept["data"], dtype=np.uint8)
    pixels_NCHW = flat.reshape(-1, 3, _CIFAR_SIDE_PX, _CIFAR_SIDE_PX)
    spoken = [one.replace("_", " ") for one in classes]
    prompts = [[template.format(one) for template in _OF_CIFAR] for one in spoken]
    images = PixelImages(name, pixels_NCHW.transpose(0, 2, 3, 1), where=files.store.uri)
    return Labelled(images, [int(label) for label in kept[labels]], prompts)


def _unpickled(files: Files, name: str) -> Mapping[str, Any]:
    """One of CIFAR's pickles; nothing but numbers, texts and arrays is made of it."""
    place = files.find(name)
    content = files.store.read(place)
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # whatever a damaged pickle leads to
        raise files.wrong(f"{files.store.uri}/{place} is damaged or cut: {error}") from error


class _Unpickler(pickle.Unpickler):
    """A pickle may run anything: this one makes arrays only."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no business in a data set")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
