"""What a target can do, as plain data: passes and kernels ask this, never the target's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """Facts that passes need.

    Attributes:
        vector_bytes: width of a vector register.
        integer_dot: whether one instruction multiplies and adds four 8-bit pairs into 32 bit.
        half_load: whether float16 loads convert to float32 in hardware.
    """

    vector_bytes: int
    integer_dot: bool
    half_load: bool
