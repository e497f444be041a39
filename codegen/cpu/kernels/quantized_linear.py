"""Linear kernels on quantized weights: int8 activations, 8-bit codes or nested codes in planes.

The dequantization pipeline (`pipeline.py`) has three stages: fetch packed codes, unpack them to
bytes (both in `dequantize.py`), multiply-accumulate with the target's dot instruction. One token
runs them back to back in registers (`group_dot.py`), limited by memory. More tokens unpack a block
of row tiles once into a workspace that fits the L2 cache, then multiply it with blocks of tokens
held in registers (`matrix_product.py`).
"""

from __future__ import annotations

import itertools

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import Registers, splat, vector_type
from morendo.codegen.kernel_code import PIPELINE

from .group_dot import GroupDot, group_dot
from .linear_spec import LinearSpec, kernel_builder
from .matrix_product import multiply_many_tokens
from .outliers import add_to_vector
from .quantized_kernel import QuantizedKernel, declare_kernel


def build_quantized_linear(spec: LinearSpec, isa: VectorISA) -> tirx.PrimFunc:
    """Build the kernel of `spec`; its buffers are those of `LinearSpec` and `ir/formats.py`.

    Parameters of the kernel: codes, scales, sums, weights..., [bias], [residual], out, tokens,
    for nested codes n3, n4, ... (the level) and p3, p4, ... (the groups that the planes have
    stored), and with outliers their slots.
    """
    with kernel_builder(spec.kernel_name(isa)) as builder:
        kernel = declare_kernel(spec, isa)
        if spec.max_tokens == 1:
            _matrix_vector(kernel)
        else:
            multiply_many_tokens(kernel)
    return builder.get().with_attr(PIPELINE, isa.pipeline.attribute(spec.max_tokens))


# One token: fetch, unpack and multiply-accumulate in registers.


def _matrix_vector(kernel: QuantizedKernel) -> None:
    spec, tiles = kernel.spec, kernel.spec.tiles_per_output
    with T.parallel(0, spec.tiles // tiles) as task:
        sums = Registers(tiles * kernel.halves, "float32", kernel.isa.lanes)
        for i in range(len(sums)):
            sums[i] = splat(T.float32(0), kernel.isa.lanes)
        parts = 1
        for i in range(tiles):
            tile = task * tiles + i
            for reader, first, end in kernel.weights.ranges(kernel.level):
                dot = group_dot(kernel.isa, kernel.x, reader, kernel.halves)
                parts = dot.parts  # the same for all of a kernel's readers
                with T.serial(first, end) as group:
                    _add_group(kernel, dot, tile, group, sums, i * kernel.halves)
        for i, half in itertools.product(range(tiles), range(kernel.halves)):
            j = i * kernel.halves + half
            scale = T.bind(kernel.weights.row_scale(task * tiles + i, half, parts))
            sums[j] = sums[j] * scale
        if kernel.outliers is not None:
            for i in range(tiles):
                first = i * kernel.halves
                add_to_vector(kernel.outliers, kernel.x, task * tiles + i, sums, first)
        values = [sums[i] for i in range(len(sums))]
        rows = [values[i : i + kernel.halves] for i in range(0, len(values), kernel.halves)]
        kernel.epilogue.write(0, task * tiles, rows)


def _add_group(kernel: QuantizedKernel, dot: GroupDot, tile, group, sums, first) -> None:
    """Add to the sums from `first` on: scales of rows and token * exact dot products of a group."""
    weights, x, lanes = kernel.weights, kernel.x, kernel.isa.lanes
    dot.start(tile, group)
    with T.serial(0, weights.blocks) as block:
        dot.add_block(tile, group, block)
    products, as_float = dot.products(), vector_type("float32", lanes)
    if kernel.isa.integer_scales:  # products are below 2**23, scale codes below 2**8
        rows = kernel.spec.format.row_tile
        codes = kernel.isa.widen(T.bind(weights.scales.scale_bytes(tile, group, 0, rows)), rows)
        products = [product * code for product, code in zip(products, codes, strict=True)]
    for half, product in enumerate(products):
        scale = x.scale(0, group)
        if not kernel.isa.integer_scales:
            scale = weights.scale(tile, group, half) * scale
        sums[first + half] = sums[first + half] + T.cast(product, as_float) * scale
