"""Normalizations, alone or with the quantization of their result to int8.

Each token (or each head of a token) is one row: a first pass sums the squares, a second one writes
the scaled row. The fused kernels quantize in the second pass, while the row is in registers.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import splat, splat_float, store
from morendo.codegen.cpu.vectors.vector_blocks import (
    Element,
    Rows,
    for_each_vector,
    kernel,
    kernel_name,
    load_float,
    load_ordered,
    row_sum,
    token_loop,
    variable,
)
from morendo.ir.activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat

from .quantize_activation import GroupOutputs, quantize_row


def rms_norm(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    eps: float,
    rows_per_token: int = 1,
    offset: float = 0.0,
    x_rows: Rows | None = None,
    out_rows: Rows | None = None,
) -> tirx.PrimFunc:
    """Root mean square norm: x / sqrt(mean(x^2) + eps) * (weight + offset), last axis.

    Parameters of the kernel: x f32[M, Rt, C], weight f32[C], out f32[M, Rt, C], tokens.
    With `x_rows` or `out_rows` that buffer is f32[M, stride], a token's rows start at the offset.
    """
    width = rows_per_token * features
    source, target = x_rows or Rows(width), out_rows or Rows(width)
    name = kernel_name(
        "rms_norm", m=max_tokens, r=rows_per_token, c=features, e=eps, o=offset,
        x=f"{source.stride}o{source.offset}", y=f"{target.stride}o{target.offset}",
    )  # fmt: skip
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, source.stride))
        weight = k.buffer("weight", (features,))
        out = k.buffer("out", (max_tokens, target.stride))
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, width * 8) as m, T.serial(0, rows_per_token) as row:
            start = row * features
            normed = _rms_row(x, m, source.offset + start, weight, features, eps, offset, isa)

            def write(c: Any, lanes: int) -> None:
                store(out, [m, target.offset + start + c], normed(c, lanes), lanes)

            for_each_vector(write, features, isa.lanes)
    return k.function


def layer_norm(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    eps: float,
    rows_per_token: int = 1,
    offset: float = 0.0,
) -> tirx.PrimFunc:
    """Layer norm: (x - mean) / sqrt(variance + eps) * (weight + offset) + bias, last axis.

    Parameters of the kernel: x f32[M, Rt, C], weight f32[C], bias f32[C], out f32[M, Rt, C],
    tokens.
    """
    width = rows_per_token * features
    name = kernel_name("layer_norm", m=max_tokens, r=rows_per_token, c=features, e=eps, o=offset)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, width))
        weight, bias = k.buffer("weight", (features,)), k.buffer("bias", (features,))
        out = k.buffer("out", (max_tokens, width))
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, width * 8) as m, T.serial(0, rows_per_token) as row:
            start = row * features
            normed = _layer_row(x, m, start, weight, bias, features, eps, offset, isa)

            def write(c: Any, lanes: int) -> None:
                store(out, [m, start + c], normed(c, lanes), lanes)

            for_each_vector(write, features, isa.lanes)
    return k.function


def rms_norm_quantize(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    group_size: int,
    eps: float,
    offset: float = 0.0,
    ordered: bool = False,
    activations: ActivationFormat = DEFAULT_ACTIVATIONS,
) -> tirx.PrimFunc:
    """`rms_norm` of one row per token whose result is only needed as int8 codes.

    Parameters of the kernel: x f32[M, C], weight f32[C], [order u16[C]], [factors f32[C]],
    codes i8[M, Kp], scales f32[M, G], sums i32[M, G], tokens. With `ordered`, channel c of the
    codes is channel order[c] of x; a factored format has factors of the codes' channels.
    """
    op = "rms_norm_quantize" + "_ordered" * ordered + activations.kernel_suffix
    name = kernel_name(op, m=max_tokens, c=features, g=group_size, e=eps, o=offset)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        weight = k.buffer("weight", (features,))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        outputs = GroupOutputs.declare(k, isa, max_tokens, features, group_size, activations)
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 8) as m:
            normed = _rms_row(x, m, 0, weight, features, eps, offset, isa, order)
            quantize_row(normed, outputs, m, features, group_size, isa)
    return k.function


def layer_norm_quantize(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    group_size: int,
    eps: float,
    offset: float = 0.0,
    ordered: bool = False,
    activations: ActivationFormat = DEFAULT_ACTIVATIONS,
) -> tirx.PrimFunc:
    """`layer_norm` whose result is only needed as int8 codes.

    Parameters of the kernel: x f32[M, C], weight f32[C], bias f32[C], [order u16[C]],
    [factors f32[C]], codes i8[M, Kp], scales f32[M, G], sums i32[M, G], tokens.
    """
    op = "layer_norm_quantize" + "_ordered" * ordered + activations.kernel_suffix
    name = kernel_name(op, m=max_tokens, c=features, g=group_size, e=eps, o=offset)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        weight, bias = k.buffer("weight", (features,)), k.buffer("bias", (features,))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        outputs = GroupOutputs.declare(k, isa, max_tokens, features, group_size, activations)
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 8) as m:
            normed = _layer_row(x, m, 0, weight, bias, features, eps, offset, isa, order)
            quantize_row(normed, outputs, m, features, group_size, isa)
    return k.function


def _rms_row(
    x: Any,
    m: Any,
    start: Any,
    weight: Any,
    features: int,
    eps: float,
    offset: float,
    isa: Any,
    order: Any = None,
) -> Element:
    """Sum the squares of the row x[m, start:]; give its normalized elements.

    With an order (then start is 0) they come in it.
    """

    def square(c: Any, width: int) -> Any:
        value = load_float(x, [m, start + c], width)
        return value * value

    mean = row_sum(square, features, isa.lanes) * T.float32(1.0 / features)
    scale = variable(isa.inverse_root(mean + T.float32(eps)), 1)

    def normed(c: Any, width: int) -> Any:
        gain = load_ordered(weight, [c], order, width)
        gain = gain + splat_float(offset, width) if offset else gain
        return load_ordered(x, [m, start + c], order, width) * splat(scale, width) * gain

    return normed


def _layer_row(
    x: Any,
    m: Any,
    start: Any,
    weight: Any,
    bias: Any,
    features: int,
    eps: float,
    offset: float,
    isa: Any,
    order: Any = None,
) -> Element:
    """Take mean and variance of the row x[m, start:]; give its normalized elements.

    With an order (then start is 0) they come in it.
    """
    inverse = T.float32(1.0 / features)
    total = row_sum(lambda c, width: load_float(x, [m, start + c], width), features, isa.lanes)
    mean = variable(total * inverse, 1)

    def square(c: Any, width: int) -> Any:
        value = T.bind(load_float(x, [m, start + c], width) - splat(mean, width))
        return value * value

    variance = row_sum(square, features, isa.lanes) * inverse
    scale = variable(isa.inverse_root(variance + T.float32(eps)), 1)

    def normed(c: Any, width: int) -> Any:
        value = load_ordered(x, [m, start + c], order, width) - splat(mean, width)
        gain, shift = (load_ordered(vector, [c], order, width) for vector in (weight, bias))
        gain = gain + splat_float(offset, width) if offset else gain
        return value * splat(scale, width) * gain + shift

    return normed
