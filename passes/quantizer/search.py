"""Codes of the scales and zeros that lose least, errors staying where they are."""

from __future__ import annotations

import numpy as np
import torch

from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, dequantize, quantize

from .error_feedback import reading_grids, search_row_scale
from .fit import QUICK, fit_group


def search_codes(matrix: torch.Tensor, squares: torch.Tensor, fmt: WeightFormat) -> Quantized:
    """Codes, scales and zeros of W by the least weighted sum of squared errors of each group.

    Args:
        matrix: float32 [N, K], columns as they are stored.
        squares: float32 [K], mean squares of the channels that they are multiplied with.
        fmt: nested, of one reading.
    """
    return Quantized.stacked([_search(rows, squares, fmt) for rows in matrix.split(ROWS)])


def _search(rows: torch.Tensor, squares: torch.Tensor, fmt: WeightFormat) -> Quantized:
    missing = fmt.padded_features(rows.shape[1]) - rows.shape[1]
    columns = torch.nn.functional.pad(rows, (0, missing)).T.contiguous()
    columns = columns.reshape(-1, fmt.group_size, len(rows))  # [G, g, n]
    importance = torch.nn.functional.pad(squares, (0, missing)).reshape(-1, fmt.group_size)
    grids = reading_grids(fmt, rows.shape[1])
    row_scale = search_row_scale(columns, importance, grids, fmt)
    groups = list(zip(columns, importance, grids, strict=True))
    fits = [fit_group(group, weight, row_scale, grid, QUICK) for group, weight, grid in groups]
    codes = [fit.round(group) * fit.grid.spacing for fit, group in zip(fits, columns, strict=True)]
    return Quantized(
        torch.cat(codes).T.to(torch.int8).contiguous().numpy(),
        torch.stack([fit.code for fit in fits], 1).to(torch.uint8).numpy(),
        torch.stack([fit.zero for fit in fits], 1).to(torch.int8).numpy(),
        row_scale.numpy(),
    )


def lost(
    matrix: np.ndarray, squares: np.ndarray, fmt: WeightFormat, codes: Quantized
) -> dict[str, float]:
    """The part of a matrix's output that codes and rounding to nearest lose, channels apart.

    Args:
        matrix: float32 [N, K], columns as they are stored.
        squares: float32 [K], mean squares of its input.
    """
    total, nearest, searched = 1e-30, 0.0, 0.0
    for start in range(0, len(matrix), ROWS):
        rows = matrix[start : start + ROWS]
        part, plain = codes.rows(start, start + len(rows)), quantize(rows, fmt)
        total += float((rows**2 @ squares).sum())
        nearest += float(((rows - dequantize(plain, fmt, rows.shape[1])) ** 2 @ squares).sum())
        searched += float(((rows - dequantize(part, fmt, rows.shape[1])) ** 2 @ squares).sum())
    return {
        "nearest": float(f"{nearest / total:.4g}"),
        "searched": float(f"{searched / total:.4g}"),
    }
