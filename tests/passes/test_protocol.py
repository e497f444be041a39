"""Pass specs, reports, invariants and dumps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import tvm

from morendo.ir.dump import Dump
from morendo.ir.errors import CompileError, InputError
from morendo.ir.text import parse_module, print_module
from morendo.passes.base import Context, Pass, parse_spec
from morendo.passes.pipeline import known_passes, run_passes

GOLDEN = Path(__file__).parent.parent / "golden" / "passes" / "quantize_weights" / "llama.py"


@pytest.fixture
def module() -> tvm.IRModule:
    return parse_module(GOLDEN.read_text().partition("\n")[2].partition("\n# after\n")[0])


def test_spec_goes_round() -> None:
    text = "quantize-weights{bits=8,group_size=64},fuse-linears"
    assert ",".join(step.spec for step in parse_spec(text, known_passes())) == text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "pass spec is empty"),
        (
            "no-such-pass",
            r"unknown pass \(got 'no-such-pass'\); known passes: analyze-group-ranges, cal",
        ),
        ("fuse-linears{x=1}", r"fuse-linears: unknown option \(got 'x'\); options: none"),
        ("quantize-weights{group_size=many}", r"group_size has a wrong value \(got 'many'"),
        ("quantize-weights{group_size}", r"group_size has a wrong value \(got ''"),
        ("normalize,", "pass spec ends with a comma"),
        ("quantize-weights{bits=3}", r"quantize-weights: option bits: unknown bits \(got '3'"),
        ("quantize-weights{head_bits=x}", r"quantize-weights: option head_bits: unknown bits"),
        ("quantize-weights{group_size=7}", r"option group_size: .* \(got 7"),
        ("fuse-linears;normalize", "pass spec does not parse"),
        ("quantize-weights{bits=4", "pass spec does not parse"),
    ],
)
def test_bad_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_spec(spec, known_passes())


def test_passes_out_of_order_are_refused(module: tvm.IRModule) -> None:
    steps = parse_spec("specialize-phases", known_passes())
    with pytest.raises(CompileError, match=r"not fused before specialize.* \(morendo.linear"):
        run_passes(module, steps, Context())


def test_a_pass_that_breaks_its_promise_is_caught(module: tvm.IRModule) -> None:
    @dataclass(frozen=True)
    class Nothing(Pass):
        """Promise what it does not do."""

        name: ClassVar[str] = "nothing"
        gives: ClassVar[tuple[str, ...]] = ("specialized",)

        def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
            return module

    with pytest.raises(CompileError, match="not specialized after nothing"):
        run_passes(module, [Nothing()], Context())
    assert "nothing" not in known_passes()


def test_passes_leave_their_input_alone(module: tvm.IRModule) -> None:
    before = print_module(module)
    run_passes(module, parse_spec("quantize-weights,fuse-linears", known_passes()), Context())
    assert print_module(module) == before


def test_dumps_are_numbered_and_parse(module: tvm.IRModule, tmp_path: Path) -> None:
    steps = parse_spec("quantize-weights,fuse-attention", known_passes())
    run_passes(module, steps, Context(), dump=Dump(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00_input.py",
        "01_quantize_weights.json",
        "01_quantize_weights.py",
        "02_fuse_attention.json",
        "02_fuse_attention.py",
        "index.json",
    ]
    report = json.loads((tmp_path / "02_fuse_attention.json").read_text())
    assert report["counts"] == {"attentions fused": 1}
    parse_module((tmp_path / "02_fuse_attention.py").read_text())


def test_padding_is_reported(module: tvm.IRModule) -> None:
    context = Context()
    run_passes(module, parse_spec("quantize-weights{group_size=128}", known_passes()), context)
    assert any("K=64 is no multiple of 128" in why for _, why in context.report.misses)
