"""Published benchmarks in their authors' layouts, by a model whose answers are worked out here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from published_sets import (
    NUM,
    ByHand,
    make_cifar,
    make_dci,
    make_docci,
    make_iiw,
    make_imagenet,
    make_karpathy,
    make_sharegpt4v,
    make_urban1k,
    said,
)

from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.evaluate.published.measure import (
    classification,
    retrieval,
    variant_retrieval,
    variants_of,
)
from lotlip.evaluate.published.sets import Images, Labelled, Pairs
from lotlip.evaluate.published.suite import PUBLISHED, read_published
from lotlip.evaluate.zero_shot import classifier

MODEL = ByHand()
HOW: dict[str, Any] = {"context_length": 128, "official": False}


def read(root: Path, name: str, *, official: bool = False) -> Pairs | Labelled:
    return read_published(FolderStore(root), name, official=official, partial=True)


def seen(images: Images) -> torch.Tensor:
    encoded = [images.read(place) for place in range(len(images.names))]
    return MODEL.embed_images(encoded, images.names)


def recalls(pairs: Pairs | Labelled, *, official: bool) -> dict[str, Fraction]:
    assert isinstance(pairs, Pairs)
    texts, _ = MODEL.embed_texts(pairs.texts, **HOW)
    answers, _ = retrieval(
        pairs, seen(pairs.images), texts, duplicates=not official, by_length=False
    )
    return {name: Fraction(int(one.hits_Q.sum()), len(one.hits_Q)) for name, one in answers.items()}


LONG: list[tuple[str, Callable[[Path], Path]]] = [
    ("dci", make_dci),
    ("iiw", make_iiw),
    ("iiw", partial(make_iiw, copied=False)),
    ("docci", make_docci),
    ("sharegpt4v-1k", make_sharegpt4v),
    ("sharegpt4v-10k", partial(make_sharegpt4v, whole=True)),
    ("urban1k", make_urban1k),
]


@pytest.mark.parametrize("name, make", LONG)
@pytest.mark.parametrize("official", [False, True])
def test_long_texts_find_what_they_should(tmp_path: Path, name: str, make: Any, official: bool):
    pairs = read(make(tmp_path), name, official=official)
    found = recalls(pairs, official=official)
    first_lines = name == "urban1k" and official  # so one text says nothing
    assert found["text_to_image_r1"] == Fraction(10 if first_lines else 11, 12)
    assert found["text_to_image_r10"] == found["text_to_image_r1"], "the others tie with all"
    # Nobody speaks of one image, and two texts of the next.
    assert found["image_to_text_r1"] == Fraction(10, 12)
    assert found["image_to_text_r5"] == Fraction(11, 12)


def test_official_captions_are_cut_at_each_full_stop_and_clean_ones_are_whole(tmp_path: Path):
    make_docci(tmp_path)
    clean, official = (read(tmp_path, "docci", official=official) for official in (False, True))
    assert isinstance(clean, Pairs)
    assert isinstance(official, Pairs)
    assert clean.texts[0] == said(0)
    assert official.texts[0] == "A view of thing0 of 3. 5 m. Behind it, e. g. by Mr. X, is more"
    assert clean.digest != official.digest


def test_long_dci_has_no_short_captions_and_equal_ones_are_right_for_each_other(tmp_path: Path):
    make_dci(tmp_path)
    pairs = read(tmp_path, "long-dci")
    assert isinstance(pairs, Pairs)
    assert len(pairs.texts) == 11, "one has none"
    found = recalls(pairs, official=False)
    assert found["text_to_image_r1"] == Fraction(1, 11), "ten are equal, and tie with the eleventh"
    assert found["text_to_image_r5"] == 1
    assert found["image_to_text_r1"] == 1
    official = recalls(read(tmp_path, "long-dci", official=True), official=True)
    assert official["text_to_image_r10"] == Fraction(1, 11)
    assert official["image_to_text_r1"] == Fraction(1, 11)
    assert official["image_to_text_r10"] == 1


@pytest.mark.parametrize("name", ["mscoco", "flickr30k"])
def test_images_have_five_captions_each(tmp_path: Path, name: str):
    make_karpathy(tmp_path, coco=name == "mscoco")
    pairs = read(tmp_path, name)
    assert isinstance(pairs, Pairs)
    assert (len(pairs.texts), len(pairs.images.names)) == (60, 12)
    assert "too many" not in " ".join(pairs.texts)
    found = recalls(pairs, official=False)
    assert found["text_to_image_r1"] == Fraction(36 + 11, 60), "36 equal ones fit all images"
    assert found["image_to_text_r1"] == 0, "of each the one before speaks, too"
    assert found["image_to_text_r5"] == 1
    found = recalls(read(tmp_path, name, official=True), official=True)
    assert found["text_to_image_r10"] == Fraction(11, 60)
    assert found["image_to_text_r5"] == Fraction(11, 12)


def test_what_a_model_reads_of_a_caption_is_found_out(tmp_path: Path):
    make_dci(tmp_path)
    pairs = read(tmp_path, "dci")
    assert isinstance(pairs, Pairs)
    changed = variants_of(pairs.texts)
    shares = {}
    for name, texts in changed.items():
        there = [text for text in texts if text]
        if there:
            features, _ = MODEL.embed_texts(there, **HOW)
            one = variant_retrieval(pairs, texts, seen(pairs.images), features)
            shares[name] = Fraction(int(one.hits_Q.sum()), len(one.hits_Q))
    assert shares == {
        "headless": Fraction(1, 11),  # one image has a single sentence, one is told of later
        "moved": Fraction(10, 11),
        "sentence_1": Fraction(10, 12),
        "sentence_2": Fraction(1, 11),
    }


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2"])
def test_folders_are_classes_by_their_names_not_by_their_order(tmp_path: Path, name: str):
    make_imagenet(tmp_path, v2=name == "imagenet-v2")
    labelled = read(tmp_path, name)
    assert isinstance(labelled, Labelled)
    assert sorted(labelled.labels) == list(range(1000))
    for place in (0, 1, 2, 500):
        red = seen(labelled.images.part(place, place + 1)).argmax()
        assert red == labelled.labels[place] % NUM
    assert len(labelled.prompts) == 1000
    assert labelled.prompts[0][:2] == ["a bad photo of a tench.", "a photo of many tench."]
    assert {len(prompts) for prompts in labelled.prompts} == {80}
    (next(tmp_path.rglob("*.[jJ]*"))).unlink()
    with pytest.raises(DataError, match=r"images of 999 of 1,000 classes, none in a folder"):
        read(tmp_path, name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_as_it_was_pickled(tmp_path: Path, name: str):
    make_cifar(tmp_path, fine=name == "cifar100")
    labelled = read(tmp_path, name)
    assert isinstance(labelled, Labelled)
    assert labelled.prompts[0][:2] == [
        "a photo of a aquarium fish.",
        "a blurry photo of a aquarium fish.",
    ]
    assert {len(set(prompts)) for prompts in labelled.prompts} == {18}
    classes = classifier(lambda texts: MODEL.embed_texts(texts, **HOW)[0], labelled.prompts)
    found = classification(labelled, seen(labelled.images), classes)
    assert found["top1"].hits_Q.tolist() == [1.0] * 11 + [0.0]
    assert found["top5"].hits_Q.sum() == 12


def test_a_pickle_that_wants_more_than_arrays_is_refused(tmp_path: Path):
    make_cifar(tmp_path, fine=False)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps(Path("/etc/passwd")))
    with pytest.raises(DataError, match=r"is damaged or cut \(MD5 [0-9a-f]{32}, should be 40351d"):
        read(tmp_path, "cifar10")


def _remove(root: Path, pattern: str) -> None:
    found = next(iter(sorted(root.rglob(pattern))))
    found.unlink()


def _cut(root: Path, pattern: str) -> None:
    found = next(iter(sorted(root.rglob(pattern))))
    found.write_bytes(found.read_bytes()[:-20])


@pytest.mark.parametrize(
    "name, make, harm, told",
    [
        ("dci", make_dci, lambda r: _remove(r, "sa_3.jpg"), r"lacks 1 of 12 images: photos/sa_3"),
        ("dci", make_dci, lambda r: _remove(r, "00002-*"), r"lacks 1 of 12 annotations: .*/00002"),
        ("dci", make_dci, lambda r: _cut(r, "00002-*"), r"00002-data\.json is damaged or cut: "),
        ("dci", make_dci, lambda r: _remove(r, "splits.json"), r"lacks 1 of 1 files: splits\.json"),
        ("iiw", make_iiw, lambda r: _cut(r, "data.jsonl"), r"data\.jsonl, line 4 is damaged"),
        (
            "docci",
            make_docci,
            lambda r: _remove(r, "*.jpg"),
            r"images/test_00000\.jpg; get it from",
        ),
        (
            "urban1k",
            make_urban1k,
            lambda r: _remove(r, "4.jpg"),
            r"image/4\.jpg; get it from https",
        ),
        ("urban1k", lambda r: r, lambda r: None, r"is empty or does not exist; get it from https"),
        (
            "mscoco",
            partial(make_karpathy, coco=True),
            lambda r: _remove(r, "dataset_coco.json"),
            r"dataset_coco\.json; get it from https://cs\.stanford\.edu",
        ),
    ],
)
def test_what_is_missing_is_one_line_that_says_where_to_get_it(
    tmp_path: Path, name: str, make: Any, harm: Any, told: str
):
    harm(make(tmp_path))
    with pytest.raises(DataError, match=told) as error:
        read(tmp_path, name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"benchmark {name}: ")
    assert PUBLISHED[name].source in str(error.value)


def test_half_of_a_benchmark_is_no_benchmark(tmp_path: Path):
    make_dci(tmp_path)
    told = r"has 12 images and 12 texts, the whole is 7,805 and 7,805: --partial takes what"
    with pytest.raises(DataError, match=told):
        read_published(FolderStore(tmp_path), "dci", official=False)


def test_two_copies_of_a_file_are_told(tmp_path: Path):
    make_sharegpt4v(tmp_path)
    (tmp_path / "sa_000001" / "images" / "sa_3.jpg").write_bytes(b"another")
    with pytest.raises(DataError, match=r"has sa_3\.jpg more than once: sa_000000.* and sa_000001"):
        read(tmp_path, "sharegpt4v-1k")
