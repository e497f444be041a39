"""The description of a machine that `morendo simulate` reads: TOML, with the numbers' sources."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError

MANY, HALF, ATTENTION = "many", "float16", "attention"
"""Keys of `products` that are no numbers of bits: several tokens, float16 weights, and attention
with keys and values."""


@dataclass(frozen=True)
class DeviceDescription:
    """What the model of a machine's time knows of it.

    A packet is what the processor executes together; where that is an instruction, an instruction.

    Attributes:
        name: for people.
        sources: where the numbers are from, for people.
        bandwidth: 10^9 bytes a second that weights are read with.
        clock: 10^9 cycles a second.
        cycles_per_packet: of a vector unit that is never without work.
        vector_units: that work at the same time.
        on_chip_bytes: of memory beside them that weights are fetched to ahead of their use.
        call_microseconds: of a step that are spent on starting it.
        products: of a weight and an activation that a packet makes, over a whole matrix and with
            all that belongs to it, by the bits of weights; `MANY` for several tokens, `HALF`
            for float16 weights, `ATTENTION` for queries with keys and weights with values.
        elements_per_packet: activations that all other kernels read or write.
    """

    name: str
    sources: str
    bandwidth: float
    clock: float
    cycles_per_packet: float
    vector_units: int
    on_chip_bytes: int
    call_microseconds: float
    products: Mapping[str, float]
    elements_per_packet: float

    def seconds(self, packets: float, units: int = 1) -> float:
        """How long packets take on so many vector units."""
        return packets * self.cycles_per_packet / (self.clock * 1e9 * units)

    def products_of(self, kind: str) -> float:
        """Products a packet for weights of so many bits, or for another key of `products`.

        Raises:
            InputError: when the description does not say.
        """
        found = self.products.get(kind)
        if found is None:
            raise InputError(
                f"the description of {self.name} has no products for {kind} "
                f"(got {', '.join(self.products)})",
                hint=f'measure them, and add "{kind}" = N to [products]',
            )
        return found


def read_device(path: Path) -> DeviceDescription:
    """Read a description.

    Raises:
        InputError: for what is no TOML, and for a number that is missing, unknown or impossible.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"the description cannot be read ({error.strerror})"
        raise InputError(message, where=str(path), hint="give a file with --npu") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"this is no TOML file: {error}", where=str(path)) from None
    known = {each.name: str(each.type) for each in fields(DeviceDescription)}
    hint = f"it has {', '.join(known)}"
    for problem, names in (("lacks", known.keys() - data), ("has an unknown", data.keys() - known)):
        if names:
            raise InputError(f"the description {problem} {min(names)}", where=str(path), hint=hint)
    for name, value in data.items():
        _check(name, value, known[name], path)
    return DeviceDescription(**data)


def _check(name: str, value: Any, kind: str, path: Path) -> None:
    """Refuse a value that is not of its kind."""
    if kind == "str":
        good, need = isinstance(value, str), "a text"
    elif kind.startswith("Mapping"):
        good, need = isinstance(value, dict), "a table of numbers above 0"
        for key, each in value.items() if isinstance(value, dict) else ():
            _check(f"{name}.{key}", each, "float", path)
    elif kind == "int":
        good, need = _is_number(value) and isinstance(value, int), "a whole number above 0"
    else:
        good = _is_number(value) or (name == "call_microseconds" and value == 0)
        need = "a number above 0"
    if not good:
        raise InputError(f"bad {name} (got {value!r}, need {need})", where=str(path))


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
