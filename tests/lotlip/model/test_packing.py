"""Packed texts give what padded ones give, features and gradients, whatever their lengths."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plain_text_tower import plain_text_tower
from torch import Tensor

from lotlip.errors import DataError
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.packing import PAD_ID, pack

TEXT = PRESETS["tiny"].text


def random_ids(m: int, num_texts: int, longest: int, generator: torch.Generator) -> Tensor:
    """Texts of random lengths, the shortest without a word; padded, also on purpose."""
    padded_to = longest + int(torch.randint(0, 9, (), generator=generator))
    ids = torch.zeros(num_texts, padded_to, dtype=torch.long)
    for row in ids:
        num_words = int(torch.randint(0, longest - m - 1, (), generator=generator))
        words = torch.randint(5, TEXT.vocab_size, (num_words,), generator=generator).tolist()
        corners = range(TEXT.vocab_size, TEXT.vocab_size + m)
        row[: num_words + m + 2] = torch.tensor([2, *corners, *words, 3])
    return ids


def model_of(m: int, *, masked: bool = True) -> LoTLIP:
    torch.manual_seed(m)
    config = dataclasses.replace(
        PRESETS["tiny"], text=dataclasses.replace(TEXT, num_corner_tokens=m, corner_mask=masked)
    )
    model = LoTLIP(config)
    torch.nn.init.normal_(model.text_tower.embeddings.corners, std=0.5)
    return model


def gradients(model: LoTLIP) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


CASES = [(m, seed, True) for m in (0, 1, 2, 4) for seed in range(12)]
UNMASKED = [(m, seed, False) for m in (0, 2) for seed in range(4)]


@pytest.mark.parametrize(("m", "seed", "masked"), CASES + UNMASKED)
def test_features_and_gradients_are_those_of_the_padded_tower(m, seed, masked):
    generator = torch.Generator().manual_seed(100 * m + seed)
    model = model_of(m, masked=masked)
    num_images, num_texts = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
    longest = int(torch.randint(m + 3, 60, (), generator=generator))
    ids = random_ids(m, num_images * num_texts, longest, generator)
    ids_BSL = ids.unflatten(0, (num_images, num_texts))

    got = model.encode_captions(ids_BSL)
    pooled = model.text_projection(plain_text_tower(model.text_tower, ids))
    of_images = pooled.unflatten(0, (num_images, num_texts))
    kept = torch.cat([of_images[:, 0, :1], of_images[:, 1:].flatten(1, 2)], dim=1)
    expected = torch.nn.functional.normalize(kept, dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    alone = torch.nn.functional.normalize(pooled[:, 0], dim=-1)
    torch.testing.assert_close(model.encode_text(ids), alone, atol=1e-5, rtol=0)

    weights = torch.randn(got.shape, generator=generator)
    (got * weights).sum().backward()
    packed = gradients(model)
    (expected * weights).sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(packed.pop(name), gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert not packed


def test_rows_are_real_tokens_only_and_texts_of_one_shape_lie_together():
    ids = torch.tensor(
        [
            [2, 90, 91, 7, 8, 3, 0, 0],
            [2, 90, 91, 7, 3, 0, 0, 0],
            [2, 90, 91, 9, 8, 3, 0, 0],
            [2, 90, 91, 5, 3, 0, 0, 0],
        ]
    )
    has_corners = torch.tensor([True, False, True, True])
    texts = pack(ids, 2, has_corners)
    shapes = [(g.num_texts, g.length, g.num_corners) for g in texts.groups]
    assert shapes == [(1, 3, 0), (1, 5, 2), (2, 6, 2)]
    # Corner tokens, [CLS], words; positions are those in the text as it was.
    corners = [PAD_ID, PAD_ID]
    expected = [[2, 7, 3], [*corners, 2, 5, 3], [*corners, 2, 7, 8, 3], [*corners, 2, 9, 8, 3]]
    assert texts.ids_T.tolist() == [token for text in expected for token in text]
    assert texts.positions_T.tolist()[:8] == [0, 3, 4, 1, 2, 0, 3, 4]
    assert texts.corner_rows.tolist() == [3, 4, 8, 9, 14, 15]
    # Among what is read, group by group: [CLS] of text 1; of text 3 two corners and [CLS]; ...
    assert texts.order_R.tolist() == [6, 4, 5, 0, 9, 7, 8, 3, 1, 2]
    rows = torch.arange(20)[:, None].float()
    assert texts.read(rows)[:, 0].tolist() == [0, 3, 4, 5, 8, 9, 10, 14, 15, 16]


def test_a_padding_token_within_a_text_is_left_out():
    model = model_of(2)
    corners = [TEXT.vocab_size, TEXT.vocab_size + 1]
    ids = torch.tensor([[2, *corners, 8, 0, 9, 3, 0]])
    expected = plain_text_tower(model.text_tower, ids)[0]
    torch.testing.assert_close(model.text_tower(pack(ids, 2)), expected, atol=1e-5, rtol=0)


def test_ids_need_not_be_where_the_model_is():
    """The meta device stands for a GPU: what is on another one cannot be mixed with it."""
    model = model_of(2).to("meta")
    ids = random_ids(2, 4, 30, torch.Generator().manual_seed(0)).unflatten(0, (2, 2))
    assert ids.device.type == "cpu"
    features = model.encode_captions(ids)
    assert features.device.type == "meta"
    assert features.shape == (2, 4, 32)
    assert model.encode_text(ids[:, 0]).device.type == "meta"


def test_no_text_has_no_feature_and_an_empty_one_is_an_error():
    model = model_of(2)
    assert model.encode_text(torch.zeros(0, 10, dtype=torch.long)).shape == (0, 32)
    ids = random_ids(2, 3, 20, torch.Generator().manual_seed(0))
    ids[1] = PAD_ID
    with pytest.raises(DataError, match="text 1 of the batch is nothing but padding"):
        model.encode_text(ids)
