"""`compile --check`: models that are what transformers computes, and models that are not."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM

import morendo
from morendo.float_check import check_import, open_original
from morendo.frontend import load_model
from morendo.frontend.weights import WeightStore
from morendo.ir import reference_ops
from morendo.ir.errors import CompileError, InputError
from morendo.progress import PlainProgress, Progress
from tests.frontend.families import make_model, save_model
from tests.frontend.tiny_gguf import save_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_model("llama", folder)
    return folder


@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_a_right_model_agrees(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path)
    found = check_import(load_model(tmp_path), open_original(tmp_path, None), Progress())
    assert found.good
    assert found.difference < 1e-4
    assert (found.same_top, found.tokens) == (17, 17)


def _compile_refused(model: Path, out: Path, said: str) -> None:
    with pytest.raises(CompileError, match=said) as caught:
        morendo.compile(model, out=out / "artifact", check=True)
    assert "\n" not in str(caught.value)
    assert not list(out.iterdir())


def test_a_wrong_rope_is_refused(llama: Path, tmp_path: Path, monkeypatch) -> None:
    rope = reference_ops.rope
    monkeypatch.setattr(reference_ops, "rope", lambda x, p, f, *rest: rope(x, p, 1.05 * f, *rest))
    _compile_refused(llama, tmp_path, r"something else than transformers.*top token \d+ of 17")


def test_a_wrong_weight_is_refused(llama: Path, tmp_path: Path, monkeypatch) -> None:
    loaded, get = load_model(llama), WeightStore.get

    def wrong(store: WeightStore, name: str) -> np.ndarray:
        value = get(store, name)
        other = store is loaded.weights and name == "model.layers.1.mlp.down_proj.weight"
        return np.roll(value, 1, axis=0) if other else value

    monkeypatch.setattr(WeightStore, "get", wrong)
    with pytest.raises(CompileError, match="please report it with its config.json"):
        check_import(loaded, open_original(llama, None), Progress())


def test_numbers_that_are_none_are_refused(llama: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reference_ops, "gated", lambda gate, up, kind: gate * np.nan)
    _compile_refused(llama, tmp_path, "logits differ by up to nan")


def test_a_model_that_transformers_cannot_run_is_said(
    llama: Path, tmp_path: Path, monkeypatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise ValueError("no\nsense")

    loaded = load_model(llama)
    monkeypatch.setattr(LlamaForCausalLM, "forward", fails)
    with pytest.raises(CompileError, match=r"own model cannot be run \(ValueError\)"):
        check_import(loaded, open_original(llama, None), Progress())


def test_a_gguf_file_agrees_which_is_said_in_one_line(tmp_path: Path) -> None:
    model, said = tmp_path / "m.gguf", io.StringIO()
    save_gguf(make_model("llama"), model)
    check_import(load_model(model), open_original(model, None), PlainProgress(said))
    line = r"check: logits within \S+ of transformers \(they reach \S+\), same top token 17 of 17"
    assert re.search(f"^{line}$", said.getvalue(), re.MULTILINE)


def test_an_onnx_model_has_nothing_to_be_checked_against(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="cannot run an ONNX model.*exported from"):
        morendo.compile(tmp_path / "m.onnx", out=tmp_path / "artifact", check=True)
