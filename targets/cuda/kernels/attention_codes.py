"""Attention over a cache of 8-bit codes, in integers as `ir/reference_attention.py` has them.

A chunk has the 64 keys whose weights share a scale. Scores and weighted sums are products of four
codes at a time (`dp4a`): four elements of a key lie in a word, and four positions of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import WORD, CacheBuffers, KVCache
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM
from morendo.ir.reference_attention import CHUNK
from morendo.targets.cuda.blocks import (
    WARP,
    across,
    across_warp,
    barrier,
    from_lane,
    local,
    shared,
    when,
)
from morendo.targets.cuda.intrinsics import DOT_SIGNED, LOAD_WORD

_BITS = 8


def round_head(
    element: Callable[[Any], Any], dim: int, lane: Any, keep: Callable[[Any, Any], None]
) -> Any:
    """Round a head by a warp, as `quantized_heads` does; gives the scale.

    Args:
        element: gives element d; only those of the head are asked for.
        keep: takes d and the code int32, 0 behind the end of the head.
    """
    count = ceil_div(dim, WARP)
    values, largest = local(count, T.float32(0.0)), local(1, T.float32(0.0))
    for i in range(count):
        d = T.bind(lane + i * WARP)
        with when(d < dim):
            T.buffer_store(values, element(d), [i])
        T.buffer_store(largest, T.max(largest[0], T.abs(values[i])), [0])
    span, inverse = _steps(largest[0])
    for i in range(count):
        d = T.bind(lane + i * WARP)
        keep(d, T.bind(T.cast(T.nearbyint(values[i] * inverse), "int32")))
    return T.bind(span / T.float32(CODE_LIMIT))


def _steps(largest: Any) -> tuple[Any, Any]:
    """(the largest magnitude of a warp's numbers, codes for one of them)."""
    span = across_warp(largest, T.max)
    usable = span >= T.float32(SMALLEST_MAXIMUM)
    inverse = tirx.Select(usable, T.float32(CODE_LIMIT) / span, T.float32(0.0))
    return span, T.bind(inverse)


def _packed(code: Any, lane: Any) -> Any:
    """Codes of four lanes as a word, which all four have: uint32."""
    byte = T.cast(code, "uint32") & T.uint32(255)
    word = T.bind(byte << T.cast(lane % WORD * _BITS, "uint32"))
    return across(word, (1, 2), lambda a, b: a | b)


@dataclass
class CodeChunks:
    """`Chunks` of a cache of 8-bit codes.

    Attributes:
        query: uint32 words of four codes, in shared memory.
        factor: of the query, its scale times that of scores.
        codes: a word for each 32 keys of a chunk: the weights of keys 4 * (lane / 4) to 3 more.
        step: what a code of the weights stands for.
    """

    cache: KVCache
    scores: Scores
    stored: CacheBuffers
    kv_head: Any
    thread: Any
    threads: int
    keys: int = CHUNK
    query: Any = None
    factor: Any = None
    codes: Any = None
    step: Any = None

    @property
    def lane(self) -> Any:
        """In the warp."""
        return self.thread % WARP

    def load_query(self, element: Any) -> None:
        """Every warp rounds the query, the first one stores its codes."""
        dim, lane = self.cache.head_dim, self.lane
        query = shared((ceil_div(dim, WARP) * WARP // WORD,), "uint32")

        def keep(d: Any, code: Any) -> None:
            word = _packed(code, lane)
            with when(tirx.all(self.thread < WARP, lane % WORD == 0)):
                T.buffer_store(query, word, [d // WORD])

        scale = round_head(element, dim, lane, keep)
        self.query, self.factor = query, T.bind(scale * T.float32(self.scores.scale))
        barrier()

    def product(self, key: Any) -> Any:
        """The query times a key, float32, by one lane."""
        cache, total = self.cache, local(1, T.int32(0), "int32")
        tile, place = T.bind(key // cache.tile), T.bind(key % cache.tile)
        with T.serial(0, ceil_div(cache.head_dim, WORD)) as word:
            codes = _word(self.stored.keys, [self.kv_head, tile, word, place, 0])
            # Codes behind the end of a head may be anything: those of the query are 0 there.
            _add_dot(total, codes, self.query[word])
        scale = self.stored.key_scales[self.kv_head, key]
        return T.cast(total[0], "float32") * self.factor * scale

    def prepare(self, weights: Any, keys: list[Any], seen: list[Any]) -> None:
        """Make codes of a chunk's weights, each times the scale of its value."""
        scaled, largest = local(len(keys), T.float32(0.0)), local(1, T.float32(0.0))
        for i, key in enumerate(keys):
            with when(seen[i]):
                scale = self.stored.value_scales[self.kv_head, key]
                T.buffer_store(scaled, weights[i] * scale, [i])
            T.buffer_store(largest, T.max(largest[0], scaled[i]), [0])
        span, inverse = _steps(largest[0])
        rounded = [T.cast(T.nearbyint(scaled[i] * inverse), "int32") for i in range(len(keys))]
        self.codes = [_packed(code, self.lane) for code in rounded]
        self.step = T.bind(span / T.float32(CODE_LIMIT))

    def value(self, first: Any, count: Any, d: Any) -> Any:
        """The weighted sum of element d of the chunk's values, float32."""
        total, each = local(1, T.int32(0), "int32"), WARP // WORD
        element = T.bind(T.min(d, T.int32(self.cache.stored_dim - 1)))
        words = T.bind((count + (WORD - 1)) // WORD)
        for i, codes in enumerate(self.codes):
            reach = T.min(T.max(words - i * each, T.int32(0)), T.int32(each))
            with T.serial(0, reach) as j:
                weights = T.bind(from_lane(codes, j * WORD))
                place = first // WORD + (i * each + j)
                four = _word(self.stored.values, [self.kv_head, place, element, 0])
                _add_dot(total, four, weights)
        return T.cast(total[0], "float32") * self.step


def _word(buffer: Any, index: list[Any]) -> Any:
    """Four bytes as uint32."""
    source = T.address_of(buffer[tuple(index)])
    return T.bind(T.call_pure_extern("uint32", LOAD_WORD, source))


def _add_dot(total: Any, a: Any, b: Any) -> None:
    T.buffer_store(total, T.call_pure_extern("int32", DOT_SIGNED, a, b, total[0]), [0])
