"""Attention over a cache of float32 or float16: both products in float32."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import Registers, load, prefetch, splat, splat_float, store
from morendo.codegen.cpu.vectors.vector_blocks import common_lanes, load_float
from morendo.ir.formats import ceil_div

from .attention_tile import CHUNK, Tile, block_width
from .kv_cache import CacheBuffers


class FloatTile(Tile):
    """A tile whose queries, keys, weights and values are floats."""

    @property
    def query_width(self) -> int:
        return self.cache.head_dim

    def _query(self, d: Any) -> Any:
        """The column of the state with element d of the query."""
        return self.width + CHUNK + self.lanes + d

    def load_query(self, r: int, q: Any, source: tuple[Any, Any]) -> None:
        m, offset = source
        lanes = common_lanes(self.cache.head_dim, self.lanes)
        with T.serial(0, self.cache.head_dim // lanes) as i:
            value = load_float(q, [m, offset + i * lanes], lanes)
            scaled = value * splat_float(self.scores.scale, lanes)
            store(self.state, [r, self._query(i * lanes)], scaled, lanes)

    def score_block(self, buffers: CacheBuffers, head: Any, start: Any, block: Any) -> None:
        key_tile = self.cache.tile
        per_tile = key_tile // self.lanes
        width = self.key_tiles * per_tile
        sums = Registers(self.count * width, "float32", self.lanes)
        for i in range(len(sums)):
            sums[i] = splat_float(0.0, self.lanes)
        tiles = self.key_places(start, block)
        with T.serial(0, self.cache.head_dim) as d:
            keys = [
                load_float(buffers.keys, [head, tile, d, part * self.lanes], self.lanes)
                for tile in tiles
                for part in range(per_tile)
            ]
            if self.prefetch:
                for tile in tiles:
                    prefetch(buffers.keys, [head, tile + CHUNK // key_tile, d, 0])
            for r in range(self.count):
                query = T.bind(splat(self.state[r, self._query(d)], self.lanes))
                for i, key in enumerate(keys):
                    sums[r * width + i] = sums[r * width + i] + query * key
        for r in range(self.count):
            for i in range(width):
                at = self.weight((block * width + i) * self.lanes)
                store(self.state, [r, at], sums[r * width + i], self.lanes)

    def add_values(self, buffers: CacheBuffers, where: tuple[Any, ...], vectors: Any) -> None:
        lanes = common_lanes(self.cache.head_dim, self.lanes)
        columns = self.cache.head_dim // lanes
        width = ceil_div(columns, ceil_div(columns, block_width(self.count, self.isa)))
        for first in range(0, columns, width):
            part = min(width, columns - first)
            self._add_block(buffers.values, where, first * lanes, part)

    def _add_block(self, v_cache: Any, where: tuple[Any, ...], first: int, width: int) -> None:
        """The part of `add_values` for `width` vectors from column `first` on."""
        head, start, keys, _ = where
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
                weight = T.bind(splat(self.state[r, self.weight(j)], lanes))
                for i, value in enumerate(values):
                    sums[r * width + i] = sums[r * width + i] + weight * value
        for slot, (r, i) in enumerate(slots):
            store(self.state, [r, columns[i]], sums[slot], lanes)

    def _vectors_per_line(self, lanes: int) -> int:
        """Vectors of values in a cache line of 64 bytes."""
        return max(1, 64 // (lanes * (2 if self.cache.dtype == "float16" else 4)))
