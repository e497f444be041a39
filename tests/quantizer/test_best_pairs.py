"""The compiled search of scales and zeros against the same sums in torch."""

from __future__ import annotations

import pytest
import torch

from morendo.passes.quantizer.best_pairs import best_pairs


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("zeros", [1, 3, 9])
@pytest.mark.parametrize("each", [False, True])
def test_the_pair_of_the_least_error_is_found(rows: int, zeros: int, each: bool) -> None:
    random = torch.Generator().manual_seed(rows * zeros)
    weight = torch.randn(24, rows, generator=random)
    importance = torch.rand(24, rows if each and rows > 1 else 1, generator=random)
    spacing = 0.02 + 0.3 * torch.rand(5, rows, generator=random)
    shift = 15 * torch.rand(5, zeros, rows, generator=random)
    found = best_pairs(weight, importance, 1 / spacing, shift, spacing, (0, 15))
    scaled = (weight / spacing[:, None])[:, None].double()  # [S, 1, g, N]
    moved = shift[:, :, None].double()
    codes = (scaled + moved).round().clamp(0, 15)
    errors = ((codes - moved - scaled).square() * importance.double()).sum(2)
    errors = (errors * spacing[:, None].double().square()).flatten(0, 1)
    assert found.shape == (rows,)
    assert torch.allclose(errors.gather(0, found[None])[0], errors.amin(0), rtol=1e-4, atol=1e-7)


def test_rows_without_a_scale_take_the_first_pair() -> None:
    nothing, weight = torch.zeros(2, 5), torch.randn(8, 5)
    found = best_pairs(weight, torch.ones(8, 1), nothing, torch.zeros(2, 3, 5), nothing, (0, 15))
    assert found.tolist() == [0] * 5
