"""Small kernels about whole tokens: the last row of a chunk, and the positions of its tokens."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import load, store
from morendo.codegen.cpu.vectors.vector_blocks import for_each_vector, kernel, kernel_name


def copy_last_token(isa: Any, *, max_tokens: int, features: int) -> tirx.PrimFunc:
    """Copy the last token's row.

    Parameters of the kernel: x f32[M, C], out f32[1, C], tokens.
    """
    with kernel(kernel_name("copy_last_token", m=max_tokens, c=features)) as k:
        x = k.buffer("x", (max_tokens, features))
        out = k.buffer("out", (1, features))
        tokens = k.scalar("tokens")

        def copy(c: Any, lanes: int) -> None:
            store(out, [0, c], load(x, [tokens - 1, c], lanes), lanes)

        for_each_vector(copy, features, isa.lanes)
    return k.function


def token_positions(isa: Any, *, max_tokens: int) -> tirx.PrimFunc:
    """The position of every token, for graphs that compute with positions.

    Parameters of the kernel: out i64[1, M], tokens, position.
    """
    with kernel(kernel_name("token_positions", m=max_tokens)) as k:
        out = k.buffer("out", (1, max_tokens), "int64")
        tokens, position = k.scalar("tokens"), k.scalar("position")
        with T.serial(0, tokens) as m:
            T.buffer_store(out, T.cast(position + m, "int64"), [0, m])
    return k.function
