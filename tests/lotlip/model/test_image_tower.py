"""The image tower against transformers' ViT on the same weights, and what locking it means."""

import dataclasses

import pytest
import torch
from transformers import ViTConfig, ViTModel

from lotlip.errors import ConfigError
from lotlip.model import ImageTowerConfig, LoTLIP, ModelConfig, TextTowerConfig
from lotlip.model.image_tower import ConvStem, ImageTower
from lotlip.model.pretrained import load_image_tower

CONFIG = ImageTowerConfig(image_size_px=32, patch_size_px=8, width=32, num_layers=3, num_heads=4)
TEXT = TextTowerConfig(
    vocab_size=50, context_length=16, num_positions=16, width=16, num_layers=1, num_heads=2
)


def model(**image_changes) -> LoTLIP:
    image = dataclasses.replace(CONFIG, **image_changes)
    return LoTLIP(ModelConfig(embed_dim=32, image=image, text=TEXT))


def learning(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def test_features_are_those_of_vit(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
    )
    vit = ViTModel(config).eval()
    vit.save_pretrained(tmp_path)
    tower = ImageTower(CONFIG).eval()
    load_image_tower(tower, str(tmp_path))
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    expected = vit(pixel_values=images).last_hidden_state
    torch.testing.assert_close(tower(images), expected[:, 0], atol=1e-5, rtol=0)
    assert (expected[0, 0] - expected[1, 0]).abs().max() > 0.01


@torch.no_grad()
def test_the_mean_pool_has_no_class_token():
    tower = ImageTower(dataclasses.replace(CONFIG, pool="mean"))
    seen: list[torch.Tensor] = []
    tower.norm.register_forward_hook(lambda module, given, tokens: seen.append(tokens))
    features = tower(torch.rand(2, 3, 32, 32))
    assert seen[0].shape == (2, 16, 32)
    assert "cls_token" not in tower.state_dict()
    torch.testing.assert_close(features, seen[0].mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("num_images", [1, 2, 3])
@pytest.mark.parametrize("pool", ["token", "mean"])
def test_each_image_has_a_feature_of_its_own(num_images, pool):
    encoder = model(pool=pool)
    images = torch.rand(num_images, 3, 32, 32)
    features = encoder.encode_image(images)
    assert features.shape == (num_images, 32)
    for image, feature in zip(images, features, strict=True):
        torch.testing.assert_close(encoder.encode_image(image[None])[0], feature)


@torch.no_grad()
def test_the_conv_stem_makes_a_token_of_16_by_16_pixels():
    assert ConvStem(48)(torch.rand(2, 3, 96, 64)).shape == (2, 48, 6, 4)
    config = dataclasses.replace(CONFIG, image_size_px=96, patch_size_px=16, stem="conv")
    tower = ImageTower(config)
    seen: list[torch.Tensor] = []
    tower.blocks[0].register_forward_hook(lambda module, given, tokens: seen.append(tokens))
    assert tower(torch.rand(2, 3, 96, 96)).shape == (2, 32)
    assert seen[0].shape == (2, 37, 32)
    with pytest.raises(ConfigError, match=r"model\.image\.patch_size_px=16, got 8"):
        dataclasses.replace(CONFIG, stem="conv")


@torch.no_grad()
def test_the_conv_stem_treats_each_image_alone_also_in_training():
    stem = ConvStem(32).train()
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(stem(images)[:1], stem(images[:1]))


def test_an_unlocked_tower_learns_as_a_whole():
    tower = model().image_tower
    assert learning(tower) == set(tower.state_dict())
    assert all(module.training for module in tower.modules())


@pytest.mark.parametrize("projection", [False, True])
def test_a_locked_tower_keeps_everything_but_its_projection(projection):
    encoder = model(locked_layers=-1, projection=projection)
    assert learning(encoder.image_tower) == set()
    assert learning(encoder.image_projection) == ({"weight"} if projection else set())
    encoder.train()
    assert not any(module.training for module in encoder.image_tower.modules())
    assert encoder.image_projection.training
    assert all(module.training for module in encoder.text_tower.modules())


def test_locked_layers_are_the_stem_and_the_first_blocks():
    encoder = model(locked_layers=2)
    tower = encoder.image_tower
    expected = {n for n in tower.state_dict() if n.startswith(("blocks.2.", "norm."))}
    assert learning(tower) == expected
    encoder.train()
    trained = {name for name, module in tower.named_modules() if module.training}
    assert {"", "norm", "blocks.2", "blocks.2.attn"} <= trained
    assert not any(name.startswith(("patch_embed", "blocks.0", "blocks.1")) for name in trained)


def test_a_step_leaves_locked_parameters_as_they_are():
    torch.manual_seed(0)
    encoder = model(locked_layers=1).train()
    before = {name: value.clone() for name, value in encoder.image_tower.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    encoder.encode_image(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    same = {n for n, v in encoder.image_tower.state_dict().items() if torch.equal(v, before[n])}
    locked = {n for n in before if n.startswith(("cls_", "pos_", "patch_embed.", "blocks.0."))}
    assert locked <= same
    assert "blocks.1.attn.proj.weight" not in same
    assert "blocks.2.mlp.fc1.weight" not in same
