"""Codes made for several readings: what each reading loses, beside codes made for it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from morendo.ir.errors import CompileError
from morendo.ir.formats import COMPACT_SCALES, COMPACT_ZEROS, WeightFormat
from morendo.ir.reference import Quantized, dequantize, pack_quantized, unpack_quantized
from morendo.passes.quantizer.error_feedback import Feedback, round_with_feedback
from morendo.passes.quantizer.fit import Grid
from morendo.passes.quantizer.joint_fit import CodeTable, Target, fit_jointly, refit
from morendo.passes.quantizer.joint_rounding import round_for_readings

from .test_error_feedback import correlated, output_error, weights

ROWS, COLUMNS = 48, 256


def seeded(columns: int = COLUMNS, seed: int = 3) -> tuple[np.ndarray, torch.Tensor]:
    """A matrix and second moments of inputs that share a few directions."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(512, 8)) @ rng.normal(size=(8, columns)) / 4
    x = (shared + rng.normal(size=(512, columns))) * rng.lognormal(sigma=0.5, size=columns)
    weight = rng.normal(size=(ROWS, columns)).astype(np.float32)
    return weight, torch.from_numpy((x.T @ x).astype(np.float32))


def rounded(
    weight: np.ndarray, moments: torch.Tensor, spec: str, parts: tuple[float, ...], order="groups"
) -> Quantized:
    fmt, options = WeightFormat.parse(spec), Feedback(order=order, weights=parts)
    count = fmt.reading_count
    matrices = [torch.from_numpy(weight.copy()) for _ in range(count)]
    return round_for_readings(matrices, [moments] * count, fmt, options, "w")


def errors(weight: np.ndarray, moments: torch.Tensor, spec: str, q: Quantized) -> list[float]:
    """The output's error in every reading."""
    fmt, columns = WeightFormat.parse(spec), weight.shape[1]
    values = [dequantize(q, fmt, columns, at=r) for r in range(fmt.reading_count)]
    return [output_error(weight, each, moments) for each in values]


def alone(weight: np.ndarray, moments: torch.Tensor, bits: int) -> float:
    """The error of codes made for one reading."""
    groups = weight.shape[1] // 32
    fmt = replace(WeightFormat.parse("q4g32c"), planes=(groups * (bits > 2), groups * (bits > 3)))
    q = round_with_feedback(torch.from_numpy(weight.copy()), moments, fmt, Feedback(), "w")
    return output_error(weight, dequantize(q, fmt, weight.shape[1]), moments)


@pytest.mark.parametrize(
    ("spec", "parts", "limits"),
    [
        ("q4g32cr43", (0.85, 0.15), (1.3, 1.7)),
        ("q4g32cr432", (0.8, 0.15, 0.05), (1.5, 1.7, 1.9)),
        ("q4g32cr32", (0.85, 0.15), (1.3, 1.7)),
    ],
)
def test_every_reading_is_close_to_codes_made_for_it_alone(spec, parts, limits) -> None:
    weight, moments = seeded()
    bits = WeightFormat.parse(spec).readings
    found = errors(weight, moments, spec, rounded(weight, moments, spec, parts))
    for error, each, limit in zip(found, bits, limits, strict=True):
        assert error < limit * alone(weight, moments, each)


def test_codes_made_for_four_bits_are_worse_with_three() -> None:
    """What readings are for: the upper bits of codes made for all bits lose more."""
    weight, moments = seeded()
    fmt = WeightFormat.parse("q4g32c")
    q = round_with_feedback(torch.from_numpy(weight.copy()), moments, fmt, Feedback(), "w")
    cut = output_error(weight, dequantize(q, fmt, COLUMNS, (8, 0)), moments)
    _, three = errors(
        weight, moments, "q4g32cr43", rounded(weight, moments, "q4g32cr43", (0.7, 0.3))
    )
    assert three < 0.7 * cut


def test_more_weight_leaves_a_reading_less_error() -> None:
    weight, moments = seeded()
    found = [
        errors(weight, moments, "q4g32cr43", rounded(weight, moments, "q4g32cr43", (a, 1 - a)))
        for a in (0.99, 0.6, 0.05)
    ]
    four, three = zip(*found, strict=True)
    assert four[0] < four[1] < four[2]
    assert three[0] > three[1] > three[2]


@pytest.mark.parametrize("spec", ["q4g32cr43p4,2", "q4g32cr432p5,1", "q4g32r43", "q4g64cr432p2,1"])
@pytest.mark.parametrize("order", ["natural", "groups"])
@pytest.mark.parametrize("columns", [256, 200])  # 200: the last group is padded
def test_codes_fit_the_format_and_pack_exactly(spec: str, order: str, columns: int) -> None:
    fmt = WeightFormat.parse(spec)
    weight = weights(37, columns)
    weight[3] = 0
    q = rounded(weight, correlated(columns), spec, (0.7, 0.2, 0.1)[: fmt.reading_count], order)
    assert q.codes.min() >= 0
    assert q.codes.max() <= 15
    for scales in q.readings:
        for values, ladder in ((scales.scale, fmt.scales), (scales.zero, fmt.zeros)):
            rungs = (values.astype(int) - ladder.first) / ladder.step
            assert np.array_equal(rungs, rungs.round())
            assert rungs.min() >= 0
            assert rungs.max() < ladder.count
    again = unpack_quantized(pack_quantized(q, fmt), fmt, 37)
    for reading in range(fmt.reading_count):
        values = dequantize(q, fmt, columns, at=reading)
        assert not values[3].any()
        assert np.array_equal(dequantize(again, fmt, columns, at=reading), values)


def test_readings_of_one_width_share_codes_and_lose_alike() -> None:
    """A group of 2 bits is read with 2 bits at every reading."""
    weight, moments = seeded()
    spec = "q4g32cr432p0,0"
    found = errors(weight, moments, spec, rounded(weight, moments, spec, (0.6, 0.3, 0.1)))
    np.testing.assert_allclose(found, found[0], rtol=0.05)
    assert found[0] < 1.1 * alone(weight, moments, 2)


def test_a_reading_is_rounded_for_what_arrives_at_it() -> None:
    """Each has moments and a matrix of its own, as after other readings of earlier matrices."""
    spec, parts = "q4g32cr43", (0.5, 0.5)
    fmt, (weight, first), (moved, second) = WeightFormat.parse(spec), seeded(), seeded(seed=4)
    moved = weight + 0.05 * moved
    matrices = [torch.from_numpy(weight.copy()), torch.from_numpy(moved.copy())]
    q = round_for_readings(matrices, [first, second], fmt, Feedback(weights=parts), "w")
    other = rounded(weight, first, spec, parts)
    got, want = (
        output_error(moved, dequantize(each, fmt, COLUMNS, at=1), second) for each in (q, other)
    )
    assert got < 0.7 * want


def test_moments_that_cannot_be_factored_are_refused() -> None:
    bad = -1e3 * torch.ones(32, 32) + 1001 * torch.eye(32)
    fmt = WeightFormat.parse("q4g32cr43")
    options = Feedback(weights=(0.7, 0.3))
    with pytest.raises(CompileError, match=r"cannot be factored at layer\.w"):
        round_for_readings([torch.ones(16, 32)] * 2, [torch.eye(32), bad], fmt, options, "layer.w")


def some_targets(bits: tuple[int, ...], rows: int = 40) -> list[Target]:
    columns = torch.from_numpy(weights(32, rows))
    targets = []
    for each in bits:
        grid = Grid(each, COMPACT_SCALES, COMPACT_ZEROS)
        row_scale = grid.range(columns)[0] * 1.2
        targets.append(Target(columns, torch.rand(32) + 0.1, row_scale, grid))
    return targets


def test_a_code_is_the_one_of_all_that_costs_least() -> None:
    targets = some_targets((4, 3, 2))
    table, parts = CodeTable(fit_jointly(targets)), (0.5, 0.3, 0.2)
    wanted = [target.columns[0] + 0.1 * i for i, target in enumerate(targets)]
    chosen = table.choose(wanted, parts)

    def cost(codes: torch.Tensor) -> torch.Tensor:
        pairs = zip(table.values(codes), wanted, parts, strict=True)
        return torch.stack([part * (v - w).square() for v, w, part in pairs]).sum(0)

    every = torch.stack([cost(torch.full_like(chosen, code)) for code in range(16)])
    assert torch.equal(cost(chosen), every.amin(0))
    fits = fit_jointly(targets)
    for fit, values in zip(fits, table.values(chosen), strict=True):
        cut = chosen >> (4 - fit.grid.bits)
        assert torch.allclose(values, fit.value(cut.float()))


def test_refitting_never_adds_error() -> None:
    (target,) = some_targets((3,))
    codes = torch.randint(0, 8, target.columns.shape).float()
    (fit,) = fit_jointly([target])
    new = refit(fit, target, codes)

    def error(each) -> torch.Tensor:
        off = (each.value(codes) - target.columns).square()
        return (off * target.importance[:, None]).sum(0)

    assert (error(new) <= error(fit) * (1 + 1e-5)).all()
    assert error(new).sum() < error(fit).sum()
