"""Samples of random numbers: against a dropout that draws the numbers of the whole tensor."""

from typing import Any

import torch.nn.functional as F
from shard_samples import Sample

from shardtensor import is_sharded, manual_seed
from shardtensor._random import at_least, numbers


def dropout(name: str, kept: int) -> Any:
    """Returns F's dropout of that name; on a plain tensor, the reference."""

    def run(x: Any) -> Any:
        manual_seed(1)
        if is_sharded(x):
            return getattr(F, name)(x, 0.3)
        shape = [n if d < kept else 1 for d, n in enumerate(x.shape)]
        keep = numbers((1, 0), shape, [slice(0, n) for n in shape], x.device, at_least(0.3))
        return x * keep.to(x.dtype) * (1 / 0.7)

    return run


GRID = (((2, 3),), ((1, 0),))
SAMPLES = [
    Sample(op=op, run=dropout(op, kept), inputs=((2, 6, 5, 7),), dims=((0,), (1,), (2,), (3,)), grid=GRID)
    for op, kept in (("dropout", 4), ("dropout2d", 2), ("dropout3d", 1))
]
