"""What cannot be imported is refused in one line that names it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from morendo.frontend.onnx.importer import import_onnx
from morendo.ir.errors import InputError
from tests.onnx.graphs import HEADS, WIDTH, Builder, rotary_tables

SIZE = WIDTH // HEADS


def _import(b, y, folder, **options):
    return import_onnx(b.save(y, folder, **options), 64)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 99), "opset 99 of ai.onnx is too new"),
        (lambda m: m.opset_import.pop(), "states no opset of com.microsoft, which QuickGelu is of"),
        (lambda m: m.graph.node.pop(0), "reads 'Gather.0.0', which nothing before it computes"),
        (lambda m: setattr(m.graph.input[0], "name", "tokens"), "'input_ids', which nothing"),
        (lambda m: setattr(m.graph.output[0], "name", "hidden"), "no output logits .got hidden"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "has 1 dimensions, need 2"),
        (
            lambda m: m.graph.input.append(Builder.declare("pixel_values", 1, (1, 3))),
            "has the input 'pixel_values', which is not supported",
        ),
        (
            lambda m: setattr(m.graph.initializer[0], "data_type", 77),
            "tensor stored.0 has an unknown type .77",
        ),
    ],
)
def test_interface(change, match, tmp_path):
    b = Builder()
    path = b.save(b.ms("QuickGelu", [b.x]), tmp_path)
    model = onnx.load_model(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=match):
        import_onnx(path, 64).weights.get("stored.0")


def test_model_without_ids(tmp_path):
    b = Builder()
    b.inputs = [b.declare("inputs_embeds", TensorProto.FLOAT, (1, "n", WIDTH))]
    b.nodes.clear()
    with pytest.raises(InputError, match="no input input_ids .got inputs_embeds"):
        _import(b, "inputs_embeds", tmp_path)


def test_logits_of_the_last_token(tmp_path):
    b = Builder()
    last = b.op("Gather", [b.x, b.store(np.array([-1]))], axis=1)
    with pytest.raises(InputError, match=r"logits have the shape .1, 1, 24., need .1, n, vocab"):
        _import(b, last, tmp_path)


def test_logits_of_nothing(tmp_path):
    b = Builder()
    zeros = b.op("ConstantOfShape", [b.store(np.array([1, 3, WIDTH]))])
    with pytest.raises(InputError, match="the logits do not depend on input_ids"):
        _import(b, zeros, tmp_path)


def _bad_mask(kind):
    """A mask that is computed from positions, added to the scores of an attention."""

    def write(b):
        row, column = (b.op("Unsqueeze", [b.range(), b.store(np.array([a]))]) for a in (1, 0))
        if kind == "later":
            seen = b.op("LessOrEqual", [column, b.op("Add", [row, b.store(np.array(1))])])
        elif kind == "parity":
            even = b.op("Mod", [column, b.store(np.array(2))])
            causal = b.op("LessOrEqual", [column, row])
            seen = b.op("And", [causal, b.op("Equal", [even, b.store(np.array(0))])])
        else:  # half of the text
            seen = b.op("LessOrEqual", [column, row])
            near = b.op("Sub", [row, b.op("Div", [b.tokens(), b.store(np.array([2]))])])
            seen = b.op("And", [seen, b.op("GreaterOrEqual", [column, near])])
        zero, low = b.store(np.float32(0)), b.store(np.float32(-1e9))
        bias = b.op("Unsqueeze", [b.op("Where", [seen, zero, low]), b.store(np.array([0, 1]))])
        q, k, v = (b.linear(b.x) for _ in range(3))
        return b.ms("MultiHeadAttention", [q, k, v, "", "", bias], num_heads=HEADS)

    return write


def _written(after_scores=lambda b, s: s, weights=lambda b, s: b.op("Softmax", [s])):
    """An attention in primitive ops."""

    def write(b):
        q, k, v = (b.heads(b.linear(b.x)) for _ in range(3))
        scores = b.op("MatMul", [q, b.op("Transpose", [k], perm=[0, 1, 3, 2])])
        return b.rows(b.op("MatMul", [weights(b, after_scores(b, scores)), v]))

    return write


def _multi(inputs=lambda b: [], **attrs):
    def write(b):
        q, k, v = (b.linear(b.x) for _ in range(3))
        given = {"num_heads": HEADS, "unidirectional": 1, **attrs}
        return b.ms("MultiHeadAttention", [q, k, v, *inputs(b)], **given)

    return write


def _grouped(extra=lambda b: [], lengths=None, **attrs):
    def write(b):
        q, k, v = (b.linear(b.x, rows) for rows in (WIDTH, 2 * SIZE, 2 * SIZE))
        total = b.op("Cast", [b.tokens()], to=TensorProto.INT32)
        last = b.op("Sub", [total, b.store(np.array([1 if lengths is None else 2], np.int32))])
        given = {"num_heads": HEADS, "kv_num_heads": 2, **attrs}
        inputs = [q, k, v, "", "", last, total, *extra(b)]
        return b.ms("GroupQueryAttention", inputs, outputs=3, **given)[0]

    return write


def _tables(b):
    cos, sin = rotary_tables(SIZE)
    return [b.store(cos), b.store(sin[::-1].copy())]


def _rotary_then_norm(b):
    """A rotation of all channels by a table that is used as it is, outside of an attention."""
    table = b.op("Unsqueeze", [b.op("Cast", [b.range()], to=1), b.store(np.array([0, 2]))])
    return b.op("Mul", [b.x, b.op("Cos", [table])])


def _nbits(b, **attrs):
    inputs = [b.x, b.store(np.zeros((WIDTH, 4, 8), np.uint8)), b.store(np.ones(256, np.float32))]
    if attrs.pop("order", False):
        inputs += ["", b.store(np.zeros(WIDTH, np.int32))]
    given = {"K": WIDTH, "N": WIDTH, "bits": 4, "block_size": 16, **attrs}
    return b.ms("MatMulNBits", inputs, **given)


CASES = {
    "unknown op": (
        lambda b: b.op("Selu", [b.x]),
        r"the op Selu of ai.onnx is not supported .node node_Selu_1",
    ),
    "unknown contrib op": (
        lambda b: b.ms("QMoE", [b.x]),
        r"unknown op QMoE of domain com.microsoft .node node_QMoE_1",
    ),
    "unknown op of ONNX's own domain": (
        lambda b: b.op("Frob", [b.x]),
        r"unknown op Frob of domain ai.onnx .node node_Frob_1.*compile the Hugging Face",
    ),
    "quantized product": (
        lambda b: b.op("QLinearMatMul", [b.x] * 8),
        "QLinearMatMul",
    ),
    "unknown attribute": (
        lambda b: b.op("Gelu", [b.x], approximate="tanh", sloped=1),
        "node_Gelu.* has the attribute sloped, which is not supported",
    ),
    "missing attribute": (_multi(num_heads=None), "lacks the attribute num_heads"),
    "later tokens": (_bad_mask("later"), "a mask that is not causal .a token sees later tokens"),
    "every other": (_bad_mask("parity"), "hides earlier tokens, but not by a window"),
    "half": (_bad_mask("half"), "its window changes with the length|hides earlier tokens"),
    "no mask": (_written(), "no causal attention.*a token sees later tokens"),
    "no softmax": (
        _written(weights=lambda b, s: b.op("Sigmoid", [s])),
        "multiplies two activations, none from a softmax",
    ),
    "softmax over queries": (
        _written(weights=lambda b, s: b.op("Softmax", [s], axis=2)),
        "its softmax is not over keys",
    ),
    "odd scores": (
        _written(after_scores=lambda b, s: b.op("Sin", [s])),
        "node_Sin.* changes its scores",
    ),
    "two scores": (
        _written(after_scores=lambda b, s: b.op("Add", [s, s])),
        "its scores come from node_Add",
    ),
    "scores of ids": (
        _written(weights=lambda b, s: b.op("Softmax", [b.op("Expand", [
            b.op("Cast", ["input_ids"], to=1),
            b.op("Concat", [b.store([1, HEADS]), b.tokens(), b.tokens()], axis=0)])])),
        "its scores are no product",
    ),
    "bidirectional": (_multi(unidirectional=0), "with no causal mask cannot be compiled"),
    "padding": (
        _multi(lambda b: ["", b.store(np.zeros((1, 7), np.int32))]),
        "with a padding mask cannot be compiled",
    ),
    "projection bias": (
        _multi(lambda b: [b.weight(3 * WIDTH, name="qkv.bias")]),
        "with the input 'qkv.bias' cannot be compiled",
    ),
    "mask of tokens": (
        _multi(lambda b: ["", "", b.op("Unsqueeze", [b.x, b.store(np.array([0]))])]),
        "a mask that depends on the tokens",
    ),
    "packed": (
        lambda b: b.ms(
            "MultiHeadAttention",
            [b.op("Reshape", [b.linear(b.x, 3 * WIDTH), b.store([1, -1, HEADS, 3, SIZE])])],
            num_heads=HEADS,
        ),
        "queries, keys and values in one tensor",
    ),
    "smooth": (_grouped(smooth_softmax=1), "smooth_softmax = 1 cannot be compiled"),
    "sink": (
        _grouped(lambda b: ["", "", "", "", b.weight(HEADS, name="sink")]),
        "with the input 'sink'",
    ),
    "lengths": (_grouped(lengths=2), "with lengths of its own"),
    "positions": (
        _grouped(lambda b: ["", "", b.op("Sub", [b.range(), b.store(np.array(1))])]),
        "with positions of its own",
    ),
    "odd tables": (_grouped(_tables, do_rotary=1), "not of one frequency for each channel"),
    "computed tables": (
        _grouped(lambda b: [b.op("Cos", [b.op("Cast", [b.range()], to=1)])] * 2, do_rotary=1),
        "rotary tables that are computed",
    ),
    "positional": (_rotary_then_norm, "depends on positions in an unknown way"),
    "g_idx": (lambda b: _nbits(b, order=True), "with g_idx cannot be compiled"),
    "2 bits": (lambda b: _nbits(b, bits=2), "with 2 bits cannot be read .need 4 or 8"),
    "ids as floats": (
        lambda b: b.op("Add", [b.x, b.op("Unsqueeze", [b.op("Cast", ["input_ids"], to=1),
                                                      b.store(np.array([2]))])]),
        "turns floats and integers into each other",
    ),
    "repeated": (
        lambda b: b.op("Add", [b.x, b.op("Expand", [
            b.op("ReduceMean", [b.x, b.store([-1])]), b.store([1, 1, WIDTH])])]),
        "repeats an activation outside of an attention",
    ),
    "some tokens": (
        lambda b: b.op("Slice", [b.op("Slice", [b.x, b.store([0]), b.store([2]), b.store([1])]),
                                 b.store([0]), b.store([999]), b.store([1])]),
        "logits have the shape .1, 2, 24.",
    ),
    "tokens twice": (
        lambda b: b.op("Slice", [b.op("Concat", [b.x, b.x], axis=1), b.store([0]), b.tokens(),
                                 b.store([1])]),
        "puts tokens together outside of an attention",
    ),
    "split tokens": (
        lambda b: b.op("Split", [b.op("Reshape", [b.linear(b.x, 2 * WIDTH),
                                                  b.store([1, -1, WIDTH])])],
                       outputs=2, axis=1, num_outputs=2)[0],
        "splits the tokens",
    ),
    "other tokens": (
        lambda b: b.op("Slice", [b.op("Reshape", [b.linear(b.x, 2 * WIDTH),
                                                  b.store([1, -1, WIDTH])]),
                                 b.store([0]), b.tokens(), b.store([1])]),
        "takes some of the tokens only",
    ),
    "shifted": (
        lambda b: b.op("Slice", [b.x, b.store([-1]), b.store([-9999]), b.store([1]),
                                 b.store([-1])]),
        "takes every other feature, or none|takes some of the tokens only",
    ),
    "mean of tokens": (
        lambda b: b.op("Add", [b.x, b.op("ReduceMean", [b.x, b.store([1])])]),
        "is a mean of something else than a token's channels",
    ),
    "norm of tokens": (
        lambda b: b.op("LayerNormalization", [b.x, b.weight(11, WIDTH)], axis=1),
        "is a norm over something else than a token's channels|cannot be followed",
    ),
    "scaled product": (
        lambda b: b.op("Reshape", [b.op("Gemm", [b.op("Reshape", [b.x, b.store([-1, WIDTH])]),
                                                 b.weight(WIDTH, WIDTH)], alpha=2.0),
                                   b.store([1, -1, WIDTH])]),
        "with alpha = 2.0 cannot be compiled",
    ),
    "product of three axes": (
        lambda b: b.op("MatMul", [b.x, b.weight(1, WIDTH, WIDTH)]),
        "no product of an activation and a matrix",
    ),
    "widths that do not fit": (
        lambda b: b.op("MatMul", [b.x, b.weight(48, WIDTH)]),
        r"node_MatMul_1 .ai.onnx::MatMul. cannot take operands of these shapes "
        r"\(Gather.0.0: \[1, 5, 64\], stored.1: \[48, 64\]\)",
    ),
    "too few operands": (
        lambda b: b.ms("FastGelu", []),
        "the graph cannot be imported .IndexError|cannot be followed|do not depend on input_ids",
    ),
    "too few operands of a product": (
        lambda b: b.op("MatMul", [b.x]),
        "cannot be followed .LookupError: operand 1 is missing",
    ),
    "rows across blocks": (
        lambda b: b.ms("GatherBlockQuantized", [b.store(np.zeros((32, WIDTH // 2), np.uint8)),
                                                "input_ids", b.weight(1, WIDTH)],
                       block_size=32, quantize_axis=0),
        "with blocks across rows cannot be compiled",
    ),
    "computed codes": (
        lambda b: b.ms("GatherBlockQuantized", [
            b.op("Add", [b.store(np.zeros((32, 32), np.uint8)), b.store(np.uint8(0))]),
            "input_ids", b.weight(32, 4)], block_size=16),
        "which is not stored",
    ),
    "parts of features": (
        lambda b: b.op("Gather", [b.x, b.store(np.zeros(WIDTH, np.int64))], axis=2),
        "picks parts of an activation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_graph(case, tmp_path):
    write, match = CASES[case]
    b = Builder()
    y = write(b)
    for node in b.nodes:  # a None stands for an attribute to be left out
        kept = [a for a in node.attribute if a.type]
        del node.attribute[:]
        node.attribute.extend(kept)
    with pytest.raises(InputError, match=match) as caught:
        _import(b, y, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model.onnx") in str(caught.value)


def test_ops_and_domains_with_control_characters(tmp_path):
    b = Builder()
    path = b.save(b.op("Frob\x1b[31m", [b.x], domain="own\n\x1b[2J"), tmp_path)
    model = onnx.load_model(path)
    for message in ("the file states no opset of own", "unknown op Frob"):
        with pytest.raises(InputError, match=message) as caught:
            import_onnx(path, 64)
        assert str(caught.value).isprintable()
        model.opset_import.append(onnx.helper.make_opsetid("own\n\x1b[2J", 1))
        path.write_bytes(model.SerializeToString())
