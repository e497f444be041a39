"""Embedding tables of 4 bits, calibrated where they are the head, and large ones by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import morendo
from morendo.budget import Budget
from morendo.codegen import packed_matrix
from morendo.codegen.packed_matrix import Matrix
from morendo.codegen.weight_file import WeightFile
from morendo.frontend import WeightStore, load_model
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls
from morendo.ir.layout import TileLayout
from morendo.ir.reference import dequantize, quantize
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Calibration, Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.quantizer import tuner
from morendo.passes.quantizer.tuner import TunedWeights, Tuner
from morendo.passes.streaming import stream
from morendo.passes.streaming.float_weights import FloatWeights
from morendo.passes.streaming.torch_ops import TorchFunction
from morendo.quality import evaluate
from morendo.runtime.artifact import read_manifest
from tests.frontend.families import save_model

from .test_streaming import TINY, prose

TABLE, COMPACT = "model.embed_tokens.weight", WeightFormat("q4", 32, compact=True)
SPEC = "normalize,quantize-weights{compact=True,head_bits=4},calibrate-weights"


def run(spec: str, loaded, windows: np.ndarray | None, folder: Path):
    calibration = None if windows is None else Calibration(windows, folder)
    context = Context(WeightOverlay(loaded.weights, CodeStore(folder)), calibration=calibration)
    module, records = run_passes(loaded.module, parse_spec(spec, known_passes()), context)
    return module, context, records[-1].report


@pytest.fixture(scope="module")
def calibrated(loaded, prose_windows, tmp_path_factory: pytest.TempPathFactory):
    return run(SPEC, loaded, prose_windows(8), tmp_path_factory.mktemp("codes"))


def test_a_tied_table_is_rounded_by_what_arrives_at_the_head(loaded, calibrated) -> None:
    module, context, report = calibrated
    readers = [(n, attrs_of(c)) for n, c in calls(module) if attrs_of(c).get("weight") == TABLE]
    assert [name for name, _ in readers] == ["embedding", "linear"]
    assert all((a["format"], a["codes"]) == (COMPACT.name, "calibrated") for _, a in readers)
    figures = report.figures[TABLE]
    assert figures["error"] < 0.7 * figures["error_to_nearest"]
    codes, floats = context.weights.codes.get(TABLE, COMPACT), loaded.weights.get(TABLE)
    errors = [
        np.square(dequantize(q, COMPACT, 128) - floats).sum()
        for q in (codes, quantize(floats, COMPACT))
    ]
    assert errors[0] < 1.2 * errors[1]  # its rows are read as they are, too


def test_layers_are_rounded_for_the_rows_of_the_table(calibrated, loaded) -> None:
    """What calibration and tuning read of the table is what will be stored."""
    module, context, _ = calibrated
    codes = context.weights.codes
    attrs = next(attrs_of(call) for name, call in calls(module) if name == "embedding")
    ids = np.array([3, 500, 3])
    want = dequantize(codes.get(TABLE, COMPACT), COMPACT, 128)
    weights = stream.StageWeights(loaded.weights, codes)
    assert np.array_equal(weights.table_rows(attrs, ids), want[ids])
    floats = stream.StageWeights(loaded.weights, None)
    assert np.array_equal(floats.table_rows(attrs, ids), loaded.weights.get(TABLE)[ids])
    student = TunedWeights(FloatWeights(loaded.weights), codes, [], {TABLE})
    assert np.array_equal(student.rows(attrs, torch.from_numpy(ids)[None])[0].numpy(), want[ids])
    x = torch.randn(1, 3, 128)
    head = [attrs_of(call) for name, call in calls(module) if name == "linear"][-1]
    torch.testing.assert_close(student.linear(head, x), x @ torch.from_numpy(want).T)
    assert not student.tuned


def test_an_artifact_reads_one_table_in_two_ways(tmp_path: Path) -> None:
    """Kernels of lookup and head against the dequantized table in torch, under a budget."""
    text = tmp_path / "text.txt"
    text.write_text(prose(0, 0.05), encoding="utf-8")
    options = {"average_bits": 4.1, "embedding_bits": 4, "calibration_windows": 4}
    out = morendo.compile(TINY, out=tmp_path / "out", chunk=32, calibrate=text, **options)
    report = evaluate(
        out, prose(0.6, 0.62), reference=TINY, window=128, windows=2, dequantized=True, cached=False
    )
    kernels = [row.score.kl_mean for row in report.rows if row.kind == "kernels"]
    assert max(kernels) < 0.01
    parts = {part["part"]: part for part in read_manifest(out)["weights"]}
    assert parts[TABLE]["format"] == COMPACT.name and not parts[TABLE]["budgeted"]
    budgeted = [p for p in parts.values() if p["budgeted"]]
    weights = sum(p["weights"] for p in budgeted if p["format"] != "u16")
    assert 3.9 < 8 * sum(p["bytes"] for p in budgeted) / weights <= 4.1


@pytest.mark.parametrize("options", [{"embedding_bits": 6}, {"bits": 6, "embedding_bits": 5}])
def test_heads_of_more_planes_are_read_with_fewer_bits(options: dict, tmp_path: Path) -> None:
    """At every level the kernels compute what the dequantized reading does in torch."""
    out = morendo.compile(TINY, out=tmp_path / "out", chunk=32, **options)
    text = prose(0.6, 0.62)
    report = evaluate(
        out, text, reference=TINY, window=128, windows=1, dequantized=True,
        cached=False,
    )  # fmt: skip
    kernels = [row.score.kl_mean for row in report.rows if row.kind == "kernels"]
    assert len(kernels) == 5 and max(kernels) < 0.01
    read = [row.bytes_per_token for row in report.rows if row.kind == "artifact"]
    assert read == sorted(set(read), reverse=True)
    formats = {part["part"]: part["format"] for part in read_manifest(out)["weights"]}
    assert formats[TABLE] == f"q{options['embedding_bits']}g32"


def test_tables_that_are_no_head(prose_windows, tmp_path: Path) -> None:
    """gpt2: positions keep 8 bits; an untied head of 4 bits is no part of a budget."""
    save_model("gpt2", tmp_path / "gpt2")
    module, _, _ = run(SPEC.rpartition(",")[0], load_model(tmp_path / "gpt2"), None, tmp_path)
    tables = [attrs_of(call)["format"] for name, call in calls(module) if name == "embedding"]
    assert tables == [COMPACT.name, "q8g32"]


def test_embedding_bits_are_checked() -> None:
    assert "head_bits=4" in Budget.of(4, 2.9, None, None, 4).passes(True)
    assert "head_bits" not in Budget.of(4, 2.9, None, None, 8).passes(True)
    with pytest.raises(
        InputError, match=r"embedding tables can have 8, 6, 5, 4, auto bits \(got 7\)"
    ):
        Budget.of(4, None, None, None, 7)
    with pytest.raises(InputError, match="auto bits of embedding tables are for a budget"):
        Budget.of(4, None, None, None, "auto")
    with pytest.raises(InputError, match="follow the rest where weights are floats"):
        Budget.of("f16", None, None, None, 4)
    with pytest.raises(InputError, match=r"not both; write quantize-weights\{head_bits=N\}"):
        morendo.compile("x", passes="normalize", embedding_bits=4)


@pytest.mark.parametrize("spec", ["q4g32c", "q8g32", "f16", "q4g32n", "q6g32", "q5g32c"])
def test_packing_by_rows_is_packing_at_once(spec: str, tmp_path: Path, monkeypatch) -> None:
    fmt = WeightFormat.parse(spec)
    rng = np.random.default_rng(0)
    weights = WeightStore.of({"w": rng.standard_normal((200, 72), np.float32)})
    codes = CodeStore(tmp_path)
    codes.put("w", fmt, quantize(2 * weights.get("w"), fmt)) if fmt.nested else None
    layout = WeightFile(TileLayout(nibbles=True))
    layout.matrix(Matrix(("w",), (200,), 72, fmt, calibrated=fmt.nested))
    found = []
    for rows in (4096, 64):
        monkeypatch.setattr(packed_matrix, "ROWS", rows)
        with (tmp_path / "weights.bin").open("wb") as file:
            layout.write(file, WeightOverlay(weights, codes), lambda: None)
        found.append((tmp_path / "weights.bin").read_bytes())
    assert found[0] == found[1]


def test_nibbles_are_refused_where_kernels_read_planes() -> None:
    nibbles = Matrix(("w",), (16,), 32, WeightFormat.parse("q4g32n"))
    with pytest.raises(CompileError, match=r"4-bit codes from planes \(got q4g32n\) at w; leave"):
        WeightFile().matrix(nibbles)


def test_of_a_large_vocabulary_some_tokens_are_compared(loaded, prose_windows, tmp_path) -> None:
    module, context, _ = run("normalize", loaded, prose_windows(2), tmp_path)
    function, ids = TorchFunction(module["main"]), prose_windows(1)[0]
    floats, tokens = FloatWeights(loaded.weights), torch.tensor([3, 50, 127])
    want = function(floats, ids)[tokens]
    assert function.head is not None
    torch.testing.assert_close(function(floats, ids, tokens), want)
    function.head = None  # where no head is found, all are made
    torch.testing.assert_close(function(floats, ids, tokens), want)
    seen = []

    def few(weights, ids, tokens=None):
        seen.append(tokens.tolist())
        return torch.zeros(len(tokens), 512)

    tuning = Tuner(function, loaded.weights, context.weights.codes, 1e-3)
    tuning.function = few  # type: ignore[assignment]
    for limit, count in ((128 * 512, 128), (32 * 512, 32), (48 * 512, 42)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tuner, "LOGITS", limit)
            assert float(tuning._divergence(ids)) == 0
        assert len(seen[-1]) == count and seen[-1][-1] <= 127
