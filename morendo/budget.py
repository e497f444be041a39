"""How many bits weights and activations get, as the user says it, and the passes that follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morendo.ir.errors import InputError
from morendo.ir.formats import WHOLE, check_readings, format_for_bits

GROUP_SIZE = 32
BITS_FOR_FINE_SCALES = 4.5
"""A budget from here on has room for 8-bit scales and zeros in groups of 32."""
BITS_OF_HEADS = 0.5
"""What heads of 6 bits add to a budget that counts them: more than that only in few models."""
BITS_WITHOUT_TUNING = 4.0
"""From here on tuning takes off perplexity and adds divergence on other text: not by default."""
SEARCHED_BITS = ("6", "5", "4")
"""Of weights whose scales are searched without a text; rounding 8 bits to nearest loses nothing."""
_BYTES_RATHER = 1e7
"""Who gives so large a number without a unit means bytes: ten terabytes are no model's."""
DEFAULT_TEXT = "self"
MEASURING_TEXT = "pydoc"
"""What activations are measured on where weights are rounded without a text: read at once."""
ACTIVATIONS = (8, 4, "mixed", 16)
"""Bits of the inputs of linears; mixed: 4 where the linears tolerate it."""
AUTO = "auto"
EMBEDDING_BITS = (8, 6, 5, 4, AUTO)
"""What tables of tokens and output heads can have beside matrices of codes; AUTO: 4 to 6, as the
budget, which then is for them too, gives them."""


@dataclass(frozen=True)
class Budget:
    """One of three ways to say it: a format for all weights, bits on average, or a size.

    Attributes:
        bits: "f32", "f16", 8, 6, 5 or 4.
        average_bits: of the linears, scales and all; 0 when not given.
        size_mb: megabytes of all weights; 0 when not given.
        group_size: input channels that share a scale.
        embedding_bits: of the table of tokens and the output head where weights are no floats.
            AUTO is the default of a size, which counts them anyway.
        readings: bits of each reading that 4-bit codes are made for, falling; () for one that
            lower levels read fewer bits of, (4,) for one that is read whole at the only level.
        activations: one of `ACTIVATIONS`.
    """

    bits: int | str
    average_bits: float
    size_mb: float
    group_size: int
    embedding_bits: int | str = 8
    readings: tuple[int, ...] = ()
    activations: int | str = 8

    @classmethod
    def of(
        cls,
        bits: int | str,
        average_bits: float | None,
        size_mb: float | None,
        group_size: int | None,
        embedding_bits: int | str | None = None,
        readings: str | Sequence[int] | None = None,
        activations: int | str | None = None,
    ) -> Budget:
        """Check that the options go together.

        Raises:
            InputError: when they do not.
        """
        given = [value for value in (average_bits, size_mb) if value is not None]
        if len(given) > 1 or any(value <= 0 for value in given):
            raise InputError(
                f"give average bits or a size, not both, and more than 0 (got {given})"
            )
        if given and str(bits) != "4":
            raise InputError(f"a budget is for 4-bit weights (got bits {bits!r})")
        size = group_size or GROUP_SIZE
        quantized = format_for_bits(bits, size).quantized
        if embedding_bits is not None and embedding_bits not in EMBEDDING_BITS:
            raise InputError(
                f"embedding tables can have {', '.join(map(str, EMBEDDING_BITS))} bits "
                f"(got {embedding_bits})"
            )
        if embedding_bits is not None and not quantized:
            raise InputError(
                f"embedding tables follow the rest where weights are floats (got bits {bits!r})",
                hint="leave --embedding-bits out, or give --bits 8, 6, 5 or 4",
            )
        if embedding_bits == AUTO and not given:
            raise InputError(
                f"{AUTO} bits of embedding tables are for a budget",
                hint="give --average-bits or --size, or a number of bits",
            )
        chosen = embedding_bits or (AUTO if size_mb else 8)
        several = () if readings is None else parse_readings(readings)
        if several and str(bits) != "4":
            raise InputError(f"only 4-bit codes have readings (got bits {bits!r})")
        if given and several == WHOLE:
            raise InputError(
                "a budget gives groups 2 or 3 bits, the one reading 4 needs all of them",
                hint="leave --readings out, or the budget",
            )
        inputs = 8 if activations is None else activations
        if inputs not in ACTIVATIONS:
            choices = ", ".join(map(str, ACTIVATIONS))
            raise InputError(f"activations are {choices} (got {inputs!r})")
        if inputs != 8 and not quantized:
            raise InputError(
                f"activations stay floats where weights are floats (got bits {bits!r})",
                hint="leave --activations out, or give --bits 8, 6, 5 or 4",
            )
        return cls(bits, average_bits or 0.0, size_mb or 0.0, size, chosen, several, inputs)

    @property
    def limited(self) -> bool:
        """Whether groups are promoted from 2 bits under a budget."""
        return bool(self.average_bits or self.size_mb)

    @property
    def whole(self) -> bool:
        """Whether codes are read with all of their bits only, so that there is one level."""
        return self.readings == WHOLE

    @property
    def label(self) -> str:
        """How an artifact's name says it: 2.9bit, 90MB, 4bit, f16, 4-3bit, 4bit-whole, 4bit-a4."""
        if self.activations == 8:
            return self._weights_label
        bits = f"a{self.activations}" if isinstance(self.activations, int) else self.activations
        return f"{self._weights_label}-{bits}"

    @property
    def _weights_label(self) -> str:
        if self.average_bits:
            return f"{_plain(self.average_bits)}bit"
        if self.size_mb:
            return f"{_plain(self.size_mb)}MB"
        if self.readings:
            return f"{'-'.join(map(str, self.readings))}bit" + "-whole" * self.whole
        return f"{self.bits}{'bit' if str(self.bits).isdigit() else ''}"

    def texts(self, calibrate: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
        """What to calibrate on.

        Raises:
            InputError: for text where weights stay floats.
        """
        if calibrate is None:
            if self.readings and not self.whole and not self.limited:
                raise InputError(
                    "codes are made for several readings by a text, rounding to nearest has one",
                    hint="give --calibrate self or --calibrate FILE",
                )
            return [DEFAULT_TEXT] if self.limited else []
        if not format_for_bits(self.bits, self.group_size).quantized:
            raise InputError(
                f"there is nothing to calibrate in float weights (got bits {self.bits!r}, "
                "need 8, 6, 5 or 4)"
            )
        return [calibrate] if isinstance(calibrate, str | Path) else list(calibrate)

    @property
    def measuring_texts(self) -> list[str | Path]:
        """What activations are measured on where there is no text for weights."""
        return [MEASURING_TEXT] if self.measures_activations else []

    @property
    def measures_activations(self) -> bool:
        """Whether some activations may get 4 bits."""
        return self.activations in (4, "mixed")

    def passes(
        self, calibrated: bool, tuning_steps: int | None = None, searched: bool | None = None
    ) -> str:
        """The spec of the passes that `compile` runs.

        Args:
            calibrated: whether there is text.
            tuning_steps: of tune-scales; by default its own number under a budget below
                `BITS_WITHOUT_TUNING` and for readings below it, else none.
            searched: whether scales are searched without text; by default wherever they can be.

        Raises:
            InputError: for tuning without text, a search that finds nothing to do, or none where
                a text finds the scales.
        """
        if tuning_steps and not calibrated:
            raise InputError("tuning needs text", hint="give --calibrate FILE or --calibrate self")
        if searched is None:
            searched = not calibrated and str(self.bits) in SEARCHED_BITS
        else:
            self._check_search(searched, calibrated)
        # tables are not searched, and compact scales lose where they are not found by a search
        fitted = calibrated or (searched and self.embedding_bits == 8)
        steps = self._formats(fitted)
        if self.measures_activations:
            steps.append(f"choose-activations{{bits={self.activations}}}")
        if searched:
            steps.append("search-scales")
        if calibrated:
            steps.append("calibrate-weights")
        if tuning_steps:
            steps.append(f"tune-scales{{steps={tuning_steps}}}")
        elif calibrated and tuning_steps is None:
            steps += self._default_tuning(self.embedding_bits == AUTO)
        steps += ["fuse-attention", "fuse-linears", "specialize-phases"]
        steps += ["quantize-activations"] * (self.activations != 16)
        steps.append("choose-levels" + "{top_only=True}" * self.whole)
        return ",".join(steps)

    def _formats(self, fitted: bool) -> list[str]:
        """The passes that choose formats; `fitted`: scales will be, so that compact ones do."""
        formats = f"bits={self.bits},group_size={self.group_size}"
        heads = self.embedding_bits == AUTO
        fine = BITS_FOR_FINE_SCALES + BITS_OF_HEADS * heads
        if fitted and str(self.bits) == "4" and self.average_bits < fine:
            formats += ",compact=True"
        if self.embedding_bits != 8:
            formats += f",head_bits={6 if heads else self.embedding_bits}"
        if self.readings:
            formats += f",readings={''.join(map(str, self.readings))}"
        steps = ["normalize", f"quantize-weights{{{formats}}}"]
        if self.limited:
            limit = (
                f"average_bits={_plain(self.average_bits)}"
                if self.average_bits
                else f"size_mb={_plain(self.size_mb)}"
            )
            limit += ",heads=True" * heads
            steps += ["analyze-group-ranges" + "{heads=True}" * heads, f"promote-groups{{{limit}}}"]
        return steps

    def _check_search(self, searched: bool, calibrated: bool) -> None:
        """Refuse a word about the search of scales that cannot be kept."""
        if calibrated:
            option = "--search-scales" if searched else "--no-search-scales"
            raise InputError(
                "scales are searched with a text anyway (one is given, or default under a budget)",
                hint=f"leave {option} out",
            )
        if searched and str(self.bits) not in SEARCHED_BITS:
            raise InputError(
                f"scales are searched for weights of 6, 5 or 4 bits (got bits {self.bits!r})",
                hint="leave --search-scales out: with 8 bits rounding to nearest loses next to "
                "nothing, and floats have no scales",
            )

    def _default_tuning(self, heads: bool) -> list[str]:
        """tune-scales where it is worth its time, with a text and nothing said about it."""
        if self.size_mb or (self.readings and not self.whole) or heads:
            return [f"tune-scales{{below_bits={BITS_WITHOUT_TUNING:g}}}"]
        return ["tune-scales"] if 0 < self.average_bits < BITS_WITHOUT_TUNING else []


def parse_readings(readings: str | Sequence[int]) -> tuple[int, ...]:
    """The bits of each reading of a text such as 4,3 or of numbers.

    Raises:
        InputError: when they are neither 4 nor two or three falling numbers from 4 to 2.
    """
    given = readings.split(",") if isinstance(readings, str) else readings
    try:
        found = tuple(int(each) for each in given)
    except (TypeError, ValueError):
        raise InputError(
            f"readings are numbers of bits (got {readings!r})", hint="such as 4,3 or 4,3,2 or 4"
        ) from None
    if found != WHOLE:
        try:
            check_readings(found)
        except InputError as error:
            raise InputError(error.message, hint=f"{error.hint}, or 4 alone") from None
    return found


def _plain(value: float) -> str:
    """A number with all of its digits: 90, 12345.678."""
    return repr(float(value)).removesuffix(".0")


def default_name(model: str | Path, target: str, label: str) -> str:
    """MODEL-TARGET-4bit for .../MODEL.gguf; hub ids lose their owner."""
    path = Path(model)
    stem = re.sub(r"\.(gguf|onnx)$", "", path.name or path.resolve().name, flags=re.IGNORECASE)
    return f"{stem}-{target}-{label}"


def parse_size(text: str) -> float:
    """Megabytes (10^6 bytes) of a size such as 90MB, 1.5GB, 800kB or 90 (megabytes).

    Raises:
        ValueError: when it is no size.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kMG](i?B)?)?", text, flags=re.IGNORECASE)
    if not match:
        raise ValueError(f"no size (got {text!r}, need one such as 90MB, 1.5GB or 800kB)")
    if not match.group(2) and float(match.group(1)) >= _BYTES_RATHER:
        raise ValueError(f"a number alone is megabytes (got {text}), give a unit such as 90MB")
    unit = (match.group(2) or "mb").lower()
    base = 1024 if "i" in unit else 1000
    return float(match.group(1)) * base ** " kmg".index(unit[0]) / 1e6
