"""The parts both networks share: embeddings, the transformer block, the output layer.

Tokens keep the form (N, h, w, D) throughout, so that latitude rows stay a dimension of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wx_models._attention import neighborhood_attention

_ZERO = ("modulation", "output.linear", "mixing.conv", "skip.proj")
_SCORE_BYTES = 1 << 28
_TIME_SCALE = 1000.0
TIME_FEATURES = 256
_MAX_PERIOD = 10000.0


class PatchEmbedding(nn.Module):
    """Fields (N, C, H, W) to tokens (N, h, w, D): pad, strided convolution, fixed, learned or no position.

    The grid is padded to whole patches: rows at the south by `pad_rows`, wrapped columns in the east.
    """

    position: Tensor | None

    def __init__(
        self,
        channels: int,
        width: int,
        grid: tuple[int, int],
        patch: tuple[int, int],
        *,
        position: str,
        poles: str = "clamp",
    ) -> None:
        super().__init__()
        tokens = token_grid(grid, patch)
        self.poles = poles
        self.padding = (tokens[1] * patch[1] - grid[1], tokens[0] * patch[0] - grid[0])
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        if position == "none":
            self.register_buffer("position", None)
        elif position == "learned":
            self.position = nn.Parameter(sincos_position(*tokens, width))
        else:
            self.register_buffer("position", sincos_position(*tokens, width))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        east, south = self.padding
        if south:
            x_NCHW = pad_rows(x_NCHW, 0, south, self.poles)
        if east:
            x_NCHW = F.pad(x_NCHW, (0, east, 0, 0), mode="circular")
        with full_precision(x_NCHW):
            tokens: Tensor = self.proj(x_NCHW).permute(0, 2, 3, 1)
        return tokens if self.position is None else tokens + self.position


def token_grid(grid: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Returns the number of patches along latitude and longitude, the last ones padded."""
    return -(-grid[0] // patch[0]), -(-grid[1] // patch[1])


def pad_rows(x_NCHW: Tensor, north: int, south: int, poles: str) -> Tensor:
    """Adds rows beyond the first and the last row.

    "clamp": the rows on this side of the pole, reflected. "cross": the rows on the other side, which are
    those of this side in reverse order, turned by half the globe; "cross_pole_row": the same, but the first
    and the last row lie at the poles and are not repeated. Components of a vector change sign across a pole;
    rows are continued as they are, and a network has to learn that.
    """
    if poles == "clamp":
        return F.pad(x_NCHW, (0, 0, north, south), mode="reflect")
    turned, rows = x_NCHW.roll(x_NCHW.shape[-1] // 2, -1), x_NCHW.shape[-2]
    once = int(poles == "cross_pole_row")
    above = turned[..., once : once + north, :].flip(-2)
    below = turned[..., rows - once - south : rows - once, :].flip(-2)
    return torch.cat([above, x_NCHW, below], dim=-2)


def token_poles(poles: str, patch: tuple[int, int]) -> str:
    """Returns the rule for tokens: a row of patches lies beside a pole, a row of points may lie at it."""
    return "cross" if poles == "cross_pole_row" and patch[0] > 1 else poles


def sincos_position(rows: int, columns: int, width: int) -> Tensor:
    """Sine-cosine table (1, rows, columns, width): half the width for rows, half for columns."""
    angular = np.exp(np.arange(width // 4) * (-4 * math.log(_MAX_PERIOD) / width))

    def features(length: int) -> Tensor:
        angle = np.outer(np.arange(length), angular)
        return torch.as_tensor(np.concatenate([np.sin(angle), np.cos(angle)], axis=1), dtype=torch.float32)

    along_rows = features(rows)[:, None, :].expand(-1, columns, -1)
    along_columns = features(columns)[None].expand(rows, -1, -1)
    return torch.cat([along_rows, along_columns], dim=-1)[None]


class TimeEmbedding(nn.Module):
    """cos and sin of 1000 t / 10000^(i / 128), i < 128, then Linear, SiLU, Linear: (M,) -> (M, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t_M: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        # In the order of the published code: the argument is 1000, where rounding is felt.
        index = torch.arange(half, dtype=t_M.dtype, device=t_M.device)
        angle = (_TIME_SCALE * t_M)[:, None] * torch.exp(-math.log(_MAX_PERIOD) * index / half)
        with full_precision(angle):
            embedded: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return embedded


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or over a window when `kernel` is given."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: tuple[int, int] | None,
        longitude: str,
        poles: str,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.heads, self.kernel, self.longitude, self.poles = heads, kernel, longitude, poles
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        head = width // heads
        self.q_norm = nn.LayerNorm(head, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x_NhwD: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(x_NhwD)
        q, k, v = qkv.reshape(*qkv.shape[:-1], 3, self.heads, -1).unbind(-3)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.kernel is None:
            mixed = _global_attention(q, k, v)
        else:
            mixed = neighborhood_attention(
                q, k, v, kernel=self.kernel, longitude=self.longitude, poles=self.poles
            )
        out: Tensor = self.proj(mixed.flatten(-2))
        return out


def _global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    attend = _matmul_attention if _matmul_is_faster(queries) else _sdpa
    return attend(queries, keys, values).transpose(1, 2).reshape(q.shape)


def _matmul_is_faster(queries_BHND: Tensor) -> bool:
    """In bfloat16 on a CPU with scores that fit in memory; a tensor subclass knows SDPA, not its parts."""
    scores = 2 * math.prod(queries_BHND.shape[:3]) * queries_BHND.shape[2]
    return (
        queries_BHND.dtype == torch.bfloat16
        and queries_BHND.device.type == "cpu"
        and type(queries_BHND) is Tensor
        and scores <= _SCORE_BYTES
    )


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The backward pass of torch's CPU attention is three times slower in bfloat16 than in float32."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


class Block(nn.Module):
    """Transformer block with adaptive normalisation, DiT adaLN-Zero (Peebles & Xie 2023, arXiv 2212.09748).

    m = Linear(c) [+ Linear(xi)] is split into (shift, scale, gate) for attention and for the MLP:
    x <- x + gate_a Attention(LN(x) (1 + scale_a) + shift_a);  x <- x + gate_m MLP(LN(x) (1 + scale_m) +
    shift_m).

    `c` and `xi` come through SiLU already: every block needs the same activation.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: int,
        kernel: tuple[int, int] | None,
        longitude: str = "periodic",
        poles: str = "clamp",
        qk_norm: bool = False,
        noise: bool = False,
        mixing: int = 0,
        gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.mixing = LocalMixing(width, mixing, poles=poles) if mixing else None
        self.attn = Attention(width, heads, kernel=kernel, longitude=longitude, poles=poles, qk_norm=qk_norm)
        self.mlp = MLP(width, mlp_ratio * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.noise_modulation = nn.Linear(width, 6 * width) if noise else None

    def forward(self, x_NhwD: Tensor, c_MD: Tensor, xi_ND: Tensor | None = None) -> Tensor:
        m = self.modulation(c_MD)
        if self.noise_modulation is not None:
            m = m + self.noise_modulation(xi_ND)
        if self.mixing is not None:
            x_NhwD = x_NhwD + self.mixing(x_NhwD)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = m[:, None, None, :].chunk(6, dim=-1)
        x_NhwD = x_NhwD + gate_a * self.attn(normalise(x_NhwD, shift_a, scale_a))
        out: Tensor = x_NhwD + gate_m * self.mlp(normalise(x_NhwD, shift_m, scale_m))
        return out


def normalise(x_NhwD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without own parameters, then the affine map given by the condition."""
    # The number itself: a compiled checkpoint with dynamic=True takes a global float for an input it lacks.
    x_NhwD = F.layer_norm(x_NhwD, x_NhwD.shape[-1:], eps=1e-6)
    return x_NhwD * (1 + scale) + shift


class LocalMixing(nn.Module):
    """Depthwise convolution of tokens (N, h, w, D): wrapped columns, rows repeated or continued at poles."""

    def __init__(self, width: int, kernel: int, *, poles: str = "clamp") -> None:
        super().__init__()
        self.reach, self.poles = kernel // 2, poles
        self.conv = nn.Conv2d(width, width, kernel, groups=width)

    def forward(self, x_NhwD: Tensor) -> Tensor:
        r, tokens = self.reach, x_NhwD.permute(0, 3, 1, 2)
        if self.poles != "clamp":
            tokens = pad_rows(tokens, r, r, self.poles)
        wrapped = F.pad(tokens, (r, r, 0, 0), mode="circular")
        if self.poles == "clamp":
            wrapped = F.pad(wrapped, (0, 0, r, r), mode="replicate")
        mixed: Tensor = self.conv(wrapped)
        return mixed.permute(0, 2, 3, 1)


class OutputLayer(nn.Module):
    """Tokens (N, h, w, D) to fields (N, C, h p1, w p2): modulated layer norm, Linear, patches in place."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.linear = nn.Linear(width, patch[0] * patch[1] * channels)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x_NhwD: Tensor, c_MD: Tensor, skip_NhwP: Tensor | None = None) -> Tensor:
        with full_precision(x_NhwD):
            shift, scale = self.modulation(c_MD.to(x_NhwD.dtype))[:, None, None, :].chunk(2, dim=-1)
            patches: Tensor = self.linear(normalise(x_NhwD, shift, scale))
        if skip_NhwP is not None:
            patches = patches + skip_NhwP
        (n, h, w, _), (rows, columns) = patches.shape, self.patch
        fields = patches.reshape(n, h, w, rows, columns, self.channels).permute(0, 5, 1, 3, 2, 4)
        return fields.reshape(n, self.channels, h * rows, w * columns)


class ConvHead(nn.Module):
    """3x3 convolution of fields (N, C, H, W): wrapped columns, rows beyond the poles by `pad_rows`."""

    def __init__(self, channels: int, *, poles: str = "clamp") -> None:
        super().__init__()
        self.poles = poles
        self.conv = nn.Conv2d(channels, channels, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        padded = F.pad(pad_rows(x_NCHW, 1, 1, self.poles), (1, 1, 0, 0), mode="circular")
        with full_precision(padded):
            out: Tensor = self.conv(padded)
        return out


def run_blocks(
    blocks: Iterable[nn.Module], x_NhwD: Tensor, c_MD: Tensor, xi_ND: Tensor | None, checkpoint_every: int
) -> Tensor:
    """Applies the blocks in turn; every n-th one keeps only its input and runs again in the backward pass."""
    if checkpoint_every < 0:
        raise ValueError(f"checkpoint_every must be 0 (never) or more, got {checkpoint_every}")
    for number, block in enumerate(blocks, 1):
        if checkpoint_every and number % checkpoint_every == 0:
            # A block draws no random numbers, so their state need not be kept.
            x_NhwD = checkpoint(block, x_NhwD, c_MD, xi_ND, use_reentrant=False, preserve_rng_state=False)
        else:
            x_NhwD = block(x_NhwD, c_MD, xi_ND)
    return x_NhwD


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Returns the context in which fields enter and leave a network, whatever precision its blocks run in."""
    # Autocast does not know the meta device.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def mixed_precision(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Returns the autocast context of the blocks; None leaves the caller's precision alone."""
    return nullcontext() if dtype is None or x.is_meta else torch.autocast(x.device.type, dtype=dtype)


def initialise(network: nn.Module, seed: int) -> None:
    """Sets the weights: Xavier for matrices, zero for biases, modulations and the output (adaLN-Zero).

    The network then starts as zero: it predicts the mean residual. Gates start at `Block.gate`, zero in
    adaLN-Zero. A network on the meta device is left alone.
    """
    weights = list(network.parameters())
    if any(weight.is_meta for weight in weights):
        return
    generator = torch.Generator(weights[0].device).manual_seed(seed)
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if name.endswith(_ZERO):
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
    for module in network.modules():
        if isinstance(module, Block) and module.gate:
            _, _, gate_a, _, _, gate_m = module.modulation.bias.detach().chunk(6)
            gate_a.fill_(module.gate)
            gate_m.fill_(module.gate)
