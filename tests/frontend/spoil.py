"""Good models made bad: helpers of the tests of what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from morendo.frontend import load_model
from morendo.frontend.checkpoint import Checkpoint, build_model, open_checkpoint, open_weights
from morendo.frontend.torch_export import EmptyModel
from morendo.frontend.weights import WeightStore
from morendo.ir.errors import InputError

WEIGHTS = "model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"


def refuses(model: object, *words: str) -> None:
    """The model is refused in one line that holds these words."""
    _refused(lambda: load_model(str(model)), words)


def refuses_weights(model: Path, *words: str) -> None:
    """As `refuses`, without the tokenizer and the export."""
    _refused(lambda: opened(model), words)


def _refused(attempt: Callable[[], object], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        attempt()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    for word in words:
        assert word in said, said


def edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(model: Path, **changes: np.ndarray | None) -> None:
    arrays = {**load_file(model / WEIGHTS), **changes}
    save_file({k: v for k, v in arrays.items() if v is not None}, model / WEIGHTS)


def to_bin(model: Path, **more: object) -> Path:
    """The weights as a pickled file, with more in it."""
    path = model / "pytorch_model.bin"
    torch.save({**load_torch(model / WEIGHTS), **more}, path)
    (model / WEIGHTS).unlink(missing_ok=True)
    return path


def opened(model: Path) -> tuple[Checkpoint, EmptyModel, WeightStore]:
    """The model up to its weights, which takes less time than its export."""
    checkpoint = open_checkpoint(model)
    empty = build_model(checkpoint)
    return checkpoint, empty, open_weights(checkpoint, empty)
