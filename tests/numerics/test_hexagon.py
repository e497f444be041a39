"""Kernels for HVX under qemu-hexagon, by the cases of every other vector unit: integers exact.

A few are quick; `make test-all` runs the others. What is tested is the form that the target makes
of kernels, with vectors of floats computed by integers.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec, kernel_builder, tensor_argument
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.ir.formats import WeightFormat
from morendo.targets.hexagon import intrinsics as hvx
from morendo.targets.hexagon.isa import HVX
from morendo.targets.hexagon.target import make
from tests.numerics import test_attention as attention
from tests.numerics import test_small_kernels as small
from tests.numerics.emulated_kernel import can_emulate
from tests.numerics.kernel_runner import compile_function, frozen
from tests.numerics.test_quantized_linear import run_case

pytestmark = pytest.mark.skipif(
    not can_emulate(make("hexagon:v67")), reason="qemu-hexagon (qemu-user) is not installed"
)
SLOW = pytest.mark.slow
TILE = 32


def spec(rows: int, columns: int, fmt: str, tokens: int, **rest) -> LinearSpec:
    parsed = dataclasses.replace(WeightFormat.parse(fmt), row_tile=TILE)
    return LinearSpec(rows, columns, parsed, tokens, **rest)


@pytest.mark.parametrize("intrinsic", hvx.ALL, ids=lambda i: i.llvm)
@pytest.mark.slow
def test_meaning(intrinsic) -> None:
    rng = np.random.default_rng(7)
    operands = []
    for dtype in intrinsic.operands:
        lanes = int(dtype.partition("x")[2] or 1)
        counts = lanes == 1 and intrinsic is not hvx.DOT_SCALAR
        low, high = (0, 32) if counts else (-(1 << 31), 1 << 31)
        operands.append(rng.integers(low, high, lanes).astype(np.int32))
    with np.errstate(over="ignore"):
        expected = np.asarray(intrinsic.meaning(*operands))
    with kernel_builder("apply") as builder:
        buffers = [tensor_argument(f"a{i}", a.shape, "int32") for i, a in enumerate(operands)]
        out = tensor_argument("out", expected.shape, "int32")
        values = [load(b, (0,), a.size) for b, a in zip(buffers, operands, strict=True)]
        store(out, (0,), intrinsic(*values), expected.size)
    result = np.zeros_like(expected)
    compile_function(builder.get(), HVX)(*(frozen(a) for a in operands), result)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("fmt", "rows", "columns"),
    [
        ("q4g32", 71, 416),
        *(
            pytest.param(fmt, rows, columns, marks=SLOW)
            for fmt in ("q4g32", "q4g64", "q4g128", "q4g32c", "q6g32", "q8g32")
            for rows, columns in ((48, 32), (71, 416), (33, 100))
            if (fmt, rows) != ("q4g32", 71)
        ),
    ],
)
def test_one_token_is_exact(fmt: str, rows: int, columns: int) -> None:
    run_case(spec(rows, columns, fmt, 1), HVX, 1, exact=True, seed=rows)


@pytest.mark.parametrize(
    ("fmt", "tokens"),
    [
        ("q4g32", 7),
        *(
            pytest.param(fmt, tokens, marks=SLOW)
            for fmt in ("q4g32", "q4g32c", "q6g32", "q8g32")
            for tokens in (1, 2, 8, 9, 31)
        ),
    ],
)
def test_many_tokens_are_exact(fmt: str, tokens: int) -> None:
    run_case(spec(71, 416, fmt, 31), HVX, tokens, exact=True, seed=tokens)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 31])
def test_outliers_are_exact(tokens: int) -> None:
    run_case(spec(71, 416, "q4g32", tokens, outliers=True), HVX, tokens, exact=True, seed=tokens)


@pytest.mark.parametrize(
    ("gate", "tokens"),
    [
        ("silu", 1),
        *(pytest.param("silu", 13, marks=SLOW),),
        *(pytest.param(gate, 1, marks=SLOW) for gate in ("", "gelu", "gelu_tanh", "relu")),
    ],
)
def test_epilogues(gate: str, tokens: int) -> None:
    case = spec(2 * 45, 96, "q4g32", tokens, bias=True, residual=True, gate=gate)
    run_case(case, HVX, tokens, exact=False, seed=tokens)


def with_tile(case: attention.Case) -> attention.Case:
    context = -(-case.cache.context // TILE) * TILE
    return dataclasses.replace(
        case, cache=dataclasses.replace(case.cache, tile=TILE, context=context)
    )


@pytest.mark.parametrize(
    "case",
    [
        with_tile(case) if i == 0 else pytest.param(with_tile(case), marks=SLOW)
        for i, case in enumerate([attention.INTEGER_CASES[8], *attention.INTEGER_CASES[::3]])
    ],
    ids=str,
)
def test_attention_over_codes(case: attention.Case) -> None:
    attention.test_attention_over_codes_is_the_references(HVX, case)


SMALL_KERNELS = [
    (small.test_quantized_activations_equal_the_reference_bit_by_bit, (False, 32, 2, 31)),
    (small.test_rms_norm_is_close_to_float64, (1, 1, 1, 576)),
    (small.test_quantized_activations_equal_the_reference_bit_by_bit, (True, 64, 17, 200)),
    (small.test_layer_norm_is_close_to_float64, (16, 33, 3)),
    (small.test_fused_norm_and_quantization_agree_with_the_norm, (False, 15, 200, 64)),
    (small.test_append_kv_makes_the_references_codes, (8, 24, 16, 15, 30)),
    (small.test_rope_append_kv_is_rope_then_append, (17, 17, 15)),
    (small.test_gated_is_close_to_float64, ("silu", 256, 15, 77)),
    (small.test_gated_is_close_to_float64, ("gelu", 256, 15, 77)),
]


@pytest.mark.parametrize(
    ("test", "arguments"),
    [
        pytest.param(*case, marks=[] if i < 2 else SLOW, id=f"{case[0].__name__[5:]}-{i}")
        for i, case in enumerate(SMALL_KERNELS)
    ],
)
def test_small_kernels(test, arguments) -> None:
    names = [name for name in inspect.signature(test).parameters if name != "isa"]
    test(isa=HVX, **dict(zip(names, arguments, strict=True)))
