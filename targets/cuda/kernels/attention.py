"""Attention of new tokens over the cache, the same kernel for one token and for many.

A block has one query. Online softmax (Milakov and Gimelshein 2018; FlashAttention): keys come in
chunks, a key to a thread; then the threads are elements of the value, and add up the chunk's values
by the weights that lie in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.attention_tile import MASKED, Scores
from morendo.codegen.cpu.kernels.kv_cache import CacheBuffers, KVCache
from morendo.codegen.cpu.vectors.vector_blocks import Rows, kernel_name
from morendo.codegen.touched import USED
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import (
    across_block,
    barrier,
    function,
    kernel,
    launch,
    local,
    shared,
    strided,
    when,
)

from .cache import declare_cache

_THREADS = 128
"""Of a block, and keys of a chunk."""


@dataclass(frozen=True)
class _Query:
    """One query of a block: what it reads, where it stands."""

    cache: KVCache
    scores: Scores
    stored: CacheBuffers
    query: Any  # float32 [D], shared
    kv_head: Any
    slope: Any
    position: Any
    thread: Any

    def score(self, key: Any, into: Any) -> None:
        """Write the score of a key that the query sees to `into[0]`."""
        cache = self.cache
        T.buffer_store(into, T.float32(0.0), [0])
        with T.serial(0, cache.head_dim) as d:
            element = self.stored.keys[self.kv_head, key // cache.tile, d, key % cache.tile]
            product = self.query[d] * T.cast(element, "float32")
            T.buffer_store(into, into[0] + product, [0])
        value = into[0] * T.float32(self.scores.scale)
        if self.scores.softcap:
            cap = T.float32(self.scores.softcap)
            value = cap * function("tanhf", T.bind(value / cap))
        if self.scores.alibi:
            value = value + self.slope * T.cast(key - self.position, "float32")
        T.buffer_store(into, value, [0])

    def first_key(self) -> Any:
        """The first key that the query sees."""
        if not self.scores.window:
            return T.int32(0)
        return T.bind(T.max(self.position - (self.scores.window - 1), T.int32(0)))


def cached_attention(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    cache: KVCache,
    scores: Scores,
    q_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """Causal attention of the queries at position..position+tokens-1 over the cache.

    Parameters of the kernel: q f32[M, H, D], the cache, [slopes f32[H] with alibi,]
    out f32[M, H, D], tokens, position. The keys and values of the new tokens are in the cache
    already; what lies beyond them may hold anything. With `q_rows` q is f32[M, stride], read
    from the offset on.
    """
    dim = cache.head_dim
    q_rows = q_rows or Rows(heads * dim)
    name = kernel_name(
        "attention", m=max_tokens, h=heads, c=cache.name, s=scores.name,
        q=f"{q_rows.stride}o{q_rows.offset}",
    )  # fmt: skip
    with kernel(name) as k:
        q = k.buffer("q", (max_tokens, q_rows.stride))
        stored = declare_cache(k, cache)
        slopes = k.buffer("slopes", (heads,)) if scores.alibi else None
        out = k.buffer("out", (max_tokens, heads * dim))
        tokens, position = k.state("tokens"), k.state("position")
        with launch([heads, max_tokens], _THREADS) as (head, m, thread), when(m < tokens.read()):
            query = shared((dim,))

            def fetch(d: Any) -> None:
                T.buffer_store(query, q[m, q_rows.offset + head * dim + d], [d])

            strided(thread, _THREADS, dim, fetch)
            barrier()
            kv_head = T.bind(head // (heads // cache.kv_heads))
            slope = T.bind(slopes[head]) if slopes is not None else None
            at = T.bind(position.read() + m)
            block = _Query(cache, scores, stored, query, kv_head, slope, at, thread)
            sums, total = _attend(block)
            for i in range(ceil_div(dim, _THREADS)):
                d = T.bind(thread + i * _THREADS)
                with when(d < dim):
                    T.buffer_store(out, sums[i] / total[0], [m, head * dim + d])
    return k.function.with_attr(USED, {"q": heads * dim})


def _attend(block: _Query) -> tuple[Any, Any]:
    """The weighted sums of values, thread + i * _THREADS of the head in register i, and the sum of
    the weights.
    """
    thread, elements = block.thread, ceil_div(block.cache.head_dim, _THREADS)
    weights = shared((_THREADS,))
    sums, total = local(elements, T.float32(0.0)), local(1, T.float32(0.0))
    maximum, score = local(1, T.float32(MASKED)), local(1, T.float32(MASKED))
    low = block.first_key()
    with T.serial(0, (block.position - low) // _THREADS + 1) as chunk:
        first = T.bind(low + chunk * _THREADS)
        count = T.bind(T.min(block.position + 1 - first, T.int32(_THREADS)))
        T.buffer_store(score, T.float32(MASKED), [0])
        with when(thread < count):
            block.score(first + thread, score)
        largest = T.bind(T.max(maximum[0], across_block(score[0], thread, _THREADS, T.max)))
        rescale = T.bind(function("expf", maximum[0] - largest))
        T.buffer_store(maximum, largest, [0])
        seen = T.bind(T.cast(thread < count, "float32"))
        weight = T.bind(function("expf", score[0] - largest) * seen)
        T.buffer_store(weights, weight, [thread])
        added = across_block(weight, thread, _THREADS)
        T.buffer_store(total, total[0] * rescale + added, [0])
        for i in range(elements):
            T.buffer_store(sums, sums[i] * rescale, [i])
            _add_values(block, weights, first, count, sums, i)
        barrier()
    return sums, total


def _add_values(block: _Query, weights: Any, first: Any, count: Any, sums: Any, i: int) -> None:
    """Add the values of a chunk by their weights to register i."""
    d = T.bind(block.thread + i * _THREADS)
    with when(d < block.cache.head_dim):
        with T.serial(0, count) as key:
            value = T.cast(block.stored.values[block.kv_head, first + key, d], "float32")
            T.buffer_store(sums, sums[i] + weights[key] * value, [i])
