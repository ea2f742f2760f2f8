"""One forecast and its truth, with everything that statistics share computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ._grid import Array, Grid, Vector
from ._kernels import EnsembleStatistics, Kernel, ensemble_statistics, is_tensor, mean_error, to_numpy


class Case:
    """Members and truth of some channels at some points of a grid, for one init and one lead time.

    Args:
        values: (M, C, N); of a tensor the ensemble statistics are computed on its device.
        truth: (C, N); NaN marks points that are not scored.
        channels: C names.
        grid: the whole grid.
        points: which of its points these are.
        valid_time: of the truth.
        reference: climatological field (C, N) of a name, see `Climatology`.
        units: C strings, "" where neither side states one.
        ranks: whether `ensemble` holds ranks.
        kernel: of `ensemble`, see `ensemble_statistics`.
    """

    def __init__(
        self,
        values: Array,
        truth: Array,
        *,
        channels: tuple[str, ...],
        grid: Grid,
        points: slice,
        valid_time: np.datetime64,
        reference: Callable[[str], Array],
        units: tuple[str, ...] | None = None,
        ranks: bool = True,
        kernel: Kernel = "numpy",
    ) -> None:
        self._values, self.truth, self.channels = values, truth, channels
        self.units = ("",) * len(channels) if units is None else units
        self.grid, self.points, self.valid_time = grid, points, valid_time
        self._reference, self._ranks, self._kernel = reference, ranks, kernel
        self._shared: dict[Hashable, Any] = {}

    @property
    def members(self) -> int:
        """M."""
        return len(self._values)

    @cached_property
    def values(self) -> Array:
        """Members (M, C, N)."""
        array: Array = to_numpy(self._values)
        return array

    @cached_property
    def ensemble(self) -> EnsembleStatistics:
        """Skill, pair sum, error, variance and perhaps ranks of every point, see `ensemble_statistics`."""
        found = ensemble_statistics(self._values, self.truth, ranks=self._ranks, kernel=self._kernel)
        return found.to_numpy()

    @cached_property
    def error(self) -> Vector:
        """Ensemble mean minus truth (C, N)."""
        if "ensemble" in self.__dict__ or is_tensor(self._values):
            return self.ensemble.error.astype(np.float64)
        # Most of the time of `ensemble` goes into a sort, which the mean does not need.
        return mean_error(self._values, self.truth).astype(np.float64)

    @cached_property
    def scored(self) -> npt.NDArray[np.bool_]:
        """(C, N): points with a truth."""
        return ~np.isnan(self.truth)

    def reference(self, name: str) -> Vector:
        """Climatological field (C, N) of a name at the valid time."""
        field: Vector = self.shared(
            ("reference", name), lambda: np.asarray(self._reference(name), np.float64)
        )
        return field

    def shared(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, computed once per case."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]
