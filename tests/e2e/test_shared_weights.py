"""Two artifacts with one file of weights; one reads the prompt, the other answers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import morendo
from morendo.cli import main
from morendo.ir.errors import ArtifactError, CompileError, InputError
from morendo.runtime import split
from morendo.runtime.session import Session
from morendo.targets import find_target
from tests.e2e.conftest import TINY

EMULATED = "hexagon:v67"
needs_emulator = pytest.mark.skipif(
    shutil.which(find_target(EMULATED).device.emulator) is None, reason="there is no emulator here"
)


def answers(prompt: list[int], artifact: Path, prefill_on: Path | None = None) -> list[int]:
    with morendo.load(artifact, prefill_on=prefill_on) as session:
        options = {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True}
        return list(session.generate(prompt, **options))


def share(of: Path, target: str, out: Path) -> Path:
    """An artifact with the weights of another, and that they are the same file."""
    made = morendo.compile(TINY, target=target, weights_of=of, chunk=32, out=out)
    assert (made / "weights.bin").samefile(of / "weights.bin")
    assert (made / "graph.py").read_text() == (of / "graph.py").read_text()
    assert main(["verify", str(made)]) == 0
    return made


def test_an_artifact_shares_the_weights_of_another(
    compile_tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = compile_tiny(target="native", bits=4, cache_bits=8)
    second = share(first, "native", tmp_path / "second")
    prompt = np.random.default_rng(0).integers(2, 512, 40).tolist()
    assert answers(prompt, second, first) == answers(prompt, first)
    capsys.readouterr()
    command = ["run", str(second), "import os", "--prefill-on", str(first), "--max-tokens", "4"]
    assert main(command) == 0
    together = capsys.readouterr().out
    assert main(["run", str(first), "import os", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == together


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("target", ["native", "x86-64-v3", "arm"])
def test_an_npu_reads_the_prompt_and_a_cpu_answers(
    target: str, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """By a prompt without a near tie, as in test_hexagon.py; codes of the cache are signed or not,
    as the dot instructions of the two want them.
    """
    npu = compile_tiny(target=EMULATED, bits=4)
    cpu = share(npu, target, tmp_path / "cpu")
    with morendo.load(cpu, prefill_on=npu) as session:
        prompt = session.encode("import os")
        assert "runs it here" in session.prefill_emulation
    assert answers(prompt, cpu, npu) == answers(prompt, npu)


def test_what_cannot_be_shared_is_refused(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    first = compile_tiny(target="native", bits=4, cache_bits=8)
    for options, match in (
        ({"bits": 8}, r"are as they are \(got --bits beside --weights-of\); leave"),
        ({"cache_bits": 8, "context": 64}, r"as they are \(got --cache-bits, --context beside"),
    ):
        with pytest.raises(InputError, match=match):
            morendo.compile(TINY, weights_of=first, out=tmp_path / "out", **options)
    with pytest.raises(CompileError, match=r"can have them \(.*got 32 lanes.*compile for hexagon"):
        morendo.compile(TINY, target=EMULATED, weights_of=first, out=tmp_path / "out")
    nibbles = compile_tiny(target="native", bits=4, readings="4")
    with pytest.raises(CompileError, match=r"read 4-bit codes from planes \(got q4g32nc\)"):
        morendo.compile(TINY, target="cuda:sm_80", weights_of=nibbles, out=tmp_path / "out")
    with pytest.raises(InputError, match="cannot take the place of the one whose weights"):
        morendo.compile(TINY, weights_of=first, out=first)
    with pytest.raises(InputError, match="given by its path"):
        morendo.compile(TINY, weights_of="", out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="does not exist"):
        morendo.compile(TINY, weights_of=tmp_path / "none", out=tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(first, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["model"]["digests"]["model.norm.weight"] = "0" * 16
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"from another model \(model.norm.weight is not the same"):
        morendo.compile(TINY, weights_of=other, out=tmp_path / "out")
    with (other / "weights.bin").open("r+b") as file:
        file.write(b"\xff\x00\xff\x00")
    with pytest.raises(ArtifactError, match="weights.bin is damaged"):
        morendo.compile(TINY, weights_of=other, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_reader_lacks_is_said_of_it(
    compile_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_tiny(target="native", bits=4, cache_bits=8)
    second = share(first, "native", tmp_path / "second")

    def without_gpu(directory: Path, *args: Any, **options: Any) -> Any:
        raise ArtifactError("this artifact needs a GPU", hint="buy one")

    monkeypatch.setattr(split, "make_executor", without_gpu)
    with pytest.raises(ArtifactError, match=f"needs a GPU at {re.escape(str(first))}; buy one"):
        morendo.load(second, prefill_on=first)


def test_a_model_that_drops_tokens_cannot_hand_its_text_over(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    first = compile_tiny(target="native", bits=4, cache_bits=8, prune_tokens=0.2)
    second = share(first, "native", tmp_path / "second")
    with pytest.raises(InputError, match="drops tokens of prompts.*--prune-tokens"):
        morendo.load(second, prefill_on=first)


def test_an_artifact_reads_no_prompts_for_a_stranger(
    compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    first = compile_tiny(target="native", bits=4, cache_bits=8)
    other = compile_tiny(target="native", bits=4, cache_bits=16)
    with pytest.raises(ArtifactError, match=r"its graph.py is not the same\).*--weights-of"):
        morendo.load(first, prefill_on=other)
    with pytest.raises(InputError, match="the reference executor reads its prompts itself"):
        Session(first, executor="python", prefill_on=first)
