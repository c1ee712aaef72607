"""The short-text retrieval benchmarks, by the files of Karpathy and Fei-Fei 2015."""

from __future__ import annotations

from typing import Any

from lotlip.evaluate.published.files import Files
from lotlip.evaluate.published.sets import Pairs

_CAPTIONS = 5
"""Of each image, as everybody takes them; some images of MSCOCO have more."""


def mscoco(files: Files) -> Pairs:
    """MSCOCO (Lin et al. 2014), the 5,000 test images with their first five captions."""
    return _karpathy(files, "dataset_coco.json", ("val2014", "train2014"))


def flickr30k(files: Files) -> Pairs:
    """Flickr30k (Young et al. 2014), the 1,000 test images with their five captions."""
    return _karpathy(files, "dataset_flickr30k.json", ("flickr30k-images", "flickr30k_images"))


def _karpathy(files: Files, annotations: str, folders: tuple[str, ...]) -> Pairs:
    place = files.find(annotations)
    entries = files.field(files.json(place), "images", place)
    test = [entry for entry in entries if files.field(entry, "split", place) == "test"]
    texts: list[str] = []
    image_of_T: list[int] = []
    for number, entry in enumerate(test):
        said = files.field(entry, "sentences", place)[:_CAPTIONS]
        if not said:
            name = files.words(entry, "filename", place)
            raise files.wrong(f"{files.store.uri}/{place} has no sentence for {name}")
        texts += [files.words(one, "raw", place) for one in said]
        image_of_T += [number] * len(said)
    names = [_image(files, entry, place, folders) for entry in test]
    return files.pairs(names, texts, image_of_T)


def _image(files: Files, entry: Any, place: str, folders: tuple[str, ...]) -> str:
    name = files.words(entry, "filename", place)
    given = entry.get("filepath")
    named = [f"{folder}/{name}" for folder in ([given] if given else folders)]
    return next((one for one in named if files.has(one)), named[0])
