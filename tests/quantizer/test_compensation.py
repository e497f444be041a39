"""Matrices that move before they are rounded: least squares, and what it does to a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morendo.ir.errors import CompileError
from morendo.passes.quantizer import compensation
from morendo.passes.quantizer.compensation import Moments, sum_moments
from morendo.passes.streaming.stream import Arrived, token_weights

from .test_streaming import FORMATS, calibrate, torch_with

TOKENS, K, N = 60, 9, 5


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng().standard_normal(shape, np.float32))


def arrivals(residual: bool) -> list[Arrived]:
    """Three windows at a linear whose output is perhaps added to something."""

    def arrived(beside: Arrived | None) -> Arrived:
        return Arrived(random(TOKENS, K), random(TOKENS, N) if residual else None, beside)

    return [arrived(arrived(None)) for _ in range(3)]


@pytest.mark.parametrize("rows_at_once", [2, 4096])
@pytest.mark.parametrize("residual", [False, True])
def test_moved_all_the_way_outputs_are_nearest_to_the_float_ones(
    residual, rows_at_once, monkeypatch
) -> None:
    monkeypatch.setattr(compensation, "DAMPING", 1e-9)
    monkeypatch.setattr(compensation, "fastest_dtype", lambda: torch.float32)
    windows, matrix = arrivals(residual), random(N, K)
    roots = token_weights(TOKENS).sqrt().numpy()[:, None]
    wanted, given = [], []
    for each in windows:
        assert each.float is not None
        output = each.float.x @ matrix.T
        if residual:
            output += each.float.residual - each.residual
        wanted.append(output.numpy() * roots)
        given.append(each.x.numpy() * roots)
    expected = np.linalg.lstsq(np.concatenate(given), np.concatenate(wanted), rcond=None)[0].T
    (moments,) = sum_moments(iter(windows), matrix)
    monkeypatch.setattr(compensation, "ROWS", rows_at_once)
    for part in (1.0, 0.5):
        moved = matrix.clone()
        moments.move(moved, part, "w")
        aim = (1 - part) * matrix.numpy() + part * expected
        assert np.allclose(moved.numpy(), aim, atol=1e-4)


def test_nothing_moves_without_the_float_model_or_errors() -> None:
    matrix, same = random(N, K), random(TOKENS, K)
    (alone,) = sum_moments(iter([Arrived(same, None)]), matrix)
    (equal,) = sum_moments(iter([Arrived(same, None, Arrived(same, None))]), matrix)
    for moments in (alone, equal):
        moved = matrix.clone()
        moments.move(moved, 0.5, "w")
        assert torch.equal(moved, matrix)


def test_channels_that_are_always_0_are_left_alone() -> None:
    windows = arrivals(False)
    for each in windows:
        each.x[:, 4] = 0
    matrix = random(N, K)
    moved = matrix.clone()
    sum_moments(iter(windows), matrix)[0].move(moved, 0.5, "w")
    assert torch.equal(moved[:, 4], matrix[:, 4])
    assert not torch.equal(moved, matrix)


def test_inputs_that_are_not_finite_are_named() -> None:
    moments = Moments(torch.full((K, K), torch.nan), torch.zeros(K, K), None)
    with pytest.raises(CompileError, match=r"input of a linear is not finite .* at w"):
        moments.move(random(N, K), 0.5, "w")


def test_a_model_of_few_bits_comes_closer_to_float(loaded, prose_windows, tmp_path) -> None:
    """Logits on windows that nothing was calibrated on."""
    from transformers import AutoModelForCausalLM

    from tests.e2e.quality import kl_divergence, torch_logits

    from .test_streaming import TINY

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    windows, found = prose_windows(20), []
    for part in ("0", "0.5"):
        (tmp_path / part).mkdir()
        spec = f"{FORMATS}calibrate-weights{{compensation={part}}}"
        _, codes, _ = calibrate(loaded, windows[:16], tmp_path / part, spec)
        rounded = torch_with(model, codes)
        found.append(
            np.mean(
                [
                    kl_divergence(torch_logits(model, ids), torch_logits(rounded, ids))
                    for ids in windows[16:]
                ]
            )
        )
    assert found[1] < 0.97 * found[0]
