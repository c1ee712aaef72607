"""The loss against the naive one, which holds all logits of the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from measuring import DEVICE, Row, Work, compared, peak_mib
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from lotlip.losses import multi_text_loss

NUM_TEXTS, WIDTH = 7, 512
NUM_IMAGES = 8192
LARGE_BATCH, NUM_WORKERS = 32768, 8


def rows() -> list[Row]:
    return [
        compared(
            work,
            what=f"loss, forward + backward, {NUM_IMAGES} images, {NUM_TEXTS} texts, D = {WIDTH}",
            yardstick="naive: global logits of each text, both ways, kept for backward",
            goal="<= 0.8x time, <= 0.07x memory",
            tolerance=1e-5,
        )
    ]


def share_mib() -> tuple[float, float]:
    """What a worker's share of a large batch takes, and what the naive logits alone would take."""
    naive_bytes = NUM_TEXTS * 2 * LARGE_BATCH**2 * 4
    return peak_mib(share), naive_bytes / 2**20


def share() -> Work:
    """One worker's forward and backward, its messages to the others left out."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=NUM_WORKERS)
    image_BD, text_BND = (
        F.normalize(torch.randn(LARGE_BATCH // NUM_WORKERS, *shape, WIDTH), dim=-1)
        for shape in ((), (NUM_TEXTS,))
    )
    values = image_BD.requires_grad_(), text_BND.requires_grad_(), torch.tensor(20.0)
    return lambda: multi_text_loss(*values).backward()


def work(side: str) -> Work:
    generator = torch.Generator().manual_seed(0)
    image_BD, text_BND = (
        F.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)
        .to(DEVICE)
        .requires_grad_()
        for shape in ((NUM_IMAGES,), (NUM_IMAGES, NUM_TEXTS))
    )
    scale = torch.tensor(20.0, device=DEVICE, requires_grad=True)
    target_B = torch.arange(NUM_IMAGES, device=DEVICE)

    def naive() -> torch.Tensor:
        total = torch.zeros((), device=DEVICE)
        for n in range(NUM_TEXTS):
            to_text = scale * image_BD @ text_BND[:, n].T
            to_image = scale * text_BND[:, n] @ image_BD.T
            both = F.cross_entropy(to_text, target_B) + F.cross_entropy(to_image, target_B)
            total = total + both / 2
        return total / NUM_TEXTS

    def run() -> float:
        for value in (image_BD, text_BND, scale):
            value.grad = None
        loss = multi_text_loss(image_BD, text_BND, scale) if side == "ours" else naive()
        loss.backward()
        return float(loss.detach())

    return run
