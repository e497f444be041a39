"""Quantized activations lie as the multiply instruction of many tokens takes them."""

from __future__ import annotations

import numpy as np
import pytest

from morendo.codegen.cpu.kernels import norms
from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
from tests.numerics.kernel_runner import compile_function, emulated_isas, frozen, poisoned
from tests.numerics.test_small_kernels import assert_quantized_close, random, rms


@pytest.mark.parametrize(
    "isa", [isa for isa in emulated_isas() if isa.block.tokens > 1], ids=lambda isa: isa.name
)
@pytest.mark.parametrize(("tokens", "features"), [(17, 200), (2, 31), (6, 64)])
def test_quantized_activations_lie_in_blocks_of_tokens(isa, tokens, features):
    x, weight, group = random(tokens, tokens, features), random(2, features), 32
    block, depth, groups = isa.block.tokens, isa.block.depth, -(-features // group)
    blocks = -(-tokens // block)
    shapes = [(groups * group // depth, block * depth), (groups, block), (groups, block)]
    normed = rms(x, weight, 1e-5).astype(np.float32)
    common = {"max_tokens": tokens, "features": features, "group_size": group}
    for function, given, values in (
        (quantize_activation(isa, **common), [frozen(x)], x),
        (norms.rms_norm_quantize(isa, eps=1e-5, **common), [frozen(x), frozen(weight)], normed),
    ):
        outputs = [
            poisoned((blocks, *shape), dtype)
            for shape, dtype in zip(shapes, (np.int8, np.float32, np.int32), strict=True)
        ]
        compile_function(function, isa)(*given, *outputs, tokens)
        deep = (depth, 1, 1)
        codes, scales, sums = (
            array.reshape(blocks, -1, block, of).swapaxes(1, 2).reshape(blocks * block, -1)[:tokens]
            for array, of in zip(outputs, deep, strict=True)
        )
        assert_quantized_close((codes, scales, sums), values, group)
