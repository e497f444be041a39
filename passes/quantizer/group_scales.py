"""A quantized matrix of fixed codes whose scales and zeros have gradients.

What a group of a row stands for is (code - zero) * step; both can change a little, by

    W' = W * (1 + growth * GROWTH * spacing / rms(W)) + shift * spacing

with the spacing between two codes of the group: the fewer its bits, the more there is to win, and
one learning rate does for all. W' is made for each use and kept until the gradients are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from morendo.ir.formats import WeightFormat
from morendo.ir.ladders import SCALE_STEPS
from morendo.ir.reference import Quantized, group_scale, reading

from .error_feedback import reading_grids
from .fit import nearest

GROWTH = 3.0
"""At 4 bits a growth of 1 then about doubles the scale, and moves weights more than a shift."""


class TunedGroupScales:
    """W[N, K] in a quantized format with fine scales (not compact), all bits read.

    Args:
        codes: of the matrix.
        fmt: its format.
        order: int64 [K], which input channel is stored at each place; None for each at its own.
        dtype: that products are computed in.

    Attributes:
        growth, shift: float32 [N, G], the parameters.
    """

    RATE: ClassVar[float] = 0.5
    """Part of the learning rate: so many parameters learn the windows by heart."""

    def __init__(
        self,
        codes: Quantized,
        fmt: WeightFormat,
        order: np.ndarray | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype, self.format = dtype, fmt
        read, zero = reading(codes, fmt, None)
        self.unit = fmt.unit
        self.order = None if order is None else torch.from_numpy(order.astype(np.int64))
        self.codes = torch.from_numpy(read.astype(np.int8))  # [N, G, g], at most 127
        self.zero = torch.from_numpy(zero.astype(np.float32))
        self.middle = torch.from_numpy(codes.zero.astype(np.float32)) - self.zero
        self.scale = torch.from_numpy(codes.scale.astype(np.float32))
        self.row_scale = torch.from_numpy(codes.row_scale)
        self.step = torch.from_numpy(group_scale(codes) / self.unit)
        self.sparse: tuple[torch.Tensor, ...] = ()
        if codes.outliers is not None:
            first = fmt.plane_groups(codes.codes.shape[1])[0] * fmt.group_size
            found = codes.outliers.take(codes.outliers.channel >= first)
            self.sparse = tuple(torch.from_numpy(part) for part in vars(found).values())
        self.growth = torch.zeros_like(self.step, requires_grad=True)
        self.shift = torch.zeros_like(self.step, requires_grad=fmt.nested)
        size = self.dense().square_().mean(-1).sqrt_()
        grids = reading_grids(fmt, codes.codes.shape[1])
        self.spacing = self.step * self.unit * torch.tensor([grid.spacing for grid in grids])
        self.relative = torch.where(size > 0, GROWTH * self.spacing / size, 0.0)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What an optimizer may change; the codes of 8 bits have no zero."""
        return [p for p in (self.growth, self.shift) if p.requires_grad]

    def dense(self) -> torch.Tensor:
        """What the codes stood for at first, without outliers: float32 [N, G, g]."""
        return (self.codes - self.zero[..., None]) * self.step[..., None]

    def values(self) -> torch.Tensor:
        """W' as it is stored: float32 [N, Kp]."""
        grown = self.step * (1 + self.growth.detach() * self.relative)
        values = (self.codes - self.zero[..., None]).mul_(grown[..., None])
        values.add_((self.shift.detach() * self.spacing)[..., None])
        values = values.reshape(len(values), -1)
        if self.sparse:
            row, channel, value = self.sparse
            values.index_put_((row, channel), value.float(), accumulate=True)
        return values

    def stored_input(self, x: torch.Tensor) -> torch.Tensor:
        """Channels of x [1, n, K] as the matrix has them: [n, Kp]."""
        x = x.reshape(-1, x.shape[-1])
        x = x if self.order is None else x[:, self.order]
        return functional.pad(x, (0, self.codes[0].numel() - x.shape[1]))

    def natural_input(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """The inverse: channels of x [n, Kp] as the model has them, [n, K]."""
        x = x[:, :features]
        return x if self.order is None else torch.empty_like(x).index_copy_(1, self.order, x)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, K] times W': [1, n, N]."""
        return _Linear.apply(x, self.growth, self.shift, self)

    @torch.no_grad()
    def settle(self) -> None:
        """Go to the nearest scales and zeros that the format can store.

        The largest step of a row gets code 255; a zero is set so that the mean of its group stays
        what it was, whatever rounding did to the step.
        """
        mean = self.codes.float().mean(-1)
        grown = self.step * (1 + self.growth * self.relative)
        wanted = (mean - self.zero) * grown + self.shift * self.spacing
        step = grown * self.unit
        self.row_scale = step.amax(1)
        safe = torch.where(self.row_scale > 0, self.row_scale, 1.0)[:, None]
        self.scale = nearest(step / safe * SCALE_STEPS, self.format.scales)
        self.step = self.row_scale[:, None] * (self.scale / SCALE_STEPS) / self.unit
        if self.shift.requires_grad:
            zero = mean - wanted / torch.where(self.step > 0, self.step, 1.0)
            self.zero = nearest(zero + self.middle, self.format.zeros) - self.middle
        self.growth.zero_()
        self.shift.zero_()

    def settled(self, codes: Quantized) -> Quantized:
        """The matrix's codes with the scales and zeros of `settle`."""
        return replace(
            codes,
            scale=self.scale.to(torch.uint8).numpy(),
            zero=(self.zero + self.middle).to(torch.int8).numpy(),
            row_scale=self.row_scale.numpy(),
        )


class _Linear(torch.autograd.Function):
    """x W'^T with gradients to x, growth and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        growth: torch.Tensor,
        shift: torch.Tensor,
        matrix: TunedGroupScales,
    ) -> torch.Tensor:
        inputs = matrix.stored_input(x).to(matrix.dtype)
        values = matrix.values().to(matrix.dtype)
        ctx.save_for_backward(inputs, values)
        ctx.matrix, ctx.shape = matrix, x.shape
        return (inputs @ values.T).to(x.dtype).reshape(*x.shape[:-1], len(growth))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (inputs, values), matrix = ctx.saved_tensors, ctx.matrix
        grad_y = grads[0].reshape(-1, len(values)).to(matrix.dtype)
        grad_x = growth = shift = None
        if ctx.needs_input_grad[0]:
            stored = (grad_y @ values).to(grads[0].dtype)
            grad_x = matrix.natural_input(stored, ctx.shape[-1]).reshape(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad = (grad_y.T @ inputs).float().reshape(matrix.codes.shape)
            total = grad.sum(-1)
            shift = total * matrix.spacing if ctx.needs_input_grad[2] else None
            by_code = grad.mul_(matrix.codes).sum(-1) - matrix.zero * total
            growth = by_code * matrix.step * matrix.relative
        return grad_x, growth, shift, None
