"""One op at a time, in graphs built by hand, against onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto

from morendo.frontend.onnx.importer import import_onnx
from morendo.frontend.onnx.initializers import Initializers
from morendo.ir.dialect import attrs_of
from morendo.ir.invariants import calls
from tests.onnx.graphs import HEADS, WIDTH, Builder, rotary_tables
from tests.onnx.imported import check_import

SIZE = WIDTH // HEADS


def _attention_attrs(found):
    (call,) = (call for name, call in calls(found.module) if name == "attention")
    return attrs_of(call)


def _lengths(b):
    """seqlens_k and total_sequence_length."""
    last = b.op("Sub", [b.tokens(), b.store(np.array([1]))])
    total = b.op("Squeeze", [b.tokens()])
    return [b.op("Cast", [name], to=TensorProto.INT32) for name in (last, total)]


def _grouped(b, qkv, tables=(), **attrs):
    names = [b.store(table) for table in tables]
    pasts = [
        b.add_input(f"past_key_values.0.{part}", TensorProto.FLOAT, (1, 2, "past", SIZE))
        for part in ("key", "value")
    ]
    inputs = [*qkv, *pasts, *_lengths(b), *names]
    attrs = {"num_heads": HEADS, "kv_num_heads": 2, **attrs}
    return b.ms("GroupQueryAttention", inputs, outputs=3, **attrs)[0]


GROUPED = {
    "plain": ({}, False),
    "window": ({"local_window_size": 3}, False),
    "softcap": ({"softcap": 1.5, "scale": 2.0}, False),
    "rotary": ({"do_rotary": 1}, True),
    "interleaved": ({"do_rotary": 1, "rotary_interleaved": 1}, True),
    "packed": ({"do_rotary": 1, "local_window_size": 4}, True),
}


@pytest.mark.parametrize("case", GROUPED)
def test_group_query_attention(case, tmp_path):
    attrs, rotary = GROUPED[case]
    b = Builder()
    tables = rotary_tables(SIZE) if rotary else ()
    if case == "packed":
        qkv = [b.linear(b.x, WIDTH + 4 * SIZE), "", ""]
    else:
        qkv = [b.linear(b.x, rows) for rows in (WIDTH, 2 * SIZE, 2 * SIZE)]
    found, counts = check_import(b.save(_grouped(b, qkv, tables, **attrs), tmp_path))
    assert counts["rope"] == (2 if rotary else 0)
    assert _attention_attrs(found)["window"] == attrs.get("local_window_size", 0)


@pytest.mark.parametrize("rank", [3, 4])
def test_multi_head_attention_with_a_mask_of_its_own(rank, tmp_path):
    """A rotation by com.microsoft's op before, and a causal mask that is computed."""
    b = Builder()
    cos, sin = (b.store(table) for table in rotary_tables(SIZE))
    positions = b.op("Unsqueeze", [b.range(), b.store(np.array([0]))])
    q, k, v = (b.linear(b.x) for _ in range(3))
    if rank == 4:
        q, k = b.heads(q), b.heads(k)
    extra = {"num_heads": HEADS} if rank == 3 else {}
    q, k = (b.ms("RotaryEmbedding", [x, positions, cos, sin], **extra) for x in (q, k))
    if rank == 4:
        q, k = b.rows(q), b.rows(k)
    row, column = (b.op("Unsqueeze", [b.range(), b.store(np.array([axis]))]) for axis in (1, 0))
    seen = b.op("LessOrEqual", [column, row])
    zero, low = b.store(np.float32(0)), b.store(np.float32(-3.4e38))
    bias = b.op("Unsqueeze", [b.op("Where", [seen, zero, low]), b.store(np.array([0, 1]))])
    y = b.ms("MultiHeadAttention", [q, k, v, "", "", bias], num_heads=HEADS)
    _, counts = check_import(b.save(y, tmp_path))
    assert counts["rope"] == 2


def test_multi_head_attention_that_is_unidirectional(tmp_path):
    b = Builder()
    q, k, v = (b.linear(b.x) for _ in range(3))
    y = b.ms("MultiHeadAttention", [q, k, v], num_heads=HEADS, unidirectional=1, scale=0.4)
    found, _ = check_import(b.save(y, tmp_path))
    assert _attention_attrs(found)["scale"] == pytest.approx(0.4)


@pytest.mark.parametrize("rank", [3, 4])
def test_attention_of_onnx(rank, tmp_path):
    """Rotary embedding and attention of opset 23, heads in an axis of their own or not."""
    b = Builder()
    cos, sin = (b.store(table) for table in rotary_tables(SIZE // 2))
    positions = b.op("Unsqueeze", [b.range(), b.store(np.array([0]))])
    q, k, v = (b.linear(b.x, rows) for rows in (WIDTH, 2 * SIZE, 2 * SIZE))
    attrs = {"q_num_heads": HEADS, "kv_num_heads": 2}
    if rank == 4:
        q, k, v, attrs = b.heads(q), b.heads(k, 2), b.heads(v, 2), {}
    rotary = {"rotary_embedding_dim": SIZE // 2}
    turned = []
    for x, heads in ((q, HEADS), (k, 2)):
        extra = {**rotary, "num_heads": heads} if rank == 3 else rotary
        turned.append(b.op("RotaryEmbedding", [x, cos, sin, positions], **extra))
    y = b.op("Attention", [*turned, v], is_causal=1, **attrs)
    y = b.rows(y) if rank == 4 else y
    _, counts = check_import(b.save(y, tmp_path, opset=23))
    assert counts["rope"] == 2


def _rms(b, x):
    return b.op("SimplifiedLayerNormalization", [x, b.weight(WIDTH)], epsilon=1e-5)


def _skip_rms(b, x):
    weights = [b.weight(WIDTH), b.weight(WIDTH)]
    outputs = b.ms("SkipSimplifiedLayerNormalization", [x, b.linear(x), *weights], 4, epsilon=1e-5)
    return b.op("Add", [outputs[0], outputs[3]])


def _skip_layer(b, x):
    weights = [b.weight(WIDTH) for _ in range(3)]
    outputs = b.ms("SkipLayerNormalization", [x, b.linear(x), *weights], 4, epsilon=1e-5)
    return b.op("Add", [outputs[0], outputs[3]])


def _written_layer_norm(b, x):
    axes = {"axes": [-1]}
    centered = b.op("Sub", [x, b.op("ReduceMean", [x], **axes)])
    square = b.op("ReduceMean", [b.op("Pow", [centered, b.store(np.float32(2))])], **axes)
    root = b.op("Sqrt", [b.op("Add", [square, b.store(np.float32(1e-5))])])
    scaled = b.op("Mul", [b.op("Div", [centered, root]), b.weight(WIDTH)])
    return b.op("Add", [scaled, b.weight(WIDTH)])


def _written_gelu(b, x):
    half = b.op("Mul", [x, b.store(np.float32(0.5))])
    angle = b.op("Div", [x, b.store(np.float32(np.sqrt(2)))])
    return b.op("Mul", [half, b.op("Add", [b.op("Erf", [angle]), b.store(np.float32(1))])])


TOKENWISE = {
    "rms_norm": (21, _rms),
    "rms_norm_23": (23, lambda b, x: b.op("RMSNormalization", [x, b.weight(WIDTH)])),
    "skip_rms_norm": (21, _skip_rms),
    "skip_layer_norm": (21, _skip_layer),
    "layer_norm_without_bias": (21, lambda b, x: b.op("LayerNormalization", [x, b.weight(WIDTH)])),
    "written_layer_norm": (17, _written_layer_norm),
    "written_gelu": (21, _written_gelu),
    "gelu": (21, lambda b, x: b.op("Gelu", [x], approximate="tanh")),
    "ms_gelu": (21, lambda b, x: b.ms("Gelu", [x])),
    "bias_gelu": (21, lambda b, x: b.ms("BiasGelu", [x, b.weight(WIDTH)])),
    "fast_gelu": (21, lambda b, x: b.ms("FastGelu", [x, b.weight(WIDTH)])),
    "quick_gelu": (21, lambda b, x: b.ms("QuickGelu", [x])),
}


@pytest.mark.parametrize("case", TOKENWISE)
def test_op_on_each_token(case, tmp_path):
    opset, write = TOKENWISE[case]
    b = Builder()
    check_import(b.save(write(b, b.linear(b.x)), tmp_path, opset=opset))


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_gates_of_fused_activations(domain, tmp_path):
    """x * sigmoid(x) gates as silu does, whatever an optimizer has called it."""
    b = Builder()
    op = b.ms("QuickGelu", [b.linear(b.x)], alpha=1.0) if domain else b.op("Swish", [b.linear(b.x)])
    y = b.op("Mul", [op, b.linear(b.x)])
    _, counts = check_import(b.save(y, tmp_path, opset=21 if domain else 24))
    assert counts["gated"] == 1


def _packed(codes, bits):
    return codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4


@pytest.mark.parametrize(
    ("bits", "zeros"),
    [(4, "middle"), (4, "stored"), (4, "floats"), (8, "middle"), (8, "stored")],
)
def test_matmul_nbits(bits, zeros, tmp_path):
    b = Builder()
    rows, blocks, size = WIDTH, 4, 16
    codes = b.random.integers(0, 1 << bits, (rows, blocks, size)).astype(np.uint8)
    scales = b.random.uniform(0.01, 0.02, (rows, blocks)).astype(np.float32)
    zero = b.random.integers(0, 1 << bits, (rows, blocks)).astype(np.uint8)
    inputs = [b.x, b.store(_packed(codes, bits)), b.store(scales.reshape(-1))]
    if zeros == "stored":
        inputs.append(b.store(_packed(zero, bits).reshape(-1)))
    elif zeros == "floats":
        inputs.append(b.store(zero.astype(np.float32).reshape(-1)))
    y = b.ms("MatMulNBits", inputs, K=WIDTH, N=rows, bits=bits, block_size=size)
    found, counts = check_import(b.save(y, tmp_path))
    assert counts["linear"] == 2
    name = next(n for n in found.weights.names() if found.weights.dtype(n) == "uint8")
    middle = {"middle": 1 << (bits - 1)}.get(zeros, zero[..., None].astype(np.float32))
    want = ((codes - np.float32(middle)) * scales[..., None]).reshape(rows, -1)
    np.testing.assert_allclose(found.weights.get(name), want, rtol=1e-6)


@pytest.mark.parametrize("zeros", [False, True])
def test_gather_block_quantized(zeros, tmp_path):
    b = Builder()
    codes = b.random.integers(0, 16, (24, WIDTH)).astype(np.uint8)
    scales = b.random.uniform(0.01, 0.05, (24, 2)).astype(np.float32)
    inputs = [b.store(_packed(codes, 4)), "input_ids", b.store(scales)]
    if zeros:
        inputs.append(b.store(np.array([[0x5A]] * 24, np.uint8)))
    attrs = {"block_size": 32, "gather_axis": 0, "quantize_axis": 1, "bits": 4}
    y = b.ms("GatherBlockQuantized", inputs, **attrs)
    _, counts = check_import(b.save(b.op("Add", [b.x, y]), tmp_path))
    assert counts["embedding"] == 2


def test_blocked_dequantize_linear(tmp_path, monkeypatch):
    """Also with a table of rows that is stored the other way round; neither is read on import."""
    b = Builder()
    rows = b.op("Transpose", [b.weight(WIDTH, 24)])
    b.x = b.op("Add", [b.x, b.op("Gather", [rows, "input_ids"])])
    codes = b.random.integers(-8, 8, (WIDTH, WIDTH)).astype(np.int8)
    scales = b.random.uniform(0.01, 0.02, (4, WIDTH)).astype(np.float32)
    matrix = b.op("DequantizeLinear", [b.store(codes), b.store(scales)], axis=0, block_size=16)
    path = b.save(b.op("MatMul", [b.x, matrix]), tmp_path)
    _, counts = check_import(path)
    assert (counts["linear"], counts["embedding"]) == (2, 2)
    read = []
    monkeypatch.setattr(Initializers, "read", lambda self, name: read.append(name))
    import_onnx(path, 64)
    assert not read


def test_tables_of_scaled_frequencies_keep_their_factor(tmp_path):
    """Yarn scales cos and sin, here with half of the channels left alone."""
    b = Builder()
    qkv = [b.linear(b.x, rows) for rows in (WIDTH, 2 * SIZE, 2 * SIZE)]
    path = b.save(_grouped(b, qkv, rotary_tables(SIZE, factor=1.25), do_rotary=1), tmp_path)
    found, _ = check_import(path)
    scalings = {attrs_of(call)["scaling"] for name, call in calls(found.module) if name == "rope"}
    assert scalings == {1.25}
    assert found.longest == 64
    assert import_onnx(path, 1000).longest == 64  # as many as the tables have rows
