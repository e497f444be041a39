"""Kernels that take each token by itself: embedding, gates and activations, copies."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.ir.formats import WeightFormat, ceil_div
from morendo.targets.cuda.blocks import activation, kernel, launch, strided, when

from .scales import Weights

_THREADS = 256


def embedding(
    isa: Any, *, max_tokens: int, rows: int, features: int, fmt: WeightFormat
) -> tirx.PrimFunc:
    """Copy the rows `ids` of a packed [V, C] matrix to float32; a block has one token.

    Parameters of the kernel: ids i32[M], the arrays of `fmt.arrays(V, C)`, out f32[M, C], tokens.
    """
    name = kernel_name(f"embedding_{fmt.name}", m=max_tokens, v=rows, c=features)
    with kernel(name) as k:
        ids = k.buffer("ids", (max_tokens,), "int32")
        arrays = {a.name: k.buffer(a.name, a.shape, a.dtype) for a in fmt.arrays(rows, features)}
        out = k.buffer("out", (max_tokens, features))
        tokens = k.state("tokens")
        weights = Weights(fmt, arrays)
        with launch([max_tokens], _THREADS) as (m, thread), when(m < tokens.read()):
            tile, row = T.bind(ids[m] // fmt.row_tile), T.bind(ids[m] % fmt.row_tile)

            def copy(c: Any) -> None:
                T.buffer_store(out, weights.value(tile, row, c), [m, c])

            strided(thread, _THREADS, features, copy)
    return k.function


def _elementwise(
    name: str, inputs: tuple[str, ...], max_tokens: int, features: int, activation_name: str
) -> tirx.PrimFunc:
    """act(first input), times the second if there is one."""
    with kernel(name) as k:
        buffers = [k.buffer(given, (max_tokens, features)) for given in inputs]
        out = k.buffer("out", (max_tokens, features))
        tokens = k.state("tokens")
        blocks = [ceil_div(features, _THREADS), max_tokens]
        with launch(blocks, _THREADS) as (block, m, thread):
            f = T.bind(block * _THREADS + thread)
            with when(tirx.all(m < tokens.read(), f < features)):
                value = activation(activation_name, T.bind(buffers[0][m, f]))
                for factor in buffers[1:]:
                    value = value * factor[m, f]
                T.buffer_store(out, value, [m, f])
    return k.function


def gated(isa: Any, *, max_tokens: int, features: int, activation_name: str) -> tirx.PrimFunc:
    """The gate of a gated MLP: activation(gate) * up.

    Parameters of the kernel: gate f32[M, F], up f32[M, F], out f32[M, F], tokens.
    """
    name = kernel_name(f"gated_{activation_name}", m=max_tokens, f=features)
    return _elementwise(name, ("gate", "up"), max_tokens, features, activation_name)


def activate(isa: Any, *, max_tokens: int, features: int, activation_name: str) -> tirx.PrimFunc:
    """The activation of a plain MLP.

    Parameters of the kernel: x f32[M, F], out f32[M, F], tokens.
    """
    name = kernel_name(activation_name, m=max_tokens, f=features)
    return _elementwise(name, ("x",), max_tokens, features, activation_name)


def copy_last_token(isa: Any, *, max_tokens: int, features: int) -> tirx.PrimFunc:
    """Copy the last token's row. Parameters of the kernel: x f32[M, C], out f32[1, C], tokens."""
    with kernel(kernel_name("copy_last_token", m=max_tokens, c=features)) as k:
        x = k.buffer("x", (max_tokens, features))
        out = k.buffer("out", (1, features))
        tokens = k.state("tokens")
        with launch([ceil_div(features, _THREADS)], _THREADS) as (block, thread):
            c = T.bind(block * _THREADS + thread)
            with when(c < features):
                T.buffer_store(out, x[tokens.read() - 1, c], [0, c])
    return k.function


def token_positions(isa: Any, *, max_tokens: int) -> tirx.PrimFunc:
    """The position of every token. Parameters of the kernel: out i64[1, M], tokens, position."""
    with kernel(kernel_name("token_positions", m=max_tokens)) as k:
        out = k.buffer("out", (1, max_tokens), "int64")
        tokens, position = k.state("tokens"), k.state("position")
        with launch([ceil_div(max_tokens, _THREADS)], _THREADS) as (block, thread):
            m = T.bind(block * _THREADS + thread)
            with when(tirx.all(m < tokens.read(), m < max_tokens)):
                T.buffer_store(out, T.cast(position.read() + m, "int64"), [0, m])
    return k.function
