"""Captioners of scenes that are like multimodal language models: each with habits and errors.

The long caption of a scene tells all that there is, in any of its phrasings. A captioner says a
thing in its own way always, overlooks some of it, and takes some colours for others.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lotlip.data.scene_captions import long_caption

if TYPE_CHECKING:  # scenes.py imports this file to make samples
    from lotlip.data.scenes import Scene

CAPTIONERS = ("a", "b", "c")
OVERLOOKED_SHARE = 0.3
"""Of the groups."""
WRONG_COLOUR_SHARE = 0.1
"""Of the groups that are told."""


class _Habits:
    """Draws numbers, but for choices among phrasings, which are always the same one."""

    def __init__(self, phrasing: int, rng: np.random.Generator) -> None:
        self._phrasing = phrasing
        self.random, self.permutation = rng.random, rng.permutation

    def integers(self, number: int) -> int:
        return self._phrasing % number


def machine_caption(
    scene: Scene, captioner: str, colours: tuple[str, ...], rng: np.random.Generator
) -> str:
    """What one of CAPTIONERS says of the scene."""
    told = []
    for group in scene.groups:
        if rng.random() < OVERLOOKED_SHARE:
            continue
        if rng.random() < WRONG_COLOUR_SHARE:
            others = [colour for colour in colours if colour != group.colour]
            group = dataclasses.replace(group, colour=others[rng.integers(len(others))])
        told.append(group)
    seen = dataclasses.replace(scene, groups=tuple(told))
    return long_caption(seen, _Habits(CAPTIONERS.index(captioner), rng))
