"""What others published, to stand beside one's own figures: dated, with the source.

Figures of one model differ between papers, by protocol: each row tells its own. Not measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where figures were printed."""

    where: str
    date: str
    protocol: str
    """As far as it is told there."""


@dataclass(frozen=True)
class Reference:
    """Published figures of one model, in per cent."""

    model: str
    source: str
    """A key of SOURCES."""
    recall: Mapping[str, tuple[float, float]]
    """Recall@1 by benchmark: image to text, text to image."""
    recall_5: Mapping[str, tuple[float, float]] | None = None
    """The same for recall@5."""
    top1: Mapping[str, float] | None = None
    """Zero-shot accuracy by benchmark."""


SOURCES: Mapping[str, Source] = {
    "lotlip": Source("README of github.com/wuw2019/LoTLIP at ac95a8d", "2024-11-26", "official"),
    "lotlip-paper": Source(
        "tables of LoTLIP's project page, github.com/wuw2019/lot-lip (arXiv 2410.05249)",
        "2024-10",
        "official; of short texts not released",
    ),
    "fgclip2": Source(
        "FG-CLIP 2, table 4 (arXiv 2510.10921); MSCOCO there is a validation set", "2025-10", "own"
    ),
    "himo": Source("HiMo-CLIP, tables 1 and 2 (AAAI 2026)", "2026", "own"),
    "debias": Source(
        "DeBias-CLIP (arXiv 2602.22419, github.com/TRAILab/DeBias-CLIP at 18a06c9), as quoted by "
        "a report that reproduced it",
        "2026-02",
        "own",
    ),
    "openclip": Source(
        "docs/openclip_results.csv and openclip_retrieval_results.csv of open_clip at f862f86",
        "2024",
        "DataComp's",
    ),
}

REFERENCES: tuple[Reference, ...] = (
    Reference(
        "CLIP B/32 (400M)",
        "lotlip",
        {
            "dci": (43.06, 40.32),
            "iiw": (86.76, 84.15),
            "sharegpt4v-10k": (58.08, 51.77),
            "urban1k": (60.90, 47.00),
        },
    ),
    Reference(
        "CLIP B/16 (400M)",
        "lotlip",
        {
            "dci": (45.45, 43.01),
            "iiw": (88.24, 87.58),
            "sharegpt4v-10k": (60.22, 56.16),
            "urban1k": (67.10, 52.90),
        },
    ),
    Reference(
        "Long-CLIP B/16 (400M + 1M)",
        "lotlip",
        {
            "dci": (51.68, 57.28),
            "iiw": (89.61, 93.20),
            "sharegpt4v-10k": (79.24, 77.06),
            "urban1k": (78.90, 79.50),
        },
    ),
    Reference(
        "LoTLIP B/32 (100M)",
        "lotlip",
        {
            "dci": (59.90, 56.36),
            "iiw": (93.14, 91.83),
            "sharegpt4v-10k": (83.76, 78.97),
            "urban1k": (84.10, 81.80),
        },
    ),
    Reference(
        "LoTLIP B/16 (100M)",
        "lotlip",
        {
            "dci": (64.11, 62.63),
            "iiw": (94.28, 92.65),
            "sharegpt4v-10k": (88.40, 82.72),
            "urban1k": (88.80, 84.80),
        },
    ),
    Reference(
        "LiT (100M)",
        "lotlip-paper",
        {
            "dci": (41.78, 40.90),
            "iiw": (88.07, 82.68),
            "sharegpt4v-1k": (86.00, 80.00),
            "sharegpt4v-10k": (61.41, 50.69),
            "mscoco": (51.92, 32.74),
            "flickr30k": (80.00, 60.86),
        },
        {"mscoco": (75.72, 57.84), "flickr30k": (95.90, 84.62)},
        {"imagenet": 73.70},
    ),
    Reference(
        "LoTLIP (100M)",
        "lotlip-paper",
        {
            "dci": (62.10, 61.06),
            "iiw": (93.95, 92.48),
            "sharegpt4v-1k": (96.50, 95.50),
            "sharegpt4v-10k": (86.84, 81.40),
            "mscoco": (59.66, 38.06),
            "flickr30k": (86.90, 65.22),
        },
        {"mscoco": (81.50, 63.81), "flickr30k": (97.80, 87.98)},
        {"imagenet": 72.16},
    ),
    Reference(
        "LoTLIP (3M)",
        "lotlip-paper",
        {
            "dci": (49.46, 47.82),
            "iiw": (84.97, 83.33),
            "sharegpt4v-1k": (93.20, 90.00),
            "sharegpt4v-10k": (76.49, 69.72),
            "mscoco": (46.56, 31.59),
            "flickr30k": (75.20, 58.20),
        },
        {"mscoco": (72.02, 57.65), "flickr30k": (94.20, 83.58)},
        {"imagenet": 50.34},
    ),
    Reference(
        "Long-CLIP B/16",
        "fgclip2",
        {
            "dci": (51.7, 57.3),
            "sharegpt4v-1k": (94.7, 93.4),
            "mscoco": (57.6, 40.4),
            "flickr30k": (85.9, 70.7),
        },
        top1={"imagenet": 66.8, "imagenet-v2": 61.2},
    ),
    Reference(
        "SigLIP 2 B/16",
        "fgclip2",
        {
            "dci": (32.3, 34.2),
            "sharegpt4v-1k": (66.0, 67.9),
            "mscoco": (71.2, 55.2),
            "flickr30k": (92.6, 78.0),
        },
        top1={"imagenet": 81.2, "imagenet-v2": 74.5},
    ),
    Reference(
        "FG-CLIP 2 B/16",
        "fgclip2",
        {
            "dci": (64.5, 64.9),
            "sharegpt4v-1k": (95.8, 95.4),
            "mscoco": (72.1, 54.5),
            "flickr30k": (94.1, 81.9),
        },
        top1={"imagenet": 79.5, "imagenet-v2": 72.2},
    ),
    Reference(
        "Long-CLIP B/16",
        "himo",
        {"long-dci": (42.2, 48.4), "docci": (63.2, 71.5), "urban1k": (78.9, 79.5)},
    ),
    Reference(
        "LoTLIP B/16 (100M)",
        "himo",
        {"long-dci": (54.5, 53.3), "docci": (73.2, 71.6), "urban1k": (88.8, 84.8)},
    ),
    Reference(
        "HiMo-CLIP B/16",
        "himo",
        {"long-dci": (58.6, 57.1), "docci": (77.8, 79.9), "urban1k": (89.2, 89.6)},
    ),
    Reference(
        "DeBias-CLIP B/16",
        "debias",
        {
            "dci": (68.5, 67.6),
            "long-dci": (57.8, 57.4),
            "docci": (79.7, 80.0),
            "urban1k": (93.1, 93.0),
        },
    ),
    Reference(
        "CLIP B/16 (400M)",
        "openclip",
        {"mscoco": (52.42, 33.09), "flickr30k": (82.20, 62.16)},
        {"mscoco": (76.70, 58.42), "flickr30k": (96.60, 85.72)},
        {"imagenet": 68.34, "imagenet-v2": 61.88, "cifar10": 90.77, "cifar100": 66.95},
    ),
    Reference(
        "SigLIP B/16-224",
        "openclip",
        {"mscoco": (65.74, 47.78), "flickr30k": (89.10, 74.68)},
        {"mscoco": (85.42, 72.44), "flickr30k": (98.00, 92.30)},
        {"imagenet": 76.04, "imagenet-v2": 68.93, "cifar10": 92.34, "cifar100": 72.23},
    ),
)
