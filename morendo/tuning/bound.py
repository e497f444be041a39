"""When a schedule is good enough: with a margin for the prompts that it was not tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mean:
    """A quality over prompts.

    Attributes:
        value: the mean.
        error: its standard error, over prompts; 0 of a single one.
    """

    value: float
    error: float

    @classmethod
    def of(cls, qualities: Sequence[float] | NDArray[np.float64]) -> Mean:
        """Of one number for each prompt."""
        values = np.asarray(qualities, np.float64)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(float(values.mean()), float(error))


@dataclass(frozen=True)
class Bound:
    """The least quality that a schedule may have.

    A schedule is chosen because it did well on the tuning prompts, some of it by luck. So the lower
    end of a one-sided confidence interval of its mean (normal distribution) has to keep the bound.

    Args:
        quality: least mean over prompts.
        confidence: that other prompts of the kind keep it, 0.5 to below 1; 0.5 is no margin.
    """

    quality: float
    confidence: float

    def least(self, mean: Mean) -> float:
        """The lower end of the interval."""
        return mean.value - NormalDist().inv_cdf(self.confidence) * mean.error

    def kept(self, mean: Mean) -> bool:
        """Whether it keeps the bound."""
        return self.least(mean) >= self.quality
