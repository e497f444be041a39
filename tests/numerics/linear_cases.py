"""Random inputs, expected results and a runner for the tests of linear kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels.linear import build_linear
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.ir import reference
from morendo.ir.ladders import Ladder
from morendo.ir.outliers import Outliers
from morendo.ir.reference import Quantized
from morendo.targets.cuda.target import GPU
from tests.numerics.kernel_runner import Kernel, build, compile_function


@functools.cache
def compile_kernel(spec: LinearSpec, isa: VectorISA | GPU) -> Kernel:
    """The compiled kernel of `spec` as a function of numpy arrays and ints (in place)."""
    builder = build_quantized_linear if spec.format.quantized else build_linear
    return compile_function(build(builder, isa, spec=spec), isa)


def erf(x: NDArray) -> NDArray:
    return np.vectorize(math.erf)(x)


REFERENCE_ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


@dataclass
class Activations:
    """codes int8 [M, Kp], scales float32 [M, G], sums int32 [M, G]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]

    @classmethod
    def random(cls, rng: np.random.Generator, spec: LinearSpec) -> Activations:
        size, tokens = spec.format.group_size, spec.max_tokens
        codes = rng.integers(-127, 128, (tokens, spec.groups * size)).astype(np.int8)
        codes[:, spec.in_features :] = 0
        codes[:, :2] = 127  # extremes meet extremes
        sums = codes.reshape(tokens, spec.groups, size).sum(-1, dtype=np.int32)
        scales = rng.uniform(0.001, 0.02, sums.shape).astype(np.float32)
        return cls(codes, scales, sums)

    def stored(self, isa: VectorISA | GPU) -> list[NDArray]:
        """The arrays as a kernel of a vector unit reads them, with garbage where no token is."""
        tokens, columns = self.codes.shape
        blocked = isinstance(isa, VectorISA) and tokens > 1
        block, depth = (isa.block.tokens, isa.block.depth) if blocked else (1, columns)
        missing = -tokens % block

        def by_blocks(array: NDArray, deep: int, garbage: float) -> NDArray:
            padded = np.pad(array, ((0, missing), (0, 0)), constant_values=garbage)
            if block == 1:
                return padded
            parts = padded.reshape(len(padded) // block, block, -1, deep).swapaxes(1, 2)
            return np.ascontiguousarray(parts).reshape(*parts.shape[:2], block * deep)

        codes, sums = by_blocks(self.codes, depth, -99), by_blocks(self.sums, 1, 999)
        return [codes, by_blocks(self.scales, 1, np.nan), sums]


def random_weights(rng: np.random.Generator, spec: LinearSpec) -> Quantized:
    """Codes, scales and zeros over their whole ranges for the packed (padded) rows."""
    rows, columns = spec.tiles * spec.format.row_tile, spec.groups * spec.format.group_size
    low, high = (-127, 128) if spec.format.kind == "q8" else (0, 1 << spec.format.bits)
    codes = rng.integers(low, high, (rows, columns)).astype(np.int8)
    codes[: rows // 2, :2] = high - 1
    codes[rows // 2 :, :2] = low
    zeros = spec.format.zeros if spec.format.nested else Ladder(0, 0, 1)
    scale, zero = (
        ladder.first + ladder.step * rng.integers(0, ladder.count, (rows, spec.groups))
        for ladder in (spec.format.scales, zeros)
    )
    row_scale = rng.uniform(0.1, 1.0, rows).astype(np.float32)
    row_scale = reference.stored_row_scale(row_scale, spec.format)
    zero = np.minimum(zero, (high - 1) * spec.format.unit)
    return Quantized(codes, scale.astype(np.uint8), zero.astype(np.int8), row_scale)


def random_outliers(rng: np.random.Generator, spec: LinearSpec, slots: int) -> Outliers:
    """Entries with small whole values, up to `slots` a tile: the first is full, the last empty."""
    counts, tile = rng.integers(0, slots + 1, spec.tiles), spec.format.row_tile
    counts[0], counts[-1] = slots, 0 if spec.tiles > 1 else slots
    row = np.repeat(np.arange(spec.tiles) * tile, counts) + rng.integers(0, tile, counts.sum())
    channel = rng.integers(0, spec.in_features, len(row))
    channel[:2] = 0, spec.in_features - 1
    value = rng.integers(-9, 10, len(row))
    return Outliers(row.astype(np.int32), channel.astype(np.int32), value.astype(np.float16))


def exact_scales(
    spec: LinearSpec, weights: Quantized, x: Activations
) -> tuple[Quantized, Activations]:
    """The same codes with the least scale everywhere: results are multiples of the integer dot
    products.
    """
    unit = 255 * spec.format.unit
    row_scale = np.full_like(weights.row_scale, unit)
    assert np.all(row_scale * np.float32(1 / unit) == 1)
    scale = np.full_like(weights.scale, spec.format.scales.first)
    weights = replace(weights, scale=scale, row_scale=row_scale)
    return weights, replace(x, scales=np.ones_like(x.scales))


def exact_dots(
    spec: LinearSpec, weights: Quantized, x: Activations, level: tuple[int, ...] | None
) -> NDArray[np.int64]:
    """The products [M, packed rows, G] of codes less zeros with the codes of activations."""
    codes, zero = reference.reading(weights, spec.format, level)
    by_group = x.codes.reshape(spec.max_tokens, spec.groups, -1).astype(np.int64)
    dots = np.einsum("mgk,ngk->mng", by_group, codes.astype(np.int64))
    return dots - zero[None].astype(np.int64) * x.sums[:, None].astype(np.int64)


def expected_sums(
    spec: LinearSpec, weights: Quantized, x: Activations, level: tuple[int, ...] | None
) -> NDArray[np.float64]:
    """The product [M, packed rows] in exact integers per group, float64 across groups."""
    dots = exact_dots(spec, weights, x, level)
    unit = 255 * spec.format.unit
    scales = x.scales[:, None].astype(np.float64) * weights.scale[None] / unit
    sums = (dots * scales).sum(-1) * weights.row_scale
    if weights.outliers is None or level is None:
        return sums
    sparse = np.zeros(weights.codes.shape, np.float32)
    weights.outliers.add_to(sparse, level[0] * spec.format.group_size)
    values = x.codes * np.repeat(x.scales.astype(np.float64), spec.format.group_size, axis=1)
    return sums + values @ sparse.T


def finish(
    spec: LinearSpec, sums: NDArray, bias: NDArray | None, residual: NDArray | None
) -> NDArray:
    """Bias, gate and residual on sums [M, packed rows]: float64 [M, output_features]."""
    width = spec.output_features
    if not spec.gate:
        y = sums[:, :width]
        y = y if bias is None else y + bias
    else:
        pairs = sums.reshape(len(sums), -1, 2, spec.format.row_tile)
        gate, up = (pairs[:, :, i].reshape(len(sums), -1)[:, :width] for i in range(2))
        if bias is not None:
            gate, up = gate + bias[:width], up + bias[width:]
        y = REFERENCE_ACTIVATIONS[spec.gate](gate) * up
    return y if residual is None else y + residual


def random_epilogue(rng: np.random.Generator, spec: LinearSpec) -> list[NDArray | None]:
    """[bias, residual], None where the kernel has none."""
    bias = rng.normal(size=spec.out_features).astype(np.float32) if spec.bias else None
    shape = (spec.max_tokens, spec.output_features)
    return [bias, rng.normal(size=shape).astype(np.float32) if spec.residual else None]


def run_poisoned(
    run, spec: LinearSpec, inputs: Sequence[NDArray | None], *scalars: int
) -> NDArray[np.float32]:
    """The output of a kernel that starts as NaN; rows past the tokens must stay NaN."""
    out = np.full((spec.max_tokens, spec.output_features), np.nan, np.float32)
    for array in inputs:
        if array is not None:
            array.flags.writeable = False
    run(*(array for array in inputs if array is not None), out, *scalars)
    tokens = scalars[0]
    assert np.isnan(out[tokens:]).all()
    return out[:tokens]
