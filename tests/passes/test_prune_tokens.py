"""What prune-tokens refuses, and that families of all kinds mean what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import morendo
from morendo.frontend import load_model
from morendo.ir.dialect import attrs_of
from morendo.ir.errors import CompileError, InputError
from morendo.ir.evaluate import evaluate
from morendo.ir.invariants import calls
from morendo.ir.text import parse_module
from morendo.passes.base import Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.prune_tokens import PruneTokens
from tests.frontend.families import FAMILIES, VOCABULARY, save_config

GOLDEN = Path(__file__).parent.parent / "golden" / "passes" / "prune_tokens" / "four_layers.py"
IDS = np.random.default_rng(1).integers(3, VOCABULARY, size=40)


def four_layers() -> str:
    return GOLDEN.read_text(encoding="utf-8").partition("\n# after\n")[0]


def prune(text: str, spec: str = "prune-tokens{ratio=0.2}") -> tvm.IRModule:
    return run_passes(parse_module(text), parse_spec(spec, known_passes()), Context())[0]


@pytest.mark.parametrize("ratio", [-0.1, 0.51, float("nan"), float("inf")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(
        InputError, match="prune-tokens: the ratio is out of range .got .*, need 0 t"
    ):
        PruneTokens(ratio=ratio)


@pytest.mark.parametrize("prunings", [0, 9])
def test_a_number_of_prunings_out_of_range_is_refused(prunings: int) -> None:
    with pytest.raises(InputError, match=f"prunings is out of range .got {prunings}, need 1 to 8."):
        PruneTokens(ratio=0.1, prunings=prunings)


def test_an_unknown_importance_is_refused() -> None:
    with pytest.raises(InputError, match="no such importance of tokens .got 'l', need one of fir"):
        PruneTokens(ratio=0.1, importance="l")


@pytest.mark.parametrize(("prunings", "layers"), [(1, [2]), (2, [1, 2]), (3, [1, 2]), (8, [1, 2])])
def test_neither_the_first_layer_nor_the_last_prunes(prunings: int, layers: list[int]) -> None:
    module = prune(four_layers(), f"prune-tokens{{ratio=0.2,prunings={prunings}}}")
    found = [attrs_of(c) for name, c in calls(module) if name.endswith("attention")]
    assert [attrs["layer"] for attrs in found if attrs["importance"]] == layers
    dropped = [attrs_of(c)["dropped"] for name, c in calls(module) if name == "prune_tokens"]
    assert np.prod([1 - d / 10_000 for d in dropped]) == pytest.approx(0.8, abs=1e-4)


def test_a_shallow_model_is_refused() -> None:
    lines = [line for line in four_layers().split("\n") if "layer=0" not in line]
    text = "\n".join(lines).replace("(lv2, lv, weights=", "(lv, lv, weights=")
    lines = [line for line in text.split("\n") if "layer=1" not in line]
    text = "\n".join(lines).replace("(lv5, lv3, weights=", "(lv3, lv3, weights=")
    with pytest.raises(CompileError, match="the model is too shallow.*got 2 attentions, need 3"):
        prune(text)


@pytest.mark.parametrize(
    ("attribute", "what"),
    [("window=5", "has an attention window"), ('alibi="slopes"', "has a bias by distance")],
)
def test_layers_that_count_distances_are_refused(attribute: str, what: str) -> None:
    text = four_layers().replace("layer=2,", f"layer=2, {attribute},")
    with pytest.raises(CompileError, match=f"the layer {what}.* at layer 2"):
        prune(text)
    first = four_layers().replace("layer=0,", f"layer=0, {attribute},")  # which has all tokens
    assert any(name == "prune_tokens" for name, _ in calls(prune(first)))


def test_a_second_residual_is_refused() -> None:
    """Layer 2 reads what came before layer 1 again, so that two tensors hold a token."""
    text = four_layers().replace("(lv8, lv6, weights=", "(lv8, lv, weights=")
    assert text != four_layers()
    with pytest.raises(CompileError, match="no single tensor between .* at layer 1"):
        prune(text)


def test_tokens_are_pruned_once() -> None:
    with pytest.raises(CompileError, match="not tokens-whole before prune-tokens.*pruned once"):
        prune(four_layers(), "prune-tokens{ratio=0.1},prune-tokens{ratio=0.1}")


def test_what_cannot_prune_is_refused(tmp_path: Path) -> None:
    save_config(*FAMILIES["llama"], tmp_path / "model")
    options: dict[str, Any] = {"out": tmp_path / "out", "bits": "f32", "prune_tokens": 0.1}
    with pytest.raises(InputError, match="write prune-tokens{ratio=N} in --passes"):
        morendo.compile(tmp_path / "model", passes="normalize", **options)
    with pytest.raises(InputError, match="ratio is out of range .got 1, need 0 to 0.5."):
        morendo.compile(tmp_path / "model", **{**options, "prune_tokens": 1})
    kind, small = FAMILIES["llama"]
    save_config(kind, {**small, "num_hidden_layers": 3}, tmp_path / "deeper")
    for chunk in (2, 4):
        with pytest.raises(CompileError, match=f"less than one token of a chunk .* of {chunk}"):
            morendo.compile(tmp_path / "deeper", chunk=chunk, **options)


def _case(family: str) -> Any:
    fast = family in ("codegen", "qwen3")
    return pytest.param(family, marks=[] if fast else [pytest.mark.slow])


@pytest.mark.parametrize(
    "family",
    [_case(f) for f in ("apertus", "codegen", "cohere", "gpt2", "gpt_neox", "nemotron", "qwen3")],
)
def test_families_compute_what_their_graphs_mean(family: str, tmp_path: Path) -> None:
    """Branches side by side, norms of heads, positions from a table, ops that stay generic."""
    kind, small = FAMILIES[family]
    save_config(kind, {**small, "num_hidden_layers": 4}, tmp_path / "model")
    artifact = morendo.compile(
        tmp_path / "model",
        out=tmp_path / "artifact",
        bits="f32",
        chunk=16,
        context=48,
        prune_tokens=0.4,
        prune_importance="received" if family == "qwen3" else "first",
    )
    weights, cache = load_model(tmp_path / "model").weights, {}
    module = parse_module((artifact / "graph.py").read_text(encoding="utf-8"))

    def meant(function: str, start: int, end: int) -> np.ndarray:
        inputs = [IDS[None, start:end], np.arange(start, end)[None]]
        return evaluate(module[function], inputs, weights, cache=cache)[0]

    meant("prefill", 0, 16)
    want = [meant("prefill", 16, 23), meant("decode", 23, 24), meant("score", 24, 28)]
    want.append(meant("prefill", 28, 38))
    with morendo.load(artifact) as session:
        run = session.executor
        got = [run.prefill(IDS[:23]).copy(), run.decode(int(IDS[23])).copy()]
        got += [run.score(IDS[24:28]), run.prefill(IDS[28:38])]
    for one, other in zip(got, want, strict=True):
        assert np.abs(one - other).max() < 2e-5 * np.abs(other).max()
    assert cache[3][0].shape[1] < cache[2][0].shape[1] < cache[0][0].shape[1] == 38
