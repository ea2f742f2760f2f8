"""Between the state dicts of NVIDIA's public ATLAS code and those of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wx_models._checkpoint import NetworkConfig, check_weights, make_network
from wx_models._transformer import LatentTransformerConfig

Weights = Mapping[str, Tensor]

_EPS = 1e-6  # added to every standard deviation, however small
# Patterns of our names and the published ones; the first that fits counts.
_COMMON = (
    (r"time\.(.*)", r"t_embedder.\1"),
    (r"output\.modulation\.(.*)", r"final_layer.adaLN_modulation.1.\1"),
    (r"output\.(.*)", r"final_layer.\1"),
    (r"(blocks\.\d+)\.modulation\.(.*)", r"\1.adaLN_modulation.1.\2"),
)
_BACKBONE = (
    (r"embeddings\.0\.proj\.(.*)", r"x_embedder_1.proj.\1"),
    (r"embeddings\.1\.proj\.(.*)", r"x_embedder_2.proj.\1"),
    (r"embeddings\.0\.position", r"pos_embed_1"),
    (r"embeddings\.1\.position", r"pos_embed_2"),
    (r"(blocks\.\d+)\.noise_modulation\.(.*)", r"\1.noise_modulation.1.\2"),
    (r"noise\.(.*)", r"noise_mlp.\1"),
    *_COMMON,
)
_PROJECTOR = (
    (r"state_embedding\.proj\.(.*)", r"x_embedder1.proj.\1"),
    (r"latent_embedding\.proj\.(.*)", r"x_embedder2.proj.\1"),
    (r"state_embedding\.position", r"pos_embed1"),
    (r"latent_embedding\.position", r"pos_embed2"),
    (r"(blocks\.\d+)\.attn\.(.*)", r"\1.attn.attn.\2"),
    *_COMMON,
)


def from_published(config: NetworkConfig, weights: Weights) -> dict[str, Tensor]:
    """Returns the state dict of our network for a published one; tensors share memory.

    Args:
        config: `LatentTransformerConfig.atlas_si()`, `.atlas_crps()`,
            `LocalProjectorConfig.atlas_projector()`, or another with the same parts.
        weights: state dict of SInterpolantLatentDiT, CRPSLatentDiT or NattenCombineDiT.

    Raises:
        ValueError: names or shapes are not those of the published network of this configuration.
    """
    ours = _layout(config)
    names = _names(config, ours)
    published = {names[name]: _published_shape(name, value) for name, value in ours.items()}
    check_weights(weights, published, "published weights")
    return {name: weights[names[name]].reshape(value.shape) for name, value in ours.items()}


def to_published(config: NetworkConfig, weights: Weights) -> dict[str, Tensor]:
    """Returns the published state dict for one of ours: the inverse of `from_published`.

    Raises:
        ValueError: the configuration has parts that the published networks lack, or names or shapes are not
            those of our network.
    """
    ours = _layout(config)
    names = _names(config, ours)
    check_weights(weights, ours, "weights")
    return {names[name]: _published_shape(name, value) for name, value in weights.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedProcessor:
    """Normalisation and static fields of a released model, from the buffers of its processor.

    The published normaliser divides by std + 1e-6, which is not 1 for a channel whose standard deviation is
    as small as that of humidity aloft; weights trained with it need it.

    Attributes:
        mean, std: of the state (C,), in the units of the channels.
        residual_mean, residual_std: of x(t + 6 h) - x(t) (C,).
        statics: (S, H, W) for `PublishedForcing`; None where the processor has none.
    """

    mean: Tensor
    std: Tensor
    residual_mean: Tensor
    residual_std: Tensor
    statics: Tensor | None

    @classmethod
    def from_published(cls, buffers: Weights) -> PublishedProcessor:
        """Takes the buffers `normalizer_in`, `normalizer_out` and `static_channels`.

        Raises:
            ValueError: a buffer is missing, or its shape is not (1, C, 1, 1) or (1, S, H, W).
        """
        wanted = [
            f"{kind}.{what}" for kind in ("normalizer_in", "normalizer_out") for what in ("mean", "std")
        ]
        missing = [name for name in wanted if name not in buffers]
        if missing:
            raise ValueError(f"the processor lacks {', '.join(missing)}; it has {', '.join(buffers)}")
        channels = buffers[wanted[0]].shape[1] if buffers[wanted[0]].ndim == 4 else 0
        for name in wanted:
            if tuple(buffers[name].shape) != (1, channels, 1, 1):
                raise ValueError(f"{name} must be (1, C, 1, 1), got {tuple(buffers[name].shape)}")
        statics = buffers.get("static_channels")
        if statics is not None and (statics.ndim != 4 or statics.shape[0] != 1):
            raise ValueError(f"static_channels must be (1, S, H, W), got {tuple(statics.shape)}")
        mean, std, residual_mean, residual_std = (buffers[name].flatten() for name in wanted)
        return cls(
            mean=mean,
            std=std,
            residual_mean=residual_mean,
            residual_std=residual_std,
            statics=None if statics is None else statics[0],
        )

    def to_published(self) -> dict[str, Tensor]:
        """Returns the buffers, as `from_published` takes them."""
        found = {
            "normalizer_in.mean": self.mean,
            "normalizer_in.std": self.std,
            "normalizer_out.mean": self.residual_mean,
            "normalizer_out.std": self.residual_std,
        }
        buffers = {name: value.view(1, -1, 1, 1) for name, value in found.items()}
        if self.statics is not None:
            buffers["static_channels"] = self.statics[None]
        return {**buffers, "device_buffer": torch.empty(0)}

    @property
    def residual_scale(self) -> Tensor:
        """(C,) for `LatentForecaster`: one residual unit in units of the normalised state."""
        return (self.residual_std + _EPS) / (self.std + _EPS)

    @property
    def residual_shift(self) -> Tensor:
        """(C,) for `LatentForecaster`: mean residual in units of the normalised state."""
        return self.residual_mean / (self.std + _EPS)

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Physical to normalised state; NaN (SST over land) counts as 0 in physical units, as in training."""
        return (x_NCHW.nan_to_num(0.0) - _column(self.mean)) / _column(self.std + _EPS)

    def decode(self, n_NCHW: Tensor) -> Tensor:
        """Normalised to physical state."""
        return n_NCHW * _column(self.std + _EPS) + _column(self.mean)


def _layout(config: NetworkConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(make_network(config).state_dict())


def _names(config: NetworkConfig, ours: Weights) -> dict[str, str]:
    """Returns our names -> published names.

    Raises:
        ValueError: the configuration has parts that the published networks lack.
    """
    backbone = isinstance(config, LatentTransformerConfig)
    lacking = r"^skip\.|\.mixing\.|^embeddings\.[2-9]" if backbone else r"_norm\."
    additions = [name for name in ours if re.search(lacking, name)]
    if additions:
        raise ValueError(
            f"the published networks have no {additions[0]}: mixing, linear_skip, more than two streams and "
            "a projector with qk_norm cannot be converted"
        )
    patterns = _BACKBONE if backbone else _PROJECTOR
    return {name: _renamed(name, patterns) for name in ours}


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for ours, published in patterns:
        if re.fullmatch(ours, name):
            return re.sub(ours, published, name)
    return name


def _published_shape(name: str, value: Tensor) -> Tensor:
    """Positions are published as (1, tokens, width), ours are (1, rows, columns, width)."""
    return value.flatten(1, 2) if name.endswith(".position") else value


def _column(values: Tensor) -> Tensor:
    return values[:, None, None]
