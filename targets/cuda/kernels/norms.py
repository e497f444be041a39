"""Normalizations and the rounding of activations to int8, alone or in one pass.

A block has one row. Groups of channels are rounded by a warp each; the numbers are exactly those of
`ir/reference_activation.py`: maximum, two divisions, one product and one rounding per element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import Rows, kernel_name
from morendo.codegen.target import Builder
from morendo.ir.activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, STEPS
from morendo.targets.cuda.blocks import (
    WARP,
    Kernel,
    across_block,
    across_warp,
    add,
    function,
    kernel,
    launch,
    local,
    strided,
    when,
)

_THREADS = 256

Element = Callable[[Any], Any]
"""The float32 element of a row at a channel."""


@dataclass(frozen=True)
class Norm:
    """A normalization of rows of `features` channels.

    Attributes:
        centered: layer norm: the mean is taken off, and a bias added.
    """

    features: int
    eps: float
    offset: float
    centered: bool

    @property
    def name(self) -> str:
        """The first part of kernel names."""
        return "layer_norm" if self.centered else "rms_norm"

    def declare(self, k: Kernel) -> list[Any]:
        """Declare the vectors of channels as the next parameters of a kernel."""
        names = ("weight", "bias") if self.centered else ("weight",)
        return [k.buffer(name, (self.features,)) for name in names]

    def row(self, x: Element, vectors: list[Any], thread: Any, order: Any = None) -> Element:
        """Reduce a row; gives its normalized elements, in an order if there is one."""
        inverse = T.float32(1.0 / self.features)
        mean = self._sum(x, thread) * inverse if self.centered else T.float32(0.0)
        mean = T.bind(mean)

        def square(c: Any) -> Any:
            value = T.bind(x(c) - mean)
            return value * value

        variance = self._sum(square, thread) * inverse
        scale = T.bind(T.float32(1.0) / function("sqrtf", variance + T.float32(self.eps)))

        def normed(c: Any) -> Any:
            c = place(order, c, self.features)
            value = (x(c) - mean) * scale * (vectors[0][c] + T.float32(self.offset))
            return value + vectors[1][c] if self.centered else value

        return normed

    def _sum(self, element: Element, thread: Any) -> Any:
        total = local(1, T.float32(0.0))

        def take(c: Any) -> None:
            T.buffer_store(total, total[0] + element(c), [0])

        strided(thread, _THREADS, self.features, take)
        return across_block(total[0], thread, _THREADS)


def place(order: Any, c: Any, features: int) -> Any:
    """Which channel is stored c-th; a damaged file's stay in the row."""
    if order is None:
        return c
    return T.bind(T.min(T.cast(order[c], "int32"), T.int32(features - 1)))


@dataclass(frozen=True)
class GroupOutputs:
    """Quantized activations: codes i8[M, Kp], scales f32[M, G], sums i32[M, G].

    Attributes:
        format: of the codes.
        factors: f32[K] of a factored format, else None.
    """

    features: int
    group_size: int
    format: ActivationFormat
    factors: Any
    codes: Any
    scales: Any
    sums: Any

    @classmethod
    def declare(
        cls, k: Kernel, max_tokens: int, features: int, group_size: int, fmt: ActivationFormat
    ) -> GroupOutputs:
        """Declare them as the next parameters of the kernel, factors of channels before them."""
        groups = ceil_div(features, group_size)
        return cls(
            features,
            group_size,
            fmt,
            k.buffer("factors", (features,)) if fmt.factored else None,
            k.buffer("codes", (max_tokens, groups * group_size), "int8"),
            k.buffer("scales", (max_tokens, groups)),
            k.buffer("sums", (max_tokens, groups), "int32"),
        )

    def round_row(self, element: Element, m: Any, thread: Any) -> None:
        """Round a row, a group to each warp in turn."""
        groups, warps = ceil_div(self.features, self.group_size), _THREADS // WARP
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        with T.serial(0, ceil_div(groups, warps)) as step:
            group = T.bind(step * warps + warp)
            with when(group < groups):
                self._round_group(element, m, group, lane)

    def _round_group(self, element: Element, m: Any, group: Any, lane: Any) -> None:
        count, four = self.group_size // WARP, self.format.bits == 4
        values, codes = local(count, T.float32(0.0)), local(count, T.int32(0), "int32")
        factors: Any = None if self.factors is None else local(count, T.float32(1.0))
        largest, lowest, total = T.float32(0.0), T.float32(0.0), T.int32(0)
        for i in range(count):
            channel = T.bind(group * self.group_size + i * WARP + lane)
            with when(channel < self.features):
                value = element(channel)
                if self.factors is not None:
                    T.buffer_store(factors, self.factors[channel], [i])
                    value = value / factors[i]
                T.buffer_store(values, value, [i])
            largest = T.bind(T.max(largest, values[i] if four else T.abs(values[i])))
            lowest = T.bind(T.min(lowest, values[i])) if four else lowest
        span, limit = across_warp(largest, T.max), CODE_LIMIT
        if four:
            lowest, limit = across_warp(lowest, T.min), STEPS
            span = T.bind(span - lowest)
        usable = span >= T.float32(SMALLEST_MAXIMUM)
        inverse = T.bind(tirx.Select(usable, T.float32(limit) / span, T.float32(0.0)))
        first = T.bind(T.cast(T.nearbyint(lowest * inverse), "int32")) if four else None
        for i in range(count):
            code = T.bind(T.cast(T.nearbyint(values[i] * inverse), "int32"))
            if first is not None:
                code = T.min(T.max(code, first), first + T.int32(STEPS))
            if factors is not None:
                code = code * T.cast(factors[i], "int32")
            T.buffer_store(codes, code, [i])
            channel = group * self.group_size + i * WARP + lane
            T.buffer_store(self.codes, T.cast(codes[i], "int8"), [m, channel])
            total = T.bind(total + codes[i])
        total = across_warp(total, add)
        with when(lane == 0):
            T.buffer_store(self.scales, span / T.float32(limit), [m, group])
            T.buffer_store(self.sums, total, [m, group])


def quantize_activation(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    group_size: int,
    ordered: bool = False,
    activations: ActivationFormat = DEFAULT_ACTIVATIONS,
) -> tirx.PrimFunc:
    """Quantize the rows of x to int8 codes with a scale and a sum per group.

    Parameters of the kernel: x f32[M, K], [order u16[K]], [factors f32[K]], codes i8[M, Kp],
    scales f32[M, G], sums i32[M, G], tokens.
    """
    op = "quantize_activation" + "_ordered" * ordered + activations.kernel_suffix
    with kernel(kernel_name(op, m=max_tokens, k=features, g=group_size)) as k:
        x = k.buffer("x", (max_tokens, features))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        outputs = GroupOutputs.declare(k, max_tokens, features, group_size, activations)
        tokens = k.state("tokens")
        with launch([max_tokens], _THREADS) as (m, thread), when(m < tokens.read()):
            outputs.round_row(lambda c: x[m, place(order, c, features)], m, thread)
    return k.function


def _norm(centered: bool) -> Builder:
    """The builder of a norm alone; its options and its kernel's parameters are those of
    `codegen/cpu/kernels/norms.py`.
    """

    def build(
        isa: Any,
        *,
        max_tokens: int,
        features: int,
        eps: float,
        rows_per_token: int = 1,
        offset: float = 0.0,
        x_rows: Rows | None = None,
        out_rows: Rows | None = None,
    ) -> tirx.PrimFunc:
        norm, whole = Norm(features, eps, offset, centered), Rows(rows_per_token * features)
        source, target = x_rows or whole, out_rows or whole
        name = kernel_name(
            norm.name, m=max_tokens, r=rows_per_token, c=features, e=eps, o=offset,
            x=f"{source.stride}o{source.offset}", y=f"{target.stride}o{target.offset}",
        )  # fmt: skip
        with kernel(name) as k:
            x = k.buffer("x", (max_tokens, source.stride))
            vectors = norm.declare(k)
            out = k.buffer("out", (max_tokens, target.stride))
            tokens = k.state("tokens")
            with launch([rows_per_token, max_tokens], _THREADS) as (row, m, thread):
                with when(m < tokens.read()):
                    start = T.bind(row * features)
                    normed = norm.row(lambda c: x[m, source.offset + start + c], vectors, thread)

                    def write(c: Any) -> None:
                        T.buffer_store(out, normed(c), [m, target.offset + start + c])

                    strided(thread, _THREADS, features, write)
        return k.function

    return build


def _norm_quantize(centered: bool) -> Builder:
    """The builder of a norm whose result is only needed as int8 codes; options and parameters as
    there.
    """

    def build(
        isa: Any,
        *,
        max_tokens: int,
        features: int,
        group_size: int,
        eps: float,
        offset: float = 0.0,
        ordered: bool = False,
        activations: ActivationFormat = DEFAULT_ACTIVATIONS,
    ) -> tirx.PrimFunc:
        norm = Norm(features, eps, offset, centered)
        op = f"{norm.name}_quantize" + "_ordered" * ordered + activations.kernel_suffix
        name = kernel_name(op, m=max_tokens, c=features, g=group_size, e=eps, o=offset)
        with kernel(name) as k:
            x = k.buffer("x", (max_tokens, features))
            vectors = norm.declare(k)
            order = k.buffer("order", (features,), "uint16") if ordered else None
            outputs = GroupOutputs.declare(k, max_tokens, features, group_size, activations)
            tokens = k.state("tokens")
            with launch([max_tokens], _THREADS) as (m, thread), when(m < tokens.read()):
                normed = norm.row(lambda c: x[m, c], vectors, thread, order)
                outputs.round_row(normed, m, thread)
        return k.function

    return build


rms_norm, layer_norm = _norm(centered=False), _norm(centered=True)
rms_norm_quantize, layer_norm_quantize = _norm_quantize(False), _norm_quantize(True)
