import dataclasses
import math

import pytest
import torch

from lotlip.errors import ConfigError
from lotlip.model import PRESETS, LoTLIP
from lotlip.train.optim import OptimConfig, learning_rate, make_optimizer

CONFIG = OptimConfig(lr=2.0, warmup_steps=10)


@pytest.mark.parametrize(
    "step,expected",
    [
        (1, 0.2),
        (5, 1.0),
        (10, 2.0),
        (35, 1 + math.cos(math.pi / 4)),
        (60, 1.0),
        (85, 1 - math.cos(math.pi / 4)),
        (110, 0.0),
        (500, 0.0),
    ],
)
def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine(step, expected):
    assert learning_rate(CONFIG, step, 110) == pytest.approx(expected, abs=1e-12)


def test_the_rate_has_one_peak():
    rates = [learning_rate(CONFIG, step, 110) for step in range(1, 111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert max(rates) == 2.0


def test_without_warm_up_the_rate_falls_from_the_start():
    config = dataclasses.replace(CONFIG, warmup_steps=0)
    assert learning_rate(config, 1, 4) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(config, 4, 4) == pytest.approx(0.0)


def test_a_run_that_ends_within_the_warm_up_never_reaches_the_peak():
    assert [learning_rate(CONFIG, step, 3) for step in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6])
    assert learning_rate(CONFIG, 10, 10) == 2.0


def decay_by_name(model: LoTLIP, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_one_dimensional_parameters_do_not_decay():
    model = LoTLIP(PRESETS["tiny"])
    decay = decay_by_name(model, make_optimizer(model, CONFIG))
    assert set(decay) == {name for name, _ in model.named_parameters()}
    assert {decay[name] for name in decay if name.endswith(".bias") or "norm" in name} == {0.0}
    for name in ("logit_scale", "text_tower.embeddings.segment"):
        assert decay[name] == 0.0
    for name in (
        "text_projection.weight",
        "text_tower.embeddings.corners",
        "text_tower.embeddings.words.weight",
        "image_tower.patch_embed.proj.weight",
        "image_tower.blocks.0.attn.qkv.weight",
    ):
        assert decay[name] == 0.2


def test_a_step_without_gradient_shrinks_weights_only():
    model = LoTLIP(PRESETS["tiny"])
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.state_dict().items():
        factor = 0.95 if value.ndim >= 2 else 1.0
        torch.testing.assert_close(value, before[name] * factor)


def test_locked_parameters_are_not_the_optimisers():
    config = PRESETS["tiny"]
    image = dataclasses.replace(config.image, locked_layers=-1)
    model = LoTLIP(dataclasses.replace(config, image=image))
    decay = decay_by_name(model, make_optimizer(model, CONFIG))
    assert decay
    assert not any(name.startswith("image_tower.") for name in decay)


def test_the_optimiser_has_the_numbers_of_the_config():
    config = OptimConfig(lr=0.3, beta1=0.7, beta2=0.8, eps=1e-4, weight_decay=0.1)
    optimizer = make_optimizer(LoTLIP(PRESETS["tiny"]), config)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.7, 0.8), 1e-4)


@pytest.mark.parametrize(
    "name,value",
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("max_grad_norm", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("beta2", float("nan")),
    ],
)
def test_impossible_values_are_errors_that_name_the_key(name, value):
    with pytest.raises(ConfigError, match=rf"^optim\.{name}={value} must be"):
        OptimConfig(**{name: value})


def test_the_smallest_values_are_allowed():
    config = OptimConfig(weight_decay=0.0, warmup_steps=0, max_grad_norm=0.0, beta1=0.0, beta2=0.0)
    assert config.beta1 == 0.0
