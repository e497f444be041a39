"""Quantized linear kernels with activations of 16 bits, which nobody rounds to codes.

Few tokens are multiplied one by one: a byte of codes becomes a float by a permutation, its zero is
taken off exactly, and products and sums are floats. Many go to the matrix units (halves, sums of
floats): a weight is the half next to (code - zero) times the scale of its group, so that sums go on
over groups, and a group costs nothing but its unpacking (`half_tensor_linear.py`; where warpgroups
multiply `warpgroup_linear.py`). Rows' scales and tokens' come at the end.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import across_block, kernel, launch, local, strided, when
from morendo.targets.cuda.intrinsics import (
    BYTE_FLOAT,
    HALF_FLOAT,
    LOAD_WORDS,
)

from .dot_linear import DotBlock, run_dot_blocks
from .fragments import BLOCK, SIGNS, channel_of_place
from .half_tensor_linear import run_half_blocks
from .norms import place
from .planes import ROWS, STEPS, GroupReader, Place, load_words
from .problem import Problem
from .warpgroup_linear import run_warpgroup_blocks

_THREADS = 256
_EXPONENT = 0x7F800000
_MAGIC = 1 << 23  # a float from here on has steps of 1


def half_activation(
    isa: Any, *, max_tokens: int, features: int, group_size: int, ordered: bool = False
) -> tirx.PrimFunc:
    """Rows of x as float16, divided by a power of two: what is largest in a row is below 2 then, so
    that nothing overflows. For warpgroups channels lie as `place_of_channel` says.

    Parameters of the kernel: x f32[M, K], [order u16[K]], halves f16[M, Kp], scales f32[M], tokens.
    """
    padded = ceil_div(features, group_size) * group_size
    reordered = isa.warpgroups and max_tokens >= isa.tensor_tokens
    name = kernel_name(
        "half_activation" + "_ordered" * ordered, m=max_tokens, k=features, g=group_size
    )
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        halves = k.buffer("halves", (max_tokens, padded), "float16")
        scales, tokens = k.buffer("scales", (max_tokens,)), k.state("tokens")
        with launch([max_tokens], _THREADS) as (m, thread), when(m < tokens.read()):
            largest = local(1, T.float32(0.0))

            def see(c: Any) -> None:
                T.buffer_store(largest, T.max(largest[0], T.abs(x[m, c])), [0])

            strided(thread, _THREADS, features, see)
            span = across_block(largest[0], thread, _THREADS, T.max)
            power = T.reinterpret("float32", T.reinterpret("int32", span) & T.int32(_EXPONENT))
            scale = T.bind(tirx.Select(power > T.float32(0.0), power, T.float32(1.0)))

            def store(at: Any) -> None:
                c = T.bind(channel_of_place(at)) if reordered else at
                value = local(1, T.float32(0.0))
                with when(c < features):
                    T.buffer_store(value, x[m, place(order, c, features)] / scale, [0])
                T.buffer_store(halves, T.cast(value[0], "float16"), [m, at])

            strided(thread, _THREADS, padded, store)
            with when(thread == 0):
                T.buffer_store(scales, scale, [m])
    return k.function


def build_half_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """Build the kernel of `spec` for activations of 16 bits.

    Parameters of the kernel: halves f16[M, Kp], scales f32[M], then those of
    `build_quantized_linear` from the weights on. Channels lie as `half_activation` puts them.
    """
    with kernel(spec.kernel_name(isa).replace("_i8_", "_f16_")) as k:
        if spec.max_tokens < isa.tensor_tokens:
            run_dot_blocks(_HalfDots, Problem.declare(k, spec, halves=True))
        elif isa.warpgroups:
            run_warpgroup_blocks(k, spec, isa.pipeline)
        else:
            run_half_blocks(k, spec, isa)
    return k.function


class _HalfDots(DotBlock):
    """The work of a block with one token."""

    def _add_group(self, reader: GroupReader, at: Place, sums: Any) -> None:
        problem, size = self.problem, self.problem.spec.format.group_size
        scales, zeros = reader.factors(at)
        offsets = []  # 2^23 and the zero; codes of 8 bits without one have 128 added
        for r in range(ROWS):
            zero = T.int32(128)
            if zeros is not None:
                zero = zeros.codes[r] * zeros.step + zeros.first
            offsets.append(T.bind(T.cast(zero + T.int32(_MAGIC), "float32")))
        totals = local(ROWS, T.float32(0.0))
        for block in range(size // BLOCK):
            channel = at.group * size + block * BLOCK
            words = load_words(LOAD_WORDS, problem.codes, (self.token, channel), 4, items=8)
            for step, codes in enumerate(reader.steps(at, block)):
                x = [_half(words[2 * step + i // 2], i % 2) for i in range(STEPS // 2)]
                for r in range(ROWS):
                    word = codes[r] if zeros is not None else codes[r] ^ T.uint32(SIGNS)
                    for i, value in enumerate(x):
                        code = T.call_pure_extern("float32", BYTE_FLOAT, word, i) - offsets[r]
                        T.buffer_store(totals, totals[r] + code * value, [r])
        for r in range(ROWS):
            T.buffer_store(sums, sums[r] + totals[r] * scales[r], [r])


def _half(word: Any, which: int) -> Any:
    return T.bind(T.call_pure_extern("float32", HALF_FLOAT, word, which))
