"""Weights by name, read one at a time: importing a model never holds a copy of all of them."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from morendo.ir.errors import InputError
from morendo.ir.weight_views import parse_view

T = TypeVar("T")
Rows = slice | np.ndarray
"""Which rows of a matrix: a range, or indices."""
_NO_FLOATS = ("int", "uint", "qint", "quint", "bool", "complex")


class TensorSource(ABC):
    """The tensors of one checkpoint under the checkpoint's own names."""

    @abstractmethod
    def names(self) -> list[str]:
        """All tensors, in the order of the files."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions, without reading the data."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """How the tensor is stored ("float32", "bfloat16", "Q4_1", ...), for information."""

    def stored_name(self, name: str) -> str:
        """For messages: what the checkpoint's format calls a tensor of the model."""
        return name

    def nbytes(self, name: str) -> int:
        """Bytes of the data in the file."""
        kind = self.dtype(name)
        bits = re.search(r"\d+", kind)
        return math.prod(self.shape(name)) * (int(bits[0]) if bits else 8) // 8

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """The data; floats as float32."""

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        """Some rows of a matrix; floats as float32. A source may do it without reading the rest."""
        return self.read(name)[rows]


class MemorySource(TensorSource):
    """Arrays that are in memory already."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def names(self) -> list[str]:
        return list(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype(self, name: str) -> str:
        return str(self.arrays[name].dtype)

    def read(self, name: str) -> np.ndarray:
        return self.rows(name, slice(None))

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        array = self.arrays[name][rows] if self.arrays[name].ndim else self.arrays[name]
        return array.astype(np.float32) if array.dtype.kind == "f" else array


def merge_shards(shards: Iterable[tuple[Path, Mapping[str, T]]]) -> dict[str, T]:
    """The tensors of all of a checkpoint's files, in the order of the files.

    Raises:
        InputError: for a tensor that is in two of them, since one would be dropped.
    """
    found: dict[str, T] = {}
    for path, tensors in shards:
        twice = next((name for name in tensors if name in found), None)
        if twice is not None:
            raise InputError(
                f"tensor {twice} is in more than one file of the checkpoint",
                where=str(path),
                hint="shards of different checkpoints lie in one folder: download it again",
            )
        found.update(tensors)
    return found


@dataclass
class WeightStore:
    """A model's weights under the names that its IR uses.

    Names may be views (`ir/weight_views.py`) and aliases of tied weights.

    Attributes:
        source: the checkpoint.
        keys: weight name -> name in the checkpoint.
        buffers: what the model computes for itself, such as rotary frequencies.
        aliases: tied weight -> the name under which it is kept.
    """

    source: TensorSource
    keys: dict[str, str]
    buffers: dict[str, np.ndarray] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> WeightStore:
        """A store of arrays in memory."""
        return cls(MemorySource(arrays), {name: name for name in arrays})

    def names(self) -> list[str]:
        """Every weight once: no aliases, no views."""
        return [*self.keys, *(name for name in self.buffers if name not in self.keys)]

    def __contains__(self, name: str) -> bool:
        view = parse_view(name)
        base = self.aliases.get(name, name) if view is None else view.base
        return base in self.keys or base in self.buffers or (view is not None and base in self)

    def _resolve(self, name: str) -> str:
        name = self.aliases.get(name, name)
        if name not in self.keys and name not in self.buffers:
            raise InputError("the model has no such weight", where=name)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a weight or view, without reading it."""
        view = parse_view(name)
        if view is not None:
            return view.shape(self.shape(view.base))
        name = self._resolve(name)
        if name in self.keys:
            return self.source.shape(self.keys[name])
        return self.buffers[name].shape

    def dtype(self, name: str) -> str:
        """How a weight is stored in the checkpoint, for information."""
        view = parse_view(name)
        name = self._resolve(view.base if view else name)
        if name in self.keys:
            return self.source.dtype(self.keys[name])
        return str(self.buffers[name].dtype)

    def get(self, name: str) -> np.ndarray:
        """The data of a weight or view: float32 (integers as they are), read anew every time."""
        view = parse_view(name)
        if view is not None:
            return view.apply(self.get(view.base))
        name = self._resolve(name)
        return self.source.read(self.keys[name]) if name in self.keys else self.buffers[name]

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        """Some rows of a matrix, without reading the rest where the checkpoint's format allows."""
        if parse_view(name) is not None:
            return self.get(name)[rows]
        name = self._resolve(name)
        if name in self.keys:
            return self.source.rows(self.keys[name], rows)
        return self.buffers[name][rows]


def match_keys(
    wanted: Mapping[str, tuple[int, ...]],
    source: TensorSource,
    known: Mapping[str, str],
    where: str,
) -> dict[str, str]:
    """Weight name -> checkpoint name, for every weight that the model needs.

    Args:
        wanted: shape of each weight.
        known: checkpoint name of each weight that the checkpoint has.
        where: the checkpoint, for messages.

    Raises:
        InputError: for a missing tensor, another shape, or integers.
    """
    keys: dict[str, str] = {}
    for name, shape in wanted.items():
        if name not in known:
            raise InputError(
                f"the checkpoint has no tensor {source.stored_name(name)}",
                where=where,
                hint="the checkpoint is incomplete, or its configuration is of another model",
            )
        stored = source.shape(known[name])
        if stored != shape:
            raise InputError(
                f"tensor {name} has another shape than the configuration says "
                f"(got {list(stored)}, need {list(shape)})",
                where=where,
                hint="weights and configuration are of different models",
            )
        kind = source.dtype(known[name])
        if kind.startswith(_NO_FLOATS):
            raise InputError(
                f"tensor {name} is {kind}, need a float type",
                where=where,
                hint="use a checkpoint in float32, float16 or bfloat16",
            )
        keys[name] = known[name]
    return keys
