"""Attention over a cache of float32 or float16: both products in float32."""

from __future__ import annotations

from typing import Any

from tvm import tirx
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
        step = self._together(self.cache.head_dim)
        with T.serial(0, self.cache.head_dim // step) as several:
            queries = self._loaded(self._query(several * step), step)
            for part in range(step):
                d = several * step + part
                keys = [
                    load_float(buffers.keys, [head, tile, d, vector * self.lanes], self.lanes)
                    for tile in tiles
                    for vector in range(per_tile)
                ]
                if self.prefetch:
                    for tile in tiles:
                        prefetch(buffers.keys, [head, tile + CHUNK // key_tile, d, 0])
                for r in range(self.count):
                    query = self._spread(queries, r, self._query(d), part, self.lanes)
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
        step = self._together(CHUNK)

        def add(first: Any, step: int) -> None:
            weights = self._loaded(self.weight(first), step)
            for part in range(step):
                j = first + part
                values = [load_float(v_cache, [head, start + j, c], lanes) for c in columns]
                if self.prefetch:
                    for column in columns[:: self._vectors_per_line(lanes)]:
                        prefetch(v_cache, [head, start + j + CHUNK, column])
                for r in range(self.count):
                    weight = self._spread(weights, r, self.weight(j), part, lanes)
                    for i, value in enumerate(values):
                        sums[r * width + i] = sums[r * width + i] + weight * value

        with T.serial(0, keys // step) as several:
            add(several * step, step)
        if step > 1:
            with T.serial(keys // step * step, keys) as one:
                add(one, 1)
        for slot, (r, i) in enumerate(slots):
            store(self.state, [r, columns[i]], sums[slot], lanes)

    def _together(self, count: int) -> int:
        """How many numbers of the state, of `count`, are loaded at once to be spread one by one."""
        return common_lanes(count, self.lanes) if self.isa.scales_by_lane else 1

    def _loaded(self, column: Any, step: int) -> list[Any]:
        """`step` numbers of each row from a column on; [] where they are not loaded together."""
        if step == 1:
            return []
        return [T.bind(load(self.state, [r, column], step)) for r in range(self.count)]

    def _spread(self, loaded: list[Any], r: int, column: Any, part: int, lanes: int) -> Any:
        """The number in a column of row r, number `part` of those loaded, in all lanes."""
        if not loaded:
            return T.bind(splat(self.state[r, column], lanes))
        return tirx.Shuffle([loaded[r]], [part] * lanes)

    def _vectors_per_line(self, lanes: int) -> int:
        """Vectors of values in a cache line of 64 bytes."""
        return max(1, 64 // (lanes * (2 if self.cache.dtype == "float16" else 4)))
