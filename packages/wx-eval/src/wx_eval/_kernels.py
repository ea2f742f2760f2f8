"""Ensemble statistics at each point, in one pass over cache-sized tiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = npt.NDArray[np.floating[Any]]
Kernel = Literal["numpy", "numba"]

# (members + 1) rows of a tile stay in cache; longer rows would spill to main memory, shorter ones would pay
# more for the call than for the arithmetic. Measured for 8 and 50 members: 3 MiB is 12 % slower.
_TILE_BYTES = 6 << 20
_TILE_POINTS = (1024, 32768)
# The compiled kernel has no calls to save: a tile is what one call of numpy centres for it.
_COMPILED_TILE_BYTES = 2 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleStatistics:
    """Statistics of an ensemble x_1..x_M against a truth y, one value per point.

    Those of tensors are tensors on the same device, until `to_numpy`.

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
            crps: FloatArray = _float64(self.skill) - _float64(self.pair_sum) / float(pairs)
            return crps

    def to_numpy(self) -> EnsembleStatistics:
        """The same in arrays of numpy."""
        return self._converted(to_numpy)

    def to_torch(self) -> EnsembleStatistics:
        """The same in tensors on the CPU, which share the memory of the arrays."""
        import torch

        def convert(value: Any) -> Any:
            # Arithmetic of torch lacks unsigned integers of more than one byte.
            return torch.from_numpy(value.astype(np.int32) if value.dtype == np.uint16 else value)

        return self._converted(convert)

    def _converted(self, convert: Callable[[Any], Any]) -> EnsembleStatistics:
        names = ("skill", "pair_sum", "error", "variance", "below", "equal")
        held = {name: getattr(self, name) for name in names}
        return replace(self, **{name: convert(value) for name, value in held.items() if value is not None})


def is_tensor(value: object) -> bool:
    """Whether this is a tensor of torch, which is not imported for the answer."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> Any:
    """A tensor as an array, bfloat16 in float32; anything else as it is."""
    if not is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def unmasked(value: Any) -> Any:
    """A masked array as a plain one with NaN for what is masked; anything else as it is."""
    if not isinstance(value, np.ma.MaskedArray):
        return value
    return np.ma.filled(value.astype(np.result_type(value.dtype, np.float32)), np.nan)


def _float64(value: Any) -> Any:
    return value.double() if is_tensor(value) else value.astype(np.float64)


def ensemble_statistics(
    values: npt.ArrayLike | Tensor,
    truth: npt.ArrayLike | Tensor,
    *,
    ranks: bool = False,
    kernel: Kernel = "numpy",
) -> EnsembleStatistics:
    """Skill, spread, error, variance and rank of an ensemble at every point.

    Members are sorted by Batcher's merge exchange: minimum and maximum of whole rows of points.
    The truth is subtracted first, which keeps float32 input within 1e-8 for fields such as geopotential whose
    mean is a hundred times their spread. Every operation is elementwise, so the value at a point does not
    depend on which points it shares a tile with. NaN in, NaN out; what is masked is NaN.

    Args:
        values: forecast, shape (M, *S); a tensor is handled on its device, on the CPU as an array.
        truth: shape (*S).
        ranks: also count members below and equal to the truth.
        kernel: on the CPU. "numba" gives the same bits faster and needs the extra `fast`; the first call
            compiles it.

    Returns:
        Statistics with shape (*S), in float64 if either input is float64, else float32.

    Raises:
        ValueError: when the shapes do not match or there is no member, or for an unknown kernel.
        ImportError: when numba is asked for and not installed.
    """
    if is_tensor(values):
        return _of_tensors(cast("Tensor", values), truth, ranks, kernel)
    x, y = np.asarray(unmasked(values)), np.asarray(unmasked(to_numpy(truth)))
    if x.ndim == 0 or x.shape[0] == 0 or x.shape[1:] != y.shape:
        raise ValueError(f"values must have shape (members, {_dims(y.shape)}) to match truth, got {x.shape}")
    members = x.shape[0]
    dtype = np.result_type(x.dtype, y.dtype, np.float32)
    flat = x.reshape(members, -1), y.reshape(-1)
    out = np.empty((4, y.size), dtype)
    counts = np.zeros((2, y.size), np.uint8 if members < 256 else np.uint16) if ranks else None
    fill = _fill_compiled if _checked(kernel) == "numba" else _fill
    fill(*flat, out, counts)
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


def mean_error(values: npt.NDArray[Any], truth: npt.NDArray[Any]) -> FloatArray:
    """`error` of `ensemble_statistics` alone, to the same bits: values (M, *S), truth (*S)."""
    dtype = np.result_type(values.dtype, truth.dtype, np.float32)
    error, away = np.zeros(truth.shape, dtype), np.empty(truth.shape, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for member in values:
            np.subtract(member, truth, out=away, dtype=dtype)
            np.add(error, away, out=error)
        error /= len(values)
    return error


def _of_tensors(values: Tensor, truth: Any, ranks: bool, kernel: Kernel) -> EnsembleStatistics:
    import torch

    from ._kernels_torch import statistics

    if values.device.type == "cpu":
        # The calls of torch cost more than those of numpy, which reads the same memory.
        found = ensemble_statistics(to_numpy(values), to_numpy(truth), ranks=ranks, kernel=kernel)
        return found.to_torch()
    if not is_tensor(truth):
        # torch takes no array that is read-only, reversed or of the other byte order.
        array = np.array(unmasked(truth))
        truth = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    truth = truth.to(values.device)
    if values.ndim == 0 or not len(values) or values.shape[1:] != truth.shape:
        expected = _dims(tuple(truth.shape))
        raise ValueError(
            f"values must have shape (members, {expected}) to match truth, got {tuple(values.shape)}"
        )
    pairs = _merge_exchange(len(values))
    out, counts = statistics(values.reshape(len(values), -1), truth.reshape(-1), pairs, ranks=ranks)
    fields: Any = [*out.reshape(4, *truth.shape)]
    ranked: Any = [None, None] if counts is None else [*counts.reshape(2, *truth.shape)]
    return EnsembleStatistics(
        members=len(values),
        skill=fields[0],
        pair_sum=fields[1],
        error=fields[2],
        variance=fields[3],
        below=ranked[0],
        equal=ranked[1],
    )


def _checked(kernel: str) -> str:
    if kernel not in ("numpy", "numba"):
        raise ValueError(f'kernel must be "numpy" or "numba", got {kernel!r}')
    return kernel


def _fill_compiled(
    x_MN: npt.NDArray[Any],
    y_N: npt.NDArray[Any],
    out: FloatArray,
    counts: npt.NDArray[np.unsignedinteger[Any]] | None,
) -> None:
    try:
        from ._kernels_numba import fill
    except ImportError as error:
        raise ImportError(
            'kernel="numba" needs numba: install wx-eval[fast], or leave the kernel at "numpy"'
        ) from error
    members, points = x_MN.shape
    pairs = np.asarray(_merge_exchange(members), np.int64).reshape(-1, 2)
    tile = _tile_points(members, out.dtype.itemsize, _COMPILED_TILE_BYTES)
    away, kept = np.empty(members * tile, out.dtype), np.empty(4 * tile, out.dtype)
    ranks = np.empty(0 if counts is None else 2 * tile, np.uint8 if counts is None else counts.dtype)
    for start in range(0, points, tile):
        part = slice(start, min(start + tile, points))
        n = part.stop - start
        tile_MN, tile_out = away[: members * n].reshape(members, n), kept[: 4 * n].reshape(4, n)
        tile_counts = ranks[: 0 if counts is None else 2 * n].reshape(2, -1)
        np.subtract(x_MN[:, part], y_N[part], out=tile_MN, dtype=out.dtype)
        fill(tile_MN, pairs, tile_out, tile_counts)
        out[:, part] = tile_out
        if counts is not None:
            counts[:, part] = tile_counts


def _fill(
    x_MN: npt.NDArray[Any],
    y_N: npt.NDArray[Any],
    out: FloatArray,
    counts: npt.NDArray[np.unsignedinteger[Any]] | None,
) -> None:
    members, points = x_MN.shape
    tile = _tile_points(members, out.dtype.itemsize)
    work = np.empty((members + 1, min(tile, max(points, 1))), out.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, points, tile):
            part = slice(start, start + tile)
            tile_counts = None if counts is None else counts[:, part]
            _fill_tile(x_MN[:, part], y_N[part], work, out[:, part], tile_counts)


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) or "no point dimension"


def _tile_points(members: int, itemsize: int, size: int = _TILE_BYTES) -> int:
    return int(np.clip(size // ((members + 1) * itemsize), *_TILE_POINTS))


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
