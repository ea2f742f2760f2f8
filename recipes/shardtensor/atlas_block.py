"""One step of an ATLAS forecaster (arXiv 2601.18111) on fields and a latent in uneven bands of latitude.

    torchrun --standalone --nproc-per-node 4 -m recipes.shardtensor.atlas_block

The networks of wx_models know nothing of ranks. Two things are added from outside: how their neighbourhood
attention runs on bands, and that the latent is sharded as well, so that its global attention is too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard

import shardtensor as st
from recipes.shardtensor.common import arguments, bands, domain, train, waves, weighted_error
from wx_models import (
    Downsample,
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    Stream,
    neighborhood_attention,
)

BATCH, CHANNELS, GRID, FACTOR = 1, 3, (33, 64), (4, 4)


class Step(nn.Module):
    """Two states (N, C, H, W) to the next one: downsample, global transformer, local projector."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample = Downsample(GRID, FACTOR)
        latent = self.downsample.size
        self.backbone = LatentTransformer(
            LatentTransformerConfig(
                channels=CHANNELS,
                grid=latent,
                width=64,
                depth=2,
                heads=4,
                gate=0.7,
                streams=(Stream(("state",), 48), Stream(("previous",), 16)),
                takes_t=False,
            )
        )
        self.projector = LocalProjector(
            LocalProjectorConfig(channels=CHANNELS, grid=GRID, patch=FACTOR, width=64, depth=2, heads=4)
        )

    def forward(self, previous: Any, state: Any) -> Any:
        latents = {"previous": self.downsample(previous), "state": self.downsample(state)}
        residual: Tensor = self.backbone.predict(None, latents)
        return state + self.projector.project(residual, state)


def in_bands(_module: nn.Module, _fields: Any, latent: st.ShardTensor) -> st.ShardTensor:
    """Shards a latent: no communication, every rank keeps the rows of its band."""
    return latent.redistribute([Shard(2)], sizes=bands(latent.shape, latent.mesh).sizes[0])


def main() -> None:
    chosen = arguments(__doc__ or "")
    torch.set_default_dtype(torch.float64 if chosen.double else torch.float32)
    st.register_function_handler(neighborhood_attention, st.neighborhood_handler)
    with domain() as mesh:
        net = Step().to(torch.get_default_dtype())
        net.downsample.register_forward_hook(in_bands)
        previous = waves(bands((BATCH, CHANNELS, *GRID), mesh), seed=0)
        state, truth = (previous.roll(GRID[1] // 16 * steps, 3) for steps in (1, 2))
        train(net, lambda: weighted_error(net(previous, state), truth), mesh, chosen.steps)


if __name__ == "__main__":
    main()
