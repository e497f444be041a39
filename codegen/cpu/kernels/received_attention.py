"""How much attention tokens receive: the softmax weights of a call, summed over its queries.

Online softmax knows a weight only once a query has seen all its keys, and a key is seen by many
queries. So attention keeps each query's largest score and its sum of exponentials, and this kernel
computes the scores of the call's own keys again, all queries of a chunk of keys in one task: no
two tasks add to the same number.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import load, splat, splat_float, store
from morendo.codegen.cpu.vectors.vector_blocks import (
    Rows,
    index,
    kernel,
    kernel_name,
    load_float,
    variable,
)

from .attention import KEPT, Problem
from .attention_tile import CHUNK, Scores, Tile, most_rows
from .kv_cache import KVCache


def received_attention(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    cache: KVCache,
    scores: Scores,
    q_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """What share of their attention the queries pay to each new token, on average over those from
    its own on.

    Parameters of the kernel: q f32[M, H, D], the cache, [slopes f32[H] with alibi,] maxima and
    inverses f32[M, H] as `cached_attention` keeps them, importance f32[M, H], tokens, position.
    """
    width = heads * cache.head_dim
    q_rows = q_rows or Rows(width)
    name = kernel_name(
        "received_attention", m=max_tokens, h=heads, c=cache.name, s=scores.name,
        q=f"{q_rows.stride}o{q_rows.offset}",
    )  # fmt: skip
    results = {each: (max_tokens, heads) for each in (*KEPT["received"], "importance")}
    with kernel(name) as k:
        problem = Problem.declare(
            k, isa, heads, cache, scores, q_rows, max_tokens, results, "importance"
        )
        tokens, position = problem.tokens, problem.position
        first = index(position // CHUNK)
        chunks = index((position + tokens - 1) // CHUNK + 1 - first)
        with T.parallel(0, heads * chunks) as task:
            head, chunk = index(task // chunks), index(first + task % chunks)
            _Chunk(problem, head, index(chunk * CHUNK)).count(max_tokens)
    return k.function


class _Chunk:
    """The keys from `start` on that are new, as far as they fill a chunk."""

    def __init__(self, problem: Problem, head: Any, start: Any) -> None:
        self.problem, self.head, self.start = problem, head, start
        self.received = T.alloc_buffer((CHUNK,))

    def count(self, max_tokens: int) -> None:
        """Add up the weights of all queries that see a key of the chunk, and write them out."""
        p, lanes = self.problem, self.problem.isa.lanes
        with T.serial(0, CHUNK // lanes) as v:
            store(self.received, [v * lanes], splat_float(0.0, lanes), lanes)
        rows = min(most_rows(p.isa, p.cache), max_tokens)
        before = index(T.max(self.start - p.position, T.int32(0)))  # queries that see none of them
        keys = index(T.min(p.position + p.tokens - self.start, T.int32(CHUNK)))
        with T.serial(0, (p.tokens - before + (rows - 1)) // rows) as block:
            self._add(rows, index(before + block * rows), keys)
        with T.serial(0, keys) as key:
            m = index(self.start + key - p.position)
            with T.If(m >= 0), T.Then():
                share = self.received[key] / T.cast(p.tokens - m, "float32")
                T.buffer_store(p.out, share, [m, self.head])

    def _add(self, rows: int, begin: Any, keys: Any) -> None:
        """Add the weights of some queries from `begin` on; there are none beyond the last one."""
        p, lanes = self.problem, self.problem.isa.lanes
        maxima, inverses = p.kept
        queries = [index(T.min(begin + r, p.tokens - 1)) for r in range(rows)]
        tile: Tile = p.tile(rows, prefetch=False)
        tile.allocate()
        tile.start(p.q, [(m, p.q_offset + self.head * p.cache.head_dim) for m in queries])
        lines = [p.row(index(p.position + m), self.head) for m in queries]
        vectors = tile.score_chunk(p.buffers, index(self.head // p.group), lines, self.start, keys)
        for r, m in enumerate(queries):
            counts = tirx.Select(begin + r < p.tokens, inverses[m, self.head], T.float32(0.0))
            factor, maximum = variable(counts, 1), variable(maxima[m, self.head], 1)
            with T.serial(0, vectors) as v:
                score = load_float(tile.state, [r, tile.weight(v * lanes)], lanes)
                power = p.isa.exp(variable(score - splat(maximum, lanes), lanes), lanes)
                weight = variable(power, lanes) * splat(factor, lanes)
                old = load(self.received, [v * lanes], lanes)
                store(self.received, [v * lanes], old + weight, lanes)
