"""What a generation did and took."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

from morendo.runtime.sampling import SamplingSettings

_MOST_RUNS = 12  # that are shown


@dataclass
class LevelRuns:
    """The levels of decode steps, as runs of equal ones.

    Attributes:
        runs: [level, steps], in order.
    """

    runs: list[list[int]] = field(default_factory=list)

    def add(self, level: int) -> None:
        """One more step."""
        if self.runs and self.runs[-1][0] == level:
            self.runs[-1][1] += 1
        else:
            self.runs.append([level, 1])

    @property
    def counts(self) -> dict[int, int]:
        """Steps of each level that there was."""
        found: dict[int, int] = {}
        for level, steps in self.runs:
            found[level] = found.get(level, 0) + steps
        return found

    def __str__(self) -> str:
        shown = ", ".join(f"{level} x{steps}" for level, steps in self.runs[:_MOST_RUNS])
        more = len(self.runs) - _MOST_RUNS
        return f"{shown}, ... {more} more" if more > 0 else shown


@dataclass
class Stats:
    """What the last `generate` did and took; times in seconds.

    Args:
        load_seconds: from opening the artifact to being ready.
        prompt_tokens, prompt_seconds: the prefill.
        decode_tokens, decode_seconds: the decode steps, sampling included. The first new token
            comes from the prefill.
        levels: the precision level of each decode step.
        bytes_per_token: weights that a decode step reads, on average.
        bits_per_weight: the same in bits for each weight of the matrices that it multiplies with,
            scales, outliers and head counted; 0 where the artifact has no list of weights.
        finish: why it ended: "length", "stop" or "context"; empty while it runs.
        sampling: how tokens were drawn.
    """

    load_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    levels: LevelRuns = field(default_factory=LevelRuns)
    bytes_per_token: float = 0.0
    bits_per_weight: float = 0.0
    finish: str = ""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_per_token * self.decode_tokens_per_second / 1e9

    @property
    def peak_memory_bytes(self) -> int:
        """Of this process so far, mapped weights included."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
