"""A whole model on the emulated GPU: the same tokens as on the CPU, and one line for errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.codegen.lowering import FunctionLowering, LevelStorage
from morendo.frontend import load_model
from morendo.ir.errors import CompileError
from morendo.ir.evaluate import evaluate
from morendo.ir.text import parse_module
from morendo.runtime.artifact import GRAPH, read_plan
from morendo.targets import find_target
from tests.cuda.emulated import needs_compiler
from tests.cuda.mock import MockGPU
from tests.e2e.conftest import TINY
from tests.e2e.test_pruned_tokens import TURNS, said

pytestmark = needs_compiler
PROMPT = "The assignment statement"
SCRIPT = """
import json, sys
import numpy as np
import morendo

artifact, out, ids, prompt = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
results = {}
with morendo.load(artifact) as session:
    executor = session.executor
    for level in range(session.plan.levels):
        session.set_level(level)
        results[f"level{level}"] = session.logits(ids)
    session.set_level(0)
    executor.set_position(0)
    rows = [executor.prefill(ids[:35]).copy()]
    rows += [executor.decode(token).copy() for token in ids[35:]]
    results["steps"] = np.stack(rows)
    results["tokens"] = np.array(list(session.generate(prompt, max_tokens=16)))
    drawing = {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "seed": 2}
    results["drawn"] = np.array(list(session.generate(prompt, max_tokens=16, **drawing)))
np.savez(out, **results)
"""

LEVELS = """
import json, sys
import numpy as np
import morendo

artifact, out, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rows = []
with morendo.load(artifact) as session:
    for level in range(session.plan.levels):
        session.set_level(level)
        session.executor.set_position(0)
        session.executor.prefill(ids[:-3])
        rows.append([session.executor.decode(token).copy() for token in ids[-3:]])
np.savez(out, logits=np.array(rows))
"""


DRAWS = """
import ctypes, json, sys
import numpy as np
import morendo

class Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("temperature", "p", "m", "penalty")]
    _fields_ += [("k", ctypes.c_int)]

artifact, ids, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with morendo.load(artifact) as session:
    library, handle = session.executor._library, session.executor._session
    logits, next_, drawn = np.empty(session.vocabulary, np.float32), *[ctypes.c_int32()] * 2
    array = np.array(ids, np.int32)
    for options in settings:
        samplers = [ctypes.c_void_p() for _ in range(2)]
        for sampler in samplers:
            given = ctypes.byref(Options(*options)), ctypes.c_uint64(3), ctypes.byref(sampler)
            assert not library.mr_sampler_open(session.vocabulary, *given)
            see = sampler, ctypes.c_void_p(array.ctypes.data), len(ids)
            assert not library.mr_sampler_see(*see)
        session.executor.set_position(0)
        session.executor.prefill(ids)
        token = 7
        for _ in range(6):
            drawn, next_ = ctypes.c_int32(-1), ctypes.c_int32(-1)
            assert not library.mr_decode_next(handle, samplers[0], token, ctypes.byref(next_))
            assert not library.mr_logits(handle, logits.ctypes.data)
            values = ctypes.c_void_p(logits.ctypes.data)
            assert not library.mr_sample(samplers[1], values, ctypes.byref(drawn))
            assert next_.value == drawn.value >= 0, options
            token = next_.value
"""
SAMPLED = [  # temperature, top-p, min-p, repetition penalty, top-k
    (0, 1, 0, 1, 0),
    (0, 1, 0, 1.3, 0),
    (0.8, 1, 0, 1.1, 20),
    (0.7, 0.9, 0.01, 1, 50),
    (0.3, 0.8, 0, 1, 0),
    (1, 1, 0.1, 1, 0),
    (1, 1, 0, 1, 0),
    (1.5, 0.9, 0, 1.2, 0),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MockGPU]:
    """The tiny model for an A100, and the emulated GPU that has its kernels."""
    try:
        find_target("cuda:sm_80").prepared()
    except CompileError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cuda")
    artifact, dump = folder / "artifact", folder / "dump"
    morendo.compile(TINY, "cuda:sm_80", 4, artifact, chunk=32, dump_ir=dump)
    return artifact, MockGPU(folder, dump)


def test_the_emulated_gpu_computes_what_the_cpu_computes(
    made: tuple[Path, MockGPU], compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    artifact, gpu = made
    ids = [int(i) for i in np.random.default_rng(0).integers(2, 512, size=40)]
    out = tmp_path / "results.npz"
    done = gpu.run([sys.executable, "-c", SCRIPT, artifact, out, json.dumps(ids), PROMPT])
    assert done.returncode == 0, done.stderr
    got = np.load(out)
    with morendo.load(compile_tiny(bits=4)) as session:
        for level in range(session.plan.levels):
            session.set_level(level)
            want = session.logits(ids)
            error = np.linalg.norm(got[f"level{level}"] - want) / np.linalg.norm(want)
            assert error < 0.01, f"level {level}"
        session.set_level(0)
        assert got["tokens"].tolist() == list(session.generate(PROMPT, max_tokens=16))
        drawing = {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "seed": 2}
        assert got["drawn"].tolist() == list(session.generate(PROMPT, max_tokens=16, **drawing))
    np.testing.assert_allclose(got["steps"], got["level0"][34:], rtol=1e-5, atol=1e-5)
    assert gpu.log().count("launch a graph") == 5 + 15 + 15  # every decode step is one


def test_tokens_are_drawn_from_a_few_as_from_all(made: tuple[Path, MockGPU]) -> None:
    artifact, gpu = made
    words = [artifact, json.dumps([5, 9, 33, 27, 4]), json.dumps(SAMPLED)]
    done = gpu.run([sys.executable, "-c", DRAWS, *words])
    assert done.returncode == 0, done.stderr
    assert gpu.log().count("launch a graph") == 6 * len(SAMPLED)
    assert gpu.log().count("read 4 bytes") == 6
    assert gpu.log().count("read 2056 bytes") >= 6 * 5


def test_the_executable_draws_from_a_few(made: tuple[Path, MockGPU]) -> None:
    """A decode step is one launch, of which it reads 256 tokens and their weight."""
    artifact, gpu = made
    options = ["--temperature", 0.8, "--top-k", 40, "--repetition-penalty", 1.1, "--seed", 4]
    done = gpu.run([artifact / "run", PROMPT, "--max-tokens", 12, "--ignore-eos", *options])
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    counts = [gpu.log().count(line) for line in ("launch a graph", "read 2056 bytes", READS[0])]
    assert counts[0] == 11 and counts[1] == 11 and counts[2] <= 2


def test_debug_sees_what_the_gpu_computes(made: tuple[Path, MockGPU]) -> None:
    artifact, gpu = made
    words = ["debug", artifact, "--against", TINY, "1,5,9,33,27,4", "--ids", "-q"]
    done = gpu.run([sys.executable, "-m", "morendo", *words])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all ops are right" in done.stdout


def norms_of_levels(self: FunctionLowering, _: object, size: int, __: object) -> LevelStorage:
    """In the place of a norm's vector: each level reads that of another layer."""
    names = [
        f"model.layers.{level % 4}.input_layernorm.weight" for level in range(self.program.levels)
    ]
    return LevelStorage(tuple(self.program.weights.vector([name], [size]) for name in names))


def test_levels_may_have_tensors_of_their_own(
    made: tuple[Path, MockGPU], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then each level has a graph of its own; here norms, in place of readings that take a text."""
    _, gpu = made
    monkeypatch.setattr(FunctionLowering, "vector_at_levels", norms_of_levels)
    morendo.compile(TINY, "cuda:sm_80", 4, tmp_path / "gpu", chunk=32)
    morendo.compile(TINY, "native", 4, tmp_path / "cpu", chunk=32)
    ids = [int(i) for i in np.random.default_rng(2).integers(2, 512, size=9)]
    out = tmp_path / "results.npz"
    done = gpu.run([sys.executable, "-c", LEVELS, tmp_path / "gpu", out, json.dumps(ids)])
    assert done.returncode == 0, done.stderr
    got = np.load(out)["logits"]
    with morendo.load(tmp_path / "cpu") as session:
        assert len(got) == session.plan.levels > 1
        for level, logits in enumerate(got):
            session.set_level(level)
            want = session.logits(ids)
            np.testing.assert_allclose(logits, want[-3:], atol=1e-2 * np.abs(want).max())
    assert gpu.log().count("launch a graph") == 3 * len(got)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_keys_and_values_may_be_codes(
    bits: int, made: tuple[Path, MockGPU], compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    artifact, dump, out = tmp_path / "artifact", tmp_path / "dump", tmp_path / "results.npz"
    morendo.compile(TINY, "cuda:sm_80", 4, artifact, chunk=32, dump_ir=dump, cache_bits=bits)
    gpu = MockGPU(tmp_path, dump)
    ids = [int(i) for i in np.random.default_rng(3).integers(2, 512, size=40)]
    done = gpu.run([sys.executable, "-c", SCRIPT, artifact, out, json.dumps(ids), PROMPT])
    assert done.returncode == 0, done.stderr
    got = np.load(out)
    with morendo.load(compile_tiny(bits=4, cache_bits=bits)) as session:
        want = session.logits(ids)
        assert np.linalg.norm(got["level0"] - want) < 0.02 * np.linalg.norm(want)
        assert got["tokens"].tolist() == list(session.generate(PROMPT, max_tokens=16))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "capability"), [("sm_80", 80), ("sm_90a", 90)])
def test_activations_may_be_halves(
    arch: str, capability: int, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Closer to the floats of the same weights than activations of 8 bits are."""
    artifact, dump, out = tmp_path / "artifact", tmp_path / "dump", tmp_path / "results.npz"
    nearest = {"search_scales": False}  # weights that the store and the graph say all of
    options = {"chunk": 32, "dump_ir": dump, "activations": 16, **nearest}
    morendo.compile(TINY, f"cuda:{arch}", 4, artifact, **options)
    gpu = MockGPU(tmp_path, dump)
    ids = [int(i) for i in np.random.default_rng(3).integers(2, 512, size=40)]
    command = [sys.executable, "-c", SCRIPT, artifact, out, json.dumps(ids), PROMPT]
    done = gpu.run(command, CAPABILITY=capability)
    assert done.returncode == 0, done.stderr
    got = np.load(out)
    module = parse_module((artifact / GRAPH).read_text(encoding="utf-8"))
    positions = np.arange(len(ids))[None]
    inputs = [np.array([ids]), positions]
    want = evaluate(module["score"], inputs, load_model(TINY).weights, cache={})[0]
    error = np.linalg.norm(got["level0"] - want) / np.linalg.norm(want)
    with morendo.load(compile_tiny(bits=4, **nearest)) as session:
        coarse = np.linalg.norm(session.logits(ids) - want) / np.linalg.norm(want)
    assert error < 0.003 < coarse
    np.testing.assert_allclose(got["steps"], got["level0"][34:], atol=0.01 * np.abs(want).max())


@pytest.mark.slow
def test_code_for_one_kind_of_gpu_runs_on_no_later_one(tmp_path: Path) -> None:
    artifact, dump = tmp_path / "artifact", tmp_path / "dump"
    morendo.compile(TINY, "cuda:sm_90a", 4, artifact, chunk=32, dump_ir=dump)
    gpu = MockGPU(tmp_path, dump)
    command = [artifact / "run", PROMPT, "--max-tokens", 2, "--temperature", 0]
    assert gpu.run(command, CAPABILITY=90).returncode == 0
    done = gpu.run(command, CAPABILITY=100)
    assert "no code for a GPU of compute capability 10.0 (it has code for 9.0 alone)" in done.stderr
    assert done.returncode and done.stderr.count("\n") == 1


PRUNED = """
import sys
import numpy as np
import morendo
from tests.e2e.test_pruned_tokens import TURNS, said

with morendo.load(sys.argv[1]) as session:
    np.savez(sys.argv[2], *said(session.executor, TURNS))
"""


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["first", "received"])
def test_prompts_are_pruned_as_on_the_cpu(
    importance: str, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Over turns, chunks, calls of one and two tokens: as close as whole prompts are."""
    artifact, dump, out = tmp_path / "artifact", tmp_path / "dump", tmp_path / "results.npz"
    options = {"prune_tokens": 0.3, "prune_importance": importance}
    morendo.compile(TINY, "cuda:sm_80", "f32", artifact, chunk=32, dump_ir=dump, **options)
    done = MockGPU(tmp_path, dump).run([sys.executable, "-c", PRUNED, artifact, out])
    assert done.returncode == 0, done.stderr
    got = np.load(out)
    with morendo.load(compile_tiny(bits="f32", **options)) as session:
        for name, want in zip(got.files, said(session.executor, TURNS), strict=True):
            np.testing.assert_allclose(got[name], want, atol=2e-3 * np.abs(want).max())


READS = ("read 2048 bytes", "read 4 bytes")
"""The logits of a prompt's last token, then the likeliest token of each step."""


def test_the_executable_answers(made: tuple[Path, MockGPU]) -> None:
    artifact, gpu = made
    command = [artifact / "run", PROMPT, "--max-tokens", 8, "--temperature", 0]
    done = gpu.run(command)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert set(gpu.log()) == {"load machine code", "launch a graph", *READS}
    assert [gpu.log().count(line) for line in READS] == [1, 7]
    later = gpu.run(command, CAPABILITY=90)  # another generation: the driver translates the text
    assert later.stdout == done.stdout
    assert set(gpu.log()) == {"load text", "launch a graph", *READS}


ERRORS = [
    ({"NONE": 1}, "needs an NVIDIA GPU, and there is none (no CUDA-capable device)"),
    ({"CAPABILITY": 75}, "no code for a GPU of compute capability 7.5 (it has code from 8.0 on)"),
    ({"OLD": 1}, "the NVIDIA driver is too old for this artifact (it knows CUDA 11.2)"),
    ({"MEMORY": 200000}, "not enough GPU memory for 502336 bytes of weights (200000 of 200000"),
    ({"MEMORY": 560000}, "bytes of activations ("),
    ({"FAIL": 10}, "start a kernel: unspecified launch failure (CUDA error 719)"),
    ({"FAIL": 250}, "start its kernels: unspecified launch failure (CUDA error 719)"),
    ({"LOST": 1}, "the GPU failed to compute: unknown error (CUDA error 999)"),
    ({"LOST": 6}, "the GPU failed to compute: unknown error (CUDA error 999)"),
]


@pytest.mark.parametrize(("settings", "line"), ERRORS, ids=lambda value: str(value)[:24])
def test_what_goes_wrong_is_said_in_one_line(made: tuple[Path, MockGPU], settings, line) -> None:
    artifact, gpu = made
    command = [artifact / "run", PROMPT, "--max-tokens", 30, "--temperature", 0]
    done = gpu.run(command, **settings)
    assert done.returncode and line in done.stderr
    assert done.stderr.count("\n") == 1


LOST = """
import sys
import morendo

with morendo.load(sys.argv[1]) as session:
    for _ in range(2):
        try:
            list(session.generate("The", max_tokens=9, ignore_eos=True))
        except morendo.MorendoError as error:
            print(error)
    print(session.executor.position)
"""


def test_a_session_outlives_its_gpu(made: tuple[Path, MockGPU]) -> None:
    """Each call says so in a line, and closing is quiet."""
    artifact, gpu = made
    done = gpu.run([sys.executable, "-c", LOST, artifact], LOST=5)
    assert done.returncode == 0 and not done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 3
    assert said[0] == "the GPU failed to compute: unknown error (CUDA error 999)"
    assert said[1].startswith("the GPU failed to") and said[1].endswith("(CUDA error 999)")


def test_kernels_compile_beside_a_driver(made: tuple[Path, MockGPU], tmp_path: Path) -> None:
    """Their compiler loads the driver, too, and asks it for things."""
    _, gpu = made
    script = (
        "from morendo.targets.cuda.nvrtc import compile_source as c; "
        "print(len(c('__global__ void k(int* x) { *x = 3; }', 'sm_80').cubin) > 0)"
    )
    assert gpu.run([sys.executable, "-c", script]).stdout == "True\n"


def test_without_a_driver(made: tuple[Path, MockGPU], monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, _ = made
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a driver here")
    with pytest.raises(morendo.MorendoError, match="needs an NVIDIA GPU, and its driver is not he"):
        morendo.load(artifact)
    with pytest.raises(morendo.MorendoError, match="sees the memory of this process"):
        morendo.runtime.session.Session(artifact, executor="python")


def test_a_decode_step_has_no_argument_that_changes(made: tuple[Path, MockGPU]) -> None:
    """So that its launches can be recorded once: what changes is read from memory."""
    plan = read_plan(made[0])
    assert plan.state
    for step in plan.functions["decode"]:
        assert not set(step.args) & {"tokens", "position"}
        assert "Level" not in repr(step.args)
