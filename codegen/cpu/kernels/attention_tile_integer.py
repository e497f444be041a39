"""Attention over a cache of 8-bit or 4-bit codes: both products by the dot instruction.

The numbers are those of `ir/reference_attention.py`. A chunk's softmax weights, each times its
value's scale, become codes of one scale for each row; the integer sum of a chunk is scaled when it
is added to the output. Codes of 4 bits are taken out of their bytes by masks; what their middles
add is one multiply-add for a vector of scores, and one sum for a row of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

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
    counting,
    fold,
    index,
    load_float,
    variable,
)
from morendo.ir.formats import ceil_div
from morendo.ir.reference_attention import MIDDLE

from .attention_tile import CHUNK, Tile, block_width
from .kv_cache import WORD, CacheBuffers, turned_head
from .quantize_activation import (
    code_step,
    codes_per_unit,
    quantize_vector,
    round_by_largest,
    rounded_codes,
)

_TOGETHER = 4
"""Vectors of words whose bytes are a vector."""


@dataclass
class IntegerTile(Tile):
    """A tile whose products are of int8 codes.

    Attributes:
        query_codes: int8 [R, Dp], flat: of each row the query's codes.
        weight_codes: int8 [R, CHUNK], flat: those of a chunk's weights.
        query_scale: of each row, times the scores' scale.
        query_sum: of each row's query codes, for instructions that want `signed_offset`.
        weight_step: of each row, what a code of its weights stands for in this chunk.
        weight_sum: of each row's weight codes in this chunk.
        weight_middle: of each row's weights times the middles of their values, for 4 bits.
    """

    clears_output: ClassVar[bool] = False
    query_codes: Any = field(init=False)
    weight_codes: Any = field(init=False)
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
        behind = _TOGETHER * self.lanes if self.isa.side_by_side > 1 else 0
        self.query_codes = T.alloc_buffer((self.count * self.cache.padded_dim + behind,), "int8")
        self.weight_codes = T.alloc_buffer((self.count * CHUNK + behind,), "int8")
        self.query_scale = Registers(self.count, "float32", 1)
        self.weight_step = Registers(self.count, "float32", 1)
        self.query_sum = Registers(self.count, "int32", 1)
        self.weight_sum = Registers(self.count, "int32", 1)
        if self.cache.parts > 1:
            self.weight_middle = Registers(self.count, "float32", 1)

    def load_queries(self, q: Any, sources: list[tuple[Any, Any]]) -> None:
        """Those of all rows together where the vector unit has them side by side."""
        dim, lanes = self.cache.head_dim, self.lanes
        few = dim == self.cache.padded_dim and dim <= _TOGETHER * lanes
        if self.isa.side_by_side == 1 or not few or self.cache.rotated:
            super().load_queries(q, sources)
            return
        rows = [
            [variable(load_float(q, [m, at + i], lanes), lanes) for i in range(0, dim, lanes)]
            for m, at in sources
        ]
        rounded = round_by_largest(self.isa, rows, lanes)
        totals = [fold(codes, _add) for codes, _ in rounded]
        totals = self.isa.fold_lanes(totals, lanes, _add, "int32")
        for r, (codes, scale) in enumerate(rounded):
            self._store_codes(self.query_codes, self._query(r), codes, lanes)
            self.query_scale[r] = scale * T.float32(self.scores.scale)
            self.query_sum[r] = totals[r]

    def _query(self, r: int) -> int:
        """Where the codes of a row's query begin."""
        return r * self.cache.padded_dim

    def load_query(self, r: int, q: Any, source: tuple[Any, Any]) -> None:
        dim, factor = self.cache.head_dim, self.scores.scale
        if self.cache.rotated:
            q, source = turned_head(self.isa, self.cache, q, source), (0, 0)
            factor /= dim
        m, offset = source
        lanes = common_lanes(dim, self.lanes)
        with T.serial(0, self.cache.padded_dim - dim) as d:
            T.buffer_store(self.query_codes, T.int8(0), [self._query(r) + dim + d])

        def keep(i: Any, rounded: Any) -> None:
            self._store_codes(self.query_codes, self._query(r) + i, [rounded], lanes)

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
                column = word * WORD + p * self.cache.stored_dim
                fours = [(self.query_codes, self._query(r) + column) for r in range(self.count)]
                self._multiply(sums, codes, fours)
        for i, (tile, part) in enumerate(places):
            at = [head, tile * key_tile + part]
            key_scale = load_float(buffers.key_scales, at, lanes)
            middle = load_float(buffers.key_middles, at, lanes) if self.cache.parts > 1 else None
            for r in range(self.count):
                total = self._without_offset(sums[r * width + i], self.query_sum[r])
                query_scale = splat(self.query_scale[r], lanes)
                if middle is None:
                    score = self.isa.scaled(total, query_scale, key_scale, lanes)
                else:
                    total = T.cast(total, vector_type("float32", lanes))
                    query_sum = splat(T.cast(self.query_sum[r], "float32"), lanes)
                    score = (total * key_scale + query_sum * middle) * query_scale
                store(self.state, [r, self.weight((block * width + i) * lanes)], score, lanes)

    def add_values(self, buffers: CacheBuffers, where: tuple[Any, ...], vectors: Any) -> None:
        self._round_weights(buffers, where, vectors)
        columns = self.cache.stored_dim // self.lanes
        most = max(1, block_width(self.count, self.isa) // self.cache.parts)
        width = ceil_div(columns, ceil_div(columns, most))
        for first in range(0, columns, width):
            part = range(first, min(first + width, columns))
            self._add_block(buffers.values, where, [i * self.lanes for i in part])

    def _round_weights(self, buffers: CacheBuffers, where: tuple[Any, ...], vectors: Any) -> None:
        """Multiply the chunk's weights by their values' scales and make codes of them."""
        head, start, keys, _ = where
        lanes, middles = self.lanes, Registers(self.count, "float32", self.lanes)
        highest = Registers(self.count, "float32", lanes)
        for r in range(self.count):
            highest[r] = splat_float(0.0, lanes)
            if self.cache.parts > 1:
                middles[r] = splat_float(0.0, lanes)
        with T.serial(0, vectors) as v:
            # a vector that begins beyond the cache has no written keys
            at = index(T.min(start + v * lanes, T.int32(self.cache.context - lanes)))
            scale = load_float(buffers.value_scales, [head, at], lanes)
            zero = splat_float(0.0, lanes)
            written = counting(v * lanes, lanes), splat(keys, lanes)
            for r in range(self.count):
                weight = load_float(self.state, [r, self.weight(v * lanes)], lanes)
                scaled = self.isa.where_below(*written, weight * scale, zero, lanes)
                scaled = variable(scaled, lanes)
                highest[r] = T.max(highest[r], scaled)
                if self.cache.parts > 1:
                    middle = weight * load_float(buffers.value_middles, [head, at], lanes)
                    middle = self.isa.where_below(*written, middle, zero, lanes)
                    middles[r] = middles[r] + variable(middle, lanes)
                store(self.state, [r, self.weight(v * lanes)], scaled, lanes)
        self._store_weights(highest, vectors)
        if self.cache.parts > 1:
            folded = self.isa.fold_lanes([middles[r] for r in range(self.count)], lanes, _add)
            for r, total in enumerate(folded):
                self.weight_middle[r] = total

    def _store_weights(self, highest: Registers, vectors: Any) -> None:
        """Make codes of the chunk's scaled weights, by the largest in each lane of a row."""
        rows, lanes, totals = (
            range(self.count),
            self.lanes,
            Registers(self.count, "int32", self.lanes),
        )
        for r in rows:
            totals[r] = splat(T.int32(0), lanes)
        largest = self.isa.fold_lanes([highest[r] for r in rows], lanes, T.max)
        inverses = self.isa.of_each(codes_per_unit, largest)
        for r, step in enumerate(self.isa.of_each(code_step, largest)):
            self.weight_step[r] = step
        with T.serial(0, vectors // self._joined) as block:
            for r in rows:
                first, codes = block * (self._joined * lanes), []
                for i in range(self._joined):
                    scaled = load_float(self.state, [r, self.weight(first + i * lanes)], lanes)
                    codes.append(rounded_codes(scaled, inverses[r], lanes))
                    totals[r] = totals[r] + codes[-1]
                self._store_codes(self.weight_codes, r * CHUNK + first, codes, lanes)
        if self._offset:
            folded = self.isa.fold_lanes([totals[r] for r in rows], lanes, _add, "int32")
            for r, total in enumerate(folded):
                self.weight_sum[r] = total

    def _add_block(self, values: Any, where: tuple[Any, ...], columns: list[int]) -> None:
        """The part of `add_values` for the vectors of the output that begin at `columns`."""
        head, start, keys, begins = where
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
            fours = [(self.weight_codes, r * CHUNK + j * WORD) for r in range(self.count)]
            self._multiply(sums, codes, fours)
        with T.If(begins):
            with T.Then():
                self._add_sums(sums, places, begins=True)
            with T.Else():
                self._add_sums(sums, places, begins=False)

    def _add_sums(self, sums: Registers, columns: list[Any], begins: bool) -> None:
        """Add a chunk's integer sums to those columns of the output, or begin it with them."""
        lanes = self.lanes
        for r in range(self.count):
            rescale, step = splat(self.rescale[r], lanes), splat(self.weight_step[r], lanes)
            for i, column in enumerate(columns):
                total = self._without_offset(sums[r * len(columns) + i], self.weight_sum[r])
                new = T.cast(total, vector_type("float32", lanes)) * step
                if not begins:
                    new = load(self.state, [r, column], lanes) * rescale + new
                if self.cache.parts > 1:
                    new = new + splat(self.weight_middle[r], lanes)
                store(self.state, [r, column], new, lanes)

    def _sums(self, width: int) -> Registers:
        """`width` sums for each row, 0."""
        sums = Registers(self.count * width, "int32", self.lanes)
        for i in range(len(sums)):
            sums[i] = splat(T.int32(0), self.lanes)
        return sums

    def _multiply(self, sums: Registers, words: list[Any], fours: list[tuple[Any, Any]]) -> None:
        """sums[r, i] += words[i] . the four codes at the place `fours[r]`, in every lane."""
        for r, (buffer, at) in enumerate(fours):
            four = T.reinterpret("int32", load(buffer, [at], WORD))
            x = T.bind(splat(four, self.lanes))
            for i, each in enumerate(words):
                slot = r * len(words) + i
                dot = self.isa.dot if self.cache.parts > 1 else self.isa.dot_signed
                sums[slot] = dot(sums[slot], each, x)

    def _without_offset(self, total: Any, codes: Any) -> Any:
        """An integer sum less what the stored offset of the codes added to it."""
        return total - splat(T.int32(self._offset) * codes, self.lanes) if self._offset else total

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

    @property
    def _joined(self) -> int:
        """Vectors of a row's weights that become bytes together: all of a chunk, or one."""
        vectors = CHUNK // self.lanes
        whole = self.key_tiles * self.cache.tile == CHUNK and vectors <= _TOGETHER
        return vectors if whole and self.isa.side_by_side > 1 else 1

    def _store_codes(self, buffer: Any, at: Any, codes: list[Any], lanes: int) -> None:
        """Write vectors of int32 codes as bytes.

        Several are written as one whole vector of bytes, since parts of vectors are taken apart:
        what lies behind them is written later.
        """
        if len(codes) > 1:
            codes = codes + codes[-1:] * (_TOGETHER - len(codes))
        width = lanes * len(codes)
        joined = codes[0] if len(codes) == 1 else tirx.Shuffle(codes, list(range(width)))
        store(buffer, [at], T.cast(joined, vector_type("int8", width)), width)


def _add(a: Any, b: Any) -> Any:
    return a + b
