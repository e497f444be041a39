"""Rotary positions, and writing keys and values to the cache of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.kv_cache import WORD, CacheBuffers, KVCache
from morendo.codegen.cpu.kernels.rope import Rotation, name_of_list
from morendo.codegen.cpu.vectors.vector_blocks import Rows, kernel_name
from morendo.targets.cuda.blocks import (
    WARP,
    Kernel,
    barrier,
    function,
    kernel,
    launch,
    shared,
    strided,
    variable,
    when,
)

from .head_codes import center_head, round_head, turned_head

_THREADS = 128


def declare_cache(k: Kernel, cache: KVCache) -> CacheBuffers:
    """Declare the arrays of a cache as the next parameters of a kernel."""
    return CacheBuffers(*(k.buffer(a.name, a.shape, a.dtype) for a in cache.arrays))


def _rotate(
    rotation: Rotation,
    element: Callable[[Any], Any],
    store: Callable[[Any, Any], None],
    inv_freq: Any,
    position: Any,
    thread: Any,
) -> None:
    """Turn the pairs of a head by the position, a thread each, and pass what is not rotated.

    The angle is the float32 product position * inv_freq, as Hugging Face's models compute it.

    Args:
        element: gives element d of the head.
        store: takes d and the new element; it may write where `element` reads.
    """
    half, dim = rotation.rotary_dim // 2, rotation.head_dim

    def turn(pair: Any) -> None:
        first, second = (2 * pair, 2 * pair + 1) if rotation.interleaved else (pair, pair + half)
        angle = T.bind(T.cast(position, "float32") * inv_freq[pair])
        scaling = T.float32(rotation.scaling)
        cos = T.bind(function("cosf", angle) * scaling)
        sin = T.bind(function("sinf", angle) * scaling)
        a, b = variable(element(first)), variable(element(second))
        store(first, a * cos - b * sin)
        store(second, b * cos + a * sin)

    strided(thread, _THREADS, half, turn)
    if dim > rotation.rotary_dim:
        rest = rotation.rotary_dim
        strided(thread, _THREADS, dim - rest, lambda d: store(rest + d, element(rest + d)))


def _list(k: Kernel, max_tokens: int) -> Any:
    """Declare the positions as the next parameter."""
    return k.buffer("positions", (1, max_tokens), "int64")


def _listed_at(positions: Any, m: Any) -> Any:
    """The position of token m in a list."""
    return T.bind(T.cast(positions[0, m], "int32"))


def rope(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    rotation: Rotation,
    x_rows: Rows | None = None,
    out_rows: Rows | None = None,
    listed: bool = False,
) -> tirx.PrimFunc:
    """Rotate the heads of x; token m has position `position + m`.

    Parameters of the kernel: x f32[M, H, D], inv_freq f32[R/2], out f32[M, H, D], tokens,
    position. With `x_rows` or `out_rows` that buffer is f32[M, stride], read from the offset on.
    With `listed` the last parameter is i64[1, M], a position for each token.
    """
    dim = rotation.head_dim
    source, target = x_rows or Rows(heads * dim), out_rows or Rows(heads * dim)
    name = kernel_name(
        "rope", m=max_tokens, h=heads, d=rotation.name,
        x=f"{source.stride}o{source.offset}", y=f"{target.stride}o{target.offset}",
        **name_of_list(listed),
    )  # fmt: skip
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, source.stride))
        inv_freq = k.buffer("inv_freq", (rotation.rotary_dim // 2,))
        out = k.buffer("out", (max_tokens, target.stride))
        tokens = k.state("tokens")
        position = _list(k, max_tokens) if listed else k.state("position")
        with launch([heads, max_tokens], _THREADS) as (head, m, thread), when(m < tokens.read()):
            at = _listed_at(position, m) if listed else T.bind(position.read() + m)
            start = T.bind(head * dim)

            def store(d: Any, value: Any) -> None:
                T.buffer_store(out, value, [m, target.offset + start + d])

            _rotate(
                rotation, lambda d: x[m, source.offset + start + d], store, inv_freq, at, thread
            )
    return k.function


def rope_append_kv(
    isa: Any,
    *,
    max_tokens: int,
    heads: int,
    cache: KVCache,
    rotation: Rotation,
    rows: Rows | None = None,
    listed: bool = False,
) -> tirx.PrimFunc:
    """Rotate q in place, write rotated k and v to the cache; a block has one head of one token.

    Parameters of the kernel: qkv f32[M, stride] (q, k and v of a token side by side from the
    offset on: (H + 2*Hkv)*D elements), inv_freq f32[R/2], [positions i64[1, M] with `listed`,]
    the cache, tokens, position. With `listed`, where a token is turned to is told apart from the
    slot of the cache that it gets, `position + m`.
    """
    dim, kv_heads = cache.head_dim, cache.kv_heads
    rows = rows or Rows((heads + 2 * kv_heads) * dim)
    name = kernel_name(
        "rope_append_kv", m=max_tokens, h=heads, d=rotation.name,
        x=f"{rows.stride}o{rows.offset}", c=cache.name, **name_of_list(listed),
    )  # fmt: skip
    with kernel(name) as k:
        qkv = k.buffer("qkv", (max_tokens, rows.stride))
        inv_freq = k.buffer("inv_freq", (rotation.rotary_dim // 2,))
        positions = _list(k, max_tokens) if listed else None
        stored = declare_cache(k, cache)
        tokens, position = k.state("tokens"), k.state("position")
        grid = [heads + 2 * kv_heads, max_tokens]
        with launch(grid, _THREADS) as (head, m, thread), when(m < tokens.read()):
            at, start = T.bind(position.read() + m), T.bind(rows.offset + head * dim)
            turn = _listed_at(positions, m) if listed else at
            kv_head = T.bind((head - heads) % kv_heads)

            def element(d: Any) -> Any:
                return qkv[m, start + d]

            def store_query(d: Any, value: Any) -> None:
                T.buffer_store(qkv, value, [m, start + d])

            turned = shared((dim,))  # a key that waits for its scale

            def store_key(d: Any, value: Any) -> None:
                if cache.integers:
                    T.buffer_store(turned, value, [d])
                else:
                    _write_key(cache, stored, (kv_head, at), d, value)

            with when(head < heads):
                _rotate(rotation, element, store_query, inv_freq, turn, thread)
            with when(tirx.all(head >= heads, head < heads + kv_heads)):
                _rotate(rotation, element, store_key, inv_freq, turn, thread)
            if cache.integers:
                barrier()
                with when(tirx.all(head >= heads, head < heads + kv_heads)):
                    _write_keys(cache, stored, (kv_head, at), lambda d: turned[d], thread)
            with when(head >= heads + kv_heads):
                _write_values(cache, stored, (kv_head, at), element, thread)
    return k.function


Place = tuple[Any, Any]
"""A head and a position of the cache."""


def _write_key(cache: KVCache, stored: CacheBuffers, to: Place, d: Any, value: Any) -> None:
    """Element d of a key, of 16 or 32 bits."""
    head, at = to
    place = [head, at // cache.tile, d, at % cache.tile]
    T.buffer_store(stored.keys, T.cast(value, cache.dtype), place)


def _write_keys(
    cache: KVCache, stored: CacheBuffers, to: Place, element: Callable[[Any], Any], thread: Any
) -> None:
    """A key: all threads of the block, or as codes its first warp."""
    if not cache.integers:
        strided(
            thread, _THREADS, cache.head_dim,
            lambda d: _write_key(cache, stored, to, d, element(d)),
        )  # fmt: skip
        return

    if cache.rotated:
        element = turned_head(element, cache.head_dim, thread, _THREADS)

    def keep(byte: Any, codes: Any) -> None:
        head, at = to
        place = [head, at // cache.tile, byte // WORD, at % cache.tile, byte % WORD]
        T.buffer_store(stored.keys, T.cast(codes, "uint8"), place)

    _write_codes(cache, element, thread, keep, (stored.key_scales, stored.key_middles), to)


def _write_values(
    cache: KVCache, stored: CacheBuffers, to: Place, element: Callable[[Any], Any], thread: Any
) -> None:
    """A value: all threads of the block, or as codes its first warp."""
    head, at = to

    def write(d: Any) -> None:
        T.buffer_store(stored.values, T.cast(element(d), cache.dtype), [head, at, d])

    def keep(byte: Any, codes: Any) -> None:
        place = [head, at // WORD, byte, at % WORD]
        T.buffer_store(stored.values, T.cast(codes, "uint8"), place)

    if cache.integers:
        scales = stored.value_scales, stored.value_middles
        _write_codes(cache, element, thread, keep, scales, to)
    else:
        strided(thread, _THREADS, cache.head_dim, write)


def _write_codes(
    cache: KVCache,
    element: Callable[[Any], Any],
    thread: Any,
    keep: Callable[[Any, Any], None],
    scales: tuple[Any, Any],
    to: Place,
) -> None:
    """Round a head by the first warp.

    Args:
        keep: takes the number of a byte within the head, and its code or codes.
        scales: the arrays of scales, and of middles where codes have them.
    """
    dim, middle = cache.head_dim, None

    def keep_inside(d: Any, code: Any) -> None:
        with when(d < dim):
            keep(d, code)

    with when(thread < WARP):
        if cache.parts > 1:
            scale, middle = center_head(element, dim, cache.stored_dim, thread, keep)
        else:
            scale = round_head(element, dim, thread, keep_inside)
        with when(thread == 0):
            T.buffer_store(scales[0], scale, list(to))
            if middle is not None:
                T.buffer_store(scales[1], middle, list(to))


def append_kv(
    isa: Any,
    *,
    max_tokens: int,
    cache: KVCache,
    k_rows: Rows | None = None,
    v_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """Write the keys and values of new tokens to the cache, token m at `position + m`.

    Parameters of the kernel: k f32[M, Hkv, D], v f32[M, Hkv, D], the cache, tokens, position.
    With `k_rows` or `v_rows` that buffer is f32[M, stride], read from the offset on.
    """
    dim = cache.head_dim
    keys, values = (rows or Rows(cache.kv_heads * dim) for rows in (k_rows, v_rows))
    name = kernel_name(
        "append_kv", m=max_tokens, c=cache.name,
        k=f"{keys.stride}o{keys.offset}", v=f"{values.stride}o{values.offset}",
    )  # fmt: skip
    with kernel(name) as k:
        key = k.buffer("k", (max_tokens, keys.stride))
        value = k.buffer("v", (max_tokens, values.stride))
        stored = declare_cache(k, cache)
        tokens, position = k.state("tokens"), k.state("position")
        grid = [cache.kv_heads, max_tokens]
        with launch(grid, _THREADS) as (head, m, thread), when(m < tokens.read()):
            at, start = T.bind(position.read() + m), T.bind(head * dim)

            to = (head, at)
            _write_keys(cache, stored, to, lambda d: key[m, keys.offset + start + d], thread)
            _write_values(cache, stored, to, lambda d: value[m, values.offset + start + d], thread)
    return k.function
