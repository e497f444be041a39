"""The inner part of cached attention: a tile of query rows against a range of keys.

Online softmax (Milakov and Gimelshein 2018; FlashAttention): keys are taken in chunks; each row
keeps its running maximum, the sum of exponentials and the unnormalized output, rescaled when a
chunk raises the maximum. Both products are register blocks of rows x vectors: scores have key
positions in the lanes, outputs have elements of the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import (
    Registers,
    load,
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
from morendo.codegen.cpu.vectors.vector_math import fast_exp
from morendo.ir.formats import ceil_div

from .kv_cache import KVCache

CHUNK = 64
"""Keys between two rescalings; a multiple of every score block."""

MASKED = -1e30
"""The score of a key that a query does not see; exp(MASKED - maximum) is 0."""


@dataclass(frozen=True)
class Scores:
    """How a score becomes the argument of the softmax.

    Attributes:
        scale: factor on the product of query and key.
        window: a query at position i sees the keys i-window+1..i; 0 = all up to i.
        softcap: scores s become softcap * tanh(s / softcap); 0 = off.
        alibi: scores get slope[head] * (key position - query position) added.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    alibi: bool = False

    @property
    def name(self) -> str:
        """Part of kernel names."""
        cap = f"c{self.softcap:g}" if self.softcap else ""
        return f"{self.scale!r}w{self.window}{cap}{'a' if self.alibi else ''}"


@dataclass(frozen=True)
class Row:
    """One query row of a tile: where it stands and which head it belongs to."""

    position: Any
    slope: Any = None


def most_rows(isa: VectorISA, key_tile: int) -> int:
    """Rows of a full tile, so that their scores of a tile of keys fit the registers."""
    return max(1, min(8, (isa.registers - 1) // (key_tile // isa.lanes) - 1))


def block_width(rows: int, isa: VectorISA) -> int:
    """Vectors that a register block may have beside each other: sums, one operand, a broadcast."""
    return max(1, (isa.registers - 1) // (rows + 1))


@dataclass
class Tile:
    """A tile of query rows of one kv head, with its running state.

    Attributes:
        cache: layout of the cache.
        scores: treatment of the scores.
        isa: the vector unit.
        count: rows R of the tile, at most `most_rows`.
        prefetch: ask for the next chunk of keys and values while the current one is used.
    """

    cache: KVCache
    scores: Scores
    isa: VectorISA
    count: int
    prefetch: bool
    state: Any = field(init=False)
    maximum: Registers = field(init=False)
    rescale: Registers = field(init=False)

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.isa.lanes

    def allocate(self) -> None:
        """Reserve the state: of each row the output, weights of a chunk, their sums, the query.

        One buffer on purpose: LLVM then has to assume that the stores of weights change the
        output, and leaves the output in memory between chunks. In buffers of their own it would
        promote all of them to registers, and spill inside the innermost loops.
        """
        dim = self.cache.head_dim
        self.state = T.alloc_buffer((self.count, dim + CHUNK + self.lanes + dim))
        self.maximum = Registers(self.count, "float32", 1)
        self.rescale = Registers(self.count, "float32", 1)

    @property
    def key_tiles(self) -> int:
        """Key tiles of a register block of scores: 1, 2 or 4.

        As few as hide the latency of the additions: keys beyond the last one are wasted work.
        """
        tiles = block_width(self.count, self.isa) // (self.cache.tile // self.lanes)
        return 4 if tiles >= 4 and self.count <= 2 else max(1, min(tiles, 2))

    def _weight(self, key: Any) -> Any:
        """The column of the state with the weight of a key of the chunk."""
        return self.cache.head_dim + key

    @property
    def _total(self) -> int:
        """The column of the state where a row's sums of weights begin, one for each lane."""
        return self.cache.head_dim + CHUNK

    def _query(self, d: Any) -> Any:
        """The column of the state with element d of the query."""
        return self.cache.head_dim + CHUNK + self.lanes + d

    def start(self, q: Any, sources: list[tuple[Any, Any]]) -> None:
        """Load the scaled queries, row r from q[sources[r]], and clear the running state."""
        dim = self.cache.head_dim
        lanes = common_lanes(dim, self.lanes)
        with T.serial(0, dim // lanes) as i:
            for r, (m, offset) in enumerate(sources):
                value = load_float(q, [m, offset + i * lanes], lanes)
                scaled = value * splat_float(self.scores.scale, lanes)
                store(self.state, [r, self._query(i * lanes)], scaled, lanes)
                store(self.state, [r, i * lanes], splat_float(0.0, lanes), lanes)
        for r in range(self.count):
            self.maximum[r] = T.float32(MASKED)
            store(self.state, [r, self._total], splat_float(0.0, self.lanes), self.lanes)

    def attend(
        self, k_cache: Any, v_cache: Any, head: Any, rows: list[Row], low: Any, high: Any
    ) -> None:
        """Add the keys low..high-1 to the running state.

        Args:
            k_cache: keys as in `kv_cache.py`.
            v_cache: values.
            head: kv head.
            rows: the rows of this tile, in the order of their positions.
            low: first key, a multiple of CHUNK.
            high: end of the keys; all of them have been written.
        """
        with T.serial(0, (high - low + (CHUNK - 1)) // CHUNK) as chunk:
            start = index(low + chunk * CHUNK)
            keys = index(T.min(high - start, T.int32(CHUNK)))
            block = self.key_tiles * self.cache.tile
            blocks = index((keys + (block - 1)) // block)
            with T.serial(0, blocks) as i:
                self._score_block(k_cache, head, start, i)
            vectors = index(blocks * (block // self.lanes))
            self._adjust(rows, start, vectors)
            self._softmax(vectors)
            self._add_values(v_cache, head, start, keys)

    def _score_block(self, k_cache: Any, head: Any, start: Any, block: Any) -> None:
        """weights[r, keys of the block] = query r . keys."""
        key_tile = self.cache.tile
        per_tile = key_tile // self.lanes
        width = self.key_tiles * per_tile
        sums = Registers(self.count * width, "float32", self.lanes)
        for i in range(len(sums)):
            sums[i] = splat_float(0.0, self.lanes)
        first = index(start // key_tile + block * self.key_tiles)
        last_tile = self.cache.context // key_tile - 1
        tiles = [index(T.min(first + t, T.int32(last_tile))) for t in range(self.key_tiles)]
        with T.serial(0, self.cache.head_dim) as d:
            keys = [
                load_float(k_cache, [head, tile, d, part * self.lanes], self.lanes)
                for tile in tiles
                for part in range(per_tile)
            ]
            if self.prefetch:
                for tile in tiles:
                    prefetch(k_cache, [head, tile + CHUNK // key_tile, d, 0])
            for r in range(self.count):
                query = T.bind(splat(self.state[r, self._query(d)], self.lanes))
                for i, key in enumerate(keys):
                    sums[r * width + i] = sums[r * width + i] + query * key
        for r in range(self.count):
            for i in range(width):
                at = self._weight((block * width + i) * self.lanes)
                store(self.state, [r, at], sums[r * width + i], self.lanes)

    def _adjust(self, rows: list[Row], start: Any, vectors: Any) -> None:
        """Apply softcap, alibi and the mask to the scores of the chunk, where needed."""
        scores = self.scores
        if scores.softcap or scores.alibi:
            with T.serial(0, vectors) as v:
                self._adjust_vector(rows, start, v, mask=True)
            return
        hidden = start + vectors * self.lanes > rows[0].position + 1
        if scores.window:
            hidden = tirx.any(hidden, start <= rows[-1].position - scores.window)
        with T.If(hidden), T.Then(), T.serial(0, vectors) as v:
            self._adjust_vector(rows, start, v, mask=True)

    def _adjust_vector(self, rows: list[Row], start: Any, v: Any, mask: bool) -> None:
        lanes, scores = self.lanes, self.scores
        key = T.ramp(start + v * lanes, 1, lanes)
        for r, row in enumerate(rows):
            value = load_float(self.state, [r, self._weight(v * lanes)], lanes)
            if scores.softcap:
                value = _softcap(value, scores.softcap, lanes)
            distance = variable(key - splat(row.position, lanes), lanes, "int32")
            if scores.alibi:
                steps = T.cast(distance, vector_type("float32", lanes))
                value = variable(value + steps * splat(row.slope, lanes), lanes)
            masked = splat_float(MASKED, lanes)
            value = tirx.Select(distance <= splat(T.int32(0), lanes), value, masked)
            if scores.window:
                seen = distance > splat(T.int32(-scores.window), lanes)
                value = tirx.Select(seen, value, masked)
            store(self.state, [r, self._weight(v * lanes)], value, lanes)

    def _softmax(self, vectors: Any) -> None:
        """Turn the scores of the chunk into exponentials; update maximum, total, rescale."""
        lanes = self.lanes
        highest = Registers(self.count, "float32", lanes)
        sums = Registers(self.count, "float32", lanes)
        for r in range(self.count):
            highest[r] = splat_float(MASKED, lanes)
        with T.serial(0, vectors) as v:
            for r in range(self.count):
                highest[r] = T.max(
                    highest[r], load(self.state, [r, self._weight(v * lanes)], lanes)
                )
        for r in range(self.count):
            new = variable(T.max(self.maximum[r], reduce_lanes(highest[r], lanes, T.max)), 1)
            self.rescale[r] = fast_exp(variable(self.maximum[r] - new, 1), 1)
            self.maximum[r] = new
            old = load(self.state, [r, self._total], lanes)
            sums[r] = old * splat(self.rescale[r], lanes)
        with T.serial(0, vectors) as v:
            for r in range(self.count):
                score = load_float(self.state, [r, self._weight(v * lanes)], lanes)
                weight = variable(score - splat(self.maximum[r], lanes), lanes)
                weight = variable(fast_exp(weight, lanes), lanes)
                sums[r] = sums[r] + weight
                store(self.state, [r, self._weight(v * lanes)], weight, lanes)
        for r in range(self.count):
            store(self.state, [r, self._total], sums[r], lanes)

    def _add_values(self, v_cache: Any, head: Any, start: Any, keys: Any) -> None:
        """output[r] = output[r] * rescale[r] + weights[r] . values, only over written keys."""
        lanes = common_lanes(self.cache.head_dim, self.lanes)
        vectors = self.cache.head_dim // lanes
        width = ceil_div(vectors, ceil_div(vectors, block_width(self.count, self.isa)))
        for first in range(0, vectors, width):
            part = min(width, vectors - first)
            self._add_value_block(v_cache, (head, start, keys), first * lanes, part)

    def _add_value_block(
        self, v_cache: Any, where: tuple[Any, Any, Any], first: int, width: int
    ) -> None:
        """The part of `_add_values` for `width` vectors from column `first` on."""
        head, start, keys = where
        lanes = common_lanes(self.cache.head_dim, self.lanes)
        columns = [first + i * lanes for i in range(width)]
        sums = Registers(self.count * width, "float32", lanes)
        slots = [(r, i) for r in range(self.count) for i in range(width)]
        for slot, (r, i) in enumerate(slots):
            old = load(self.state, [r, columns[i]], lanes)
            sums[slot] = old * splat(self.rescale[r], lanes)
        with T.serial(0, keys) as j:
            values = [load_float(v_cache, [head, start + j, c], lanes) for c in columns]
            if self.prefetch:
                for column in columns[:: self._vectors_per_line(lanes)]:
                    prefetch(v_cache, [head, start + j + CHUNK, column])
            for r in range(self.count):
                weight = T.bind(splat(self.state[r, self._weight(j)], lanes))
                for i, value in enumerate(values):
                    sums[r * width + i] = sums[r * width + i] + weight * value
        for slot, (r, i) in enumerate(slots):
            store(self.state, [r, columns[i]], sums[slot], lanes)

    def _vectors_per_line(self, lanes: int) -> int:
        """Vectors of values in a cache line of 64 bytes."""
        return max(1, 64 // (lanes * (2 if self.cache.dtype == "float16" else 4)))

    def output(self, r: int, column: Any, lanes: int) -> Any:
        """Part of the unnormalized output of row r."""
        return load(self.state, [r, column], lanes)

    def sum_of_weights(self, r: int) -> Any:
        """The sum of exponentials of row r."""
        total = load_float(self.state, [r, self._total], self.lanes)
        return reduce_lanes(total, self.lanes, lambda a, b: a + b)


def _softcap(value: Any, cap: float, lanes: int) -> Any:
    """Soft limit cap * tanh(value / cap), with tanh(y) = 1 - 2 / (exp(2y) + 1)."""
    power = fast_exp(variable(value * splat_float(2.0 / cap, lanes), lanes), lanes)
    one = splat_float(1.0, lanes)
    tanh = one - splat_float(2.0, lanes) / (power + one)
    return variable(tanh * splat_float(cap, lanes), lanes)
