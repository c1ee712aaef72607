"""Attention against its formula."""

from __future__ import annotations

import pytest
import torch

from lotlip.model.attention import _in_blocks, attend
from lotlip.model.corner_tokens import rule
from lotlip.model.packing import Group

# Two lengths with corner tokens in a block; a block without a mask; one without a sequence; one
# whose corner tokens are under no rule.
SHAPES = [(2, 4, 0), (1, 6, 2), (3, 9, 2), (2, 12, 2), (1, 1, 0), (8, 16, 0), (0, 30, 0)]
GROUPS = [*(Group(*shape) for shape in SHAPES), Group(2, 10, 2, masked=False)]
NUM_ROWS = sum(group.num_texts * group.length for group in GROUPS)
NUM_READ = sum(group.num_texts * group.num_read for group in GROUPS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("read", [False, True])
def test_each_row_sees_of_its_own_sequence_what_the_formula_says(
    dtype: torch.dtype, read: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(num_rows, 24, generator=generator).to(dtype).requires_grad_()
        for num_rows in (NUM_READ if read else NUM_ROWS, NUM_ROWS, NUM_ROWS)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        seen = attend(query, key, value, GROUPS, num_heads=3, read=read)
    expected = formula(query, key, value, read=read)
    assert seen.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(seen, expected.to(dtype), atol=rounding / 2, rtol=rounding)
    weights = torch.randn(seen.shape, generator=generator)
    grads = torch.autograd.grad((seen.double() * weights).sum(), [query, key, value])
    of_formula = torch.autograd.grad((expected * weights).sum(), [query, key, value])
    for grad, want in zip(grads, of_formula, strict=True):
        torch.testing.assert_close(grad, want, atol=2 * rounding, rtol=2 * rounding)


@pytest.mark.parametrize("read", [False, True])
def test_blocks_as_gpus_take_them_give_the_same(read: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(num_rows, 3, 8, generator=generator).requires_grad_()
        for num_rows in (NUM_READ if read else NUM_ROWS, NUM_ROWS, NUM_ROWS)
    ]
    seen = _in_blocks(*inputs, tuple(GROUPS), 0.0, read).flatten(1)
    expected = formula(*(rows.flatten(1) for rows in inputs), read=read)
    torch.testing.assert_close(seen, expected.float(), atol=1e-5, rtol=0)
    weights = torch.randn(seen.shape, generator=generator)
    grads = torch.autograd.grad((seen * weights).sum(), inputs)
    of_formula = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(grads, of_formula, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_inference_leaves_behind_does_not_keep_from_training(dtype: torch.dtype) -> None:
    groups = [Group(3, 7, 2), Group(1, 8, 2)]  # of no other test
    rows = torch.randn(29, 24).to(dtype)
    with torch.inference_mode():
        attend(rows, rows, rows, groups, num_heads=3)
        _in_blocks(*(3 * [rows.unflatten(1, (3, 8))]), tuple(groups), 0.0, False)
    inputs = [rows.clone().requires_grad_() for _ in range(3)]
    attend(*inputs, groups, num_heads=3).sum().backward()
    assert all(one.grad is not None for one in inputs)


def formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, read: bool
) -> torch.Tensor:
    seen, row, num_read = [], 0, 0
    for group in GROUPS:
        m = group.num_corners
        for _ in range(group.num_texts):
            num_queries = m + 1 if read else group.length
            q = query[num_read : num_read + num_queries].double().view(-1, 3, 8)
            k, v = (x[row : row + group.length].double().view(-1, 3, 8) for x in (key, value))
            scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
            allowed = rule(group.num_under_rule, group.length, torch.device("cpu"))[:num_queries]
            shares = scores.masked_fill(~allowed, -torch.inf).softmax(dim=2)
            seen.append(torch.einsum("hqk,khd->qhd", shares, v).flatten(1))
            row, num_read = row + group.length, num_read + num_queries
    return torch.cat(seen)


def test_a_corner_token_reads_the_words_and_is_read_by_none() -> None:
    corner, other, cls, word, sep = rule(2, 5, torch.device("cpu")).tolist()
    assert corner == [True, False, False, True, True]
    assert other == [False, True, False, True, True]
    assert cls == word == sep == [False, False, True, True, True]
