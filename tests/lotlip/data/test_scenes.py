from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lotlip.data.sample import Sample, from_members, to_members
from lotlip.data.scene_captions import long_caption, short_caption, with_article
from lotlip.data.scene_drawing import draw_jpeg
from lotlip.data.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    CAPTIONERS,
    CELLS,
    CLASS_TEMPLATES,
    CLASSES,
    COLOURS,
    POSITIONS,
    SYNONYMS,
    WEATHERS,
    Group,
    Scene,
    attributes,
    class_prompts,
    draw_scene,
    is_true_of,
    label_classes,
    label_index,
    make_sample,
)
from lotlip.errors import DataError

NUM_CAPTIONED = 5000

FUNCTION_WORDS = """
a an the this it we all of to at in on by from under there is are be was can see seen shows taken
what lot two left middle right top bottom
"""
"""Words of long captions that short ones may lack: no nouns, colours or weathers are among them."""


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Scene, str, dict, str]]:
    """(scene, short caption, its facts, long caption) without pictures, which would take long."""
    rng = np.random.default_rng(11)
    rows = []
    for _ in range(NUM_CAPTIONED):
        scene = draw_scene(rng)
        rows.append((scene, *short_caption(scene, rng), long_caption(scene, rng)))
    return rows


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(3, index) for index in range(500)]


def singular_words(text: str) -> set[str]:
    plurals: dict[str, str] = {f"{noun}s": noun for pair in SYNONYMS.items() for noun in pair}
    plurals["fortresses"] = "fortress"
    words: list[str] = re.findall(r"[a-z]+", text.lower())
    return {plurals.get(word, word) for word in words}


def a_scene(**changes: object) -> Scene:
    fields: dict = {
        "kind": "castle",
        "colour": "red",
        "position": "left",
        "background": "meadow",
        "weather": "night",
        "groups": (Group("tree", "green", 2, "top left"), Group("fish", "blue", 1, "bottom right")),
    }
    return Scene(**{**fields, **changes})


def picture_of(scene: Scene) -> np.ndarray:
    jpeg = draw_jpeg(scene, np.random.default_rng(0))
    return np.asarray(Image.open(io.BytesIO(jpeg)), dtype=np.float32)


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    first = make_sample(5, 17)
    make_sample(5, 18)
    assert make_sample(5, 17) == first
    assert make_sample(5, 18).image != first.image
    assert make_sample(6, 17).image != first.image
    assert first.key == "00000017"


def test_a_sample_survives_the_shard_format() -> None:
    sample = make_sample(5, 17)
    assert from_members(to_members(sample)) == sample
    assert list(sample.long) == ["scenes"]


def test_the_image_is_a_jpeg_of_96_by_96_rgb(samples: list[Sample]) -> None:
    for sample in samples[:20]:
        with Image.open(io.BytesIO(sample.image)) as image:
            image.load()
            assert (image.format, image.size, image.mode) == ("JPEG", (96, 96), "RGB")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", CLASSES),
        ("colour", COLOURS),
        ("position", POSITIONS),
        ("background", BACKGROUNDS),
        ("weather", WEATHERS),
    ],
)
def test_every_value_of_every_factor_changes_the_picture(field: str, values: tuple) -> None:
    pictures = [picture_of(a_scene(**{field: value})) for value in values]
    for place, picture in enumerate(pictures):
        for other in pictures[:place]:
            num_changed_pixels = (np.abs(picture - other).max(axis=-1) > 40).sum()
            assert num_changed_pixels > 100


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("count", [1, 2])
def test_groups_show_in_their_cell_and_in_no_other(cell: str, count: int) -> None:
    red, white = (
        picture_of(a_scene(groups=(Group("car", colour, count, cell),)))
        for colour in ("red", "white")
    )
    changed = np.abs(red - white).max(axis=-1) > 60
    row, column = cell.split()
    rows = slice(0, 26) if row == "top" else slice(70, 96)
    left = 32 * POSITIONS.index(column)
    inside = changed[rows, left : left + 32].sum()
    assert inside > 30 * count
    assert changed.sum() - inside < 10


def test_scenes_obey_their_rules(captioned: list) -> None:
    for scene, *_ in captioned:
        kinds = [scene.kind, *(group.kind for group in scene.groups)]
        assert len(set(kinds)) == len(kinds)
        assert len({group.cell for group in scene.groups}) == len(scene.groups)
    sizes = [len(scene.groups) for scene, *_ in captioned]
    assert np.bincount(sizes) / NUM_CAPTIONED == pytest.approx([0, 0, 0.25, 0.5, 0.25], abs=0.03)
    counts = [group.count for scene, *_ in captioned for group in scene.groups]
    assert np.mean(np.array(counts) == 1) == pytest.approx(2 / 3, abs=0.02)
    for field, values in (("kind", CLASSES), ("background", BACKGROUNDS), ("weather", WEATHERS)):
        drawn = [getattr(scene, field) for scene, *_ in captioned]
        for value in values:
            assert drawn.count(value) * len(values) / NUM_CAPTIONED == pytest.approx(1, abs=0.25)


def test_a_scene_survives_json(captioned: list) -> None:
    for scene, *_ in captioned[:50]:
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_fields_that_describe_no_scene_are_an_error() -> None:
    fields = a_scene().to_json()
    no_trees = {"kind": "tree", "colour": "red", "count": 0, "cell": "top left"}
    for changes in (
        *({"kind": "dragon"}, {"extra": 1}),
        *({"groups": [{"kind": "tree"}]}, {"groups": [no_trees]}),
    ):
        with pytest.raises(DataError, match="not a scene"):
            Scene.from_json({**fields, **changes})


def test_attributes_tell_the_whole_scene(captioned: list) -> None:
    for scene, *_ in captioned[:300]:
        numbers = attributes(scene)
        assert list(numbers) == list(ATTRIBUTES)
        assert all(0 <= numbers[head] < size for head, size in ATTRIBUTES.items())
        groups = tuple(
            Group(
                CLASSES[numbers[f"cell{cell}_kind"] - 1],
                COLOURS[numbers[f"cell{cell}_colour"] - 1],
                numbers[f"cell{cell}_count"],
                name,
            )
            for cell, name in enumerate(CELLS)
            if numbers[f"cell{cell}_count"]
        )
        assert groups == scene.groups
        assert CLASSES[numbers["kind"]] == scene.kind
        assert COLOURS[numbers["colour"]] == scene.colour
        assert POSITIONS[numbers["position"]] == scene.position
        assert BACKGROUNDS[numbers["background"]] == scene.background
        assert WEATHERS[numbers["weather"]] == scene.weather


def test_facts_of_a_short_caption_are_true_of_its_own_scene(samples: list[Sample]) -> None:
    scenes = [Scene.from_json(sample.extra["scene"]) for sample in samples]
    num_true_elsewhere = 0
    for place, sample in enumerate(samples):
        facts = json.loads(json.dumps(sample.extra["facts"]))
        assert is_true_of(facts, scenes[place])
        assert (facts == {}) == sample.short.startswith("img ")
        num_true_elsewhere += bool(facts) and is_true_of(facts, scenes[place - 1])
    assert num_true_elsewhere < 0.1 * len(samples)


def test_the_words_of_a_short_caption_are_its_facts(captioned: list) -> None:
    for scene, short, facts, _ in captioned:
        words = singular_words(short)
        stated = [
            facts.get("colour"),
            facts.get("background"),
            facts.get("group", {}).get("colour"),
        ]
        for kind in (facts.get("kind"), facts.get("group", {}).get("kind")):
            assert kind is None or words & {kind, SYNONYMS[kind]}
        assert all(word in words for word in stated if word)
        assert words & set(COLOURS) == {word for word in (stated[0], stated[2]) if word}
        assert ("two" in words) == (facts.get("group", {}).get("count") == 2)
        assert ("background" in facts) == bool(words & set(BACKGROUNDS))
        assert facts.get("weather", scene.weather) == scene.weather


def test_one_wrong_fact_makes_a_caption_false() -> None:
    scene = a_scene()
    assert not is_true_of({"kind": "tree"}, scene)
    assert not is_true_of({"kind": "castle", "colour": "blue"}, scene)
    assert not is_true_of({"kind": "castle", "background": "beach"}, scene)
    assert not is_true_of({"kind": "castle", "weather": "sunny"}, scene)
    assert not is_true_of({"group": {"kind": "castle"}}, scene)
    assert not is_true_of({"group": {"kind": "tree", "colour": "blue"}}, scene)
    assert not is_true_of({"group": {"kind": "fish", "count": 2}}, scene)


def test_facts_state_no_more_than_they_say() -> None:
    scene = a_scene()
    assert is_true_of({}, scene)
    assert is_true_of({"group": {"kind": "tree"}}, scene)
    assert is_true_of({"kind": "castle", "group": {"kind": "tree", "count": 2}}, scene)


def test_one_short_caption_in_twenty_is_noise(captioned: list) -> None:
    num_noise = sum(short.startswith("img ") for _, short, _, _ in captioned)
    assert num_noise / NUM_CAPTIONED == pytest.approx(0.05, abs=0.01)


def test_captions_have_the_lengths_they_promise(captioned: list) -> None:
    short_words = [len(short.split()) for _, short, _, _ in captioned]
    assert np.mean(short_words) == pytest.approx(3.7, abs=0.2)
    assert max(short_words) <= 9
    num_sentences = [len(re.findall(r"\.", long)) for *_, long in captioned]
    assert (min(num_sentences), max(num_sentences)) == (5, 9)
    assert np.mean(num_sentences) == pytest.approx(7, abs=0.2)
    num_tokens = [len(re.findall(r"\w+|\.", long)) for *_, long in captioned]
    assert np.mean(num_tokens) == pytest.approx(60, abs=2)
    assert max(num_tokens) <= 85


def test_short_captions_teach_every_noun_colour_and_weather_of_the_long_ones(
    captioned: list,
) -> None:
    short_vocabulary = set[str]().union(*(singular_words(short) for _, short, _, _ in captioned))
    long_vocabulary = set[str]().union(*(singular_words(long) for *_, long in captioned))
    assert long_vocabulary - set(FUNCTION_WORDS.split()) <= short_vocabulary
    things = {*CLASSES, *SYNONYMS.values(), *COLOURS, *BACKGROUNDS, *WEATHERS}
    assert things <= long_vocabulary
    assert not things & set(FUNCTION_WORDS.split())


def test_a_long_caption_names_every_group_with_its_colour_and_cell(captioned: list) -> None:
    for scene, _, _, long in captioned[:1000]:
        sentences = long.split(". ")
        for group in scene.groups:
            told = {group.colour, *group.cell.split(), *(["two"] if group.count == 2 else [])}
            nouns = {group.kind, SYNONYMS[group.kind]}
            words = [singular_words(sentence) for sentence in sentences]
            assert any(told <= found and nouns & found for found in words)
        assert {scene.colour, scene.position, scene.background} <= singular_words(long)


def test_captions_are_grammatical(captioned: list) -> None:
    plurals = "|".join(f"{noun}s" for pair in SYNONYMS.items() for noun in pair)
    for _, short, _, long in captioned:
        for text in (short, long.lower()):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\ban? two\b|[{}]|  ", text)
        assert re.fullmatch(r"([A-Z][a-z ]+\.)( [A-Z][a-z ]+\.)*", long)
        assert not re.search(r"\b[Tt]wo [a-z ]+ is\b|\bis two\b|\bare an? ", long)
        assert not re.search(rf"\b[Aa]n? [a-z]+ ({plurals})\b", long)


def test_label_classes_are_the_colours_times_the_classes() -> None:
    labels = label_classes()
    assert len(set(labels)) == 128
    assert labels[label_index(a_scene())] == "red castle"
    assert labels[label_index(a_scene(colour="white", kind="umbrella"))] == "white umbrella"


def test_prompts_have_the_right_article() -> None:
    assert with_article("orange car") == "an orange car"
    assert len(CLASS_TEMPLATES) == len(set(class_prompts("umbrella"))) == 6
    assert "photo of an umbrella" in class_prompts("umbrella")
    assert "photo of a red umbrella" in class_prompts("red umbrella")


def test_captioners_overlook_and_err_each_with_its_own_phrasing() -> None:
    samples = [make_sample(0, index, captioners=True) for index in range(200)]
    for index in (0, 7):
        plain = make_sample(0, index)
        told = samples[index]
        assert (told.image, told.short, told.extra) == (plain.image, plain.short, plain.extra)
        assert {name: told.long[name] for name in plain.long} == plain.long
    scenes = [Scene.from_json(sample.extra["scene"]) for sample in samples]
    num_groups = sum(len(scene.groups) for scene in scenes)
    openings, overlooked = {}, {}
    for captioner in CAPTIONERS:
        captions = [sample.long[captioner] for sample in samples]
        words = [singular_words(caption.lower()) for caption in captions]
        told = [
            bool({group.kind, SYNONYMS[group.kind]} & of_caption)
            for scene, of_caption in zip(scenes, words, strict=True)
            for group in scene.groups
        ]
        assert sum(told) / num_groups == pytest.approx(0.7, abs=0.08)
        overlooked[captioner] = [place for place, is_told in enumerate(told) if not is_told]
        skies = {"weather is sunny", "a sunny day", "sun is in the sky"}
        openings[captioner] = {sky for sky in skies if any(sky in c.lower() for c in captions)}
    assert sorted(map(len, openings.values())) == [1, 1, 1]
    assert len(set.union(*openings.values())) == 3
    assert len({tuple(places) for places in overlooked.values()}) == 3
    right = [
        any(f"{group.colour} {noun}" in sample.long["a"].lower() for noun in nouns)
        for sample, scene in zip(samples, scenes, strict=True)
        for group in scene.groups
        for nouns in [(group.kind, SYNONYMS[group.kind])]
        if any(noun in sample.long["a"].lower() for noun in nouns)
    ]
    assert 0.80 < sum(right) / len(right) < 0.97
