"""Promoted groups, channel orders and outliers through the whole pipeline, with made-up choices."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import morendo
from morendo import compiler
from morendo.ir import reference
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.formats import WeightFormat
from morendo.ir.outliers import Outliers
from morendo.passes.base import Context, Pass
from morendo.passes.pipeline import known_passes
from morendo.passes.rewrite import map_functions
from morendo.progress import Progress
from morendo.quality.dequantized import DequantizedWeights
from morendo.quality.reference import Reference
from morendo.runtime.interpreter import PythonExecutor
from tests.e2e.conftest import TINY
from tests.e2e.quality import torch_logits

SLOTS = 9
PATTERNS = ["stored", "ones", "random", "damaged"]  # of weights, in run_guarded.py
RECIPE = (
    "normalize,quantize-weights,promote-anything,"
    "fuse-attention,fuse-linears,specialize-phases,quantize-activations,choose-levels"
)


@dataclass(frozen=True)
class PromoteAnything(Pass):
    """Give linears of one input an order, planes and outliers; another choice for each input."""

    name: ClassVar[str] = "promote-anything"
    codes: ClassVar[CodeStore]

    def apply(self, module: Any, context: Context) -> Any:
        inputs: dict[Any, tuple[str, WeightFormat]] = {}
        rng = np.random.default_rng(0)
        assert context.weights is not None
        context.weights.codes = self.codes

        def choose(features: int) -> tuple[str, WeightFormat]:
            name, groups = f"order.{len(inputs)}", features // 32
            context.weights.put(name, rng.permutation(features).astype(np.int32))
            plane3 = int(rng.integers(0, groups + 1))
            planes = plane3, int(rng.integers(0, plane3 + 1))
            return name, WeightFormat("q4", 32, planes, SLOTS)

        def visit(rebuilder: Any, var: Any, value: Any) -> Any:
            attrs = attrs_of(value) if op_name(value) == "linear" else {}
            if attrs.get("format") != "q4g32":
                return value
            source = rebuilder.values[var].args[0]
            if source not in inputs:
                inputs[source] = choose(attrs["in_features"])
            order, fmt = inputs[source]
            matrix = context.weights.get(attrs["weight"])[:, context.weights.get(order)]
            self.codes.put(attrs["weight"], fmt, with_outliers(matrix, fmt))
            chosen = {"format": fmt.name, "order": order, "codes": "calibrated"}
            return call("linear", *value.args, **{**attrs, **chosen})

        return map_functions(module, visit)


def with_outliers(matrix: np.ndarray, fmt: WeightFormat) -> reference.Quantized:
    """Rounded to nearest, and the largest errors of the 2-bit reading of each tile as outliers."""
    q = reference.quantize(matrix, fmt)
    error = matrix - reference.dequantize(q, fmt, matrix.shape[1], (0, 0))
    tiles = error.reshape(-1, 16 * matrix.shape[1])
    at = np.argsort(-np.abs(tiles), axis=1)[:, :SLOTS]
    row, channel = np.divmod(at, matrix.shape[1])
    row += np.arange(len(tiles))[:, None] * 16
    value = np.take_along_axis(tiles, at, axis=1).astype(np.float16)
    entries = Outliers(row.ravel().astype(np.int32), channel.ravel(), value.ravel())
    return replace(q, outliers=entries)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promoted")
    (folder / "codes").mkdir()
    PromoteAnything.codes = CodeStore(folder / "codes")
    with pytest.MonkeyPatch.context() as patch:
        passes = {**known_passes(), PromoteAnything.name: PromoteAnything}
        patch.setattr(compiler, "known_passes", lambda: passes)
        return morendo.compile(TINY, out=folder / "artifact", chunk=32, passes=RECIPE)


def test_every_level_computes_what_its_weights_say(artifact: Path) -> None:
    ids = np.random.default_rng(0).integers(2, 512, size=45)
    weights, model = DequantizedWeights(artifact), Reference(TINY, False, Progress())
    reads = []
    with morendo.load(artifact) as session:
        for level in range(session.plan.levels):
            session.set_level(level)
            want = torch_logits(model.with_weights_of(weights, level), ids)
            got = session.logits(ids)
            assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
            executor = session.executor
            executor.set_position(0)
            executor.prefill(ids[:-1])
            assert (
                np.linalg.norm(executor.decode(int(ids[-1])) - got[-1]) < 1e-4 * np.abs(got).sum()
            )
            reads.append(session.step_cost.level_bytes[level])
    assert reads == sorted(reads, reverse=True)


def test_both_executors_agree(artifact: Path) -> None:
    ids = np.random.default_rng(1).integers(2, 512, size=40)
    with morendo.load(artifact) as session:
        executor = PythonExecutor(artifact, poison=True)
        for level in (0, session.plan.levels - 1):
            session.set_level(level)
            executor.set_position(0)
            executor.set_level(level)
            assert np.array_equal(session.logits(ids), executor.score(ids))
        executor.close()


def test_dequantized_weights_are_in_the_model_order(artifact: Path) -> None:
    weights = DequantizedWeights(artifact)
    model = Reference(TINY, False, Progress()).model
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.v_proj.weight"):
        original = model.weights.get(name)
        got = weights.get(name, original, 0)
        error = np.linalg.norm(got - original) / np.linalg.norm(original)
        assert 0 < error < 0.6  # a channel in a wrong place would give 1.4


def test_kernels_do_not_depend_on_counts(artifact: Path) -> None:
    """Linears of one size share a kernel for one token and one for many."""
    with morendo.load(artifact) as session:
        kernels = [name for name in session.plan.kernels if name.startswith("qlinear")]
        notes = {step.note for step in session.plan.functions["decode"]}
    assert len(notes) > 16
    assert len(kernels) <= 12
    assert not [name for name in kernels if "p" in name.split("_")[3]]


def test_no_byte_of_the_weights_reaches_outside(artifact: Path) -> None:
    """Channel orders and outliers are indices; in a damaged file they are any number."""
    script = Path(__file__).with_name("run_guarded.py")
    command = [sys.executable, str(script), str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, PATTERNS), done.stderr
