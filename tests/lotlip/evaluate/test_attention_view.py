"""What the last layer looks at, against what it makes of it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lotlip
from lotlip.evaluate import attention_view
from lotlip.evaluate.attention_view import attention_figure, view_attention
from lotlip.model import LoTLIP
from lotlip.model.packing import pack

CAPTION = "A castle on a hill. A garden with unbelievably many flowers lies before it."


def of_corners(model: LoTLIP, num: int, masked: bool = True) -> LoTLIP:
    """The same weights with another number of corner tokens."""
    text = dataclasses.replace(model.config.text, num_corner_tokens=num, corner_mask=masked)
    assert model.tokenizer is not None
    other = LoTLIP(
        dataclasses.replace(model.config, text=text),
        model.tokenizer.adapted(num, text.context_length),
    )
    state = {n: v for n, v in model.state_dict().items() if "corners" not in n}
    other.load_state_dict(state, strict=False)
    return other.eval()


@pytest.mark.parametrize("num, masked", [(0, True), (1, True), (2, True), (4, True), (2, False)])
def test_the_weights_are_those_that_the_layer_mixes_by(model_folder: Path, num: int, masked: bool):
    model = of_corners(lotlip.load(model_folder), num, masked)
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer([CAPTION]))
    with torch.no_grad():
        weights = attention_view._last_attention(model, ids)
    assert torch.allclose(weights.sum(dim=1), torch.ones(1 + num), atol=1e-5)
    if masked and num:
        assert weights[0, :num].abs().max() == 0, "[CLS] looks at no corner token"
        assert weights[1:, num].abs().max() == 0, "nor they at it"


def test_one_head_mixes_by_exactly_these_weights(model_folder: Path):
    model = of_corners(lotlip.load(model_folder), 2)
    for layer in model.text_tower.layers:
        layer.num_heads = 1
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer([CAPTION]))
    with torch.no_grad():
        weights = attention_view._last_attention(model, ids)
        texts = pack(ids, 2, None)
        rows = model.text_tower.embeddings(texts)
        *layers, last = model.text_tower.layers
        for layer in layers:
            rows = layer(rows, texts)
        read = last(rows, texts, read=True)[texts.order_R]
        own = texts.read(rows)[texts.order_R]
        again = last.behind_attention(own, weights @ last.value(rows), 0.0)
    assert torch.allclose(again, read, atol=1e-5)


def test_words_are_whole_and_corners_are_compared(model_folder: Path):
    view = view_attention(lotlip.load(model_folder), CAPTION)
    assert view.readers == ["[CLS]", "Corner 0", "Corner 1"]
    assert view.words[:5] == ["a", "castle", "on", "a", "hill"]
    separators = [place for place, word in enumerate(view.words) if word == "[SEP]"]
    assert len(separators) == 2, "between the sentences, and at the end"
    assert view.weights_RW[:, separators].max() == 0
    assert not any(word.startswith("##") for word in view.words)
    assert view.weights_RW.shape == (3, len(view.words))
    np.testing.assert_allclose(view.weights_RW.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.diag(view.cosines_RR), 1, atol=1e-5)
    with Image.open(io.BytesIO(attention_figure(view))) as image:
        assert image.format == "PNG"
        assert image.width > 1000
