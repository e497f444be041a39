"""A quantized matrix of fixed codes whose row scales have gradients.

Compact formats have too few scales and zeros for small changes of groups, but a row scale can
change by half a percent. Row n of the output is then y[n] * (1 + growth[n] * relative[n]): no
gradient of the matrix is needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from morendo.ir.formats import WeightFormat
from morendo.ir.reference import Quantized, dequantize, group_scale, stored_row_scale

from .error_feedback import reading_grids
from .group_scales import GROWTH


class TunedRowScales:
    """W[N, K] in a compact format, all bits read; growth is in the units of `TunedGroupScales`.

    Args:
        codes: of the matrix.
        fmt: its format.
        order: int64 [K], which input channel is stored at each place; None for each at its own.
        dtype: that products are computed in.

    Attributes:
        growth: float32 [N], the parameter.
    """

    RATE: ClassVar[float] = 1.0

    def __init__(
        self,
        codes: Quantized,
        fmt: WeightFormat,
        order: np.ndarray | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        columns = codes.codes.shape[1] if order is None else len(order)
        values = dequantize(replace(codes, outliers=None), fmt, columns)
        sizes = np.sqrt(np.square(values).mean(1))
        grids = reading_grids(fmt, columns)
        spacing = (group_scale(codes) * [grid.spacing for grid in grids]).mean(1)
        relative = np.divide(GROWTH * spacing, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        places = slice(None) if order is None else np.argsort(order)
        self.format, self.values = fmt, torch.tensor(values[:, places], dtype=dtype)
        self.sparse: torch.Tensor | None = None  # outliers, which have no row scale
        if codes.outliers is not None:
            sparse = dequantize(codes, fmt, columns) - values
            self.sparse = torch.tensor(sparse[:, places], dtype=dtype)
        self.relative = torch.from_numpy(relative)
        self.row_scale = torch.from_numpy(codes.row_scale)
        self.growth = torch.zeros_like(self.row_scale, requires_grad=True)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What an optimizer may change."""
        return [self.growth]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, K] times the matrix as it is by now: [1, n, N]."""
        inputs, columns = x.to(self.values.dtype), x.shape[-1]
        y = functional.linear(inputs, self.values[:, :columns])
        y = y.to(x.dtype) * (1 + self.growth * self.relative)
        if self.sparse is None:
            return y
        return y + functional.linear(inputs, self.sparse[:, :columns]).to(x.dtype)

    @torch.no_grad()
    def settle(self) -> None:
        """Go to the nearest row scales that the format can store."""
        wanted = self.row_scale * (1 + self.growth * self.relative)
        stored = torch.from_numpy(stored_row_scale(wanted.numpy(), self.format, up=False))
        moved = stored / torch.where(self.row_scale > 0, self.row_scale, 1.0)
        self.values *= torch.where(self.row_scale > 0, moved, 1.0)[:, None]
        self.row_scale = stored
        self.growth.zero_()

    def settled(self, codes: Quantized) -> Quantized:
        """The matrix's codes with the row scales of `settle`."""
        return replace(codes, row_scale=self.row_scale.numpy())
