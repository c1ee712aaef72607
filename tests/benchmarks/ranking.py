"""Retrieval ranks against the full matrix of scores, sorted both ways."""

from __future__ import annotations

import torch
from measuring import Row, Work, compared
from torch.nn import functional as F

from lotlip.evaluate.ranks import ranks_both_ways

NUM_PAIRS, WIDTH = 10_000, 768


def rows() -> list[Row]:
    return [
        compared(
            work,
            what=f"retrieval ranks both ways, {NUM_PAIRS} x {NUM_PAIRS}, D = {WIDTH}, exact ties",
            yardstick="full matrix + argsort, as open_clip does it",
            goal=">= 7x, <= 0.06x memory",
            tolerance=0.0,
        )
    ]


def work(side: str) -> Work:
    generator = torch.Generator().manual_seed(0)
    image_ND = F.normalize(torch.randn(NUM_PAIRS, WIDTH, generator=generator), dim=1)
    noise_ND = F.normalize(torch.randn(NUM_PAIRS, WIDTH, generator=generator), dim=1)
    text_ND = F.normalize(image_ND + 6 * noise_ND, dim=1)
    own_N = torch.arange(NUM_PAIRS)

    def ours() -> tuple[float, float]:
        to_text_N, to_image_N = ranks_both_ways(image_ND, text_ND, (own_N, own_N))
        return float(to_text_N.double().mean()), float(to_image_N.double().mean())

    def sorted_matrix() -> tuple[float, float]:
        scores_NN = image_ND @ text_ND.T
        means = []
        for of_queries in (scores_NN, scores_NN.T):
            order = of_queries.argsort(dim=1, descending=True)
            places = (order == own_N[:, None]).nonzero()[:, 1]
            means.append(float((1 + places).double().mean()))
        return means[0], means[1]

    return ours if side == "ours" else sorted_matrix
