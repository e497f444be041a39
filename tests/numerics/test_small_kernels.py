"""Norms, activation quantization, rope, embedding and elementwise kernels against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels import elementwise, norms
from morendo.codegen.cpu.kernels.embedding import embedding
from morendo.codegen.cpu.kernels.kv_cache import KVCache, append_kv
from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
from morendo.codegen.cpu.kernels.rope import Rotation, rope, rope_append_kv
from morendo.codegen.cpu.vectors.vector_blocks import Rows
from morendo.ir import reference, reference_activation
from morendo.ir.formats import WeightFormat
from morendo.ir.reference_attention import MIDDLE, stored_heads, stored_keys
from tests.numerics.kernel_runner import build, compile_function, frozen, poisoned, runnable_widths

ISAS = pytest.mark.parametrize("isa", runnable_widths(), ids=lambda isa: isa.name)


def random(seed: int, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return frozen((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def rms(x: NDArray, weight: NDArray, eps: float, offset: float = 0.0) -> NDArray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (weight + offset)


def layer(x: NDArray, weight: NDArray, bias: NDArray, eps: float) -> NDArray:
    x = x.astype(np.float64)
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * weight + bias


@ISAS
@pytest.mark.parametrize(
    ("max_tokens", "tokens", "rows", "features"),
    [(1, 1, 1, 576), (1, 1, 1, 5), (256, 256, 1, 80), (17, 15, 3, 64), (7, 7, 1, 577)],
)
def test_rms_norm_is_close_to_float64(isa, max_tokens, tokens, rows, features):
    x, weight = random(1, max_tokens, rows, features, scale=3), random(2, features)
    kernel = compile_function(
        build(
            norms.rms_norm,
            isa,
            max_tokens=max_tokens,
            features=features,
            rows_per_token=rows,
            eps=1e-5,
            offset=1.0,
        ),
        isa,
    )
    out = poisoned((max_tokens, rows * features))
    kernel(frozen(x.reshape(max_tokens, -1)), weight, out, tokens)
    expected = rms(x, weight, 1e-5, 1.0).reshape(max_tokens, -1)
    np.testing.assert_allclose(out[:tokens], expected[:tokens], rtol=2e-6, atol=2e-6)
    assert np.isnan(out[tokens:]).all()


@ISAS
def test_rms_norm_of_a_slice_leaves_the_rest_alone(isa):
    x, weight = random(1, 2, 100), random(2, 16)
    rows = Rows(100, offset=20)
    kernel = compile_function(
        build(
            norms.rms_norm, isa, max_tokens=2, features=16, rows_per_token=3, eps=1e-6,
            x_rows=rows, out_rows=Rows(60, offset=7),
        ),
        isa,
    )  # fmt: skip
    out = poisoned((2, 60))
    kernel(x, weight, out, 2)
    expected = rms(x[:, 20:68].reshape(2, 3, 16), weight, 1e-6).reshape(2, 48)
    np.testing.assert_allclose(out[:, 7:55], expected, rtol=2e-6, atol=2e-6)
    assert np.isnan(out[:, :7]).all()
    assert np.isnan(out[:, 55:]).all()


@ISAS
@pytest.mark.parametrize(
    ("max_tokens", "features", "rows"), [(1, 576, 1), (16, 33, 3), (256, 768, 1)]
)
def test_layer_norm_is_close_to_float64(isa, max_tokens, features, rows):
    x = random(1, max_tokens, rows, features) + 5
    weight, bias = random(2, features), random(3, features)
    function = build(
        norms.layer_norm,
        isa,
        max_tokens=max_tokens,
        features=features,
        eps=1e-5,
        rows_per_token=rows,
    )
    out = poisoned((max_tokens, rows * features))
    compile_function(function, isa)(x.reshape(out.shape), weight, bias, out, max_tokens)
    want = layer(x, weight, bias, 1e-5).reshape(out.shape)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def quantized_outputs(tokens: int, features: int, group: int) -> tuple[NDArray, ...]:
    groups = -(-features // group)
    return (
        poisoned((tokens, groups * group), np.int8),
        poisoned((tokens, groups)),
        poisoned((tokens, groups), np.int32),
    )


def channel_orders(features: int, ordered: bool) -> tuple[list[NDArray[np.uint16]], NDArray]:
    """The order as the kernel's argument, if it takes one, and as indices.

    Some of its places are beyond the row, as in a damaged file: they stand for the last.
    """
    if not ordered:
        return [], np.arange(features)
    order = np.random.default_rng(features).permutation(features).astype(np.uint16)
    order[[0, -1]] = 65535, features
    return [frozen(order)], np.minimum(order, features - 1)


@ISAS
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("tokens", "features"), [(1, 576), (17, 200), (2, 31), (256, 65)])
def test_quantized_activations_equal_the_reference_bit_by_bit(
    isa, ordered, group, tokens, features
):
    x = random(tokens, tokens, features, scale=7).copy()
    x[0, :group] = 0  # a group of zeros
    x[-1, -1] = 1e-35  # perhaps a whole group that is too small for a reciprocal
    x[0, -3:] = [0.5, 127.0, -2.5]  # ties
    given, order = channel_orders(features, ordered)
    function = build(
        quantize_activation,
        isa,
        max_tokens=tokens,
        features=features,
        group_size=group,
        ordered=ordered,
    )
    outputs = quantized_outputs(tokens, features, group)
    compile_function(function, isa)(frozen(x), *given, *outputs, tokens)
    expected = reference_activation.quantize_activation(x[:, order], group)
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def assert_quantized_close(outputs: tuple[NDArray, ...], values: NDArray, group: int) -> None:
    """Within rounding of the float64 result: half a step, and the norm's own float32 error."""
    codes, scales, sums = outputs
    features = values.shape[1]
    step = np.repeat(scales, group, axis=1)[:, :features]
    error = np.abs(reference_activation.dequantize_activation(codes, scales)[:, :features] - values)
    assert (error <= step * 0.501 + 1e-6).all()
    assert (codes[:, features:] == 0).all()
    np.testing.assert_array_equal(sums, codes.reshape(*sums.shape, group).sum(-1, dtype=np.int32))


@ISAS
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("tokens", "features", "group"), [(1, 576, 32), (15, 200, 64)])
def test_fused_norm_and_quantization_agree_with_the_norm(isa, ordered, tokens, features, group):
    x, weight, bias = random(1, tokens, features), random(2, features), random(3, features)
    options = {"max_tokens": tokens, "features": features, "group_size": group, "eps": 1e-5}
    options["ordered"] = ordered
    given, order = channel_orders(features, ordered)
    outputs = quantized_outputs(tokens, features, group)
    kernel = compile_function(build(norms.rms_norm_quantize, isa, **options), isa)
    kernel(x, weight, *given, *outputs, tokens)
    assert_quantized_close(outputs, rms(x, weight, 1e-5)[:, order], group)
    outputs = quantized_outputs(tokens, features, group)
    kernel = compile_function(build(norms.layer_norm_quantize, isa, **options), isa)
    kernel(x, weight, bias, *given, *outputs, tokens)
    assert_quantized_close(outputs, layer(x, weight, bias, 1e-5)[:, order], group)


def rotated(x: NDArray, inv_freq: NDArray, positions: NDArray, rotation: Rotation) -> NDArray:
    """Rope of [M, H, D] in float64, from the angle rounded to float32."""
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)[:, None, :]
    cos, sin = np.cos(angle) * rotation.scaling, np.sin(angle) * rotation.scaling
    half = rotation.rotary_dim // 2
    out = x.astype(np.float64).copy()
    if rotation.interleaved:
        low, high = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        low, high = slice(0, half), slice(half, 2 * half)
    out[..., low] = x[..., low] * cos - x[..., high] * sin
    out[..., high] = x[..., high] * cos + x[..., low] * sin
    return out


def frequencies(half: int) -> NDArray[np.float32]:
    return frozen((10000.0 ** (-np.arange(half) / half)).astype(np.float32))


@ISAS
@pytest.mark.parametrize(
    ("rotation", "max_tokens", "tokens", "position"),
    [
        (Rotation(64, 64), 1, 1, 0),
        (Rotation(64, 64), 16, 15, 131000),
        (Rotation(80, 20), 2, 2, 100),
        (Rotation(80, 80, scaling=1.25), 7, 7, 16),
        (Rotation(64, 32, interleaved=True), 3, 3, 4097),
        (Rotation(8, 8, interleaved=True), 256, 17, 1),
    ],
)
def test_rope_is_close_to_float64_up_to_128k(isa, rotation, max_tokens, tokens, position):
    x, inv_freq = random(1, max_tokens, 3, rotation.head_dim), frequencies(rotation.rotary_dim // 2)
    function = build(rope, isa, max_tokens=max_tokens, heads=3, rotation=rotation)
    out = poisoned((max_tokens, 3 * rotation.head_dim))
    compile_function(function, isa)(
        frozen(x.reshape(max_tokens, -1)), inv_freq, out, tokens, position
    )
    expected = rotated(x, inv_freq, position + np.arange(max_tokens), rotation)
    got = out.reshape(x.shape)
    np.testing.assert_allclose(got[:tokens], expected[:tokens], rtol=0, atol=2e-6)


def shapes(cache: KVCache) -> list[tuple[int, ...]]:
    return [array.shape for array in cache.arrays]


def cache_views(cache: KVCache, keys: NDArray, values: NDArray) -> tuple[NDArray, NDArray]:
    """The caches as [ctx, Hkv, D]."""
    by_position = keys.transpose(1, 3, 0, 2).reshape(cache.context, cache.kv_heads, cache.head_dim)
    return by_position, values.transpose(1, 0, 2)


@ISAS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("max_tokens", "tokens", "position"), [(1, 1, 17), (16, 15, 30)])
def test_append_kv_writes_only_the_new_positions(isa, dtype, max_tokens, tokens, position):
    cache = KVCache(kv_heads=2, head_dim=24, context=48, dtype=dtype)
    row = random(1, max_tokens, 150)
    function = build(
        append_kv,
        isa,
        max_tokens=max_tokens,
        cache=cache,
        k_rows=Rows(150, 50),
        v_rows=Rows(150, 98),
    )
    keys, values = (poisoned(s, np.dtype(dtype).type) for s in shapes(cache))
    compile_function(function, isa)(row, row, keys, values, tokens, position)
    written = slice(position, position + tokens)
    for view, offset in zip(cache_views(cache, keys, values), (50, 98), strict=True):
        expected = row[:tokens, offset : offset + 48].reshape(tokens, 2, 24).astype(dtype)
        np.testing.assert_array_equal(view[written], expected)
        assert np.isnan(np.delete(view, np.s_[written], axis=0)).all()


@ISAS
@pytest.mark.parametrize(("bits", "dim"), [(8, 24), (8, 32), (8, 6), (4, 24), (4, 64), (4, 6)])
@pytest.mark.parametrize(("max_tokens", "tokens", "position"), [(1, 1, 17), (16, 15, 30)])
def test_append_kv_makes_the_references_codes(isa, bits, dim, max_tokens, tokens, position):
    cache = KVCache(kv_heads=2, head_dim=dim, context=48, dtype=f"int{bits}")
    row = random(1, max_tokens, 4 * dim).copy()
    row[0, :dim] = 0.0  # a head of zeros
    row[0, 2 * dim : 3 * dim] = 7.5  # one without a range
    function = build(
        append_kv,
        isa,
        max_tokens=max_tokens,
        cache=cache,
        k_rows=Rows(4 * dim),
        v_rows=Rows(4 * dim, 2 * dim),
    )
    codes = [np.full(shape, 85, np.uint8) for shape in shapes(cache)[:2]]
    scales = [poisoned(shape) for shape in shapes(cache)[2:]]
    compile_function(function, isa)(row, row, *codes, *scales, tokens, position)
    keys = codes[0].transpose(1, 3, 0, 2, 4).reshape(48, 2, -1)
    values = codes[1].transpose(1, 3, 0, 2).reshape(48, 2, -1)
    written = slice(position, position + tokens)
    for part, stored in enumerate((keys, values)):
        heads = row[:tokens].reshape(tokens, 2, 2, dim)[:, part]
        expected, *factors = (stored_heads if part else stored_keys)(heads[None], bits)
        offset = isa.signed_offset if bits == 8 else MIDDLE
        as_stored = (expected[0].astype(np.int16) + offset).astype(np.uint8)
        assert (np.delete(stored, np.s_[written], axis=0) == 85).all()
        own = stored[written]
        own = own if bits == 8 else np.concatenate([own & 15, own >> 4], axis=-1)
        np.testing.assert_array_equal(own[..., :dim], as_stored)
        for got, want in zip(scales[part::2], factors, strict=False):
            np.testing.assert_array_equal(got[:, written], want[0].T)
            assert np.isnan(np.delete(got, np.s_[written], axis=1)).all()


@ISAS
@pytest.mark.parametrize(("max_tokens", "tokens", "position"), [(1, 1, 100), (17, 17, 15)])
def test_rope_append_kv_is_rope_then_append(isa, max_tokens, tokens, position):
    cache, rotation = KVCache(kv_heads=2, head_dim=16, context=128), Rotation(16, 16)
    row, inv_freq = random(1, max_tokens, 120), frequencies(8)
    function = build(
        rope_append_kv,
        isa,
        max_tokens=max_tokens,
        heads=3,
        cache=cache,
        rotation=rotation,
        rows=Rows(120, 4),
    )
    keys, values = (poisoned(shape) for shape in shapes(cache))
    out = row.copy()
    compile_function(function, isa)(out, inv_freq, keys, values, tokens, position)
    positions = position + np.arange(max_tokens)
    heads = row[:, 4:116].reshape(max_tokens, 7, 16)
    expected = rotated(heads, inv_freq, positions, rotation)
    got = out[:, 4:116].reshape(max_tokens, 7, 16)
    np.testing.assert_allclose(got[:tokens, :3], expected[:tokens, :3], rtol=0, atol=2e-6)
    key_view, value_view = cache_views(cache, keys, values)
    written = slice(position, position + tokens)
    np.testing.assert_allclose(key_view[written], expected[:tokens, 3:5], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(value_view[written], heads[:tokens, 5:])


@ISAS
@pytest.mark.parametrize(
    "name", ["f32", "f16", "q8g32", "q4g32", "q4g64", "q4g32c", "q5g32c", "q6g32"]
)
@pytest.mark.parametrize(("rows", "features"), [(50, 128), (16, 100)])
def test_embedding_gives_the_dequantized_rows(isa, name, rows, features):
    fmt, table = WeightFormat.parse(name), random(1, rows, features)
    ids = frozen(np.array([0, rows - 1, 15, 1], np.int32))
    arrays = reference.pack(table, fmt)
    ordered = [frozen(arrays[a.name]) for a in fmt.arrays(rows, features)]
    function = build(embedding, isa, max_tokens=4, rows=rows, features=features, fmt=fmt)
    out = poisoned((4, features))
    compile_function(function, isa)(ids, *ordered, out, 4)
    expected = reference.unpack(arrays, fmt, rows, features)[ids]
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)


def erf(x: NDArray) -> NDArray:
    return np.vectorize(math.erf)(x)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


@ISAS
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("max_tokens", "tokens", "features"), [(1, 1, 1536), (256, 15, 77)])
def test_gated_is_close_to_float64(isa, name, max_tokens, tokens, features):
    gate, up = random(1, max_tokens, features, scale=4), random(2, max_tokens, features)
    function = build(
        elementwise.gated, isa, max_tokens=max_tokens, features=features, activation_name=name
    )
    out = poisoned((max_tokens, features))
    compile_function(function, isa)(gate, up, out, tokens)
    expected = ACTIVATIONS[name](gate.astype(np.float64)) * up
    np.testing.assert_allclose(out[:tokens], expected[:tokens], rtol=3e-6, atol=3e-6)


@ISAS
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_close_to_float64(isa, name):
    x = random(1, 3, 77, scale=4)
    function = build(elementwise.activate, isa, max_tokens=3, features=77, activation_name=name)
    out = poisoned((3, 77))
    compile_function(function, isa)(x, out, 3)
    np.testing.assert_allclose(out, ACTIVATIONS[name](x.astype(np.float64)), rtol=3e-6, atol=1e-6)
