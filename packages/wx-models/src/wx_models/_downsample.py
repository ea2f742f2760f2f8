"""Between the full grid and the latent grid, by fixed linear maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MODES = ("area_mean", "bilinear_periodic", "parity_bilinear")

FloatArray = npt.NDArray[np.float64]


class Downsample(nn.Module):
    """Encoder B without parameters: z = B(x), (N, C, H, W) -> (N, C, h, w) (ATLAS, arXiv 2601.18111).

    Rows run from 90 to -90 degrees. A grid with rows at both poles (33, 721) keeps every fh-th row, the poles
    included: h = (H - 1) / fh + 1; a grid of cell centres (32, 720) merges fh rows into one. Coarse columns
        lie at
    every fw-th fine column.

    Modes:
        area_mean: first-order conservative remapping. Each coarse value is the area-weighted mean over its
            own cell (half cells at the poles), so that the global mean is kept exactly with the natural cell
            areas.
        bilinear_periodic: linear interpolation to the coarse coordinates; on a grid with poles it picks
            points.
        parity_bilinear: `interpolate(align_corners=True)`, as published: picks rows, and stretches columns so
            that the last coarse column is the last fine column. Only for loading released weights.

    Args:
        grid: full grid (H, W).
        factor: coarsening (fh, fw).
        mode: one of the modes above.
        poles: whether rows lie at the poles; None decides by divisibility.

    Raises:
        ValueError: the factor does not fit the grid, or the mode is unknown.
    """

    row_weights: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        factor: tuple[int, int],
        *,
        mode: str = "area_mean",
        poles: bool | None = None,
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {_MODES}, got {mode!r}")
        self.grid, self.factor, self.mode = grid, factor, mode
        self.poles = _has_poles(grid[0], factor[0]) if poles is None else poles
        self.size = (_coarse_rows(grid[0], factor[0], self.poles), _coarse_columns(grid[1], factor[1]))
        fine, coarse = _latitudes(grid[0], self.poles), _latitudes(self.size[0], self.poles)
        weights = _overlap(fine, coarse) if mode == "area_mean" else _interpolation(fine, coarse)
        self.register_buffer("row_weights", torch.from_numpy(weights.astype(np.float32)), persistent=False)

    @property
    def latitude(self) -> FloatArray:
        """Coarse latitudes in degrees, 90 to -90, shape (h,)."""
        if self.mode == "parity_bilinear":
            north = _latitudes(self.grid[0], self.poles)[0]
            return _spaced(north, -north, self.size[0])
        return _latitudes(self.size[0], self.poles)

    @property
    def longitude(self) -> FloatArray:
        """Coarse longitudes in degrees, 0 to < 360, shape (w,); not equispaced for `parity_bilinear`."""
        width, columns = self.grid[1], self.size[1]
        if self.mode == "parity_bilinear":
            return _spaced(0.0, (width - 1) * 360.0 / width, columns)
        return np.array(np.arange(columns) * (360.0 / columns), dtype=np.float64)

    @property
    def area(self) -> FloatArray:
        """Natural cell area of each coarse row, sin(upper) - sin(lower), scaled to mean 1, shape (h,)."""
        areas = -np.diff(_edge_sines(self.latitude))
        return np.array(areas / areas.mean(), dtype=np.float64)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Returns z (N, C, h, w).

        Raises:
            ValueError: the last two dimensions are not the grid.
        """
        if tuple(x_NCHW.shape[-2:]) != self.grid:
            raise ValueError(f"expected fields on the {self.grid} grid, got shape {tuple(x_NCHW.shape)}")
        if self.mode == "parity_bilinear":
            return F.interpolate(x_NCHW, size=self.size, mode="bilinear", align_corners=True)
        columns = _column_mean if self.mode == "area_mean" else _column_pick
        # A state keeps its precision: autocast would round it to bfloat16 here.
        with torch.autocast(x_NCHW.device.type, enabled=False):
            return torch.matmul(self.row_weights.to(x_NCHW.dtype), columns(x_NCHW, self.factor[1]))

    def extra_repr(self) -> str:
        return f"{self.grid} -> {self.size}, mode={self.mode!r}"


class Upsample(nn.Module):
    """Bilinear interpolation from the grid of `Downsample` back to its full grid, periodic in longitude."""

    row_weights: Tensor

    def __init__(self, grid: tuple[int, int], factor: tuple[int, int]) -> None:
        super().__init__()
        self.factor = factor
        poles = _has_poles(grid[0], factor[0])
        coarse = _latitudes(_coarse_rows(grid[0], factor[0], poles), poles)
        weights = _interpolation(coarse, _latitudes(grid[0], poles))
        self.register_buffer("row_weights", torch.from_numpy(weights.astype(np.float32)), persistent=False)
        _coarse_columns(grid[1], factor[1])

    def forward(self, z_NChw: Tensor) -> Tensor:
        """Returns x (N, C, H, W)."""
        factor, east = self.factor[1], z_NChw.roll(-1, -1)
        columns = [z_NChw + (step / factor) * (east - z_NChw) for step in range(factor)]
        with torch.autocast(z_NChw.device.type, enabled=False):
            return torch.matmul(self.row_weights.to(z_NChw.dtype), torch.stack(columns, -1).flatten(-2))


def _column_mean(x: Tensor, factor: int) -> Tensor:
    """Mean over cells centred on every factor-th column; an even cell ends in two half columns."""
    shifted = _cells(x.roll(factor // 2, -1), factor)
    mean = shifted.mean(-1)
    if factor % 2:
        return mean
    west = shifted[..., 0]
    return mean + (west.roll(-1, -1) - west) / (2 * factor)


def _column_pick(x: Tensor, factor: int) -> Tensor:
    return _cells(x, factor)[..., 0]


def _cells(x: Tensor, factor: int) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // factor, factor)


def _has_poles(rows: int, factor: int) -> bool:
    return rows % 2 == 1 if factor == 1 else (rows - 1) % factor == 0


def _coarse_rows(rows: int, factor: int, poles: bool) -> int:
    intervals = rows - 1 if poles else rows
    if factor < 1 or intervals < factor or intervals % factor:
        kind = "H - 1, with rows at the poles" if poles else "H, with rows at cell centres"
        raise ValueError(f"factor {factor} must divide {kind}: H = {rows} does not fit")
    return intervals // factor + int(poles)


def _coarse_columns(columns: int, factor: int) -> int:
    if factor < 1 or columns % factor:
        raise ValueError(f"factor {factor} must divide the number of columns {columns}")
    return columns // factor


def _latitudes(rows: int, poles: bool) -> FloatArray:
    if poles:
        return _spaced(90.0, -90.0, rows)
    return np.array(90.0 - (np.arange(rows) + 0.5) * (180.0 / rows), dtype=np.float64)


def _spaced(first: float, last: float, points: int) -> FloatArray:
    return np.array(np.linspace(first, last, points), dtype=np.float64)


def _edge_sines(latitude: FloatArray) -> FloatArray:
    """Sine of the cell edges, midway between rows, closed by the poles, shape (rows + 1,)."""
    edges = np.concatenate([[90.0], (latitude[1:] + latitude[:-1]) / 2, [-90.0]])
    return np.array(np.sin(np.deg2rad(edges)), dtype=np.float64)


def _overlap(fine: FloatArray, coarse: FloatArray) -> FloatArray:
    """Share of each coarse cell that each fine row covers, (h, H); rows sum to one."""
    a, b = _edge_sines(fine), _edge_sines(coarse)
    upper = np.minimum(a[None, :-1], b[:-1, None])
    lower = np.maximum(a[None, 1:], b[1:, None])
    return np.array(np.clip(upper - lower, 0.0, None) / (b[:-1] - b[1:])[:, None], dtype=np.float64)


def _interpolation(source: FloatArray, target: FloatArray) -> FloatArray:
    """Linear interpolation matrix in latitude, constant beyond the outer rows, (target, source)."""
    unit = np.eye(source.size)
    return np.stack([np.interp(-target, -source, column) for column in unit], axis=1)
