"""Operands whose shapes do not fit together are named with them, whichever op they are of."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from morendo.frontend.onnx.importer import import_onnx
from morendo.ir.errors import InputError
from tests.onnx.graphs import WIDTH, Builder

OTHER = 48


def _nbits(b, columns=WIDTH, blocks=4, scales=256, **attrs):
    codes = b.store(np.zeros((WIDTH, blocks, 8), np.uint8))
    given = {"K": WIDTH, "N": WIDTH, "bits": 4, "block_size": 16, **attrs}
    x = b.linear(b.x, columns)
    return b.ms("MatMulNBits", [x, codes, b.store(np.ones(scales, np.float32))], **given)


def _rows(b, scales, **attrs):
    codes = b.store(np.zeros((32, WIDTH * attrs.get("bits", 4) // 8), np.uint8))
    given = {"block_size": 16, "quantize_axis": 1, **attrs}
    return b.ms("GatherBlockQuantized", [codes, "input_ids", b.weight(32, scales)], **given)


def _flat(b):
    return b.op("Reshape", [b.x, b.store([-1, WIDTH])])


def _attention(b, *widths, heads=4):
    operands = [b.linear(b.x, width) for width in widths]
    return b.ms("MultiHeadAttention", operands, num_heads=heads, unidirectional=1)


def _grouped(b):
    total = b.op("Cast", [b.tokens()], to=TensorProto.INT32)
    last = b.op("Sub", [total, b.store(np.array([1], np.int32))])
    operands = [b.linear(b.x, width) for width in (WIDTH, 24, 24)]
    inputs = [*operands, "", "", last, total]
    return b.ms("GroupQueryAttention", inputs, outputs=3, num_heads=4, kv_num_heads=2)[0]


SKIP, NBITS = "SkipSimplifiedLayerNormalization", "MatMulNBits"
CASES = {
    "Add": lambda b: b.op("Add", [b.x, b.weight(OTHER)]),
    "Mul": lambda b: b.op("Mul", [b.x, b.weight(7, WIDTH)]),
    "Where": lambda b: b.op("Where", [b.store([True]), b.x, b.weight(5)]),
    "Gemm": lambda b: b.op("Gemm", [_flat(b), b.weight(OTHER, WIDTH)]),
    "Gemm of a turned matrix": lambda b: b.op("Gemm", [_flat(b), b.weight(9, OTHER)], transB=1),
    "Reshape": lambda b: b.op("Reshape", [b.x, b.store([1, -1, OTHER])]),
    "Transpose": lambda b: b.op("Transpose", [b.x], perm=[0, 1, 2, 3]),
    "Concat": lambda b: b.op("Concat", [b.x, _flat(b)], axis=2),
    "Split": lambda b: b.op("Split", [b.linear(b.x, 99), b.store([64, 9])], outputs=2, axis=2)[0],
    "LayerNormalization": lambda b: b.op("LayerNormalization", [b.x, b.weight(OTHER)]),
    "SimplifiedLayerNormalization": lambda b: b.op(
        "SimplifiedLayerNormalization", [b.x, b.weight(OTHER)]
    ),
    SKIP: lambda b: b.ms(SKIP, [b.x, b.linear(b.x, OTHER), b.weight(WIDTH)]),
    f"{SKIP} with another weight": lambda b: b.ms(SKIP, [b.x, b.x, b.weight(OTHER)]),
    "BiasGelu": lambda b: b.ms("BiasGelu", [b.x, b.weight(OTHER)]),
    NBITS: lambda b: _nbits(b, columns=OTHER),
    f"{NBITS} of fewer codes": lambda b: _nbits(b, blocks=3),
    f"{NBITS} of fewer scales": lambda b: _nbits(b, scales=25),
    "GatherBlockQuantized": lambda b: _rows(b, 3),
}


def _refused(write, folder, match):
    b = Builder()
    with pytest.raises(InputError, match=match) as caught:
        import_onnx(b.save(write(b), folder, opset=23), 64)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said.replace(str(folder), "")) < 400


@pytest.mark.parametrize("case", CASES)
def test_operands(case, tmp_path):
    op = case.partition(" ")[0]
    shapes = r"\([\w.]+: \[[\d, ]*\].*\)"
    match = rf"node_{op}_\d+ \([a-z.]+::{op}\) cannot take operands of these shapes {shapes}"
    _refused(CASES[case], tmp_path, match)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda b: _attention(b, WIDTH, 32, WIDTH), r"different sizes.*got 16, 8, 16 channels"),
        (lambda b: _attention(b, *[WIDTH] * 3, heads=7), "with 64 channels in 7 heads cannot be"),
        (_grouped, r"GroupQueryAttention\): heads .* \(got 16, 12, 12 channels, 0 rotated"),
        (lambda b: _rows(b, 4, bits=2), "with 2 bits cannot be read .need 4 or 8"),
        (lambda b: b.linear(b.x, OTHER), r"lm_head.MatMul.weight: \[64, 24\]"),
    ],
)
def test_others(write, match, tmp_path):
    _refused(write, tmp_path, match)
