"""The latent network: one backbone for every estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wx_models._blocks import (
    MLP,
    Block,
    ConvHead,
    OutputLayer,
    PatchEmbedding,
    TimeEmbedding,
    initialise,
    mixed_precision,
)
from wx_models._config import JsonConfig, check_choice, check_positive
from wx_models._protocols import Cond

POSITIONS = ("sincos", "learned")
_ATTENTION = ("global", "local")


@dataclass(frozen=True)
class NetworkSpec:
    """What a network takes and gives; an estimator checks it against what it needs.

    Attributes:
        out_channels: channels of the output field.
        takes_x: whether a noisy or interpolated field is an input.
        takes_t: whether a scalar time or noise label per row is an input.
        noise: shape of the noise per row, None for a network without noise.
    """

    out_channels: int
    takes_x: bool
    takes_t: bool
    noise: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class LatentTransformerConfig(JsonConfig):
    """Shape of a `LatentTransformer`. Defaults are those of ATLAS where it has one.

    Attributes:
        channels: channels C of the state.
        forcing_channels: channels A of `cond["forcing"]`; 0 leaves it unread.
        grid: latent grid (h, w).
        patch: latent points per token (rows, columns).
        width: token width D.
        depth: number of blocks.
        heads: attention heads, must divide the width.
        takes_x: a noisy field is an input (interpolant, diffusion).
        takes_t: time is an input; otherwise the network runs at t = 1.
        noise_dim: length of the noise vector that modulates every block (CRPS); 0 for none.
        history_width: part of the width given to the previous state; None is a quarter.
        history_first: tokens are [previous | state] and not [state | previous].
        mlp_ratio: hidden width of the MLP over the token width.
        attention: "global" or "local", for all blocks or for each.
        kernel: window (rows, columns) in tokens of local attention.
        qk_norm: layer norm of queries and keys.
        mixing: odd kernel of a depthwise convolution over tokens at the start of every block; 0 for none. Not
            in ATLAS: most of what a step changes is local, and on small budgets nothing else helps as much.
        gate: initial value of the gates of the blocks. 0 in ATLAS; 1 / sqrt(depth) learns faster at first.
        linear_skip: the output is added to a linear map of the inputs, patch by patch. Not in ATLAS.
        conv_head: 3x3 convolution of the output fields.
        position: fixed "sincos" table, or "learned" from it.
    """

    channels: int
    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    patch: tuple[int, int] = (2, 2)
    forcing_channels: int = 0
    takes_x: bool = True
    takes_t: bool = True
    noise_dim: int = 0
    history_width: int | None = None
    history_first: bool = False
    mlp_ratio: int = 4
    attention: str | tuple[str, ...] = "global"
    kernel: tuple[int, int] = (3, 3)
    qk_norm: bool = False
    mixing: int = 0
    gate: float = 0.0
    linear_skip: bool = False
    conv_head: bool = False
    position: str = "sincos"

    def __post_init__(self) -> None:
        check_positive(self, "channels", "grid", "patch", "width", "depth", "heads", "mlp_ratio", "kernel")
        check_choice(self, "position", POSITIONS)
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        if self.mixing < 0 or (self.mixing and self.mixing % 2 == 0):
            raise ValueError(f"mixing must be 0 or an odd kernel size, got {self.mixing}")
        if any(width < 4 or width % 4 for width in self.stream_widths):
            raise ValueError(
                f"state and history widths {self.stream_widths} must be multiples of 4: "
                f"choose width {self.width} a multiple of 16 or set history_width"
            )
        if len(self.block_attention) != self.depth or not set(self.block_attention) <= set(_ATTENTION):
            raise ValueError(
                f"attention must be one of {_ATTENTION} or {self.depth} of them, got {self.attention!r}"
            )

    @property
    def stream_widths(self) -> tuple[int, int]:
        """Token widths of the state stream and of the history stream."""
        history = self.width // 4 if self.history_width is None else self.history_width
        return self.width - history, history

    @property
    def block_attention(self) -> tuple[str, ...]:
        """The attention of each block."""
        return (self.attention,) * self.depth if isinstance(self.attention, str) else self.attention

    @classmethod
    def atlas(cls) -> Self:
        """The 2.4 billion parameter backbone of the interpolant and of EDM."""
        return cls(channels=75, grid=(181, 360), patch=(2, 3), width=3328, depth=12, heads=13)

    @classmethod
    def atlas_crps(cls) -> Self:
        """The 3.3 billion parameter backbone of the CRPS model."""
        return cls(
            channels=75,
            forcing_channels=4,
            grid=(181, 360),
            patch=(2, 3),
            width=3328,
            depth=12,
            heads=13,
            takes_x=False,
            takes_t=False,
            noise_dim=3328,
            history_first=True,
            conv_head=True,
        )


class LatentTransformer(nn.Module):
    """F(x, z0, z_-1, forcing, t, xi): a diffusion transformer on latent fields (ATLAS, arXiv 2601.18111).

    Two streams of tokens, [x, z0, forcing] and [z_-1], are joined along the width and pass through the
    blocks. The output starts at zero.

    Args:
        config: shape of the network.
        seed: weights are a function of config and seed.
        compute_dtype: autocast of the blocks, as torch.bfloat16; None leaves the caller's precision alone.
    """

    def __init__(
        self, config: LatentTransformerConfig, *, seed: int = 0, compute_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        state_width, history_width = config.stream_widths
        inputs = config.channels * (1 + config.takes_x) + config.forcing_channels
        embedding = (config.grid, config.patch)
        self.state_embedding = PatchEmbedding(inputs, state_width, *embedding, position=config.position)
        self.history_embedding = PatchEmbedding(
            config.channels, history_width, *embedding, position=config.position
        )
        self.time = TimeEmbedding(config.width)
        self.noise = _noise_mlp(config)
        self.blocks = nn.ModuleList(_block(config, kind) for kind in config.block_attention)
        self.output = OutputLayer(config.width, config.channels, config.patch)
        self.skip = _skip(config, inputs) if config.linear_skip else None
        self.conv_head = ConvHead(config.channels) if config.conv_head else None
        initialise(self, seed)

    @property
    def spec(self) -> NetworkSpec:
        """What the network takes and gives."""
        noise = (self.config.noise_dim,) if self.config.noise_dim else None
        return NetworkSpec(self.config.channels, self.config.takes_x, self.config.takes_t, noise)

    def predict(
        self, x: Tensor | None, cond: Cond, /, *, t: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Returns the output field (N, C, h, w); calls the module, so that hooks and wrappers take part.

        Args:
            x: noisy or interpolated field (N, C, h, w), given exactly when the configuration takes one.
            cond: `state` and `previous` (N, C, h, w), `forcing` (N, A, h, w) when the configuration has
                channels.
            t: time or noise label (N,), given exactly when the configuration takes one.
            noise: noise vectors (N, Z), given exactly when the configuration takes them.

        Raises:
            ValueError: an input is missing, is not taken, or has another shape.
        """
        out: Tensor = self(x, cond, t, noise)
        return out

    def forward(self, x: Tensor | None, cond: Cond, t: Tensor | None, noise: Tensor | None) -> Tensor:
        config = self.config
        _check_given("x", x is not None, config.takes_x)
        _check_given("t", t is not None, config.takes_t)
        _check_given("noise", noise is not None, config.noise_dim > 0)
        inputs, previous = self._inputs(x, cond)
        streams = [self.state_embedding(inputs), self.history_embedding(previous)]
        tokens = torch.cat(streams[::-1] if config.history_first else streams, dim=-1)
        skip = None if self.skip is None else self.skip(torch.cat([inputs, previous], dim=1))
        c = F.silu(self.time(self.time.frequencies.new_ones(1) if t is None else t))
        with mixed_precision(tokens, self.compute_dtype):
            xi = None if noise is None or self.noise is None else F.silu(self.noise(noise))
            for block in self.blocks:
                tokens = block(tokens, c, xi)
        fields: Tensor = self.output(tokens, c, skip)
        if self.conv_head is not None:
            fields = self.conv_head(fields)
        return fields[..., : config.grid[0], : config.grid[1]]

    def _inputs(self, x: Tensor | None, cond: Cond) -> tuple[Tensor, Tensor]:
        config = self.config
        inputs = [] if x is None else [check_field("x", x, config.channels, config.grid)]
        inputs.append(_cond_field(cond, "state", config.channels, config.grid))
        if config.forcing_channels:
            inputs.append(_cond_field(cond, "forcing", config.forcing_channels, config.grid))
        previous = _cond_field(cond, "previous", config.channels, config.grid)
        return torch.cat(inputs, dim=1), previous


def _noise_mlp(config: LatentTransformerConfig) -> MLP | None:
    return MLP(config.noise_dim, config.mlp_ratio * config.width, config.width) if config.noise_dim else None


def _skip(config: LatentTransformerConfig, inputs: int) -> PatchEmbedding:
    width = config.channels * config.patch[0] * config.patch[1]
    return PatchEmbedding(inputs + config.channels, width, config.grid, config.patch, position="none")


def _block(config: LatentTransformerConfig, kind: str) -> Block:
    return Block(
        config.width,
        config.heads,
        mlp_ratio=config.mlp_ratio,
        kernel=config.kernel if kind == "local" else None,
        qk_norm=config.qk_norm,
        noise=config.noise_dim > 0,
        mixing=config.mixing,
        gate=config.gate,
    )


def _check_given(name: str, given: bool, taken: bool) -> None:
    if given != taken:
        raise ValueError(
            f"the network takes {'' if taken else 'no '}{name}, but {name} was {'' if given else 'not '}given"
        )


def _cond_field(cond: Cond, name: str, channels: int, grid: tuple[int, int]) -> Tensor:
    if name not in cond:
        raise ValueError(f'cond["{name}"] is missing: expected (N, {channels}, {grid[0]}, {grid[1]})')
    return check_field(f'cond["{name}"]', cond[name], channels, grid)


def check_field(name: str, value: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """Returns `value`; raises ValueError unless it is (N, channels, *grid)."""
    if value.ndim != 4 or tuple(value.shape[1:]) != (channels, *grid):
        raise ValueError(f"{name} must be (N, {channels}, {grid[0]}, {grid[1]}), got {tuple(value.shape)}")
    return value
