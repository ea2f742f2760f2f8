"""The latent network: one backbone for every estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

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
from wx_models._protocols import Cond

_ATTENTION = ("global", "local")


@dataclass(frozen=True)
class NetworkSpec:
    """What a network takes and gives; an estimator checks it against what it needs.

    Attributes:
        out_channels: channels of the output field.
        takes_x: whether a noisy or interpolated field is an input.
        takes_t: whether a scalar time or noise label per row is an input.
        noise: shape of the noise per row, None for a network without noise.
        supports_jvp: whether `torch.func.jvp` through the network is right, which consistency models need.
    """

    out_channels: int
    takes_x: bool
    takes_t: bool
    noise: tuple[int, ...] | None
    supports_jvp: bool = True


@dataclass(frozen=True)
class Stream(JsonConfig):
    """Fields that enter a `LatentTransformer` together: stacked, cut into patches, embedded.

    Attributes:
        inputs: what is stacked, in this order: "x" (the noisy field), "forcing", or any other name of `cond`.
        width: part of the token width that the stream fills, a multiple of 4.
        patch: points per token (rows, columns); None is the patch of the network.
        grid: grid of the fields; None is the latent grid. Another grid needs a patch that cuts it into the
            same grid of tokens.
    """

    inputs: tuple[str, ...]
    width: int
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.inputs or isinstance(self.inputs, str):
            raise ValueError(f"Stream.inputs must be a tuple of names, got {self.inputs!r}")
        if self.width < 4 or self.width % 4:
            raise ValueError(f"the width of a stream must be a multiple of 4, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class LatentTransformerConfig(JsonConfig):
    """Shape of a `LatentTransformer`. Defaults are those of ATLAS where it has one.

    Attributes:
        channels: channels C of the state, of x and of every field of `cond` but the forcing.
        forcing_channels: channels A of `cond["forcing"]`; 0 for none.
        grid: latent grid (h, w).
        patch: latent points per token (rows, columns).
        width: token width D.
        depth: number of blocks.
        heads: attention heads, must divide the width.
        streams: what enters, side by side along the width; the widths add up to D. () is the two streams of
            ATLAS: x, state and forcing (if there is any) on three quarters of D, previous on the last one.
        takes_t: time is an input; otherwise the network runs at t = 1.
        noise_dim: length of the noise vector that modulates every block (CRPS); 0 for none.
        mlp_ratio: hidden width of the MLP over the token width.
        attention: "global" or "local", for all blocks or for each.
        kernel: window (rows, columns) in tokens of local attention.
        longitude: windows of local attention are "periodic", or "clamp" at 0 and 360 degrees. Patches and
            convolutions always wrap around.
        poles: "clamp" as published: windows are shifted inward, and rows beyond a pole are reflected.
            "cross": windows and rows go on at the other side of the globe, turned by 180 degrees;
            "cross_pole_row": the same for a grid whose first and last row lie at the poles. See
            `neighborhood_attention`.
        qk_norm: layer norm of queries and keys.
        mixing: odd kernel of a depthwise convolution over tokens at the start of every block; 0 for none. Not
            in ATLAS: most of what a step changes is local, and on small budgets nothing else helps as much.
        gate: initial value of the gates of the blocks. 0 in ATLAS; 1 / sqrt(depth) learns faster at first.
        linear_skip: the output is added to a linear map of the inputs, patch by patch. Not in ATLAS.
        conv_head: 3x3 convolution of the output fields.
        position: fixed "sincos" table, or "learned" from it.

    Raises:
        ValueError: the fields contradict each other.
    """

    channels: int
    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    patch: tuple[int, int] = (2, 2)
    forcing_channels: int = 0
    streams: tuple[Stream, ...] = ()
    takes_t: bool = True
    noise_dim: int = 0
    mlp_ratio: int = 4
    attention: str | tuple[str, ...] = "global"
    kernel: tuple[int, int] = (3, 3)
    longitude: str = "periodic"
    poles: str = "clamp"
    qk_norm: bool = False
    mixing: int = 0
    gate: float = 0.0
    linear_skip: bool = False
    conv_head: bool = False
    position: str = "sincos"

    def __post_init__(self) -> None:
        check_positive(self, "channels", "grid", "patch", "width", "depth", "heads", "mlp_ratio", "kernel")
        check_choice(self, "position", POSITIONS)
        check_choice(self, "longitude", LONGITUDE)
        check_choice(self, "poles", POLES)
        check_heads(self.width, self.heads)
        if self.forcing_channels < 0 or self.noise_dim < 0:
            sizes = self.forcing_channels, self.noise_dim
            raise ValueError(f"forcing_channels and noise_dim must be 0 or more, got {sizes}")
        if self.mixing < 0 or (self.mixing and self.mixing % 2 == 0):
            raise ValueError(f"mixing must be 0 or an odd kernel size, got {self.mixing}")
        if len(self.block_attention) != self.depth or not set(self.block_attention) <= set(_ATTENTION):
            raise ValueError(
                f"attention must be one of {_ATTENTION} or {self.depth} of them, got {self.attention!r}"
            )
        if "local" in self.block_attention:
            check_window(self.kernel, self.tokens)
        self._check_streams()

    def _check_streams(self) -> None:
        if not self.streams and self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of 16, or streams be given")
        streams, names = self.input_streams, [name for stream in self.streams for name in stream.inputs]
        if sum(stream.width for stream in streams) != self.width:
            raise ValueError(
                f"widths {[stream.width for stream in streams]} of the streams must add up to {self.width}"
            )
        if self.streams and ("forcing" in names) != (self.forcing_channels > 0):
            raise ValueError(f"forcing_channels is {self.forcing_channels}, but the streams take {names}")
        for stream in streams:
            grid, patch = self.layout(stream)
            if token_grid(grid, patch) != self.tokens:
                raise ValueError(
                    f"grid {grid} in patches {patch} is {token_grid(grid, patch)} tokens and not "
                    f"{self.tokens}: set the patch of stream {stream.inputs}"
                )
            if grid != self.grid and "x" in stream.inputs:
                raise ValueError(f"x lies on the latent grid {self.grid}, but its stream on {grid}")
            if self.linear_skip and (grid, patch) != (self.grid, self.patch):
                raise ValueError("linear_skip needs every stream on the latent grid, in the same patches")
        on = {(name, self.layout(stream)[0]) for stream in streams for name in stream.inputs}
        if len(on) != len({name for name, _ in on}):
            raise ValueError(f"a field lies on one grid, but the streams take {sorted(on)}")
        check_poles(self.poles, self.tokens[1], *(self.layout(stream)[0][1] for stream in streams))

    @property
    def tokens(self) -> tuple[int, int]:
        """Grid of tokens (rows, columns)."""
        return token_grid(self.grid, self.patch)

    @property
    def input_streams(self) -> tuple[Stream, ...]:
        """The streams; those of ATLAS if none are given."""
        if self.streams:
            return self.streams
        forcing = ("forcing",) if self.forcing_channels else ()
        history = self.width // 4
        return Stream(("x", "state", *forcing), self.width - history), Stream(("previous",), history)

    @property
    def takes_x(self) -> bool:
        """Whether a noisy field is an input (interpolant, diffusion)."""
        return any("x" in stream.inputs for stream in self.input_streams)

    @property
    def block_attention(self) -> tuple[str, ...]:
        """The attention of each block."""
        return (self.attention,) * self.depth if isinstance(self.attention, str) else self.attention

    def layout(self, stream: Stream) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the grid and the patch of a stream."""
        return stream.grid or self.grid, stream.patch or self.patch

    def channels_of(self, name: str) -> int:
        """Returns the channels of a named input."""
        return self.forcing_channels if name == "forcing" else self.channels

    def stacked_channels(self, stream: Stream) -> int:
        """Returns the channels of a stream."""
        return sum(self.channels_of(name) for name in stream.inputs)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Builds the configuration from `to_dict` output; see `JsonConfig.from_dict`."""
        streams = tuple(Stream.from_dict(stream) for stream in data.get("streams", ()))
        return super().from_dict({**data, "streams": streams})

    @classmethod
    def atlas_si(cls) -> Self:
        """The published backbone of the interpolant and of EDM: 2,431,139,394 parameters."""
        return cls(channels=75, grid=(181, 360), patch=(2, 3), width=3328, depth=12, heads=13)

    @classmethod
    def atlas_crps(cls) -> Self:
        """The published backbone of the CRPS model: 3,316,429,774 parameters."""
        return replace(
            cls.atlas_si(),
            forcing_channels=4,
            streams=(Stream(("previous",), 832), Stream(("state", "forcing"), 2496)),
            takes_t=False,
            noise_dim=3328,
            conv_head=True,
        )


class LatentTransformer(nn.Module):
    """F(x, z0, z_-1, forcing, t, xi): a diffusion transformer on latent fields (ATLAS, arXiv 2601.18111).

    The streams of tokens are joined along the width and pass through the blocks. The output starts at zero.

    Args:
        config: shape of the network.
        seed: weights are a function of config and seed.
        compute_dtype: autocast of the blocks, as torch.bfloat16; None leaves the caller's precision alone.
        checkpoint_every: every n-th block keeps only its input for the backward pass and runs again there,
            with the same gradients bit for bit; 0 for none, 1 for all. May be set at any time.
        check_finite: `predict` refuses NaN and infinite inputs, at the price of one pass over the fields and
            of one synchronisation of the device. May be set at any time. Without it NaN comes out.
    """

    # Layers draw weights of torch's own from the global generator; `initialise` replaces them.
    @torch.random.fork_rng(devices=())
    def __init__(
        self,
        config: LatentTransformerConfig,
        *,
        seed: int = 0,
        compute_dtype: torch.dtype | None = None,
        checkpoint_every: int = 0,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.checkpoint_every, self.check_finite = checkpoint_every, check_finite
        self.embeddings = nn.ModuleList(_embedding(config, stream) for stream in config.input_streams)
        self.time = TimeEmbedding(config.width)
        self.noise = _noise_mlp(config)
        self.blocks = nn.ModuleList(_block(config, kind) for kind in config.block_attention)
        self.output = OutputLayer(config.width, config.channels, config.patch)
        self.skip = _skip(config) if config.linear_skip else None
        self.conv_head = ConvHead(config.channels, poles=config.poles) if config.conv_head else None
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
            cond: the fields that the streams name, as `state` and `previous` (N, C, h, w) and `forcing`
                (N, A, h, w). Others are not read.
            t: time or noise label (N,), given exactly when the configuration takes one.
            noise: noise vectors (N, Z), given exactly when the configuration takes them.

        Raises:
            ValueError: an input is missing, is not taken, or has another shape.
        """
        if self.check_finite:
            read = {name for stream in self.config.input_streams for name in stream.inputs}
            fields = {f'cond["{name}"]': value for name, value in cond.items() if name in read}
            require_finite({"x": x, **fields, "t": t, "noise": noise})
        out: Tensor = self(x, cond, t, noise)
        return out

    def forward(self, x: Tensor | None, cond: Cond, t: Tensor | None, noise: Tensor | None) -> Tensor:
        config = self.config
        inputs = self._inputs(x, cond, t, noise)
        streams = [embed(fields) for embed, fields in zip(self.embeddings, inputs, strict=True)]
        tokens = torch.cat(streams, dim=-1)
        skip = None if self.skip is None else self.skip(torch.cat(inputs, dim=1))
        one = torch.ones(1, dtype=tokens.dtype, device=tokens.device)
        c = F.silu(self.time(one if t is None else t))
        with mixed_precision(tokens, self.compute_dtype):
            xi = None if noise is None or self.noise is None else F.silu(self.noise(noise))
            tokens = run_blocks(self.blocks, tokens, c, xi, self.checkpoint_every)
        fields: Tensor = self.output(tokens, c, skip)[..., : config.grid[1]]
        if self.conv_head is not None:
            # Published: the head reads the rows that fill up the last patches; across a pole lie others.
            fields = self.conv_head(fields if config.poles == "clamp" else fields[..., : config.grid[0], :])
        return fields[..., : config.grid[0], :]

    def _inputs(self, x: Tensor | None, cond: Cond, t: Tensor | None, noise: Tensor | None) -> list[Tensor]:
        """Returns the stacked fields of every stream, checked."""
        config = self.config
        _check_given("x", x is not None, config.takes_x)
        _check_given("t", t is not None, config.takes_t)
        _check_given("noise", noise is not None, config.noise_dim > 0)
        found: Cond = cond if x is None else {**cond, "x": x}
        inputs = []
        for stream in config.input_streams:
            grid, _ = config.layout(stream)
            fields = [_named_field(found, name, config.channels_of(name), grid) for name in stream.inputs]
            inputs.append(stacked(stream.inputs, fields))
        rows = inputs[0].shape[0]
        if any(fields.shape[0] != rows for fields in inputs):
            raise ValueError(
                f"streams have {[fields.shape[0] for fields in inputs]} rows, expected one number"
            )
        if t is not None and (t.ndim != 1 or t.shape[0] != rows):
            raise ValueError(f"t must be ({rows},), one per row of the fields, got {tuple(t.shape)}")
        width = config.noise_dim
        if noise is not None and (noise.ndim != 2 or noise.shape[0] != rows or noise.shape[1] != width):
            raise ValueError(f"noise must be ({rows}, {config.noise_dim}), got {tuple(noise.shape)}")
        return inputs


def _embedding(config: LatentTransformerConfig, stream: Stream) -> PatchEmbedding:
    channels, (grid, patch) = config.stacked_channels(stream), config.layout(stream)
    return PatchEmbedding(channels, stream.width, grid, patch, position=config.position, poles=config.poles)


def _noise_mlp(config: LatentTransformerConfig) -> MLP | None:
    return MLP(config.noise_dim, config.mlp_ratio * config.width, config.width) if config.noise_dim else None


def _skip(config: LatentTransformerConfig) -> PatchEmbedding:
    channels = sum(config.stacked_channels(stream) for stream in config.input_streams)
    width = config.channels * math.prod(config.patch)
    return PatchEmbedding(channels, width, config.grid, config.patch, position="none", poles=config.poles)


def _block(config: LatentTransformerConfig, kind: str) -> Block:
    return Block(
        config.width,
        config.heads,
        mlp_ratio=config.mlp_ratio,
        kernel=config.kernel if kind == "local" else None,
        longitude=config.longitude,
        poles=token_poles(config.poles, config.patch),
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


def _named_field(fields: Cond, name: str, channels: int, grid: tuple[int, int]) -> Tensor:
    label = name if name == "x" else f'cond["{name}"]'
    if name not in fields:
        raise ValueError(f"{label} is missing: expected (N, {channels}, {grid[0]}, {grid[1]})")
    return check_field(label, fields[name], channels, grid)


def check_field(name: str, value: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """Returns `value`; raises ValueError unless it is (N, channels, *grid)."""
    if value.ndim != 4 or tuple(value.shape[1:]) != (channels, *grid):
        raise ValueError(f"{name} must be (N, {channels}, {grid[0]}, {grid[1]}), got {tuple(value.shape)}")
    return value


def stacked(names: tuple[str, ...], fields: list[Tensor]) -> Tensor:
    """Returns the fields (N, *, H, W) as one along the channels; raises ValueError unless they agree on N."""
    # Compared one by one: a set of sizes would fix them in a compiled graph.
    if any(field.shape[0] != fields[0].shape[0] for field in fields):
        rows = [field.shape[0] for field in fields]
        raise ValueError(f"{', '.join(names)} must have one number of rows, got {rows}")
    return torch.cat(fields, dim=1) if len(fields) > 1 else fields[0]


def require_finite(fields: Mapping[str, Tensor | None]) -> None:
    """Raises ValueError if a field (N, C, ...) or a vector (N,) is NaN or infinite somewhere."""
    for name, value in fields.items():
        if value is None or bool(value.isfinite().all()):
            continue
        if value.ndim < 2:
            raise ValueError(f"{name} is NaN or infinite in {int((~value.isfinite()).sum())} rows")
        bad = (~value.isfinite()).flatten(2).any(2).any(0) if value.ndim > 2 else (~value.isfinite()).any(0)
        raise ValueError(
            f"{name} is NaN or infinite in channels {bad.nonzero().flatten().tolist()}: fill masked points "
            "(sea surface temperature on land) before they reach a network"
        )
