"""Each vector instruction that kernels name does what its numpy meaning says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import kernel_builder, tensor_argument
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.targets.x86 import intrinsics
from morendo.targets.x86.isa import (
    AVX2,
    AVX512,
    AVX512_VNNI,
    AVX512_VNNI_GFNI,
    AVX_VNNI,
    isa_for,
)
from tests.numerics.linear_cases import host_has


def random_operand(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """A vector over the whole range of its type (products and sums of it fit, as in kernels)."""
    kind, lanes = re.fullmatch(r"([a-z]+\d+)x(\d+)", dtype).groups()
    info = np.iinfo(kind)
    small = kind == "int32"
    low, high = (-(1 << 20), 1 << 20) if small else (info.min, info.max + 1)
    values = rng.integers(low, high, int(lanes)).astype(kind)
    if not small:
        values[:2], values[2:4] = info.max, info.min
    return values


@pytest.mark.parametrize("intrinsic", intrinsics.ALL, ids=lambda i: i.llvm)
def test_meaning(intrinsic):
    features = [f for f in intrinsic.features if host_has(f)]
    if not features:
        pytest.skip(f"this machine has none of {intrinsic.features}")
    rng = np.random.default_rng(7)
    operands = [random_operand(rng, dtype) for dtype in intrinsic.operands]
    expected = intrinsic.meaning(*operands)
    with kernel_builder("apply") as builder:
        buffers = [tensor_argument(f"a{i}", a.shape, str(a.dtype)) for i, a in enumerate(operands)]
        out = tensor_argument("out", expected.shape, str(expected.dtype))
        values = [load(b, (0,), a.size) for b, a in zip(buffers, operands, strict=True)]
        store(out, (0,), intrinsic(*values), expected.size)
    level = "x86-64-v4" if "512" in intrinsic.llvm + features[0] else "x86-64-v3"
    target = tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": "x86_64-linux-gnu",
            "mcpu": level,
            "mattr": [f"+{features[0]}"],
        }
    )
    library = tvm.compile(tvm.IRModule({"apply": builder.get()}), target=target)
    result = tvm.runtime.tensor(np.zeros_like(expected))
    library["apply"](*map(tvm.runtime.tensor, operands), result)
    assert str(T.reinterpret(intrinsic.result, values[0]).ty) == intrinsic.result
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [
        ("x86-64-v2", None),
        ("x86-64-v3", AVX2),
        ("alderlake", AVX_VNNI),
        ("x86-64-v4", AVX512),
        ("cascadelake", AVX512_VNNI),
        ("znver4", AVX512_VNNI_GFNI),
    ],
)
def test_isa_of_a_processor(cpu, isa):
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})
    assert isa_for(tvm.target.codegen.llvm_get_cpu_features(target)) is isa
