"""Text for calibration as windows of token ids: a file, or what the model writes itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morendo.frontend import LoadedModel
from morendo.ir.errors import InputError
from morendo.progress import Progress
from morendo.runtime.session import Session

SELF = "self"
WINDOW = 512  # tokens
WINDOWS = 64
SELF_WINDOWS = 24  # these are written token by token


def read_windows(loaded: LoadedModel, source: str | Path) -> NDArray[np.int64]:
    """Windows of a text file, spread evenly over it: int64 [W, n], W <= 64, n <= 512.

    Raises:
        InputError: when there is no such text, no tokenizer, or less than one window.
    """
    path = Path(source).expanduser()
    if loaded.tokenizer is None:
        raise InputError(
            "the model has no tokenizer to read calibration text with",
            where=loaded.name,
            hint="add tokenizer.json to its directory",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"calibration text cannot be read ({error})",
            where=str(path),
            hint="give a UTF-8 text file, or `self` for text that the model writes",
        ) from error
    ids = loaded.tokenizer.library.encode(text, add_special_tokens=False).ids
    start = [loaded.bos] if loaded.add_bos else []
    length = min(WINDOW, loaded.context) - len(start)
    if len(ids) < length:
        raise InputError(
            f"calibration text is shorter than one window (got {len(ids)} tokens, need {length})",
            where=str(path),
            hint="give a longer text; some hundred kilobytes are good",
        )
    windows = np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length)
    count = min(WINDOWS, len(windows))
    picked = windows[np.linspace(0, len(windows) - 1, count).astype(int)]
    return np.insert(picked, 0, np.array(start, np.int64)[:, None], axis=1) if start else picked


def write_windows(
    compile_model: Callable[[Path], Path], vocabulary: int, context: int, progress: Progress
) -> NDArray[np.int64]:
    """Windows that the model samples, each from another random token: int64 [W, n].

    As in LLM-QAT (arXiv 2305.17888): the model's own text has its training text's distribution.

    Args:
        compile_model: compiles the model with 8-bit weights into the directory it is given.
        vocabulary: number of token ids.
        context: the longest text.
        progress: shows what is going on.
    """
    length = min(WINDOW, context)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="morendo-") as scratch:
        with Session(compile_model(Path(scratch) / "writer")) as session:
            with progress.task("let the model write", SELF_WINDOWS) as advance:
                windows = []
                for seed in range(SELF_WINDOWS):
                    first = int(rng.integers(vocabulary))
                    rest = session.generate(
                        [first], max_tokens=length - 1, temperature=1.0, seed=seed, ignore_eos=True
                    )
                    windows.append([first, *rest])
                    advance()
    return np.array(windows, np.int64)
