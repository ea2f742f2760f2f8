"""Verification of probabilistic weather forecasts: named conventions, tested significance, scorecards.

`evaluate` turns forecasts and truth into `Records`, one row of area-mean statistics per forecast. `scores`
and `compare` turn records into scores of a period and into a tested comparison of two models. `Report` writes
them to one HTML file. `Preset` fixes all conventions of a published evaluation at once.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wx_eval._anomaly import ACC, Activity, MSESkill
    from wx_eval._baselines import climatology, persistence
    from wx_eval._bootstrap import stationary_bootstrap
    from wx_eval._card import scorecard
    from wx_eval._climatology import DayClimatology
    from wx_eval._compare import Comparison, compare, compare_models, corrected_together
    from wx_eval._crps import CRPSPart, HersbachTerm, TwCRPS
    from wx_eval._curves import reliability_diagram, roc_curve, value_curve
    from wx_eval._cyclones import Matching, score_tracks
    from wx_eval._density import DensityWeights
    from wx_eval._doctor import Diagnosis, Finding, doctor
    from wx_eval._doctor_stations import doctor_stations
    from wx_eval._evaluate import Band, Evaluation, evaluate
    from wx_eval._event_scores import AUC, REV, RPS, Brier, Categorical, EventFrequencies
    from wx_eval._fields import Chunk
    from wx_eval._figure import Figure
    from wx_eval._grid import Grid
    from wx_eval._inference import paired_test
    from wx_eval._interpolate import HeightCorrection, PointClimatology, at_points
    from wx_eval._intervals import score_intervals
    from wx_eval._kernels import ensemble_statistics
    from wx_eval._metrics import (
        CRPS,
        MAE,
        MSE,
        RMSE,
        STANDARD_METRICS,
        Bias,
        Metric,
        RankHistogram,
        Spread,
        SpreadSkill,
    )
    from wx_eval._multiplicity import benjamini_hochberg, benjamini_yekutieli, holm, sidak
    from wx_eval._multivariate import EnergyScore, JointEnergyScore, MemberStream, VariogramScore
    from wx_eval._neighbourhood import FSS, PooledCRPS, UsefulFSS
    from wx_eval._open import open_source
    from wx_eval._presets import PRESETS, Bootstrap, Card, Events, Preset
    from wx_eval._protocols import Climatology, Comm, ForecastChunk, History
    from wx_eval._quantiles import WIS, IntervalScore, QuantileScore
    from wx_eval._records import Records
    from wx_eval._regrid import Regridder
    from wx_eval._reliability import BrierTerm, RankUniformity
    from wx_eval._report import Map, Report
    from wx_eval._scores import scores
    from wx_eval._seeps import SEEPS
    from wx_eval._spectra import (
        Coherence,
        LogSpectralDistance,
        PowerSpectrum,
        SpectralBias,
        SpectralRatio,
        power_spectrum,
        zonal_spectrum,
    )
    from wx_eval._stations import ClimateCheck, Observed, ReportLayout, StationReports, metar
    from wx_eval._statistics import FieldStatistic, Statistic
    from wx_eval._tracker import Tracker, track_forecasts, track_history
    from wx_eval._tracks import Track, TrackForecasts, TrackLayout, read_tracks, strike_truth, strikes
    from wx_eval._vectors import VectorCase, vectors
    from wx_eval._weights import PointWeights, cell_weights
    from wx_eval._wind import WindRMSE

    __version__: str

__all__ = [
    "ACC",
    "AUC",
    "CRPS",
    "FSS",
    "MAE",
    "MSE",
    "PRESETS",
    "REV",
    "RMSE",
    "RPS",
    "SEEPS",
    "STANDARD_METRICS",
    "WIS",
    "Activity",
    "Band",
    "Bias",
    "Bootstrap",
    "Brier",
    "BrierTerm",
    "CRPSPart",
    "Card",
    "Categorical",
    "Chunk",
    "ClimateCheck",
    "Climatology",
    "Coherence",
    "Comm",
    "Comparison",
    "DayClimatology",
    "DensityWeights",
    "Diagnosis",
    "EnergyScore",
    "Evaluation",
    "EventFrequencies",
    "Events",
    "FieldStatistic",
    "Figure",
    "Finding",
    "ForecastChunk",
    "Grid",
    "HeightCorrection",
    "HersbachTerm",
    "History",
    "IntervalScore",
    "JointEnergyScore",
    "LogSpectralDistance",
    "MSESkill",
    "Map",
    "Matching",
    "MemberStream",
    "Metric",
    "Observed",
    "PointClimatology",
    "PointWeights",
    "PooledCRPS",
    "PowerSpectrum",
    "Preset",
    "QuantileScore",
    "RankHistogram",
    "RankUniformity",
    "Records",
    "Regridder",
    "Report",
    "ReportLayout",
    "SpectralBias",
    "SpectralRatio",
    "Spread",
    "SpreadSkill",
    "StationReports",
    "Statistic",
    "Track",
    "TrackForecasts",
    "TrackLayout",
    "Tracker",
    "TwCRPS",
    "UsefulFSS",
    "VariogramScore",
    "VectorCase",
    "WindRMSE",
    "at_points",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "cell_weights",
    "climatology",
    "compare",
    "compare_models",
    "corrected_together",
    "doctor",
    "doctor_stations",
    "ensemble_statistics",
    "evaluate",
    "holm",
    "metar",
    "open_source",
    "paired_test",
    "persistence",
    "power_spectrum",
    "read_tracks",
    "reliability_diagram",
    "roc_curve",
    "score_intervals",
    "score_tracks",
    "scorecard",
    "scores",
    "sidak",
    "stationary_bootstrap",
    "strike_truth",
    "strikes",
    "track_forecasts",
    "track_history",
    "value_curve",
    "vectors",
    "zonal_spectrum",
]

# A name is imported when it is used: xarray and pandas take half a second, which help need not wait for.
_MODULES = {
    "ACC": "_anomaly",
    "Activity": "_anomaly",
    "MSESkill": "_anomaly",
    "climatology": "_baselines",
    "persistence": "_baselines",
    "stationary_bootstrap": "_bootstrap",
    "scorecard": "_card",
    "DayClimatology": "_climatology",
    "Comparison": "_compare",
    "compare": "_compare",
    "compare_models": "_compare",
    "corrected_together": "_compare",
    "CRPSPart": "_crps",
    "HersbachTerm": "_crps",
    "TwCRPS": "_crps",
    "reliability_diagram": "_curves",
    "roc_curve": "_curves",
    "value_curve": "_curves",
    "Matching": "_cyclones",
    "score_tracks": "_cyclones",
    "DensityWeights": "_density",
    "Diagnosis": "_doctor",
    "Finding": "_doctor",
    "doctor": "_doctor",
    "doctor_stations": "_doctor_stations",
    "Band": "_evaluate",
    "Evaluation": "_evaluate",
    "evaluate": "_evaluate",
    "AUC": "_event_scores",
    "REV": "_event_scores",
    "RPS": "_event_scores",
    "Brier": "_event_scores",
    "Categorical": "_event_scores",
    "EventFrequencies": "_event_scores",
    "Chunk": "_fields",
    "Figure": "_figure",
    "Grid": "_grid",
    "paired_test": "_inference",
    "HeightCorrection": "_interpolate",
    "PointClimatology": "_interpolate",
    "at_points": "_interpolate",
    "score_intervals": "_intervals",
    "ensemble_statistics": "_kernels",
    "CRPS": "_metrics",
    "MAE": "_metrics",
    "MSE": "_metrics",
    "RMSE": "_metrics",
    "STANDARD_METRICS": "_metrics",
    "Bias": "_metrics",
    "Metric": "_metrics",
    "RankHistogram": "_metrics",
    "Spread": "_metrics",
    "SpreadSkill": "_metrics",
    "benjamini_hochberg": "_multiplicity",
    "benjamini_yekutieli": "_multiplicity",
    "holm": "_multiplicity",
    "sidak": "_multiplicity",
    "EnergyScore": "_multivariate",
    "JointEnergyScore": "_multivariate",
    "MemberStream": "_multivariate",
    "VariogramScore": "_multivariate",
    "FSS": "_neighbourhood",
    "PooledCRPS": "_neighbourhood",
    "UsefulFSS": "_neighbourhood",
    "open_source": "_open",
    "PRESETS": "_presets",
    "Bootstrap": "_presets",
    "Card": "_presets",
    "Events": "_presets",
    "Preset": "_presets",
    "Climatology": "_protocols",
    "Comm": "_protocols",
    "ForecastChunk": "_protocols",
    "History": "_protocols",
    "WIS": "_quantiles",
    "IntervalScore": "_quantiles",
    "QuantileScore": "_quantiles",
    "Records": "_records",
    "Regridder": "_regrid",
    "BrierTerm": "_reliability",
    "RankUniformity": "_reliability",
    "Map": "_report",
    "Report": "_report",
    "scores": "_scores",
    "SEEPS": "_seeps",
    "Coherence": "_spectra",
    "LogSpectralDistance": "_spectra",
    "PowerSpectrum": "_spectra",
    "SpectralBias": "_spectra",
    "SpectralRatio": "_spectra",
    "power_spectrum": "_spectra",
    "zonal_spectrum": "_spectra",
    "ClimateCheck": "_stations",
    "Observed": "_stations",
    "ReportLayout": "_stations",
    "StationReports": "_stations",
    "metar": "_stations",
    "FieldStatistic": "_statistics",
    "Statistic": "_statistics",
    "Tracker": "_tracker",
    "track_forecasts": "_tracker",
    "track_history": "_tracker",
    "Track": "_tracks",
    "TrackForecasts": "_tracks",
    "TrackLayout": "_tracks",
    "read_tracks": "_tracks",
    "strike_truth": "_tracks",
    "strikes": "_tracks",
    "VectorCase": "_vectors",
    "vectors": "_vectors",
    "PointWeights": "_weights",
    "cell_weights": "_weights",
    "WindRMSE": "_wind",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        # What finds it takes as long to import as the help of the command line.
        value = _import_module("importlib.metadata").version("wx-eval")
    elif name in _MODULES:
        value = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
