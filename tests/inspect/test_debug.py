"""`morendo debug` names the op where a planted mistake lies, and finds none where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.cli import entry as cli
from morendo.cli.debug_command import _token_ids
from morendo.codegen.cpu.kernels import rope
from morendo.debug import bisect as bisect_module
from morendo.debug import captured, debug
from morendo.debug.bisect import bisect
from morendo.debug.captured import capture, open_graph
from morendo.debug.compare import original_of, relative_error, rounding_errors
from morendo.frontend import load_model
from morendo.ir.errors import ArtifactError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import pack_quantized, quantize
from morendo.ir.text import parse_module, print_module
from morendo.passes.fuse_linears import FuseLinears
from morendo.passes.recognize import norms
from morendo.runtime.artifact import GRAPH, MANIFEST, WEIGHTS, read_manifest, read_weight_list
from morendo.targets import find_target
from tests.frontend.families import save_model

TINY = Path(__file__).parent.parent / "models" / "tiny_llama"
IDS = [5, 9, 100, 33, 27, 4, 88]


@pytest.fixture
def artifact(compiled, tmp_path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(compiled[0], tmp_path / "spoiled"))


def overwrite(artifact: Path, name: str, change: Callable[[dict], dict]) -> None:
    """Replace arrays of a matrix in weights.bin, by their names."""
    matrices = read_weight_list(artifact)["matrices"]
    entry = next(m for m in matrices if m["names"] == [name])
    fmt = WeightFormat.parse(entry["format"])
    file = np.memmap(artifact / WEIGHTS, np.uint8, "r+")
    places = {}
    arrays = fmt.arrays(entry["rows"][0], entry["columns"])
    for array, offset in zip(arrays, entry["offsets"], strict=True):
        view = file[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        places[array.name] = view
    for key, values in change({k: v.copy() for k, v in places.items()}).items():
        places[key][...] = values
    file.flush()


def test_a_right_artifact_has_no_wrong_op(compiled):
    report = debug(compiled[0], str(TINY), IDS)
    assert report.first_wrong is None
    functions = [check.function for check in report.checks]
    assert {"graph", "prefill", "decode"} == set(functions)
    linears = [c for c in report.checks if c.op == "quantized_linear" and c.function == "decode"]
    assert len(linears) == 4 * 4 + 1
    assert all(0.001 < c.lost < 0.2 and abs(c.lost - c.expected) < 1e-5 for c in linears)
    assert all(c.drift is not None and c.drift > 0.01 for c in linears)
    graph = [c for c in report.checks if c.function == "graph"]
    assert max(c.excess for c in graph) < 1e-5


def test_a_wrong_zero_point_is_named(artifact):
    name = "model.layers.2.mlp.down_proj.weight"
    overwrite(artifact, name, lambda arrays: {"zero": arrays["zero"] + 2})  # a quarter of a step
    wrong = debug(artifact, str(TINY), IDS).first_wrong
    assert wrong is not None
    assert (wrong.op, wrong.weight, wrong.function) == ("quantized_linear", name, "prefill")


def test_a_transposed_matrix_is_named(artifact):
    name = "model.layers.1.self_attn.o_proj.weight"
    weight, fmt = load_model(TINY).weights.get(name), WeightFormat.parse("q4g32")
    assert weight.shape[0] == weight.shape[1]
    transposed = pack_quantized(quantize(np.ascontiguousarray(weight.T), fmt), fmt)
    overwrite(artifact, name, lambda _: transposed)
    report = debug(artifact, str(TINY), IDS)
    assert report.first_wrong is not None
    assert report.first_wrong.weight == name
    assert sum(not c.good for c in report.checks) == 2, "in prefill and in decode, and nowhere else"


def test_swapped_halves_of_rope_are_named(tmp_path, monkeypatch):
    real = rope.Rotation

    def swapped(*args, **options):
        return replace(real(*args, **options), interleaved=True)

    with monkeypatch.context() as planted:
        planted.setattr("morendo.codegen.lower_ops.Rotation", swapped)
        morendo.compile(TINY, out=tmp_path / "a", chunk=32)
    wrong = debug(tmp_path / "a", str(TINY), IDS).first_wrong
    assert wrong is not None
    assert (wrong.op, wrong.function) == ("cached_stacked_attention", "prefill")
    assert wrong.note == "layer 0 attention"


def test_a_cache_position_off_by_one_is_named(tmp_path, monkeypatch):
    real = rope.store_value

    def shifted(isa, cache, buffers, to, *source):
        head, position = to
        real(isa, cache, buffers, (head, position - 1), *source)

    def build(isa, *, max_tokens, **options):
        with pytest.MonkeyPatch.context() as planted:
            if max_tokens == 1:
                planted.setattr(rope, "store_value", shifted)
            return rope.rope_append_kv(isa, max_tokens=max_tokens, **options)

    with monkeypatch.context() as planted:
        planted.setattr("morendo.codegen.lower_ops.rope_append_kv", build)
        morendo.compile(TINY, out=tmp_path / "a", chunk=32)
    wrong = debug(tmp_path / "a", str(TINY), IDS).first_wrong
    assert wrong is not None
    assert (wrong.op, wrong.function) == ("cached_stacked_attention", "decode")
    assert (wrong.start, wrong.note) == (len(IDS) - 1, "layer 0 attention")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    """A model whose norms multiply by 1 + weight."""
    path = tmp_path_factory.mktemp("gemma") / "model"
    save_model("gemma", path)
    return path


def test_a_norm_without_its_offset_is_named_with_its_pass(gemma, tmp_path, monkeypatch, capsys):
    real = norms._gain

    def without(graph, scale):
        found = real(graph, scale)
        return found and (found[0], 0.0)

    monkeypatch.setattr(norms, "_gain", without)
    morendo.compile(gemma, out=tmp_path / "a", chunk=32, search_scales=False)
    words = ["debug", str(tmp_path / "a"), "--against", str(gemma), "3,14,15,9,26", "--ids", "-q"]
    assert cli.main([*words, "--bisect"]) == 1
    said = capsys.readouterr().out
    assert "first wrong op: rms_norm_quantize" in said
    assert "model.layers.0.input_layernorm.weight: in the graph, before any kernel" in said
    assert "it went wrong in: normalize" in said


READINGS = {"readings": "4,3,2", "calibrate": "pydoc", "calibration_windows": 1, "tuning_steps": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"embedding_bits": 5, "cache_bits": 8},
        {"activations": 4, "cache_bits": 4},
        {"embedding_bits": 6},
        {"bits": "f32"},
        pytest.param(READINGS, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(f"{k}{v}" for k, v in options.items())[:24],
)
def test_other_formats_have_no_wrong_op(tmp_path, options):
    morendo.compile(TINY, out=tmp_path / "a", chunk=32, **options)
    report = debug(tmp_path / "a", str(TINY), IDS)
    assert report.first_wrong is None
    assert max(c.lost for c in report.checks if c.function != "graph") < 0.2


def emulated(target: str) -> str:
    """Skips where there is no emulator for a target."""
    emulator = find_target(target).device.emulator
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")
    return target


def test_a_flipped_code_is_not_a_wrong_op_and_a_wrong_step_is():
    """Of 1000 codes of 4 bits one is the next one, where two orders of adding round apart."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=1000)
    step = 0.4
    meant = np.round(exact / step) * step
    flipped, wrong = meant.copy(), meant + step * (rng.random(1000) < 0.2)
    flipped[7] += step
    op = "rms_norm_quantize"
    for got, good in ((flipped, True), (wrong, False)):
        _, _, excess, allowed = rounding_errors(op, {}, got, meant, exact)
        assert (excess <= allowed) == good
    _, _, excess, allowed = rounding_errors("linear", {}, flipped, meant, exact)
    assert excess > allowed


def test_a_token_outside_the_vocabulary_is_named_by_its_place(compiled):
    with pytest.raises(InputError, match=r"the token at place 2 .*got id 9999, vocabulary "):
        debug(compiled[0], str(TINY), [1, 2, 9999])


@pytest.mark.parametrize("options", [{}, {"cache_bits": 8, "embedding_bits": 6}], ids=str)
def test_an_emulated_machine_is_compared_too(tmp_path, options):
    nearest = {"search_scales": False, **options}
    morendo.compile(TINY, emulated("arm"), out=tmp_path / "a", chunk=32, **nearest)
    report = debug(tmp_path / "a", str(TINY), IDS)
    assert report.first_wrong is None
    assert {"graph", "prefill", "decode"} == {c.function for c in report.checks}
    overwrite(
        tmp_path / "a",
        "model.layers.2.mlp.down_proj.weight",
        lambda arrays: {"zero": arrays["zero"] + 2},
    )
    wrong = debug(tmp_path / "a", str(TINY), IDS).first_wrong
    assert wrong is not None
    assert (wrong.weight, wrong.function) == ("model.layers.2.mlp.down_proj.weight", "prefill")


def test_the_c_runtime_shows_what_the_reference_shows(compiled, monkeypatch):
    opened = open_graph(compiled[0], read_manifest(compiled[0]))
    want = capture(opened, IDS)
    monkeypatch.setattr(captured, "works_on_host", lambda _: False)
    for got, run in zip(capture(opened, IDS), want, strict=True):
        assert set(got.values) == set(run.values)
        for var, value in run.values.items():
            for a, b in zip(parts(got.values[var]), parts(value), strict=True):
                np.testing.assert_array_equal(a[: run.stop - run.start], b[: run.stop - run.start])


def parts(value):
    return value if isinstance(value, tuple) else (value,)


def test_debug_prints_lines_of_json(compiled, capsys):
    words = ["debug", str(compiled[0]), "--against", str(TINY), "Once upon a time", "-q", "--json"]
    assert cli.main([*words, "--bisect"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["event"] for line in lines} == {"op", "stage"}
    assert all(line["good"] for line in lines)
    passes = [record["spec"] for record in read_manifest(compiled[0])["passes"]]
    stages = [line["name"] for line in lines if line["event"] == "stage"]
    assert len(stages) == len(passes) + 1


def test_bisect_names_the_pass(monkeypatch):
    loaded = load_model(TINY)
    real = FuseLinears.apply

    def planted(self, module, context):
        text = print_module(real(self, module, context))
        return parse_module(text.replace('gate="silu"', 'gate="gelu"', 1))

    monkeypatch.setattr(FuseLinears, "apply", planted)
    specs = "normalize", "quantize-weights", "fuse-attention", "fuse-linears", "specialize-phases"
    stages = bisect(loaded, specs, IDS, None)
    assert [s.good for s in stages] == [True, True, True, True, False]
    assert stages[-1].name == "fuse-linears"


def test_bisect_leaves_passes_out_that_need_a_text():
    specs = ["normalize", "promote-groups{average_bits=3.0}", "calibrate-weights"]
    assert [step.name for step in bisect_module._passes(specs)] == ["normalize"]


def test_an_onnx_file_has_no_torch_values(compiled, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    assert original_of(read_manifest(compiled[0]), str(tmp_path / "model.onnx")) is None


def test_numbers_that_are_not_finite_are_infinitely_wrong():
    assert relative_error(np.array([1.0, np.nan]), np.ones(2)) == float("inf")
    assert relative_error(np.array([1.0, 1.1]), np.ones(2)) == pytest.approx(0.1 / 2**0.5)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0


def test_what_cannot_be_compared_is_refused(artifact, gemma):
    with pytest.raises(InputError, match=r"too few tokens to compare \(got 1, need 2 or more\)"):
        debug(artifact, str(TINY), [1])
    with pytest.raises(InputError, match="--against must be the model that was compiled"):
        debug(artifact, str(gemma), IDS)
    graph = (artifact / GRAPH).read_text()
    (artifact / GRAPH).write_text(graph.replace("M.last_token(", "R.nn.relu(", 1))
    foreign = "its plan is not what this version of morendo makes of its graph"
    with pytest.raises(ArtifactError, match=foreign):
        debug(artifact, str(TINY), IDS)
    (artifact / GRAPH).write_text(graph)
    manifest = (artifact / MANIFEST).read_text()
    (artifact / MANIFEST).write_text(manifest.replace('"context": 512', '"context": 256'))
    with pytest.raises(ArtifactError, match=foreign):
        debug(artifact, str(TINY), IDS)
    (artifact / GRAPH).unlink()
    with pytest.raises(ArtifactError, match=r"cannot read graph\.py .*compile it again"):
        debug(artifact, str(TINY), IDS)
    with pytest.raises(InputError, match="token ids are numbers with commas"):
        _token_ids(artifact, "1,x", numbers=True)
