"""Kernels that round activations to 4 bits against the reference, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
from morendo.ir import reference_activation
from morendo.ir.activation_formats import FACTORS, ActivationFormat
from tests.numerics.kernel_runner import build, compile_function, frozen
from tests.numerics.test_small_kernels import ISAS, channel_orders, quantized_outputs, random


@ISAS
@pytest.mark.parametrize(("factored", "ordered"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("tokens", "features", "group"), [(17, 200, 64), (2, 31, 32), (9, 97, 32)])
def test_activations_of_4_bits_equal_the_reference_bit_by_bit(
    isa, factored, ordered, tokens, features, group
):
    x = random(tokens, tokens, features, scale=7).copy()
    x[0, :group] = 0
    x[-1, -1] = 1e-35
    x[0, -3:] = [-7.5, 7.5, 0.5]  # both ends of the range are ties
    x[1, :group] = np.abs(x[1, :group])  # 0 is the end of a range
    given, order = channel_orders(features, ordered)
    factors = np.random.default_rng(1).choice(FACTORS, features).astype(np.float32)
    fmt = ActivationFormat(4, factored)
    function = build(
        quantize_activation,
        isa,
        max_tokens=tokens,
        features=features,
        group_size=group,
        ordered=ordered,
        activations=fmt,
    )
    outputs = quantized_outputs(tokens, features, group)
    extra = [frozen(factors)] if factored else []
    compile_function(function, isa)(frozen(x), *given, *extra, *outputs, tokens)
    expected = reference_activation.quantize_activation(
        x[:, order], group, fmt, factors if factored else None
    )
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not outputs[0][:, features:].any()


def test_sixteen_steps_cover_a_group_and_factors_bring_channels_together():
    x = random(0, 50, 64, scale=3).copy()
    x[:, ::7] *= 8
    quantize = reference_activation.quantize_activation
    codes, scales, _ = quantize(x, 32, ActivationFormat(4))
    groups = codes.reshape(50, 2, 32).astype(int)
    assert (groups.max(-1) - groups.min(-1) == 15).all()
    step = np.repeat(scales, 32, axis=1)
    error = np.abs(reference_activation.dequantize_activation(codes, scales) - x)
    assert (error <= 1.001 * step).all()
    factors = np.ones(64, np.float32)
    factors[::7] = 8
    closer = quantize(x, 32, ActivationFormat(4, factored=True), factors)
    rest = np.delete(np.arange(64), np.arange(0, 64, 7))
    found = np.abs(reference_activation.dequantize_activation(*closer[:2]) - x)
    assert np.mean(found[:, rest] ** 2) < np.mean(error[:, rest] ** 2) / 10
