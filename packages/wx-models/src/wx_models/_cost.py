"""What a network costs: parameters, floating point operations, memory. Closed forms, nothing is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from wx_models._blocks import TIME_FEATURES, token_grid
from wx_models._projector import LocalProjectorConfig
from wx_models._transformer import LatentTransformerConfig

_FLOAT = 4  # bytes
_ADAMW_MOMENTS = 2

Config = LatentTransformerConfig | LocalProjectorConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one call and one training step of a network cost.

    Attributes:
        parameters: trainable numbers.
        forward_flops: operations of a forward pass.
        training_flops: operations of a forward and a backward pass, what checkpointed blocks repeat included.
        weight_bytes: float32 weights, and the copies in the compute type that autocast makes of the blocks.
        gradient_bytes: gradients in float32.
        optimizer_bytes: the two moments of AdamW in float32.
        activation_bytes: what the forward pass keeps for the backward pass, and one block more if blocks are
            checkpointed: the one that runs again.
    """

    parameters: int
    forward_flops: int
    training_flops: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def training_bytes(self) -> int:
        """Memory of a training step, without the work space of single kernels."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes


@dataclass(frozen=True)
class _Linear:
    """A linear map applied `rows` times; a convolution is one at every output point.

    `products` is the number of matrix products of its size in the backward pass: 2, or 1 where the input
    needs no gradient. `groups` divides inputs and outputs alike.
    """

    rows: int
    inputs: int
    outputs: int
    products: int = 2
    groups: int = 1

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs // self.groups + self.outputs

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs // self.groups


def cost(
    config: Config, batch: int = 1, *, compute_dtype: torch.dtype | None = None, checkpoint_every: int = 0
) -> Cost:
    """Returns what a network of this shape costs.

    Operations are those of matrix products, convolutions and attention, two per multiplication and addition,
    as `torch.utils.flop_counter` counts them; everything else is a few per cent of the time and not counted.
    Attention costs two products forward and four backward over the keys that a query sees: all tokens, or
    kh kw of a window. Kernels that recompute the scores backward (flash, a fifth product) or visit masked
    keys (`neighborhood_attention` by blocks) do more. A window costs the same at a pole as elsewhere.

    Activations are those of attention that keeps q, k, v and its output, as SDPA, flex and natten do on a
    GPU. On a CPU attention runs in float32, and local attention keeps the keys and values of its blocks too.

    Args:
        config: shape of the network.
        batch: rows N.
        compute_dtype: as that of the network; None is float32.
        checkpoint_every: as that of the network.

    Raises:
        ValueError: batch is not positive, or checkpoint_every negative.
    """
    if batch < 1 or checkpoint_every < 0:
        raise ValueError(
            f"batch must be 1 or more and checkpoint_every 0 or more, got {batch} and {checkpoint_every}"
        )
    attention = [_attention_flops(config, batch, local) for local in _local(config)]
    block = _block(config, batch)
    layers = [*_ends(config, batch), *(config.depth * block)]
    forward = sum(layer.flops for layer in layers) + sum(attention)
    backward = sum(layer.products * layer.flops for layer in layers) + 2 * sum(attention)
    again = attention[checkpoint_every - 1 :: checkpoint_every] if checkpoint_every else []
    repeated = sum(again) + len(again) * sum(layer.flops for layer in block)
    weights, cast = parameters(config), 0 if compute_dtype is None else compute_dtype.itemsize
    return Cost(
        parameters=weights,
        forward_flops=forward,
        training_flops=forward + backward + repeated,
        weight_bytes=_FLOAT * weights + cast * config.depth * sum(layer.parameters for layer in block),
        gradient_bytes=_FLOAT * weights,
        optimizer_bytes=_ADAMW_MOMENTS * _FLOAT * weights,
        activation_bytes=_activation_bytes(config, batch, cast or _FLOAT, len(again)),
    )


def parameters(config: Config) -> int:
    """Returns the number of trainable parameters."""
    layers = [*_ends(config, 1), *(config.depth * _block(config, 1))]
    norms = 4 * (config.width // config.heads) * config.depth if config.qk_norm else 0
    learned = config.position == "learned"
    positions = sum(width for _, width, _ in _streams(config)) * math.prod(_tokens(config)) if learned else 0
    return sum(layer.parameters for layer in layers) + norms + positions


def _tokens(config: Config) -> tuple[int, int]:
    return token_grid(config.grid, config.patch)


def _local(config: Config) -> tuple[bool, ...]:
    """Returns for every block whether its attention is local."""
    if isinstance(config, LocalProjectorConfig):
        return (True,) * config.depth
    return tuple(kind == "local" for kind in config.block_attention)


def _streams(config: Config) -> list[tuple[int, int, tuple[int, int]]]:
    """Returns channels, token width and patch of every stream."""
    if isinstance(config, LocalProjectorConfig):
        state, latent = config.stream_widths
        fields = config.channels + config.forcing_channels
        return [(fields, state, config.patch), (config.channels, latent, (1, 1))]
    return [
        (config.stacked_channels(stream), stream.width, config.layout(stream)[1])
        for stream in config.input_streams
    ]


def _conditions(config: Config, batch: int) -> int:
    """Returns the rows of the time embedding: without time there is one for all."""
    return batch if isinstance(config, LatentTransformerConfig) and config.takes_t else 1


def _ends(config: Config, batch: int) -> Iterator[_Linear]:
    """Yields the layers outside the blocks."""
    tokens, c, width = batch * math.prod(_tokens(config)), _conditions(config, batch), config.width
    patch = config.channels * math.prod(config.patch)
    streams = _streams(config)
    for channels, part, size in streams:
        yield _Linear(tokens, channels * math.prod(size), part, products=1)
    yield _Linear(c, TIME_FEATURES, width, products=1)
    yield _Linear(c, width, width)
    yield _Linear(c, width, 2 * width)
    yield _Linear(tokens, width, patch)
    if isinstance(config, LocalProjectorConfig):
        return
    if config.noise_dim:
        yield _Linear(batch, config.noise_dim, config.mlp_ratio * width, products=1)
        yield _Linear(batch, config.mlp_ratio * width, width)
    if config.linear_skip:
        channels = sum(channels for channels, _, _ in streams)
        yield _Linear(tokens, channels * math.prod(config.patch), patch, products=1)
    if config.conv_head:
        yield _Linear(batch * _head_points(config), 9 * config.channels, config.channels)


def _head_points(config: LatentTransformerConfig) -> int:
    """Returns the points that the convolution head makes."""
    rows = config.tokens[0] * config.patch[0] if config.poles == "clamp" else config.grid[0]
    return rows * config.grid[1]


def _block(config: Config, batch: int) -> list[_Linear]:
    tokens, width = batch * math.prod(_tokens(config)), config.width
    hidden = config.mlp_ratio * width
    layers = [
        _Linear(tokens, width, 3 * width),
        _Linear(tokens, width, width),
        _Linear(tokens, width, hidden),
        _Linear(tokens, hidden, width),
        _Linear(_conditions(config, batch), width, 6 * width),
    ]
    if isinstance(config, LatentTransformerConfig) and config.noise_dim:
        layers.append(_Linear(batch, width, 6 * width))
    if isinstance(config, LatentTransformerConfig) and config.mixing:
        layers.append(_Linear(tokens, config.mixing**2 * width, width, groups=width))
    return layers


def _attention_flops(config: Config, batch: int, local: bool) -> int:
    tokens = math.prod(_tokens(config))
    keys = math.prod(config.kernel) if local else tokens
    return 4 * batch * tokens * keys * config.width


def _activation_bytes(config: Config, batch: int, size: int, checkpointed: int) -> int:
    """Returns the bytes kept: `size` per number in the blocks, four where fields enter and leave."""
    points, width = batch * math.prod(_tokens(config)), config.width
    block = points * _block_bytes_per_token(config, size)
    kept = (config.depth - checkpointed) * block + checkpointed * _FLOAT * points * width
    return kept + (block if checkpointed else 0) + _end_bytes(config, batch)


def _block_bytes_per_token(config: Config, size: int) -> int:
    """Returns what a block keeps of a token.

    In float32 the stream before attention and before the MLP, each with its layer norm and two moments. In
    the compute type both modulated norms, q, k, v, the output of attention and of its projection, the hidden
    layer before and after its activation, the output of the MLP; in float32 the log sums of attention.
    """
    width, heads = config.width, config.heads
    compute = 8 * width + 2 * config.mlp_ratio * width
    single = 4 * width + 4 + heads
    if config.qk_norm:
        compute, single = compute + 2 * width, single + 4 * heads
    if isinstance(config, LatentTransformerConfig) and config.mixing:
        compute += width
    return size * compute + _FLOAT * single


def _end_bytes(config: Config, batch: int) -> int:
    """Returns what embeddings (the padded fields) and output layer (stream, norm, modulated norm) keep."""
    tokens = math.prod(_tokens(config))
    numbers = tokens * sum(channels * math.prod(patch) for channels, _, patch in _streams(config))
    numbers += tokens * (3 * config.width + 2)
    if isinstance(config, LocalProjectorConfig) and config.fusion == "token_multiplication":
        numbers += 2 * tokens * config.width
    if isinstance(config, LatentTransformerConfig):
        if config.linear_skip:
            channels = sum(channels for channels, _, _ in _streams(config))
            numbers += tokens * channels * math.prod(config.patch)
        if config.conv_head:
            rows, columns = _head_points(config) // config.grid[1], config.grid[1]
            numbers += config.channels * (rows + 2) * (columns + 2)
    return _FLOAT * batch * numbers
