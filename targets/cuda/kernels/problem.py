"""What a kernel of quantized weights works on: its parameters, and how far each precision goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import OUTLIER_ARRAYS
from morendo.targets.cuda.blocks import Kernel, State

from .epilogue import Epilogue
from .fragments import place_of_channel
from .scales import Weights


@dataclass(frozen=True)
class Outliers:
    """Sparse weights of a tile, sorted by channel; those of groups from n3 on are read."""

    value: Any  # float16 [T, S]
    channel: Any  # uint16 [T, S]
    row: Any  # uint8 [T, S]
    start: Any  # uint16 [T, G]
    slots: Any


@dataclass(frozen=True)
class Problem:
    """What a kernel works on: buffers, and the numbers that are known at run time.

    Attributes:
        sums: None where activations are halves, which have a scale for each token.
        reordered: whether channels of activations lie as `place_of_channel` says.
    """

    spec: LinearSpec
    codes: Any  # int8 or float16 [M, Kp]
    scales: Any  # float32 [M, G] or [M]
    sums: Any  # int32 [M, G]
    weights: Weights
    epilogue: Epilogue
    tokens: State
    level: tuple[State, ...]
    outliers: Outliers | None
    reordered: bool = False

    @classmethod
    def declare(
        cls, k: Kernel, spec: LinearSpec, halves: bool = False, reordered: bool = False
    ) -> Problem:
        """Declare the kernel's parameters."""
        tokens, groups, fmt = spec.max_tokens, spec.groups, spec.format
        dtype = "float16" if halves else "int8"
        x = (
            k.buffer("codes", (tokens, groups * fmt.group_size), dtype),
            k.buffer("scales", (tokens,) if halves else (tokens, groups)),
            None if halves else k.buffer("sums", (tokens, groups), "int32"),
        )
        planes, slots = {name: T.int32() for name in fmt.plane_names}, T.int32()
        stored = planes | {f"outlier_{name}": slots for name in ("value", "channel", "row")}
        buffers = {}
        for array in spec.weight_arrays():
            tiles, *rest = array.shape
            if array.name in stored:
                rest[0] = stored[array.name]
            buffers[array.name] = k.buffer(f"w_{array.name}", (tiles, *rest), array.dtype)
        epilogue, count = Epilogue.declare(k, spec), k.state("tokens")
        level = tuple(k.state(name.replace("plane", "n")) for name in planes)
        for name, variable in planes.items():
            k.count(name.replace("plane", "p"), variable)
        outliers = None
        if spec.outliers:
            sparse = {name: buffers.pop(f"outlier_{name}") for name in OUTLIER_ARRAYS}
            outliers = Outliers(**sparse, slots=k.count("slots", slots))
        return cls(spec, *x, Weights(fmt, buffers), epilogue, count, level, outliers, reordered)

    def ranges(self, level: list[Expr]) -> Iterator[tuple[int, Any, Any]]:
        """(bits, first group, end) for each number of bits that the level (n3, n4, ...) reads."""
        if not level:
            yield self.spec.format.bits, 0, self.spec.groups
            return
        first: Any = 0
        for bits in range(self.spec.format.bits, 1, -1):
            end = level[bits - 3] if bits > 2 else self.spec.groups
            yield bits, first, end
            first = end

    def sparse_begin(self, tile: Expr, n3: Expr) -> Any:
        """The first entry of a tile that is read where groups from n3 on are read at 2 bits."""
        groups, entries = self.spec.groups, self.outliers
        assert entries is not None
        start = T.cast(entries.start[tile, T.min(n3, T.int32(groups - 1))], "int32")
        return tirx.Select(n3 < groups, start, entries.slots)

    def sparse_row(self, tile: Expr, index: Expr) -> Any:
        """Where an entry lies in its tile; what a damaged file says stays in it."""
        assert self.outliers is not None
        row = T.cast(self.outliers.row[tile, index], "int32")
        return T.min(row, T.int32(self.spec.format.row_tile - 1))

    def sparse_product(self, tile: Expr, index: Expr, token: Expr) -> Any:
        """An entry times its channel of a token, which stays in x."""
        assert self.outliers is not None
        size = self.spec.format.group_size
        stored = T.cast(self.outliers.channel[tile, index], "int32")
        channel = T.bind(T.min(stored, T.int32(self.spec.groups * size - 1)))
        scale = self.scales[token] if self.sums is None else self.scales[token, channel // size]
        place = place_of_channel(channel) if self.reordered else channel
        x = T.cast(self.codes[token, place], "float32") * scale
        return T.cast(self.outliers.value[tile, index], "float32") * x
