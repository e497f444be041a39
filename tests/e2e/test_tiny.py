"""The whole pipeline on the small trained llama: every format, both executors, every phase."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.cli.compile_command import _summarize
from morendo.ir.errors import ArtifactError, CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.layout import TileLayout
from morendo.runtime.artifact import read_plan, read_weight_list
from morendo.runtime.session import Session
from morendo.targets import find_target, known_targets
from tests.e2e.conftest import SAME_KERNELS, TINY, target_cases
from tests.e2e.quality import kl_divergence, round_linears, torch_logits

# Relative error of logits against float32 torch: storage in half precision, and int8 activations
# (one part in 254 of a group's maximum, times the square root of the layers, roughly).
TOLERANCE = {"f32": 2e-5, "f16": 5e-3}


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(2, 512, size=77)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("bits", ["f32", "f16"])
def test_float_artifacts_match_torch(
    bits: str, compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    with morendo.load(compile_tiny(bits=bits)) as session:
        got = session.logits(ids)
    assert relative_error(got, torch_logits(tiny_torch, ids)) < TOLERANCE[bits]


TARGETS = [target.name for target in known_targets() if target.name not in SAME_KERNELS]


@pytest.mark.parametrize(
    ("bits", "target"),
    [
        *((4, target) for target in TARGETS),
        *(pytest.param(8, *case.values, marks=case.marks) for case in target_cases(TARGETS)),
    ],
)
def test_quantized_artifacts_match_torch_with_dequantized_weights(
    bits: int, target: str, compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    """What remains is the error of int8 activations: below 2 % of the logits' norm."""
    try:
        find_target(target).prepared()
    except CompileError as error:
        pytest.skip(str(error))
    artifact = compile_tiny(bits=bits, target=target, search_scales=False)
    model = copy.deepcopy(tiny_torch)
    round_linears(model, lambda name: "q8g32" if "embed" in name else f"q{bits}g32")
    try:
        with morendo.load(artifact) as session:
            got = session.logits(ids)
    except ArtifactError as error:
        pytest.skip(f"compiled, but cannot run here: {error}")
    want = torch_logits(model, ids)
    assert relative_error(got, want) < 0.02
    assert kl_divergence(want, got) < 2e-3


def test_phases_agree(compile_tiny: Callable[..., Path], ids: np.ndarray) -> None:
    """Prefill in chunks, decode by tokens and score see the same text."""
    with morendo.load(compile_tiny(bits="f32")) as session:
        score = session.logits(ids)
        executor = session.executor
        executor.set_position(0)
        prefill = executor.prefill(ids[:70]).copy()
        decoded = [executor.decode(int(token)).copy() for token in ids[70:]]
    assert relative_error(prefill, score[69]) < 2e-5
    assert relative_error(np.stack(decoded), score[70:]) < 2e-5


@pytest.mark.parametrize("target", target_cases(TARGETS))
def test_a_cache_of_8_bits_is_close_to_torch(
    target: str, compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    """Integer attention alone: weights and linears are floats. Phases cut chunks alike."""
    try:
        artifact = compile_tiny(bits="f32", cache_bits=8, target=target)
    except CompileError as error:
        if "keys and values of 8 bits have no kernels for this target" not in str(error):
            raise
        pytest.skip(f"{target} has no such kernels")
    try:
        with morendo.load(artifact) as session:
            score = session.logits(ids)
            executor = session.executor
            executor.set_position(0)
            prefill = executor.prefill(ids[:70]).copy()
            decoded = [executor.decode(int(token)).copy() for token in ids[70:]]
    except ArtifactError as error:
        pytest.skip(f"compiled, but cannot run here: {error}")
    want = torch_logits(tiny_torch, ids)
    assert relative_error(score, want) < 0.01
    assert kl_divergence(want, score) < 5e-4
    assert relative_error(prefill, score[69]) < 2e-3
    assert relative_error(np.stack(decoded), score[70:]) < 2e-3


def test_a_cache_of_4_bits_loses_little(
    compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    """Phases cut chunks alike, and all of them read what the others wrote."""
    artifact = compile_tiny(bits="f32", cache_bits=4)
    with morendo.load(artifact) as session:
        score = session.logits(ids)
        executor = session.executor
        executor.set_position(0)
        prefill = executor.prefill(ids[:70]).copy()
        decoded = [executor.decode(int(token)).copy() for token in ids[70:]]
    with Session(artifact, executor="python") as session:
        assert np.array_equal(score, session.logits(ids))
    want = torch_logits(tiny_torch, ids)
    assert kl_divergence(want, score) < 0.02
    assert relative_error(prefill, score[69]) < 0.01
    assert relative_error(np.stack(decoded), score[70:]) < 0.01


def test_caches_of_codes_take_less_memory(compile_tiny: Callable[..., Path]) -> None:
    plans = [read_plan(compile_tiny(bits=4, cache_bits=bits)) for bits in (4, 8, 16, 32)]
    four, eight, half, full = (plan.cache_bytes for plan in plans)
    assert full == 2 * half
    assert 0.25 * half < four < 0.4 * half
    assert 0.5 * half < eight < 0.7 * half  # 4 bytes of scale for each head of 32 elements


@pytest.mark.parametrize("bits", ["f32", "f16", 8, 4])
def test_a_plan_says_what_it_reads(bits: str | int, compile_tiny: Callable[..., Path]) -> None:
    """A decode step reads every weight once, of the table a row."""
    artifact = compile_tiny(bits=bits)
    plan = read_plan(artifact)
    for names in plan.parameters:
        assert all(names) and len(set(names)) == len(names)
    steps = plan.functions["decode"]
    table = next(step for step in steps if step.note.endswith("embed_tokens.weight"))
    assert table.reads[0] == table.reads[-1] < plan.weights_bytes / 100
    read = sum(step.reads[0] for step in steps)
    assert 0.97 * plan.weights_bytes < read <= 1.01 * plan.weights_bytes
    with morendo.load(artifact) as session:
        assert session.step_cost.weights == sum(step.weights for step in steps) > 300_000


def test_activations_of_4_bits_run(
    compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    """Their error is larger than that of 8 bits by the size of a step, and no more."""
    want, lost = torch_logits(tiny_torch, ids), []
    for activations in (8, "mixed", 4):
        with morendo.load(compile_tiny(bits=8, activations=activations)) as session:
            score = session.logits(ids)
            assert relative_error(session.logits(ids[:1]), score[:1]) < 1e-5
        lost.append(kl_divergence(want, score))
    eight, mixed, four = lost
    assert eight < mixed <= 1.2 * four < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"bits": 8, "activations": "mixed"},
            r"activations: 4 bits for \d+ of 16 inputs",
        ),
        ({"bits": "f32", "prune_tokens": 0.3}, "prompts: 30 % of the tokens are dropped, behind"),
        ({"bits": 8}, ""),
    ],
)
def test_the_end_of_a_compilation_says_what_was_given_up(
    options: dict, said: str, compile_tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = compile_tiny(**options)
    _summarize(artifact, 1.0, weights_of=None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + bool(said)
    assert re.search(said, lines[2])


def test_a_width_that_no_cache_has_is_refused(compile_tiny: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="cache_bits is no width.*got 5, need one of 32, 16, 8, 4"):
        compile_tiny(cache_bits=5)
    with pytest.raises(InputError, match="write specialize-phases{cache_bits=N} in --passes"):
        compile_tiny(cache_bits=8, passes="normalize")


@pytest.mark.parametrize("bits", ["f32", 4])
def test_executors_agree(
    bits: str | int, compile_tiny: Callable[..., Path], ids: np.ndarray
) -> None:
    """The C runtime and the Python interpreter run the same kernels on the same plan."""
    logits = []
    for kind in ("c", "python"):
        with Session(compile_tiny(bits=bits), executor=kind) as session:
            logits.append(session.logits(ids))
    assert np.array_equal(*logits)


def test_threads_do_not_change_results(compile_tiny: Callable[..., Path], ids: np.ndarray) -> None:
    logits = []
    for threads in (1, 2, 3):
        with morendo.load(compile_tiny(bits=4), threads=threads) as session:
            logits.append(session.logits(ids))
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])


def test_lower_levels_read_fewer_bits(
    compile_tiny: Callable[..., Path], tiny_torch, ids: np.ndarray
) -> None:
    """The divergence from float grows from 4 to 3 to 2 bit: one artifact, other loop bounds."""
    want = torch_logits(tiny_torch, ids)
    divergences = []
    with morendo.load(compile_tiny(bits=4)) as session:
        for level in range(session.plan.levels):
            session.set_level(level)
            divergences.append(kl_divergence(want, session.logits(ids)))
    assert divergences == sorted(divergences)
    assert divergences[0] < 0.1 < divergences[-1]


def test_whole_codes_are_the_same_in_nibbles(
    compile_tiny: Callable[..., Path], ids: np.ndarray
) -> None:
    """Heads and tables among them; only the order of float sums may differ."""
    artifact = compile_tiny(bits=4, readings="4", embedding_bits=4)
    stored = [WeightFormat.parse(each["format"]) for each in read_weight_list(artifact)["matrices"]]
    assert stored and all(fmt.nibbles for fmt in stored)
    with morendo.load(artifact) as session:
        assert session.levels == 1
        nibbles = session.logits(ids)
    with morendo.load(compile_tiny(bits=4, embedding_bits=4)) as session:
        assert relative_error(nibbles, session.logits(ids)) < 1e-5


def test_generation_is_repeatable_and_stops(compile_tiny: Callable[..., Path]) -> None:
    with morendo.load(compile_tiny(bits=4)) as session:
        options = {"max_tokens": 24, "temperature": 0.8, "top_k": 40, "seed": 7}
        first = list(session.generate("The assignment statement", **options))
        second = list(session.generate("The assignment statement", **options))
        greedy = list(session.generate("The assignment statement", max_tokens=24))
        assert first == second
        assert len(greedy) == 24
        assert session.decode(greedy).isprintable() or "\n" in session.decode(greedy)
        stopped = list(session.generate("The assignment", max_tokens=24, stop=[greedy[3]]))
        assert greedy[3] not in stopped


@pytest.mark.parametrize("elsewhere", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_model_gives_the_same_bytes(
    elsewhere: bool, compile_tiny: Callable[..., Path], tmp_path, monkeypatch
) -> None:
    """Also where the C library is compiled anew, in another place."""
    first = compile_tiny(bits=4)
    if elsewhere:
        monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path / "local"))
        monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "global"))
    second = morendo.compile(TINY, out=tmp_path / "again", chunk=32, bits=4)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_target_may_lay_data_out_in_other_tiles(
    compile_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids
) -> None:
    """Weights, caches and kernels agree on tiles of 32 and buffers of 128 bytes. Sums of attention
    have another order there, so that a code in the middle between two may be the other one.
    """
    wide = TileLayout(row_tile=32, key_tile=32, alignment_bytes=128)
    target = dataclasses.replace(find_target("x86"), layout=wide)
    monkeypatch.setattr("morendo.compiler.find_target", lambda name: target)
    artifact = morendo.compile(TINY, out=tmp_path / "wide", chunk=32, bits=4)
    assert all(tensor.offset % 128 == 0 for tensor in read_plan(artifact).tensors)
    with morendo.load(artifact) as session, morendo.load(compile_tiny(bits=4)) as usual:
        for level in (0, 2, 4):
            session.set_level(level)
            usual.set_level(level)
            got, want = session.logits(ids), usual.logits(ids)
            rows = [relative_error(*pair) < 1e-5 for pair in zip(got, want, strict=True)]
            assert np.mean(rows) > 0.9
            assert relative_error(got, want) < 2e-3
