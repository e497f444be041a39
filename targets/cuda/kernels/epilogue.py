"""The end of a linear kernel: bias, gate, residual, and the store of one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.targets.cuda.blocks import Kernel, activation


@dataclass(frozen=True)
class Epilogue:
    """Finishes sums: `bias`, `residual` and `out` are buffers (None where there is none)."""

    spec: LinearSpec
    bias: Any
    residual: Any
    out: Any

    @classmethod
    def declare(cls, k: Kernel, spec: LinearSpec) -> Epilogue:
        """Declare the kernel's parameters that the epilogue owns, in the order of the contract."""
        shape = (spec.max_tokens, spec.output_features)
        bias = k.buffer("bias", (spec.out_features,)) if spec.bias else None
        residual = k.buffer("residual", shape) if spec.residual else None
        return cls(spec, bias, residual, k.buffer("out", shape))

    def write(self, token: Any, column: Any, sums: Sequence[Any]) -> None:
        """Finish and store one output.

        Args:
            sums: float32 sums of its row, with a gate those of gate and up.
        """
        values = list(sums)
        if self.bias is not None:
            width = self.spec.output_features
            values = [v + self.bias[column + i * width] for i, v in enumerate(values)]
        value = values[0]
        if self.spec.gate:
            value = activation(self.spec.gate, T.bind(value)) * values[1]
        if self.residual is not None:
            value = value + self.residual[token, column]
        T.buffer_store(self.out, value, [token, column])
