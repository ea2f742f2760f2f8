"""Verification of probabilistic weather forecasts: named conventions, tested significance, scorecards.

`evaluate` turns forecasts and truth into `Records`, one row of area-mean scores per forecast. `scores` and
`compare` turn records into scores of a period and into a tested comparison of two models. `Report` writes
them to one HTML file.
"""

from importlib.metadata import version as _version

from ._baselines import climatology, persistence
from ._compare import Comparison, compare
from ._evaluate import evaluate
from ._fields import Chunk
from ._inference import benjamini_hochberg, paired_test, stationary_bootstrap
from ._kernels import ensemble_statistics
from ._metrics import CRPS, MAE, MSE, RMSE, STANDARD_METRICS, Bias, Metric, RankHistogram, Spread, SpreadSkill
from ._protocols import Climatology, ForecastChunk, History
from ._records import Records
from ._report import Map, Report
from ._scores import scores
from ._spectra import power_spectrum
from ._statistics import FieldStatistic, Statistic
from ._weights import cell_weights

__version__ = _version("wx-eval")

__all__ = [
    "CRPS",
    "MAE",
    "MSE",
    "RMSE",
    "STANDARD_METRICS",
    "Bias",
    "Chunk",
    "Climatology",
    "Comparison",
    "FieldStatistic",
    "ForecastChunk",
    "History",
    "Map",
    "Metric",
    "RankHistogram",
    "Records",
    "Report",
    "Spread",
    "SpreadSkill",
    "Statistic",
    "benjamini_hochberg",
    "cell_weights",
    "climatology",
    "compare",
    "ensemble_statistics",
    "evaluate",
    "paired_test",
    "persistence",
    "power_spectrum",
    "scores",
    "stationary_bootstrap",
]
