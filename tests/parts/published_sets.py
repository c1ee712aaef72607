"""Small copies of the published benchmarks, a dozen images each, in their authors' layout, with
what is awkward about the real ones; and a model whose answers can be worked out by hand."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lotlip.evaluate.published.classes import imagenet_names
from lotlip.images import decode

NUM = 12
WRONG = 5
"""The text of this image speaks of the next one."""
ELSEWHERE = 8
"""The text of this image says what is there in its second line."""


class ByHand:
    """An `Encoder` that sees what `picture` draws, and reads `thing7`, or the words it knows."""

    digest = "by-hand"
    longest_text = 128
    splits_sentences = False

    def __init__(self, words: Sequence[str] = ()) -> None:
        numbered = [rf"\b{re.escape(word)}\b" for word in words]
        self._known = [re.compile(pattern) for pattern in numbered] or [
            re.compile(rf"thing{number}\b") for number in range(NUM)
        ]

    def embed_images(self, encoded: Sequence[bytes], names: Sequence[str]) -> Tensor:
        red = [np.asarray(decode(one))[..., 0].mean() for one in encoded]
        return one_hot(torch.tensor([round(value / 20) for value in red]), NUM).float()

    def embed_texts(
        self, texts: Sequence[str], *, context_length: int, official: bool
    ) -> tuple[Tensor, Tensor]:
        rows = []
        for text in texts:
            found = [number for number, word in enumerate(self._known) if word.search(text)]
            row = one_hot(torch.tensor(found[0]), NUM) if found else torch.ones(NUM)
            rows.append(normalize(row.float(), dim=0))
        return torch.stack(rows), torch.zeros(len(texts), dtype=torch.bool)


def picture(number: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """A field whose red tells the number; grey, with alpha, or as printers have it."""
    red = 20 * number
    image = Image.new("RGB", (48, 40), (red, red, red) if mode == "L" else (red, 90, 160))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **({"quality": 98} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    """One of them grey, one CMYK, one a PNG under the name of a JPEG."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = {1: "L", 2: "CMYK", 3: "RGBA"}.get(number, "RGB")
        path.write_bytes(picture(number, mode, "PNG" if mode == "RGBA" else "JPEG"))


def said(number: int) -> str:
    """Of a picture; decimals and abbreviations are in it, and a second line may be all of it."""
    what = f"thing{number}" if number != WRONG else f"a false thing{number + 1}"
    if number == ELSEWHERE:
        return f"A view of 3.5 m.\nIn it stands {what}, e.g. with Mr. X."
    return f"A view of {what} of 3.5 m.\nBehind it, e.g. by Mr. X, is more."


def write_json(path: Path, content: object, bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8-sig" if bom else "utf-8")


def write_lines(path: Path, entries: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + "\n")


def make_dci(root: Path) -> Path:
    """As its archive unpacks; entries in no order, one with a byte order mark, one without extra
    caption."""
    base = root / "dci" / "densely_captioned_images"
    order = [(7 * i) % NUM for i in range(NUM)]
    for i in order:
        short, _, extra = said(i).partition("\n")
        content = {"short_caption": short, "extra_caption": "" if i == 7 else extra}
        content["image"] = f"sa_{i}.jpg"
        write_json(base / "annotations" / f"{i:05d}-data.json", content, bom=i == 4)
    names = [f"{i:05d}-data.json" for i in order]
    write_json(base / "splits.json", {"train": names[:8], "valid": names[8:10], "test": names[10:]})
    write_pictures(base / "photos", [f"sa_{i}.jpg" for i in range(NUM)])
    (base / "complete").mkdir()
    (base / "complete" / "splits.json.bak").write_text("{")
    return root


def make_iiw(root: Path, *, copied: bool = True) -> Path:
    """Texts as Google publishes them; images as LoTLIP's script copies them, or where they were."""
    folders = ("docci", "docci_aar", "dci") if copied else ("images", "images_aar", "photos")
    parts = {"DOCCI_Test": range(4), "IIW-400": range(4, 8), "DCI_Test": range(8, NUM)}
    names = [""] * NUM
    for (part, numbers), folder in zip(parts.items(), folders, strict=True):
        entries = []
        for i in numbers:
            name = f"aar_test_{i}" if part == "IIW-400" else f"pic_{i}"
            key = "image/key" if part == "IIW-400" else "image"
            told = f"{name}.jpg" if part == "DCI_Test" else name
            entries.append({key: told, "IIW": said(i), "IIW-P5B": "no"})
            names[i] = f"{folder}/{name}.jpg"
        write_lines(root / "datasets" / part / "data.jsonl", entries)
    write_pictures(root, names)
    return root


def make_docci(root: Path) -> Path:
    entries = [
        {
            "example_id": f"{split}_{i:05d}",
            "split": split,
            "image_file": f"{split}_{i:05d}.jpg",
            "description": said(i) if split == "test" else "no",
        }
        for split in ("train", "test", "qual_dev")
        for i in range(NUM)
    ]
    write_lines(root / "docci_descriptions.jsonlines", entries)
    write_pictures(root / "images", [f"test_{i:05d}.jpg" for i in range(NUM)])
    return root


def make_sharegpt4v(root: Path, *, whole: bool = False) -> Path:
    """In nested folders, as SA-1B's tars unpack."""
    entries = [
        {
            "id": i,
            "image": f"sam/images/sa_{i}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe."},
                {"from": "gpt", "value": said(i)},
            ],
        }
        for i in range(NUM)
    ]
    name = "share-captioner_coco_lcs_sam_1246k_1107.json" if whole else "share4v_sam_10k.json"
    write_json(root / name, entries)
    names = [f"sa_00000{i % 3}/images/sa_{i}.jpg" for i in range(NUM)]
    write_pictures(root, names)
    return root


def make_urban1k(root: Path) -> Path:
    """Files whose names don't sort as their numbers; one begins with a byte order mark."""
    for i in range(NUM):
        path = root / "Urban1k" / "caption" / f"{i + 1}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said(i), encoding="utf-8-sig" if i == 2 else "utf-8")
    write_pictures(root / "Urban1k" / "image", [f"{i + 1}.jpg" for i in range(NUM)])
    return root


def make_karpathy(root: Path, *, coco: bool) -> Path:
    """Five captions an image, of which the last is right; a sixth of one is to be left out."""
    entries = []
    for i in range(NUM):
        texts = ["A view of 3.5 m."] * 3 + [f"Is it thing{(i + 1) % NUM}?", said(i)]
        texts += [f"thing{i} too many"] if i == 0 else []
        entry = {"filename": f"COCO_val2014_{i:012d}.jpg" if coco else f"{1000 + i}.jpg"}
        entry |= {"filepath": "val2014"} if coco else {}
        sentences = [{"raw": text, "tokens": []} for text in texts]
        entries.append({**entry, "split": "test", "sentences": sentences})
    other = {**entries[0], "split": "restval", "filename": "not_there.jpg"}
    name = "dataset_coco.json" if coco else "dataset_flickr30k.json"
    write_json(root / "caption_datasets" / name, {"images": [other, *entries], "dataset": "x"})
    folder = root / ("val2014" if coco else "flickr30k-images")
    write_pictures(folder, [str(entry["filename"]) for entry in entries])
    return root


def make_imagenet(root: Path, *, v2: bool, num_classes: int = 1000) -> Path:
    """An image a class; folders sort otherwise than their numbers."""
    classes, _ = imagenet_names()
    for index, (wnid, _) in enumerate(classes[:num_classes]):
        if v2:
            path = root / "imagenetv2-matched-frequency-format-val" / str(index) / "a.jpeg"
        else:
            path = root / "val" / wnid / f"ILSVRC2012_val_{index:08d}.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(index % NUM))
    return root


def make_cifar(root: Path, *, fine: bool) -> Path:
    """As Python 2 pickled it; the last label is wrong."""
    num = NUM if fine else 10
    pixels = np.stack([np.asarray(decode(picture(i)).resize((32, 32))) for i in range(num)])
    data = pixels.transpose(0, 3, 1, 2).reshape(num, -1)
    names = ["aquarium_fish", *(f"thing{i}" for i in range(1, num))]
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    labels = {"fine_labels" if fine else "labels": [*range(num - 1), 0]}
    test = folder / ("test" if fine else "test_batch")
    test.write_bytes(pickle.dumps({"data": data, **labels}, protocol=2))
    meta = {"fine_label_names" if fine else "label_names": names}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return root
