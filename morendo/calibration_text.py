"""Text for calibration as windows of token ids: files, pydoc, or what the model writes itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morendo.frontend import LoadedModel
from morendo.ir.errors import InputError
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from morendo.passes.pipeline import run_passes
from morendo.passes.streaming import WRITING
from morendo.passes.tune_scales import float_bytes
from morendo.progress import Progress
from morendo.runtime.sampling import SamplingSettings
from morendo.runtime.session import Session

SELF = "self"
PYDOC = "pydoc"
WINDOW = 512  # tokens
WINDOWS = 48
TUNING_WINDOWS = 192
MEMORY = 8 << 30
"""Bytes of float32 weights of the largest model that writes from memory, half of them there."""


@dataclass(frozen=True)
class CalibrationText:
    """Windows of token ids.

    Attributes:
        rounding: int64 [W, n], what matrices are rounded by.
        tuning: int64 [T, n], these and more of the same kind: a window of it is used once or not
            at all, so it can be longer.
    """

    rounding: NDArray[np.int64]
    tuning: NDArray[np.int64]


def calibration_text(
    loaded: LoadedModel,
    sources: Sequence[str | Path],
    compile_model: Callable[[Path], Path],
    progress: Progress,
    windows: int = WINDOWS,
) -> CalibrationText:
    """Windows of all texts together.

    Args:
        loaded: the model.
        sources: text files, "pydoc" (the topics of Python's help, which every Python has) or
            "self" (text that the model writes, with more of pydoc for tuning); each gives an
            equal part of the windows.
        compile_model: compiles the model with 8-bit weights into the directory it is given.
        progress: shows what is going on.
        windows: that matrices are rounded by.

    Raises:
        InputError: when there is no such text, no tokenizer, or less than one window.
    """
    totals = windows, max(windows, TUNING_WINDOWS)
    count, most = (-(-total // len(sources)) for total in totals)
    rounding, tuning = [], []
    for source in sources:
        if str(source) == SELF:
            written = write_windows(loaded, compile_model, count, progress)
            rounding.append(written)
            tuning.append(written)
            if loaded.tokenizer is not None:
                tuning.append(read_windows(loaded, PYDOC, most - len(written)))
        else:
            tuning.append(read_windows(loaded, source, most))
            rounding.append(spread(tuning[-1], count))
            if len(rounding[-1]) < count:
                found = f"{len(rounding[-1])} windows of {rounding[-1].shape[1]} tokens"
                progress.note(f"{source} has {found}; calibration would take {count}")
    return CalibrationText(np.concatenate(rounding), np.concatenate(tuning))


def read_windows(loaded: LoadedModel, source: str | Path, count: int) -> NDArray[np.int64]:
    """Windows of a text, spread evenly over it: int64 [W, n], W <= count, n <= 512.

    Raises:
        InputError: when there is no such text, no tokenizer, or less than one window.
    """
    if loaded.tokenizer is None:
        raise InputError(
            "the model has no tokenizer to read calibration text with",
            where=loaded.name,
            hint="add tokenizer.json to its directory",
        )
    ids = loaded.tokenizer.library.encode(_read(source), add_special_tokens=False).ids
    start = [loaded.bos] if loaded.add_bos else []
    length = min(WINDOW, loaded.context) - len(start)
    if len(ids) < length:
        raise InputError(
            f"calibration text is shorter than one window (got {len(ids)} tokens, need {length})",
            where=str(source),
            hint="give a longer text; some hundred kilobytes are good",
        )
    windows = np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)
    picked = spread(windows, count)
    return np.insert(picked, 0, np.array(start, np.int64)[:, None], axis=1) if start else picked


def spread(windows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """As many windows, evenly over all of them; all if there are no more."""
    return windows[np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)]


def check_texts(sources: Sequence[str | Path]) -> None:
    """Refuse what cannot be read before anything is done with the model.

    Raises:
        InputError: when a file is missing or no UTF-8 text.
    """
    for source in sources:
        if str(source) != SELF:
            _read(source)


def _read(source: str | Path) -> str:
    if str(source) == PYDOC:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[key] for key in sorted(topics))
    path = Path(source).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"calibration text cannot be read ({error})",
            where=str(path),
            hint=f"give a UTF-8 text file, `{SELF}` for text that the model writes, or `{PYDOC}`",
        ) from error


def write_windows(
    loaded: LoadedModel, compile_model: Callable[[Path], Path], count: int, progress: Progress
) -> NDArray[np.int64]:
    """Windows that the model samples, each from another random token: int64 [W, n].

    As in LLM-QAT (arXiv 2305.17888): the model's own text has its training text's distribution.
    All windows are written together, or where the model is too large to be in memory, one by one
    by its weights in 8 bits.

    Args:
        compile_model: compiles the model with 8-bit weights into the directory it is given.
        count: of windows.
        progress: shows what is going on.
    """
    # torch takes seconds to import: not before it is needed
    from morendo.passes.streaming.torch_ops import TorchFunction
    from morendo.passes.streaming.writer import write_windows as write_together

    first = np.random.default_rng(0).integers(loaded.vocabulary, size=count)
    length = min(WINDOW, loaded.context)
    weights = WeightOverlay(loaded.weights)
    module, _ = run_passes(loaded.module, [Normalize()], Context(weights=weights))
    function = TorchFunction(module["main"])
    if float_bytes(module["main"]) <= MEMORY and not function.unknown:
        return write_together(function, weights, first, length, progress.task)
    return _write_one_by_one(compile_model, first, length, progress)


def _write_one_by_one(
    compile_model: Callable[[Path], Path], first: NDArray[np.int64], length: int, progress: Progress
) -> NDArray[np.int64]:
    """Windows of some length that begin with these tokens."""
    windows = []
    plainly = asdict(SamplingSettings(temperature=1.0))  # not as its makers set it for answers
    with tempfile.TemporaryDirectory(prefix="morendo-") as scratch:
        with Session(compile_model(Path(scratch) / "writer")) as session:
            with progress.task(WRITING, len(first)) as advance:
                for seed, token in enumerate(first.tolist()):
                    rest = session.generate(
                        [token], max_tokens=length - 1, seed=seed, ignore_eos=True, **plainly
                    )
                    windows.append([token, *rest])
                    advance()
    return np.array(windows, np.int64)
