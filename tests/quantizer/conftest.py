"""The small model and windows of English text that calibration is tested with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from morendo.frontend import LoadedModel, load_model

from .test_streaming import TINY, prose


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(TINY)


@pytest.fixture(scope="module")
def prose_windows(loaded) -> Callable[[int], np.ndarray]:
    """So many windows of 128 tokens from the start of the text: int64 [W, 128]."""
    ids = loaded.tokenizer.library.encode(prose(0, 0.05)).ids
    return lambda count: np.array(ids[: count * 128], np.int64).reshape(count, 128)
