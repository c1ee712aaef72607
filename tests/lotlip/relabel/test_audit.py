"""What captions are kept."""

from __future__ import annotations

import pytest

from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.errors import ConfigError
from lotlip.relabel.audit import (
    AuditConfig,
    faults,
    is_cut,
    is_refusal,
    language,
    normalised,
    num_tokens,
    overlap,
    repetition,
    verdict,
)

GOOD = (
    "The image shows a red castle on a hill. Before it lies a garden with two green trees, and to "
    "the left a small boat floats on a lake."
)


def test_captions_of_scenes_pass():
    audit = AuditConfig(languages=("en",))
    for index in range(200):
        sample = make_sample(0, index)
        assert faults(sample.long[CAPTIONER], sample.short, audit, is_whole=True) == []


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot describe this image.",
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, I am unable to view images.",
        "I cannot see the image. Please upload the image again.",
        "I don't have access to the picture.",
        "No image was provided.",
        "Sure! The image shows a castle.",
        "Here's a detailed description of the image: a castle.",
        "USER: what is it? ASSISTANT: a castle",
        "A castle.<|im_end|>",
    ],
)
def test_refusals_and_chatter_are_found(text: str):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "A sign says that no dogs are allowed. I see a castle.",
        "The user sits before a computer. The assistant at the counter smiles.",
        "A robot with the letters AI on its chest stands on a course made of sand.",
        "A woman looks sorry for herself; she cannot see the sea from here.",
    ],
)
def test_what_only_looks_like_one_is_not(text: str):
    assert not is_refusal(text)


def test_length_counts_words_and_signs():
    assert num_tokens("A red castle, on a hill.") == 8
    audit = AuditConfig(min_tokens=8, max_tokens=9)
    assert faults("A red castle on a hill.", "", audit, is_whole=True) == ["length"]
    assert faults("A red castle, on a hill.", "", audit, is_whole=True) == []
    assert faults("A red castle, on a green hill, far away.", "", audit, is_whole=True) == [
        "length"
    ]


def test_repetition_is_the_share_of_runs_that_were_there():
    assert repetition(GOOD) == 0
    assert repetition("a red castle") == 0
    loop = "the castle is red and " * 20
    assert repetition(loop) == pytest.approx(1 - 5 / 97)
    assert faults(loop + ".", "", AuditConfig(), is_whole=True) == ["repetition"]


def test_what_breaks_off_is_cut():
    assert not is_cut(GOOD)
    assert not is_cut('He says "stop!"\n')
    assert is_cut("The image shows a red castle on a")
    assert faults(GOOD, "", AuditConfig(), is_whole=False) == ["truncation"]


def test_languages_are_told_where_there_is_enough_to_tell():
    assert language(GOOD) == "en"
    german = "Das Bild zeigt ein rotes Schloss auf einem Hügel, davor liegt ein Garten mit Bäumen."
    assert language(german) == "de"
    assert language("castle") == ""
    audit = AuditConfig(languages=("en",), min_tokens=0)
    assert faults(german, "", audit, is_whole=True) == ["language"]
    assert faults("castle.", "", audit, is_whole=True) == []


def test_overlap_is_over_words_that_say_something():
    assert overlap(GOOD, "photo of a castle") == 1.0
    assert overlap(GOOD, "a castle in Ireland") == 0.5
    assert overlap(GOOD, "the") == 1.0
    audit = AuditConfig(min_overlap=0.5)
    assert faults(GOOD, "an old Irish house", audit, is_whole=True) == ["overlap"]


def test_an_empty_caption_fails_that_alone():
    assert faults(" \n", "a castle", AuditConfig(), is_whole=False) == ["empty"]


def test_captions_that_differ_in_case_and_punctuation_say_the_same():
    assert normalised("A  Castle!") == normalised("a castle") == "a castle"


def test_the_strictest_rule_decides():
    audit = AuditConfig(on_fail={"length": "keep", "language": "drop"})
    assert verdict([], audit) == "keep"
    assert verdict(["length", "truncation"], audit) == "keep"
    assert verdict(["length", "repetition"], audit) == "again"
    assert verdict(["repetition", "language"], audit) == "drop"
    assert verdict(["duplicate"], AuditConfig()) == "drop"
    assert verdict(["empty"], AuditConfig()) == "again"


@pytest.mark.parametrize(
    "values, key",
    [
        ({"min_tokens": -1}, "audit.min_tokens=-1"),
        ({"max_repetition": 1.5}, r"audit.max_repetition=1\.5"),
        ({"max_dropped_share": -0.1}, r"audit.max_dropped_share=-0\.1"),
        ({"max_asks": 0}, "audit.max_asks=0"),
        ({"min_similarity": 2.0}, r"audit.min_similarity=2\.0"),
        ({"model": "models:/lotlip@champion"}, "audit.model=models:/lotlip@champion must be an"),
        ({"on_fail": {"lenght": "keep"}}, "audit.on_fail.lenght: rules are length"),
        ({"refusals": ("(",)}, r"audit.refusals: '\('"),
        ({"refusals": ("(?i)sorry",)}, "audit.refusals: "),
    ],
)
def test_a_wrong_value_names_its_key(values, key: str):
    with pytest.raises(ConfigError, match=key):
        AuditConfig(**values)
