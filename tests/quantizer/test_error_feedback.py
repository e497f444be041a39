"""Rounding with error feedback on made-up second moments."""

import numpy as np
import pytest
import torch

from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.ladders import COMPACT_SCALES, COMPACT_ZEROS, SCALE_STEPS
from morendo.ir.reference import dequantize, pack_quantized, quantize, unpack
from morendo.passes.quantizer import error_feedback
from morendo.passes.quantizer.error_feedback import Feedback, round_with_feedback
from morendo.passes.quantizer.fit import Grid, GroupFit, fit_group

ORDERS = ("natural", "groups", "channels")


def correlated(columns: int, tokens: int = 512) -> torch.Tensor:
    """X'X of inputs that share a few directions, with channels of very different sizes."""
    rng = np.random.default_rng()
    shared = rng.normal(size=(tokens, 8)) @ rng.normal(size=(8, columns))
    x = (shared + 0.3 * rng.normal(size=(tokens, columns))) * rng.lognormal(size=columns)
    return torch.from_numpy((x.T @ x).astype(np.float32))


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng().normal(size=(rows, columns)).astype(np.float32)


def output_error(weight: np.ndarray, rounded: np.ndarray, hessian: torch.Tensor) -> float:
    difference = torch.from_numpy(weight - rounded)
    return float(((difference @ hessian) * difference).sum())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [256, 80])  # 80: the last group of 32 is padded
def test_feedback_beats_rounding_to_nearest(order: str, columns: int) -> None:
    fmt = WeightFormat("q4", 32)
    weight, hessian = weights(48, columns), correlated(columns)
    codes = round_with_feedback(torch.from_numpy(weight), hessian, fmt, Feedback(order=order), "w")
    nearest = dequantize(quantize(weight, fmt), fmt, columns)
    fed_back = dequantize(codes, fmt, columns)
    assert output_error(weight, fed_back, hessian) < 0.5 * output_error(weight, nearest, hessian)


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [("q4g32", 0, 15), ("q4g64", 0, 15), ("q4g32c", 0, 15), ("q8g32", -127, 127)],
)
def test_codes_fit_the_format_and_pack_exactly(spec: str, least: int, most: int) -> None:
    fmt = WeightFormat.parse(spec)
    weight = weights(37, 160)
    weight[3] = 0
    codes = round_with_feedback(torch.from_numpy(weight), correlated(160), fmt, Feedback(), "w")
    assert codes.codes.min() >= least
    assert codes.codes.max() <= most
    assert codes.scale.min() >= 1
    assert 0 <= codes.zero.min() <= codes.zero.max() <= 120
    assert codes.codes.shape == (37, fmt.padded_features(160))
    values = dequantize(codes, fmt, 160)
    assert not values[3].any()
    assert np.array_equal(unpack(pack_quantized(codes, fmt), fmt, 37, 160), values)


@pytest.mark.parametrize("order", ORDERS)
def test_dead_channels_are_rounded_to_nearest(order: str) -> None:
    """Nothing arrives at them, so nothing may be moved into or out of them."""
    fmt = WeightFormat("q4", 32)
    hessian = correlated(96)
    hessian[40:44], hessian[:, 40:44] = 0, 0
    weight = weights(16, 96)
    codes = round_with_feedback(torch.from_numpy(weight), hessian, fmt, Feedback(order=order), "w")
    values = dequantize(codes, fmt, 96)
    step = (codes.row_scale * codes.scale[:, 1] / 255)[:, None]
    inside = np.clip(weight[:, 40:44], values[:, 32:64].min(1)[:, None], None)
    assert np.isfinite(values).all()
    assert (np.abs(values - weight)[:, 40:44] < 3 * step + np.abs(inside)).all()


def test_all_channels_dead() -> None:
    fmt = WeightFormat("q4", 32)
    weight = weights(16, 64)
    codes = round_with_feedback(torch.from_numpy(weight), torch.zeros(64, 64), fmt, Feedback(), "w")
    nearest = quantize(weight, fmt)
    difference = dequantize(codes, fmt, 64) - weight
    assert (
        np.square(difference).sum()
        <= 1.001 * np.square(dequantize(nearest, fmt, 64) - weight).sum()
    )


def test_moments_that_cannot_be_factored_are_refused() -> None:
    hessian = -1e3 * torch.ones(32, 32) + 1001 * torch.eye(32)
    with pytest.raises(CompileError, match=r"cannot be factored at layer\.w"):
        round_with_feedback(
            torch.ones(16, 32), hessian, WeightFormat("q4", 32), Feedback(), "layer.w"
        )


def every_pair(columns: torch.Tensor, importance: torch.Tensor, grid: Grid, row_scale) -> float:
    """The least error that any scale and zero of each row leave, summed."""
    best = torch.full_like(row_scale, torch.inf)
    for code in range(grid.scales.first, grid.scales.last + 1, grid.scales.step):
        for zero in range(grid.zeros.first, grid.zeros.last + 1, grid.zeros.step):
            codes, zeros = torch.full_like(row_scale, code), torch.full_like(row_scale, zero)
            fit = GroupFit(grid, codes, zeros, row_scale * (code / SCALE_STEPS))
            off = fit.value(fit.round(columns)) - columns
            best = torch.minimum(best, (off.square() * importance[:, None]).sum(0))
    return float(best.sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_finds_nearly_the_best_of_all_compact_pairs(bits: int) -> None:
    grid = Grid(bits, COMPACT_SCALES, COMPACT_ZEROS)
    columns, importance = torch.from_numpy(weights(32, 80)), torch.rand(32) + 0.1
    row_scale = grid.range(columns)[0] * 1.2
    fit = fit_group(columns, importance, row_scale, grid)
    error = (fit.value(fit.round(columns)) - columns).square() * importance[:, None]
    assert float(error.sum()) < 1.05 * every_pair(columns, importance, grid, row_scale)
    for values, ladder in ((fit.code, grid.scales), (fit.zero, grid.zeros)):
        rungs = (values - ladder.first) / ladder.step
        assert np.array_equal(rungs, rungs.round().clamp(0, ladder.count - 1))


def test_row_scales_leave_large_weights_that_do_not_count() -> None:
    """One group is large, and its inputs are small: compact scales are better spent on the rest."""
    fmt, weight = WeightFormat.parse("q4g32c"), weights(32, 128)
    weight[:16, :32] *= 10
    size = torch.ones(128)
    size[:32] = 1e-6
    options = Feedback(damping=1e-6)
    codes = round_with_feedback(torch.from_numpy(weight), size.diag(), fmt, options, "w")
    error = np.square(dequantize(codes, fmt, 128) - weight)[:, 32:].mean(1)
    assert error[:16].mean() < 2 * error[16:].mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_search_is_never_worse_than_the_range(bits: int) -> None:
    grid = Grid(bits)
    columns = torch.from_numpy(weights(32, 50))
    importance = torch.rand(32) + 0.01
    step, low = grid.range(columns)

    def error(fit) -> torch.Tensor:
        values = fit.value(fit.round(columns))
        return ((values - columns).square() * importance[:, None]).sum(0)

    searched = error(fit_group(columns, importance, step, grid))
    by_range = error(grid.fit(step, low, step))
    assert (searched <= by_range).all()
    if bits < 8:
        assert searched.sum() < 0.95 * by_range.sum()


@pytest.mark.parametrize(("planes", "bits"), [((0, 0), 2), ((1, 0), 3), ((1, 1), 4)])
def test_fewer_bits_are_read_as_they_were_rounded(planes: tuple[int, int], bits: int) -> None:
    """What the grid says a code stands for is what the format reads there."""
    fmt = WeightFormat("q4", 32, planes)
    weight = weights(16, 32)
    codes = round_with_feedback(torch.from_numpy(weight), torch.eye(32), fmt, Feedback(), "w")
    assert not (codes.codes % (1 << (4 - bits))).any()
    values = dequantize(codes, fmt, 32)
    error = np.square(values - weight).sum() / np.square(weight).sum()
    assert error < {2: 0.2, 3: 0.05, 4: 0.015}[bits]
    assert np.array_equal(unpack(pack_quantized(codes, fmt), fmt, 16, 32), values)


def test_threads_do_not_change_codes() -> None:
    weight, hessian = torch.from_numpy(weights(64, 256)), correlated(256)
    found, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(
            round_with_feedback(weight, hessian, WeightFormat("q4", 32), Feedback(), "w").codes
        )
    torch.set_num_threads(threads)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", ["q4g32cp3,1", "q4g32p2,0o20", "q8g32"])
def test_blocks_of_rows_are_rounded_as_the_whole(name: str, monkeypatch) -> None:
    """Sums of fewer rows may differ in a last digit, and then so do the codes after it."""
    weight, hessian, fmt = weights(80, 128), correlated(128), WeightFormat.parse(name)
    found = []
    for rows in (error_feedback.ROWS, 32):
        monkeypatch.setattr(error_feedback, "ROWS", rows)
        codes = round_with_feedback(torch.from_numpy(weight), hessian, fmt, Feedback(), "w")
        found.append(unpack(pack_quantized(codes, fmt), fmt, 80, 128))
    assert np.mean((found[0] == found[1]).all(1)) > 0.8
    errors = [output_error(weight, values, hessian) for values in found]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_shrinkage_goes_from_all_correlations_to_none() -> None:
    """At 1 it is as if nothing were fed back; between, correlations count in part."""
    fmt, moments = WeightFormat("q4", 32), correlated(64)
    shrunk = error_feedback.padded_moments(moments, fmt, Feedback(shrinkage=0.25))
    assert torch.equal(shrunk.diagonal(), moments.diagonal())
    off = ~torch.eye(64, dtype=torch.bool)
    torch.testing.assert_close(shrunk[off], 0.75 * moments[off])
    alone = error_feedback.padded_moments(moments, fmt, Feedback(shrinkage=1.0))
    assert torch.equal(alone, error_feedback.padded_moments(moments, fmt, Feedback(feedback=False)))
