"""The text tower against the authors' way: padded, eager, a dense mask, all rows computed."""

from __future__ import annotations

from typing import Literal

import torch
from measuring import DEVICE, Row, Work, compared
from plain_text_tower import plain_text_tower
from torch import Tensor
from torch.nn import functional as F

from lotlip.data.scenes import CAPTIONER, make_sample
from lotlip.model import LoTLIP, ModelConfig, TextTowerConfig
from lotlip.model.config import ImageTowerConfig
from lotlip.tokenizer import Tokenizer
from lotlip.train.flops import text_flops

M, PADDED = 2, 128
NUM_IMAGES, NUM_SCENES = 16, 24
Lengths = Literal["mixed", "scenes"]
YARDSTICK = "padded to 128, eager attention, dense mask, all rows of the last layer"


def rows() -> list[Row]:
    return [
        _row("mixed", backward=True, goal=">= 2.8x, <= 0.35x memory"),
        _row("mixed", backward=False, goal=">= 4x"),
        _row("scenes", backward=True, goal=">= 3.3x"),
    ]


def _row(lengths: Lengths, *, backward: bool, goal: str) -> Row:
    of = {
        "mixed": f"{NUM_IMAGES} x (1 short caption of 11-19 tokens, 2 long ones of 40-80)",
        "scenes": f"{NUM_SCENES} x (1 short, 1 long caption of scenes)",
    }[lengths]
    passes = "forward + backward" if backward else "forward"
    return compared(
        work,
        lengths,
        backward,
        what=f"text tower, {passes}, BERT-base size, m = {M}, {of}",
        yardstick=YARDSTICK,
        goal=goal,
        tolerance=1e-3,
        with_memory=lengths == "mixed" and backward,
    )


def operations() -> float:
    """How many times as many of them the yardstick needs for the mixed batch."""
    config, ids_BSL = TextTowerConfig(num_corner_tokens=M), mixed_lengths()
    rows_BS = (ids_BSL != 0).sum(dim=2).double()
    rows_BS[:, 0] -= M  # of a short caption corner tokens aren't read
    num_read_BS = torch.full_like(rows_BS, 1.0 + M)
    num_read_BS[:, 0] = 1
    whole_BS = torch.full_like(rows_BS, PADDED)
    ours = text_flops(config, rows=rows_BS, num_read=num_read_BS).sum()
    return float(text_flops(config, rows=whole_BS, num_read=whole_BS).sum() / ours)


def work(side: str, lengths: Lengths, backward: bool) -> Work:
    """One pass over a batch of captions, in our way or in theirs."""
    torch.manual_seed(0)
    image = ImageTowerConfig(image_size_px=32, width=768, num_layers=1)  # is not used
    model = LoTLIP(ModelConfig(image=image, text=TextTowerConfig(num_corner_tokens=M))).to(DEVICE)
    ids_BSL = mixed_lengths() if lengths == "mixed" else scene_captions()
    if side == "theirs":
        ids_BSL = F.pad(ids_BSL, (0, PADDED - ids_BSL.shape[2])).to(DEVICE)

    def encode() -> Tensor:
        return model.encode_captions(ids_BSL) if side == "ours" else padded(model, ids_BSL)

    def run() -> float:
        with torch.set_grad_enabled(backward):
            features_BND = encode()
            weights_D = torch.linspace(-1, 1, features_BND.shape[2], device=DEVICE)
            total = (features_BND * weights_D).sum()
        if backward:
            model.zero_grad(set_to_none=True)
            total.backward()
        return float(total.detach())

    return run


def padded(model: LoTLIP, ids_BSL: Tensor, *, fused: bool = False) -> Tensor:
    """`LoTLIP.encode_captions`, all texts in one batch of one length."""
    pooled = plain_text_tower(model.text_tower, ids_BSL.flatten(0, 1), fused=fused)
    of_images = model.text_projection(pooled).unflatten(0, ids_BSL.shape[:2])
    kept = torch.cat([of_images[:, 0, :1], of_images[:, 1:].flatten(1, 2)], dim=1)
    return F.normalize(kept.float(), dim=-1)


def mixed_lengths() -> Tensor:
    """[16, 3, 128]; lengths count all tokens, control tokens, too."""
    generator = torch.Generator().manual_seed(0)
    ids_BSL = torch.zeros(NUM_IMAGES, 3, PADDED, dtype=torch.long)
    for texts in ids_BSL:
        for place, (least, most) in enumerate(((11, 19), (40, 80), (40, 80))):
            length = int(torch.randint(least, most + 1, (), generator=generator))
            texts[place, :length] = torch.randint(1000, 30000, (length,), generator=generator)
            texts[place, 1 : 1 + M] = torch.arange(30522, 30522 + M)
    return ids_BSL


def scene_captions() -> Tensor:
    """[24, 2, L]"""
    samples = [make_sample(3, index) for index in range(NUM_SCENES)]
    captions = [text for sample in samples for text in (sample.short, sample.long[CAPTIONER])]
    tokenizer = Tokenizer.learn(
        captions, vocab_size=1024, num_corner_tokens=M, context_length=PADDED
    )
    ids = torch.from_numpy(tokenizer(captions))
    corners = (ids >= 1024) * (30522 - 1024)  # those of BERT's size come behind more word pieces
    return (ids + corners).unflatten(0, (NUM_SCENES, 2))
