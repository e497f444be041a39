"""A budget that is for the output head and its table too: their bits are ranked with the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import morendo
from morendo.budget import Budget
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Calibration, Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.promotion.limits import Heads
from morendo.quality import evaluate
from morendo.runtime.artifact import read_manifest
from tests.frontend.families import save_model

from .test_streaming import TINY, prose

TABLE = "model.embed_tokens.weight"
ANALYZED = "normalize,quantize-weights{compact=True,head_bits=6},analyze-group-ranges{heads=True},"


def promoted(loaded, windows: np.ndarray, folder: Path, options: str, spec: str = ANALYZED):
    """(module, context, report of the last pass)."""
    context = Context(
        WeightOverlay(loaded.weights, CodeStore(folder)), calibration=Calibration(windows, folder)
    )
    passes = parse_spec(f"{spec}promote-groups{{{options}}}", known_passes())
    module, records = run_passes(loaded.module, passes, context)
    return module, context, records[-1].report


def all_bytes(module) -> tuple[int, int]:
    """Bytes with orders, and weights, of all matrices with nested codes."""
    shapes, orders = {}, {}
    for name, call in calls(module):
        attrs = attrs_of(call)
        if name == "linear":
            shapes[attrs["weight"]] = attrs["format"], attrs["out_features"], attrs["in_features"]
            orders[attrs["order"]] = 2 * attrs["in_features"] if attrs["order"] else 0
    total = sum(WeightFormat.parse(fmt).nbytes(*shape) for fmt, *shape in shapes.values())
    return total + sum(orders.values()), sum(n * k for _, n, k in shapes.values())


@pytest.mark.parametrize("bits", [2.9, 4.25, 4.5])
def test_the_head_is_counted_and_gets_bits_by_what_it_loses(
    loaded, prose_windows, tmp_path, bits: float
) -> None:
    options = f"average_bits={bits},heads=True"
    module, context, report = promoted(loaded, prose_windows(8), tmp_path, options)
    nbytes, weights = all_bytes(module)
    assert report.figures["all matrices"]["bytes"] == nbytes
    heads = Heads.of(module)
    assert heads is not None and heads.linear == TABLE
    step = heads.nbytes(5) - heads.nbytes(4)
    assert bits - 8 * step / weights < 8 * nbytes / weights <= bits
    formats = {
        attrs_of(c)["format"] for _, c in calls(module) if attrs_of(c).get("weight") == TABLE
    }
    assert len(formats) == 1  # lookup and head read the same arrays
    analysis = next(a for a in context.weights.analyses if TABLE in a.names)
    assert analysis.losses.shape[0] == 5 and (np.diff(analysis.losses, axis=0) < 0).all()
    assert list(analysis.order) == list(range(128))


def test_a_budget_for_the_head_alone_is_refused_without_its_analysis(
    loaded, prose_windows, tmp_path
) -> None:
    spec = ANALYZED.replace("{heads=True}", "")
    with pytest.raises(CompileError, match="it is not known what the head would lose"):
        promoted(loaded, prose_windows(2), tmp_path, "average_bits=4,heads=True", spec)
    spec = ANALYZED.replace(",head_bits=6", "")
    with pytest.raises(CompileError, match="the output head has no nested codes"):
        promoted(loaded, prose_windows(2), tmp_path, "average_bits=4,heads=True", spec)
    with pytest.raises(CompileError, match=r"got 1\.5 bits, the nearest is 2\.\d\d"):
        promoted(loaded, prose_windows(2), tmp_path, "average_bits=1.5,heads=True")


def test_an_analyzed_head_stays_where_the_budget_is_not_for_it(
    loaded, prose_windows, tmp_path
) -> None:
    module, _, _ = promoted(loaded, prose_windows(2), tmp_path, "average_bits=3")
    formats = {
        attrs_of(c)["format"] for _, c in calls(module) if attrs_of(c).get("weight") == TABLE
    }
    assert formats == {"q6g32c"}


def test_a_table_and_an_untied_head_get_the_same_bits(prose_windows, tmp_path: Path) -> None:
    from morendo.frontend import load_model

    save_model("gpt2", tmp_path / "gpt2")
    loaded = load_model(tmp_path / "gpt2")
    module, _ = run_passes(
        loaded.module, parse_spec("normalize,quantize-weights{head_bits=6}", known_passes()),
        Context(WeightOverlay(loaded.weights)),
    )  # fmt: skip
    heads = Heads.of(module)
    assert heads is not None and all("wpe" not in name for name in heads.shapes)


def test_a_size_is_for_the_head_too(tmp_path: Path) -> None:
    spec = Budget.of(4, None, 90.0, None).passes(True)
    assert "head_bits=6" in spec and "promote-groups{size_mb=90,heads=True}" in spec
    assert "heads" not in Budget.of(4, None, 90.0, None, 8).passes(True)
    spec = Budget.of(4, 4.6, None, None, "auto").passes(True)  # 4 bits and 6 in the head take 4.7
    assert "compact=True" in spec and "tune-scales{below_bits=4}" in spec
    assert "compact" not in Budget.of(4, 4.6, None, None).passes(True)
    text = tmp_path / "text.txt"
    text.write_text(prose(0, 0.05), encoding="utf-8")
    out = morendo.compile(
        TINY, out=tmp_path / "out", chunk=32, calibrate=text, size_mb=0.47, calibration_windows=4
    )
    assert 0.44e6 < (out / "weights.bin").stat().st_size < 0.48e6
    parts = {part["part"]: part for part in read_manifest(out)["weights"]}
    assert parts[TABLE]["budgeted"] and parts[TABLE]["format"] in ("q4g32c", "q5g32c", "q6g32c")
    report = evaluate(
        out, prose(0.6, 0.62), reference=TINY, window=128, windows=1, dequantized=True, cached=False
    )
    assert max(row.score.kl_mean for row in report.rows if row.kind == "kernels") < 0.01


def test_an_untied_head_is_calibrated_and_lowered(tmp_path: Path) -> None:
    """A head of its own is rounded as other matrices are, its table by searched scales alone."""
    shutil.copytree(TINY, tmp_path / "untied")
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    noise = np.random.default_rng(0).normal(1, 0.1, model.lm_head.weight.shape)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * torch.tensor(noise))
    model.float().save_pretrained(tmp_path / "untied")
    text = tmp_path / "text.txt"
    text.write_text(prose(0, 0.05), encoding="utf-8")
    options = {"average_bits": 4.4, "embedding_bits": "auto", "calibration_windows": 4}
    out = morendo.compile(
        tmp_path / "untied", out=tmp_path / "out", chunk=32, calibrate=text, **options
    )
    parts = {part["part"]: part for part in read_manifest(out)["weights"]}
    assert parts[TABLE]["format"] == parts["lm_head.weight"]["format"]
    assert parts[TABLE]["budgeted"] and parts["lm_head.weight"]["budgeted"]
    report = evaluate(
        out, prose(0.6, 0.62), reference=tmp_path / "untied", window=128, windows=1,
        dequantized=True, cached=False,
    )  # fmt: skip
    assert max(row.score.kl_mean for row in report.rows if row.kind == "kernels") < 0.01
    read = [row.bytes_per_token for row in report.rows if row.kind == "artifact"]
    assert read == sorted(set(read), reverse=True) and read[-1] < 0.6 * read[0]
