"""Quantized linear kernels against numpy: exact integers, levels, tails, epilogues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir import reference
from morendo.ir.formats import WeightFormat
from tests.numerics.kernel_runner import emulated_isas, native_isas
from tests.numerics.linear_cases import (
    Activations,
    compile_kernel,
    exact_scales,
    expected_sums,
    finish,
    random_epilogue,
    random_outliers,
    random_weights,
    run_poisoned,
)

NATIVE, EMULATED = native_isas(), emulated_isas()
ISAS = [*NATIVE, *EMULATED]
ONE_OF_A_SHAPE = [*NATIVE, *EMULATED[::2]]
"""For outliers and epilogues, which see of a unit's products only how the sums lie."""
CASES = [  # every vector unit reads every kind of code; the best one also other groups
    *((isa, f) for isa in ISAS for f in ("q4g32", "q4g64", "q4g32n", "q4g32c", "q6g32", "q8g32")),
    *((isa, f) for isa in ISAS[:1] for f in ("q4g128", "q4g128nc", "q5g32c", "q6g64c", "q8g64")),
]
GATES = [
    *((isa, "silu", fmt) for isa in ONE_OF_A_SHAPE for fmt in ("q4g32", "q4g32c", "q8g32")),
    *((isa, gate, "q4g32") for isa in ISAS[:1] for gate in ("", "gelu", "gelu_tanh", "relu")),
]


def label(value) -> str | None:
    """Test names with the names of vector units."""
    return getattr(value, "name", None)


def stored_formats(spec: LinearSpec) -> list[WeightFormat]:
    """The kernel's format with all planes, some groups of them, and none."""
    if not spec.format.plane_names:
        return [spec.format]
    groups, more = spec.groups, spec.format.bits - 4
    counts = {(groups, groups // 2), (groups * 2 // 3, groups // 3), (groups // 2, 0), (0, 0)}
    stored = sorted((n3, n4, *(n4 // 2, n4 // 3)[:more]) for n3, n4 in counts)
    return [spec.format, *(replace(spec.format, planes=planes) for planes in stored)]


def levels(spec: LinearSpec, fmt: WeightFormat) -> list[tuple[int, ...]]:
    """Levels (n3, n4, ...) that mix all precisions that the planes allow."""
    if not fmt.plane_names:
        return [()]
    n3, n4, *more = fmt.plane_groups(spec.in_features)
    mixes = [(n3, n4), (n3, n4 // 2), (n3 // 2, n3 // 3), (n3, 0), (0, 0)]
    pairs = {(a, min(b, a, n4)) for a, b in mixes}
    lower = [(n3, n4, *more), (n3, n4, *(0 for _ in more))]
    mixed = [(a, b, *(min(b, n) // (2 + i) for i, n in enumerate(more))) for a, b in pairs]
    return sorted({*lower, *mixed}, reverse=True)


SLOTS = 21


def damage_outliers(packed: dict[str, np.ndarray], spec: LinearSpec) -> None:
    """Places outside of the matrix for the last row of tiles and the last channel, and a range that
    begins behind all entries where there are none: the kernel computes the same.
    """
    row, channel, start = (packed[f"outlier_{name}"] for name in ("row", "channel", "start"))
    row[row == spec.format.row_tile - 1] = 255
    channel[channel == spec.groups * spec.format.group_size - 1] = 65535
    start[-1] = 65535
    assert (row == 255).any() and (channel == 65535).any()


def run_case(
    spec, isa, tokens: int, exact: bool, seed: int, damage: Callable[..., None] | None = None
) -> None:
    rng = np.random.default_rng(seed)
    run = compile_kernel(spec, isa)
    weights, x = random_weights(rng, spec), Activations.random(rng, spec)
    if spec.outliers:
        weights = replace(weights, outliers=random_outliers(rng, spec, SLOTS))
    if exact:
        weights, x = exact_scales(spec, weights, x)
    epilogue = random_epilogue(rng, spec)
    for fmt in stored_formats(spec):
        fmt = replace(fmt, slots=SLOTS) if spec.outliers else fmt
        packed = reference.pack_quantized(weights, fmt)
        if damage:
            damage(packed, spec)
        inputs = [*x.stored(isa), *packed.values(), *epilogue]
        for level in levels(spec, fmt) if fmt.nested else [None]:
            counts = (*level, *fmt.plane_groups(spec.in_features)) if level else ()
            counts += (SLOTS,) if spec.outliers else ()
            y = run_poisoned(run, spec, inputs, tokens, *counts)
            expected = finish(spec, expected_sums(spec, weights, x, level), *epilogue)[:tokens]
            check(y, expected, exact)


def check(y: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    if exact:
        assert np.abs(expected).max() < 2**24
        np.testing.assert_array_equal(y, np.rint(expected))
    else:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize(("isa", "fmt"), CASES, ids=label)
@pytest.mark.parametrize(("rows", "columns"), [(71, 416), (33, 100)])
def test_one_token_is_exact(isa, fmt, rows, columns):
    spec = LinearSpec(rows, columns, WeightFormat.parse(fmt), max_tokens=1)
    run_case(spec, isa, 1, exact=True, seed=rows)


@pytest.mark.parametrize(("isa", "fmt"), CASES, ids=label)
@pytest.mark.parametrize("tokens", [1, 7, 9, 31])
def test_many_tokens_are_exact(isa, fmt, tokens):
    spec = LinearSpec(71, 416, WeightFormat.parse(fmt), max_tokens=31)
    run_case(spec, isa, tokens, exact=True, seed=tokens)


@pytest.mark.parametrize("isa", ONE_OF_A_SHAPE, ids=label)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (71, 416), (33, 100)])
@pytest.mark.parametrize(("max_tokens", "tokens"), [(1, 1), (3, 2), (8, 8), (31, 29)])
def test_outliers_are_exact(isa, rows, columns, max_tokens, tokens):
    spec = LinearSpec(rows, columns, WeightFormat("q4", 32), max_tokens, outliers=True)
    run_case(spec, isa, tokens, exact=True, seed=rows + tokens)


@pytest.mark.parametrize("isa", ONE_OF_A_SHAPE, ids=label)
@pytest.mark.parametrize("max_tokens", [1, 31])
def test_damaged_outliers_stay_in_their_matrix(isa, max_tokens):
    spec = LinearSpec(71, 416, WeightFormat("q4", 32), max_tokens, outliers=True)
    run_case(spec, isa, max_tokens, exact=True, seed=3, damage=damage_outliers)


@pytest.mark.parametrize("max_tokens", [1, 13])
@pytest.mark.parametrize("gate", ["", "silu"])
@pytest.mark.parametrize("isa", ONE_OF_A_SHAPE, ids=label)
def test_outliers_with_epilogues(isa, gate, max_tokens):
    fmt = WeightFormat("q4", 64)
    spec = LinearSpec(
        2 * 45, 200, fmt, max_tokens, bias=True, residual=True, gate=gate, outliers=True
    )
    run_case(spec, isa, max_tokens, exact=False, seed=max_tokens)


@pytest.mark.parametrize("max_tokens", [1, 13])
@pytest.mark.parametrize(("isa", "gate", "fmt"), GATES, ids=label)
def test_epilogues(isa, gate, fmt, max_tokens):
    spec = LinearSpec(
        2 * 45, 96, WeightFormat.parse(fmt), max_tokens, bias=True, residual=True, gate=gate
    )
    run_case(spec, isa, max_tokens, exact=False, seed=max_tokens)


@pytest.mark.parametrize("fmt", ["q4g32", "q8g32"])
@pytest.mark.parametrize("max_tokens", [256, 200])
def test_whole_chunk_with_scales(fmt, max_tokens):
    spec = LinearSpec(100, 200, WeightFormat.parse(fmt), max_tokens, residual=True)
    for tokens in (max_tokens, max_tokens - 1, 65):
        run_case(spec, ISAS[0], tokens, exact=False, seed=tokens)
