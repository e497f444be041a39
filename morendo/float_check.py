"""`compile --check`: the compiled graph in float32 against transformers' own model.

What is compared is the graph after the passes of `--bits f32`, run op by op in numpy, so it shows
an import or a pass that changes the function. Rounding and machine code come later and are
measured by `morendo eval`; both sides read the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from morendo.budget import Budget
from morendo.ir.errors import CompileError, MorendoError
from morendo.ir.evaluate import evaluate
from morendo.ir.weight_overlay import WeightOverlay
from morendo.ir.weights import NamedWeights
from morendo.passes.base import Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.progress import Progress

if TYPE_CHECKING:
    from morendo.frontend import LoadedModel
    from morendo.frontend.float_model import FloatModel

SCORED, PREFILLED, DECODED = 14, 4, 2
"""Random tokens that the three functions take, one after the other over one cache."""
TOLERANCE = 1e-3
"""Of the largest logit. Another order of float additions costs about 1e-5."""


@dataclass(frozen=True)
class Agreement:
    """How two models' logits for the same tokens compare.

    Attributes:
        difference: the largest between two logits.
        largest: the largest logit of transformers' model, without its sign.
        same_top, tokens: after how many of all compared tokens both find the same next one.
    """

    difference: float
    largest: float
    same_top: int
    tokens: int

    @property
    def good(self) -> bool:
        """Whether both compute the same function; NaN is never good."""
        return self.difference <= TOLERANCE * self.largest

    def __str__(self) -> str:
        return (
            f"logits within {self.difference:.2g} of transformers (they reach {self.largest:.3g}), "
            f"same top token {self.same_top} of {self.tokens}"
        )


def open_original(model: str | Path, context: int | None) -> FloatModel:
    """The model as transformers computes it, to be given to `check_import`.

    Raises:
        InputError: for an .onnx file, which transformers cannot run, and as `load_model` does.
    """
    # torch and transformers take seconds to import: not before they are needed
    from morendo.frontend.float_model import open_float_model

    return open_float_model(model, context)


def check_import(loaded: LoadedModel, original: FloatModel, progress: Progress) -> Agreement:
    """Compare an imported model with transformers' on random tokens, and say how they agree.

    Args:
        loaded: as the compiler gets it.
        original: the same model, opened at the same context.

    Raises:
        CompileError: when they compute different functions, or transformers' cannot be run.
    """
    ids = np.random.default_rng(0).integers(0, loaded.vocabulary, _tokens(loaded))
    with progress.task("check against transformers", 2) as advance:
        want = _transformers_logits(original, ids)
        advance()
        got, compared = _graph_logits(loaded, ids)
        advance()
    found = _agreement(got, want[compared])
    if not found.good:
        raise CompileError(
            f"the compiled graph computes something else than transformers' model (logits differ "
            f"by up to {found.difference:.3g}, need {TOLERANCE * found.largest:.2g}; same top "
            f"token {found.same_top} of {found.tokens})",
            where=loaded.name,
            hint="the model is not supported; please report it with its config.json",
        )
    progress.note(f"check: {found}")
    return found


def _agreement(got: NDArray[np.float32], want: NDArray[np.float32]) -> Agreement:
    return Agreement(
        difference=float(np.abs(got - want).max()),
        largest=float(np.abs(want).max()),
        same_top=int((got.argmax(1) == want.argmax(1)).sum()),
        tokens=len(want),
    )


def _tokens(loaded: LoadedModel) -> int:
    return min(SCORED + PREFILLED + DECODED, loaded.context)


def _transformers_logits(model: FloatModel, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """[tokens, vocabulary], of a model that is gone afterwards."""
    import torch

    try:
        module = model.build()
        with torch.inference_mode():
            result = module(input_ids=torch.from_numpy(ids)[None], use_cache=False)
        return result.logits[0].float().numpy()
    except (MorendoError, MemoryError):
        raise
    except Exception as error:  # whatever the code of a model raises
        raise CompileError(
            f"transformers' own model cannot be run ({type(error).__name__})",
            where=str(model.path),
            hint="leave --check out, or look with --debug",
        ) from error


class _Kept:
    """Weights that are read once: three functions want them, and codes take long to read."""

    def __init__(self, weights: NamedWeights) -> None:
        self._weights = weights
        self._values: dict[str, NDArray[np.float32]] = {}

    def get(self, name: str) -> NDArray[np.float32]:
        if name not in self._values:
            self._values[name] = self._weights.get(name)
        return self._values[name]


def _graph_logits(
    loaded: LoadedModel, ids: NDArray[np.int64]
) -> tuple[NDArray[np.float32], list[int]]:
    """Logits of the three functions [rows, vocabulary], and the tokens that the rows belong to."""
    recipe = parse_spec(Budget.of("f32", None, None, None).passes(False), known_passes())
    derived = WeightOverlay(loaded.weights)
    module, _ = run_passes(loaded.module, recipe, Context(derived))
    weights, cache = _Kept(derived), {}
    rows: list[NDArray[np.float32]] = []
    compared: list[int] = []

    def run(phase: str, start: int, stop: int) -> None:
        inputs = [ids[None, start:stop], np.arange(start, stop)[None]]
        logits = evaluate(module[phase], inputs, weights, cache=cache)[0]
        rows.append(logits)
        compared.extend(range(stop - len(logits), stop))

    decoded = len(ids) - DECODED
    scored = max(1, decoded - PREFILLED)
    run("score", 0, scored)
    run("prefill", scored, decoded)
    for position in range(decoded, len(ids)):
        run("decode", position, position + 1)
    return np.concatenate(rows), compared
