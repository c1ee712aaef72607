"""The formula against torch's count of what really runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lotlip.model import PRESETS, LoTLIP
from lotlip.model.packing import pack
from lotlip.train.flops import peak_flops, peak_of_card, step_flops, text_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 0.0),
        ("NVIDIA RTX A1000", 0.0),
        ("NVIDIA A10G", 0.0),
    ],
)
def test_cards_are_known_by_their_whole_names(name, peak):
    assert peak_of_card(name) == peak


@pytest.mark.parametrize("locked_layers", [-1, 1])
@pytest.mark.parametrize("m", [0, 2])
def test_locked_layers_of_texts_cost_less(m, locked_layers):
    config = PRESETS["small"].text
    config = dataclasses.replace(config, num_corner_tokens=m, locked_layers=locked_layers)
    model = LoTLIP(dataclasses.replace(PRESETS["small"], text=config)).train()
    ids = torch.full((3, 60), 7)
    ids[:, 1 : 1 + m] = torch.arange(config.vocab_size, config.vocab_size + m)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pooled = model.text_tower(pack(ids, m))
        if pooled.requires_grad:
            pooled.sum().backward()
    rows, num_read = torch.full((3,), 60.0), torch.full((3,), 1.0 + m)
    expected = float(text_flops(config, rows=rows, num_read=num_read).sum())
    # Where nothing below learns, the gradient stops half-way through the first layer that does.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("short_first", [True, False])
@pytest.mark.parametrize(("m", "masked"), [(0, True), (2, True), (2, False)])
@pytest.mark.parametrize(
    ("preset", "image"),
    [
        ("tiny", {}),
        ("small", {}),
        ("scenes", {"locked_layers": 0}),
        ("scenes", {}),
    ],
)
def test_the_formula_counts_what_torch_counts(preset, image, m, masked, short_first):
    config = PRESETS[preset]
    config = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, **image),
        text=dataclasses.replace(config.text, num_corner_tokens=m, corner_mask=masked),
    )
    model = LoTLIP(config).train()
    size = config.image.image_size_px
    lengths = torch.tensor([[9, 30, 41], [7, 25, 60]])
    ids = torch.full((2, 3, 64), 7)
    ids[:, :, 1 : 1 + m] = torch.arange(config.text.vocab_size, config.text.vocab_size + m)
    ids[torch.arange(64) >= lengths[:, :, None]] = 0
    # Torch doesn't count fused attention on a processor.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        image_BD, text_BND = model(torch.rand(2, 3, size, size), ids, short_first)
        (image_BD.sum() + text_BND.sum()).backward()
    expected = step_flops(config, lengths, short_first=short_first, pixels=True)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    without = step_flops(config, lengths, short_first=short_first, pixels=False)
    assert without < expected


def test_the_peak_of_a_processor_is_not_known():
    assert peak_flops(torch.device("cpu")) == 0.0
