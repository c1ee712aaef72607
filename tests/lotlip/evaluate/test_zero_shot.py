from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lotlip.errors import DataError
from lotlip.evaluate.retrieval import Interval
from lotlip.evaluate.zero_shot import classifier, zero_shot_answers


def zero_shot_report(image: Tensor, classes: Tensor, labels: Tensor) -> dict[str, Interval]:
    answers = zero_shot_answers(image, classes, labels)
    return {name: one.interval() for name, one in answers.items()}


def encode_letters(texts: Sequence[str]) -> Tensor:
    """How often each letter occurs."""
    return torch.tensor([[text.count(chr(97 + n)) for n in range(26)] for text in texts]).float()


def test_a_class_is_the_renormalised_mean_of_the_unit_features_of_its_prompts():
    features = {"x": [3.0, 4.0], "long x": [0.0, 2.0], "y": [5.0, 0.0], "long y": [2.0, 0.0]}
    got = classifier(
        lambda texts: torch.tensor([features[text] for text in texts]),
        [["x", "long x"], ["y", "long y"]],
    )
    x = torch.tensor([0.6 / 2, (0.8 + 1.0) / 2])
    assert torch.allclose(got, torch.stack([x / x.norm(), torch.tensor([1.0, 0.0])]))


def test_many_classes_are_encoded_in_several_calls_with_the_same_result():
    calls = []

    def encode(texts: Sequence[str]) -> Tensor:
        calls.append(len(texts))
        return encode_letters(texts)

    names = [chr(97 + n % 26) + chr(97 + n % 25) for n in range(300)]
    prompts = [[f"{name} {chr(97 + n % 26)}" for n in range(20)] for name in names]
    together = classifier(encode, prompts)
    one_by_one = torch.cat([classifier(encode_letters, [of_class]) for of_class in prompts])
    assert len(calls) > 1
    assert sum(calls) == 6000
    assert torch.allclose(together, one_by_one, atol=1e-6)


@given(st.data())
@settings(deadline=None)
def test_accuracies_equal_the_definition_with_many_ties(data):
    num_classes = data.draw(st.integers(1, 7))
    row = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    images = data.draw(st.lists(row, min_size=1, max_size=6))
    classes = data.draw(st.lists(row, min_size=num_classes, max_size=num_classes))
    labels = [data.draw(st.integers(0, num_classes - 1)) for _ in images]
    ranks = []
    for image, label in zip(images, labels, strict=True):
        scores = [image[0] * other[0] + image[1] * other[1] for other in classes]
        ranks.append(sum(score >= scores[label] for score in scores))
    report = zero_shot_report(torch.tensor(images), torch.tensor(classes), torch.tensor(labels))
    for k in (1, 5):
        assert report[f"top{k}"].value == pytest.approx(np.mean([rank <= k for rank in ranks]))


def test_the_report_holds_top1_and_top5():
    image = torch.eye(8)
    scores = torch.eye(8)
    scores[7] = torch.tensor(
        [9.0, 0, 0, 0, 0, 0, 0, 0]
    )  # class 7 steals image 0, image 7 fits nothing
    report = zero_shot_report(image, scores, torch.arange(8))
    assert list(report) == ["top1", "top5"]
    assert (report["top1"].value, report["top5"].value) == (6 / 8, 7 / 8)
    assert 0 < report["top1"].low < 6 / 8 < report["top1"].high <= 1
    assert zero_shot_report(image, image, torch.arange(8))["top1"] == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_an_error(label):
    labels = torch.tensor([0, label])
    with pytest.raises(DataError, match=f"image 1 has label {label}, but there are 3 classes"):
        zero_shot_answers(torch.eye(3)[:2], torch.eye(3), labels)
