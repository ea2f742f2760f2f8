"""The kernel of `_kernels` compiled by numba: the same operations in the same order, so the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit  # type: ignore[import-not-found, unused-ignore]

# Bytes of a run of points whose M rows stay in the cache next to the core, and the shortest run worth it.
_RUN_BYTES = 40 << 10
_RUN_POINTS = 64


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def fill(
    away_MN: npt.NDArray[Any], pairs: npt.NDArray[np.int64], out: npt.NDArray[Any], counts: npt.NDArray[Any]
) -> None:
    """Write skill, pair sum, error and variance (4, N) and, if they have points, ranks (2, N).

    `away_MN` is values minus truth. All arrays are contiguous: with any other stride the loops over points
    are not vectorised, which doubles the time.
    """
    members, points = away_MN.shape
    run = max(_RUN_POINTS, _RUN_BYTES // (members * away_MN.itemsize) // 16 * 16)
    work = np.empty((members, run), away_MN.dtype)
    ranks = np.empty((2, run), np.int32)
    for start in range(0, points, run):
        n = min(run, points - start)
        skill, pair_sum = out[0, start : start + n], out[1, start : start + n]
        error, variance = out[2, start : start + n], out[3, start : start + n]
        skill[:] = 0
        pair_sum[:] = 0
        error[:] = 0
        variance[:] = 0
        for k in range(members):
            x, row = away_MN[k, start : start + n], work[k]
            for i in range(n):
                row[i] = x[i]
                error[i] += x[i]
                skill[i] += abs(x[i])
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
            below, equal = ranks[0], ranks[1]
            ranks[:] = 0
            for k in range(members):
                row = work[k]
                for i in range(n):
                    below[i] += row[i] < 0
                    equal[i] += row[i] == 0
            for i in range(n):
                counts[0, start + i] = below[i]
                counts[1, start + i] = equal[i]
        for p in range(len(pairs)):
            low, high = work[pairs[p, 0]], work[pairs[p, 1]]
            for i in range(n):
                a, b = low[i], high[i]
                low[i] = a if a < b else b
                high[i] = b if a < b else a
        for k in range(members // 2):
            low, high = work[k], work[members - 1 - k]
            factor = away_MN.dtype.type(members - 1 - 2 * k)
            for i in range(n):
                pair_sum[i] += (high[i] - low[i]) * factor
        for i in range(n):
            # The network lets a NaN vanish, the mean keeps it.
            if members > 1 and np.isnan(error[i]):
                pair_sum[i] = np.nan
