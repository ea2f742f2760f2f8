"""Any estimator back from its JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._consistency import Consistency
from ._crps import EnsembleCRPS
from ._edm import EDM
from ._flow import FlowMatching
from ._interpolant import StochasticInterpolant
from ._regression import Regression
from ._settings import read_any

AnyEstimator = StochasticInterpolant | FlowMatching | EDM | Consistency | EnsembleCRPS | Regression


def estimator_from_dict(data: Mapping[str, Any]) -> AnyEstimator:
    """The estimator that wrote `data` with `to_dict`, e.g. from the JSON file of a checkpoint."""
    estimator: AnyEstimator = read_any(
        data, (StochasticInterpolant, FlowMatching, EDM, Consistency, EnsembleCRPS, Regression)
    )
    return estimator
