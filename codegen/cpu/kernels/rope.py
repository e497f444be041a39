"""Rotary position embedding, alone or together with writing keys and values to the cache.

Sine and cosine are computed once per token and frequency and shared by all heads. The angle is the
float32 product position * inv_freq, as Hugging Face's models compute it; its reduction modulo
pi/2 is exact to float32 for angles up to 2^17 (positions up to 128k), after Cody and Waite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import (
    Registers,
    load,
    splat,
    splat_float,
    store,
    vector_type,
)
from morendo.codegen.cpu.vectors.vector_blocks import (
    KernelBuilder,
    Rows,
    common_lanes,
    kernel,
    kernel_name,
    load_float,
    token_loop,
)

from .kv_cache import KVCache, store_key, store_value

# pi/2 in three parts, each the float32 nearest to what the parts before left over.
_HALF_PI = (1.57079637050628662109375, -4.37113900018624283e-8, -1.71512449e-15)
# Cephes' sinf and cosf on [-pi/4, pi/4], about 1 ulp.
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


@dataclass(frozen=True)
class Rotation:
    """What is rotated, and how.

    Attributes:
        head_dim: D, elements of a head.
        rotary_dim: R, the leading elements of a head that are rotated; the others pass.
        scaling: factor on sine and cosine.
        interleaved: pairs are (2i, 2i+1) instead of (i, i + R/2).
    """

    head_dim: int
    rotary_dim: int
    scaling: float = 1.0
    interleaved: bool = False

    @property
    def name(self) -> str:
        """Part of kernel names."""
        kind = "i" if self.interleaved else "n"
        scaling = "" if self.scaling == 1.0 else f"s{self.scaling!r}"
        return f"{self.head_dim}r{self.rotary_dim}{kind}{scaling}"


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
    width = heads * rotation.head_dim
    source, target = x_rows or Rows(width), out_rows or Rows(width)
    name = kernel_name(
        "rope", m=max_tokens, h=heads, d=rotation.name,
        x=f"{source.stride}o{source.offset}", y=f"{target.stride}o{target.offset}",
        **name_of_list(listed),
    )  # fmt: skip
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, source.stride))
        inv_freq = k.buffer("inv_freq", (rotation.rotary_dim // 2,))
        out = k.buffer("out", (max_tokens, target.stride))
        tokens = k.scalar("tokens")
        position = _list(k, max_tokens) if listed else k.scalar("position")
        with token_loop(tokens, max_tokens, width * 8) as m:
            at = T.cast(position[0, m], "int32") if listed else position + m
            table = _Table(rotation, inv_freq, at, isa.lanes)
            with T.serial(0, heads) as head:
                start = head * rotation.head_dim
                table.rotate(x, [m, source.offset + start], out, [m, target.offset + start])
                _copy_rest(rotation, x, m, source.offset + start, out, target.offset + start, isa)
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
    """Rotate q in place, rotate k and write k and v to the cache, in one pass over q, k, v.

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
        buffers = cache.declare(k)
        tokens, position = k.scalar("tokens"), k.scalar("position")
        with token_loop(tokens, max_tokens, rows.stride * 8) as m:
            at = T.cast(positions[0, m], "int32") if positions is not None else position + m
            table = _Table(rotation, inv_freq, at, isa.lanes)
            with T.serial(0, heads + kv_heads) as head:
                start = rows.offset + head * dim
                table.rotate(qkv, [m, start], qkv, [m, start])
            keys = rows.offset + heads * dim
            with T.serial(0, kv_heads) as head:
                to, values = (head, position + m), keys + (kv_heads + head) * dim
                store_key(isa, cache, buffers, to, qkv, (m, keys + head * dim))
                store_value(isa, cache, buffers, to, qkv, (m, values))
    return k.function


def name_of_list(listed: bool) -> dict[str, str]:
    """Part of a kernel's name where positions are listed."""
    return {"p": "listed"} if listed else {}


def _list(k: KernelBuilder, max_tokens: int) -> Any:
    """Declare the positions as the next parameter."""
    return k.buffer("positions", (1, max_tokens), "int64")


def _copy_rest(
    rotation: Rotation, x: Any, m: Any, source: Any, out: Any, target: Any, isa: Any
) -> None:
    """Pass the elements of a head beyond the rotated ones."""
    rest = rotation.head_dim - rotation.rotary_dim
    if not rest:
        return
    lanes = common_lanes(rest, isa.lanes)
    with T.serial(0, rest // lanes) as i:
        at = rotation.rotary_dim + i * lanes
        store(out, [m, target + at], load(x, [m, source + at], lanes), lanes)


class _Table:
    """Sine and cosine of one token's angles, in local memory."""

    def __init__(self, rotation: Rotation, inv_freq: Any, position: Any, lanes: int) -> None:
        self.rotation = rotation
        half = rotation.rotary_dim // 2
        self.lanes = common_lanes(half, lanes)
        self.sin, self.cos = T.alloc_buffer((half,)), T.alloc_buffer((half,))
        # Through memory: TVM's interval analysis fails on a loop variable that becomes a float.
        at = Registers(1, "int32", 1)
        at[0] = position
        with T.serial(0, half // self.lanes) as i:
            start = i * self.lanes
            angle = load_float(inv_freq, [start], self.lanes)
            angle = T.bind(angle * splat(T.cast(at[0], "float32"), self.lanes))
            sin, cos = sin_cos(angle, self.lanes)
            if rotation.scaling != 1.0:
                scaling = splat_float(rotation.scaling, self.lanes)
                sin, cos = sin * scaling, cos * scaling
            store(self.sin, [start], sin, self.lanes)
            store(self.cos, [start], cos, self.lanes)
        if rotation.interleaved:
            self._spread(half)

    def _spread(self, half: int) -> None:
        """Repeat each cosine and sine for both elements of its pair, with the sine's sign."""
        sin, cos = T.alloc_buffer((2 * half,)), T.alloc_buffer((2 * half,))
        with T.serial(0, half) as i:
            T.buffer_store(cos, self.cos[i], [2 * i])
            T.buffer_store(cos, self.cos[i], [2 * i + 1])
            T.buffer_store(sin, T.float32(0.0) - self.sin[i], [2 * i])
            T.buffer_store(sin, self.sin[i], [2 * i + 1])
        self.sin, self.cos = sin, cos

    def rotate(self, x: Any, source: list[Any], out: Any, target: list[Any]) -> None:
        """Rotate the head that starts at x[source] to out[target]."""
        (m, start), (to, begin) = source, target
        if self.rotation.interleaved:
            lanes = 2 * self.lanes if self.lanes < 8 else self.lanes
            swap = [lane ^ 1 for lane in range(lanes)]
            with T.serial(0, self.rotation.rotary_dim // lanes) as i:
                at = i * lanes
                value = load_float(x, [m, start + at], lanes)
                swapped = tirx.Shuffle([value], swap)
                cos, sin = load(self.cos, [at], lanes), load(self.sin, [at], lanes)
                store(out, [to, begin + at], value * cos + swapped * sin, lanes)
            return
        lanes, half = self.lanes, self.rotation.rotary_dim // 2
        with T.serial(0, half // lanes) as i:
            at = i * lanes
            low = load_float(x, [m, start + at], lanes)
            high = load_float(x, [m, start + half + at], lanes)
            cos, sin = load_float(self.cos, [at], lanes), load_float(self.sin, [at], lanes)
            store(out, [to, begin + at], low * cos - high * sin, lanes)
            store(out, [to, begin + half + at], high * cos + low * sin, lanes)


def sin_cos(angle: Any, lanes: int) -> tuple[Any, Any]:
    """Sine and cosine of float32 x lanes, 0 <= angle < 2^17, absolute error below 2e-7."""
    integer = vector_type("int32", lanes)
    turns = T.bind(T.nearbyint(angle * splat_float(0.63661977236758134, lanes)))
    negative = T.bind(splat_float(0.0, lanes) - turns)
    r = angle
    for part in _HALF_PI:
        # Fused, so that turns * part is not rounded before it cancels against the angle.
        r = T.bind(T.fma(negative, splat_float(part, lanes), r))
    z = T.bind(r * r)
    sin = T.bind(_polynomial(_SIN, z, lanes) * z * r + r)
    one = splat_float(1.0, lanes) - z * splat_float(0.5, lanes)
    cos = T.bind(_polynomial(_COS, z, lanes) * z * z + one)
    quadrant = T.bind(T.cast(turns, integer))
    odd = (quadrant & splat(T.int32(1), lanes)) == splat(T.int32(1), lanes)
    swapped_sin = tirx.Select(odd, cos, sin)
    swapped_cos = tirx.Select(odd, sin, cos)
    return (
        _flip(swapped_sin, quadrant, lanes),
        _flip(swapped_cos, quadrant + splat(T.int32(1), lanes), lanes),
    )


def _polynomial(coefficients: tuple[float, ...], z: Any, lanes: int) -> Any:
    result = splat_float(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        result = result * z + splat_float(coefficient, lanes)
    return result


def _flip(value: Any, quadrant: Any, lanes: int) -> Any:
    """The value with its sign changed where bit 1 of the quadrant is set."""
    sign = (quadrant & splat(T.int32(2), lanes)) << splat(T.int32(30), lanes)
    bits = T.reinterpret(vector_type("int32", lanes), value) ^ sign
    return T.bind(T.reinterpret(vector_type("float32", lanes), bits))
