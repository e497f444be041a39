"""What each kernel of a plan does in a call, and what bounds it: bytes and instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tvm import tirx

from morendo.ir.errors import ArtifactError
from morendo.ir.plan import SLOT_BYTES, Plan, Step, Tensor
from morendo.ir.plan_arguments import tensor_index
from morendo.ir.pruning import StageTokens

from .kernel_code import KernelCode
from .touched import Touched, touched_parameters

_ORDER = ("decode", "prefill", "score")


@dataclass(frozen=True)
class KernelFacts:
    """A kernel in one call, of the first function in _ORDER that calls it.

    Attributes:
        kernel: its name.
        calls: how often each function calls it.
        tokens: of the call, the most there can be.
        weights: that it multiplies each token with; 0 in all but linears. The mean of its calls,
            as are the bytes.
        weight_bytes: that it reads of the weights, at each precision level.
        read_bytes, written_bytes: of activations and results.
        cached_bytes: of keys and values, for each position that is in the cache.
        code: what its target knows of its machine code, None for nothing.
        predicted: how long the call should take, by the names of columns (`Target.predicted`).
    """

    kernel: str
    calls: dict[str, int]
    tokens: int
    weights: float
    weight_bytes: list[float]
    read_bytes: float
    written_bytes: float
    cached_bytes: float
    code: KernelCode | None = field(default=None, repr=False)
    predicted: Mapping[str, str] = field(default_factory=dict)

    @property
    def instructions_per_product(self) -> float:
        """Instructions of the hot loop for a weight and a token; 0 where that is not known."""
        code = self.code
        if code is None or not code.products or not self.weights:
            return 0.0
        return sum(code.loop.values()) / code.products

    @property
    def bytes_per_weight(self) -> float:
        """Bytes read for a weight, scales and all, at the most precise level; 0 without weights."""
        return self.weight_bytes[0] / self.weights if self.weights else 0.0

    @property
    def instructions_per_byte(self) -> float:
        """Instructions of the hot loop for a byte of weights; 0 where that is not known."""
        if not self.bytes_per_weight:
            return 0.0
        return self.instructions_per_product * self.tokens / self.bytes_per_weight

    def bound(self, bandwidth: float, rate: float) -> tuple[str, float]:
        """("memory" or "instructions", times as long as the other one takes).

        Args:
            bandwidth: bytes per second that the machine reads.
            rate: instructions per second that it makes, on all threads together.

        Returns:
            ("unknown", 0.0) where the machine code's products are not known.
        """
        if not self.instructions_per_byte:
            return "unknown", 0.0
        instructions = self.instructions_per_byte * bandwidth / rate
        if instructions > 1:
            return "instructions", instructions
        return "memory", 1 / instructions

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        return {
            **asdict(replace(self, code=None)),
            "code": self.code and self.code.to_json(),
            "bytes_per_weight": self.bytes_per_weight,
            "instructions_per_product": self.instructions_per_product,
            "instructions_per_byte": self.instructions_per_byte,
        }


def kernel_facts(
    plan: Plan,
    kernels: Mapping[str, tirx.PrimFunc],
    codes: Mapping[str, KernelCode] | None = None,
) -> list[KernelFacts]:
    """What is known of the kernels of a plan, in its order.

    Args:
        kernels: by their names.
        codes: of these, as `Target.kernel_code` gives them.
    """
    touched = {name: touched_parameters(kernels[name]) for name in plan.kernels}
    return [_facts(plan, name, touched[name], (codes or {}).get(name)) for name in plan.kernels]


def _facts(
    plan: Plan, name: str, touched: Mapping[str, Touched], code: KernelCode | None
) -> KernelFacts:
    found = {
        function: [s for s in plan.functions[function] if plan.kernels[s.kernel] == name]
        for function in _ORDER
    }
    called = [function for function in _ORDER if found[function]]
    if not called:
        raise ArtifactError("no function calls it", where=f"plan.json: kernel {name}")
    steps, most = found[called[0]], 1 if called[0] == "decode" else plan.chunk
    moved = zip(*(_moved(plan, step, touched, most) for step in steps), strict=True)
    read, written, cached = map(_mean, moved)
    return KernelFacts(
        name,
        {function: len(found[function]) for function in called},
        max(_tokens(plan, step, most) for step in steps),
        _mean([step.weights for step in steps]),
        [_mean([_weight_bytes(plan, s, k, most) for s in steps]) for k in range(plan.levels)],
        read,
        written,
        cached,
        code,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _tensors(plan: Plan, step: Step) -> list[tuple[str, Tensor]]:
    """(parameter, tensor) of a call at the most precise level."""
    indexes = [tensor_index(arg, 0) for arg in step.args]
    names = plan.parameters[step.kernel]
    return [(n, plan.tensors[i]) for n, i in zip(names, indexes, strict=True) if i is not None]


def _tokens(plan: Plan, step: Step, most: int) -> int:
    """Tokens of a call: one where it is not told how many there are."""
    tensors = [tensor for _, tensor in _tensors(plan, step)]
    told = [plan.state[t.offset // SLOT_BYTES] for t in tensors if t.space == "state"]
    counts = plan.counts("prefill", most)
    given = (*step.args, *told, *(dim for tensor in tensors for dim in tensor.dims))
    later = [counts[each.stage] for each in given if isinstance(each, StageTokens)]
    return most if "tokens" in given else max(later, default=1)


def _weight_bytes(plan: Plan, step: Step, level: int, most: int) -> int:
    """What a call reads of the weights: a matrix once, the row of a table for each token."""
    stored = sum(t.byte_size((1,)) for _, t in _tensors(plan, step) if t.space == "weights")
    rows = _tokens(plan, step, most) if step.reads[0] < stored and not step.weights else 1
    return step.reads[level] * rows


def _moved(
    plan: Plan, step: Step, touched: Mapping[str, Touched], most: int
) -> tuple[float, float, float]:
    """Bytes (read, written, read of the cache for each position) but for weights."""
    read, written, cached = 0.0, 0.0, 0.0
    for name, tensor in _tensors(plan, step):
        nbytes, part = tensor.byte_size(plan.counts("prefill", most)), touched[name]
        if tensor.space == "cache":
            position = nbytes / plan.context
            cached += position if part.read else 0.0
            written += _tokens(plan, step, most) * position if part.written else 0.0
        elif tensor.space not in ("weights", "state"):
            read += nbytes * part.read
            written += nbytes * part.written
    return read, written, cached
