"""The way out: any function on the local parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor
from torch.distributed.tensor import Placement
from torch.utils._pytree import tree_map

from shardtensor._collectives import shared_all
from shardtensor._spec import ShardSpec, SizesArgument
from shardtensor._tensor import ShardTensor, is_sharded, present_sizes, sharded_arguments


def local_map(
    function: Callable[..., Any],
    out_placements: Sequence[Placement] | None = None,
    in_placements: Sequence[Sequence[Placement] | None] | None = None,
    *,
    sizes: SizesArgument = None,
) -> Callable[..., Any]:
    """Returns `function` made to run on the local parts of sharded arguments.

    For a torch.autograd.Function, a kernel, or code that tests for torch.Tensor: what it computes from the
    local parts must be the local part of the result. Plain tensors are global values, whose gradients are
    summed over the ranks.

    Args:
        function: takes and returns tensors.
        out_placements: layout of every tensor that it returns; by default that of the first sharded argument.
        in_placements: for each positional argument the layout to which it is redistributed first; None
            leaves it as it is.
        sizes: rows per rank of the results, as in `ShardTensor.from_local`; by default those of the first
            sharded argument where the placement is the same; where none is, the ranks are asked.

    Raises:
        ValueError: no argument is sharded, or a result does not have the shape that its layout says.

    Examples:
        smooth = local_map(MyFunction.apply)
        y = smooth(x)
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(
            x.redistribute(want) if isinstance(x, ShardTensor) and want is not None else x
            for x, want in zip(args, (*(in_placements or ()), *[None] * len(args)), strict=False)
        )
        first = next(sharded_arguments(args, kwargs), None)
        if first is None:
            raise ValueError(f"{getattr(function, '__name__', function)}: no argument is sharded")
        spec = first.spec

        def part(x: Any) -> Any:
            if isinstance(x, ShardTensor):
                return x.local
            return shared_all([x], spec, spec.split)[0] if isinstance(x, Tensor) else x

        parts, options = tree_map(part, (args, kwargs), is_leaf=is_sharded)
        out = function(*parts, **options)
        placements = spec.placements if out_placements is None else tuple(out_placements)
        rows = sizes
        if rows is None:
            kept = present_sizes(spec)
            rows = {m: n for m, n in kept.items() if placements[m] == spec.placements[m]}
        return tree_map(lambda y: _wrap(y, spec, placements, rows) if isinstance(y, Tensor) else y, out)

    return call


def _wrap(
    local: Tensor, spec: ShardSpec, placements: Sequence[Placement], sizes: SizesArgument
) -> ShardTensor:
    return ShardTensor.from_local(local, spec.mesh, placements, sizes or "infer", check=False)
