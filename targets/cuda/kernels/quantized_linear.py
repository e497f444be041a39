"""Linear kernels on quantized weights with int8 activations: which one a number of tokens gets."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec

from .dot_linear import build_dot_linear
from .tensor_linear import build_tensor_linear


def build_quantized_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """Build the kernel of `spec`; its buffers are those of `LinearSpec` and `ir/formats.py`.

    Parameters of the kernel: codes, scales, sums, weights..., [bias], [residual], out, tokens,
    for nested codes n3, n4, ... (the level) and p3, p4, ... (the groups that the planes have
    stored), and with outliers their slots.
    """
    build = build_dot_linear if spec.max_tokens < isa.tensor_tokens else build_tensor_linear
    return build(spec, isa)
