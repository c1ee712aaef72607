"""Captions by a LLaVA of a few thousand random weights: the path of a large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest
from tiny_llava import make_tiny_llava

from lotlip.data.scenes import make_sample
from lotlip.errors import CheckpointError, ConfigError
from lotlip.relabel.asking import Answer, GenerationConfig, Place, PromptConfig, make_request
from lotlip.relabel.huggingface import HuggingFaceCaptioner, HuggingFaceConfig, revision_of

PROMPTS = PromptConfig(texts={"one": "the castle", "two": "the garden with two trees"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("tiny"))


def captions(
    model: Path,
    *,
    batch_size: int = 4,
    num: int = 8,
    shorts: Mapping[int, str] | None = None,
    **generation: float,
) -> list[Answer]:
    settings = GenerationConfig(**{"max_tokens": 16, **generation})  # type: ignore[arg-type]
    config = HuggingFaceConfig(model=str(model), batch_size=batch_size)
    captioner = HuggingFaceCaptioner(config, settings, system="", device="cpu")
    samples = [
        dataclasses.replace(make_sample(0, i), short=(shorts or {}).get(i, "a mug"))
        for i in range(num)
    ]
    prompts = PROMPTS if shorts is None else PromptConfig(texts={"short": "{short}"})
    requests = [make_request(one, "s", Place(0, i, 0), prompts) for i, one in enumerate(samples)]
    found: list[Answer] = []

    def keep(answers: list[Answer]) -> Future[None]:
        found.extend(answers)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    captioner.answer((requests[i : i + batch_size] for i in range(0, num, batch_size)), keep)
    return found


def test_each_image_gets_a_caption_that_depends_on_it(tiny: Path):
    answers = captions(tiny)
    assert [answer.place.sample for answer in answers] == list(range(8))
    assert len({answer.text for answer in answers}) > 2
    for answer in answers:
        assert "<" not in answer.text, "no control tokens"
        assert 1 <= answer.output_tokens <= 16
        assert answer.is_whole or answer.output_tokens == 16
        assert answer.input_tokens > 16, "its patches, and the prompt"
        assert not answer.text.startswith(PROMPTS.texts[answer.prompt]), "the prompt is not in it"


def test_a_question_that_the_model_cannot_take_costs_one_caption(tiny: Path):
    whole = captions(tiny, batch_size=4, num=4, shorts={})
    broken = captions(tiny, batch_size=4, num=4, shorts={2: "a sign that says <image>"})
    assert [bool(answer.error) for answer in broken] == [False, False, True, False]
    assert not broken[2].is_final, "another version of the library may take it"
    assert [answer.text for answer in broken if not answer.error] == [
        answer.text for answer in whole if answer.place.sample != 2
    ]


def test_greedy_captions_are_the_same_again(tiny: Path):
    assert captions(tiny) == captions(tiny)


def test_a_batch_that_is_padded_says_what_single_images_say(tiny: Path):
    together = [answer.text for answer in captions(tiny, batch_size=8)]
    alone = [answer.text for answer in captions(tiny, batch_size=1)]
    assert together == alone


def test_drawn_captions_are_the_same_again_too(tiny: Path):
    drawn = captions(tiny, temperature=1.0)
    assert drawn == captions(tiny, temperature=1.0)
    assert [a.text for a in drawn] != [a.text for a in captions(tiny)]


def test_what_is_cut_at_the_most_tokens_is_told(tiny: Path):
    answers = captions(tiny, max_tokens=2)
    assert any(not answer.is_whole and answer.output_tokens == 2 for answer in answers)


def test_a_folder_is_known_by_its_content(tiny: Path, tmp_path: Path):
    revision = revision_of(str(tiny), "", "key")
    assert revision.startswith("sha256:")
    assert revision_of(str(tiny), "", "key") == revision
    other = make_tiny_llava(tmp_path / "other")
    (other / "config.json").write_text("{}")
    assert revision_of(str(other), "", "key") != revision


def test_a_model_that_is_not_there_or_of_another_kind_is_one_line(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"some\.key=/nowhere/x: no such folder"):
        revision_of("/nowhere/x", "", "some.key")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can't be loaded as an image-text-to-text") as error:
        captions(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"captioner\.huggingface\.batch_size=0"):
        HuggingFaceConfig(model="x", batch_size=0)
