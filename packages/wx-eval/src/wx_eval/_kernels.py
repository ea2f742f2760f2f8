"""Ensemble statistics at each point, in one pass over cache-sized tiles."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

# (members + 1) rows of a tile stay in the last private cache level; longer rows would spill to main memory,
# shorter ones would pay more for the call than for the arithmetic.
_TILE_BYTES = 3 << 20
_TILE_POINTS = (1024, 16384)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleStatistics:
    """Statistics of an ensemble x_1..x_M against a truth y, one value per point.

    Attributes:
        members: M.
        skill: mean over members of |x_k - y|.
        pair_sum: S = sum_k (2k - M - 1) x_(k) over the sorted members, half the double sum of |x_j - x_k|.
        error: ensemble mean minus truth.
        variance: variance over members with M - 1 in the denominator (NaN when M = 1).
        below: number of members below the truth (None unless asked for).
        equal: number of members equal to the truth (None unless asked for).
    """

    members: int
    skill: FloatArray
    pair_sum: FloatArray
    error: FloatArray
    variance: FloatArray
    below: npt.NDArray[np.unsignedinteger[Any]] | None = None
    equal: npt.NDArray[np.unsignedinteger[Any]] | None = None

    @property
    def crps_fair(self) -> FloatArray:
        """CRPS with the estimator that is unbiased in M: skill - S / (M (M - 1)); negative values are right.

        Raises:
            ValueError: when M = 1, where it does not exist.
        """
        if self.members < 2:
            raise ValueError(
                "fair CRPS needs at least 2 members and the forecast has 1: "
                "score a deterministic forecast by its absolute error (`skill`, column `mae_mean`)"
            )
        return self._crps(self.members * (self.members - 1))

    @property
    def crps_biased(self) -> FloatArray:
        """CRPS of the empirical distribution, skill - S / M^2: 1 + 1/M times fair if calibrated."""
        return self._crps(self.members**2)

    def _crps(self, pairs: int) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return self.skill.astype(np.float64) - self.pair_sum / float(pairs)


def ensemble_statistics(
    values: npt.ArrayLike, truth: npt.ArrayLike, *, ranks: bool = False
) -> EnsembleStatistics:
    """Skill, spread, error, variance and rank of an ensemble at every point.

    Members are sorted by Batcher's merge exchange: minimum and maximum of whole rows of points.
    The truth is subtracted first, which keeps float32 input within 1e-8 for fields such as geopotential whose
    mean is a hundred times their spread. Every operation is elementwise, so the value at a point does not
    depend on which points it shares a tile with. NaN in, NaN out.

    Args:
        values: forecast, shape (M, *S).
        truth: shape (*S).
        ranks: also count members below and equal to the truth.

    Returns:
        Statistics with shape (*S), in float64 if either input is float64, else float32.

    Raises:
        ValueError: when the shapes do not match or there is no member.
    """
    x, y = np.asarray(values), np.asarray(truth)
    if x.ndim == 0 or x.shape[0] == 0 or x.shape[1:] != y.shape:
        raise ValueError(f"values must have shape (members, {_dims(y.shape)}) to match truth, got {x.shape}")
    members = x.shape[0]
    dtype = np.result_type(x.dtype, y.dtype, np.float32)
    flat = x.reshape(members, -1), y.reshape(-1)
    out = np.empty((4, y.size), dtype)
    counts = np.zeros((2, y.size), np.uint8 if members < 256 else np.uint16) if ranks else None
    tile = _tile_points(members, dtype.itemsize)
    work = np.empty((members + 1, min(tile, max(y.size, 1))), dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, y.size, tile):
            part = slice(start, start + tile)
            tile_counts = None if counts is None else counts[:, part]
            _fill_tile(flat[0][:, part], flat[1][part], work, out[:, part], tile_counts)
    skill, pair_sum, error, variance = out.reshape(4, *y.shape)
    below, equal = (None, None) if counts is None else counts.reshape(2, *y.shape)
    return EnsembleStatistics(
        members=members,
        skill=skill,
        pair_sum=pair_sum,
        error=error,
        variance=variance,
        below=below,
        equal=equal,
    )


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) or "no point dimension"


def _tile_points(members: int, itemsize: int) -> int:
    return int(np.clip(_TILE_BYTES // ((members + 1) * itemsize), *_TILE_POINTS))


def _fill_tile(
    x_MN: npt.NDArray[Any],
    y_N: npt.NDArray[Any],
    work: FloatArray,
    out: FloatArray,
    counts: npt.NDArray[np.unsignedinteger[Any]] | None,
) -> None:
    """Write skill, pair sum, error and variance of one tile into the rows of `out`."""
    members, points = x_MN.shape
    rows = [work[k, :points] for k in range(members)]
    spare = work[members, :points]
    skill, pair_sum, error, variance = out
    _centre(x_MN, y_N, rows, spare, error, skill)
    _variance(rows, error, spare, variance)
    if counts is not None:
        _count_ranks(rows, counts[0], counts[1])
    _pair_sum(rows, spare, pair_sum)


def _centre(
    x_MN: npt.NDArray[Any],
    y_N: npt.NDArray[Any],
    rows: list[FloatArray],
    spare: FloatArray,
    error: FloatArray,
    skill: FloatArray,
) -> None:
    error.fill(0)
    skill.fill(0)
    for x, row in zip(x_MN, rows, strict=True):
        np.subtract(x, y_N, out=row, dtype=row.dtype)
        np.add(error, row, out=error)
        np.abs(row, out=spare)
        np.add(skill, spare, out=skill)
    error /= len(rows)
    skill /= len(rows)


def _variance(rows: list[FloatArray], error: FloatArray, spare: FloatArray, variance: FloatArray) -> None:
    variance.fill(0 if len(rows) > 1 else np.nan)
    for row in rows:
        np.subtract(row, error, out=spare)
        np.multiply(spare, spare, out=spare)
        np.add(variance, spare, out=variance)
    variance /= max(len(rows) - 1, 1)


def _count_ranks(
    rows: list[FloatArray],
    below: npt.NDArray[np.unsignedinteger[Any]],
    equal: npt.NDArray[np.unsignedinteger[Any]],
) -> None:
    flag = np.empty(len(below), np.bool_)
    bit = flag.view(np.uint8)
    for row in rows:
        np.less(row, 0, out=flag)
        np.add(below, bit, out=below)
        np.equal(row, 0, out=flag)
        np.add(equal, bit, out=equal)


def _pair_sum(rows: list[FloatArray], spare: FloatArray, pair_sum: FloatArray) -> None:
    """Sort the rows by exchanging references, then S = sum_k (2k - M - 1) x_(k) from the outside in."""
    for i, j in _merge_exchange(len(rows)):
        low, high = rows[i], rows[j]
        np.minimum(low, high, out=spare)
        np.maximum(low, high, out=high)
        rows[i], spare = spare, low
    pair_sum.fill(0)
    for k in range(len(rows) // 2):
        np.subtract(rows[-1 - k], rows[k], out=spare)
        np.multiply(spare, len(rows) - 1 - 2 * k, out=spare)
        np.add(pair_sum, spare, out=pair_sum)


@lru_cache(maxsize=64)
def _merge_exchange(n: int) -> tuple[tuple[int, int], ...]:
    """Comparators that sort any n values (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M)."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max((n - 1).bit_length() - 1, 0)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)
