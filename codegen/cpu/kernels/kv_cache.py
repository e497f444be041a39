"""The cache of keys and values of one layer: its layout, and how new tokens are written to it.

Keys are [Hkv, ctx/k, D, k]: a tile of k neighbouring positions is one vector, or several, so the
products of a query with k keys need no sum over lanes. Values are [Hkv, ctx, D]: a vector is a
part of one value.

A cache of 8 bits holds codes as the dot instruction takes them, four bytes to a lane: keys are
[Hkv, ctx/k, Dp/4, k, 4], four elements of a key in a word, and values [Hkv, ctx/4, Dp, 4], the same
element of four neighbouring positions in a word. Each key and each value of a head has a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, splat, store, vector_type
from morendo.codegen.cpu.vectors.vector_blocks import (
    Kernel,
    Rows,
    common_lanes,
    kernel,
    kernel_name,
    token_loop,
)
from morendo.ir.formats import Array, ceil_div
from morendo.ir.layout import DEFAULT_LAYOUT

from .quantize_activation import quantize_vector

WORD = 4
"""Codes that a lane of the dot instruction takes."""


@dataclass(frozen=True)
class KVCache:
    """The cache of one layer.

    Attributes:
        kv_heads: Hkv.
        head_dim: D.
        context: positions it can hold, a multiple of the tile.
        dtype: "float32", "float16" or "int8".
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
        dtype = "i8" if self.integers else self.dtype[0] + self.dtype[-2:]
        return f"{self.kv_heads}x{self.context}x{self.head_dim}{dtype}{tile}"

    @property
    def integers(self) -> bool:
        """Whether it holds codes with scales."""
        return self.dtype == "int8"

    @property
    def padded_dim(self) -> int:
        """Dp: the elements of a head that codes have room for, whole vectors of any target."""
        return ceil_div(self.head_dim, self.tile) * self.tile

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What is stored, in the order in which kernels take it."""
        heads, context, dim, tile = self.kv_heads, self.context, self.head_dim, self.tile
        if not self.integers:
            return (
                Array("k_cache", self.dtype, (heads, context // tile, dim, tile)),
                Array("v_cache", self.dtype, (heads, context, dim)),
            )
        padded = self.padded_dim
        return (
            Array("k_cache", "uint8", (heads, context // tile, padded // WORD, tile, WORD)),
            Array("v_cache", "uint8", (heads, context // WORD, padded, WORD)),
            Array("k_scales", "float32", (heads, context)),
            Array("v_scales", "float32", (heads, context)),
        )

    @property
    def key_bytes(self) -> int:
        """Bytes that one position takes, key and value of all heads."""
        return sum(array.nbytes for array in self.arrays) // self.context

    def declare(self, k: Kernel) -> CacheBuffers:
        """Declare the arrays as the next parameters of the kernel."""
        return CacheBuffers(*(k.buffer(a.name, a.shape, a.dtype) for a in self.arrays))


@dataclass(frozen=True)
class CacheBuffers:
    """The arrays of a cache as a kernel sees them; scales only where it holds codes."""

    keys: Any
    values: Any
    key_scales: Any = None
    value_scales: Any = None


def append_kv(
    isa: Any,
    *,
    max_tokens: int,
    cache: KVCache,
    k_rows: Rows | None = None,
    v_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """Write the keys and values of new tokens to the cache, token m at `position + m`.

    Parameters of the kernel: k f32[M, Hkv, D], v f32[M, Hkv, D], the cache, tokens, position. With
    `k_rows` or `v_rows` that buffer is f32[M, stride], read from the offset on.
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
        buffers = cache.declare(k)
        tokens, position = k.scalar("tokens"), k.scalar("position")
        loop = token_loop(tokens, max_tokens, width * 8)
        with loop as m, T.serial(0, cache.kv_heads) as head:
            at, start = position + m, head * dim
            store_key(isa, cache, buffers, (head, at), key, (m, keys.offset + start))
            store_value(isa, cache, buffers, (head, at), value, (m, values.offset + start))
    return k.function


Place = tuple[Any, Any]
"""A head and a position of the cache, or a token and the first element of its row."""


def store_key(
    isa: VectorISA, cache: KVCache, buffers: CacheBuffers, to: Place, x: Any, source: Place
) -> None:
    """Write a key, x[m, start:], to its head and position."""
    (head, at), (m, start) = to, source
    tile, lane = at // cache.tile, at % cache.tile
    if not cache.integers:  # one element to each row of its tile
        with T.serial(0, cache.head_dim) as d:
            value = T.cast(x[m, start + d], cache.dtype)
            T.buffer_store(buffers.keys, value, [head, tile, d, lane])
        return
    codes, scale = _codes(isa, cache, x, source)
    with T.serial(0, ceil_div(cache.head_dim, WORD)) as word:
        four = load(codes, [word * WORD], WORD)
        store(buffers.keys, [head, tile, word, lane, 0], four, WORD)
    T.buffer_store(buffers.key_scales, scale, [head, at])


def store_value(
    isa: VectorISA, cache: KVCache, buffers: CacheBuffers, to: Place, x: Any, source: Place
) -> None:
    """Write a value, x[m, start:], to its head and position."""
    (head, at), (m, start) = to, source
    if cache.integers:
        codes, scale = _codes(isa, cache, x, source)
        with T.serial(0, cache.head_dim) as d:
            T.buffer_store(buffers.values, codes[d], [head, at // WORD, d, at % WORD])
        T.buffer_store(buffers.value_scales, scale, [head, at])
        return
    lanes = common_lanes(cache.head_dim, isa.lanes)
    with T.serial(0, cache.head_dim // lanes) as i:
        value = load(x, [m, start + i * lanes], lanes)
        value = T.cast(value, vector_type(cache.dtype, lanes))
        store(buffers.values, [head, at, i * lanes], value, lanes)


def _codes(isa: VectorISA, cache: KVCache, x: Any, source: Place) -> tuple[Any, Any]:
    """(codes uint8 [Dp] in local memory, scale) of one head's x[m, start:].

    A code has `signed_offset` added, as `dot_signed` takes it; those beyond D are 0.
    """
    m, start = source
    lanes = common_lanes(cache.head_dim, isa.lanes)
    codes = T.alloc_buffer((cache.padded_dim,), "uint8")
    zero = T.uint8(isa.signed_offset)
    with T.serial(0, cache.padded_dim - cache.head_dim) as d:
        T.buffer_store(codes, zero, [cache.head_dim + d])

    def keep(i: Any, rounded: Any) -> None:
        shifted = rounded + splat(T.int32(isa.signed_offset), lanes)
        store(codes, [i], T.cast(shifted, vector_type("uint8", lanes)), lanes)

    scale, _ = quantize_vector(
        lambda i: load(x, [m, start + i], lanes), cache.head_dim, lanes, keep
    )
    return codes, scale
