"""Any estimator back from its JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._crps import EnsembleCRPS
from ._edm import EDM
from ._interpolant import StochasticInterpolant
from ._settings import read_any


def estimator_from_dict(data: Mapping[str, Any]) -> StochasticInterpolant | EDM | EnsembleCRPS:
    """The estimator that wrote `data` with `to_dict`, e.g. from the JSON file of a checkpoint."""
    estimator: StochasticInterpolant | EDM | EnsembleCRPS = read_any(
        data, (StochasticInterpolant, EDM, EnsembleCRPS)
    )
    return estimator
