"""Weighted means over regions, added up in one fixed order."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ._kernels import EnsembleStatistics
from ._records import SCORES
from ._regions import RegionSpec, region_masks
from ._weights import Weights, cell_weights

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
WeightSpec = Weights | npt.NDArray[np.floating[Any]]


class NotFiniteError(ValueError):
    """A forecast is not finite at a point whose truth is; holds the position of the channel."""

    def __init__(self, channel: int) -> None:
        super().__init__(f"forecast of channel {channel} is not finite where the truth is")
        self.channel = channel


class Reducer:
    """Means over the regions of one grid.

    Points with the same memberships form one atom. Sums run over atoms, in the order of the points and in
    float64, and a region adds its atoms: the cost hardly grows with the number of regions, and the order of
    additions depends on nothing but the grid and the regions.
    """

    def __init__(self, latitude: Array, longitude: Array, regions: RegionSpec, weights: WeightSpec) -> None:
        shape = (latitude.size, longitude.size)
        masks = region_masks(latitude, longitude, regions)
        member = np.stack([mask.ravel() for mask in masks.values()])
        self._inside, index = np.unique(member, axis=1, return_inverse=True)
        self._atom = index.reshape(-1).astype(np.intp)
        self._slot = self._atom[None]
        self._weight = np.broadcast_to(_point_weights(latitude, weights, shape), shape).ravel()
        self.regions = tuple(masks)
        self.region_hashes = {name: _digest(mask) for name, mask in masks.items()}
        self.weights_name = weights if isinstance(weights, str) else f"custom:{_digest(self._weight)}"
        # Rounded, so that axes stored in float32 and in float64 are one grid; + 0.0 turns -0 into 0.
        axes = (np.round(a.astype(np.float64), 3) + 0.0 for a in (latitude, longitude))
        self.grid_name = f"{shape[0]} x {shape[1]} {_digest(*axes)}"

    def missing(self, channels: int) -> dict[str, Array]:
        """Columns (channel, region) of fields that have no truth at all."""
        points = self._regions(np.bincount(self._atom, minlength=self._inside.shape[1]))
        none = np.zeros((channels, len(self.regions)), np.int64)
        columns: dict[str, Array] = {"n": none, "n_missing": none + points, "sum_w": none.astype(np.float64)}
        return columns

    def means(self, statistics: EnsembleStatistics, truth_CHW: Array) -> dict[str, Array]:
        """Columns (channel, region) of statistics with shape (channel, latitude, longitude).

        Raises:
            NotFiniteError: when a statistic is not finite at a point whose truth is not NaN.
        """
        channels = len(truth_CHW)
        scored = ~np.isnan(truth_CHW.reshape(channels, -1))
        weight = np.where(scored, self._weight, 0.0)
        fields = {
            name: np.where(scored, f.reshape(channels, -1), 0.0) for name, f in _fields(statistics).items()
        }
        finite = np.isfinite(fields["error_mean"]).all(axis=1)
        if not finite.all():
            raise NotFiniteError(int(np.argmin(finite)))
        sum_w = self._sums(weight)
        n = self._sums(scored.astype(np.float64)).astype(np.int64)
        points = self._regions(np.bincount(self._atom, minlength=self._inside.shape[1]))
        with np.errstate(invalid="ignore"):
            columns: dict[str, Array] = {
                name: self._sums(weight * field) / sum_w for name, field in fields.items()
            }
        columns |= {"n": n, "n_missing": points - n, "sum_w": sum_w}
        if statistics.below is not None and statistics.equal is not None:
            with np.errstate(invalid="ignore"):
                columns["rank_histogram"] = self._histograms(statistics, weight) / sum_w[..., None]
        return columns

    def _sums(self, field_CN: Array) -> Vector:
        """Sums (channel, region)."""
        channels, atoms = len(field_CN), self._inside.shape[1]
        per_atom = np.bincount(self._slots(channels).ravel(), field_CN.ravel(), minlength=channels * atoms)
        return self._regions(per_atom.reshape(channels, atoms))

    def _slots(self, channels: int) -> npt.NDArray[np.intp]:
        """Place of each (channel, point) in a flat (channel, atom) array."""
        if len(self._slot) != channels:
            self._slot = self._atom + self._inside.shape[1] * np.arange(channels)[:, None]
        return self._slot

    def _regions(self, per_atom: Array) -> Array:
        """Add the atoms (last axis) of each region one after the other."""
        total = np.zeros((*per_atom.shape[:-1], len(self.regions)), per_atom.dtype)
        for region, atom in np.argwhere(self._inside):
            total[..., region] += per_atom[..., atom]
        return total

    def _histograms(self, statistics: EnsembleStatistics, weight_CN: Vector) -> Vector:
        """Weight per rank (channel, region, rank); t tied members spread a point evenly over t + 1 ranks."""
        if statistics.below is None or statistics.equal is None:
            raise ValueError("statistics were computed without ranks")
        channels, atoms, slots = len(weight_CN), self._inside.shape[1], statistics.members + 2
        below = statistics.below.reshape(channels, -1).astype(np.intp)
        equal = statistics.equal.reshape(channels, -1).astype(np.intp)
        first = self._slots(channels) * slots + below
        share = weight_CN / (equal + 1)
        # A point adds its share at its first rank and takes it back after its last; the sum fills between.
        size = channels * atoms * slots
        steps = np.bincount(first.ravel(), share.ravel(), minlength=size)
        steps -= np.bincount((first + equal + 1).ravel(), share.ravel(), minlength=size)
        per_atom = np.cumsum(steps.reshape(channels, atoms, slots), axis=-1)[..., :-1]
        return np.moveaxis(self._regions(np.moveaxis(np.maximum(per_atom, 0), 1, -1)), 1, -1)


def _fields(statistics: EnsembleStatistics) -> dict[str, Vector]:
    error = statistics.error.astype(np.float64)
    fields = {"mae_mean": np.abs(error), "mse_mean": error * error, "error_mean": error}
    if statistics.members > 1:
        fields["crps_fair"] = statistics.crps_fair
        fields["crps_biased"] = statistics.crps_biased
        fields["variance"] = statistics.variance.astype(np.float64)
    return {name: fields[name] for name in SCORES if name in fields}


def _point_weights(latitude: Array, weights: WeightSpec, shape: tuple[int, int]) -> Vector:
    if isinstance(weights, str):
        return cell_weights(latitude, weights)[:, None]
    array = np.asarray(weights, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.shape not in (shape, (shape[0], 1)):
        raise ValueError(f"weights must have shape ({shape[0]},) or {shape}, got {np.shape(weights)}")
    if not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
        raise ValueError("weights must be finite, not negative and not all zero")
    return array


def _digest(*arrays: Array) -> str:
    content = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(content).hexdigest()[:12]
