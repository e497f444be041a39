"""The cache of keys and values of one layer: its layout, and how new tokens are written to it.

Keys are [Hkv, ctx/k, D, k]: a tile of k neighbouring positions is one vector, or several, so the
products of a query with k keys need no sum over lanes. Values are [Hkv, ctx, D]: a vector is a
part of one value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import load, store, vector_type
from morendo.codegen.cpu.vectors.vector_blocks import (
    Kernel,
    Rows,
    common_lanes,
    kernel,
    kernel_name,
    token_loop,
)
from morendo.ir.layout import DEFAULT_LAYOUT


@dataclass(frozen=True)
class KVCache:
    """The cache of one layer.

    Attributes:
        kv_heads: Hkv.
        head_dim: D.
        context: positions it can hold, a multiple of the tile.
        dtype: "float32" or "float16".
        tile: positions that lie side by side in the key cache, as the target's layout has it.
    """

    kv_heads: int
    head_dim: int
    context: int
    dtype: str = "float32"
    tile: int = DEFAULT_LAYOUT.key_tile

    @property
    def name(self) -> str:
        """Part of kernel names."""
        tile = f"t{self.tile}" if self.tile != DEFAULT_LAYOUT.key_tile else ""
        dtype = self.dtype[0] + self.dtype[-2:]
        return f"{self.kv_heads}x{self.context}x{self.head_dim}{dtype}{tile}"

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        """[Hkv, ctx/k, D, k] with tiles of k positions."""
        return (self.kv_heads, self.context // self.tile, self.head_dim, self.tile)

    @property
    def value_shape(self) -> tuple[int, int, int]:
        """[Hkv, ctx, D]."""
        return (self.kv_heads, self.context, self.head_dim)

    def declare(self, k: Kernel) -> tuple[Any, Any]:
        """Declare the two caches as the next parameters of the kernel."""
        return (
            k.buffer("k_cache", self.key_shape, self.dtype),
            k.buffer("v_cache", self.value_shape, self.dtype),
        )


def append_kv(
    isa: Any,
    *,
    max_tokens: int,
    cache: KVCache,
    k_rows: Rows | None = None,
    v_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """Write the keys and values of new tokens to the cache, token m at `position + m`.

    Parameters of the kernel: k f32[M, Hkv, D], v f32[M, Hkv, D], k_cache, v_cache, tokens,
    position. With `k_rows` or `v_rows` that buffer is f32[M, stride], read from the offset on.
    """
    dim = cache.head_dim
    width = cache.kv_heads * dim
    keys, values = k_rows or Rows(width), v_rows or Rows(width)
    name = kernel_name(
        "append_kv", m=max_tokens, c=cache.name,
        k=f"{keys.stride}o{keys.offset}", v=f"{values.stride}o{values.offset}",
    )  # fmt: skip
    with kernel(name) as k:
        key = k.buffer("k", (max_tokens, keys.stride))
        value = k.buffer("v", (max_tokens, values.stride))
        k_cache, v_cache = cache.declare(k)
        tokens, position = k.scalar("tokens"), k.scalar("position")
        loop = token_loop(tokens, max_tokens, width * 8)
        with loop as m, T.serial(0, cache.kv_heads) as head:
            at, start = position + m, head * dim
            store_keys(cache, k_cache, head, at, key, m, keys.offset + start)
            store_values(cache, v_cache, head, at, value, m, values.offset + start, isa.lanes)
    return k.function


def store_keys(
    cache: KVCache, k_cache: Any, head: Any, at: Any, x: Any, m: Any, start: Any
) -> None:
    """Write the key x[m, start:] of position `at`: one element to each row of its tile."""
    with T.serial(0, cache.head_dim) as d:
        value = T.cast(x[m, start + d], cache.dtype)
        T.buffer_store(k_cache, value, [head, at // cache.tile, d, at % cache.tile])


def store_values(
    cache: KVCache, v_cache: Any, head: Any, at: Any, x: Any, m: Any, start: Any, lanes: int
) -> None:
    """Write the value x[m, start:] of position `at`."""
    lanes = common_lanes(cache.head_dim, lanes)
    with T.serial(0, cache.head_dim // lanes) as i:
        value = load(x, [m, start + i * lanes], lanes)
        value = T.cast(value, vector_type(cache.dtype, lanes))
        store(v_cache, [head, at, i * lanes], value, lanes)
