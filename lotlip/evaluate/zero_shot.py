"""Zero-shot classification: the class whose prompts lie nearest to the image.

Shape suffixes: N images, C classes, P prompts (templates) of a class, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lotlip.errors import DataError
from lotlip.evaluate.ranks import retrieval_ranks
from lotlip.evaluate.retrieval import Answers, answers_at

_PROMPTS_AT_ONCE = (
    4096  # enough to sort by length, without all 80,000 features of ImageNet at a time
)


def classifier(
    encode_texts: Callable[[Sequence[str]], Tensor], prompts: Sequence[Sequence[str]]
) -> Tensor:
    """One unit vector a class, [C, D]: the mean of the unit features of its prompts, renormalised.

    Args:
        encode_texts: features [texts, D] of a list of texts, of any length.
        prompts: of each class, equally many.
    """
    per_class = len(prompts[0])
    at_once = max(1, _PROMPTS_AT_ONCE // per_class)
    blocks = []
    for start in range(0, len(prompts), at_once):
        block = prompts[start : start + at_once]
        texts = [prompt for of_class in block for prompt in of_class]
        features = normalize(encode_texts(texts).detach().float(), dim=-1)
        mean_CD = features.unflatten(0, (len(block), per_class)).mean(dim=1)
        blocks.append(normalize(mean_CD, dim=-1))
    return torch.cat(blocks)


def zero_shot_answers(
    image_ND: Tensor,
    classifier_CD: Tensor,
    labels_N: Tensor,
    *,
    same_C: Tensor | None = None,
    first_wins: bool = False,
) -> dict[str, Answers]:
    """The images whose class is the nearest, `top1`, or among the nearest five, `top5`.

    Args:
        same_C: a number for each class; classes of one number are right for each other's images.
            Without it each class is on its own.
        first_wins: as of `retrieval_ranks`.
    """
    num_classes = len(classifier_CD)
    wrong_N = (labels_N < 0) | (labels_N >= num_classes)
    if wrong_N.any():
        index = int(wrong_N.nonzero()[0])
        raise DataError(
            f"image {index} has label {int(labels_N[index])}, but there are {num_classes} classes"
        )
    class_C = torch.arange(num_classes) if same_C is None else same_C
    right = class_C[labels_N], class_C
    ranks_N = retrieval_ranks(image_ND, classifier_CD, right, first_wins=first_wins)
    return {f"top{k}": answers_at(ranks_N, k) for k in (1, 5)}
