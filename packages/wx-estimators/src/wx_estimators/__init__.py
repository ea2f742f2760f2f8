"""Interchangeable probabilistic estimators: stochastic interpolants, diffusion, CRPS ensembles.

An estimator turns a conditional network into a probabilistic forecaster: `loss` trains it, `sample` draws
members. All randomness is a pure function of a `Key`, so a member does not depend on its batch, its chunk or
the number of ranks.
"""

from importlib.metadata import version as _version

from ._bind import BoundSampler, bind
from ._crps import EnsembleCRPS
from ._edm import EDM
from ._ema import EMA
from ._interpolant import StochasticInterpolant
from ._load import estimator_from_dict
from ._noise import SphericalNoise, WhiteNoise
from ._protocols import Comm, EnsembleScore, Estimator, Network, NetworkSpec, NoiseSource
from ._samplers import DPM2S, SRA1, EulerMaruyama, Heun, StochasticHeun
from ._scores import CRPS, DifferenceCRPS, EnergyScore, SpectralCRPS, SumScore, crps
from ._types import Batch, Key, LossOut, NetSpec, Window

__all__ = [
    "CRPS",
    "DPM2S",
    "EDM",
    "EMA",
    "SRA1",
    "Batch",
    "BoundSampler",
    "Comm",
    "DifferenceCRPS",
    "EnergyScore",
    "EnsembleCRPS",
    "EnsembleScore",
    "Estimator",
    "EulerMaruyama",
    "Heun",
    "Key",
    "LossOut",
    "NetSpec",
    "Network",
    "NetworkSpec",
    "NoiseSource",
    "SpectralCRPS",
    "SphericalNoise",
    "StochasticHeun",
    "StochasticInterpolant",
    "SumScore",
    "WhiteNoise",
    "Window",
    "bind",
    "crps",
    "estimator_from_dict",
]

__version__ = _version("wx-estimators")
