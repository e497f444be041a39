"""Dropping the tokens of a chunk that matter least: what `ir/pruning.py` calls `kept_rows`."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import Registers, load, store
from morendo.codegen.cpu.vectors.vector_blocks import (
    for_each_vector,
    kernel,
    kernel_name,
    token_loop,
    variable,
)
from morendo.ir.pruning import KEEP_FIRST, KEEP_UNKNOWN


def prune_tokens(isa: Any, *, max_tokens: int, features: int, heads: int) -> tirx.PrimFunc:
    """Copy the rows and positions of the most important tokens, in their order.

    Parameters of the kernel: x f32[M, C], positions i64[1, M], importance f32[M, H],
    out f32[M, C], out_positions i64[1, M], tokens, left. The first `left` rows of the outputs are
    written; of two tokens that are equally important the first is kept.
    """
    name = kernel_name("prune_tokens", m=max_tokens, c=features, h=heads)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        positions = k.buffer("positions", (1, max_tokens), "int64")
        importance = k.buffer("importance", (max_tokens, heads))
        out = k.buffer("out", (max_tokens, features))
        out_positions = k.buffer("out_positions", (1, max_tokens), "int64")
        tokens, left = k.scalar("tokens"), k.scalar("left")
        total = T.alloc_buffer((max_tokens,))
        rank = T.alloc_buffer((max_tokens,), "int32")
        rows = T.alloc_buffer((max_tokens,), "int32")
        with T.serial(0, tokens) as m:
            _add_heads(importance, total, m, heads)
            first = tirx.any(positions[0, m] == T.int64(0), m == tokens - 1)
            T.buffer_store(total, tirx.Select(first, T.float32(KEEP_FIRST), total[m]), [m])
        with token_loop(tokens, max_tokens, max_tokens) as m:
            _count_better(total, rank, m, tokens)
        _list_kept(rank, rows, tokens, left)
        with token_loop(left, max_tokens, features * 8) as r:

            def copy(c: Any, lanes: int) -> None:
                store(out, [r, c], load(x, [rows[r], c], lanes), lanes)

            for_each_vector(copy, features, isa.lanes)
            T.buffer_store(out_positions, positions[0, rows[r]], [0, r])
    return k.function


def _add_heads(importance: Any, total: Any, m: Any, heads: int) -> None:
    """The importance of token m, summed head by head; one that is no number keeps its token."""
    T.buffer_store(total, T.float32(0.0), [m])
    with T.serial(0, heads) as head:
        T.buffer_store(total, total[m] + importance[m, head], [m])
    unknown = T.float32(KEEP_UNKNOWN)
    known = tirx.all(total[m] >= T.float32(0.0), total[m] <= unknown)
    T.buffer_store(total, tirx.Select(known, total[m], unknown), [m])


def _count_better(total: Any, rank: Any, m: Any, tokens: Any) -> None:
    """How many tokens go before token m: more important ones, and as important ones before it."""
    mine, count = variable(total[m], 1), Registers(1, "int32", 1)
    count[0] = T.int32(0)
    with T.serial(0, tokens) as other:
        before = tirx.any(total[other] > mine, tirx.all(total[other] == mine, other < m))
        count[0] = count[0] + T.cast(before, "int32")
    T.buffer_store(rank, count[0], [m])


def _list_kept(rank: Any, rows: Any, tokens: Any, left: Any) -> None:
    """The tokens with a rank below `left`, ascending: as many as that, for ranks are all of 0 to
    tokens - 1.
    """
    count = Registers(1, "int32", 1)
    count[0] = T.int32(0)
    with T.serial(0, tokens) as m, T.If(rank[m] < left), T.Then():
        T.buffer_store(rows, m, [count[0]])
        count[0] = count[0] + 1
