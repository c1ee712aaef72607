"""Published benchmarks in their authors' layouts, by a model whose answers are worked out here."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from published_sets import (
    ELSEWHERE,
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
    write_json,
    write_lines,
)
from torch.nn.functional import normalize

from lotlip.data.store import FolderStore
from lotlip.errors import DataError
from lotlip.evaluate.published.classes import imagenet_names
from lotlip.evaluate.published.measure import (
    classification,
    retrieval,
    variant_retrieval,
    variants_of,
)
from lotlip.evaluate.published.sets import Images, Labelled, Pairs
from lotlip.evaluate.published.suite import PROTOCOLS, PUBLISHED, read_published
from lotlip.evaluate.questions import RetrievalQuestion, published_question
from lotlip.evaluate.zero_shot import classifier

MODEL = ByHand()
HOW: dict[str, Any] = {"context_length": 128, "official": False}


def read(root: Path, name: str, *, official: bool = False) -> Pairs | Labelled:
    """As the protocol has it."""
    found = read_published(FolderStore(root), name, partial=True)
    protocol = PROTOCOLS["official" if official else "clean"]
    question = published_question(name, found, protocol)
    return question.pairs if isinstance(question, RetrievalQuestion) else found


def seen(images: Images) -> torch.Tensor:
    return MODEL.embed_images(images.read(), images.names)


def recalls(pairs: Pairs | Labelled, *, official: bool) -> dict[str, Fraction]:
    assert isinstance(pairs, Pairs)
    texts, _ = MODEL.embed_texts(pairs.texts, **HOW)
    answers, _ = retrieval(pairs, seen(pairs.images), texts, official=official, by_length=False)
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
def test_long_texts_find_what_they_should(tmp_path: Path, name: str, make: Any):
    found = recalls(read(make(tmp_path), name), official=False)
    assert found["text_to_image_r1"] == Fraction(11, 12)
    assert found["text_to_image_r10"] == found["text_to_image_r1"], "the others tie with all"
    # Nobody speaks of one image, and two texts of the next.
    assert found["image_to_text_r1"] == Fraction(10, 12)
    assert found["image_to_text_r5"] == Fraction(11, 12)


@pytest.mark.parametrize("name, make", LONG)
def test_official_figures_are_those_of_argmax(tmp_path: Path, name: str, make: Any):
    pairs = read(make(tmp_path), name, official=True)
    assert isinstance(pairs, Pairs)
    found = recalls(pairs, official=True)
    scores_TN = MODEL.embed_texts(pairs.texts, **HOW)[0] @ seen(pairs.images).T
    own = torch.arange(NUM)
    for way, scores in (("text_to_image", scores_TN), ("image_to_text", scores_TN.T)):
        assert found[f"{way}_r1"] == Fraction(int((scores.argmax(dim=1) == own).sum()), NUM)
    # One text speaks of the image of another; of Urban-1k's first lines one says nothing.
    assert found["text_to_image_r1"] == Fraction(10 if name == "urban1k" else 11, 12)
    # In DCI the right text of two stands first, in the others the wrong one.
    assert found["image_to_text_r1"] == Fraction(11 if name == "dci" else 10, 12)


def test_official_captions_are_cut_at_each_full_stop_and_clean_ones_are_whole(tmp_path: Path):
    make_dci(tmp_path)
    make_docci(tmp_path)
    clean, official = (read(tmp_path, "dci", official=official) for official in (False, True))
    assert isinstance(clean, Pairs)
    assert isinstance(official, Pairs)
    assert clean.texts[0] == said(0)
    assert official.texts[0] == "A view of thing0 of 3. 5 m. Behind it, e. g. by Mr. X, is more"
    assert clean.digest != official.digest
    # The authors published nothing for it.
    assert read(tmp_path, "docci").digest == read(tmp_path, "docci", official=True).digest


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
    assert official["text_to_image_r1"] == Fraction(2, 11), "the first of those that tie wins"
    assert official["text_to_image_r5"] == Fraction(6, 11)
    assert official["text_to_image_r10"] == Fraction(10, 11)
    assert official["image_to_text_r1"] == Fraction(2, 11)
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
    assert found["text_to_image_r1"] == Fraction(3 + 11, 60), "of equal ones those of the first"
    assert found["text_to_image_r10"] == Fraction(30 + 9 + 12, 60)
    assert found["image_to_text_r1"] == Fraction(1, 12), "its own text is the first that fits"
    assert found["image_to_text_r5"] == Fraction(11, 12)


def test_what_a_model_reads_of_a_caption_is_found_out(tmp_path: Path):
    make_dci(tmp_path)
    pairs = read(tmp_path, "dci")
    assert isinstance(pairs, Pairs)
    images = seen(pairs.images)
    texts, _ = MODEL.embed_texts(pairs.texts, **HOW)
    answers, _ = retrieval(pairs, images, texts, official=False, by_length=False)

    def asked(fits: torch.Tensor) -> dict[str, tuple[Fraction, float]]:
        shares = {}
        for name, changed in variants_of(pairs.texts).items():
            features, _ = MODEL.embed_texts([text for text in changed if text] or ["-"], **HOW)
            found = variant_retrieval(
                pairs, changed, fits, images, features, answers["text_to_image_r1"]
            )
            if found is not None:
                one, change = found
                share = Fraction(int(one.hits_Q.sum()), len(one.hits_Q))
                shares[name] = share, round(11 * change.value)
        return shares

    shares = asked(torch.ones(NUM, dtype=torch.bool))
    assert shares["headless"][1] == -9, "of eleven ten are found as they are"
    assert shares["moved"][1] == 0
    shares = {name: share for name, (share, _) in shares.items()}
    assert shares == {
        "headless": Fraction(1, 11),  # one image has a single sentence, one is told of later
        "moved": Fraction(10, 11),
        "sentence_1": Fraction(10, 12),
        "sentence_2": Fraction(1, 11),
    }
    only = torch.ones(NUM, dtype=torch.bool)
    only[pairs.texts.index(said(0))] = False
    assert asked(only)["sentence_1"][0] == Fraction(9, 11)
    only[:] = False
    only[pairs.texts.index(said(ELSEWHERE))] = True
    assert asked(only)["headless"][0] == 1, "others were cut: nobody knows what a change does"
    assert asked(torch.zeros(NUM, dtype=torch.bool)) == {}


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
    inside = read(next(path for path in tmp_path.iterdir()), name)
    assert inside.digest == labelled.digest, "given the folder itself"
    (next(tmp_path.rglob("*.[jJ]*"))).unlink()
    assert len(read(tmp_path, name).images.names) == 999
    with pytest.raises(DataError, match=r"images of 999 of 1,000 classes, none in a folder"):
        read_published(FolderStore(tmp_path), name)


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2"])
def test_classes_are_told_by_their_names_in_all_templates(tmp_path: Path, name: str):
    make_imagenet(tmp_path, v2=name == "imagenet-v2", num_classes=NUM)
    pictures = sorted(path for path in tmp_path.rglob("*.*") if path.is_file())
    first, last = pictures[0].read_bytes(), pictures[-1].read_bytes()
    pictures[0].write_bytes(last)
    pictures[-1].write_bytes(first)
    labelled = read(tmp_path, name)
    assert isinstance(labelled, Labelled)
    model = ByHand([word for _, word in imagenet_names()[0][:NUM]])
    classes = classifier(lambda texts: model.embed_texts(texts, **HOW)[0], labelled.prompts)
    found = classification(labelled, seen(labelled.images), classes, official=False)
    assert found["top5"].hits_Q.sum() == 10, "two of twelve lie in each other's folders"
    assert found["top1"].hits_Q.sum() == 9, "a hen of the woods, a mushroom, ties with the hen"


def test_classes_of_equal_names_are_right_for_each_other_but_officially_the_first_wins(
    tmp_path: Path,
):
    make_imagenet(tmp_path, v2=True)
    labelled = read(tmp_path, "imagenet-v2")
    assert isinstance(labelled, Labelled)
    named: dict[str, list[int]] = {}
    for number, (_, name) in enumerate(imagenet_names()[0]):
        named.setdefault(name, []).append(number)
    twins = [numbers for numbers in named.values() if len(numbers) > 1]
    assert twins == [[657, 744], [836, 837]], "missile and sunglasses"
    rows = torch.eye(1000)
    for first, second in twins:
        rows[second] = rows[first]
        rows[second, 0] = 1e-6  # as from another batch
    images = rows[torch.tensor([*labelled.labels])]
    clean, official = (classification(labelled, images, rows, official=o) for o in (False, True))
    assert clean["top1"].hits_Q.all()
    labels = torch.tensor([*labelled.labels])
    hits = torch.from_numpy(official["top1"].hits_Q).bool()
    assert labels[~hits].sort().values.tolist() == [744, 837]
    for first, second in twins:
        rows[second] = rows[first]
    assert hits.equal((images @ rows.T).argmax(dim=1) == labels), "as the authors count"
    assert official["top5"].hits_Q.all()


def test_a_sentence_that_is_said_of_two_images_is_right_for_both_whoever_is_cut(tmp_path: Path):
    make_dci(tmp_path)
    pairs = read(tmp_path, "dci")
    assert isinstance(pairs, Pairs)
    pairs = dataclasses.replace(pairs, texts=["A street."] * 2 + [*pairs.texts[2:]])
    images, texts = torch.eye(NUM), torch.eye(NUM)
    texts[:2] = normalize(torch.ones(2, NUM), dim=-1)
    answers, _ = retrieval(pairs, images, texts, official=False, by_length=False)
    whole = answers["text_to_image_r1"]
    for is_second_cut in (False, True):
        asked = torch.tensor([True, not is_second_cut, *[False] * (NUM - 2)])
        tied = torch.zeros(NUM, NUM)
        tied[:2, :2] = 1
        found = variant_retrieval(pairs, pairs.texts, asked, images, tied, whole)
        assert found is not None
        assert found[0].hits_Q.tolist() == [1.0] * (2 - is_second_cut)


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
    found = classification(labelled, seen(labelled.images), classes, official=False)
    num = 12 if name == "cifar100" else 10
    assert found["top1"].hits_Q.tolist() == [1.0] * (num - 1) + [0.0]
    assert found["top5"].hits_Q.sum() == num


def test_a_pickle_that_wants_more_than_arrays_is_refused(tmp_path: Path):
    make_cifar(tmp_path, fine=False)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps(Path("/etc/passwd")))
    with pytest.raises(DataError, match=r"is damaged or cut: .*no business in a data set; get it"):
        read(tmp_path, "cifar10")


def test_files_whose_sums_are_published_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_cifar(tmp_path, fine=False)
    about = PUBLISHED["cifar10"]
    small = dataclasses.replace(about, num_images=10, num_texts=10)
    monkeypatch.setitem(PUBLISHED, "cifar10", small)  # type: ignore[arg-type]
    told = r"test_batch is not as published \(MD5 [0-9a-f]{32}, should be 40351d"
    with pytest.raises(DataError, match=told):
        read_published(FolderStore(tmp_path), "cifar10")


def _remove(root: Path, pattern: str) -> None:
    found = next(iter(sorted(root.rglob(pattern))))
    found.unlink()


def _cut(root: Path, pattern: str) -> None:
    found = next(iter(sorted(root.rglob(pattern))))
    found.write_bytes(found.read_bytes()[:-20])


def _hold(root: Path, pattern: str, content: str) -> None:
    next(iter(sorted(root.rglob(pattern)))).write_text(content)


def _without_sentences(path: Path) -> None:
    content = json.loads(path.read_text())
    content["images"][4]["sentences"] = []
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, make, harm, told",
    [
        ("dci", make_dci, lambda r: _remove(r, "sa_3.jpg"), r"lacks 1 of 12 images: photos/sa_3"),
        ("dci", make_dci, lambda r: _remove(r, "00002-*"), r"lacks 1 of 12 annotations: .*/00002"),
        ("dci", make_dci, lambda r: _cut(r, "00002-*"), r"00002-data\.json is damaged or cut: "),
        ("dci", make_dci, lambda r: _hold(r, "splits.json", "[]"), r"json holds no JSON object;"),
        ("iiw", make_iiw, lambda r: _hold(r, "data.jsonl", "3"), r"an entry without 'image/key'"),
        ("iiw", make_iiw, lambda r: _hold(r, "data.jsonl", ""), r"has 1 empty files: .*/data\.j"),
        (
            "sharegpt4v-1k",
            make_sharegpt4v,
            lambda r: _hold(r, "share*", "[" * 100_000),
            r"10k\.json is damaged: nested too deeply",
        ),
        (
            "sharegpt4v-1k",
            make_sharegpt4v,
            lambda r: _hold(r, "share*", '{"a": 1}'),
            r"10k\.json holds no JSON list",
        ),
        ("urban1k", make_urban1k, lambda r: _hold(r, "3.txt", ""), r"1 empty files: .*/3\.txt;"),
        (
            "flickr30k",
            partial(make_karpathy, coco=False),
            lambda r: _without_sentences(r / "caption_datasets" / "dataset_flickr30k.json"),
            r"flickr30k\.json has no sentence for 1003\.jpg",
        ),
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
        ("long-dci", make_dci, lambda r: _cut(r, "00003-*"), r"00003-data\.json is damaged or cut"),
        ("long-dci", make_dci, lambda r: _remove(r, "sa_5.jpg"), r"lacks 1 of 11 images: .*sa_5"),
        ("iiw", make_iiw, lambda r: _remove(r, "pic_2.jpg"), r"1 of 12 images: docci/pic_2\.jpg"),
        ("sharegpt4v-1k", make_sharegpt4v, lambda r: _remove(r, "sa_7.jpg"), r"images: sa_7\.jpg"),
        (
            "sharegpt4v-10k",
            make_sharegpt4v,
            lambda r: _cut(r, "share*"),
            r"k\.json is damaged or cut",
        ),
        (
            "flickr30k",
            partial(make_karpathy, coco=False),
            lambda r: _remove(r, "1004.jpg"),
            r"lacks 1 of 12 images: flickr30k-images/1004\.jpg",
        ),
        (
            "cifar100",
            partial(make_cifar, fine=True),
            lambda r: _cut(r, "test"),
            r"cifar-100-python/test is damaged or cut",
        ),
        (
            "imagenet-v2",
            partial(make_imagenet, v2=True, num_classes=NUM),
            lambda r: None,
            r"has images of 12 of 1,000 classes, none in a folder imagenetv2-.*/12;",
        ),
        (
            "urban1k",
            make_urban1k,
            lambda r: _remove(r, "4.txt"),
            r"1 of 12 captions: caption/4\.txt",
        ),
        ("long-dci", make_dci, lambda r: _remove(r, "00002-*"), r"1 of 12 annotations: .*/00002"),
        (
            "imagenet",
            partial(make_imagenet, v2=False),
            lambda r: None,
            r"has 1,000 images .* 50,000 and 1,000 \(fewest, 1, in val/n\d+\): --partial",
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
        read_published(FolderStore(tmp_path), name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"benchmark {name}: ")
    assert PUBLISHED[name].source in str(error.value)


def test_what_macs_put_into_archives_and_broken_characters_do_no_harm(tmp_path: Path):
    make_urban1k(tmp_path / "urban")
    for left in ("__MACOSX/Urban1k/caption/._1.txt", "Urban1k/image/._1.jpg"):
        path = tmp_path / "urban" / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    found = read(tmp_path / "urban", "urban1k")
    assert isinstance(found, Pairs)
    assert len(found.texts) == NUM
    entry = {"split": "test", "image_file": "a.jpg", "description": "A cat \ud83d here."}
    write_lines(tmp_path / "docci" / "docci_descriptions.jsonlines", [entry])
    (tmp_path / "docci" / "images").mkdir()
    (tmp_path / "docci" / "images" / "a.jpg").write_bytes(b"image")
    assert len(read(tmp_path / "docci", "docci").digest) == 64


def test_a_caption_that_is_empty_finds_nothing(tmp_path: Path):
    make_urban1k(tmp_path / "urban")
    (tmp_path / "urban" / "Urban1k" / "caption" / "4.txt").write_text(" \n")
    make_docci(tmp_path / "docci")
    captions = tmp_path / "docci" / "docci_descriptions.jsonlines"
    entries = [json.loads(line) for line in captions.read_text().splitlines() if line]
    mine = next(entry for entry in entries if entry["image_file"] == "test_00003.jpg")
    mine["description"] = None
    write_lines(captions, entries)
    for name, root in (("urban1k", "urban"), ("docci", "docci")):
        for official in (False, True):
            pairs = read(tmp_path / root, name, official=official)
            assert isinstance(pairs, Pairs)
            assert (len(pairs.texts), sum(not text.strip() for text in pairs.texts)) == (12, 1)
            right = 9 if name == "urban1k" and official else 10
            assert recalls(pairs, official=official)["text_to_image_r1"] == Fraction(right, 12)


def test_captions_without_a_word_are_not_right_for_each_other(tmp_path: Path):
    pairs = read(make_urban1k(tmp_path), "urban1k")
    assert isinstance(pairs, Pairs)
    blank = dataclasses.replace(pairs, texts=[" ", "", *pairs.texts[2:]])
    found = recalls(blank, official=False)
    assert found["text_to_image_r1"] == Fraction(9, 12), "eleven were found, two are blank"
    assert found["image_to_text_r1"] == Fraction(8, 12)
    for path in tmp_path.rglob("*.txt"):
        path.write_text(" ")
    with pytest.raises(DataError, match="has captions without a word only"):
        read(tmp_path, "urban1k")


def test_half_of_a_benchmark_is_no_benchmark(tmp_path: Path):
    make_dci(tmp_path)
    told = r"has 12 images and 12 texts, the whole is 7,805 and 7,805: --partial takes what"
    with pytest.raises(DataError, match=told):
        read_published(FolderStore(tmp_path), "dci")


def test_a_part_is_what_is_there(tmp_path: Path):
    make_karpathy(tmp_path, coco=False)
    _remove(tmp_path, "1003.jpg")
    pairs = read(tmp_path, "flickr30k")
    assert isinstance(pairs, Pairs)
    assert (len(pairs.images.names), len(pairs.texts)) == (11, 55)
    assert max(pairs.image_of_T) == 10
    assert "1003.jpg" not in " ".join(pairs.names)
    assert pairs.texts[15] == "A view of 3.5 m."
    assert said(4) in pairs.texts
    assert said(3) not in pairs.texts


def test_what_was_not_fetched_or_is_of_another_kind_is_told(tmp_path: Path):
    make_docci(tmp_path)
    (tmp_path / "images" / "test_00003.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"has 1 empty files: images/test_00003\.jpg; get it from"):
        read(tmp_path, "docci")
    write_lines(tmp_path / "docci_descriptions.jsonlines", [{"split": "test", "description": 3}])
    with pytest.raises(DataError, match=r"has an entry without 'image_file'"):
        read(tmp_path, "docci")
    make_dci(tmp_path / "other")
    write_json(tmp_path / "other" / "dci" / "densely_captioned_images" / "splits.json", {"a": 1})
    with pytest.raises(DataError, match=r"is not laid out as published \(TypeError"):
        read(tmp_path / "other", "dci")


def test_the_digest_tells_what_was_asked_wherever_it_lies(tmp_path: Path):
    make_docci(tmp_path / "a")
    make_docci(tmp_path / "b" / "deeper" / "still")
    (tmp_path / "c").symlink_to(tmp_path / "a" / "images")
    found = [read(tmp_path / name, "docci").digest for name in ("a", "b")]
    assert found[0] == found[1]
    (tmp_path / "b" / "deeper" / "still" / "images").rename(tmp_path / "moved")
    (tmp_path / "b" / "images").symlink_to(tmp_path / "moved")
    (tmp_path / "b" / "round").symlink_to(tmp_path / "b")
    assert read(tmp_path / "b", "docci").digest == found[0], "through a link"


def test_two_copies_of_a_file_are_told(tmp_path: Path):
    make_sharegpt4v(tmp_path)
    (tmp_path / "sa_000001" / "images" / "sa_3.jpg").write_bytes(b"another")
    with pytest.raises(DataError, match=r"has sa_3\.jpg more than once: sa_000000.* and sa_000001"):
        read(tmp_path, "sharegpt4v-1k")
