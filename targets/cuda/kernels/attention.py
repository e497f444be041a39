"""Attention of new tokens over the cache, the same kernel for one token and for many.

A block has one query, or a part of its keys where there is a single token and a long context
(`attention_parts.py`). Its warps take the keys in chunks, each warp every so many. A warp has an
online softmax of its own (Milakov and Gimelshein 2018; FlashAttention): lanes are keys while scores
are computed, then elements of the values. At the end the warps' sums are put together in shared
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.attention import KEPT
from morendo.codegen.cpu.kernels.attention_tile import MASKED, Scores
from morendo.codegen.cpu.kernels.kv_cache import WORD, CacheBuffers, KVCache
from morendo.codegen.cpu.vectors.vector_blocks import Rows, kernel_name
from morendo.codegen.touched import SCRATCH, USED
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import (
    BATCH,
    WARP,
    across_warp,
    add,
    barrier,
    batched,
    from_lane,
    function,
    kernel,
    launch,
    local,
    shared,
    strided,
    when,
)

from .attention_codes import CodeChunks
from .attention_parts import Parts, part_count, turns
from .cache import declare_cache

_DECODE_WARPS, _PREFILL_WARPS = 8, 4


class Chunks(Protocol):
    """How a warp reads keys and values."""

    keys: int
    """Of a chunk, a multiple of 32: lane l has l, l + 32, ..."""

    def load_query(self, element: Any) -> None:
        """Take the query, whose element d `element(d)` gives; all warps do."""
        ...

    def product(self, key: Any) -> Any:
        """The query times a key, float32, by one lane."""
        ...

    def prepare(self, weights: Any, keys: list[Any], seen: list[Any]) -> None:
        """Take the softmax weights of a chunk's keys: of this lane, float32 registers."""
        ...

    def value(self, first: Any, count: Any, d: Any) -> Any:
        """The weighted sum of element d of the chunk's values, float32; all lanes come here.

        Args:
            count: keys from the first on, of which others have no weight.
        """
        ...


@dataclass
class FloatChunks:
    """Keys and values of 16 or 32 bits."""

    cache: KVCache
    scores: Scores
    stored: CacheBuffers
    kv_head: Any
    thread: Any
    threads: int
    keys: int = WARP
    query: Any = None
    weights: Any = None

    def load_query(self, element: Any) -> None:
        self.query = shared((self.cache.head_dim,))
        strided(
            self.thread,
            self.threads,
            self.cache.head_dim,
            lambda d: T.buffer_store(self.query, element(d), [d]),
        )
        barrier()

    def product(self, key: Any) -> Any:
        cache, total = self.cache, local(1, T.float32(0.0))

        def add_product(d: Any) -> None:
            element = self.stored.keys[self.kv_head, key // cache.tile, d, key % cache.tile]
            T.buffer_store(total, total[0] + self.query[d] * T.cast(element, "float32"), [0])

        batched(cache.head_dim, add_product)
        return total[0] * T.float32(self.scores.scale)

    def prepare(self, weights: Any, keys: list[Any], seen: list[Any]) -> None:
        self.weights = weights

    def value(self, first: Any, count: Any, d: Any) -> Any:
        total, last = local(1, T.float32(0.0)), T.int32(self.cache.head_dim - 1)

        def add_value(key: Any) -> None:
            weight = T.bind(from_lane(self.weights[0], key))
            at = first + T.min(key, count - 1)  # behind the last key the weights are 0
            element = self.stored.values[self.kv_head, at, T.min(d, last)]
            T.buffer_store(total, total[0] + weight * T.cast(element, "float32"), [0])

        batched(WARP, add_value)
        return total[0]


@dataclass(frozen=True)
class Query:
    """One query: which keys it sees, and how their scores are bent."""

    scores: Scores
    slope: Any
    position: Any

    def score(self, product: Any, key: Any) -> Any:
        """The score of a key, from its product with the query."""
        value = product
        if self.scores.softcap:
            cap = T.float32(self.scores.softcap)
            value = cap * function("tanhf", T.bind(value / cap))
        if self.scores.alibi:
            value = value + self.slope * T.cast(key - self.position, "float32")
        return value

    def first_key(self) -> Any:
        """The first key that the query sees."""
        if not self.scores.window:
            return T.int32(0)
        return T.bind(T.max(self.position - (self.scores.window - 1), T.int32(0)))

    def chunks(self, size: int) -> tuple[Any, Any]:
        """(the first chunk of `size` keys that it sees, how many)."""
        begin = T.bind(self.first_key() // size)
        return begin, T.bind(self.position // size + 1 - begin)

    def used_parts(self, size: int, warps: int, parts: int) -> Any:
        """How many of the blocks that share the keys have any."""
        _, count = self.chunks(size)
        return T.bind(T.min((count + (warps - 1)) // warps, T.int32(parts)))


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
    anything. With `q_rows` q is f32[M, stride], read from the offset on. With `last` only the last
    query attends, and out is f32[1, H, D]. `importance` is as on CPUs
    (codegen/cpu/kernels/attention.py); it wants more than one query.
    """
    dim, rows = cache.head_dim, 1 if last else max_tokens
    q_rows = q_rows or Rows(heads * dim)
    warps, kind = _DECODE_WARPS if rows == 1 else _PREFILL_WARPS, chunks_of(cache)
    count = attention_parts(isa, heads, cache) if rows == 1 else 1
    name = kernel_name(
        "attention", m=max_tokens, h=heads, c=cache.name, s=scores.name,
        q=f"{q_rows.stride}o{q_rows.offset}", **({"t": "last"} if last else {}),
        **({"i": importance} if importance else {}),
        **({"p": count} if count > 1 else {}),
    )  # fmt: skip
    with kernel(name) as k:
        q = k.buffer("q", (max_tokens, q_rows.stride))
        stored = declare_cache(k, cache)
        slopes = k.buffer("slopes", (heads,)) if scores.alibi else None
        out = k.buffer("out", (rows, heads * dim))
        shares = [k.buffer(each, (rows, heads)) for each in KEPT[importance]]
        parts = None
        if count > 1:
            parts = Parts(k.buffer("parts", (heads, count, dim + 2)), heads, count, dim)
        tokens, position = k.state("tokens"), k.state("position")
        grid, threads = [heads, rows * count], warps * WARP
        with launch(grid, threads) as (head, y, thread):
            row, part = (T.int32(0), y) if count > 1 else (y, T.int32(0))
            with when(row < tokens.read()):
                m = T.bind(tokens.read() - 1) if last else row
                kv_head = T.bind(head // (heads // cache.kv_heads))
                chunks = kind(cache, scores, stored, kv_head, thread, threads)
                slope = T.bind(slopes[head]) if slopes is not None else None
                query = Query(scores, slope, T.bind(position.read() + m))

                def keep_shares(found: Any, at: Any = (row, head)) -> None:
                    for share, value in zip(shares, found, strict=True):
                        T.buffer_store(share, value, list(at))

                _Block(chunks, query, dim, warps, thread, part, parts, importance).run(
                    lambda d: q[m, q_rows.offset + head * dim + d],
                    lambda d, value: T.buffer_store(out, value, [row, head * dim + d]),
                    head,
                    keep_shares,
                )
        if parts is not None:

            def used() -> Any:
                query = Query(scores, None, T.bind(position.read() + tokens.read() - 1))
                return query.used_parts(kind.keys, warps, count)

            parts.put_together(used, out)
    function = k.function.with_attr(USED, {"q": heads * dim})
    return function.with_attr(SCRATCH, ["parts"]) if parts is not None else function


def memory_waits(cache: KVCache, length: int, parts: int) -> int:
    """How often a warp waits for memory, one after the other, of a token that sees `length` keys
    which `parts` blocks share: for each batch of elements of its keys and of values; with several
    parts for the number of keys, the weights and the sums of the others.
    """
    kind, dim = chunks_of(cache), cache.head_dim
    elements = ceil_div(dim, WARP)
    batches = ceil_div(dim, BATCH) + elements * WARP // BATCH
    if cache.integers:  # words of four, a lane has two keys
        batches = 2 * ceil_div(ceil_div(dim, WORD), BATCH) + 2 * elements
    together = 3 if parts > 1 else 0
    return turns(length, kind.keys, _DECODE_WARPS, parts) * batches + together


def attention_parts(isa: Any, heads: int, cache: KVCache) -> int:
    """Blocks that share the keys of a head where there is a single token."""
    return part_count(isa, heads, cache.context, _DECODE_WARPS * chunks_of(cache).keys)


def chunks_of(cache: KVCache) -> type[CodeChunks] | type[FloatChunks]:
    """How warps read a cache."""
    return CodeChunks if cache.integers else FloatChunks


@dataclass(frozen=True)
class _Block:
    """The work of a block.

    Attributes:
        part, parts: which of a head's blocks it is, and where it leaves what it has; None where
            there is one.
    """

    chunks: Chunks
    query: Query
    dim: int
    warps: int
    thread: Any
    part: Any
    parts: Parts | None
    importance: str

    @property
    def elements(self) -> int:
        """Of a value, that a lane adds up."""
        return ceil_div(self.dim, WARP)

    def run(self, element: Any, store: Any, head: Any, keep_shares: Any) -> None:
        """Attend with the query whose element d `element(d)` gives, and give each element of the
        result to `store(d, value)`, or leave it as a part of the head. What makes tokens important
        goes to `keep_shares`.
        """
        parts = self.parts
        if parts is None:
            self.chunks.load_query(element)
            shares = (lambda *found: keep_shares(self._shares(*found))) if self.importance else None
            self._run(lambda d, value, total: store(d, value / total), shares)
            return
        used = self.query.used_parts(self.chunks.keys, self.warps, parts.count)

        def keep(d: Any, value: Any, total: Any) -> None:
            with when(used == 1):
                store(d, value / total)
            with when(used > 1):
                parts.keep(head, self.part, d, value)

        with when(self.part < used):
            self.chunks.load_query(element)
            self._run(keep, lambda *weights: parts.keep_weights(head, self.part, *weights))

    def _shares(self, largest: Any, total: Any) -> tuple[Any, ...]:
        """What `KEPT` names, of the query's largest score and the sum of its exponentials."""
        inverse = T.bind(T.float32(1.0) / total)
        if self.importance == "received":
            return largest, inverse
        score = self.query.score(T.bind(self.chunks.product(T.int32(0))), T.int32(0))
        share = T.bind(function("expf", T.bind(score - largest)) * inverse)
        return (tirx.Select(self.query.first_key() == 0, share, T.float32(0.0)),)

    def _run(self, keep: Any, keep_weights: Any) -> None:
        warp, lane = T.bind(self.thread // WARP), T.bind(self.thread % WARP)
        sums, total, maximum = self._attend(warp, lane)
        parts, largest = shared((self.warps, self.elements * WARP)), shared((self.warps,))
        totals = shared((self.warps,))
        barrier()  # these may lie where the query lay
        for i in range(self.elements):
            T.buffer_store(parts, sums[i], [warp, i * WARP + lane])
        with when(lane == 0):
            T.buffer_store(largest, maximum[0], [warp])
            T.buffer_store(totals, total[0], [warp])
        barrier()
        maximum, total = self._merge(parts, largest, totals, keep)
        if keep_weights is not None:
            with when(self.thread == 0):
                keep_weights(maximum[0], total[0])

    def _merge(self, parts: Any, largest: Any, totals: Any, keep: Any) -> tuple[Any, Any]:
        """Give all sums to `keep(d, value, total)`; warps that saw no key have a maximum so low
        that their factor is 0.
        """
        maximum = local(1, largest[0])
        for warp in range(1, self.warps):
            T.buffer_store(maximum, T.max(maximum[0], largest[warp]), [0])
        factors, total = local(self.warps, T.float32(0.0)), local(1, T.float32(0.0))
        for warp in range(self.warps):
            factor = function("expf", T.bind(largest[warp] - maximum[0]))
            T.buffer_store(factors, factor, [warp])
            T.buffer_store(total, total[0] + factors[warp] * totals[warp], [0])
        with T.serial(0, ceil_div(self.dim, self.warps * WARP)) as step:
            d = T.bind(step * (self.warps * WARP) + self.thread)
            with when(d < self.dim):
                value = local(1, T.float32(0.0))
                for warp in range(self.warps):
                    T.buffer_store(value, value[0] + factors[warp] * parts[warp, d], [0])
                keep(d, value[0], total[0])
        return maximum, total

    def _attend(self, warp: Any, lane: Any) -> tuple[Any, Any, Any]:
        """Of a warp's keys the weighted sums of values, lane + 32 * i in register i, the sum of
        the weights, and the largest score.
        """
        size, position = self.chunks.keys, self.query.position
        warps = self.warps
        if self.parts is not None:
            warp, warps = T.bind(self.part * warps + warp), warps * self.parts.count
        sums, total = local(self.elements, T.float32(0.0)), local(1, T.float32(0.0))
        maximum, low = local(1, T.float32(MASKED)), self.query.first_key()
        begin, count = self.query.chunks(size)
        with T.serial(0, T.max(count - warp + (warps - 1), T.int32(0)) // warps) as step:
            first = T.bind((begin + warp + step * warps) * size)
            weights, keys, seen = self._weights(first, low, lane, maximum, total, sums)
            self.chunks.prepare(weights, keys, seen)
            reach = T.bind(T.min(position + 1 - first, T.int32(size)))
            for i in range(self.elements):
                value = self.chunks.value(first, reach, T.bind(lane + i * WARP))
                T.buffer_store(sums, sums[i] + value, [i])
        return sums, total, maximum

    def _weights(
        self, first: Any, low: Any, lane: Any, maximum: Any, total: Any, sums: Any
    ) -> tuple[Any, list[Any], list[Any]]:
        """(weights of a chunk's keys, keys, whether they are seen) of this lane; brings the sums so
        far to the new largest score.
        """
        each = self.chunks.keys // WARP
        keys = [T.bind(first + lane + i * WARP) for i in range(each)]
        seen = [T.bind(tirx.all(key >= low, key <= self.query.position)) for key in keys]
        scores = local(each, T.float32(MASKED))
        largest = local(1, maximum[0])
        for i, key in enumerate(keys):
            with when(seen[i]):
                score = self.query.score(T.bind(self.chunks.product(key)), key)
                T.buffer_store(scores, score, [i])
            T.buffer_store(largest, T.max(largest[0], scores[i]), [0])
        together = across_warp(largest[0], T.max)
        rescale = T.bind(function("expf", T.bind(maximum[0] - together)))
        T.buffer_store(maximum, together, [0])
        added = local(1, T.float32(0.0))
        for i in range(each):
            weight = function("expf", T.bind(scores[i] - together)) * T.cast(seen[i], "float32")
            T.buffer_store(scores, weight, [i])
            T.buffer_store(added, added[0] + scores[i], [0])
        T.buffer_store(total, total[0] * rescale + across_warp(added[0], add), [0])
        for i in range(self.elements):
            T.buffer_store(sums, sums[i] * rescale, [i])
        return scores, keys, seen
