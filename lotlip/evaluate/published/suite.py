"""The published benchmarks, with what is known of each, and the protocols they are put by.

One model's figures under two protocols are two results: the same weights of LoTLIP are reported at
64.1 and at 54.5 on "DCI". So a result always comes with the record of how it was asked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lotlip.captions import assemble_official
from lotlip.data.store import Store
from lotlip.evaluate.published import classes, long_texts, short_texts
from lotlip.evaluate.published.files import Files
from lotlip.evaluate.published.sets import Labelled, Pairs

Kind = Literal["long", "short", "classes", "data"]
ProtocolName = Literal["official", "clean"]


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a benchmark."""

    title: str
    kind: Kind
    num_images: int
    """Of the whole."""
    num_texts: int
    """Of classification, the number of classes."""
    files: str
    """What is read."""
    assembly: str
    """What a text is made of."""
    quirk: str = ""
    """What `official` does to the texts."""
    source: str
    """Where to get it."""


@dataclass(frozen=True, kw_only=True)
class Published(About):
    """A benchmark as its authors publish it."""

    read: Callable[[Files], Pairs | Labelled]
    official_text: Callable[[str], str] = assemble_official
    """A text as the authors' data loader hands it to their tokenizer."""
    md5: Mapping[str, str] = field(default_factory=dict)
    """Of files whose sums are published."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a benchmark is put to a model."""

    name: ProtocolName
    """`official` cuts texts as the authors' code does, `clean` leaves them whole."""
    context_length: int
    """Tokens that a text may have; a model that can't read so many reads what it can."""

    @property
    def official(self) -> bool:
        return self.name == "official"

    def __str__(self) -> str:
        return f"{self.name}, {self.context_length} tokens"


PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "official": Protocol(name="official", context_length=128),
    "clean": Protocol(name="clean", context_length=512),
}

_SHAREGPT4V = (
    "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V (captions; the authors' first 10,000 are "
    "dataloaders/share4v/share4v_sam_10k.json of github.com/wuw2019/LoTLIP) and "
    "https://ai.meta.com/datasets/segment-anything (images)"
)


CUT_AT_STOPS = "cut at every full stop, as the authors' data loaders do"
_AS_THEY_ARE = "the authors published no code for it: captions go to the tokenizer as they are"


def _first_line(text: str) -> str:
    return assemble_official(text.split("\n", 1)[0])


_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"

PUBLISHED: Mapping[str, Published] = {
    "dci": Published(
        title="DCI",
        kind="long",
        read=long_texts.dci,
        quirk=CUT_AT_STOPS,
        num_images=7_805,
        num_texts=7_805,
        files="splits.json, annotations/*.json, photos/*.jpg",
        assembly="short_caption, line break, extra_caption; train, valid and test",
        source="https://github.com/facebookresearch/DCI (dci.tar.gz, and sa_000138.tar of SA-1B "
        "into photos/)",
    ),
    "long-dci": Published(
        title="Long-DCI",
        kind="long",
        read=long_texts.long_dci,
        official_text=str,
        quirk=_AS_THEY_ARE,
        num_images=7_602,
        num_texts=7_602,
        files="annotations/*.json, photos/*.jpg",
        assembly="extra_caption, where there is one; the short caption is not in it",
        source="https://github.com/facebookresearch/DCI, of which github.com/ivonajdenkoska/tulip "
        "makes it (dci_long_part.py)",
    ),
    "iiw": Published(
        title="IIW",
        kind="long",
        read=long_texts.iiw,
        quirk=CUT_AT_STOPS,
        num_images=612,
        num_texts=612,
        files="{DOCCI_Test,IIW-400,DCI_Test}/data.jsonl, docci or images, docci_aar or "
        "images_aar, dci or photos",
        assembly="IIW, the human's description",
        source="https://github.com/google/imageinwords/tree/main/datasets (texts), "
        "https://google.github.io/docci and DCI (images)",
    ),
    "docci": Published(
        title="DOCCI",
        kind="long",
        read=long_texts.docci,
        official_text=str,
        quirk=_AS_THEY_ARE,
        num_images=5_000,
        num_texts=5_000,
        files="docci_descriptions.jsonlines, images/test_*.jpg",
        assembly="description; split test",
        source="https://google.github.io/docci",
    ),
    "sharegpt4v-1k": Published(
        title="SV-1k",
        kind="long",
        read=long_texts.sharegpt4v_1k,
        quirk=CUT_AT_STOPS,
        num_images=1_000,
        num_texts=1_000,
        files="share4v_sam_10k.json or share-captioner_coco_lcs_sam_1246k_1107.json, sa_*.jpg",
        assembly="the second turn of the first 1,000 conversations",
        source=_SHAREGPT4V,
    ),
    "sharegpt4v-10k": Published(
        title="SV-10k",
        kind="long",
        read=long_texts.sharegpt4v_10k,
        quirk=CUT_AT_STOPS,
        num_images=10_000,
        num_texts=10_000,
        files="share4v_sam_10k.json or share-captioner_coco_lcs_sam_1246k_1107.json, sa_*.jpg",
        assembly="the second turn of the first 10,000 conversations",
        source=_SHAREGPT4V,
    ),
    "urban1k": Published(
        title="Urban-1k",
        kind="long",
        read=long_texts.urban1k,
        official_text=_first_line,
        num_images=1_000,
        num_texts=1_000,
        files="caption/*.txt, image/*.jpg",
        assembly="the file of the caption",
        quirk=f"{CUT_AT_STOPS}; only the first line of a caption is read",
        source="https://huggingface.co/datasets/BeichenZhang/Urban1k",
    ),
    "mscoco": Published(
        title="MSCOCO",
        kind="short",
        read=short_texts.mscoco,
        official_text=str,
        num_images=5_000,
        num_texts=25_000,
        files="dataset_coco.json, val2014/*.jpg",
        assembly="the first five captions; split test",
        quirk=_AS_THEY_ARE,
        source="https://cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and "
        "https://cocodataset.org (val2014.zip)",
    ),
    "flickr30k": Published(
        title="Flickr30k",
        kind="short",
        read=short_texts.flickr30k,
        official_text=str,
        num_images=1_000,
        num_texts=5_000,
        files="dataset_flickr30k.json, flickr30k-images/*.jpg",
        assembly="five captions; split test",
        quirk=_AS_THEY_ARE,
        source="https://cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and "
        "https://shannon.cs.illinois.edu/DenotationGraph",
    ),
    "imagenet": Published(
        title="ImageNet",
        kind="classes",
        read=classes.imagenet,
        num_images=50_000,
        num_texts=1_000,
        files="val/n*/*.JPEG",
        assembly="80 templates of CLIP, their mean",
        quirk="a full stop within a name separates: St. Bernard",
        source="https://image-net.org (ILSVRC2012_img_val.tar)",
    ),
    "imagenet-v2": Published(
        title="ImageNet-V2",
        kind="classes",
        read=classes.imagenet_v2,
        num_images=10_000,
        num_texts=1_000,
        files="{0..999}/*.jpeg",
        assembly="80 templates of CLIP, their mean",
        quirk="a full stop within a name separates: St. Bernard",
        source="https://imagenetv2.org (matched-frequency)",
    ),
    "cifar10": Published(
        title="CIFAR-10",
        kind="classes",
        read=classes.cifar10,
        num_images=10_000,
        num_texts=10,
        files="cifar-10-batches-py/{test_batch,batches.meta}",
        assembly="18 templates of CLIP, their mean",
        md5={
            "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
            "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        source=f"{_CIFAR} (cifar-10-python.tar.gz)",
    ),
    "cifar100": Published(
        title="CIFAR-100",
        kind="classes",
        read=classes.cifar100,
        num_images=10_000,
        num_texts=100,
        files="cifar-100-python/{test,meta}",
        assembly="18 templates of CLIP, their mean",
        md5={
            "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
        },
        source=f"{_CIFAR} (cifar-100-python.tar.gz)",
    ),
}


def read_published(store: Store, name: str, *, partial: bool = False) -> Pairs | Labelled:
    """A benchmark from its published files, `partial` also where it is not all there.

    Raises: DataError that names what is missing and where to get it.
    """
    about = PUBLISHED[name]
    files = Files(store, name, about.source, partial=partial)
    try:
        found = about.read(files)
    except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
        raise files.wrong(f"{store.uri} is not laid out as published ({error!r})") from error
    num_images = len(found.images.names)
    num_texts = len(found.texts if isinstance(found, Pairs) else found.prompts)
    if num_images == 0:
        raise files.wrong(f"{store.uri} has none of its images, or lists none")
    if isinstance(found, Pairs) and not any(text.strip() for text in found.texts):
        raise files.wrong(f"{store.uri} has captions without a word only")
    whole = about.num_images, about.num_texts
    is_more = num_images > whole[0] or num_texts > whole[1]
    if is_more or ((num_images, num_texts) != whole and not partial):
        raise files.wrong(
            f"{store.uri} has {num_images:,} images and {num_texts:,} texts, the whole is "
            f"{whole[0]:,} and {whole[1]:,}{_fewest(found)}"
            f"{'' if is_more else ': --partial takes what is there'}"
        )
    if not partial:
        _check_sums(files, about.md5)
    return found


def _fewest(found: Pairs | Labelled) -> str:
    """Where images of classes may be missing."""
    if isinstance(found, Pairs):
        return ""
    label, number = min(Counter(found.labels).items(), key=lambda item: item[1])
    folder = found.images.names[found.labels.index(label)].rpartition("/")[0]
    return f" (fewest, {number:,}, in {folder})" if folder else ""


def _check_sums(files: Files, sums: Mapping[str, str]) -> None:
    """Raises: DataError for a file that isn't the published one."""
    for name, md5 in sums.items():
        place = files.find(name)
        content = files.store.read(place)
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise files.wrong(
                f"{files.store.uri}/{place} is not as published (MD5 {found}, should be {md5})"
            )
