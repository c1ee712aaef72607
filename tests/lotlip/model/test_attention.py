"""Attention against its formula."""

from __future__ import annotations

import pytest
import torch

from lotlip.model.attention import attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_the_formula_and_keeps_the_type(
    dtype: torch.dtype, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, length, 8, generator=generator).to(dtype).requires_grad_()
        for length in (4, 5, 5)
    )
    mask = torch.eye(4, 5, dtype=torch.bool) if masked else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        seen = attention(query, key, value, mask=mask)
    scores = query.double() @ key.double().transpose(2, 3) / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = scores.softmax(dim=3) @ value.double()
    assert seen.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(seen, expected.to(dtype), atol=rounding / 10, rtol=rounding)
    grads = torch.autograd.grad(seen.double().sum(), [query, key, value])
    of_formula = torch.autograd.grad(expected.sum(), [query, key, value])
    for grad, want in zip(grads, of_formula, strict=True):
        torch.testing.assert_close(grad, want, atol=rounding, rtol=2 * rounding)
