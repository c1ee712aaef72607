"""What the captions of one captioner are like, all together."""

from __future__ import annotations

import pytest

from lotlip.data.scenes import make_sample
from lotlip.relabel.audit import AuditConfig
from lotlip.relabel.profile import CaptionProfile


def profile_of(*captions: str, audit: AuditConfig | None = None) -> CaptionProfile:
    profile = CaptionProfile(audit, lambda text: len(text.split()))
    for caption in captions:
        profile.add(caption, "a castle")
    return profile


def test_lengths_words_and_openings_are_counted():
    profile = profile_of("The image shows a castle.", "The image shows a boat 7.", "A Castle")
    assert list(profile.lengths) == [5, 6, 2]
    assert profile.num_words == 6, "the image shows a castle boat"
    assert profile.openings(1) == [("the image shows a", pytest.approx(2 / 3))]
    assert profile.summary()["openings"]["a castle"] == pytest.approx(1 / 3, abs=1e-4)


def test_captions_that_say_the_same_are_duplicates():
    profile = profile_of("A castle.", "a  castle", "A boat.", "A tree.", "A tree!", "A CASTLE")
    assert profile.num_duplicates == 5
    assert profile_of("A castle.").num_duplicates == 0


def test_the_vocabulary_is_noted_as_it_grows():
    captions = [make_sample(0, i).long["scenes"] for i in range(300)]
    growth = profile_of(*captions).growth
    numbers, words = zip(*growth, strict=True)
    assert numbers[0] == 1
    assert 270 < numbers[-1] <= 300
    assert len(growth) < 60
    assert list(words) == sorted(words)


def test_faults_are_counted_by_rule_if_there_is_an_audit():
    texts = ("As an AI, I cannot see.", "The image shows a red castle on a hill, and much more")
    assert profile_of(*texts).failed == {}
    failed = profile_of(*texts, audit=AuditConfig(min_tokens=0)).failed
    assert failed == {"refusal": 1, "truncation": 1}
