"""Interchangeable probabilistic estimators: stochastic interpolants, diffusion, CRPS ensembles.

An estimator turns a conditional network into a probabilistic forecaster: `loss` trains it, `sample` draws
members. All randomness is a pure function of a `Key`, so a member does not depend on its batch, its chunk or
the number of ranks.
"""

from importlib.metadata import version as _version

from ._bind import BoundSampler, bind
from ._comm import ProcessGroupComm
from ._consistency import Consistency
from ._convert import convert_prediction
from ._crps import EnsembleCRPS
from ._edm import EDM
from ._ema import EMA, post_hoc_ema
from ._flow import FlowMatching
from ._guidance import Guided, Unconditional, drop_condition
from ._interpolant import StochasticInterpolant
from ._kernel import crps
from ._laws import LogitNormal, LogNormal, RhoQuantile, Uniform
from ._likelihood import log_likelihood
from ._load import estimator_from_dict
from ._noise import (
    AntitheticNoise,
    AR1Noise,
    AtlasNoise,
    ShardNoise,
    SphericalNoise,
    SphericalSynthesis,
    StudentTNoise,
    WhiteNoise,
)
from ._path import Coeff, LinearPath, Path, TrigPath
from ._protocols import (
    Comm,
    DenoisingSampler,
    EnsembleScore,
    Estimator,
    Law,
    Network,
    NetworkSpec,
    NoiseSource,
    OdeSampler,
    SdeSampler,
    SpectralAnalysis,
)
from ._regression import Regression
from ._rollout import Rollout, RolloutBatch, Transition
from ._samplers import DPM2M, DPM2S, RK4, SRA1, SRA2, Euler, EulerMaruyama, Heun, StochasticHeun
from ._scores import CRPS, EnergyScore
from ._scores_pairs import DifferenceCRPS, EdgeCRPS, VariogramScore
from ._scores_spectral import SpectralCRPS
from ._scores_sum import PatchMeanScore, SumScore
from ._types import Batch, Key, LossOut, NetSpec, Window
from ._uncertainty import UncertaintyWeight

__all__ = [
    "CRPS",
    "DPM2M",
    "DPM2S",
    "EDM",
    "EMA",
    "RK4",
    "SRA1",
    "SRA2",
    "AR1Noise",
    "AntitheticNoise",
    "AtlasNoise",
    "Batch",
    "BoundSampler",
    "Coeff",
    "Comm",
    "Consistency",
    "DenoisingSampler",
    "DifferenceCRPS",
    "EdgeCRPS",
    "EnergyScore",
    "EnsembleCRPS",
    "EnsembleScore",
    "Estimator",
    "Euler",
    "EulerMaruyama",
    "FlowMatching",
    "Guided",
    "Heun",
    "Key",
    "Law",
    "LinearPath",
    "LogNormal",
    "LogitNormal",
    "LossOut",
    "NetSpec",
    "Network",
    "NetworkSpec",
    "NoiseSource",
    "OdeSampler",
    "PatchMeanScore",
    "Path",
    "ProcessGroupComm",
    "Regression",
    "RhoQuantile",
    "Rollout",
    "RolloutBatch",
    "SdeSampler",
    "ShardNoise",
    "SpectralAnalysis",
    "SpectralCRPS",
    "SphericalNoise",
    "SphericalSynthesis",
    "StochasticHeun",
    "StochasticInterpolant",
    "StudentTNoise",
    "SumScore",
    "Transition",
    "TrigPath",
    "UncertaintyWeight",
    "Unconditional",
    "Uniform",
    "VariogramScore",
    "WhiteNoise",
    "Window",
    "bind",
    "convert_prediction",
    "crps",
    "drop_condition",
    "estimator_from_dict",
    "log_likelihood",
    "post_hoc_ema",
]

__version__ = _version("wx-estimators")
