"""The rounding of activations (`ir/reference_activation.py`) in torch: what linears will read."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from morendo.ir.activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat
from morendo.ir.formats import WeightFormat
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, STEPS

from .stages import Attrs


def round_activation(
    x: torch.Tensor,
    group_size: int,
    fmt: ActivationFormat,
    factors: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the codes of activations stand for.

    Args:
        x: float32 [..., K], channels as they are stored.
        group_size: channels that share a scale.
        fmt: the rounding.
        factors: float32 [K] of a factored format.

    Returns:
        float32 [..., K].
    """
    features = x.shape[-1]
    scaled = x if factors is None else x / factors
    grouped = functional.pad(scaled, (0, -features % group_size)).unflatten(-1, (-1, group_size))
    round_groups = _sixteen_steps if fmt.bits == 4 else _by_largest
    rounded = round_groups(grouped).flatten(-2)[..., :features]
    return rounded if factors is None else rounded * factors


def _by_largest(grouped: torch.Tensor) -> torch.Tensor:
    largest = grouped.abs().amax(-1, keepdim=True)
    codes = torch.round(grouped * _inverse(largest, CODE_LIMIT))
    return codes.mul_(largest / CODE_LIMIT)


def _sixteen_steps(grouped: torch.Tensor) -> torch.Tensor:
    low = grouped.amin(-1, keepdim=True).clamp_max_(0)
    spread = grouped.amax(-1, keepdim=True).clamp_min_(0) - low
    inverse = _inverse(spread, STEPS)
    first = torch.round(low * inverse)
    codes = torch.round(grouped * inverse)
    codes = torch.minimum(torch.maximum(codes, first), first + STEPS)
    return codes.mul_(spread / STEPS)


def _inverse(span: torch.Tensor, limit: int) -> torch.Tensor:
    return torch.where(span >= SMALLEST_MAXIMUM, limit / span, 0.0)


def is_rounded(attrs: Attrs) -> bool:
    """Whether calibration sees the rounding of a linear's input: of less than 8 bits it does."""
    return attrs["activations"] != DEFAULT_ACTIVATIONS.name


def round_input(weights: Any, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
    """A linear's input float32 [..., K] as the linear will read it, in the model's order.

    Args:
        weights: that have its order and its factors, by `get`.
        attrs: of the linear.
        x: what arrives.
    """
    fmt = ActivationFormat.parse(attrs["activations"])
    size = WeightFormat.parse(attrs["format"]).group_size
    factors = torch.as_tensor(weights.get(attrs["factors"])) if attrs["factors"] else None
    if not attrs["order"]:
        return round_activation(x, size, fmt, factors)
    order = torch.as_tensor(weights.get(attrs["order"]).astype("int64"))
    rounded = torch.empty_like(x)
    rounded[..., order] = round_activation(x[..., order], size, fmt, factors)
    return rounded
