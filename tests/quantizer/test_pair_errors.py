"""The compiled search of scales and zeros against the same sums in torch."""

from __future__ import annotations

import pytest
import torch

from morendo.passes.quantizer.pair_errors import pair_errors


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("zeros", [1, 3, 9])
@pytest.mark.parametrize("each", [False, True])
def test_errors_are_the_weighted_sums_of_squares(rows: int, zeros: int, each: bool) -> None:
    random = torch.Generator().manual_seed(rows * zeros)
    weight = torch.randn(24, rows, generator=random)
    importance = torch.rand(24, rows if each and rows > 1 else 1, generator=random)
    inverse = 8 * torch.rand(5, rows, generator=random)
    inverse[0] = 0  # of a row without a scale
    shift = 15 * torch.rand(5, zeros, rows, generator=random)
    got = pair_errors(weight, importance, inverse, shift, (0, 15))
    scaled = (weight * inverse[:, None])[:, None].double()  # [S, 1, g, N]
    moved = shift[:, :, None].double()
    codes = (weight * inverse[:, None])[:, None].add(shift[:, :, None]).round().clamp(0, 15)
    want = ((codes.double() - moved - scaled).square() * importance.double()).sum(2)
    assert got.shape == want.shape
    assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(got).all()
