"""The long-text benchmarks as their authors publish them.

DCI, IIW, ShareGPT4V and Urban-1k are put together as LoTLIP's own data loaders do
(github.com/wuw2019/LoTLIP, dataloaders/), which have no others.
"""

from __future__ import annotations

import re

from lotlip.evaluate.published.files import Files
from lotlip.evaluate.published.sets import Pairs, read_all

_ANNOTATION = re.compile(r"(?:^|/)annotations/[^/]+\.json$")
_URBAN_IMAGE = re.compile(r"(?:^|/)image/([^/]+)\.jpg$")
_IIW_PARTS = {
    "DOCCI_Test": ("docci", "images"),
    "IIW-400": ("docci_aar", "images_aar"),
    "DCI_Test": ("dci", "photos"),
}
"""The images' folder of each part: as LoTLIP's script copies them, and as their authors have it."""


def dci(files: Files) -> Pairs:
    """Densely Captioned Images (Urbanek et al. 2024), all splits: short and extra caption."""
    names, texts = [], []
    places = _annotations_by_split(files)
    for place, entry in zip(places, files.jsons(places), strict=True):
        short, extra = (
            files.words(entry, f"{which}_caption", place) for which in ("short", "extra")
        )
        names.append(f"photos/{files.words(entry, 'image', place)}")
        texts.append(f"{short}\n{extra}")
    return _pairs(files, names, texts)


def long_dci(files: Files) -> Pairs:
    """Long-DCI (Najdenkoska et al. 2025, TULIP): DCI's extra captions, without the short ones."""
    if not files.partial and files.has("splits.json"):
        _annotations_by_split(files)  # all there?
    places = sorted(place for place in files.versions if _ANNOTATION.search(place))
    names, texts = [], []
    for place, entry in zip(places, files.jsons(places), strict=True):
        if text := files.words(entry, "extra_caption", place):
            names.append(f"photos/{files.words(entry, 'image', place)}")
            texts.append(text)
    return _pairs(files, names, texts)


def iiw(files: Files) -> Pairs:
    """ImageInWords (Garg et al. 2024): IIW-400, DCI-Test and DOCCI-Test."""
    names, texts = [], []
    for part, folders in _IIW_PARTS.items():
        place = files.find(f"{part}/data.jsonl")
        entries = list(files.json_lines(place))
        if not entries:
            raise files.empty([place])
        for entry in entries:
            key = "image" if isinstance(entry, dict) and "image" in entry else "image/key"
            name = files.words(entry, key, place)
            name = name if ".jpg" in name else f"{name}.jpg"
            # As the authors' script takes them where there is none of the test split.
            known = [name, name.replace("test", "train")]
            names.append(_first_there(files, [f"{f}/{one}" for one in known for f in folders]))
            texts.append(files.words(entry, "IIW", place))
    return _pairs(files, names, texts)


def docci(files: Files) -> Pairs:
    """DOCCI (Onoe et al. 2024), its test split."""
    place = files.find("docci_descriptions.jsonlines")
    entries = [e for e in files.json_lines(place) if files.field(e, "split", place) == "test"]
    names = [f"images/{files.words(entry, 'image_file', place)}" for entry in entries]
    texts = [files.words(entry, "description", place) for entry in entries]
    return _pairs(files, names, texts)


def sharegpt4v_1k(files: Files) -> Pairs:
    """The first thousand captions that ShareGPT4V (Chen et al. 2024) has for images of SA-1B."""
    return _sharegpt4v(files, 1_000)


def sharegpt4v_10k(files: Files) -> Pairs:
    """The first ten thousand of them."""
    return _sharegpt4v(files, 10_000)


def urban1k(files: Files) -> Pairs:
    """Urban-1k (Zhang et al. 2024, Long-CLIP)."""
    captions = sorted(
        place
        for place in files.versions
        if place.endswith(".txt") and f"/{place}".rpartition("/")[0].endswith("/caption")
    )
    if not captions:
        raise files.wrong(f"{files.store.uri} has no caption/*.txt")
    if empty := [place for place in captions if not files.versions[place].num_bytes]:
        raise files.empty(empty)
    numbers = [place.rpartition("/")[2].removesuffix(".txt") for place in captions]
    names = [f"image/{number}.jpg" for number in numbers]
    images = [match[1] for place in files.versions if (match := _URBAN_IMAGE.search(place))]
    if not files.partial:
        files.find_all([f"caption/{one}.txt" for one in sorted({*images, *numbers})], "caption")
    texts = read_all(files.text, captions)
    return _pairs(files, names, texts)


def _annotations_by_split(files: Files) -> list[str]:
    """Of DCI, in the order of its splits. Raises: DataError if one is missing."""
    splits = files.json(files.find("splits.json"))
    entries = [name for split in splits.values() for name in split]
    return files.find_all([f"annotations/{name}" for name in entries], "annotation")


def _sharegpt4v(files: Files, number: int) -> Pairs:
    """The authors' file of ten thousand, or the whole of ShareGPT4V's."""
    small, whole = "share4v_sam_10k.json", "share-captioner_coco_lcs_sam_1246k_1107.json"
    place = files.find(small if files.has(small) or not files.has(whole) else whole)
    names, texts = [], []
    for entry in files.json(place, list)[:number]:
        said = files.field(entry, "conversations", place)
        if not isinstance(said, list) or len(said) < 2:
            raise files.wrong(f"{files.store.uri}/{place} has an entry without an answer")
        # The folders of SA-1B differ between its copies, its file names don't.
        names.append(files.words(entry, "image", place).rpartition("/")[2])
        texts.append(files.words(said[1], "value", place))
    return _pairs(files, names, texts)


def _first_there(files: Files, names: list[str]) -> str:
    return next((name for name in names if files.has(name)), names[0])


def _pairs(files: Files, names: list[str], texts: list[str]) -> Pairs:
    """One text an image."""
    return files.pairs(names, texts, range(len(texts)))
