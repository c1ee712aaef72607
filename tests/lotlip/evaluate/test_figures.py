from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from lotlip.evaluate.figures import (
    RIGHT_COLOUR,
    Hit,
    arms_chart,
    contact_sheet,
    curves,
    retrieval_sheet,
)
from lotlip.evaluate.retrieval import Interval

LONG = " ".join(["A red castle stands between two blue towers on the meadow near a sign."] * 6)
ODD = "a_b $x^2$ 50% {y} \\frac 猫の写真 🐱 \ud800 \x07 <tag>"


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def photo(colour: str = "red", size: tuple[int, int] = (96, 96), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, colour).convert(mode)


def holds(png: bytes, colour: str) -> bool:
    wanted = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
    return bool((pixels(png) == wanted).all(axis=-1).any())


def border_is_white(png: bytes) -> bool:
    page = pixels(png)
    edges = [page[0], page[-1], page[:, 0], page[:, -1]]
    return all((edge == 255).all() for edge in edges)


def test_a_contact_sheet_shows_every_image_and_leaves_a_white_border():
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    png = contact_sheet([photo(c) for c in colours], [LONG] * 5, columns=2, heading="5 samples")
    assert all(holds(png, colour) for colour in colours)
    assert border_is_white(png)


def test_a_longer_title_makes_a_higher_sheet():
    low = contact_sheet([photo()], ["short"], columns=1)
    high = contact_sheet([photo()], [LONG], columns=1)
    assert pixels(high).shape[0] > pixels(low).shape[0]
    assert pixels(high).shape[1] == pixels(low).shape[1]
    assert border_is_white(high)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_and_shape_are_drawn(mode):
    images = [photo(mode=mode), photo(size=(2000, 3), mode=mode), photo(size=(1, 1), mode=mode)]
    assert border_is_white(contact_sheet(images, ["a", "b", ""], columns=3))


def test_every_image_needs_a_title():
    with pytest.raises(ValueError):
        contact_sheet([photo()], [], columns=1)


def test_right_images_are_framed_in_green():
    wrong = retrieval_sheet([(LONG, [Hit(photo(), 0.9, False), Hit(photo(), 0.8, False)])])
    right = retrieval_sheet([(LONG, [Hit(photo(), 0.9, False), Hit(photo(), 0.8, True)])])
    assert holds(right, RIGHT_COLOUR)
    assert not holds(wrong, RIGHT_COLOUR)


def test_rows_may_have_fewer_images_than_others():
    rows = [
        ("a", [Hit(photo("blue"), 1.0, True)] * 4),
        (LONG * 3, [Hit(photo("lime"), 0.5, False)]),
    ]
    png = retrieval_sheet([*rows, ("nothing", [])], heading="test")
    assert holds(png, "blue")
    assert holds(png, "lime")
    assert border_is_white(png)


def test_odd_characters_are_drawn_without_warnings_or_mathematics():
    table = {ODD[:17]: {ODD[:17]: Interval(0.5, 0.4, 0.6)}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contact_sheet([photo()], [ODD], columns=1, heading=ODD)
        retrieval_sheet([(ODD, [Hit(photo(), 0.1, True)])], heading=ODD)
        curves({"$\\nonsense$": {"$\\nonsense$ 猫": [(0, 1)]}}, xlabel="$\\bad$", title="$\\bad$")
        arms_chart({"$\\nonsense$ 猫": {"$\\nonsense$": Interval(0.5, 0.4, 0.6)}}, title="$\\bad$")
        arms_chart(table)


def test_figures_of_nothing_say_so():
    for png in (
        contact_sheet([], [], columns=3, heading="empty"),
        retrieval_sheet([]),
        curves({}, xlabel="step", title="empty"),
        curves({"loss": {}}, xlabel="step", title="empty"),
        arms_chart({"arm": {}}),
    ):
        assert (pixels(png) < 255).any()


def test_a_series_has_the_same_colour_in_every_panel():
    both = curves(
        {"loss": {"a": [(0, 1), (1, 0)], "b": [(0, 2), (1, 1)]}, "recall": {"b": [(0, 0), (1, 1)]}},
        xlabel="step",
        title="two panels",
    )
    page = pixels(both)[: pixels(both).shape[0] * 3 // 4]
    blue = (page == np.array([0x00, 0x72, 0xB2])).all(axis=-1).any(axis=0)
    orange = (page == np.array([0xE6, 0x9F, 0x00])).all(axis=-1).any(axis=0)
    middle = page.shape[1] // 2
    assert blue[:middle].any()
    assert not blue[middle:].any()
    assert orange[middle:].any()


def test_curves_bear_gaps_and_many_series():
    gap = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 0.5)]
    curves({"loss": {"diverged": gap, "empty": []}}, xlabel="step", title="gaps")
    curves({"loss": {f"arm {n}": [(0, n), (1, n)] for n in range(40)}}, xlabel="step", title="many")


def test_a_longer_bar_stands_for_a_higher_value_and_a_missing_one_has_none():
    def blue(table):
        return int((pixels(arms_chart(table)) == np.array([0x00, 0x72, 0xB2])).all(axis=-1).sum())

    low = blue({"a": {"r1": Interval(0.2, 0.2, 0.2)}, "b": {"r1": Interval(0.5, 0.4, 0.6)}})
    high = blue({"a": {"r1": Interval(0.8, 0.8, 0.8)}, "b": {"r1": Interval(0.5, 0.4, 0.6)}})
    missing = blue({"a": {}, "b": {"r1": Interval(0.5, 0.4, 0.6)}})
    assert high > 3 * low > 0
    assert missing == 0
