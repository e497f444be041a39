"""Weights in torch's own .bin files, which are pickles: only plain tensors are accepted."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morendo.ir.errors import InputError

from .weights import Rows, TensorSource, merge_shards


class TorchSource(TensorSource):
    """Tensors of one or more .bin files, memory-mapped where the file allows it.

    Raises:
        InputError: for a file that holds more than tensors, or is damaged, and when two shards
            hold the same tensor.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.tensors = merge_shards((path, _load(path)) for path in paths)

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self.tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> np.ndarray:
        return self._floats(self.tensors[name])

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        return self._floats(self.tensors[name][index])

    @staticmethod
    def _floats(tensor: torch.Tensor) -> np.ndarray:
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = _load_tensors(path)
    except pickle.UnpicklingError:
        raise InputError(
            "a pickled checkpoint that holds more than tensors, which could run code when loaded",
            where=str(path),
            hint="convert it to .safetensors where you trust it",
        ) from None
    except Exception as error:  # EOFError, RuntimeError, zip errors, ...
        raise InputError(
            f"the checkpoint cannot be read ({type(error).__name__})",
            where=str(path),
            hint="the file is truncated or damaged: download it again",
        ) from error
    if not isinstance(loaded, dict):
        raise InputError("not a dictionary of tensors", where=str(path))
    for name, value in loaded.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
            raise InputError(
                f"not a dictionary of plain tensors ({str(name)[:80]!r} is {_kind(value)})",
                where=str(path),
                hint="save the model's state_dict and nothing else",
            )
    return {str(name): value.detach() for name, value in loaded.items()}


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor without data" if value.is_meta else f"a {value.layout} tensor"
    return f"of type {type(value).__name__}"


def _load_tensors(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocol
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch's old format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
