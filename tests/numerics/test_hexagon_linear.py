"""Linear kernels of HVX under qemu-hexagon against their own reference: every bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir import reference
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.targets import find_target
from morendo.targets.hexagon import fixed_point
from morendo.targets.hexagon.isa import HVX, HvxISA
from morendo.targets.hexagon.linear import build_integer_linear
from morendo.targets.hexagon.pipeline import TilePipeline
from morendo.targets.hexagon.target import make
from tests.numerics.emulated_kernel import can_emulate
from tests.numerics.kernel_runner import compile_function
from tests.numerics.linear_cases import (
    Activations,
    Quantized,
    exact_dots,
    expected_sums,
    random_weights,
    run_poisoned,
)
from tests.numerics.test_quantized_linear import levels, run_case, stored_formats

emulated = pytest.mark.skipif(
    not can_emulate(make("hexagon:v67")), reason="qemu-hexagon (qemu-user) is not installed"
)
SLOW = pytest.mark.slow


def spec_of(rows: int, columns: int, fmt: str, tokens: int, **rest) -> LinearSpec:
    parsed = dataclasses.replace(WeightFormat.parse(fmt), row_tile=HVX.lanes)
    return LinearSpec(rows, columns, parsed, tokens, **rest)


def in_fixed_point(
    spec: LinearSpec, weights: Quantized, x: Activations, level: tuple[int, ...] | None
) -> np.ndarray:
    """What the kernel gives, for all packed rows, if it is as far from exact as it may be."""
    columns, unit = spec.groups * spec.format.group_size, 255 * spec.format.unit
    dots = exact_dots(spec, weights, x, level)
    ratios, largest = fixed_point.token_ratios(x.scales)
    sums = fixed_point.fixed_point_sums(dots, weights.scale, ratios, columns)
    result = fixed_point.to_floats(sums, largest, weights.row_scale, columns, unit)
    bound = fixed_point.error_bound(dots, weights.scale, largest, weights.row_scale, columns, unit)
    exact = expected_sums(spec, weights, x, level)
    assert np.all(np.abs(result - exact) <= bound + 4 * 2.0**-24 * np.abs(exact))
    return result


def run_exactly(
    spec: LinearSpec, tokens: int, seed: int, extreme: bool = False, isa: HvxISA = HVX
) -> None:
    """All levels of all plane counts; `extreme` has the largest numbers that there can be."""
    rng = np.random.default_rng(seed)
    run = compile_function(build_integer_linear(spec, isa), HVX)
    weights, x = random_weights(rng, spec), Activations.random(rng, spec)
    if extreme:
        weights, x = at_the_limit(spec, weights, x)
    for fmt in stored_formats(spec):
        inputs = [*x.stored(HVX), *reference.pack_quantized(weights, fmt).values()]
        for level in levels(spec, fmt) if fmt.nested else [None]:
            counts = (*level, *fmt.plane_groups(spec.in_features)) if level else ()
            y = run_poisoned(run, spec, inputs, tokens, *counts)
            expected = in_fixed_point(spec, weights, x, level)[:tokens, : spec.out_features]
            np.testing.assert_array_equal(y, expected)


def at_the_limit(spec: LinearSpec, weights: Quantized, x: Activations):
    """The largest sums of both signs, in a token of zeros another."""
    low, high = (-127, 127) if spec.format.kind == "q8" else (0, 15)
    codes = np.full_like(weights.codes, high)
    codes[1::2] = low
    zero = np.where(np.arange(len(codes)) % 2, weights.zero.max(), weights.zero.min())
    scale = np.full_like(weights.scale, 255)
    zeros = np.broadcast_to(zero[:, None], weights.zero.shape).astype(np.int8)
    weights = dataclasses.replace(weights, codes=codes, scale=scale, zero=zeros)
    activations = np.full_like(x.codes, 127)
    activations[1:2] = -127
    scales = np.full_like(x.scales, 3e38 / 2**30)
    scales[2:3] = 0
    scales[3:4, 1:] = 1e-38
    sums = activations.reshape(*x.sums.shape, -1).sum(-1, dtype=np.int32)
    return weights, Activations(activations, scales, sums)


@emulated
@pytest.mark.parametrize(
    ("fmt", "rows", "columns"),
    [
        ("q4g32c", 71, 416),
        ("q4g32", 33, 100),
        *(
            pytest.param(fmt, rows, columns, marks=SLOW)
            for fmt in ("q4g32", "q4g64", "q4g128", "q4g32c", "q4g128c", "q6g32", "q5g32c", "q8g32")
            for rows, columns in ((48, 32), (71, 416), (33, 100), (95, 900))
            if (fmt, rows) not in (("q4g32c", 71), ("q4g32", 33))
        ),
    ],
)
def test_one_token_is_its_references(fmt: str, rows: int, columns: int) -> None:
    run_exactly(spec_of(rows, columns, fmt, 1), 1, seed=rows)


@emulated
@pytest.mark.parametrize(
    ("fmt", "rows", "copy"),
    [
        ("q4g32c", 1000, 2),
        *(
            pytest.param(fmt, rows, copy, marks=SLOW)
            for fmt in ("q4g32", "q4g64c", "q6g32", "q8g32")
            for rows, copy in ((33, 4), (71, 1), (1663, 1), (3100, 3))
        ),
    ],
)
def test_copied_tiles_are_read_alike(fmt: str, rows: int, copy: int) -> None:
    """Tasks of one block and of several; fewer of them than are copied ahead, too."""
    isa = dataclasses.replace(HVX, pipeline=TilePipeline(copy=copy))
    run_exactly(spec_of(rows, 100, fmt, 1), 1, seed=rows, isa=isa)


def test_the_copy_stage_is_described_and_has_room() -> None:
    target = find_target("hexagon:v68:fetch=0,copy=2")
    kernel = build_integer_linear(spec_of(64, 4096, "q4g32", 1), target.isa)
    assert kernel.attrs is not None
    stages = {name: int(depth) for name, depth in kernel.attrs["morendo.pipeline"].items()}
    assert stages == {"fetch": 0, "copy": 2, "unpack": 1, "multiply": 1}
    script = kernel.script()
    assert "on_chip_copy" in script and "l2fetch" not in script
    with pytest.raises(
        CompileError,
        match=r"blocks of tiles do not fit the memory beside .* \(got 4608 KiB for 6 units, need "
        r"at most 2048\) at a matrix of 64 x 8192, q4g32t32; leave the stage copy out",
    ):
        build_integer_linear(spec_of(64, 8192, "q4g32", 1), find_target("hexagon:v67:copy=2").isa)


@emulated
@pytest.mark.parametrize(
    ("fmt", "tokens"),
    [
        ("q4g32c", 7),
        *(
            pytest.param(fmt, tokens, marks=SLOW)
            for fmt in ("q4g32", "q4g64c", "q4g32c", "q6g32", "q8g32", "q8g64")
            for tokens in (1, 2, 8, 9, 31)
        ),
    ],
)
def test_many_tokens_are_their_references(fmt: str, tokens: int) -> None:
    run_exactly(spec_of(71, 416, fmt, 31), tokens, seed=tokens)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("fmt", ["q4g32", "q4g128c", "q8g32"])
def test_no_sum_overflows(fmt: str, tokens: int) -> None:
    run_exactly(spec_of(32, 1536, fmt, tokens), tokens, seed=1, extreme=True)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(("gate", "tokens"), [("", 1), ("", 31), ("silu", 1), ("silu", 31)])
def test_outliers_are_added(gate: str, tokens: int) -> None:
    spec = spec_of(90, 416, "q4g32", tokens, outliers=True, gate=gate)
    run_case(spec, HVX, tokens, exact=False, seed=tokens)


@emulated
@pytest.mark.parametrize(
    ("gate", "tokens"),
    [
        ("silu", 1),
        *(pytest.param("silu", 13, marks=SLOW),),
        *(pytest.param(gate, 1, marks=SLOW) for gate in ("", "gelu", "gelu_tanh", "relu")),
    ],
)
def test_epilogues(gate: str, tokens: int) -> None:
    case = spec_of(2 * 45, 96, "q4g32", tokens, bias=True, residual=True, gate=gate)
    run_case(case, HVX, tokens, exact=False, seed=tokens)


@pytest.mark.parametrize("columns", [32, 96, 576, 1536, 14336, 1 << 16])
def test_sums_fit_a_word(columns: int) -> None:
    """The largest dot products, scales and ratios of all groups, and no shift too many."""
    shift = fixed_point.sum_shift(columns)
    groups = columns // 32
    most = groups // 2 + groups * ((127 * 127 * 32 * 255 * 65535 >> 16) >> shift)
    assert most < 1 << 31
    assert not shift or 2 * most > 0.99 * 2**31


def test_ratios_are_nearest_and_zeros_stay_zeros() -> None:
    scales = np.array([[0.5, 0.25, 1e-9], [0, 0, 0]], np.float32)
    ratios, largest = fixed_point.token_ratios(scales)
    assert ratios.tolist() == [[65535, 32768, 0], [0, 0, 0]]
    assert largest.tolist() == [0.5, fixed_point.SMALLEST]
