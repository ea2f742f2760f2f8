"""Samples of views, slices and rearrangements."""

import torch
from shard_samples import Sample

SAMPLES = [
    Sample(
        op="permute",
        run=lambda x: x.permute(0, 2, 1),
        inputs=((2, 7, 6),),
        dims=((0,), (1,), (2,)),
        grid=(((1, 2),),),
    ),
    Sample(
        op="roll",
        run=lambda x: torch.roll(x, 2, 1),
        inputs=((2, 7, 3),),
        dims=((1,),),
        grid=(((1, 2),),),
        forward=1,
        backward=1,
    ),
]
