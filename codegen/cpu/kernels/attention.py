"""Attention of new tokens over the cache: the decode and the prefill kernel.

Prefill: one task is a head and a block of queries; the causal rest is skipped block by block.
Decode: one task is a kv head and a part of the context; the query heads that share the kv head are
the rows of a tile, so that each key and value is read once; the parts are merged at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import load, splat, splat_float, store
from morendo.codegen.cpu.vectors.vector_blocks import (
    KernelBuilder,
    Rows,
    common_lanes,
    index,
    kernel,
    kernel_name,
    load_float,
    variable,
)
from morendo.ir.formats import ceil_div

from .attention_tile import CHUNK, MASKED, Row, Scores, Tile, most_rows
from .attention_tile_float import FloatTile
from .attention_tile_integer import IntegerTile
from .kv_cache import CacheBuffers, KVCache

_TASKS = 16
"""Tasks that decode aims at, so that a few threads are evenly loaded."""

_PARALLEL_BYTES = 131072
"""Bytes of keys and values from which on decode starts the other threads: about 5 us of work."""


KEPT = {"": (), "first": ("importance",), "received": ("maxima", "inverses")}
"""What an attention keeps besides its result, by what makes a token important."""


@dataclass
class Problem:
    """What one kernel works on: shapes, buffers and run-time scalars."""

    isa: Any
    heads: int
    cache: KVCache
    scores: Scores
    q: Any
    q_offset: int
    buffers: CacheBuffers
    slopes: Any
    out: Any
    kept: list[Any]
    tokens: Any
    position: Any

    @classmethod
    def declare(
        cls,
        k: KernelBuilder,
        isa: Any,
        heads: int,
        cache: KVCache,
        scores: Scores,
        q_rows: Rows,
        max_tokens: int,
        results: dict[str, tuple[int, int]],
        out: str,
    ) -> Problem:
        """Declare a kernel's parameters: q, the cache, slopes, results and scalars.

        Args:
            results: float32 buffers by name, what is written and what it kept before; `out` is
                the one with the result.
        """
        shape = (max_tokens, q_rows.stride)
        q = k.buffer("q", shape, used=heads * cache.head_dim)
        buffers = cache.declare(k)
        slopes = k.buffer("slopes", (heads,)) if scores.alibi else None
        own = {name: k.buffer(name, shape) for name, shape in results.items()}
        kept = [buffer for name, buffer in own.items() if name != out]
        scalars = k.scalar("tokens"), k.scalar("position")
        return cls(
            isa, heads, cache, scores, q, q_rows.offset, buffers, slopes, own[out], kept, *scalars
        )

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.cache.kv_heads

    def tile(self, rows: int, prefetch: bool) -> Tile:
        """The tile of query rows that reads this cache."""
        kind = IntegerTile if self.cache.integers else FloatTile
        return kind(self.cache, self.scores, self.isa, rows, prefetch, len(self.kept) == 1)

    def row(self, position: Any, head: Any) -> Row:
        """The row of a query head at an absolute position."""
        slope = T.bind(self.slopes[head]) if self.scores.alibi else None
        return Row(position, slope)

    def first_key(self, position: Any) -> Any:
        """The first key that a query at `position` sees, rounded down to a chunk."""
        if not self.scores.window:
            return T.int32(0)
        low = T.max(position - (self.scores.window - 1), T.int32(0))
        return index(low // CHUNK * CHUNK)


def cached_attention(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    cache: KVCache,
    scores: Scores,
    q_rows: Rows | None = None,
    importance: str = "",
    last: bool = False,
) -> tirx.PrimFunc:
    """Causal attention of the queries at position..position+tokens-1 over the cache.

    Parameters of the kernel: q f32[M, H, D], the cache, [slopes f32[H] with alibi,]
    out f32[M, H, D], [importance f32[M, H] or maxima and inverses f32[M, H],] tokens, position.
    The keys and values of the new tokens are in the cache already; what lies beyond them may hold
    anything. With `q_rows` q is f32[M, stride], read from the offset on. Of several queries,
    `importance` "first" is what share of its attention each pays to the first key; "received" gives
    the largest score of each and 1 / its sum of exponentials, from which `received_attention`
    counts. With `last` only the last query attends, and out is f32[1, H, D].
    """
    width = heads * cache.head_dim
    q_rows = q_rows or Rows(width)
    name = kernel_name(
        "attention", m=max_tokens, h=heads, c=cache.name, s=scores.name,
        q=f"{q_rows.stride}o{q_rows.offset}", **({"i": importance} if importance else {}),
        **({"t": "last"} if last else {}),
    )  # fmt: skip
    results = {"out": (1 if last else max_tokens, width)}
    results |= {each: (max_tokens, heads) for each in KEPT[importance]}
    with kernel(name) as k:
        problem = Problem.declare(k, isa, heads, cache, scores, q_rows, max_tokens, results, "out")
        if max_tokens == 1:
            _decode(problem, T.int32(0))
        elif last:
            newest = index(problem.tokens - 1)
            problem.position = index(problem.position + newest)
            _decode(problem, newest)
        else:
            _prefill(problem, max_tokens)
    return k.function


def _prefill(p: Problem, max_tokens: int) -> None:
    """All heads and query blocks in parallel; long and short blocks alternate for balance."""
    rows = min(most_rows(p.isa, p.cache), max_tokens)
    dim = p.cache.head_dim
    blocks = index((p.tokens + (rows - 1)) // rows)
    with T.parallel(0, p.heads * blocks) as task:
        head, order = index(task // blocks), index(task % blocks)
        back = blocks - 1 - order // 2
        block = index(tirx.Select(order % 2 == 0, order // 2, back))
        queries = [index(T.min(block * rows + r, p.tokens - 1)) for r in range(rows)]
        positions = [index(p.position + m) for m in queries]
        tile = p.tile(rows, prefetch=False)
        tile.allocate()
        tile.start(p.q, [(m, p.q_offset + head * dim) for m in queries])
        lines = [p.row(at, head) for at in positions]
        low, high = p.first_key(positions[0]), index(positions[-1] + 1)
        tile.attend(p.buffers, index(head // p.group), lines, low, high)
        inverses = p.isa.of_each(_inverse, tile.sums_of_weights())
        for r, m in enumerate(queries):
            _store_row(p, tile, (r, inverses[r]), m, head)


def _inverse(x: Any, lanes: int) -> Any:
    return splat_float(1.0, lanes) / x


def _store_row(p: Problem, tile: Tile, row: tuple[int, Any], m: Any, head: Any) -> None:
    """Write a row out, times the inverse of its sum of weights."""
    dim, (r, inverse) = p.cache.head_dim, row
    lanes = common_lanes(dim, p.isa.lanes)
    with T.serial(0, dim // lanes) as i:
        value = tile.output(r, i * lanes, lanes) * splat(inverse, lanes)
        store(p.out, [m, head * dim + i * lanes], value, lanes)
    if len(p.kept) == 1:
        T.buffer_store(p.kept[0], tile.first_weight[r] * inverse, [m, head])
    elif p.kept:
        for buffer, value in zip(p.kept, (tile.maximum[r], inverse), strict=True):
            T.buffer_store(buffer, value, [m, head])


def _decode(p: Problem, query_row: Any) -> None:
    """One query: split the context over tasks; one thread alone does it while it is short."""
    dim, group, kv_heads = p.cache.head_dim, p.group, p.cache.kv_heads
    tiles = ceil_div(group, most_rows(p.isa, p.cache))
    rows = ceil_div(group, tiles)
    most = min(8, max(1, ceil_div(_TASKS, kv_heads * tiles)))
    parts = T.alloc_buffer((kv_heads * tiles * most * rows, dim))
    maxima = T.alloc_buffer((kv_heads * tiles * most * rows,))
    totals = T.alloc_buffer((kv_heads * tiles * most * rows,))
    low = p.first_key(p.position)
    chunks = index((p.position - low) // CHUNK + 1)
    splits = index(T.min(chunks, T.int32(most)))
    long = p.position - low >= max(CHUNK, _PARALLEL_BYTES // p.cache.key_bytes)

    # Converting halves keeps the core too busy to run ahead of its loads by itself: 50 instead of
    # 58 us for 0.8 MB. Reading floats is 15 % slower with prefetches than without.
    prefetch = p.cache.dtype != "float32"

    def task(number: Any) -> None:
        unit, split = index(number // splits), index(number % splits)
        kv_head, first = index(unit // tiles), unit % tiles * rows
        queries = [T.min(first + r, T.int32(group - 1)) for r in range(rows)]
        heads = [index(kv_head * group + query) for query in queries]
        tile = p.tile(rows, prefetch)
        tile.allocate()
        tile.start(p.q, [(query_row, p.q_offset + head * dim) for head in heads])
        start = index(low + chunks * split // splits * CHUNK)
        end = index(T.min(low + chunks * (split + 1) // splits * CHUNK, p.position + 1))
        lines = [p.row(p.position, head) for head in heads]
        tile.attend(p.buffers, kv_head, lines, start, end)
        for r, total in enumerate(tile.sums_of_weights()):
            slot = index((unit * most + split) * rows + r)
            T.buffer_store(maxima, tile.maximum[r], [slot])
            T.buffer_store(totals, total, [slot])
            lanes = common_lanes(dim, p.isa.lanes)
            with T.serial(0, dim // lanes) as i:
                value = tile.output(r, i * lanes, lanes)
                store(parts, [slot, i * lanes], value, lanes)

    with T.If(long):
        with T.Then(), T.parallel(0, kv_heads * tiles * splits) as number:
            task(number)
        with T.Else(), T.serial(0, kv_heads * tiles * splits) as number:
            task(number)
    with T.serial(0, p.heads) as head:
        kv_head, query = index(head // group), index(head % group)
        unit = kv_head * tiles + query // rows
        first = index(unit * most * rows + query % rows)
        _merge(p, (parts, maxima, totals), first, rows, splits, head)


def _merge(
    p: Problem, state: tuple[Any, Any, Any], first: Any, step: int, splits: Any, head: Any
) -> None:
    """Combine the parts first, first+step, ... of one query head and write its output."""
    parts, maxima, totals = state
    dim = p.cache.head_dim
    lanes = common_lanes(dim, p.isa.lanes)
    scalars = T.alloc_buffer((2,))
    T.buffer_store(scalars, T.float32(MASKED), [0])
    T.buffer_store(scalars, T.float32(0.0), [1])
    with T.serial(0, splits) as s:
        T.buffer_store(scalars, T.max(scalars[0], maxima[first + s * step]), [0])
    with T.serial(0, splits) as s:
        at = index(first + s * step)
        factor = p.isa.exp(variable(maxima[at] - scalars[0], 1), 1)
        T.buffer_store(maxima, factor, [at])
        T.buffer_store(scalars, scalars[1] + factor * totals[at], [1])
    inverse = variable(T.float32(1.0) / scalars[1], 1)
    with T.serial(0, dim // lanes) as i:
        total = T.alloc_buffer((lanes,))
        store(total, [0], splat_float(0.0, lanes), lanes)
        with T.serial(0, splits) as s:
            at = index(first + s * step)
            value = load_float(parts, [at, i * lanes], lanes) * splat(maxima[at], lanes)
            store(total, [0], load(total, [0], lanes) + value, lanes)
        result = load(total, [0], lanes) * splat(inverse, lanes)
        store(p.out, [0, head * dim + i * lanes], result, lanes)
