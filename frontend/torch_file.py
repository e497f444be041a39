"""Weights in torch's own .bin files, which are pickles: only plain tensors are accepted."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch

from morendo.ir.errors import InputError

from .weights import TensorSource


class TorchSource(TensorSource):
    """Tensors of one or more .bin files, memory-mapped where the file allows it.

    Raises:
        InputError: for a file that holds more than tensors, or is damaged.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        for path in paths:
            self.tensors.update(_load(path))

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self.tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
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
    return {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}


def _load_tensors(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocol
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch's old format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
