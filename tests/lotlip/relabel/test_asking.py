"""What a captioner is asked."""

from __future__ import annotations

import dataclasses

import pytest

from lotlip.data.scenes import make_sample
from lotlip.errors import ConfigError
from lotlip.relabel.asking import GenerationConfig, Place, PromptConfig, make_request

PROMPTS = PromptConfig(texts={name: f"Say it {name}." for name in "abcde"}, per_sample=2)


def test_a_question_is_the_same_whenever_it_is_made():
    sample = make_sample(0, 3)
    first = make_request(sample, "shard-000000.tar", Place(0, 3, 0), PROMPTS)
    assert first == make_request(sample, "shard-000000.tar", Place(0, 3, 0), PROMPTS)
    assert first.image == sample.image
    assert first.text == f"Say it {first.prompt}."


def test_captions_of_a_sample_and_those_asked_for_again_have_prompts_of_their_own():
    sample = make_sample(0, 3)
    places = [Place(ask, 3, draw) for ask in range(2) for draw in range(2)]
    requests = [make_request(sample, "s", place, PROMPTS) for place in places]
    assert len({request.prompt for request in requests}) == 4
    assert len({request.seed for request in requests}) == 4


def test_prompts_and_seeds_differ_between_samples_shards_and_seeds():
    sample = make_sample(0, 3)

    def prompts(shard: str, config: PromptConfig) -> list[str]:
        return [make_request(sample, shard, Place(0, i, 0), config).prompt for i in range(50)]

    assert set(prompts("s", PROMPTS)) == set("abcde")
    assert prompts("s", PROMPTS) != prompts("t", PROMPTS)
    assert prompts("s", PROMPTS) != prompts("s", dataclasses.replace(PROMPTS, seed=1))


def test_a_prompt_may_hold_the_short_caption():
    prompts = PromptConfig(texts={"hint": "An alt-text says: {short}. Describe {what} you see."})
    sample = make_sample(0, 3)
    request = make_request(sample, "s", Place(0, 3, 0), prompts)
    assert request.text == f"An alt-text says: {sample.short}. Describe {{what}} you see."


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: PromptConfig(texts={}), "prompts.texts"),
        (lambda: PromptConfig(texts={"a": " "}), "prompts.texts"),
        (lambda: PromptConfig(per_sample=0), "prompts.per_sample=0"),
        (lambda: PromptConfig(seed=-1), "prompts.seed=-1"),
        (lambda: GenerationConfig(max_tokens=0), "generation.max_tokens=0"),
        (lambda: GenerationConfig(temperature=-1.0), r"generation.temperature=-1\.0"),
        (lambda: GenerationConfig(top_p=0.0), r"generation.top_p=0\.0"),
    ],
)
def test_a_wrong_value_names_its_key(make, key: str):
    with pytest.raises(ConfigError, match=key):
        make()
