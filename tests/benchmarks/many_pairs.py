"""All figures of a retrieval benchmark of 100,000 images and texts: time and memory.

Run by itself, `python many_pairs.py [NUMBER]`; the yardstick is the matrix of scores, which others
build whole (computed, not built: it does not fit here).
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch.nn import functional as F

from lotlip.data.store import FolderStore
from lotlip.evaluate.published.measure import retrieval
from lotlip.evaluate.published.sets import Pairs, StoredImages

WIDTH = 512
_NOISE = 6.0  # about half of the texts find another image first


def main(num: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image_ND = F.normalize(torch.randn(num, WIDTH, generator=generator), dim=1)
    noise_ND = F.normalize(torch.randn(num, WIDTH, generator=generator), dim=1)
    text_ND = F.normalize(image_ND + _NOISE * noise_ND, dim=1)
    del noise_ND
    names = [str(place) for place in range(num)]
    # Of various lengths; every thousandth text is that of the one before.
    texts = [f"{place - (place % 1000 == 1)} " + "word " * (place % 230) for place in range(num)]
    pairs = Pairs(StoredImages(FolderStore("."), names, names), texts, range(num), names)
    before_mib = _peak_mib()
    began = time.perf_counter()
    answers, _ = retrieval(pairs, image_ND, text_ND, official=False, by_length=True)
    shares = {name: one.interval().value for name, one in answers.items()}
    took_s = time.perf_counter() - began
    after_mib, features_mib = _peak_mib(), 2 * num * WIDTH * 4 / 2**20
    print(
        f"{num:,} x {num:,}, D = {WIDTH}: {took_s:.0f} s, peak {after_mib:,.0f} MiB, "
        f"{after_mib - before_mib:,.0f} above features and texts (features alone "
        f"{features_mib:,.0f}); a matrix of scores {num * num * 4 / 2**20:,.0f} MiB; "
        f"text to image recall@1 {shares['text_to_image_r1']:.4f}"
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
