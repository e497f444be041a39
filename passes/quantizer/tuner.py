"""Tuning the scales of all matrices and norms together: the model's output shall stay the same.

The loss is KL(float model || quantized model) of the next token on windows of text; some windows
are held back to tell whether it helped. Source: end-to-end training of quantization parameters as
in EfficientQAT, arXiv 2407.11062, by distillation and for few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import NORMS, attrs_of, op_name
from morendo.ir.evaluate_dialect import formatted
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import tuned_mark
from morendo.ir.reference import Quantized, dequantize
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import tuned_name
from morendo.ir.weights import Weights

from ..streaming.activation_rounding import is_rounded, round_input
from ..streaming.fast_ops import fastest_dtype
from ..streaming.float_weights import FloatWeights
from ..streaming.stages import Attrs
from ..streaming.stream import stored_order
from ..streaming.torch_ops import TorchFunction
from .divergence import Divergence
from .group_scales import TunedGroupScales
from .row_scales import TunedRowScales

HELD_BACK = 4
"""Windows that no step sees."""
LARGEST_TUNED = 1 << 25
"""Weights of a matrix. In larger ones, heads, gradients of scales would take gigabytes."""
LOGITS = 1 << 25
"""Logits of a window that are compared: with a larger vocabulary, those of some tokens."""
WARM_UP = 0.15
"""Part of the steps in which the learning rate rises."""
SEED = 0


class TunedWeights(FloatWeights):
    """The model as it will be stored, with gradients to the scales of what is in a code store.

    Args:
        floats: the model as it came.
        codes: of matrices; those that are not in it are rounded to nearest.
        norms: names of vectors that are tuned too.
        fixed: names of matrices whose scales stay as they are.
        reading: of the matrices that have several.

    Attributes:
        tuned: matrices with codes.
        growths: float32 [C] of each norm; weights become (1 + growth) times as large.
    """

    def __init__(
        self,
        floats: FloatWeights,
        codes: CodeStore,
        norms: Iterable[str],
        fixed: Container[str] = (),
        reading: int = 0,
    ) -> None:
        super().__init__(floats.weights, floats.dtype)
        self.floats, self.codes, self.fixed, self.reading = floats, codes, fixed, reading
        self._kept_codes: dict[str, Quantized] = {}
        self.tuned: dict[tuple[str, WeightFormat], TunedGroupScales | TunedRowScales] = {}
        self.growths = {n: torch.zeros_like(floats.get(n), requires_grad=True) for n in norms}

    def parameters(self) -> list[dict[str, Any]]:
        """What an optimizer may change of norms and of matrices that were used, by part of rate."""
        groups = [{"params": [*self.growths.values()], "part": 1.0}]
        groups += [{"params": m.parameters, "part": m.RATE} for m in self.tuned.values()]
        return [group for group in groups if group["params"]]

    def get(self, name: str) -> torch.Tensor:
        """What has no format."""
        values = self.floats.get(name)
        return values * (1 + self.growths[name]) if name in self.growths else values

    def rows(self, attrs: Attrs, ids: torch.Tensor) -> torch.Tensor:
        """Rows are rounded one by one, so the table need not be."""
        if attrs["codes"]:
            fmt, codes = WeightFormat.parse(attrs["format"]), self._codes(attrs)
            values = dequantize(codes.dense_rows(ids[0].numpy()), fmt, attrs["features"])
        else:
            values = formatted(self.floats.rows(attrs, ids)[0].numpy(), attrs["format"])
        return torch.from_numpy(values)[None]

    def _codes(self, attrs: Attrs) -> Quantized:
        """Of a matrix that stays as it is."""
        name = attrs["weight"]
        if name not in self._kept_codes:
            codes = self.codes.get(name, WeightFormat.parse(attrs["format"]))
            assert codes is not None, name
            self._kept_codes[name] = codes
        return self._kept_codes[name]

    def linear(self, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, K] times what a linear's matrix is stored as: [1, n, N].

        Gradients pass the rounding of x as if there were none.
        """
        if is_rounded(attrs):
            x = x + (round_input(self.weights, attrs, x.detach()) - x.detach())
        key = attrs["weight"], WeightFormat.parse(attrs["format"])
        if key not in self.tuned and attrs["weight"] not in self._matrices:
            codes = self.codes.get(*key) if self._is_tuned(attrs) else None
            if codes is None:
                return super().linear(attrs, x)
            order = self.weights.get(attrs["order"]) if attrs["order"] else None
            kind = TunedRowScales if key[1].compact else TunedGroupScales
            fmt = key[1].alone(attrs["in_features"], self.reading)
            self.tuned[key] = kind(codes.at(self.reading), fmt, order, self.dtype)
        return self.tuned[key](x) if key in self.tuned else super().linear(attrs, x)

    def _is_tuned(self, attrs: Attrs) -> bool:
        """Whether it has codes, and scales that no earlier reading has tuned."""
        own = WeightFormat.parse(attrs["format"]).reading_count > self.reading
        return bool(attrs["codes"]) and own and attrs["weight"] not in self.fixed

    def _rows_of(self, attrs: Attrs, rows: slice) -> np.ndarray:
        """By its codes, or rounded to nearest in the order in which it is stored."""
        order = stored_order(self.weights, attrs)
        if attrs["codes"]:
            fmt = WeightFormat.parse(attrs["format"])
            part = self._codes(attrs).rows(rows.start, rows.stop)
            at = min(self.reading, fmt.reading_count - 1)
            rounded = dequantize(part, fmt, attrs["in_features"], at=at)
        else:
            rounded = formatted(super()._rows_of(attrs, rows)[:, order], attrs["format"])
        return rounded[:, np.argsort(order)]


@dataclass(frozen=True)
class Tuned:
    """What the steps did.

    Attributes:
        matrices: that were tuned.
        before, after: mean KL in nats a token on the windows held back; after with what is stored.
    """

    matrices: int
    before: float
    after: float

    @property
    def better(self) -> bool:
        """Whether the new scales are worth keeping; not when the loss is not finite."""
        return self.after < self.before


class Tuner:
    """Runs the steps.

    Args:
        function: main of a normalized module whose formats are chosen.
        weights: of the model.
        codes: of its matrices; at the end of a run that helped, scales and zeros are replaced and
            norms kept.
        learning_rate: of Adam, at its peak.
        reading: whose scales are tuned, of matrices that have several.
    """

    def __init__(
        self,
        function: TorchFunction,
        weights: Weights,
        codes: CodeStore,
        learning_rate: float,
        reading: int = 0,
    ) -> None:
        self.function, self.codes, self.learning_rate = function, codes, learning_rate
        self.reading = reading
        self.vocabulary = int(function.function.body.body.ty.shape.values[-1])
        self.floats = FloatWeights(weights, fastest_dtype())
        norms, fixed = norm_weights(function.function), fixed_matrices(function.function)
        self.student = TunedWeights(self.floats, codes, norms, fixed, reading)

    def run(
        self, windows: np.ndarray, rounded_by: np.ndarray, steps: int, advance: Callable[[], None]
    ) -> Tuned:
        """Tune, and keep what came of it if it helped.

        Args:
            windows: token ids int64 [W, n], at least 2.
            rounded_by: windows [R, n] by which codes were chosen, perhaps some of the same.
            steps: of one window each.
            advance: called after every step.
        """
        seen, held = hold_back(windows, rounded_by)
        before = self._mean_divergence(held)
        matrices = self.student.tuned
        self._steps(_in_random_order(seen, steps), advance)
        for matrix in matrices.values():
            matrix.settle()
        tuned = Tuned(len(matrices), before, self._mean_divergence(held))
        if tuned.better:
            self._keep()
        return tuned

    def _keep(self) -> None:
        """All scales and norms, or none: those of one run belong together."""
        with self.codes.replacing() as new:
            for name in self.student.growths:
                values = self.student.get(name).detach().numpy()
                new.put_vector(tuned_name(name, self.reading), values)
            for (name, fmt), matrix in self.student.tuned.items():
                codes = self.codes.get(name, fmt)
                assert codes is not None, name
                # marks them for a later try of the same compilation
                mark = {tuned_mark(self.reading): 1.0}
                figures = {**(self.codes.figures(name, fmt) or {}), **mark}
                (scales,) = matrix.settled(codes.at(self.reading)).readings
                new.put(name, fmt, codes.with_reading(self.reading, scales), figures)

    def _steps(self, windows: np.ndarray, advance: Callable[[], None]) -> None:
        optimizer = torch.optim.Adam(self.student.parameters(), betas=(0.9, 0.95))
        for index, ids in enumerate(windows):
            rate = self.learning_rate * part_of_rate((index + 1) / (len(windows) + 1))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["part"]
            optimizer.zero_grad()
            self._divergence(ids).backward()
            optimizer.step()
            advance()

    def _divergence(self, ids: np.ndarray) -> torch.Tensor:
        """KL(float model || quantized model) of a window, mean over its tokens, or some of them."""
        step = -(-len(ids) * self.vocabulary // LOGITS)
        tokens = torch.arange(step - 1, len(ids), step)
        with torch.no_grad():
            target = self.function(self.floats, ids, tokens)
        return Divergence.apply(self.function(self.student, ids, tokens), target)

    @torch.no_grad()
    def _mean_divergence(self, windows: np.ndarray) -> float:
        return float(np.mean([float(self._divergence(ids)) for ids in windows]))


def fixed_matrices(function: relax.Function) -> set[str]:
    """Names of matrices whose scales stay: embedding tables, and what is too large."""
    fixed = set()
    for binding in bindings_of(function):
        name, value = op_name(binding.value), binding.value
        if name == "embedding":
            fixed.add(attrs_of(value)["weight"])
        elif name == "linear":
            attrs = attrs_of(value)
            if attrs["out_features"] * attrs["in_features"] > LARGEST_TUNED:
                fixed.add(attrs["weight"])
    return fixed


def norm_weights(function: relax.Function) -> list[str]:
    """Names of the vectors that norms multiply with."""
    found = [b.value for b in bindings_of(function) if op_name(b.value) in NORMS]
    return sorted({attrs_of(norm)["weight"] for norm in found} - {""})


def hold_back(windows: np.ndarray, rounded_by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows for the steps, and a few from all parts of the text that are kept from them.

    Of those by which codes were chosen none is kept where there are others: rounding knows them by
    heart, and tuning could only lose there.
    """
    known = {ids.tobytes() for ids in rounded_by}
    fresh = np.array([i for i, ids in enumerate(windows) if ids.tobytes() not in known], int)
    choice = fresh if len(fresh) > 1 else np.arange(len(windows))
    count = min(HELD_BACK, max(len(windows) // 4, 1), len(choice))
    held = choice[((np.arange(count) + 0.5) * len(choice) / count).astype(int)]
    return np.delete(windows, held, axis=0), windows[held]


def _in_random_order(windows: np.ndarray, count: int) -> np.ndarray:
    """`count` windows; none comes again before all others came."""
    rng = np.random.default_rng(SEED)
    rounds = -(-count // len(windows))
    order = np.concatenate([rng.permutation(len(windows)) for _ in range(rounds)])
    return windows[order[:count]]


def part_of_rate(done: float) -> float:
    """The learning rate at a part of the steps, as a part of its peak: one cycle."""
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
