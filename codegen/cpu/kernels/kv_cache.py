"""The cache of keys and values of one layer: its layout, and how new tokens are written to it.

Keys are [Hkv, ctx/16, D, 16]: 16 neighbouring positions are one vector, so the products of a query
with 16 keys need no sum over lanes. Values are [Hkv, ctx, D]: a vector is a part of one value.
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

KEY_TILE = 16
"""Positions that lie side by side in the key cache; the context is a multiple of it."""


@dataclass(frozen=True)
class KVCache:
    """The cache of one layer.

    Attributes:
        kv_heads: Hkv.
        head_dim: D.
        context: positions it can hold, a multiple of 16.
        dtype: "float32" or "float16".
    """

    kv_heads: int
    head_dim: int
    context: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Part of kernel names."""
        return f"{self.kv_heads}x{self.context}x{self.head_dim}{self.dtype[0]}{self.dtype[-2:]}"

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        """[Hkv, ctx/16, D, 16]."""
        return (self.kv_heads, self.context // KEY_TILE, self.head_dim, KEY_TILE)

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
        T.buffer_store(k_cache, value, [head, at // KEY_TILE, d, at % KEY_TILE])


def store_values(
    cache: KVCache, v_cache: Any, head: Any, at: Any, x: Any, m: Any, start: Any, lanes: int
) -> None:
    """Write the value x[m, start:] of position `at`."""
    lanes = common_lanes(cache.head_dim, lanes)
    with T.serial(0, cache.head_dim // lanes) as i:
        value = load(x, [m, start + i * lanes], lanes)
        value = T.cast(value, vector_type(cache.dtype, lanes))
        store(v_cache, [head, at, i * lanes], value, lanes)
