"""A learned weight for every noise level: how hard a level is need not decide how much it counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._types import LossOut
from ._weights import ratio


class UncertaintyWeight(nn.Module):
    """Balances noise levels by their own error, as in EDM2 (Karras et al., arXiv 2312.02696, section 2.2).

    L = sum(w (l exp(-u(c)) + u(c))) / sum(w) over rows, channels and points, with l the error of the plain
    loss and c what the network was told. At the best u = ln E[l | c] every level counts alike, whatever its
    scale: the gradient of the network is that of l / E[l | c]. u is linear in random Fourier features of c,
    starts at 0, where L is the plain loss, and is trained with the network, by the same optimiser without
    weight decay; sampling does not need it.

    Call the module itself, `weigh(out)`, so that DDP can wrap it. Averaging gradients over ranks, as DDP
    does, gives those of the whole batch where all ranks have the same `LossOut.count`, as it does for the
    plain loss; otherwise multiply by count over mean count first.

    Args:
        channels: C for one u per channel, which also balances channels; None for one u for all.
        width: number of Fourier features.
        seed: of the features, cos(2 pi a c + b) with a ~ N(0, 1) and b ~ U(0, 2 pi). They are buffers.

    Raises:
        ValueError: width or channels is not positive.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, channels: int | None = None, *, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or (channels is not None and channels < 1):
            raise ValueError(f"width and channels must be positive, got {width} and {channels}")
        self.channels = channels
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.register_buffer("frequency", 2.0 * math.pi * torch.randn(width, generator=generator))
        self.register_buffer("phase", 2.0 * math.pi * torch.rand(width, generator=generator))
        self.weight = nn.Parameter(torch.zeros(channels or 1, width))
        self.bias = nn.Parameter(torch.zeros(channels or 1))

    def forward(self, out: LossOut, /) -> Tensor:
        """The scalar to train network and u with.

        Args:
            out: of `EDM.loss`, `FlowMatching.loss`, `StochasticInterpolant.loss` or `Consistency.loss`.

        Raises:
            ValueError: the estimator tells its network no time, or has another number of channels.
        """
        if out.label is None:
            raise ValueError(
                "LossOut.label is None: this estimator tells its network no time, so there is no level to "
                "weigh; train with LossOut.loss"
            )
        if self.channels not in (None, out.row_sums.shape[1]):
            raise ValueError(
                f"UncertaintyWeight has {self.channels} channels but the loss has {out.row_sums.shape[1]}"
            )
        u_NC = self._log_level(out.label)
        total_NC = out.row_sums * torch.exp(-u_NC) + out.row_counts * u_NC
        return ratio(total_NC.sum(), out.row_counts.sum(dtype=total_NC.dtype))

    @torch.no_grad()
    def level(self, label: Tensor, /) -> Tensor:
        """exp(u), the mean error learnt for labels (N,): (N, C), or (N, 1) for one u."""
        return self._log_level(label).exp()

    def _log_level(self, label_N: Tensor) -> Tensor:
        """u, (N, C) or (N, 1); in the precision of the parameters whatever the network computes in."""
        with torch.autocast(label_N.device.type, enabled=False):
            angle = label_N.to(self.frequency).unsqueeze(1) * self.frequency + self.phase
            return F.linear(math.sqrt(2.0) * torch.cos(angle), self.weight, self.bias)
