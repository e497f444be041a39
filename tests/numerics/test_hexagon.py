"""Kernels for HVX under qemu-hexagon, by the cases of every other vector unit: integers exact.

A few are quick; `make test-all` runs the others. What is tested is the form that the target makes
of kernels, with vectors of floats computed by integers.
"""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.linear_spec import kernel_builder, tensor_argument
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.targets.hexagon import intrinsics as hvx
from morendo.targets.hexagon.isa import HVX
from morendo.targets.hexagon.target import make
from tests.numerics import test_attention as attention
from tests.numerics import test_small_kernels as small
from tests.numerics.emulated_kernel import can_emulate
from tests.numerics.kernel_runner import compile_function, frozen

pytestmark = pytest.mark.skipif(
    not can_emulate(make("hexagon:v67")), reason="qemu-hexagon (qemu-user) is not installed"
)
SLOW = pytest.mark.slow
TILE = 32
_OF_SCALARS = (hvx.ZIP, hvx.DOT_SCALAR, hvx.PRODUCT_SCALAR, hvx.TIMES_HALF, hvx.PLUS_TIMES_HALF)


@pytest.mark.parametrize("intrinsic", hvx.ALL, ids=lambda i: i.llvm)
@pytest.mark.slow
def test_meaning(intrinsic) -> None:
    rng = np.random.default_rng(7)
    operands = []
    for dtype in intrinsic.operands:
        lanes = int(dtype.partition("x")[2] or 1)
        counts = lanes == 1 and intrinsic not in _OF_SCALARS
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
    (small.test_quantized_activations_equal_the_reference_bit_by_bit, (False, 32, 2, 361)),
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
