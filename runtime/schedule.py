"""Schedules: which precision level computes each token of an answer (docs/schedules.md).

The first token of an answer comes from the prefill, which reads the most precise level; every later
one from a decode step, whose level the schedule chooses. runtime/c/schedule.c does the same in C.
Progressive precision is the idea of PMPD (arXiv 2410.13461); going up again where the model is in
doubt is ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import ArtifactError, InputError
from morendo.ir.schema import COUNT, mismatch
from morendo.runtime.artifact import SCHEDULE, read_listed

VERSION = 1
KINDS = ("static", "entropy", "learned")
WEIGHT_UNIT = 1 / 65536  # of a network's numbers in the file, which are integers
_UNLIKELY = np.float32(20)  # e^-20 of the likeliest token's probability is left out of an entropy
_AGAIN = "run morendo tune again"

CacheMeans = Callable[[int, int], NDArray[np.float64]]
Levels = Callable[[NDArray[np.float32]], int]
"""The level of an answer's next decode step, given the logits that its token was drawn from; they
may be anything where the schedule does not need them."""


@dataclass(frozen=True)
class Fall:
    """Levels that fall at fixed places of an answer.

    Args:
        switches: (token, level): from generated token `token` on, counted from 0, `level`. Both
            rise from one to the next; token 0 is the prefill's, so the first may be at 1.

    Raises:
        InputError: for a schedule that rises, or switches that are out of order.
    """

    switches: tuple[tuple[int, int], ...] = ()
    needs_logits: ClassVar = False

    def __post_init__(self) -> None:
        for token, level in self.switches:
            if token < 1 or level < 1:
                raise InputError(
                    f"a switch is at token 1 or later, to level 1 or more (got {token}, {level})"
                )
        for (token, level), (later, lower) in pairwise(self.switches):
            if later <= token:
                raise InputError(f"switches must be in order (got token {later} after {token})")
            if lower <= level:
                raise InputError(
                    f"a schedule may not rise (got level {lower} after {level} at token {later})"
                )

    def __str__(self) -> str:
        return ", ".join(
            ["level 0", *(f"{level} from token {token}" for token, level in self.switches)]
        )

    def start(self, means: CacheMeans) -> Levels:
        """The levels of a new answer."""
        steps = _Steps(self)
        return lambda _: steps.next_level()

    def level(self, token: int) -> int:
        """The level that computes a generated token."""
        return next((level for at, level in reversed(self.switches) if at <= token), 0)


class _Steps:
    """Where an answer is in a fall."""

    def __init__(self, fall: Fall) -> None:
        self._fall, self._token, self._level = fall, 0, 0
        self._switches = list(reversed(fall.switches))

    def next_level(self) -> int:
        self._token += 1
        while self._switches and self._switches[-1][0] <= self._token:
            self._level = self._switches.pop()[1]
        return self._level


@dataclass(frozen=True)
class Entropy:
    """A fall that is back at level 0 for a token that the model was in doubt about.

    Args:
        fall: the levels of tokens that it was sure of.
        threshold: in thousandths of a nat: a token that was drawn from a distribution of more
            entropy is read at level 0.
    """

    fall: Fall
    threshold: int
    needs_logits: ClassVar = True

    def __str__(self) -> str:
        nats = self.threshold / 1000
        return f"{self.fall}; 0 for tokens drawn with more than {nats:g} nats of entropy"

    def start(self, means: CacheMeans) -> Levels:
        """The levels of a new answer."""
        steps, most = _Steps(self.fall), self.threshold / 1000

        def next_level(logits: NDArray[np.float32]) -> int:
            level = steps.next_level()
            return 0 if level and entropy(logits) > most else level

        return next_level


@dataclass(frozen=True)
class Layer:
    """outputs = weights @ inputs + bias.

    Args:
        weights: [outputs][inputs], in parts of WEIGHT_UNIT.
        bias: [outputs], the same.
    """

    weights: tuple[tuple[int, ...], ...]
    bias: tuple[int, ...]


@dataclass(frozen=True)
class Learned:
    """A fall that a small network chooses for each prompt.

    Args:
        cache: the plan's tensor that it looks at, one row for each token.
        window: it sees the mean over this many tokens at the prompt's end, at most.
        layers: with rectified sums between them.
        choices: the falls; the network's last layer has an output for each.
    """

    cache: int
    window: int
    layers: tuple[Layer, ...]
    choices: tuple[Fall, ...]
    needs_logits: ClassVar = False

    def __str__(self) -> str:
        return f"one of {len(self.choices)} falls, chosen by the prompt"

    def start(self, means: CacheMeans) -> Levels:
        """The levels of a new answer, whose prompt the cache holds."""
        return self.choose(means(self.cache, self.window)).start(means)

    def choose(self, features: NDArray[np.float64]) -> Fall:
        """The fall for a prompt's features, the means of the cache."""
        need = len(self.layers[0].weights[0])
        if len(features) != need:
            raise ArtifactError(
                f"{SCHEDULE} is for another artifact: the network takes {need} numbers "
                f"(need {len(features)})"
            )
        values = features
        for number, layer in enumerate(self.layers):
            weights = np.asarray(layer.weights, np.float64)
            values = (weights @ values + np.asarray(layer.bias)) * WEIGHT_UNIT
            if number + 1 < len(self.layers):
                values = np.maximum(values, 0)
        return self.choices[int(np.argmax(values))]


Schedule = Fall | Entropy | Learned


def entropy(logits: NDArray[np.float32]) -> float:
    """Nats, of the distribution that logits stand for; very unlikely tokens are left out."""
    below = logits - logits.max()
    below = below[below >= -_UNLIKELY]
    weights = np.exp(below)
    total = weights.sum(dtype=np.float64)
    return float(np.log(total) - (weights * below).sum(dtype=np.float64) / total)


_FALL = {"switches": [[int]]}
_LAYER = {"weights": [[int]], "bias": [int]}
_NETWORK = {"cache": COUNT, "window": COUNT, "layers": [_LAYER], "choices": [_FALL]}
_FILE = {
    "version": int,
    "levels": COUNT,
    "static?": _FALL,
    "entropy?": {**_FALL, "threshold": COUNT},
    "learned?": _NETWORK,
    "evidence?": {str: {"metric": str, "held_out": {"quality": float, "bytes": float}}},
}


def parse_schedules(data: Any, levels: int) -> dict[str, Schedule]:
    """The schedules of a `SCHEDULE` file, by their kinds.

    Args:
        data: the file's JSON.
        levels: of the artifact.

    Raises:
        ArtifactError: when it is no such file, of another artifact, or a schedule rises.
    """
    wrong = mismatch(data, _FILE)
    if wrong or data["version"] != VERSION:
        raise _damaged(wrong or f"it is of another version (got {data['version']})")
    if data["levels"] != levels:
        message = f"{SCHEDULE} is for another artifact (got {data['levels']} levels, need {levels})"
        raise ArtifactError(message, hint=_AGAIN)
    try:
        found = {kind: _parse(kind, data[kind]) for kind in KINDS if kind in data}
    except InputError as error:
        raise _damaged(error.message) from None
    for kind, schedule in found.items():
        for fall in falls_of(schedule):
            if fall.switches and fall.switches[-1][1] >= levels:
                raise _damaged(f"the {kind} schedule has no such level {fall.switches[-1][1]}")
    return found


def _parse(kind: str, data: dict[str, Any]) -> Schedule:
    if kind == "learned":
        return _parse_network(data)
    fall = _parse_fall(data)
    return fall if kind == "static" else Entropy(fall, data["threshold"])


def _parse_fall(data: dict[str, Any]) -> Fall:
    if any(len(pair) != 2 for pair in data["switches"]):
        raise InputError("a switch is a token and a level")
    return Fall(tuple((token, level) for token, level in data["switches"]))


def _parse_network(data: dict[str, Any]) -> Learned:
    layers = tuple(
        Layer(tuple(tuple(row) for row in layer["weights"]), tuple(layer["bias"]))
        for layer in data["layers"]
    )
    choices = tuple(map(_parse_fall, data["choices"]))
    sizes = [len(layers[0].weights[0])] if layers and layers[0].weights else [0]
    for layer in layers:
        if {len(row) for row in layer.weights} != {sizes[-1]}:
            raise InputError("the network's layers do not fit each other")
        sizes.append(len(layer.bias))
        if len(layer.weights) != sizes[-1]:
            raise InputError("the network's layers do not fit each other")
    if not all(sizes) or sizes[-1] != len(choices) or not 1 <= len(layers) <= 4:
        raise InputError("the network's layers do not fit its choices")
    return Learned(data["cache"], data["window"], layers, choices)


def falls_of(schedule: Schedule) -> Sequence[Fall]:
    """The falls that an answer may have."""
    if isinstance(schedule, Learned):
        return schedule.choices
    return [schedule.fall if isinstance(schedule, Entropy) else schedule]


def describe_schedules(
    schedules: dict[str, Schedule], levels: int, evidence: dict[str, Any]
) -> dict[str, Any]:
    """The JSON of a `SCHEDULE` file; `parse_schedules` gives the schedules again."""
    data: dict[str, Any] = {"version": VERSION, "levels": levels}
    for kind, schedule in schedules.items():
        plain = asdict(schedule)
        if isinstance(schedule, Entropy):
            plain = {**plain["fall"], "threshold": schedule.threshold}
        data[kind] = plain
    return {**data, "evidence": evidence}


def read_schedule_file(directory: str | Path) -> dict[str, Any] | None:
    """The JSON of an artifact's `SCHEDULE`, compared with the manifest; None if it has none."""
    text = read_listed(Path(directory), SCHEDULE)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(str(error)) from None


def find_schedule(directory: str | Path, name: str, levels: int) -> Schedule | None:
    """The schedule that `name` says: static, entropy, learned, fixed:L, or None for "off".

    Args:
        directory: the artifact.
        name: "fixed:L" is level L behind a prefill at level 0.
        levels: of the artifact.

    Raises:
        InputError: when there is no such schedule.
        ArtifactError: when the artifact's file of schedules is damaged.
    """
    if name == "off":
        return None
    if name.startswith("fixed:"):
        return _fixed(name.removeprefix("fixed:"), levels)
    if name not in KINDS:
        need = "need static, entropy, learned, fixed:LEVEL or off"
        raise InputError(f"unknown schedule (got {name}, {need})")
    data = read_schedule_file(directory)
    found = parse_schedules(data, levels) if data is not None else {}
    if name not in found:
        learned = " --learned" if name == "learned" else ""
        hint = f"make one with: morendo tune {directory} --prompts FILE{learned}"
        raise InputError(f"the artifact has no {name} schedule", hint=hint)
    return found[name]


def _fixed(text: str, levels: int) -> Fall:
    if not (text.isascii() and text.isdigit() and int(text) < levels):
        raise InputError(
            f"the level of a fixed schedule is out of range (got {text}, need 0 to {levels - 1})"
        )
    return Fall(((1, int(text)),) if int(text) else ())


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"{SCHEDULE} is damaged ({what})", hint=_AGAIN)
