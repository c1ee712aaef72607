import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotlip.captions import (
    CaptionConfig,
    assemble_official,
    draw_captions,
    split_sentences,
    split_sentences_official,
)
from lotlip.data.sample import Sample
from lotlip.errors import ConfigError, DataError


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("A dog. A cat.", ["A dog.", "A cat."]),
        ("a dog. a cat", ["a dog.", "a cat"]),
        ("It is 3.5 m high. It leans.", ["It is 3.5 m high.", "It leans."]),
        ("A pet, e.g. a dog, i.e. Rex.", ["A pet, e.g. a dog, i.e. Rex."]),
        ("A St. Bernard and Mr. X. Dr. Who.", ["A St. Bernard and Mr. X. Dr. Who."]),
        ("The U.S. flag waves. It is big.", ["The U.S. flag waves.", "It is big."]),
        ("A U.S. Army truck.", ["A U.S. Army truck."]),
        ("Made in the U.S. The flag waves.", ["Made in the U.S.", "The flag waves."]),
        ("By J. R. Smith and J. A. Doe. 1920.", ["By J. R. Smith and J. A. Doe.", "1920."]),
        ("The letter A. The wall is red.", ["The letter A.", "The wall is red."]),
        ("Bus No. 5 is red. No. It is not.", ["Bus No. 5 is red.", "No.", "It is not."]),
        ("It is approx. five. Yes.", ["It is approx. five.", "Yes."]),
        ("Well... maybe. Wait... The end.", ["Well... maybe.", "Wait...", "The end."]),
        ("Well… maybe. Wait… The end.", ["Well… maybe.", "Wait…", "The end."]),
        ("What?! Yes! No? Ok", ["What?!", "Yes!", "No?", "Ok"]),
        ('It reads "Stop." A car.', ['It reads "Stop."', "A car."]),
        ("It reads “Stop.” A car.", ["It reads “Stop.”", "A car."]),
        ('"Go!" says the sign. (Left.) Right.', ['"Go!" says the sign.', "(Left.)", "Right."]),
        ("A dog\nA cat\r\n\n  a bird  ", ["A dog", "A cat", "a bird"]),
        ("- a dog\n* a cat\n 1. a bird. It sings", ["a dog", "a cat", "a bird.", "It sings"]),
        ("See example.com/a.png now. Ok.", ["See example.com/a.png now.", "Ok."]),
        ("猫在睡。狗在跑！真的？「是。」好", ["猫在睡。", "狗在跑！", "真的？", "「是。」", "好"]),
        ("Hündchen schläft. Über ihm Vögel.", ["Hündchen schläft.", "Über ihm Vögel."]),
        ("The end. ", ["The end."]),
        (" \n ", []),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_would_end_them(text, sentences):
    assert split_sentences(text) == sentences


texts = st.text(st.sampled_from("ab AI.!?…。\n\t\"')*-1 ,é")) | st.text()


@given(texts)
def test_no_word_of_a_text_is_lost_but_list_markers(text):
    lines = [re.sub(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+(?=\S)", "", line) for line in text.splitlines()]
    sentences = split_sentences(text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    words, expected = " ".join(sentences).split(), " ".join(lines).split()
    assert "".join(words) == "".join(expected)
    if not set("。！？｡") & set(text):  # only a CJK stop ends a sentence inside a word
        assert words == expected


@pytest.mark.parametrize(
    "block",
    ["The dog, e.g. St. Bernard, sleeps here. ", ".", "a.b", '."', "(", " ", "。", "1. ", "St. A"],
)
def test_a_megabyte_of_text_is_split_in_linear_time(block):
    text = block * (1_000_000 // len(block)) + "a"
    started = time.process_time()
    split_sentences(text)
    assert time.process_time() - started < 10  # 0.01 to 1.2 s; a quadratic one takes hours


def test_the_official_splitting_cuts_at_every_full_stop_and_drops_it():
    text = "It is 3.5 m.\nA dog, e.g. Rex</s> The end. "
    assert split_sentences_official(text) == [
        "It is 3", "5 m", "A dog, e", "g", "Rex", "The end"
    ]  # fmt: skip
    assert assemble_official(text) == "It is 3. 5 m. A dog, e. g. Rex. The end"
    assert assemble_official(" . \n") == ""


def sample(**long: str) -> Sample:
    return Sample(key="000012", image=b"", short="a castle. old", long=long)


FIVE = "One a. Two b. Three c. Four d. Five e."
FIVE_SENTENCES = ["One a.", "Two b.", "Three c.", "Four d.", "Five e."]


def draw(sample: Sample, seed: int = 0, **config) -> tuple[list[str], ...]:
    drawn = draw_captions(sample, CaptionConfig(**config), np.random.default_rng(seed))
    for one in drawn[int(config.get("short_caption", True)) :]:
        captioner, start, stop = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", one.pick).groups()
        sentences = split_sentences(sample.long[captioner])
        assert one.caption == sentences[int(start) : int(stop)]
    return tuple(one.caption for one in drawn)


def test_the_short_caption_comes_first_in_its_sentences():
    assert draw(sample(llava=FIVE)) == (["a castle.", "old"], FIVE_SENTENCES)
    first, _ = draw_captions(sample(llava=FIVE), CaptionConfig(), np.random.default_rng(0))
    assert first.pick == "short"


def test_long_captions_can_be_drawn_without_the_short_one():
    assert draw(sample(llava=FIVE), short_caption=False) == (FIVE_SENTENCES,)


def test_the_short_caption_alone_needs_no_long_one():
    assert draw(sample(), num_sub_captions=0) == (["a castle.", "old"],)


def test_windows_are_consecutive_sentences_drawn_uniformly():
    counts = {}
    for seed in range(900):
        (window,) = draw(sample(llava=FIVE), seed, short_caption=False, sentences_per_sub_caption=3)
        counts[tuple(window)] = counts.get(tuple(window), 0) + 1
    assert set(counts) == {tuple(FIVE_SENTENCES[start : start + 3]) for start in range(3)}
    assert all(240 < count < 360 for count in counts.values())


def test_a_caption_shorter_than_the_window_is_taken_whole():
    assert draw(sample(llava=FIVE), sentences_per_sub_caption=9)[1] == FIVE_SENTENCES


def test_captioners_are_drawn_uniformly_and_whatever_their_order_in_the_sample():
    forward, backward = sample(a="A.", b="B.", c="C."), sample(c="C.", b="B.", a="A.")
    drawn = [draw(forward, seed)[1][0] for seed in range(900)]
    assert drawn == [draw(backward, seed)[1][0] for seed in range(900)]
    assert all(240 < drawn.count(name) < 360 for name in ("A.", "B.", "C."))


def test_several_sub_captions_are_drawn_independently():
    config = {"num_sub_captions": 2, "sentences_per_sub_caption": 4}
    pairs = {str(draw(sample(a=FIVE), seed, **config)[1:]) for seed in range(100)}
    assert len(pairs) == 4


def test_only_permitted_captioners_are_drawn():
    both = sample(llava="L.", sharegpt4v="S.")
    config = {"captioners": ("sharegpt4v", "blip"), "num_sub_captions": 1}
    assert {draw(both, seed, **config)[1][0] for seed in range(20)} == {"S."}


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_sample_without_a_permitted_long_caption_is_an_error(blank):
    with pytest.raises(DataError, match=r"sample 000012: .* by blip, it has llava;"):
        draw(sample(llava="L.", blip=blank), captioners=("blip",))


def test_the_first_sentence_is_dropped_unless_it_is_the_only_one():
    assert draw(sample(llava=FIVE), first_sentence=False)[1] == FIVE_SENTENCES[1:]
    assert draw(sample(llava="One a."), first_sentence=False)[1] == ["One a."]


def test_captions_are_a_function_of_the_state_of_the_generator():
    config = {"num_sub_captions": 3, "sentences_per_sub_caption": 1}
    many = sample(a=FIVE, b="Six f. Seven g.")
    assert draw(many, 7, **config) == draw(many, 7, **config)
    assert len({str(draw(many, seed, **config)) for seed in range(30)}) > 10


@given(
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 4),
    st.dictionaries(st.text(min_size=1), st.text(min_size=1).filter(str.strip), min_size=1),
)
def test_every_sample_gives_the_same_number_of_captions(short, num, sentences, long):
    if not short and num == 0:
        return
    config = CaptionConfig(
        short_caption=short, num_sub_captions=num, sentences_per_sub_caption=sentences
    )
    captions = draw_captions(sample(**long), config, np.random.default_rng(0))
    assert len(captions) == config.num_captions
    assert all(one.caption for one in captions)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"num_sub_captions": -1}, r"captions\.num_sub_captions .* got -1"),
        ({"sentences_per_sub_caption": -2}, r"captions\.sentences_per_sub_caption .* got -2"),
        ({"captioners": ("a", "a")}, r"captions\.captioners .* got \['a', 'a'\]"),
        ({"short_caption": False, "num_sub_captions": 0}, r"captions\.num_sub_captions .* got 0"),
    ],
)
def test_a_wrong_value_names_its_key(config, message):
    with pytest.raises(ConfigError, match=message):
        CaptionConfig(**config)
