"""A procedural data set of captioned scenes, in which questions about long captions can be asked
on a laptop.

A scene has one salient object in front of a background, in some weather, and two to four small
groups of other objects. Its short caption names the salient object and at most one thing more; its
long caption tells all. Every sample is a pure function of (seed, index), so shards can be written
in any order and by any number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lotlip.data.sample import Sample
from lotlip.data.scene_captioners import CAPTIONERS, machine_caption
from lotlip.data.scene_captions import (
    SYNONYMS,
    is_true_of,
    long_caption,
    short_caption,
    with_article,
)
from lotlip.data.scene_drawing import draw_jpeg
from lotlip.errors import DataError

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CAPTIONER",
    "CAPTIONERS",
    "CELLS",
    "CLASSES",
    "CLASS_TEMPLATES",
    "COLOURS",
    "POSITIONS",
    "SYNONYMS",
    "WEATHERS",
    "Group",
    "Scene",
    "attributes",
    "class_prompts",
    "draw_scene",
    "is_true_of",
    "label_classes",
    "label_index",
    "make_sample",
]

CLASSES = (
    *("castle", "boat", "tree", "car", "fish", "house", "rocket", "cat"),
    *("bird", "mug", "flower", "chair", "mushroom", "guitar", "airplane", "umbrella"),
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
POSITIONS = ("left", "middle", "right")
BACKGROUNDS = (
    *("meadow", "beach", "desert", "snowfield"),
    *("city", "lake", "mountains", "forest"),
)
WEATHERS = ("sunny", "cloudy", "rainy", "night", "sunset", "rainbow")
CELLS = ("top left", "top middle", "top right", "bottom left", "bottom middle", "bottom right")
"""Where groups may be: above and below the salient object, so that nothing hides anything."""

NUM_GROUPS = (2, 3, 3, 4)
"""Numbers of groups, to draw from evenly: 2 and 4 a quarter each, 3 a half."""

CAPTIONER = "scenes"
"""The name under which a sample keeps the long caption that tells all."""

CLASS_TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "photo of a {}",
    "a picture of a {}",
    "image of a {}",
)
"""Zero-shot templates; `class_prompts` fills them and writes "an" where English wants it."""

ATTRIBUTES: dict[str, int] = {
    "kind": len(CLASSES),
    "colour": len(COLOURS),
    "position": len(POSITIONS),
    "background": len(BACKGROUNDS),
    "weather": len(WEATHERS),
    **{f"cell{cell}_kind": 1 + len(CLASSES) for cell in range(len(CELLS))},
    **{f"cell{cell}_colour": 1 + len(COLOURS) for cell in range(len(CELLS))},
    **{f"cell{cell}_count": 3 for cell in range(len(CELLS))},
}
"""The heads that describe a whole scene and their numbers of classes; 0 in a cell means empty."""


@dataclass(frozen=True)
class Group:
    """One or two small objects of the same kind and colour."""

    kind: str
    colour: str
    count: int
    cell: str


@dataclass(frozen=True)
class Scene:
    """All that captions may tell; `kind`, `colour` and `position` are the salient object's."""

    kind: str
    colour: str
    position: str
    background: str
    weather: str
    groups: tuple[Group, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "groups": [asdict(group) for group in self.groups]}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Scene:
        """The inverse of `to_json`. Raises: DataError where the fields describe no scene."""
        try:
            groups = tuple(Group(**group) for group in fields["groups"])
            scene = Scene(**{**fields, "groups": groups})
            attributes(scene)  # looks up every name
            if any(group.count not in (1, 2) for group in groups):
                raise ValueError("count")
        except (KeyError, TypeError, ValueError) as error:
            message = f"not a scene: {fields}; write the shards again with this version"
            raise DataError(message) from error
        return scene


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene with all its factors drawn independently; its kinds and its cells are distinct."""
    num_groups = NUM_GROUPS[rng.integers(len(NUM_GROUPS))]
    kinds = [CLASSES[i] for i in rng.permutation(len(CLASSES))[: 1 + num_groups]]
    cells = [CELLS[i] for i in np.sort(rng.permutation(len(CELLS))[:num_groups])]
    groups = tuple(
        Group(
            kind=kind,
            colour=COLOURS[rng.integers(len(COLOURS))],
            count=1 if rng.random() < 2 / 3 else 2,
            cell=cell,
        )
        for kind, cell in zip(kinds[1:], cells, strict=True)
    )
    return Scene(
        kind=kinds[0],
        colour=COLOURS[rng.integers(len(COLOURS))],
        position=POSITIONS[rng.integers(len(POSITIONS))],
        background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        weather=WEATHERS[rng.integers(len(WEATHERS))],
        groups=groups,
    )


def make_sample(seed: int, index: int, *, captioners: bool = False) -> Sample:
    """Sample `index` of the data set `seed`, both non-negative: the same bytes whenever it is made.

    `extra` holds the `scene` and the `facts` that the short caption states. With `captioners` it
    has long captions by CAPTIONERS, too; all else is the same.
    """
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng)
    short, facts = short_caption(scene, rng)
    long = {CAPTIONER: long_caption(scene, rng)}
    for place, captioner in enumerate(CAPTIONERS if captioners else ()):
        own_rng = np.random.default_rng([seed, index, 1 + place])
        long[captioner] = machine_caption(scene, captioner, COLOURS, own_rng)
    return Sample(
        key=f"{index:08d}",
        image=draw_jpeg(scene, rng),
        short=short,
        long=long,
        source="lotlip scenes",
        licence="CC0-1.0",
        extra={"scene": scene.to_json(), "facts": facts},
    )


def attributes(scene: Scene) -> dict[str, int]:
    """The scene as one class number for each head of ATTRIBUTES."""
    numbers = dict.fromkeys(ATTRIBUTES, 0)
    numbers["kind"] = CLASSES.index(scene.kind)
    numbers["colour"] = COLOURS.index(scene.colour)
    numbers["position"] = POSITIONS.index(scene.position)
    numbers["background"] = BACKGROUNDS.index(scene.background)
    numbers["weather"] = WEATHERS.index(scene.weather)
    for group in scene.groups:
        cell = CELLS.index(group.cell)
        numbers[f"cell{cell}_kind"] = 1 + CLASSES.index(group.kind)
        numbers[f"cell{cell}_colour"] = 1 + COLOURS.index(group.colour)
        numbers[f"cell{cell}_count"] = group.count
    return numbers


def label_classes() -> list[str]:
    """The "colour class" phrases of zero-shot classification, in the order of `label_index`."""
    return [f"{colour} {kind}" for colour in COLOURS for kind in CLASSES]


def label_index(scene: Scene) -> int:
    """Where the scene's salient object is in `label_classes`."""
    return COLOURS.index(scene.colour) * len(CLASSES) + CLASSES.index(scene.kind)


def class_prompts(phrase: str) -> list[str]:
    """One text for each of CLASS_TEMPLATES about a phrase such as "castle" or "orange castle"."""
    return [
        template.replace("a {}", with_article(phrase)).format(phrase)
        for template in CLASS_TEMPLATES
    ]
