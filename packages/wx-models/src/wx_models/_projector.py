"""The decoder: from a latent residual and the full state to the full-resolution residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wx_models._blocks import (
    Block,
    OutputLayer,
    PatchEmbedding,
    TimeEmbedding,
    initialise,
    mixed_precision,
    run_blocks,
    token_grid,
    token_poles,
)
from wx_models._config import (
    LONGITUDE,
    POLES,
    POSITIONS,
    JsonConfig,
    check_choice,
    check_heads,
    check_poles,
    check_positive,
    check_window,
)
from wx_models._downsample import Upsample
from wx_models._transformer import check_field, require_finite, stacked

_FUSION = ("channel_concatenation", "token_addition", "token_multiplication")


@dataclass(frozen=True, kw_only=True)
class LocalProjectorConfig(JsonConfig):
    """Shape of a `LocalProjector`. Defaults are those of ATLAS where it has one, but for `longitude`.

    Attributes:
        channels: channels C of the state.
        forcing_channels: channels A of the forcing; 0 for none.
        grid: full grid (H, W).
        patch: full-grid points per token, equal to the downsampling factor: one token per latent point.
        width: token width D.
        depth: number of blocks.
        heads: attention heads, must divide the width.
        fusion: how the tokens s of the state and r of the latent residual become one token per point:
            "channel_concatenation" [s | r], "token_addition" s + r or "token_multiplication" s r, for which
            both have width D. The published class also names "token_concatenation", which is refused: a
            sequence of 2 h w tokens is no grid, and the 2-D window of a token in it is not defined.
        latent_width: part of the width given to the latent residual by channel concatenation; None is 4/13
            of it, rounded to a multiple of 4.
        mlp_ratio: hidden width of the MLP over the token width.
        kernel: attention window (rows, columns) in tokens.
        longitude: windows are "periodic", or "clamp" at 0 and 360 degrees as published.
        poles: "clamp" as published: windows are shifted inward, and rows beyond a pole are reflected.
            "cross": windows and rows go on at the other side of the globe, turned by 180 degrees;
            "cross_pole_row": the same for a grid whose first and last row lie at the poles. See
            `neighborhood_attention`.
        qk_norm: layer norm of queries and keys.
        position: fixed "sincos" table, or "learned" from it.
        residual_upsample: the network adds to the bilinear interpolation of the latent residual. Not in
            ATLAS, where it makes the whole field; on small budgets it saves learning the interpolation.

    Raises:
        ValueError: the fields contradict each other.
    """

    channels: int
    grid: tuple[int, int]
    patch: tuple[int, int]
    width: int
    depth: int
    heads: int
    forcing_channels: int = 0
    fusion: str = "channel_concatenation"
    latent_width: int | None = None
    mlp_ratio: int = 4
    kernel: tuple[int, int] = (3, 3)
    longitude: str = "periodic"
    poles: str = "clamp"
    qk_norm: bool = False
    position: str = "sincos"
    residual_upsample: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "channels", "grid", "patch", "width", "depth", "heads", "mlp_ratio", "kernel")
        check_choice(self, "position", POSITIONS)
        check_choice(self, "longitude", LONGITUDE)
        check_choice(self, "poles", POLES)
        if self.fusion == "token_concatenation":
            raise ValueError(
                f"fusion token_concatenation makes two tokens per grid point, which have no 2-D window of "
                f"neighbours: choose one of {_FUSION}"
            )
        check_choice(self, "fusion", _FUSION)
        check_heads(self.width, self.heads)
        check_window(self.kernel, self.latent_grid)
        check_poles(self.poles, self.grid[1], self.latent_grid[1])
        if self.forcing_channels < 0:
            raise ValueError(f"forcing_channels must be 0 or more, got {self.forcing_channels}")
        if self.latent_width is not None and self.fusion != "channel_concatenation":
            raise ValueError(f"latent_width must be None for fusion {self.fusion}: both streams have width D")
        if any(width < 4 or width % 4 for width in self.stream_widths):
            raise ValueError(
                f"state and latent widths {self.stream_widths} must be multiples of 4: "
                f"choose width {self.width} a multiple of 4, at least 8, or set latent_width"
            )

    @property
    def stream_widths(self) -> tuple[int, int]:
        """Token widths of the state stream and of the latent stream."""
        if self.fusion != "channel_concatenation":
            return self.width, self.width
        latent = 4 * round(self.width / 13) if self.latent_width is None else self.latent_width
        return self.width - latent, latent

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Grid (h, w) of the latent residual, one point per token."""
        return token_grid(self.grid, self.patch)

    @classmethod
    def atlas_projector(cls) -> Self:
        """The published projector: 1,819,423,344 parameters, windows clamped at 0 and 360 degrees."""
        return cls(
            channels=75,
            forcing_channels=4,
            grid=(721, 1440),
            patch=(4, 4),
            width=2496,
            depth=16,
            heads=12,
            longitude="clamp",
        )


class LocalProjector(nn.Module):
    """D(r, x0, forcing): neighbourhood attention on the full grid (ATLAS, arXiv 2601.18111).

    The full-resolution state, cut into patches, and the latent residual, one token per point, share one token
    grid. Attention is local, so the network runs on a row-sharded tensor type with one halo exchange per
    block.

    Args:
        config: shape of the network.
        seed: weights are a function of config and seed.
        compute_dtype: autocast of the blocks, as torch.bfloat16; None leaves the caller's precision alone.
        checkpoint_every: every n-th block keeps only its input for the backward pass and runs again there,
            with the same gradients bit for bit; 0 for none, 1 for all. May be set at any time.
        check_finite: `project` refuses NaN and infinite inputs, at the price of one pass over the fields and
            of one synchronisation of the device. May be set at any time. Without it NaN comes out.
    """

    # Layers draw weights of torch's own from the global generator; `initialise` replaces them.
    @torch.random.fork_rng(devices=())
    def __init__(
        self,
        config: LocalProjectorConfig,
        *,
        seed: int = 0,
        compute_dtype: torch.dtype | None = None,
        checkpoint_every: int = 0,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.checkpoint_every, self.check_finite = checkpoint_every, check_finite
        state_width, latent_width = config.stream_widths
        inputs = config.channels + config.forcing_channels
        self.state_embedding = PatchEmbedding(
            inputs, state_width, config.grid, config.patch, position=config.position, poles=config.poles
        )
        self.latent_embedding = PatchEmbedding(
            config.channels, latent_width, config.latent_grid, (1, 1), position=config.position
        )
        self.time = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.output = OutputLayer(config.width, config.channels, config.patch)
        self.upsample = Upsample(config.grid, config.patch) if config.residual_upsample else None
        initialise(self, seed)

    def project(self, residual: Tensor, state: Tensor, forcing: Tensor | None = None, /) -> Tensor:
        """Returns the normalised residual x1 - x0 on the full grid, (N, C, H, W).

        Args:
            residual: normalised latent residual r (N, C, h, w).
            state: normalised state x0 (N, C, H, W).
            forcing: (N, A, H, W), given exactly when the configuration has forcing channels.

        Raises:
            ValueError: an input is missing, is not taken, or has another shape.
        """
        if self.check_finite:
            require_finite({"residual": residual, "state": state, "forcing": forcing})
        out: Tensor = self(residual, state, forcing)
        return out

    def forward(self, residual: Tensor, state: Tensor, forcing: Tensor | None) -> Tensor:
        config = self.config
        check_field("residual", residual, config.channels, config.latent_grid)
        inputs = self._inputs(state, forcing)
        if inputs.shape[0] != residual.shape[0]:
            raise ValueError(f"state has {inputs.shape[0]} rows and residual {residual.shape[0]}")
        tokens = self._fused(self.state_embedding(inputs), self.latent_embedding(residual))
        # The published network keeps the time embedding and feeds it t = 1.
        c = F.silu(self.time(torch.ones(1, dtype=tokens.dtype, device=tokens.device)))
        with mixed_precision(tokens, self.compute_dtype):
            tokens = run_blocks(self.blocks, tokens, c, None, self.checkpoint_every)
        fields: Tensor = self.output(tokens, c)
        fields = fields[..., : config.grid[0], : config.grid[1]]
        return fields if self.upsample is None else self.upsample(residual) + fields

    def _inputs(self, state: Tensor, forcing: Tensor | None) -> Tensor:
        config = self.config
        check_field("state", state, config.channels, config.grid)
        if (forcing is not None) != (config.forcing_channels > 0):
            got = "none" if forcing is None else tuple(forcing.shape)
            raise ValueError(f"the projector has {config.forcing_channels} forcing channels, got {got}")
        if forcing is None:
            return state
        check_field("forcing", forcing, config.forcing_channels, config.grid)
        return stacked(("state", "forcing"), [state, forcing])

    def _fused(self, state_NhwD: Tensor, latent_NhwD: Tensor) -> Tensor:
        if self.config.fusion == "token_addition":
            return state_NhwD + latent_NhwD
        if self.config.fusion == "token_multiplication":
            return state_NhwD * latent_NhwD
        return torch.cat([state_NhwD, latent_NhwD], dim=-1)


def _block(config: LocalProjectorConfig) -> Block:
    return Block(
        config.width,
        config.heads,
        mlp_ratio=config.mlp_ratio,
        kernel=config.kernel,
        longitude=config.longitude,
        poles=token_poles(config.poles, config.patch),
        qk_norm=config.qk_norm,
    )
