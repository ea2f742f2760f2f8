"""The ATLAS architecture: downsampled latent, global transformer, local projector."""

from importlib.metadata import version as _version

from wx_models._attention import neighborhood_attention
from wx_models._checkpoint import load_network, read_header, save_network
from wx_models._cost import Cost, cost
from wx_models._downsample import Downsample
from wx_models._projector import LocalProjector, LocalProjectorConfig
from wx_models._protocols import Forcing, LatentSampler, LeadKey, Projector
from wx_models._published import PublishedProcessor, from_published, to_published
from wx_models._published_forcing import PublishedForcing
from wx_models._rollout import LatentForecaster, RolloutState
from wx_models._sizes import ladder, scaled
from wx_models._transformer import LatentTransformer, LatentTransformerConfig, NetworkSpec, Stream

__version__ = _version("wx-models")

__all__ = [
    "Cost",
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
    "PublishedProcessor",
    "RolloutState",
    "Stream",
    "cost",
    "from_published",
    "ladder",
    "load_network",
    "neighborhood_attention",
    "read_header",
    "save_network",
    "scaled",
    "to_published",
]
