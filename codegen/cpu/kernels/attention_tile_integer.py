"""Attention over a cache of 8-bit or 4-bit codes: both products by the dot instruction.

The numbers are those of `ir/reference_attention.py`. A chunk's softmax weights, each times its
value's scale, become codes of one scale for each row; the integer sum of a chunk is scaled when it
is added to the output. Codes of 4 bits are taken out of their bytes by masks; what their middles
add is one multiply-add for a vector of scores, and one sum for a row of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import (
    Registers,
    load,
    load_words,
    prefetch,
    splat,
    splat_float,
    store,
    vector_type,
)
from morendo.codegen.cpu.vectors.vector_blocks import (
    common_lanes,
    index,
    load_float,
    reduce_lanes,
    variable,
)
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT
from morendo.ir.reference_attention import MIDDLE

from .attention_tile import CHUNK, Tile, block_width
from .kv_cache import WORD, CacheBuffers, turned_head
from .quantize_activation import codes_per_unit, quantize_vector, rounded_codes


@dataclass
class IntegerTile(Tile):
    """A tile whose products are of int8 codes.

    Attributes:
        codes: int8 [R, Dp + CHUNK]: of each row the query's codes, and those of a chunk's weights.
        query_scale: of each row, times the scores' scale.
        query_sum: of each row's query codes, for instructions that want `signed_offset`.
        weight_step: of each row, what a code of its weights stands for in this chunk.
        weight_sum: of each row's weight codes in this chunk.
        weight_middle: of each row's weights times the middles of their values, for 4 bits.
    """

    codes: Any = field(init=False)
    query_scale: Registers = field(init=False)
    query_sum: Registers = field(init=False)
    weight_step: Registers = field(init=False)
    weight_sum: Registers = field(init=False)
    weight_middle: Registers = field(init=False)

    @property
    def width(self) -> int:
        return self.cache.padded_dim

    def allocate(self) -> None:
        super().allocate()
        self.codes = T.alloc_buffer((self.count, self.cache.padded_dim + CHUNK), "int8")
        self.query_scale = Registers(self.count, "float32", 1)
        self.weight_step = Registers(self.count, "float32", 1)
        self.query_sum = Registers(self.count, "int32", 1)
        self.weight_sum = Registers(self.count, "int32", 1)
        if self.cache.parts > 1:
            self.weight_middle = Registers(self.count, "float32", 1)

    def load_query(self, r: int, q: Any, source: tuple[Any, Any]) -> None:
        dim, factor = self.cache.head_dim, self.scores.scale
        if self.cache.rotated:
            q, source = turned_head(self.isa, self.cache, q, source), (0, 0)
            factor /= dim
        m, offset = source
        lanes = common_lanes(dim, self.lanes)
        with T.serial(0, self.cache.padded_dim - dim) as d:
            T.buffer_store(self.codes, T.int8(0), [r, dim + d])

        def keep(i: Any, rounded: Any) -> None:
            self._store_codes(r, i, rounded, lanes)

        scale, total = quantize_vector(
            lambda i: load_float(q, [m, offset + i], lanes), dim, lanes, keep
        )
        self.query_scale[r] = scale * T.float32(factor)
        self.query_sum[r] = total

    def score_block(self, buffers: CacheBuffers, head: Any, start: Any, block: Any) -> None:
        lanes, key_tile = self.lanes, self.cache.tile
        parts = range(0, key_tile, lanes)
        tiles = self.key_places(start, block)
        places = [(tile, part) for tile in tiles for part in parts]
        width = len(places)
        sums = self._sums(width)
        with T.serial(0, ceil_div(min(self.cache.head_dim, self.cache.stored_dim), WORD)) as word:
            keys = [
                T.bind(load_words(buffers.keys, [head, tile, word, part, 0], lanes))
                for tile, part in places
            ]
            if self.prefetch:
                for tile in tiles:
                    prefetch(buffers.keys, [head, tile + CHUNK // key_tile, word, 0, 0])
            for p, codes in enumerate(self._unpacked(keys)):
                self._multiply(sums, codes, word * WORD + p * self.cache.stored_dim)
        for i, (tile, part) in enumerate(places):
            at = [head, tile * key_tile + part]
            key_scale = load_float(buffers.key_scales, at, lanes)
            middle = load_float(buffers.key_middles, at, lanes) if self.cache.parts > 1 else None
            for r in range(self.count):
                total = self._without_offset(sums[r * width + i], self.query_sum[r])
                query_scale = splat(self.query_scale[r], lanes)
                if middle is None:
                    score = total * query_scale * key_scale
                else:
                    query_sum = splat(T.cast(self.query_sum[r], "float32"), lanes)
                    score = (total * key_scale + query_sum * middle) * query_scale
                store(self.state, [r, self.weight((block * width + i) * lanes)], score, lanes)

    def add_values(self, buffers: CacheBuffers, where: tuple[Any, Any, Any], vectors: Any) -> None:
        self._round_weights(buffers, where, vectors)
        columns = self.cache.stored_dim // self.lanes
        most = max(1, block_width(self.count, self.isa) // self.cache.parts)
        width = ceil_div(columns, ceil_div(columns, most))
        for first in range(0, columns, width):
            part = range(first, min(first + width, columns))
            self._add_block(buffers.values, where, [i * self.lanes for i in part])

    def _round_weights(
        self, buffers: CacheBuffers, where: tuple[Any, Any, Any], vectors: Any
    ) -> None:
        """Multiply the chunk's weights by their values' scales and make codes of them."""
        head, start, keys = where
        lanes, middles = self.lanes, Registers(self.count, "float32", self.lanes)
        highest = Registers(self.count, "float32", lanes)
        totals = Registers(self.count, "int32", lanes)
        for r in range(self.count):
            highest[r] = splat_float(0.0, lanes)
            totals[r] = splat(T.int32(0), lanes)
            if self.cache.parts > 1:
                middles[r] = splat_float(0.0, lanes)
        with T.serial(0, vectors) as v:
            # a vector that begins beyond the cache has no written keys
            at = index(T.min(start + v * lanes, T.int32(self.cache.context - lanes)))
            scale = load_float(buffers.value_scales, [head, at], lanes)
            written = T.ramp(v * lanes, 1, lanes) < splat(keys, lanes)
            for r in range(self.count):
                weight = load_float(self.state, [r, self.weight(v * lanes)], lanes)
                scaled = tirx.Select(written, weight * scale, splat_float(0.0, lanes))
                scaled = variable(scaled, lanes)
                highest[r] = T.max(highest[r], scaled)
                if self.cache.parts > 1:
                    middle = weight * load_float(buffers.value_middles, [head, at], lanes)
                    middle = tirx.Select(written, middle, splat_float(0.0, lanes))
                    middles[r] = middles[r] + variable(middle, lanes)
                store(self.state, [r, self.weight(v * lanes)], scaled, lanes)
        inverses = []
        for r in range(self.count):
            largest = variable(reduce_lanes(highest[r], lanes, T.max), 1)
            self.weight_step[r] = largest / T.float32(CODE_LIMIT)
            inverses.append(variable(codes_per_unit(largest, 1), 1))
        with T.serial(0, vectors) as v:
            for r in range(self.count):
                scaled = load_float(self.state, [r, self.weight(v * lanes)], lanes)
                rounded = rounded_codes(scaled, inverses[r], lanes)
                totals[r] = totals[r] + rounded
                self._store_codes(r, self.cache.padded_dim + v * lanes, rounded, lanes)
        for r in range(self.count):
            if self._offset:
                self.weight_sum[r] = reduce_lanes(totals[r], lanes, _add, "int32")
            if self.cache.parts > 1:
                self.weight_middle[r] = reduce_lanes(middles[r], lanes, _add)

    def _add_block(self, values: Any, where: tuple[Any, Any, Any], columns: list[int]) -> None:
        """The part of `add_values` for the vectors of the output that begin at `columns`."""
        head, start, keys = where
        lanes, stored = self.lanes, self.cache.stored_dim
        places = [column + p * stored for p in range(self.cache.parts) for column in columns]
        width = len(places)
        sums = self._sums(width)
        first = index(start // WORD)
        with T.serial(0, (keys + (WORD - 1)) // WORD) as j:
            four = [T.bind(load_words(values, [head, first + j, c, 0], lanes)) for c in columns]
            if self.prefetch:
                for column in columns[:: max(1, 16 // lanes)]:  # lines of 64 bytes
                    prefetch(values, [head, first + j + CHUNK // WORD, column, 0])
            codes = [each for part in self._unpacked(four) for each in part]
            self._multiply(sums, codes, self.cache.padded_dim + j * WORD)
        for r in range(self.count):
            rescale, step = splat(self.rescale[r], lanes), splat(self.weight_step[r], lanes)
            for i, column in enumerate(places):
                old = load(self.state, [r, column], lanes)
                total = self._without_offset(sums[r * width + i], self.weight_sum[r])
                new = old * rescale + total * step
                if self.cache.parts > 1:
                    new = new + splat(self.weight_middle[r], lanes)
                store(self.state, [r, column], new, lanes)

    def _sums(self, width: int) -> Registers:
        """`width` sums for each row, 0."""
        sums = Registers(self.count * width, "int32", self.lanes)
        for i in range(len(sums)):
            sums[i] = splat(T.int32(0), self.lanes)
        return sums

    def _multiply(self, sums: Registers, words: list[Any], column: Any) -> None:
        """sums[r, i] += words[i] . the four codes of row r from `column` on, in every lane."""
        for r in range(self.count):
            four = T.reinterpret("int32", load(self.codes, [r, column], WORD))
            x = T.bind(splat(four, self.lanes))
            for i, each in enumerate(words):
                slot = r * len(words) + i
                dot = self.isa.dot if self.cache.parts > 1 else self.isa.dot_signed
                sums[slot] = dot(sums[slot], each, x)

    def _without_offset(self, total: Any, codes: Any) -> Any:
        """An integer sum as float32, less what the stored offset of the codes added to it."""
        if self._offset:
            total = total - splat(T.int32(self._offset) * codes, self.lanes)
        return T.cast(total, vector_type("float32", self.lanes))

    @property
    def _offset(self) -> int:
        """What stored codes have added to them."""
        return MIDDLE if self.cache.parts > 1 else self.isa.signed_offset

    def _unpacked(self, words: list[Any]) -> list[list[Any]]:
        """Words of bytes as words of codes, for each code of a byte."""
        if self.cache.parts == 1:
            return [words]
        mask = splat(T.uint32(0x0F0F0F0F), self.lanes)
        high = splat(T.uint32(4), self.lanes)
        return [[T.bind(w & mask) for w in words], [T.bind((w >> high) & mask) for w in words]]

    def _store_codes(self, r: int, column: Any, rounded: Any, lanes: int) -> None:
        store(self.codes, [r, column], T.cast(rounded, vector_type("int8", lanes)), lanes)


def _add(a: Any, b: Any) -> Any:
    return a + b
