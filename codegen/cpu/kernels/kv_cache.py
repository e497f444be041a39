"""The cache of keys and values of one layer: its layout, and how new tokens are written to it.

Keys are [Hkv, ctx/k, D, k]: a tile of k neighbouring positions is one vector, or several, so the
products of a query with k keys need no sum over lanes. Values are [Hkv, ctx, D]: a vector is a
part of one value.

A cache of 8 bits holds codes as the dot instruction takes them, four bytes to a lane: keys are
[Hkv, ctx/k, Dp/4, k, 4], four elements of a key in a word, and values [Hkv, ctx/4, Dp, 4], the same
element of four neighbouring positions in a word. Each key and each value of a head has a scale.

In a cache of 4 bits a byte holds two codes of one key or value, of the elements i and i + Dp/2, so
that no two tokens write to one byte: Dp/2 takes the place of Dp. Codes have `MIDDLE` added, and
each key and each value has a middle beside its scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, splat, store, vector_type
from morendo.codegen.cpu.vectors.vector_blocks import (
    KernelBuilder,
    Rows,
    common_lanes,
    kernel,
    kernel_name,
    token_loop,
    variable,
)
from morendo.ir.formats import Array, ceil_div
from morendo.ir.layout import DEFAULT_LAYOUT
from morendo.ir.reference_attention import is_rotated

from .quantize_activation import center_vector, quantize_vector

WORD = 4
"""Codes that a lane of the dot instruction takes."""


@dataclass(frozen=True)
class KVCache:
    """The cache of one layer.

    Attributes:
        kv_heads: Hkv.
        head_dim: D.
        context: positions it can hold, a multiple of the tile.
        dtype: "float32", "float16", "int8" or "int4".
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
        dtype = f"i{self.dtype[-1]}" if self.integers else self.dtype[0] + self.dtype[-2:]
        return f"{self.kv_heads}x{self.context}x{self.head_dim}{dtype}{tile}"

    @property
    def integers(self) -> bool:
        """Whether it holds codes with scales."""
        return self.dtype.startswith("int")

    @property
    def parts(self) -> int:
        """Codes that share a byte."""
        return 2 if self.dtype == "int4" else 1

    @property
    def rotated(self) -> bool:
        """Whether queries and keys are turned by a Hadamard matrix before they are rounded."""
        return self.integers and is_rotated(self.head_dim, int(self.dtype[-1]))

    @property
    def padded_dim(self) -> int:
        """Dp: the elements of a head that codes have room for, whole vectors of any target."""
        whole = self.tile * self.parts
        return ceil_div(self.head_dim, whole) * whole

    @property
    def stored_dim(self) -> int:
        """Bytes of a head's codes."""
        return self.padded_dim // self.parts

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What is stored, in the order in which kernels take it."""
        heads, context, dim, tile = self.kv_heads, self.context, self.head_dim, self.tile
        if not self.integers:
            return (
                Array("k_cache", self.dtype, (heads, context // tile, dim, tile)),
                Array("v_cache", self.dtype, (heads, context, dim)),
            )
        stored, names = self.stored_dim, ["k_scales", "v_scales"]
        names += ["k_middles", "v_middles"] * (self.parts > 1)
        return (
            Array("k_cache", "uint8", (heads, context // tile, stored // WORD, tile, WORD)),
            Array("v_cache", "uint8", (heads, context // WORD, stored, WORD)),
            *(Array(name, "float32", (heads, context)) for name in names),
        )

    @property
    def key_bytes(self) -> int:
        """Bytes that one position takes, key and value of all heads."""
        return sum(array.nbytes for array in self.arrays) // self.context

    def declare(self, k: KernelBuilder) -> CacheBuffers:
        """Declare the arrays as the next parameters of the kernel."""
        return CacheBuffers(*(k.buffer(a.name, a.shape, a.dtype) for a in self.arrays))


@dataclass(frozen=True)
class CacheBuffers:
    """The arrays of a cache as a kernel sees them; scales only where it holds codes, middles where
    these have 4 bits.
    """

    keys: Any
    values: Any
    key_scales: Any = None
    value_scales: Any = None
    key_middles: Any = None
    value_middles: Any = None


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
    if cache.rotated:
        x, source = turned_head(isa, cache, x, source), (0, 0)
    codes, scale, middle = _codes(isa, cache, x, source)
    with T.serial(0, ceil_div(min(cache.head_dim, cache.stored_dim), WORD)) as word:
        four = load(codes, [word * WORD], WORD)
        store(buffers.keys, [head, tile, word, lane, 0], four, WORD)
    T.buffer_store(buffers.key_scales, scale, [head, at])
    if cache.parts > 1:
        T.buffer_store(buffers.key_middles, middle, [head, at])


def store_value(
    isa: VectorISA, cache: KVCache, buffers: CacheBuffers, to: Place, x: Any, source: Place
) -> None:
    """Write a value, x[m, start:], to its head and position."""
    (head, at), (m, start) = to, source
    if cache.integers:
        codes, scale, middle = _codes(isa, cache, x, source)
        with T.serial(0, min(cache.head_dim, cache.stored_dim)) as d:
            T.buffer_store(buffers.values, codes[d], [head, at // WORD, d, at % WORD])
        T.buffer_store(buffers.value_scales, scale, [head, at])
        if cache.parts > 1:
            T.buffer_store(buffers.value_middles, middle, [head, at])
        return
    lanes = common_lanes(cache.head_dim, isa.lanes)
    with T.serial(0, cache.head_dim // lanes) as i:
        value = load(x, [m, start + i * lanes], lanes)
        value = T.cast(value, vector_type(cache.dtype, lanes))
        store(buffers.values, [head, at, i * lanes], value, lanes)


def turned_head(isa: VectorISA, cache: KVCache, x: Any, source: Place) -> Any:
    """One head's x[m, start:] times the Hadamard matrix, f32[1, D] in local memory."""
    (m, start), dim = source, cache.head_dim
    lanes = common_lanes(dim, isa.lanes)
    turned = T.alloc_buffer((1, dim), "float32")
    with T.serial(0, dim // lanes) as i:
        store(turned, [0, i * lanes], load(x, [m, start + i * lanes], lanes), lanes)
    half = 1
    while half < dim:
        if half < lanes:
            with T.serial(0, dim // lanes) as i:
                value = variable(load(turned, [0, i * lanes], lanes), lanes)
                other = tirx.Shuffle([value], [lane ^ half for lane in range(lanes)])
                bit = T.ramp(0, 1, lanes) & splat(T.int32(half), lanes)
                first = bit == splat(T.int32(0), lanes)
                mine = tirx.Select(first, value, splat(T.float32(0.0), lanes) - value)
                store(turned, [0, i * lanes], other + mine, lanes)
        else:
            vectors = half // lanes
            with T.serial(0, dim // (2 * half)) as pair, T.serial(0, vectors) as i:
                at = pair * 2 * half + i * lanes
                first = variable(load(turned, [0, at], lanes), lanes)
                second = variable(load(turned, [0, at + half], lanes), lanes)
                store(turned, [0, at], first + second, lanes)
                store(turned, [0, at + half], first - second, lanes)
        half *= 2
    return turned


def _codes(isa: VectorISA, cache: KVCache, x: Any, source: Place) -> tuple[Any, Any, Any]:
    """(bytes uint8 in local memory, scale, middle or None) of one head's x[m, start:].

    Codes of 8 bits have `signed_offset` added, as `dot_signed` takes them, uint8 [Dp]; those beyond
    D are 0. Codes of 4 bits lie as the cache has them, uint8 [Dp/2].
    """
    m, start = source
    lanes, four = common_lanes(cache.head_dim, isa.lanes), cache.parts > 1
    codes = T.alloc_buffer((cache.padded_dim,), "uint8")
    zero = T.uint8(0 if four else isa.signed_offset)
    with T.serial(0, cache.padded_dim - cache.head_dim) as d:
        T.buffer_store(codes, zero, [cache.head_dim + d])

    def keep(i: Any, rounded: Any) -> None:
        shifted = rounded if four else rounded + splat(T.int32(isa.signed_offset), lanes)
        store(codes, [i], T.cast(shifted, vector_type("uint8", lanes)), lanes)

    def element(i: Any) -> Any:
        return load(x, [m, start + i], lanes)

    if not four:
        scale, _ = quantize_vector(element, cache.head_dim, lanes, keep)
        return codes, scale, None
    scale, middle = center_vector(element, cache.head_dim, lanes, keep)
    stored = T.alloc_buffer((cache.stored_dim,), "uint8")
    with T.serial(0, cache.stored_dim // WORD) as word:
        low, high = (load(codes, [word * WORD + p * cache.stored_dim], WORD) for p in range(2))
        store(stored, [word * WORD], low | (high << T.broadcast(T.uint8(4), WORD)), WORD)
    return stored, scale, middle
