"""The parameters of a quantized linear kernel, which those of one and of many tokens share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.ir.formats import OUTLIER_ARRAYS

from .activations import Activations
from .dequantize import Level, QuantizedWeights
from .epilogue import Epilogue
from .linear_spec import LinearSpec, scalar_argument, split_halves, tensor_argument
from .outliers import OutlierReader


@dataclass(frozen=True)
class QuantizedKernel:
    """The parameters of a kernel under construction."""

    spec: LinearSpec
    isa: VectorISA
    x: Activations
    weights: QuantizedWeights
    epilogue: Epilogue
    tokens: Any
    level: Level | None
    outliers: OutlierReader | None

    @property
    def halves(self) -> int:
        """Vectors that hold the rows of a tile."""
        return split_halves(self.spec.format, self.isa)

    @property
    def signed(self) -> bool:
        """Whether a matrix product works on signed codes (zero points folded in)."""
        return self.level is None or (self.isa.folds_zeros and not self.short)

    @property
    def short(self) -> bool:
        """Whether a matrix product takes codes of 4 bits as they are and adds up in 16 bits."""
        return self.isa.adds_short and self.spec.format.kind == "q4"


def declare_kernel(spec: LinearSpec, isa: VectorISA) -> QuantizedKernel:
    """Declare the parameters of the kernel of `spec`, in the order of `build_quantized_linear`."""
    groups = spec.groups
    x = Activations.declare(isa, spec.max_tokens, groups, spec.format.group_size)
    planes, slots = {name: T.int32() for name in spec.format.plane_names}, T.int32()
    stored = dict(planes)  # extents that are known at run time
    stored |= {f"outlier_{name}": slots for name in ("value", "channel", "row")}
    buffers = {}
    for array in spec.weight_arrays():
        tiles, *rest = array.shape
        if array.name in stored:
            rest[0] = stored[array.name]
        buffers[array.name] = tensor_argument(f"w_{array.name}", (tiles, *rest), array.dtype)
    epilogue = Epilogue.declare(spec, isa)
    count = scalar_argument("tokens")
    level, outliers = None, None
    if spec.format.nested:
        bits = [name.removeprefix("plane") for name in planes]
        level = tuple(scalar_argument(f"n{bit}") for bit in bits)
        for bit, stored_groups in zip(bits, planes.values(), strict=True):
            scalar_argument(f"p{bit}", stored_groups)
        if spec.outliers:
            sparse = {name: buffers.pop(f"outlier_{name}") for name in OUTLIER_ARRAYS}
            scalar_argument("slots", slots)
            outliers = OutlierReader(spec.format, groups, **sparse, slots=slots, n3=level[0])
    weights = QuantizedWeights(isa, spec.format, groups, buffers)
    return QuantizedKernel(spec, isa, x, weights, epilogue, count, level, outliers)
