"""Activation formats: how the inputs of linears with integer weights are rounded.

Codes are int8 whatever their bits, so that one multiply instruction takes all; a scale and a sum of
codes belong to each token and group of channels, the groups of the weights.
`ir/reference_activation.py` has the numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InputError

ACTIVATION_BITS = (8, 4)
FACTORS = (1, 2, 4, 8)
"""Powers of two that a channel can be divided by before it is rounded (TRIP of arXiv 2312.05693).
Codes are multiplied by them again: 15 * 8 fits a byte, so weights stay as they are."""


@dataclass(frozen=True)
class ActivationFormat:
    """How activations are rounded.

    Attributes:
        bits: 8: codes -127..127 by the largest magnitude of a group. 4: the 16 whole steps that
            cover a group from its smallest to its largest value, 0 among them.
        factored: of 4 bits: channels have `FACTORS`, so that those of a group come closer.
    """

    bits: int = 8
    factored: bool = False

    def __post_init__(self) -> None:
        if self.bits not in ACTIVATION_BITS:
            choices = ", ".join(map(str, ACTIVATION_BITS))
            raise InputError(f"activations have no {self.bits} bits (need one of {choices})")
        if self.factored and self.bits != 4:
            raise InputError(f"only activations of 4 bits have factors (got {self.bits} bits)")

    @property
    def name(self) -> str:
        """The spelling used in the IR: a8, a4, a4f."""
        return f"a{self.bits}{'f' * self.factored}"

    @property
    def kernel_suffix(self) -> str:
        """What the names of kernels say of it."""
        return "" if self.bits == 8 else f"_{self.name}"

    @classmethod
    def parse(cls, name: str) -> ActivationFormat:
        """Read what `name` spells.

        Raises:
            InputError: when the text is no format.
        """
        match = re.fullmatch(r"a(\d+)(f?)", name)
        if not match:
            raise InputError(f"unknown activation format (got {name!r}, need a8, a4 or a4f)")
        return cls(int(match[1]), bool(match[2]))


DEFAULT_ACTIVATIONS = ActivationFormat()
