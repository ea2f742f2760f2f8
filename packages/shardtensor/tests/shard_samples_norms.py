"""Samples of normalisations, over sharded and other dimensions."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor, nn


def _far(x: Tensor) -> Tensor:
    return x + 3000


def _flat_in_part(x: Tensor) -> Tensor:
    """Makes the first rows constant, so that some ranks have no variance."""
    x = x.clone()
    x[:, :, :3] = 1.5
    return x


def _group(x: Tensor, *params: Tensor) -> Tensor:
    return F.group_norm(x, 3, *params)


def _instance(x: Tensor, *params: Tensor) -> Tensor:
    return F.instance_norm(x, None, None, *params)


def _batch(x: Tensor, *params: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, *params, training=True)


def _tracked(kind: type[nn.Module], **options: Any) -> Callable[..., Any]:
    """Runs the module twice in training, then in evaluation; returns all and the running statistics."""

    def run(x: Any) -> Any:
        module = kind(6, affine=False, track_running_stats=True, **options)
        module.running_mean, module.running_var = (
            part.to(x.dtype) for part in (module.running_mean, module.running_var)
        )
        seen = [module(x), module(2 * x)]
        module.eval()
        last = module(x)
        kept = (part.view(1, -1, *[1] * (x.ndim - 2)) for part in (module.running_mean, module.running_var))
        return [*seen, last, *(0 * last + part for part in kept)]

    return run


SHAPE = (4, 6, 5, 4)
WEIGHTS = ((6,), (6,))
SPATIAL = ((2,), (3,))
GRIDS = (((2, 3),), ((0, 2),), ((2, None),))
SAMPLES = [
    Sample(
        op="group_norm",
        run=_group,
        inputs=(SHAPE,),
        dims=SPATIAL,
        grid=GRIDS,
        weights=WEIGHTS,
        forward=1,
        backward=1,
    ),
    Sample(
        op="group_norm", run=_group, inputs=(SHAPE,), dims=SPATIAL, weights=((6,),), forward=1, backward=1
    ),
    Sample(op="group_norm", run=_group, inputs=(SHAPE,), dims=SPATIAL, forward=1, backward=1),
    Sample(op="group_norm", run=_group, inputs=(SHAPE,), dims=((0,),), weights=WEIGHTS, backward=1),
    Sample(
        op="group_norm",
        run=_group,
        inputs=(SHAPE,),
        dims=SPATIAL,
        weights=WEIGHTS,
        make=_far,
        forward=1,
        backward=1,
        rtol=1e-8,
    ),
    Sample(
        op="group_norm",
        run=lambda x, w, b: F.group_norm(x, 3, w, b, 0.0),
        inputs=(SHAPE,),
        dims=((2,),),
        weights=WEIGHTS,
        make=_flat_in_part,
        forward=1,
        backward=1,
    ),
    Sample(
        op="group_norm",
        run=lambda x, w, b: F.group_norm(x, 6, w, b),
        inputs=((4, 6, 5),),
        dims=((1,),),
        grid=(((1, 2),),),
        weights=WEIGHTS,
        backward=1,
    ),
    Sample(
        op="instance_norm",
        run=_instance,
        inputs=(SHAPE,),
        dims=SPATIAL,
        grid=GRIDS,
        weights=WEIGHTS,
        forward=1,
        backward=1,
    ),
    Sample(
        op="instance_norm", run=_instance, inputs=((4, 6, 9),), dims=((0,), (1,)), weights=WEIGHTS, backward=1
    ),
    Sample(
        op="instance_norm",
        run=_tracked(nn.InstanceNorm2d),
        inputs=(SHAPE,),
        dims=SPATIAL,
        grid=GRIDS,
        forward=2,
        backward=2,
    ),
    Sample(
        op="instance_norm",
        run=_tracked(nn.InstanceNorm1d),
        inputs=((4, 6, 7),),
        dims=((0,),),
        forward=2,
        backward=0,
    ),
    Sample(
        op="batch_norm",
        run=_batch,
        inputs=(SHAPE,),
        dims=((0,), *SPATIAL),
        grid=GRIDS,
        weights=WEIGHTS,
        forward=1,
        backward=1,
    ),
    Sample(
        op="batch_norm", run=_batch, inputs=((9, 6),), dims=((0,),), weights=WEIGHTS, forward=1, backward=1
    ),
    Sample(
        op="batch_norm",
        run=_batch,
        inputs=(SHAPE,),
        dims=((1,),),
        grid=(((1, 2),),),
        weights=WEIGHTS,
        backward=1,
    ),
    Sample(
        op="batch_norm",
        run=_tracked(nn.BatchNorm2d),
        inputs=(SHAPE,),
        dims=((0,), *SPATIAL),
        grid=GRIDS,
        forward=2,
        backward=2,
    ),
    Sample(
        op="batch_norm",
        run=_tracked(nn.BatchNorm3d, momentum=None),
        inputs=((3, 6, 2, 4, 3),),
        dims=((0,), (3,)),
        forward=2,
        backward=2,
    ),
    Sample(
        op="batch_norm",
        run=lambda x, m, v, w, b: F.batch_norm(x, m.detach(), v.detach().square() + 0.1, w, b),
        inputs=(SHAPE,),
        dims=((0,), (1,), (2,)),
        grid=GRIDS,
        weights=WEIGHTS * 2,
        backward=1,
    ),
    Sample(
        op="layer_norm",
        run=lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-6),
        inputs=((4, 7, 6),),
        dims=((0,), (1,)),
        grid=(((0, 1),),),
        weights=WEIGHTS,
        backward=1,
    ),
    Sample(
        op="layer_norm",
        run=lambda x, w, b: F.layer_norm(x, (7, 6), w, b),
        inputs=((4, 7, 6),),
        dims=((1,), (2,)),
        grid=(((0, 1),), ((1, 2),)),
        weights=((7, 6), (7, 6)),
        forward=1,
        backward=1,
    ),
    Sample(
        op="layer_norm",
        run=lambda x, b: F.layer_norm(x, [6], bias=b),
        inputs=((4, 7, 6),),
        dims=((2,),),
        weights=((6,),),
        make=_far,
        forward=1,
        backward=1,
        rtol=1e-8,
    ),
    Sample(
        op="layer_norm",
        run=lambda x: F.layer_norm(x, (4, 6)),
        inputs=((4, 6),),
        dims=((0,), (1,)),
        forward=1,
        backward=1,
    ),
    Sample(
        op="rms_norm",
        run=lambda x, w: F.rms_norm(x, (6,), w),
        inputs=((4, 7, 6),),
        dims=((1,),),
        weights=((6,),),
        backward=1,
    ),
    Sample(
        op="rms_norm",
        run=lambda x, w: F.rms_norm(x, (7, 6), w, 1e-5),
        inputs=((4, 7, 6),),
        dims=((1,), (2,)),
        grid=(((0, 1),), ((1, 2),)),
        weights=((7, 6),),
        forward=1,
        backward=1,
    ),
    Sample(
        op="rms_norm",
        run=lambda x: F.rms_norm(x, (6,), eps=1e-5),
        inputs=((7, 6),),
        dims=((1,),),
        forward=1,
        backward=1,
    ),
    Sample(
        op="local_response_norm",
        run=lambda x: F.local_response_norm(x, 3, alpha=0.1, k=2.0),
        inputs=(SHAPE,),
        dims=((0,), (2,)),
        grid=(((2, 3),),),
        bf16=False,
    ),
]
