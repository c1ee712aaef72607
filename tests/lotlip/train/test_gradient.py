"""The gradient of a batch that is computed some images at a time, or whose layers are twice."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lotlip.model import PRESETS, LoTLIP
from lotlip.train.gradient import parts_of, take_gradient

TINY = PRESETS["tiny"]
NUM_IMAGES = 7


def make(loss: str = "softmax", dropout: float = 0.0, **image_changes) -> LoTLIP:
    torch.manual_seed(0)
    config = dataclasses.replace(
        TINY,
        loss=loss,  # type: ignore[arg-type]
        text=dataclasses.replace(TINY.text, dropout=dropout),
        image=dataclasses.replace(TINY.image, **image_changes),
    )
    return LoTLIP(config).train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 32, 32, 3), generator=generator)
    ids = torch.randint(5, 1024, (NUM_IMAGES, 3, 20), generator=generator)
    ids[:, :, :3] = torch.tensor([2, 1024, 1025])
    for image in range(NUM_IMAGES):
        ids[image, :, 6 + 2 * image :] = 0
    return pixels.to(torch.uint8), ids


def gradient(
    model: LoTLIP, micro_batch: int, short_first: bool = True
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss, watch = take_gradient(
        model,
        model,
        parts_of(*batch(), micro_batch, (0, 3)),
        precision="fp32",
        short_first=short_first,
        long_weight=0.5,
    )
    assert watch.seconds() > 0
    return float(loss), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [1, 3, NUM_IMAGES, 100])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"loss": "sigmoid"},
        {"locked_layers": -1, "projection": True},
        {"locked_layers": -1},
    ],
    ids=str,
)
def test_some_images_at_a_time_give_the_gradient_of_all(model, micro_batch):
    whole_loss, whole = gradient(make(**model), 0)
    loss, parts = gradient(make(**model), micro_batch)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    assert "logit_scale" in parts
    for name, expected in whole.items():
        difference = (parts[name] - expected).norm()
        assert difference <= 1e-5 * expected.norm() + 1e-8, name


def test_dropout_is_the_same_both_times_a_part_is_computed():
    """Else features and their gradients would not belong together."""
    model = make(dropout=0.3)
    seen: list[Tensor] = []
    model.text_projection.register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    gradient(model, 3)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    model.eval()
    seen.clear()
    gradient(model, 3)
    model.train()
    dropped = list(seen)
    seen.clear()
    gradient(model, 3)
    assert not torch.equal(dropped[0], seen[0])


def test_recomputed_layers_give_the_same_gradient():
    model = make(dropout=0.2)
    loss, expected = gradient(model, 0)
    model.image_tower.recomputes = model.text_tower.recomputes = True
    calls = 0

    def count(*args: object) -> None:
        nonlocal calls
        calls += 1

    model.text_tower.layers[0].register_forward_pre_hook(count)
    again_loss, again = gradient(model, 0)
    assert calls == 2
    assert again_loss == loss
    for name, value in expected.items():
        assert torch.equal(again[name], value), name
