"""Linear kernels with activations of 16 bits under the emulator, against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir import reference
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import Quantized
from morendo.targets.cuda.kernels.fragments import channel_of_place, place_of_channel
from morendo.targets.cuda.kernels.half_linear import build_half_linear, half_activation
from morendo.targets.cuda.kernels.pipeline import SYNCHRONOUS, Pipeline
from morendo.targets.cuda.target import GPU
from tests.cuda.emulated import EmulatedKernel, needs_compiler
from tests.numerics.kernel_runner import frozen, poisoned
from tests.numerics.linear_cases import (
    finish,
    random_epilogue,
    random_outliers,
    random_weights,
    run_poisoned,
)
from tests.numerics.test_quantized_linear import SLOTS, levels, stored_formats

pytestmark = needs_compiler
ISA = GPU("cuda", "sm_80")


def scaled_halves(x: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """(halves, scales) of rows: the largest power of two that is no larger than a row's values."""
    largest = np.abs(x).max(axis=1)
    scales = np.exp2(np.floor(np.log2(largest, where=largest > 0, out=np.zeros_like(largest))))
    return (x / scales[:, None]).astype(np.float16), scales.astype(np.float32)


WARPGROUPS = replace(ISA, warpgroups=True)


@pytest.mark.parametrize("isa", [ISA, WARPGROUPS], ids=["warps", "warpgroups"])
@pytest.mark.parametrize(("group", "features", "ordered"), [(32, 576, True), (64, 100, False)])
def test_rows_are_halved_without_overflow(group, features, ordered, isa):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, features)).astype(np.float32)
    x *= np.array([1e6, 1e-30, 1, 0], np.float32)[:, None]
    x[1, 3], order = 0, rng.permutation(features).astype(np.uint16)
    kernel = EmulatedKernel(
        half_activation(isa, max_tokens=4, features=features, group_size=group, ordered=ordered)
    )
    padded = -(-features // group) * group
    halves, scales = poisoned((4, padded), np.float16), poisoned((4,))
    kernel(frozen(x), *([frozen(order)] if ordered else []), halves, scales, 3)
    if isa.warpgroups:
        halves = halves[:, place_of_channel(np.arange(padded))]
    want, sizes = scaled_halves(x[:3, order] if ordered else x[:3])
    np.testing.assert_array_equal(halves[:3, :features], want)
    np.testing.assert_array_equal(scales[:3], sizes)
    assert not halves[:3, features:].any()
    assert np.isnan(scales[3]) and np.isnan(halves[3]).all()
    kernel(
        frozen(x),
        *([frozen(order)] if ordered else []),
        halves := poisoned((4, padded), np.float16),
        scales,
        4,
    )
    assert scales[3] == 1 and not halves[3].any()


def expected(
    spec: LinearSpec, weights: Quantized, x: NDArray, level: tuple[int, ...] | None, few: bool
) -> NDArray[np.float64]:
    """Sums [M, packed rows] of halves: a weight is rounded to a half where many tokens read it."""
    codes, zero = reference.reading(weights, spec.format, level)
    size = spec.format.group_size
    parts = codes.reshape(len(codes), -1, size).astype(np.float64) - zero[..., None]
    parts = parts * weights.scale[..., None].astype(np.float64)
    matrix = (parts if few else parts.astype(np.float16)).reshape(len(codes), -1)
    rows = weights.row_scale.astype(np.float64) / (255 * spec.format.unit)
    sums = x.astype(np.float64) @ matrix.astype(np.float64).T * rows
    if weights.outliers is not None and level is not None:
        sparse = np.zeros(weights.codes.shape, np.float32)
        weights.outliers.add_to(sparse, level[0] * size)
        sums += x.astype(np.float64) @ sparse.T
    return sums


def run_case(spec: LinearSpec, tokens: int, seed: int, isa: GPU = ISA) -> None:
    """At levels that mix all precisions, with whole planes, parts of them and none."""
    rng, few = np.random.default_rng(seed), spec.max_tokens < isa.tensor_tokens
    kernel = EmulatedKernel(build_half_linear(spec, isa))
    weights = random_weights(rng, spec)
    if spec.outliers:
        weights = replace(weights, outliers=random_outliers(rng, spec, SLOTS))
    x = rng.standard_normal((spec.max_tokens, spec.groups * spec.format.group_size))
    x[:, spec.in_features :] = 0
    halves, scales = scaled_halves(x.astype(np.float32) * np.float32(300))
    wide = halves * scales[:, None].astype(np.float64)
    if isa.warpgroups and not few:
        halves = np.ascontiguousarray(halves[:, channel_of_place(np.arange(halves.shape[1]))])
    epilogue = random_epilogue(rng, spec)
    halves[tokens:], scales[tokens:] = np.nan, np.nan
    for fmt in stored_formats(spec):
        fmt = replace(fmt, slots=SLOTS) if spec.outliers else fmt
        inputs = [halves, scales, *reference.pack_quantized(weights, fmt).values(), *epilogue]
        for level in levels(spec, fmt) if fmt.nested else [None]:
            counts = (*level, *fmt.plane_groups(spec.in_features)) if level else ()
            counts += (SLOTS,) if spec.outliers else ()
            y = run_poisoned(kernel, spec, inputs, tokens, *counts)
            sums = expected(spec, weights, wide, level, few)
            want = finish(spec, sums, *epilogue)[:tokens]
            np.testing.assert_allclose(y, want, rtol=3e-5, atol=3e-5 * np.abs(want).max())


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "fmt", ["q4g32c", "q8g32", *(pytest.param(f, marks=SLOW) for f in ("q4g32", "q5g32c", "q4g64"))]
)
def test_one_token(fmt):
    run_case(LinearSpec(71, 416, WeightFormat.parse(fmt), 1, residual=True), 1, seed=1)


@pytest.mark.parametrize(
    ("fmt", "tokens"),
    [
        ("q4g32c", 9),
        *(
            pytest.param(fmt, tokens, marks=SLOW)
            for fmt, tokens in (("q4g32", 17), ("q8g32", 17), ("q6g64", 16), ("q4g128c", 17))
        ),
    ],
)
def test_many_tokens(fmt, tokens):
    run_case(LinearSpec(71, 416, WeightFormat.parse(fmt), 17), tokens, seed=2)


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=SLOW), 9])
@pytest.mark.parametrize("isa", [ISA, WARPGROUPS], ids=["warps", "warpgroups"])
def test_outliers_and_gates(tokens, isa):
    fmt = WeightFormat.parse("q4g32")
    spec = LinearSpec(90, 200, fmt, tokens, bias=True, gate="silu", outliers=True)
    run_case(spec, tokens, seed=4, isa=isa)


@pytest.mark.parametrize(
    ("fmt", "most", "tokens"),
    [
        ("q4g32c", 20, 17),
        *(
            pytest.param(fmt, most, tokens, marks=SLOW)
            for fmt, most, tokens in (
                ("q4g32", 9, 8), ("q8g32", 128, 100), ("q6g64", 40, 33), ("q4g128c", 70, 70),
                ("q4g64", 150, 140),
            )
        ),
    ],
)  # fmt: skip
def test_warpgroups_multiply(fmt, most, tokens):
    run_case(
        LinearSpec(71, 416, WeightFormat.parse(fmt), most, residual=True), tokens, 6, WARPGROUPS
    )


@pytest.mark.parametrize("pipeline", [SYNCHRONOUS, Pipeline(2, 1), Pipeline(4, 1)], ids=str)
def test_warpgroups_wait_as_the_pipeline_says(pipeline):
    isa = replace(WARPGROUPS, pipeline=pipeline)
    run_case(LinearSpec(17, 160, WeightFormat("q4", 32), 9), 9, seed=7, isa=isa)


def test_copies_that_are_waited_for_give_the_same():
    isa = replace(ISA, pipeline=SYNCHRONOUS)
    run_case(LinearSpec(17, 160, WeightFormat("q4", 32), 9), 9, seed=5, isa=isa)


@pytest.mark.slow
def test_512_tokens():
    spec = LinearSpec(40, 96, WeightFormat.parse("q4g32c"), 512, residual=True)
    for tokens in (512, 450):
        run_case(spec, tokens, seed=tokens)
