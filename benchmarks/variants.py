"""What benchmarks/quantization.py compares: ways to quantize, by name and passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from morendo.budget import Budget

SIZES = (55, 62, 69, 76)
"""Megabytes of all weights, up to what 4 bits and a head of 6 take of SmolLM2."""
CURVE_BITS = (2.35, 2.6, 2.9, 3.0, 3.5, 4.0, 4.25, 4.55)
LLAMA_CPP = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0")
"""K-quants have blocks of 256 channels, which does not divide the width of every model."""
PLAIN = "normalize,quantize-weights"
COMPACT = "normalize,quantize-weights{compact=True}"
BUDGET = (
    "normalize,quantize-weights{{{scales}}},analyze-group-ranges,"
    "promote-groups{{average_bits={bits:g}{options}}},{more}calibrate-weights"
)


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        spec: of passes.
        peer: a type of llama.cpp that takes the place of every 4-bit format.
    """

    name: str
    spec: str
    peer: str = ""


def curve() -> list[Variant]:
    """The budget from its least to its most, and what it is compared with."""
    budget = [Budget.of(4, bits, None, None) for bits in CURVE_BITS]
    by_budget = [
        Variant(f"{b.average_bits:g} bits", b.passes(True).split(",fuse-")[0]) for b in budget
    ]
    return [
        *by_budget,
        Variant("4 bit, compact scales, error feedback", COMPACT + ",calibrate-weights"),
        Variant("4 bit, 8-bit scales, error feedback", PLAIN + ",calibrate-weights"),
        Variant("4 bit, 8-bit scales, searched", PLAIN + ",search-scales"),
        Variant("4 bit, compact scales, searched", COMPACT + ",search-scales"),
        Variant("4 bit, compact scales, to nearest", COMPACT),
        Variant("4 bit, 8-bit scales, to nearest", PLAIN),
        *(Variant(f"llama.cpp {name}", PLAIN, name) for name in LLAMA_CPP),
    ]


def passes(bits: float = 2.9) -> list[Variant]:
    """What each step is worth: without it, at the same number of bytes."""

    def spec(
        options: str = "", more: str = "", scales: str = "compact=True", bits: float = bits
    ) -> str:
        return BUDGET.format(bits=bits, options=options, more=more, scales=scales)

    outliers = spec(",outliers=0.003", "split-outliers{fraction=0.003},")
    # 16-bit scales and zeros would take 32 bits for each group of 128 where 8-bit ones take 16
    first_order = spec(scales="group_size=128", bits=bits - 16 / 128)
    return [
        Variant("all", spec()),
        Variant("with tuned scales, the default", spec() + ",tune-scales"),
        Variant("with outliers, 0.3 %", outliers),
        Variant("without ranking of groups", spec(",ranked=False")),
        Variant("without order of channels", spec().replace("ranges", "ranges{sort=False}", 1)),
        Variant("without error feedback", spec() + "{feedback=False}"),
        Variant("without compensation", spec() + "{compensation=0}"),
        Variant("8-bit scales of 64 channels", spec(scales="group_size=64")),
        Variant("16-bit scales of 128 channels", first_order),
    ]


def readings() -> list[Variant]:
    """Codes made for several readings, scored at each, and for 4 bits alone."""
    alone = Variant("4 bits alone", Budget.of(4, None, None, None).passes(True).split(",fuse-")[0])
    several = [Budget.of(4, None, None, None, readings=each) for each in ("4,3", "4,3,2", "3,2")]
    return [alone, *(Variant(b.label, b.passes(True).split(",fuse-")[0]) for b in several)]


def elsewhere() -> list[Variant]:
    """What keeps 3 bits from learning their text by heart, seen on other kinds of text."""
    spec = curve()[CURVE_BITS.index(3.0)].spec
    options = ("damping=0.1", "compensation=0.25", "shrinkage=0.1")
    return [
        Variant("3 bits, the default", spec),
        Variant("not tuned", spec.removesuffix(",tune-scales")),
        *(Variant(o, spec.replace("te-weights", f"te-weights{{{o}}}")) for o in options),
    ]


def sizes() -> list[Variant]:
    """By bytes of all weights: what `--size` gives, heads of 8 bits, and llama.cpp's types."""
    by_size = [(f"{mb} MB", Budget.of(4, None, mb, None)) for mb in SIZES]
    by_bits = [
        ("4.25 bits, head of 6", Budget.of(4, 4.25, None, None, 6)),
        ("4.25 bits", Budget.of(4, 4.25, None, None)),
        ("5 bits, head of 6", Budget.of(5, None, None, None, 6)),
        ("5 bits", Budget.of(5, None, None, None)),
    ]
    return [
        *(Variant(name, b.passes(True).split(",fuse-")[0]) for name, b in by_size + by_bits),
        Variant("4 bits, searched", COMPACT + ",search-scales"),
        *(Variant(f"llama.cpp {name}", PLAIN, name) for name in LLAMA_CPP),
    ]


WHAT: dict[str, Callable[[], list[Variant]]] = {
    "curve": curve,
    "sizes": sizes,
    "passes": passes,
    "readings": readings,
    "elsewhere": elsewhere,
}
