"""Ops that TVM lowers stay correct when they are scheduled."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from morendo.codegen.cpu.kernels import elementwise
from tests.numerics.kernel_runner import compile_function, poisoned
from tests.numerics.linear_cases import REFERENCE_ACTIVATIONS
from tests.numerics.test_small_kernels import ISAS, random

GENERIC = {
    "add": (lambda x: relax.op.add(x, relax.const(1.5)), lambda x: x + 1.5),
    "gelu": (relax.op.nn.gelu, REFERENCE_ACTIVATIONS["gelu"]),
    "sum": (lambda x: relax.op.sum(x, axis=-1), lambda x: x.sum(-1)),
    "transpose": (lambda x: relax.op.permute_dims(x, (0, 2, 1)), lambda x: x.transpose(0, 2, 1)),
    "concat": (
        lambda x: relax.op.concat([x, relax.const(np.ones((1, 1, 48), "float32"))], axis=1),
        lambda x: np.concatenate([x, np.ones((1, 1, 48))], axis=1),
    ),
    "slice": (
        lambda x: relax.op.strided_slice(x, [2], [1], [33], [2]),
        lambda x: x[:, :, 1:33:2],
    ),
    "softmax": (
        relax.op.nn.softmax,
        lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    ),
}
EXTRA = {"concat": [np.ones((1, 1, 48), np.float32)]}


@ISAS
@pytest.mark.parametrize("name", GENERIC)
@pytest.mark.parametrize("max_tokens", [1, 256])
def test_generic_ops_stay_correct_when_scheduled(isa, name, max_tokens):
    op, expected = GENERIC[name]
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([1, n, 48], "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(op(x)))
    module = relax.transform.LegalizeOps()(builder.get())
    functions = [f for f in module.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len(functions) == 1
    function = elementwise.schedule_generic(functions[0], isa, max_tokens=max_tokens)
    kernel = compile_function(function.with_attr("global_symbol", f"generic_{name}"), isa)
    data = random(1, 1, min(max_tokens, 37), 48)
    want = expected(data.astype(np.float64))
    out = poisoned(want.shape)
    kernel(data, *EXTRA.get(name, []), out)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
