"""Attention over a cache of codes, in integers as `ir/reference_attention.py` has them.

A chunk has the 64 keys whose weights share a scale. Scores and weighted sums are products of four
codes at a time (`dp4a`): four elements of a key lie in a word, and four positions of a value. Where
bytes hold two codes of 4 bits, a word is masked, and shifted and masked; `MIDDLE`, which such codes
have added, is taken off sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import WORD, CacheBuffers, KVCache
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT
from morendo.ir.reference_attention import CHUNK, MIDDLE
from morendo.targets.cuda.blocks import (
    WARP,
    across,
    across_warp,
    add,
    barrier,
    batched,
    from_lane,
    local,
    shared,
    when,
)
from morendo.targets.cuda.intrinsics import DOT_SIGNED, LOAD_WORD

from .head_codes import round_head, steps_for, turned_head

_BITS = 8
_NIBBLES = 0x0F0F0F0F


def _packed(code: Any, lane: Any) -> Any:
    """Codes of four lanes as a word, which all four have: uint32."""
    byte = T.cast(code, "uint32") & T.uint32(255)
    word = T.bind(byte << T.cast(lane % WORD * _BITS, "uint32"))
    return across(word, (1, 2), lambda a, b: a | b)


@dataclass
class CodeChunks:
    """`Chunks` of a cache of codes.

    Attributes:
        query: uint32 words of four codes, in shared memory.
        query_sum: of its codes, int32.
        factor: of the query, its scale times that of scores.
        codes: a word for each 32 keys of a chunk: the weights of keys 4 * (lane / 4) to 3 more.
        step: what a code of the weights stands for.
        taken: what the middles of codes of 4 bits add to each sum of the chunk, int32.
        middles: what the middles of values add to each element, float32.
    """

    cache: KVCache
    scores: Scores
    stored: CacheBuffers
    kv_head: Any
    thread: Any
    threads: int
    keys: int = CHUNK
    query: Any = None
    query_sum: Any = None
    factor: Any = None
    codes: Any = None
    step: Any = None
    taken: Any = None
    middles: Any = None

    @property
    def lane(self) -> Any:
        """In the warp."""
        return self.thread % WARP

    def load_query(self, element: Any) -> None:
        """Every warp rounds the query, the first one stores its codes."""
        dim, lane, scale = self.cache.head_dim, self.lane, self.scores.scale
        query = shared((ceil_div(dim, WARP) * WARP // WORD,), "uint32")
        total = local(1, T.int32(0), "int32")
        if self.cache.rotated:
            element, scale = turned_head(element, dim, self.thread, self.threads), scale / dim

        def keep(d: Any, code: Any) -> None:
            T.buffer_store(total, total[0] + code, [0])
            word = _packed(code, lane)
            with when(tirx.all(self.thread < WARP, lane % WORD == 0)):
                T.buffer_store(query, word, [d // WORD])

        step = round_head(element, dim, lane, keep)
        self.query, self.factor = query, T.bind(step * T.float32(scale))
        if self.cache.parts > 1:
            self.query_sum = across_warp(total[0], add)
        barrier()

    def product(self, key: Any) -> Any:
        """The query times a key, float32, by one lane."""
        cache, total = self.cache, local(1, T.int32(0), "int32")
        tile, place = T.bind(key // cache.tile), T.bind(key % cache.tile)

        def add_word(word: Any) -> None:
            codes = _word(self.stored.keys, [self.kv_head, tile, word, place, 0])
            # Codes behind the end of a head may be anything: those of the query are 0 there.
            for part in range(cache.parts):
                query = self.query[part * (cache.stored_dim // WORD) + word]
                _add_dot(total, self._part(codes, part), query)

        batched(ceil_div(min(cache.head_dim, cache.stored_dim), WORD), add_word)
        scale = self.stored.key_scales[self.kv_head, key]
        if cache.parts == 1:
            return T.cast(total[0], "float32") * self.factor * scale
        product = T.cast(total[0] - T.int32(MIDDLE) * self.query_sum, "float32") * scale
        middle = self.stored.key_middles[self.kv_head, key]
        return (product + T.cast(self.query_sum, "float32") * middle) * self.factor

    def _part(self, word: Any, part: Any) -> Any:
        """The codes of a word, or where a byte has two of them one of each."""
        if self.cache.parts == 1:
            return word
        return (word >> T.cast(_BITS // 2 * part, "uint32")) & T.uint32(_NIBBLES)

    def prepare(self, weights: Any, keys: list[Any], seen: list[Any]) -> None:
        """Make codes of a chunk's weights, each times the scale of its value."""
        scaled, largest = local(len(keys), T.float32(0.0)), local(1, T.float32(0.0))
        for i, key in enumerate(keys):
            with when(seen[i]):
                scale = self.stored.value_scales[self.kv_head, key]
                T.buffer_store(scaled, weights[i] * scale, [i])
            T.buffer_store(largest, T.max(largest[0], scaled[i]), [0])
        span = across_warp(largest[0], T.max)
        inverse = steps_for(span, CODE_LIMIT)
        rounded = [T.cast(T.nearbyint(scaled[i] * inverse), "int32") for i in range(len(keys))]
        self.codes = [_packed(code, self.lane) for code in rounded]
        self.step = T.bind(span / T.float32(CODE_LIMIT))
        if self.cache.parts > 1:
            self._prepare_middles(weights, keys, seen, rounded)

    def _prepare_middles(
        self, weights: Any, keys: list[Any], seen: list[Any], rounded: list[Any]
    ) -> None:
        total, middles = local(1, T.int32(0), "int32"), local(1, T.float32(0.0))
        for i, key in enumerate(keys):
            T.buffer_store(total, total[0] + rounded[i], [0])
            with when(seen[i]):
                middle = self.stored.value_middles[self.kv_head, key]
                T.buffer_store(middles, middles[0] + weights[i] * middle, [0])
        self.taken = T.bind(T.int32(MIDDLE) * across_warp(total[0], add))
        self.middles = across_warp(middles[0], add)

    def value(self, first: Any, count: Any, d: Any) -> Any:
        """The weighted sum of element d of the chunk's values, float32."""
        total, each = local(1, T.int32(0), "int32"), WARP // WORD
        stored, part = self.cache.stored_dim, T.int32(0)
        if self.cache.parts > 1:
            part = T.bind(d // stored)
        element = T.bind(T.min(d - part * stored, T.int32(stored - 1)))
        last = T.bind((first + count - 1) // WORD)
        for i, codes in enumerate(self.codes):

            def add_word(j: Any, i: int = i, codes: Any = codes) -> None:
                weights = T.bind(from_lane(codes, j * WORD))
                place = T.min(first // WORD + (i * each + j), last)  # of others the codes are 0
                four = _word(self.stored.values, [self.kv_head, place, element, 0])
                _add_dot(total, self._part(four, part), weights)

            batched(each, add_word)
        if self.cache.parts == 1:
            return T.cast(total[0], "float32") * self.step
        return T.cast(total[0] - self.taken, "float32") * self.step + self.middles


def _word(buffer: Any, index: list[Any]) -> Any:
    """Four bytes as uint32."""
    source = T.address_of(buffer[tuple(index)])
    return T.bind(T.call_pure_extern("uint32", LOAD_WORD, source))


def _add_dot(total: Any, a: Any, b: Any) -> None:
    T.buffer_store(total, T.call_pure_extern("int32", DOT_SIGNED, a, b, total[0]), [0])
