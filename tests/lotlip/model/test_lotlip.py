import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lotlip.errors import ConfigError
from lotlip.losses import multi_text_loss
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.packing import pack

TINY = PRESETS["tiny"]
CLS, SEP = 2, 3


def make(num_corner_tokens: int = 2, **image_changes) -> LoTLIP:
    torch.manual_seed(0)
    text = dataclasses.replace(TINY.text, num_corner_tokens=num_corner_tokens)
    image = dataclasses.replace(TINY.image, **image_changes)
    return LoTLIP(dataclasses.replace(TINY, text=text, image=image)).eval()


def captions(m: int, num_images: int, num_texts: int) -> Tensor:
    """Ids [B, S, L] with lengths that all differ, padded to more than the longest."""
    generator = torch.Generator().manual_seed(3)
    corners = range(TINY.text.vocab_size, TINY.text.vocab_size + m)
    ids = torch.zeros(num_images, num_texts, 40, dtype=torch.long)
    for image in range(num_images):
        for text in range(num_texts):
            length = 2 + 7 * text + image
            words = torch.randint(5, 1024, (length,), generator=generator).tolist()
            sequence = torch.tensor([CLS, *corners, *words, SEP])
            ids[image, text, : len(sequence)] = sequence
    return ids


@torch.no_grad()
@pytest.mark.parametrize("num_texts", [1, 2, 4])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_text_features_are_those_of_each_text_alone_in_order(m, num_texts):
    model, ids = make(m), captions(m, 3, num_texts)
    features = model.encode_captions(ids)
    assert features.shape == (3, 1 + (num_texts - 1) * (m + 1), 32)
    for image in range(3):
        expected = [model.encode_text(ids[image, :1])[0]]
        for text in range(1, num_texts):
            alone = model.text_projection(model.text_tower(pack(ids[image, text][None], m)))
            expected += list(F.normalize(alone, dim=-1))
            torch.testing.assert_close(expected[-m - 1], model.encode_text(ids[image, [text]])[0])
        torch.testing.assert_close(features[image], torch.stack(expected), atol=1e-6, rtol=0)
    flat = features.flatten(0, 1)
    assert torch.pdist(flat).min() > 1e-3  # else their order would not matter


@torch.no_grad()
def test_all_features_have_unit_length_and_single_precision():
    model, ids = make(), captions(2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = model(torch.rand(3, 3, 32, 32), ids)
        features = [image, text, model.encode_text(ids[:, 0])]
    for feature in features:
        assert feature.dtype == torch.float32
        torch.testing.assert_close(feature.norm(dim=-1), torch.ones(feature.shape[:-1]))


@torch.no_grad()
def test_forward_gives_the_features_of_images_and_captions():
    model, ids, images = make(), captions(2, 2, 3), torch.rand(2, 3, 32, 32)
    image, text = model(images, ids)
    assert torch.equal(image, model.encode_image(images))
    assert torch.equal(text, model.encode_captions(ids))


@torch.no_grad()
def test_the_scale_stays_within_1_and_100():
    model = make()
    assert float(model.scale()) == pytest.approx(1 / 0.07)
    for log_scale, expected in ((7.0, 100.0), (-3.0, 1.0), (math.log(50.0), 50.0)):
        model.logit_scale.fill_(log_scale)
        assert float(model.scale()) == pytest.approx(expected)


@pytest.mark.parametrize("log_scale,limit", [(7.0, math.log(100.0)), (-3.0, 0.0)])
def test_a_clamped_scale_learns_again(log_scale, limit):
    model = make()
    with torch.no_grad():
        model.logit_scale.fill_(log_scale)
    model.scale().backward()
    assert float(model.logit_scale.grad) == 0.0
    model.clamp_scale_()
    assert float(model.logit_scale.detach()) == pytest.approx(limit)
    model.logit_scale.grad = None
    model.scale().backward()
    assert float(model.logit_scale.grad) == pytest.approx(math.exp(limit))


def test_a_locked_image_tower_has_no_graph_but_its_projection_learns():
    model = make(locked_layers=-1, projection=True).train()
    seen: list[bool] = []
    model.image_tower.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    features = model.encode_image(images)
    features[:, 0].sum().backward()
    assert seen == [False]
    assert images.grad is None
    assert model.image_projection.weight.grad.norm() > 0
    without = make(locked_layers=-1).train().encode_image(torch.rand(2, 3, 32, 32))
    assert not without.requires_grad


def test_an_unlocked_image_tower_learns_and_no_grad_is_heeded():
    model = make().train()
    model.encode_image(torch.rand(2, 3, 32, 32))[:, 0].sum().backward()
    assert model.image_tower.patch_embed.proj.weight.grad.norm() > 0
    with torch.no_grad():
        assert not model.encode_image(torch.rand(2, 3, 32, 32)).requires_grad


def test_without_a_projection_the_widths_must_agree():
    with pytest.raises(ConfigError, match=r"model\.image\.width=32 differs from model\.embed_dim"):
        dataclasses.replace(TINY, embed_dim=48)
    model = LoTLIP(
        dataclasses.replace(
            TINY, embed_dim=48, image=dataclasses.replace(TINY.image, projection=True)
        )
    )
    assert model.encode_image(torch.rand(2, 3, 32, 32)).shape == (2, 48)
    assert model.encode_captions(captions(2, 2, 2)).shape == (2, 4, 48)


@pytest.mark.parametrize("m", [0, 2])
def test_every_parameter_that_learns_gets_a_gradient_from_a_short_caption_alone(m):
    """DistributedDataParallel waits for the others."""
    model = make(m).train()
    image, text = model(torch.rand(2, 3, 32, 32), captions(m, 2, 1))
    ((image @ text[:, 0].T).sum() * model.scale()).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@torch.no_grad()
def test_without_a_short_caption_every_text_brings_its_corner_tokens():
    model, ids = make(2), captions(2, 3, 2)
    features = model.encode_captions(ids, short_first=False)
    assert features.shape == (3, 2 * 3, 32)
    as_second = model.encode_captions(torch.cat([ids[:, :1], ids], dim=1))
    assert torch.allclose(features, as_second[:, 1:], atol=1e-6)


def test_the_sigmoid_loss_brings_a_bias_that_learns():
    assert make().logit_bias is None
    torch.manual_seed(0)
    model = LoTLIP(dataclasses.replace(TINY, loss="sigmoid")).train()
    assert float(model.scale().detach()) == pytest.approx(10.0)
    image, text = model(torch.rand(3, 3, 32, 32), captions(2, 3, 2))
    model.loss(image, text).backward()
    assert model.logit_bias is not None
    assert float(model.logit_bias.detach()) == -10.0
    assert model.logit_bias.grad is not None
    assert float(model.logit_bias.grad) != 0.0
    assert "logit_bias" in model.state_dict()


def test_the_loss_of_a_model_is_that_of_its_features_and_scale():
    model = make()
    image, text = model(torch.rand(3, 3, 32, 32), captions(2, 3, 2))
    expected = multi_text_loss(image, text, model.scale(), long_weight=0.5)
    assert torch.equal(model.loss(image, text, long_weight=0.5), expected)
