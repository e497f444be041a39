"""Every activation that transformers knows: a model with it is lowered and calibrated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from tokenizers import Tokenizer
from transformers import AutoConfig
from transformers.activations import ACT2CLS

import morendo
from morendo.codegen.build import lower_module
from morendo.codegen.lowering import Options
from morendo.frontend import load_model, torch_export
from morendo.frontend.families import check_config
from morendo.ir.errors import CompileError
from morendo.ir.evaluate import evaluate
from morendo.ir.text import parse_module, print_module
from morendo.passes.base import Context, parse_spec
from morendo.passes.normalize import Normalize
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.streaming.torch_ops import TorchFunction
from morendo.targets import find_target
from tests.frontend.families import COMMON, save_config

TINY = Path(__file__).parent.parent / "models" / "tiny_llama"
GOLDEN = Path(__file__).parent.parent / "golden" / "passes" / "normalize" / "llama.py"
ACCEPTED = (
    *("gelu_10", "gelu_python", "hardswish", "laplace", "leaky_relu", "mish", "prelu"),
    *("quick_gelu", "relu2", "relu6", "sqrtsoftplus", "xielu"),
)
# Made of the same ops as others, or of one op that families have: not worth a second each time.
ALIKE = (
    *("gelu", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"),
    *("linear", "relu", "sigmoid", "silu", "swish", "tanh"),
)
LOWERED = (
    "normalize,quantize-weights{bits=f32},fuse-attention,fuse-linears,specialize-phases,"
    "quantize-activations"
)


def _options(activation: str) -> dict[str, object]:
    return {"num_key_value_heads": 2, "num_hidden_layers": 1, "hidden_act": activation}


def _normalized(activation: str) -> tvm.IRModule:
    config = AutoConfig.for_model("llama", **{**COMMON, **_options(activation)})
    check_config(config, "here")
    module = torch_export.export(torch_export.build_empty(config))
    return Normalize().apply(module, Context())


def test_every_activation_is_accepted() -> None:
    assert sorted([*ACCEPTED, *ALIKE]) == sorted(ACT2CLS)


@pytest.mark.parametrize(
    "activation", [*ACCEPTED, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)]
)
def test_accepted_activations_can_be_calibrated_and_lowered(activation: str) -> None:
    module = _normalized(activation)
    assert TorchFunction(module["main"]).unknown == []
    machine = find_target("native")
    recipe = machine.recipe(parse_spec(LOWERED, known_passes()))
    module, _ = run_passes(module, recipe, Context(layout=machine.layout))
    _, plan = lower_module(module, machine, Options(chunk=32, context=64, half_cache=False))
    assert plan.functions


@pytest.mark.parametrize("activation", ["gelu_10", "mish", "prelu"])
def test_activations_that_are_imported_here(activation: str, tmp_path: Path) -> None:
    model = save_config("llama", _options(activation), tmp_path)
    loaded = load_model(tmp_path)
    module = Normalize().apply(loaded.module, Context(weights=loaded.weights))
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy()
    got = evaluate(module["main"], [ids, np.arange(8)[None]], loaded.weights)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_an_unknown_op_is_named_with_its_place() -> None:
    """Ops that TVM imports and nothing here knows."""
    module = parse_module(GOLDEN.read_text().partition("\n")[2].partition("\n# after\n")[0])
    text = print_module(module).replace("R.nn.silu(", "R.cosh(")
    with pytest.raises(CompileError, match="op relax.cosh is not among .* at after .*; give a"):
        Normalize().apply(parse_module(text), Context())


def test_squared_relu_compiles_under_a_budget(tmp_path: Path) -> None:
    """An activation of generic ops goes through calibration, kernels and the runtime."""
    path = tmp_path / "model"
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    model = save_config("llama", {**_options("relu2"), **sizes}, path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, path)
    text = tmp_path / "text.txt"
    text.write_text("An assignment binds names to values; a call gives a value back.\n" * 120)
    artifact = morendo.compile(
        path,
        out=tmp_path / "artifact",
        chunk=32,
        average_bits=3.5,
        calibrate=text,
        calibration_windows=2,
        tuning_steps=0,
    )
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    # The text's own tokens: random weights say little about others once they are rounded for these.
    ids = np.array(tokenizer.encode(text.read_text()).ids[:33], np.int64)
    with torch.no_grad():
        want = model(torch.from_numpy(ids[None])).logits[0].numpy()
    with morendo.load(artifact) as session:
        got = session.logits(ids)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) < 0.5 * np.linalg.norm(want)
