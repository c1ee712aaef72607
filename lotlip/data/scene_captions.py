"""The captions of a scene: short ones like web alt-texts, and long ones that tell everything.

Nouns, colours, backgrounds and weathers of the long captions all occur in short captions too, so
that a model trained on short captions alone does not fail at long ones for lack of words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:  # scenes.py imports this file to make samples
    from lotlip.data.scenes import Group, Scene

SYNONYMS = {
    "castle": "fortress",
    "boat": "sailboat",
    "tree": "oak",
    "car": "automobile",
    "fish": "trout",
    "house": "cottage",
    "rocket": "spaceship",
    "cat": "kitten",
    "bird": "sparrow",
    "mug": "cup",
    "flower": "blossom",
    "chair": "seat",
    "mushroom": "toadstool",
    "guitar": "lute",
    "airplane": "plane",
    "umbrella": "parasol",
}
IRREGULAR_PLURALS = {"fish": "fish", "trout": "trout", "fortress": "fortresses"}

SHORT_SYNONYM_SHARE = 0.20
LONG_SYNONYM_SHARE = 0.35

ALT_TEXTS = (
    *("{noun}", "{a_noun}", "the {noun}", "nice {noun} photo", "{noun} picture"),
    *("image of {a_noun}", "photo of {a_noun}", "a picture of {a_noun}", "scene with {a_noun}"),
)
COLOUR_TEXTS = ("{noun}", "{a_noun}", "the {noun}", "photo of {a_noun}")

SHORT_BACKGROUNDS = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "desert": "in a desert",
    "snowfield": "on a snowfield",
    "city": "in a city",
    "lake": "by a lake",
    "mountains": "in the mountains",
    "forest": "in a forest",
}
SHORT_WEATHERS = {
    "sunny": ("on a sunny day", "in the sun", "in sunny weather"),
    "cloudy": ("on a cloudy day", "under a cloudy sky", "in cloudy weather"),
    "rainy": ("on a rainy day", "in the falling rain", "in rainy weather"),
    "night": ("at night", "under the night sky", "on a dark night"),
    "sunset": ("at sunset", "under a sunset sky"),
    "rainbow": ("under a rainbow", "with a rainbow"),
}

SALIENT_POSITIONS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
SALIENT_SENTENCES = (
    "the picture shows {a_noun} {position}.",
    "there is {a_noun} {position} of the scene.",
    "{a_noun} is {position} of the image.",
    "{position} we see {a_noun}.",
)
SALIENT_FIRST_SENTENCES = (
    "the picture shows {a_noun}.",
    "this is a photo of {a_noun}.",
    "the image is of {a_noun}.",
)
SALIENT_SECOND_SENTENCES = (
    "the {noun} is {position}.",
    "the {noun} can be seen {position}.",
    "{position} of the scene is the {noun}.",
)
GROUP_SENTENCES = (
    "{nouns} {be} at the {cell}.",
    "there {be} {nouns} at the {cell}.",
    "at the {cell} {be} {nouns}.",
    "{nouns} can be seen at the {cell}.",
)
BACKGROUND_SENTENCES = (
    "the scene is {place}.",
    "all of this is {place}.",
    "the picture was taken {place}.",
)
WEATHER_SENTENCES = {
    "sunny": ("it is a sunny day.", "the weather is sunny.", "the sun is in the sky."),
    "cloudy": ("it is a cloudy day.", "the weather is cloudy.", "the sky is cloudy."),
    "rainy": ("it is a rainy day.", "the weather is rainy.", "rain is falling from the sky."),
    "night": ("it is night.", "the scene is under a dark night sky.", "this is seen at night."),
    "sunset": ("it is sunset.", "the photo was taken at sunset.", "there is a sunset in the sky."),
    "rainbow": ("there is a rainbow.", "a rainbow is in the sky.", "we see a rainbow in the sky."),
}
EMPTY_SENTENCES = (
    "it is a nice photo.",
    "there is a lot to see.",
    "this is what the image shows.",
    "we can see all of it.",
)


class Draws(Protocol):
    """What captions need of a numpy generator."""

    def integers(self, number: int, /) -> Any: ...

    def random(self) -> float: ...

    def permutation(self, number: int, /) -> Any: ...


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"; right for every word of this file, not for all of English."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def short_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A caption of about 3.7 words, and the facts it states, for `is_true_of`.

    5% are noise such as "img 4032", 35% name the class, 30% its colour too, 30% one thing more
    about the scene.
    """
    form = rng.random()
    if form < 0.05:
        return f"img {rng.integers(1000, 10000)}", {}
    noun = _noun(scene.kind, SHORT_SYNONYM_SHARE, rng)
    facts: dict[str, Any] = {"kind": scene.kind}
    if form < 0.40:
        return _fill(ALT_TEXTS, rng, noun=noun, a_noun=with_article(noun)), facts
    if form < 0.70 or rng.random() < 0.40:
        noun = f"{scene.colour} {noun}"
        facts["colour"] = scene.colour
    if form < 0.70:
        return _fill(COLOUR_TEXTS, rng, noun=noun, a_noun=with_article(noun)), facts
    context, more_facts = _context(scene, rng)
    subject = noun if rng.random() < 0.5 else with_article(noun)
    return f"{subject} {context}", {**facts, **more_facts}


def long_caption(scene: Scene, rng: Draws) -> str:
    """Five to nine sentences with everything there is in the scene, mostly in natural order."""
    first = _salient_sentences(scene, rng)
    rest = [_group_sentence(group, rng) for group in scene.groups]
    rest.append(_fill(BACKGROUND_SENTENCES, rng, place=SHORT_BACKGROUNDS[scene.background]))
    rest.append(_fill(WEATHER_SENTENCES[scene.weather], rng))
    if rng.random() < 0.40:
        rest.append(_fill(EMPTY_SENTENCES, rng))
    order = rng.random()
    if order < 0.50:
        sentences = first + rest
    elif order < 0.80:
        sentences = first + [rest[i] for i in rng.permutation(len(rest))]
    else:
        sentences = first + rest
        sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def is_true_of(facts: Mapping[str, Any], scene: Scene) -> bool:
    """Whether all the facts of a short caption hold in the scene.

    `kind` and `colour` are about the salient object; `group` about any group, and only as far as
    it says. A noise caption states nothing ({}), so it is true of every scene: leave it out where
    that makes no sense.
    """
    for name in ("kind", "colour", "background", "weather"):
        if name in facts and facts[name] != getattr(scene, name):
            return False
    stated = facts.get("group", {})
    return not stated or any(
        all(getattr(group, name) == value for name, value in stated.items())
        for group in scene.groups
    )


def _context(scene: Scene, rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """One thing about the scene beside its salient object, in words and as facts."""
    topic = rng.random()
    if topic < 0.35:
        return SHORT_BACKGROUNDS[scene.background], {"background": scene.background}
    if topic < 0.60:
        return _fill(SHORT_WEATHERS[scene.weather], rng), {"weather": scene.weather}
    group = scene.groups[rng.integers(len(scene.groups))]
    stated: dict[str, Any] = {"kind": group.kind}
    if rng.random() < 0.5:
        stated["colour"] = group.colour
    if group.count > 1:  # "a tree" is true of two trees as well, so one is not counted
        stated["count"] = group.count
    link = "and" if rng.random() < 0.5 else "with"
    noun = _noun(group.kind, SHORT_SYNONYM_SHARE, rng)
    return f"{link} {_counted(noun, stated.get('colour', ''), group.count)}", {"group": stated}


def _salient_sentences(scene: Scene, rng: Draws) -> list[str]:
    """One sentence, or (60%) one that names the salient object and one that places it."""
    position = SALIENT_POSITIONS[scene.position]
    a_noun = with_article(f"{scene.colour} {_noun(scene.kind, LONG_SYNONYM_SHARE, rng)}")
    if rng.random() < 0.40:
        return [_fill(SALIENT_SENTENCES, rng, a_noun=a_noun, position=position)]
    noun = _noun(scene.kind, LONG_SYNONYM_SHARE, rng)
    return [
        _fill(SALIENT_FIRST_SENTENCES, rng, a_noun=a_noun),
        _fill(SALIENT_SECOND_SENTENCES, rng, noun=noun, position=position),
    ]


def _group_sentence(group: Group, rng: Draws) -> str:
    nouns = _counted(_noun(group.kind, LONG_SYNONYM_SHARE, rng), group.colour, group.count)
    be = "is" if group.count == 1 else "are"
    return _fill(GROUP_SENTENCES, rng, nouns=nouns, be=be, cell=group.cell)


def _noun(kind: str, synonym_share: float, rng: Draws) -> str:
    return SYNONYMS[kind] if rng.random() < synonym_share else kind


def _counted(noun: str, colour: str, count: int) -> str:
    """The noun phrase of one or two objects; an empty colour is left out."""
    if count == 1:
        return with_article(f"{colour} {noun}".strip())
    return " ".join(["two", colour, IRREGULAR_PLURALS.get(noun, f"{noun}s")]).replace("  ", " ")


def _fill(templates: Sequence[str], rng: Draws, **words: str) -> str:
    return templates[int(rng.integers(len(templates)))].format(**words)
