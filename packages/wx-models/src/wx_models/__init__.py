"""The ATLAS architecture: downsampled latent, global transformer, local projector."""

from importlib.metadata import version as _version

from wx_models._attention import neighborhood_attention
from wx_models._downsample import Downsample
from wx_models._projector import LocalProjector, LocalProjectorConfig
from wx_models._protocols import Forcing, LatentSampler, LeadKey, Projector
from wx_models._published_forcing import PublishedForcing
from wx_models._rollout import LatentForecaster, RolloutState
from wx_models._transformer import LatentTransformer, LatentTransformerConfig, NetworkSpec

__version__ = _version("wx-models")

__all__ = [
    "Downsample",
    "Forcing",
    "LatentForecaster",
    "LatentSampler",
    "LatentTransformer",
    "LatentTransformerConfig",
    "LeadKey",
    "LocalProjector",
    "LocalProjectorConfig",
    "NetworkSpec",
    "Projector",
    "PublishedForcing",
    "RolloutState",
    "neighborhood_attention",
]
