"""Every generic op that a model may have: numpy, torch and the scheduled kernel agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op

from morendo.codegen.cpu.kernels.elementwise import schedule_generic
from morendo.ir.evaluate import Interpreter
from morendo.ir.evaluate_dialect import State
from morendo.ir.generic_ops import GENERIC
from morendo.ir.text import bindings_of
from morendo.passes.streaming.torch_ops import TORCH_RULES
from tests.numerics.kernel_runner import native_isas, target_of

N, C = 5, 16
X = np.random.default_rng(3).normal(size=(1, N, C)).astype(np.float32)
X[0, 0, :4] = 0.0, 1.0, -2.5, 30.0
Make = Callable[[Any], Any]
HALF = relax.const(0.5, "float32")
ROW = relax.const(np.linspace(0.5, 2, C).astype(np.float32))


def _positive(make: Make) -> Make:
    return lambda x: make(op.add(op.abs(x), HALF))


SAMPLES: dict[str, Make] = {
    "abs": op.abs,
    "add": lambda x: op.add(x, ROW),
    "astype": lambda x: op.astype(op.floor(x), "int32"),
    "broadcast_to": lambda x: op.broadcast_to(op.mean(x, [2], True), [1, N, 3]),
    "ceil": op.ceil,
    "clip": lambda x: op.clip(x, -0.25, 0.75),
    "concat": lambda x: op.concat([x, op.negative(x)], 2),
    "cos": op.cos,
    "divide": lambda x: op.divide(x, ROW),
    "equal": lambda x: op.equal(op.floor(x), op.ceil(x)),
    "erf": op.erf,
    "exp": lambda x: op.exp(op.minimum(x, ROW)),
    "expand_dims": lambda x: op.expand_dims(x, [2, 0]),
    "floor": op.floor,
    "full": lambda x: op.add(x, op.full([1, N, C], HALF, "float32")),
    "gather_elements": lambda x: op.gather_elements(
        x, op.astype(op.sign(op.square(x)), "int64"), 2
    ),
    "greater": lambda x: op.greater(x, ROW),
    "greater_equal": lambda x: op.greater_equal(x, op.floor(x)),
    "less": lambda x: op.less(x, ROW),
    "less_equal": lambda x: op.less_equal(x, ROW),
    "log": _positive(op.log),
    "logical_not": lambda x: op.logical_not(op.greater(x, HALF)),
    "matmul": lambda x: op.matmul(op.reshape(x, [1, N, 4, 4]), op.reshape(x, [1, N, 4, 4])),
    "max": lambda x: op.max(x, [2]),
    "maximum": lambda x: op.maximum(x, ROW),
    "mean": lambda x: op.mean(x, [-1], True),
    "min": lambda x: op.min(x, [2], True),
    "minimum": lambda x: op.minimum(x, HALF),
    "multiply": lambda x: op.multiply(x, ROW),
    "negative": op.negative,
    "nn.gelu": op.nn.gelu,
    "nn.gelu_tanh": op.nn.gelu_tanh,
    "nn.layer_norm": lambda x: op.nn.layer_norm(x, ROW, ROW, [-1], 1e-5),
    "nn.leakyrelu": lambda x: op.nn.leakyrelu(x, 0.1),
    "nn.relu": op.nn.relu,
    "nn.silu": op.nn.silu,
    "nn.softmax": lambda x: op.nn.softmax(x, -1),
    "nn.softplus": lambda x: op.nn.softplus(x, 1.5, 20.0),
    "not_equal": lambda x: op.not_equal(op.floor(x), op.ceil(x)),
    "permute_dims": lambda x: op.permute_dims(x, [0, 2, 1]),
    "power": _positive(lambda x: op.power(x, ROW)),
    "repeat": lambda x: op.repeat(x, 2, 2),
    "reshape": lambda x: op.reshape(x, [N, 2, C // 2]),
    "rsqrt": _positive(op.rsqrt),
    "sigmoid": op.sigmoid,
    "sign": op.sign,
    "sin": op.sin,
    "split": lambda x: op.split(x, [3, 7], 2),
    "sqrt": _positive(op.sqrt),
    "square": op.square,
    "squeeze": lambda x: op.squeeze(x, [0]),
    "stack": lambda x: op.stack([x, op.negative(x)], 3),
    "strided_slice": lambda x: op.strided_slice(x, [2], [1], [C], [2]),
    "subtract": lambda x: op.subtract(x, ROW),
    "sum": lambda x: op.sum(x, [2], True),
    "take": lambda x: op.take(x, relax.const(3, "int64"), 2),
    "tanh": op.tanh,
    "tile": lambda x: op.tile(x, [1, 1, 3]),
    "variance": lambda x: op.variance(x, [2], True),
    "where": lambda x: op.where(op.greater(x, HALF), x, op.square(x)),
    "zeros": lambda x: op.maximum(x, op.zeros([1, N, C], "float32")),
}


@pytest.fixture(scope="module")
def functions() -> dict[str, relax.Function]:
    made = {}
    for name, make in SAMPLES.items():
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType([1, N, C], "float32"))
        with builder.function("main", [x]):
            builder.emit_func_output(builder.emit(builder.normalize(make(x))))
        made[name] = builder.finalize()["main"]
    return made


@pytest.fixture(scope="module")
def machine(functions: dict[str, relax.Function]) -> relax.VirtualMachine:
    """All samples compiled at once, each kernel with the schedule that artifacts get."""
    isa = native_isas()[0]
    names = {name: name.replace(".", "_") for name in functions}
    module = tvm.IRModule({n: functions[k].with_attr("global_symbol", n) for k, n in names.items()})
    module = relax.transform.LegalizeOps()(module)
    for var, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            scheduled = schedule_generic(function.without_attr("global_symbol"), isa, N)
            module[var] = scheduled
    return relax.VirtualMachine(tvm.compile(module, target=target_of(isa)), tvm.cpu())


def run(function: relax.Function, x: Any, rules: dict[str, Any]) -> Any:
    interpreter = Interpreter(State({}), rules)  # type: ignore[arg-type]
    interpreter.bind(function.params[0], x)
    for binding in bindings_of(function):
        interpreter.bind(binding.var, interpreter.value(binding.value))
    return interpreter.value(function.body.body)


def parts(value: Any) -> list[np.ndarray]:
    items = value if isinstance(value, tuple | list) or hasattr(value, "__len__") else [value]
    items = [value] if hasattr(value, "shape") else list(items)
    return [np.asarray(i.numpy() if hasattr(i, "numpy") else i) for i in items]


def test_every_op_has_a_sample_and_can_be_calibrated() -> None:
    assert set(SAMPLES) == set(GENERIC)
    assert set(GENERIC) <= set(TORCH_RULES)


@pytest.mark.parametrize("name", SAMPLES)
def test_three_ways_agree(name: str, functions: Any, machine: Any) -> None:
    want = parts(run(functions[name], X, {}))
    in_torch = parts(run(functions[name], torch.from_numpy(X), TORCH_RULES))
    compiled = parts(machine[name.replace(".", "_")](tvm.runtime.tensor(X)))
    for other in (in_torch, compiled):
        for got, expected in zip(other, want, strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
