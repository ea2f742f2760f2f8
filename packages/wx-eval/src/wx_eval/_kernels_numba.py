"""The kernel of `_kernels` compiled by numba: the same operations in the same order, without the calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit  # type: ignore[import-not-found, unused-ignore]

# Points of a tile, whose (M + 1) rows stay in the cache next to the core.
_TILE = 256


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def fill(
    x_MN: npt.NDArray[Any],
    y_N: npt.NDArray[Any],
    pairs: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    counts: npt.NDArray[Any],
) -> None:
    """Write skill, pair sum, error and variance (4, N) and, if they have points, ranks (2, N)."""
    members, points = x_MN.shape
    work = np.empty((members, _TILE), out.dtype)
    for start in range(0, points, _TILE):
        n = min(_TILE, points - start)
        skill, pair_sum = out[0, start : start + n], out[1, start : start + n]
        error, variance = out[2, start : start + n], out[3, start : start + n]
        y = y_N[start : start + n]
        skill[:] = 0
        pair_sum[:] = 0
        error[:] = 0
        variance[:] = 0
        for k in range(members):
            x, row = x_MN[k, start : start + n], work[k]
            for i in range(n):
                row[i] = x[i] - y[i]
                error[i] += row[i]
                skill[i] += abs(row[i])
        for i in range(n):
            error[i] /= members
            skill[i] /= members
        for k in range(members):
            row = work[k]
            for i in range(n):
                away = row[i] - error[i]
                variance[i] += away * away
        for i in range(n):
            variance[i] = variance[i] / (members - 1) if members > 1 else np.nan
        if counts.shape[1] > 0:
            below, equal = counts[0, start : start + n], counts[1, start : start + n]
            for k in range(members):
                row = work[k]
                for i in range(n):
                    below[i] += row[i] < 0
                    equal[i] += row[i] == 0
        for p in range(len(pairs)):
            low, high = work[pairs[p, 0]], work[pairs[p, 1]]
            for i in range(n):
                a, b = low[i], high[i]
                low[i] = a if a < b else b
                high[i] = b if a < b else a
        for k in range(members // 2):
            low, high = work[k], work[members - 1 - k]
            for i in range(n):
                pair_sum[i] += (high[i] - low[i]) * (members - 1 - 2 * k)
        for i in range(n):
            # The network lets a NaN vanish, the mean keeps it.
            if np.isnan(error[i]):
                pair_sum[i] = np.nan
