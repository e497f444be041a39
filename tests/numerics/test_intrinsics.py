"""Each vector instruction that kernels name does what its numpy meaning says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm

from morendo.codegen.cpu.kernels.linear_spec import kernel_builder, tensor_argument
from morendo.codegen.cpu.vectors.intrinsic import Intrinsic
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, store
from morendo.targets.arm import intrinsics as arm
from morendo.targets.arm import isa as arm_isa
from morendo.targets.x86 import intrinsics as x86
from morendo.targets.x86.isa import (
    AMX,
    AVX2,
    AVX512,
    AVX512_VNNI,
    AVX512_VNNI_GFNI,
    AVX_VNNI,
    isa_for,
)
from tests.numerics.kernel_runner import (
    compile_function,
    emulated_isas,
    native_isas,
    target_of,
)


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


def apply(intrinsic: Intrinsic, operands: list[np.ndarray], like: np.ndarray):
    """The instruction as a kernel: the operands, then the result."""
    with kernel_builder("apply") as builder:
        buffers = [tensor_argument(f"a{i}", a.shape, str(a.dtype)) for i, a in enumerate(operands)]
        out = tensor_argument("out", like.shape, str(like.dtype))
        values = [load(b, (0,), a.size) for b, a in zip(buffers, operands, strict=True)]
        store(out, (0,), intrinsic(*values), like.size)
    return builder.get()


def isa_with(intrinsic: Intrinsic) -> VectorISA | None:
    """A vector unit that can be run here and whose processor has the instruction."""
    for isa in [*native_isas(), *emulated_isas()]:
        ours = ("llvm.aarch64" in intrinsic.llvm) == (isa in arm_isa.ALL)
        features = tvm.target.codegen.llvm_get_cpu_features(target_of(isa))
        if ours and set(intrinsic.features) & {*features}:
            return isa
    return None


@pytest.mark.parametrize("intrinsic", [*x86.ALL, *arm.ALL], ids=lambda i: i.llvm)
def test_meaning(intrinsic: Intrinsic):
    isa = isa_with(intrinsic)
    if isa is None:
        pytest.skip(f"nothing here has one of {intrinsic.features}")
    rng = np.random.default_rng(7)
    operands = [random_operand(rng, dtype) for dtype in intrinsic.operands]
    expected = intrinsic.meaning(*operands)
    result = np.zeros_like(expected)
    compile_function(apply(intrinsic, operands, expected), isa)(*operands, result)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [
        ("x86-64-v2", None),
        ("x86-64-v3", AVX2),
        ("alderlake", AVX_VNNI),
        ("x86-64-v4", AVX512),
        ("cascadelake", AVX512_VNNI),
        ("znver4", AVX512_VNNI_GFNI),
        ("sapphirerapids", AMX),
    ],
)
def test_isa_of_a_processor(cpu, isa):
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})
    assert isa_for(tvm.target.codegen.llvm_get_cpu_features(target)) is isa
