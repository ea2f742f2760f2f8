"""First-order conservative regridding between latitude-longitude grids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wx_data._grid import Floats, Grid, on_grid, without_missing

_Overlap = tuple[NDArray[np.intp], Floats]  # (N, K) source cells of each target cell, and their share of it


def regrid_conservative(values: NDArray[Any], source: Grid, target: Grid) -> NDArray[np.float32]:
    """Area-weighted mean of (..., H, W) over each cell of `target`.

    A cell reaches half-way to its neighbours and, on a global grid, to the poles; areas are those of
    `Grid.area_weights`, so the global mean is kept. Missing values (NaN) are left out and the remaining area
    renormalised; a cell stays NaN where less than half of its area is present. Components of the wind are
    averaged as scalars.

    Jones (1999), doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2, first order.

    Raises:
        ValueError: `values` do not lie on `source`, or a cell of `target` reaches outside `source`.
    """
    values = on_grid(values, source)
    if source == target:
        return values.astype(np.float32, copy=False)
    rows = _overlap(
        -np.sin(np.deg2rad(source.latitude_edges())), -np.sin(np.deg2rad(target.latitude_edges())), "latitude"
    )
    columns = _longitude_overlap(source, target)
    field = values.astype(np.float64)
    return without_missing(field, lambda part: _mean(_mean(part, rows).swapaxes(-1, -2), columns, swap=True))


def _mean(field: Floats, overlap: _Overlap, swap: bool = False) -> Floats:
    """Weighted mean along axis -2."""
    cells, shares = overlap
    total = np.zeros((*field.shape[:-2], cells.shape[0], field.shape[-1]))
    for k in range(cells.shape[1]):
        total += field[..., cells[:, k], :] * shares[:, k, None]
    return total.swapaxes(-1, -2) if swap else total


def _longitude_overlap(source: Grid, target: Grid) -> _Overlap:
    edges = source.longitude_edges()
    if not source.is_periodic:
        return _overlap(edges, target.longitude_edges(), "longitude")
    # Three turns of the globe hold every target cell, whatever meridian it straddles.
    turns = np.concatenate((edges[:-1] - 360.0, edges[:-1], edges + 360.0))
    cells, shares = _overlap(turns, target.longitude_edges(), "longitude")
    return cells % source.longitude.size, shares


def _overlap(source: Floats, target: Floats, name: str) -> _Overlap:
    """Source cells that each target cell covers, both given by increasing edges."""
    tolerance = 1e-9 * (source[-1] - source[0])
    if target[0] < source[0] - tolerance or target[-1] > source[-1] + tolerance:
        raise ValueError(
            f"conservative: target cells reach outside the source grid in {name}; "
            "regridding never extrapolates"
        )
    low, high = target[:-1], target[1:]
    first = np.clip(np.searchsorted(source, low, side="right") - 1, 0, source.size - 2)
    last = np.clip(np.searchsorted(source, high, side="left") - 1, 0, source.size - 2)
    cells = first[:, None] + np.arange(int((last - first).max()) + 1)
    inside = cells <= last[:, None]
    cells = np.minimum(cells, source.size - 2)
    width = np.minimum(source[cells + 1], high[:, None]) - np.maximum(source[cells], low[:, None])
    width = np.where(inside, np.maximum(width, 0.0), 0.0)
    return cells, width / width.sum(axis=1, keepdims=True)
