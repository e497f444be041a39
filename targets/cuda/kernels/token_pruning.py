"""Dropping the tokens of a chunk that matter least: what `ir/pruning.py` calls `kept_rows`."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.codegen.touched import SCRATCH
from morendo.ir.formats import ceil_div
from morendo.ir.pruning import KEEP_FIRST, KEEP_UNKNOWN
from morendo.targets.cuda.blocks import across_block, kernel, launch, local, strided, when

_THREADS = 256


def prune_tokens(isa: Any, *, max_tokens: int, features: int, heads: int) -> tirx.PrimFunc:
    """Copy the rows and positions of the most important tokens, in their order.

    Parameters of the kernel: x f32[M, C], positions i64[1, M], importance f32[M, H],
    out f32[M, C], out_positions i64[1, M], tokens, left, and for itself total f32[M] and
    rank i32[M]. The first `left` rows of the outputs are written; of two tokens that are equally
    important the first is kept.
    """
    with kernel(kernel_name("prune_tokens", m=max_tokens, c=features, h=heads)) as k:
        x = k.buffer("x", (max_tokens, features))
        positions = k.buffer("positions", (1, max_tokens), "int64")
        importance = k.buffer("importance", (max_tokens, heads))
        out = k.buffer("out", (max_tokens, features))
        out_positions = k.buffer("out_positions", (1, max_tokens), "int64")
        tokens, left = k.state("tokens"), k.state("left")
        total, rank = k.buffer("total", (max_tokens,)), k.buffer("rank", (max_tokens,), "int32")
        grid = [ceil_div(max_tokens, _THREADS)]
        with launch(grid, _THREADS) as (block, thread):
            m, count = T.bind(block * _THREADS + thread), tokens.read()
            with when(m < count):
                first = tirx.any(positions[0, m] == T.int64(0), m == count - 1)
                own = _add_heads(importance, m, heads)
                T.buffer_store(total, tirx.Select(first, T.float32(KEEP_FIRST), own), [m])
        with launch(grid, _THREADS) as (block, thread):
            m, count = T.bind(block * _THREADS + thread), tokens.read()
            with when(m < count):
                T.buffer_store(rank, _count_better(total, m, count), [m])
        with launch([max_tokens], _THREADS) as (m, thread):
            room = left.read()
            limit = T.bind(T.min(m, tokens.read()))
            before = local(1, T.int32(0), "int32")

            def count_kept(other: Any) -> None:
                with when(other < limit):
                    kept = T.cast(rank[other] < room, "int32")
                    T.buffer_store(before, before[0] + kept, [0])

            strided(thread, _THREADS, max_tokens, count_kept)
            row = across_block(before[0], thread, _THREADS)
            with when(m < tokens.read()), when(rank[m] < room):
                strided(
                    thread, _THREADS, features,
                    lambda c: T.buffer_store(out, x[m, c], [row, c]),
                )  # fmt: skip
                with when(thread == 0):
                    T.buffer_store(out_positions, positions[0, m], [0, row])
    return k.function.with_attr(SCRATCH, ["total", "rank"])


def _add_heads(importance: Any, m: Any, heads: int) -> Any:
    """The importance of token m, summed head by head; one that is no number keeps its token."""
    total, unknown = local(1, T.float32(0.0)), T.float32(KEEP_UNKNOWN)
    with T.serial(0, heads) as head:
        T.buffer_store(total, total[0] + importance[m, head], [0])
    known = tirx.all(total[0] >= T.float32(0.0), total[0] <= unknown)
    return T.bind(tirx.Select(known, total[0], unknown))


def _count_better(total: Any, m: Any, tokens: Any) -> Any:
    """How many tokens go before token m: more important ones, and as important ones before it."""
    mine, count = T.bind(total[m]), local(1, T.int32(0), "int32")
    with T.serial(0, tokens) as other:
        value = T.bind(total[other])
        before = tirx.any(value > mine, tirx.all(value == mine, other < m))
        T.buffer_store(count, count[0] + T.cast(before, "int32"), [0])
    return count[0]
