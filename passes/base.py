"""The pass protocol: what a pass is, what it may ask, and how it says what it did."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tvm

from morendo.ir.errors import CompileError, InputError
from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout
from morendo.ir.weight_overlay import WeightOverlay


@dataclass
class Report:
    """What one pass counted, what it left alone and why, and what it measured of each weight.

    Attributes:
        summary: what who compiles should know in the end, one line; "" for nothing.
    """

    counts: dict[str, int] = field(default_factory=dict)
    misses: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: str = ""

    def count(self, what: str, number: int = 1) -> None:
        """Add to a count, such as ("linears fused", 3)."""
        self.counts[what] = self.counts.get(what, 0) + number

    def missed(self, where: str, why: str) -> None:
        """Record what was left alone and why; nothing is skipped silently."""
        self.misses.append((where, why))

    @property
    def reasons(self) -> dict[str, int]:
        """How often something was left alone for each reason."""
        return dict(Counter(why for _, why in self.misses))


@dataclass
class Calibration:
    """Text to quantize by; what comes of it goes to the weights of the context.

    Attributes:
        windows: token ids int64 [W, n].
        tuning: more of them, int64 [T, n], for tune-scales; `windows` where there are none.
        scratch: an existing folder for activations that do not fit in memory.
    """

    windows: np.ndarray
    scratch: Path
    tuning: np.ndarray | None = None


@dataclass
class Context:
    """What a pass may ask besides the module.

    Attributes:
        weights: of the model, and all that passes make besides the IR; None when there is only IR
            text.
        report: of the running pass.
        calibration: None when there is no text.
        layout: how the target wants data to lie in tiles.
        track: shows the progress of a number of stages under a title; its result is called after
            each.
    """

    weights: WeightOverlay | None = None
    report: Report = field(default_factory=Report)
    calibration: Calibration | None = None
    layout: TileLayout = DEFAULT_LAYOUT
    track: Callable[[str, int], AbstractContextManager[Callable[..., None]]] = field(
        default=lambda title, stages: nullcontext(lambda steps=1: None)
    )


@dataclass(frozen=True)
class Pass:
    """One rewrite of the module; a subclass's fields are its options.

    Class attributes:
        name: as written in specs, such as "quantize-weights".
        task: the title of its progress, if it takes long.
        needs, gives: invariants (`ir/invariants.py`) before and after.
    """

    name: ClassVar[str] = ""
    task: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("well-formed",)
    gives: ClassVar[tuple[str, ...]] = ("well-formed",)

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        """The rewritten module; the given one stays as it is."""
        raise NotImplementedError

    @property
    def spec(self) -> str:
        """The spec string that makes this pass again, options that differ from the default."""
        options = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        return self.name + ("{" + ",".join(options) + "}" if options else "")


def needed_calibration(name: str, context: Context) -> tuple[Calibration, WeightOverlay]:
    """The text and the weights, for a pass that cannot do without.

    Raises:
        CompileError: when there is no text.
    """
    if context.calibration is None or context.weights is None:
        raise CompileError(
            f"{name}: there is no text to calibrate on",
            hint="give `morendo compile` a model and --calibrate, or leave the pass out",
        )
    return context.calibration, context.weights


_SPEC = re.compile(r"([a-z][a-z0-9-]*)(?:\{([^{}]*)\})?\s*(?:,|$)\s*")


def parse_spec(text: str, known: dict[str, type[Pass]]) -> list[Pass]:
    """Passes from a spec such as `normalize,quantize-weights{bits=4,group_size=64}`.

    Raises:
        InputError: for an unknown pass or option, or a value of the wrong type.
    """
    made, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _SPEC.match(text, position)
        if not match:
            raise InputError(
                f"pass spec does not parse (got {text[position:]!r})",
                hint="write name{option=value,...},name,...",
            )
        made.append(_make(match.group(1), match.group(2) or "", known))
        position = match.end()
    if text.endswith(","):
        raise InputError(
            "pass spec ends with a comma", hint="write name{option=value,...},name,..."
        )
    if not made:
        raise InputError("pass spec is empty", hint="list the passes with `morendo passes`")
    return made


def _make(name: str, options: str, known: dict[str, type[Pass]]) -> Pass:
    if name not in known:
        raise InputError(
            f"unknown pass (got {name!r})", hint=f"known passes: {', '.join(sorted(known))}"
        )
    kind = known[name]
    defaults = {f.name: f.default for f in fields(kind)}
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, _, raw = item.partition("=")
        if key not in defaults:
            raise InputError(
                f"{name}: unknown option (got {key!r})",
                hint=f"options: {', '.join(defaults) or 'none'}",
            )
        values[key] = _value(name, key, raw, defaults[key])
    return kind(**values)


def _value(name: str, key: str, raw: str, default: Any) -> Any:
    """The option's text as a value of its default's type."""
    if isinstance(default, str):
        return raw
    try:
        value = ast.literal_eval(raw.capitalize() if raw in ("true", "false") else raw)
    except (ValueError, SyntaxError):
        value = raw
    if isinstance(default, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(default):
        raise InputError(
            f"{name}: option {key} has a wrong value (got {raw!r}, need {type(default).__name__})"
        )
    return value
