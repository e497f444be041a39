"""The inner part of cached attention: a tile of query rows against a range of keys.

Online softmax (Milakov and Gimelshein 2018; FlashAttention): keys are taken in chunks; each row
keeps its running maximum, the sum of exponentials and the unnormalized output, rescaled when a
chunk raises the maximum. Both products are register blocks of rows x vectors: scores have key
positions in the lanes, outputs have elements of the value. A cache of floats and one of codes
multiply in their own ways (`attention_tile_float.py`, `attention_tile_integer.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import (
    Registers,
    load,
    splat,
    splat_float,
    store,
    vector_type,
)
from morendo.codegen.cpu.vectors.vector_blocks import (
    common_lanes,
    counting,
    index,
    load_float,
    variable,
)
from morendo.codegen.cpu.vectors.vector_math import Exp
from morendo.ir.reference_attention import CHUNK

from .kv_cache import CacheBuffers, KVCache

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


def most_rows(isa: VectorISA, cache: KVCache) -> int:
    """Rows of a full tile, so that their scores of a tile of keys fit the registers: beside one
    operand or, of floats that are spread from their lanes, beside the keys and a vector a row.
    """
    keys = cache.tile // isa.lanes
    if isa.scales_by_lane and not cache.integers:
        return max(1, min(8, (isa.registers - 1 - keys) // (keys + 1)))
    return max(1, min(8, (isa.registers - 1) // keys - 1))


def block_width(rows: int, isa: VectorISA) -> int:
    """Vectors that a register block may have beside each other: sums, one operand, a broadcast."""
    return max(1, (isa.registers - 1) // (rows + 1))


@dataclass
class Tile(ABC):
    """A tile of query rows of one kv head, with its running state.

    A subclass multiplies: queries with keys, and weights with values.

    Attributes:
        cache: layout of the cache.
        scores: treatment of the scores.
        isa: the vector unit.
        count: rows R of the tile, at most `most_rows`.
        prefetch: ask for the next chunk of keys and values while the current one is used.
        importance: keep the weight of the first key, `first_weight`.
        clears_output: outputs are 0 before the first chunk, which is added as all others are.
    """

    cache: KVCache
    scores: Scores
    isa: VectorISA
    count: int
    prefetch: bool
    importance: bool = False
    clears_output: ClassVar[bool] = True
    state: Any = field(init=False)
    maximum: Registers = field(init=False)
    rescale: Registers = field(init=False)
    first_weight: Registers = field(init=False)

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.isa.lanes

    @property
    def width(self) -> int:
        """Columns of the output: D, and padding where a subclass wants some."""
        return self.cache.head_dim

    @property
    def query_width(self) -> int:
        """Columns of the state that hold the query, behind everything else."""
        return 0

    def key_places(self, start: Any, block: Any) -> list[Any]:
        """The tiles of the key cache in a block of scores; none beyond the last one."""
        first = index(start // self.cache.tile + block * self.key_tiles)
        last = self.cache.context // self.cache.tile - 1
        return [index(T.min(first + t, T.int32(last))) for t in range(self.key_tiles)]

    def allocate(self) -> None:
        """Reserve the state: of each row the output, weights of a chunk, their sums, the query.

        One buffer on purpose: LLVM then has to assume that the stores of weights change the
        output, and leaves the output in memory between chunks. In buffers of their own it would
        promote all of them to registers, and spill inside the innermost loops.
        """
        columns = self.width + CHUNK + self.lanes + self.query_width
        self.state = T.alloc_buffer((self.count, columns))
        self.maximum = Registers(self.count, "float32", 1)
        self.rescale = Registers(self.count, "float32", 1)
        if self.importance:
            self.first_weight = Registers(self.count, "float32", 1)

    @property
    def key_tiles(self) -> int:
        """Key tiles of a register block of scores: 1, 2 or 4, no more than a chunk has.

        As few as hide the latency of the additions: keys beyond the last one are wasted work.
        """
        tiles = block_width(self.count, self.isa) // (self.cache.tile // self.lanes)
        wanted = 4 if tiles >= 4 and self.count <= 2 else max(1, min(tiles, 2))
        return min(wanted, CHUNK // self.cache.tile)

    def weight(self, key: Any) -> Any:
        """The column of the state with the weight of a key of the chunk."""
        return self.width + key

    @property
    def _total(self) -> int:
        """The column of the state where a row's sums of weights begin, one for each lane."""
        return self.width + CHUNK

    def start(self, q: Any, sources: list[tuple[Any, Any]]) -> None:
        """Load the scaled queries, row r from q[sources[r]], and clear the running state."""
        self.load_queries(q, sources)
        for r in range(len(sources)):
            if self.clears_output:
                lanes = common_lanes(self.width, self.lanes)
                with T.serial(0, self.width // lanes) as i:
                    store(self.state, [r, i * lanes], splat_float(0.0, lanes), lanes)
            self.maximum[r] = T.float32(MASKED)
            if self.importance:
                self.first_weight[r] = T.float32(0.0)
            store(self.state, [r, self._total], splat_float(0.0, self.lanes), self.lanes)

    def load_queries(self, q: Any, sources: list[tuple[Any, Any]]) -> None:
        """`load_query` of all rows."""
        for r, source in enumerate(sources):
            self.load_query(r, q, source)

    @abstractmethod
    def load_query(self, r: int, q: Any, source: tuple[Any, Any]) -> None:
        """Keep the query of row r, D elements of q from `source` on, times the scores' scale."""

    @abstractmethod
    def score_block(self, buffers: CacheBuffers, head: Any, start: Any, block: Any) -> None:
        """weights[r, keys of the block] = query r . keys, for the chunk that begins at `start`."""

    @abstractmethod
    def add_values(self, buffers: CacheBuffers, where: tuple[Any, ...], vectors: Any) -> None:
        """output[r] = output[r] * rescale[r] + weights[r] . values, only over written keys.

        Args:
            buffers: the cache.
            where: kv head, first key of the chunk, how many of its keys are written, and whether it
                is the first chunk.
            vectors: of weights that the chunk has.
        """

    def attend(
        self, buffers: CacheBuffers, head: Any, rows: list[Row], low: Any, high: Any
    ) -> None:
        """Add the keys low..high-1 to the running state.

        Args:
            buffers: the cache.
            head: kv head.
            rows: the rows of this tile, in the order of their positions.
            low: first key, a multiple of CHUNK.
            high: end of the keys; all of them have been written.
        """
        with T.serial(0, (high - low + (CHUNK - 1)) // CHUNK) as chunk:
            start = index(low + chunk * CHUNK)
            keys = index(T.min(high - start, T.int32(CHUNK)))
            vectors = self.score_chunk(buffers, head, rows, start, keys)
            self._softmax(vectors)
            if self.importance:
                self._keep_first_weight(start)
            self.add_values(buffers, (head, start, keys, chunk == 0), vectors)

    def score_chunk(
        self, buffers: CacheBuffers, head: Any, rows: list[Row], start: Any, keys: Any
    ) -> Any:
        """Put the scores of a chunk's keys where weights are, masked; gives how many vectors.

        Args:
            start: the first key, a multiple of CHUNK.
            keys: how many are written, at most CHUNK; those beyond them are masked.
        """
        block = self.key_tiles * self.cache.tile
        blocks = index((keys + (block - 1)) // block)
        with T.serial(0, blocks) as i:
            self.score_block(buffers, head, start, i)
        vectors = index(blocks * (block // self.lanes))
        self._adjust(rows, start, vectors)
        return vectors

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
        key = counting(start + v * lanes, lanes)
        for r, row in enumerate(rows):
            value = load_float(self.state, [r, self.weight(v * lanes)], lanes)
            if scores.softcap:
                value = _softcap(value, scores.softcap, lanes, self.isa.exp)
            if scores.alibi:
                steps = T.cast(key - splat(row.position, lanes), vector_type("float32", lanes))
                value = variable(value + steps * splat(row.slope, lanes), lanes)
            masked = splat_float(MASKED, lanes)
            value = self.isa.where_below(key, splat(row.position + 1, lanes), value, masked, lanes)
            if scores.window:
                before = splat(row.position - scores.window, lanes)
                value = self.isa.where_below(before, key, value, masked, lanes)
            store(self.state, [r, self.weight(v * lanes)], value, lanes)

    def _softmax(self, vectors: Any) -> None:
        """Turn the scores of the chunk into exponentials; update maximum, total, rescale."""
        lanes = self.lanes
        highest = Registers(self.count, "float32", lanes)
        sums = Registers(self.count, "float32", lanes)
        for r in range(self.count):
            highest[r] = splat_float(MASKED, lanes)
        with T.serial(0, vectors) as v:
            for r in range(self.count):
                highest[r] = T.max(highest[r], load(self.state, [r, self.weight(v * lanes)], lanes))
        found = self.isa.fold_lanes([highest[r] for r in range(self.count)], lanes, T.max)
        found = [variable(T.max(self.maximum[r], new), 1) for r, new in enumerate(found)]
        falls = [variable(self.maximum[r] - new, 1) for r, new in enumerate(found)]
        for r, factor in enumerate(self.isa.of_each(self.isa.exp, falls)):
            self.rescale[r], self.maximum[r] = factor, found[r]
        for r in range(self.count):
            old = load(self.state, [r, self._total], lanes)
            sums[r] = old * splat(self.rescale[r], lanes)
        with T.serial(0, vectors) as v:
            for r in range(self.count):
                score = load_float(self.state, [r, self.weight(v * lanes)], lanes)
                weight = variable(score - splat(self.maximum[r], lanes), lanes)
                weight = variable(self.isa.exp(weight, lanes), lanes)
                sums[r] = sums[r] + weight
                store(self.state, [r, self.weight(v * lanes)], weight, lanes)
        for r in range(self.count):
            store(self.state, [r, self._total], sums[r], lanes)

    def _keep_first_weight(self, start: Any) -> None:
        """Take key 0's exponential out of its chunk, and rescale it in every later one."""
        for r in range(self.count):
            weight = tirx.Select(start == 0, self.state[r, self.weight(0)], T.float32(0.0))
            self.first_weight[r] = self.first_weight[r] * self.rescale[r] + weight

    def output(self, r: int, column: Any, lanes: int) -> Any:
        """Part of the unnormalized output of row r."""
        return load(self.state, [r, column], lanes)

    def sums_of_weights(self) -> list[Any]:
        """The sum of exponentials of each row."""
        rows = range(self.count)
        totals = [load_float(self.state, [r, self._total], self.lanes) for r in rows]
        return self.isa.fold_lanes(totals, self.lanes, lambda a, b: a + b)


def _softcap(value: Any, cap: float, lanes: int, exp: Exp) -> Any:
    """Soft limit cap * tanh(value / cap), with tanh(y) = 1 - 2 / (exp(2y) + 1)."""
    power = exp(variable(value * splat_float(2.0 / cap, lanes), lanes), lanes)
    one = splat_float(1.0, lanes)
    tanh = one - splat_float(2.0, lanes) / (power + one)
    return variable(tanh * splat_float(cap, lanes), lanes)
