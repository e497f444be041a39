"""The weights of an artifact as floats again, under the names of the model that it was made of.

In torch they show the error of quantization alone; what an artifact loses beyond that is the error
of its kernels (8-bit activations, mostly).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.packed_matrix import Matrix
from morendo.ir.errors import ArtifactError, InputError
from morendo.ir.formats import Array, WeightFormat, at_reading
from morendo.ir.plan import Plan, Step
from morendo.ir.plan_arguments import Level, tensor_index
from morendo.ir.reference import dequantize, unpack, unpack_quantized
from morendo.ir.weight_overlay import untuned_name
from morendo.ir.weight_views import parse_view
from morendo.runtime.artifact import WEIGHT_LIST, WEIGHTS, read_plan, read_weight_list

_ROWS = 4096  # of a matrix at a time: numpy computes in float64
Bounds = tuple[int, ...] | None  # (n3, n4, ...); None reads all bits


class Read(NamedTuple):
    """How a matrix is read.

    Attributes:
        bounds: (n3, n4, ...); None reads all bits.
        reading: whose scales are used.
    """

    bounds: Bounds = None
    reading: int = 0


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of weights.bin.

    Attributes:
        matrix: what lies there.
        offsets: bytes from the start of the file, one for each array of the format.
        order: where the order of its channels starts, None when it is the model's.
        linear: how a linear reads it at every level, () where none does.
        embedding: whether rows of it are embeddings; those are always read with all bits.
    """

    matrix: Matrix
    offsets: tuple[int, ...]
    order: int | None
    linear: tuple[Read, ...]
    embedding: bool


def read_matrices(artifact: Path) -> list[StoredMatrix]:
    """All matrices of an artifact.

    Raises:
        ArtifactError: when it was compiled without that list, or the list is damaged.
    """
    entries = read_weight_list(artifact)["matrices"]
    uses = _uses(read_plan(artifact))
    try:
        return [_stored(entry, uses) for entry in entries]
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise _malformed(artifact, error) from None


def _tuned_vectors(artifact: Path) -> dict[str, list[tuple[int, int]]]:
    """(offset, size) of vectors that were tuned for a reading, and of what the readings that were
    not tuned have in their place, by the names in the checkpoint.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    tuned: set[str] = set()
    try:
        for entry in read_weight_list(artifact)["vectors"]:
            offset = entry["offset"]
            for name, size in zip(entry["names"], entry["sizes"], strict=True):
                original, _ = untuned_name(name) or (name, 0)
                found.setdefault(original, []).append((offset, size))
                if original != name:
                    tuned.add(original)
                offset += 4 * size
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(artifact, error) from None
    return {name: places for name, places in found.items() if name in tuned}


def _malformed(artifact: Path, error: Exception) -> ArtifactError:
    message = f"malformed ({type(error).__name__}: {error})"
    return ArtifactError(message, where=str(artifact / WEIGHT_LIST), hint="compile it again")


def _stored(entry: dict[str, Any], uses: dict[int, list[_Use]]) -> StoredMatrix:
    offsets = tuple(entry["offsets"])
    matrix = Matrix(
        names=tuple(entry["names"]),
        rows=tuple(entry["rows"]),
        columns=entry["columns"],
        format=WeightFormat.parse(entry["format"]),
        transposed=entry["transposed"],
        interleaved=entry["interleaved"],
    )
    if len(offsets) != len(matrix.arrays):
        raise ValueError(f"{len(offsets)} offsets of {len(matrix.arrays)} arrays")
    found = uses[offsets[0]]
    use = next((use for use in found if not use.embedding), None)
    embedding = any(use.embedding for use in found)
    linear = () if use is None else tuple(_reads(use, matrix.format, matrix.arrays, offsets))
    return StoredMatrix(matrix, offsets, entry["order"], linear, embedding)


def _reads(
    use: _Use, fmt: WeightFormat, arrays: tuple[Array, ...], offsets: tuple[int, ...]
) -> Iterator[Read]:
    """How a linear reads a matrix at every level."""
    places = {array.name: offset for array, offset in zip(arrays, offsets, strict=True)}
    row_scales = [places.get(at_reading("row_scale", r)) for r in range(fmt.reading_count)]
    for bounds, tensors in zip(use.bounds, use.tensors, strict=True):
        reading = next((r for r, place in enumerate(row_scales) if place in tensors), 0)
        yield Read(bounds, reading)


@dataclass(frozen=True)
class _Use:
    """How a step reads a matrix: rows of it as embeddings, or (n3, n4, ...) at every level and the
    offsets of its tensors in weights.bin.
    """

    embedding: bool
    bounds: tuple[Bounds, ...]
    tensors: tuple[set[int], ...]


def _uses(plan: Plan) -> dict[int, list[_Use]]:
    """The steps that take each tensor in weights.bin, by its offset."""
    uses: dict[int, list[_Use]] = {}
    for step in plan.functions["score"]:
        levels = [arg.values for arg in step.args if isinstance(arg, Level)]
        bounds = tuple(zip(*levels, strict=True)) if levels else (None,) * plan.levels
        tensors = tuple(_weights_of(plan, step, level) for level in range(plan.levels))
        use = _Use(not step.weights, bounds, tensors)
        for offset in tensors[0]:
            uses.setdefault(offset, []).append(use)
    return uses


def _read_at_levels(plan: Plan) -> list[set[int]]:
    """Offsets of all that is read of weights.bin at each level."""
    steps = plan.functions["score"]
    return [
        set().union(*(_weights_of(plan, step, level) for step in steps))
        for level in range(plan.levels)
    ]


def _weights_of(plan: Plan, step: Step, level: int) -> set[int]:
    """Offsets of what a step takes of weights.bin."""
    indexes = (tensor_index(arg, level) for arg in step.args)
    tensors = (plan.tensors[index] for index in indexes if index is not None)
    return {tensor.offset for tensor in tensors if tensor.space == "weights"}


class DequantizedWeights:
    """Matrices and tuned vectors of an artifact by Hugging Face name.

    Args:
        artifact: the directory.

    Attributes:
        names: of tuned vectors, and of weights that are wholly or partly in a matrix.
    """

    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact
        self._file = np.memmap(artifact / WEIGHTS, np.uint8, "r")
        self._places: dict[str, list[tuple[StoredMatrix, int]]] = defaultdict(list)
        for stored in read_matrices(artifact):
            for index, name in enumerate(stored.matrix.names):
                view = parse_view(name)
                self._places[view.base if view else name].append((stored, index))
        self._vectors = _tuned_vectors(artifact)
        self._read_at = _read_at_levels(read_plan(artifact))
        self.names = {*self._places, *self._vectors}
        self._unpacked = lru_cache(maxsize=1)(self._unpack)  # q, k, v come one after another

    def get(
        self, name: str, original: NDArray[np.float32], level: int, embedding: bool = False
    ) -> NDArray[np.float32]:
        """What a weight is in the artifact.

        Args:
            name: of the whole weight.
            original: its float values, kept where the artifact has no others.
            level: the precision level.
            embedding: it is read as an embedding table, not by a linear.

        Raises:
            InputError: when the artifact's weight has another shape.
            ArtifactError: when the artifact's list of weights is wrong.
        """
        if name in self._vectors:
            return _put(original, self._tuned(name, level), name)
        value = original
        for stored, index in self._places.get(name, []):
            if (embedding and not stored.embedding) or (not embedding and not stored.linear):
                continue
            read = Read() if embedding else stored.linear[level]
            part = self._unpacked(stored, read)[index]
            value = _put(value, part, stored.matrix.names[index])
        return value

    def _tuned(self, name: str, level: int) -> NDArray[np.float32]:
        """The vector, tuned or not, that steps read at a level."""
        for offset, size in self._vectors[name]:
            if offset in self._read_at[level]:
                return self._piece(offset, "float32", (size,))
        raise _malformed(self._artifact, ValueError(f"no step reads {name} at level {level}"))

    def _unpack(self, stored: StoredMatrix, read: Read) -> list[NDArray[np.float32]]:
        """The float32 weights of one matrix, one for each of its names."""
        matrix, arrays = stored.matrix, {}
        for array, offset in zip(matrix.arrays, stored.offsets, strict=True):
            arrays[array.name] = self._piece(offset, array.dtype, array.shape)
        if not matrix.format.quantized:
            whole = unpack(arrays, matrix.format, matrix.packed_rows, matrix.columns)
            return matrix.split(whole)
        q = unpack_quantized(arrays, matrix.format, matrix.packed_rows)
        parts = []
        for start in range(0, matrix.packed_rows, _ROWS):
            some = q.rows(start, start + _ROWS)
            parts.append(dequantize(some, matrix.format, matrix.columns, *read))
        return matrix.split(np.concatenate(parts), self._order(stored))

    def _order(self, stored: StoredMatrix) -> NDArray[np.uint16] | None:
        if stored.order is None:
            return None
        columns = stored.matrix.columns
        order = self._piece(stored.order, "uint16", (columns,))
        if not np.array_equal(np.sort(order), np.arange(columns)):
            raise _malformed(self._artifact, ValueError(f"no order at {stored.order}"))
        return order

    def _piece(self, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray:
        """An array of weights.bin.

        Raises:
            ArtifactError: when it does not lie in it.
        """
        nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
        if not 0 <= offset <= len(self._file) - nbytes:
            raise _malformed(self._artifact, ValueError(f"nothing at {offset}"))
        return self._file[offset : offset + nbytes].view(dtype).reshape(shape)


def _put(whole: NDArray[np.float32], part: NDArray, name: str) -> NDArray[np.float32]:
    """`whole` with the part that a name (a view, or all of it) stands for replaced."""
    view = parse_view(name)
    shape = whole.shape if view is None else view.shape(whole.shape)
    if shape != part.shape:
        raise InputError(
            f"the artifact's weight has another shape than the reference's "
            f"(got {part.shape}, need {shape})",
            where=name,
            hint="--reference must be the model that was compiled",
        )
    if view is None:
        return part
    axis = 1 if view.columns else 0
    features = replace(view, columns=False).apply(np.arange(whole.shape[axis]))
    result = np.array(whole)
    if axis:
        result[:, features] = part
    else:
        result[features] = part
    return result
