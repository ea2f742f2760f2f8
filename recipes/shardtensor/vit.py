"""A vision transformer on fields in uneven bands of latitude.

    torchrun --standalone --nproc-per-node 4 -m recipes.shardtensor.vit

The model is plain torch and knows nothing of ranks. Neither the bands nor the 33 latitudes are multiples of
the patch, and dropout draws the same numbers on any number of ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shardtensor as st
from recipes.shardtensor.common import arguments, bands, domain, train, waves, weighted_error

BATCH, CHANNELS, ROWS, COLUMNS = 2, 3, 33, 64
PATCH, WIDTH, HEADS, DEPTH = 4, 64, 4, 2


class VisionTransformer(nn.Module):
    """Fields (N, C, H, W) to fields of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = -(-ROWS // PATCH), COLUMNS // PATCH
        self.embedding = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.tokens[0] * self.tokens[1], WIDTH))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(DEPTH)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHANNELS * PATCH**2))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        rows, columns = self.tokens
        padded = F.pad(x_NCHW, (0, 0, 0, rows * PATCH - ROWS), mode="replicate")
        tokens = self.embedding(padded).flatten(2).transpose(1, 2) + self.position
        patches: Tensor = self.head(self.blocks(tokens))
        patches = patches.reshape(-1, rows, columns, CHANNELS, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(-1, CHANNELS, rows * PATCH, columns * PATCH)[:, :, :ROWS]


def main() -> None:
    chosen = arguments(__doc__ or "")
    torch.set_default_dtype(torch.float64 if chosen.double else torch.float32)
    with domain() as mesh:
        torch.manual_seed(0)  # the same weights on every rank
        st.manual_seed(0)  # the same dropout on any number of ranks
        net = VisionTransformer()
        fields = waves(bands((BATCH, CHANNELS, ROWS, COLUMNS), mesh), seed=0)
        truth = fields.roll(COLUMNS // 8, 3)
        train(net, lambda: weighted_error(net(fields), truth), mesh, chosen.steps)


if __name__ == "__main__":
    main()
