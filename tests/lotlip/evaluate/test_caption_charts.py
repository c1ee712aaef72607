"""Captioners side by side, as a picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lotlip.evaluate.caption_charts import _bin_edges, captioners_chart
from lotlip.relabel.profile import CaptionProfile


def profile_of(*captions: str) -> CaptionProfile:
    profile = CaptionProfile(None, lambda text: len(text.split()))
    for caption in captions:
        profile.add(caption, "")
    return profile


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def holds(png: bytes, colour: tuple[int, int, int]) -> bool:
    return bool((pixels(png) == np.array(colour)).all(axis=-1).any())


def test_each_captioner_has_its_colour():
    one, two = profile_of("A castle.", "A boat."), profile_of("$x$ 猫 castle", "", "12 !")
    both = captioners_chart({"a": one, "b": two}, unit="words", title="$\\nonsense$ 猫")
    alone = captioners_chart({"a": one}, unit="words", title="t")
    blue, orange = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
    assert holds(both, blue)
    assert holds(both, orange)
    assert not holds(alone, orange)


def test_a_figure_of_nothing_says_so():
    assert (pixels(captioners_chart({}, unit="words", title="empty")) < 255).any()
    assert (pixels(captioners_chart({"a": profile_of()}, unit="words", title="")) < 255).any()


def test_the_bins_of_whole_numbers_hold_equally_many():
    edges = _bin_edges(np.arange(120))
    widths = np.diff(edges)
    assert set(widths) == {3.0}
    assert len(widths) <= 50
    assert edges[0] == -0.5
