"""The published networks, computed a second time in plain numpy from the formulas of the paper and its code.

ATLAS, arXiv 2601.18111, and the inference code that NVIDIA released with it. Weights are random and in double
precision; nothing below calls a module to compute an expected value. H, W: fields; h, w: tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from wx_models import LatentTransformer, LatentTransformerConfig, LocalProjector, LocalProjectorConfig, Stream
from wx_models._blocks import Block, ConvHead, OutputLayer, PatchEmbedding, TimeEmbedding

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]

BACKBONE = LatentTransformerConfig(channels=3, grid=(7, 12), patch=(2, 3), width=32, depth=2, heads=2)
CRPS = replace(
    BACKBONE,
    forcing_channels=2,
    streams=(Stream(("previous",), 8), Stream(("state", "forcing"), 24)),
    takes_t=False,
    noise_dim=32,
    conv_head=True,
)
PROJECTOR = LocalProjectorConfig(
    channels=3,
    forcing_channels=2,
    grid=(17, 24),
    patch=(4, 4),
    width=40,
    depth=2,
    heads=2,
    longitude="clamp",
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(module: nn.Module) -> nn.Module:
    """Weights of the size that training leaves; tables of positions as well, since checkpoints hold them."""
    module.double()
    for number, (_, tensor) in enumerate([*module.named_parameters(), *module.named_buffers()]):
        tensor.detach().copy_(0.3 * draw(*tensor.shape, seed=100 + number))
    return module


def weights_of(module: nn.Module) -> Weights:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def same(ours: Tensor, plain: Array) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), plain, rtol=1e-9, atol=1e-10)


# The formulas


def linear(p: Weights, name: str, x: Array) -> Array:
    out: Array = x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    return out


def silu(x: Array) -> Array:
    out: Array = x / (1 + np.exp(-x))
    return out


def gelu(x: Array) -> Array:
    out: Array = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return out


def layer_norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    out: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return out


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    out: Array = e / e.sum(-1, keepdims=True)
    return out


def time_embedding(p: Weights, t: Array) -> Array:
    """1000 t times exp(-ln(10000) i / 128); cosines, then sines; Linear, SiLU, Linear."""
    angle = 1000 * t[:, None] * np.exp(-math.log(10000) * np.arange(128) / 128)
    features = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    return linear(p, "time.mlp.2", silu(linear(p, "time.mlp.0", features)))


def padded(x: Array, patch: tuple[int, int]) -> Array:
    """Reflected rows at the south, circular columns in the east, to whole patches."""
    south, east = -x.shape[2] % patch[0], -x.shape[3] % patch[1]
    last = x.shape[2] - 1
    rows = [*range(last + 1), *(last - 1 - i for i in range(south))]
    columns = [*range(x.shape[3]), *range(east)]
    return x[:, :, rows][..., columns]


def embed(p: Weights, name: str, x: Array, patch: tuple[int, int]) -> Array:
    """Every patch times the kernel, tokens row by row, and the position of the stream: (N, h w, D)."""
    x, (a, b) = padded(x, patch), patch
    kernel, tokens = p[f"{name}.proj.weight"], []
    for i in range(0, x.shape[2], a):
        for j in range(0, x.shape[3], b):
            tokens.append(np.einsum("ncab,dcab->nd", x[:, :, i : i + a, j : j + b], kernel))
    position = p[f"{name}.position"]
    return np.stack(tokens, 1) + p[f"{name}.proj.bias"] + position.reshape(1, -1, position.shape[-1])


Mix = Callable[[Array, Array, Array], Array]


def global_attention(q: Array, k: Array, v: Array) -> Array:
    out: Array = softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5) @ v
    return out


def window_attention(h: int, w: int, kernel: int) -> Mix:
    """Every query sees kernel x kernel keys from clamp(i - kernel // 2, 0, L - kernel) on, both ways."""

    def start(i: int, length: int) -> int:
        return min(max(i - kernel // 2, 0), length - kernel)

    def attend(q: Array, k: Array, v: Array) -> Array:
        out = np.empty_like(q)
        for i in range(h):
            for j in range(w):
                rows = range(start(i, h), start(i, h) + kernel)
                columns = range(start(j, w), start(j, w) + kernel)
                seen = [r * w + c for r in rows for c in columns]
                here = slice(i * w + j, i * w + j + 1)
                out[..., here, :] = global_attention(q[..., here, :], k[..., seen, :], v[..., seen, :])
        return out

    return attend


def attention(p: Weights, name: str, x: Array, heads: int, mix: Mix) -> Array:
    n, tokens, width = x.shape
    parts = np.split(linear(p, f"{name}.qkv", x), 3, -1)
    q, k, v = (part.reshape(n, tokens, heads, -1).swapaxes(1, 2) for part in parts)
    return linear(p, f"{name}.proj", mix(q, k, v).swapaxes(1, 2).reshape(n, tokens, width))


def block(p: Weights, name: str, x: Array, c: Array, heads: int, mix: Mix, xi: Array | None = None) -> Array:
    m = linear(p, f"{name}.modulation", silu(c))
    if xi is not None:
        m = m + linear(p, f"{name}.noise_modulation", silu(xi))
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(m[:, None], 6, -1)
    x = x + gate_a * attention(p, f"{name}.attn", layer_norm(x) * (1 + scale_a) + shift_a, heads, mix)
    hidden = gelu(linear(p, f"{name}.mlp.fc1", layer_norm(x) * (1 + scale_m) + shift_m))
    out: Array = x + gate_m * linear(p, f"{name}.mlp.fc2", hidden)
    return out


def final(p: Weights, x: Array, c: Array, h: int, patch: tuple[int, int], channels: int) -> Array:
    """Modulated norm, Linear; a token is (p1, p2, C) with C fastest, put where its patch lies."""
    shift, scale = np.split(linear(p, "output.modulation", silu(c))[:, None], 2, -1)
    tokens = linear(p, "output.linear", layer_norm(x) * (1 + scale) + shift)
    (n, count, _), (a, b) = tokens.shape, patch
    w = count // h
    fields = np.empty((n, channels, h * a, w * b))
    for i in range(h):
        for j in range(w):
            token = tokens[:, i * w + j].reshape(n, a, b, channels)
            fields[:, :, i * a : (i + 1) * a, j * b : (j + 1) * b] = np.moveaxis(token, 3, 1)
    return fields


def conv_head(p: Weights, x: Array) -> Array:
    """3x3, first circular columns, then reflected rows."""
    x = np.concatenate([x[..., -1:], x, x[..., :1]], -1)
    x = np.concatenate([x[..., 1:2, :], x, x[..., -2:-1, :]], -2)
    rows, columns = x.shape[2] - 2, x.shape[3] - 2
    kernel, bias = p["conv_head.conv.weight"], p["conv_head.conv.bias"]
    out = np.zeros((x.shape[0], kernel.shape[0], rows, columns)) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            out += np.einsum("nchw,dc->ndhw", x[:, :, i : i + rows, j : j + columns], kernel[:, :, i, j])
    return out


# Against the modules


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_block(local: bool, noise: bool) -> None:
    kernel = (3, 3) if local else None
    ours = Block(24, 3, mlp_ratio=4, kernel=kernel, longitude="clamp", noise=noise)
    randomise(ours)
    x, c, xi = draw(2, 4, 5, 24), draw(2, 24, seed=1), draw(2, 24, seed=2) if noise else None
    out = ours(x, nn.functional.silu(c), None if xi is None else nn.functional.silu(xi))
    p = {f"b.{name}": value for name, value in weights_of(ours).items()}
    mix = window_attention(4, 5, 3) if local else global_attention
    plain = block(p, "b", x.numpy().reshape(2, 20, 24), c.numpy(), 3, mix, None if xi is None else xi.numpy())
    same(out.flatten(1, 2), plain)


def test_time_embedding() -> None:
    ours = randomise(TimeEmbedding(16))
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    same(
        ours(t),
        time_embedding({f"time.{name}": value for name, value in weights_of(ours).items()}, t.numpy()),
    )


@pytest.mark.parametrize(
    ("grid", "patch", "tokens"),
    [
        ((181, 12), (2, 3), (91, 4)),
        ((721, 8), (4, 4), (181, 2)),
        ((5, 7), (3, 3), (2, 3)),
        ((4, 6), (2, 2), (2, 3)),
    ],
)
def test_patch_order_and_padding(
    grid: tuple[int, int], patch: tuple[int, int], tokens: tuple[int, int]
) -> None:
    """181 -> 182 and 721 -> 724 rows by reflection, columns around the globe."""
    ours, x = PatchEmbedding(2, 8, grid, patch, position="sincos"), draw(2, 2, *grid)
    randomise(ours)
    out = ours(x)
    assert out.shape == (2, *tokens, 8)
    p = {f"e.{name}": value for name, value in weights_of(ours).items()}
    same(out.flatten(1, 2), embed(p, "e", x.numpy(), patch))


def test_final_layer_puts_channels_last_in_a_token() -> None:
    ours, x, c = OutputLayer(8, 5, (2, 3)), draw(2, 3, 4, 8), draw(2, 8, seed=1)
    randomise(ours)
    p = {f"output.{name}": value for name, value in weights_of(ours).items()}
    plain = final(p, x.numpy().reshape(2, 12, 8), c.numpy(), 3, (2, 3), 5)
    same(ours(x, nn.functional.silu(c)), plain)


def test_unpatchify_undoes_patchify_on_odd_grids() -> None:
    """With the identity for both linear maps every point returns to its place."""
    grid, patch, channels = (7, 10), (2, 4), 3
    width = channels * 8
    into = PatchEmbedding(channels, width, grid, patch, position="none").double()
    eye = torch.eye(width, dtype=torch.float64)
    with torch.no_grad():
        into.proj.weight.copy_(eye.reshape(width, 2, 4, channels).permute(0, 3, 1, 2))
        into.proj.bias.zero_()
    out, x = OutputLayer(width, channels, patch).double(), draw(2, channels, *grid)
    out.linear.weight.data.copy_(eye)
    for parameter in (out.linear.bias, out.modulation.weight, out.modulation.bias):
        parameter.data.zero_()
    tokens = into(x)
    # The layer norm of a token is affine: undone here with its own moments.
    mean, std = tokens.mean(-1, keepdim=True), (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    moments = [m.repeat_interleave(2, 1).repeat_interleave(4, 2).permute(0, 3, 1, 2) for m in (mean, std)]
    fields = out(tokens, torch.zeros(2, width, dtype=torch.float64)) * moments[1] + moments[0]
    torch.testing.assert_close(fields[..., : grid[0], : grid[1]], x, rtol=1e-12, atol=1e-12)


def test_conv_head() -> None:
    ours, x = ConvHead(3), draw(2, 3, 4, 6)
    randomise(ours)
    same(ours(x), conv_head({f"conv_head.{name}": v for name, v in weights_of(ours).items()}, x.numpy()))


def test_interpolant_backbone() -> None:
    """[I_t, z0] and [z_-1], each embedded with its own positions, then side by side along the width."""
    network = LatentTransformer(BACKBONE)
    randomise(network)
    x, state, previous = (draw(2, 3, 7, 12, seed=seed) for seed in range(3))
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    p = weights_of(network)
    c = time_embedding(p, t.numpy())
    first = embed(p, "embeddings.0", np.concatenate([x.numpy(), state.numpy()], 1), (2, 3))
    tokens = np.concatenate([first, embed(p, "embeddings.1", previous.numpy(), (2, 3))], -1)
    assert tokens.shape == (2, 4 * 4, 32)
    for number in range(2):
        tokens = block(p, f"blocks.{number}", tokens, c, 2, global_attention)
    plain = final(p, tokens, c, 4, (2, 3), 3)[:, :, :7]
    same(network.predict(x, {"state": state, "previous": previous}, t=t), plain)


def test_crps_backbone() -> None:
    """[z_-1] before [z0, aux]; noise in every block but not in the final layer; head, then crop."""
    network = LatentTransformer(CRPS)
    randomise(network)
    state, previous, forcing = (draw(2, n, 7, 12, seed=seed) for seed, n in enumerate((3, 3, 2)))
    noise, p = draw(2, 32, seed=7), weights_of(network)
    c = time_embedding(p, np.ones(2))
    xi = linear(p, "noise.fc2", gelu(linear(p, "noise.fc1", noise.numpy())))
    second = embed(p, "embeddings.1", np.concatenate([state.numpy(), forcing.numpy()], 1), (2, 3))
    tokens = np.concatenate([embed(p, "embeddings.0", previous.numpy(), (2, 3)), second], -1)
    for number in range(2):
        tokens = block(p, f"blocks.{number}", tokens, c, 2, global_attention, xi)
    plain = conv_head(p, final(p, tokens, c, 4, (2, 3), 3))[:, :, :7]
    cond = {"state": state, "previous": previous, "forcing": forcing}
    same(network.predict(None, cond, noise=noise), plain)


@pytest.mark.parametrize("fusion", ["channel_concatenation", "token_addition", "token_multiplication"])
def test_projector(fusion: str) -> None:
    """4x4 patches of [x0, aux], 1x1 of r, windows that are clamped in both directions, t = 1, crop."""
    config = replace(PROJECTOR, fusion=fusion)
    network = LocalProjector(config)
    randomise(network)
    residual, state, forcing = draw(2, 3, 5, 6), draw(2, 3, 17, 24, seed=1), draw(2, 2, 17, 24, seed=2)
    p = weights_of(network)
    c = time_embedding(p, np.ones(1))
    high = embed(p, "state_embedding", np.concatenate([state.numpy(), forcing.numpy()], 1), (4, 4))
    low = embed(p, "latent_embedding", residual.numpy(), (1, 1))
    joined: dict[str, Callable[[], Array]] = {
        "channel_concatenation": lambda: np.concatenate([high, low], -1),
        "token_addition": lambda: high + low,
        "token_multiplication": lambda: high * low,
    }
    tokens = joined[fusion]()
    for number in range(2):
        tokens = block(p, f"blocks.{number}", tokens, c, 2, window_attention(5, 6, 3))
    same(network.project(residual, state, forcing), final(p, tokens, c, 5, (4, 4), 3)[:, :, :17])


def test_published_wiring_of_the_named_sizes() -> None:
    """Inputs, widths and token grids of the released configurations."""
    si, crps = LatentTransformerConfig.atlas_si(), LatentTransformerConfig.atlas_crps()
    projector = LocalProjectorConfig.atlas_projector()
    assert [(s.inputs, s.width) for s in si.input_streams] == [(("x", "state"), 2496), (("previous",), 832)]
    assert [(s.inputs, s.width) for s in crps.input_streams] == [
        (("previous",), 832),
        (("state", "forcing"), 2496),
    ]
    assert si.tokens == crps.tokens == (91, 120)
    assert (crps.noise_dim, crps.conv_head, crps.takes_t, crps.takes_x) == (3328, True, False, False)
    assert (projector.stream_widths, projector.latent_grid) == ((1728, 768), (181, 360))
    assert (projector.longitude, projector.poles, si.poles, crps.poles) == ("clamp", *3 * ("clamp",))
    assert [c.width // c.heads for c in (si, crps, projector)] == [256, 256, 208]
    with torch.device("meta"):
        names: dict[str, Any] = LatentTransformer(crps).state_dict()
    assert names["embeddings.0.position"].shape == (1, 91, 120, 832)
    assert names["embeddings.1.proj.weight"].shape == (2496, 79, 2, 3)
    assert names["blocks.11.noise_modulation.weight"].shape == (6 * 3328, 3328)
