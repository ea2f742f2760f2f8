"""Operations that rearrange dimensions: every one runs on the local part; only the layout is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from shardtensor._align import align
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._plans import planned
from shardtensor._reduce import dimensions
from shardtensor._spec import Sizes
from shardtensor._tensor import ShardTensor, elsewhere, local_part, place, unsupported


def integers(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Returns f(1, 2), f((1, 2)) and f([1, 2]) alike as (1, 2)."""
    flat = values[0] if len(values) == 1 and isinstance(values[0], Sequence) else values
    return tuple(int(n) for n in flat)


def view(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Turns `function(x, ...)` into a handler; keyword arguments are appended in the order of `names`."""

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        rest = args[1:] + tuple(kwargs[name] for name in names if name in kwargs)
        first = args[0] if args else kwargs["input"]
        if not isinstance(first, ShardTensor):
            return func(first, *(x.shape if isinstance(x, ShardTensor) else x for x in rest))
        if first.spec.partial:
            raise unsupported(func.__name__, args, kwargs, "the tensor is a pending sum")
        return function(first, *rest)

    return handler


def permute(x: ShardTensor, *order: Any) -> ShardTensor:
    moved = dimensions(integers(order), x.ndim)
    dims = tuple(None if dim is None else moved.index(dim) for dim in x.spec.dims)
    return place(x.local.permute(moved), x.spec, dims, x.spec.sizes)


def transpose(x: ShardTensor, dim0: int, dim1: int) -> ShardTensor:
    order = list(range(x.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(x, order)


def matrix_transpose(x: ShardTensor) -> ShardTensor:
    return transpose(x, -2, -1) if x.ndim > 1 else x


def movedim(x: ShardTensor, source: int | Sequence[int], destination: int | Sequence[int]) -> ShardTensor:
    sources, goals = dimensions(source, x.ndim), dimensions(destination, x.ndim)
    rest = iter(d for d in range(x.ndim) if d not in sources)
    placed = dict(zip(goals, sources, strict=True))
    return permute(x, [placed[d] if d in placed else next(rest) for d in range(x.ndim)])


def unsqueeze(x: ShardTensor, dim: int) -> ShardTensor:
    at = dim % (x.ndim + 1)
    dims = tuple(None if d is None else d + (d >= at) for d in x.spec.dims)
    return place(x.local.unsqueeze(at), x.spec, dims, x.spec.sizes)


def squeeze(x: ShardTensor, *dim: Any) -> ShardTensor:
    chosen = dimensions(integers(dim) if dim else None, x.ndim)
    gone = tuple(d for d in chosen if x.shape[d] == 1)
    if any(d in gone for d in x.spec.dims):
        raise unsupported("squeeze", (x,), {}, "the dimension of extent 1 is sharded")
    dims = tuple(None if d is None else d - sum(g < d for g in gone) for d in x.spec.dims)
    return place(x.local.squeeze(gone), x.spec, dims, x.spec.sizes)


def expand(x: ShardTensor, *shape: Any) -> ShardTensor:
    target = list(shape[0].shape if isinstance(shape[0], Tensor | ShardTensor) else integers(shape))
    lead = len(target) - x.ndim
    for dim in x.spec.dims:
        if dim is not None:
            if target[dim + lead] not in (-1, x.shape[dim]):
                raise unsupported("expand", (x,), {}, f"dimension {dim} is sharded and can not be expanded")
            target[dim + lead] = -1
    dims = tuple(None if dim is None else dim + lead for dim in x.spec.dims)
    return place(x.local.expand(target), x.spec, dims, x.spec.sizes)


def repeat(x: ShardTensor, *counts: Any) -> ShardTensor:
    times = integers(counts)
    lead = len(times) - x.ndim
    if any(dim is not None and times[dim + lead] != 1 for dim in x.spec.dims):
        raise unsupported("repeat", (x,), {}, "a sharded dimension can not be repeated")
    dims = tuple(None if dim is None else dim + lead for dim in x.spec.dims)
    return place(x.local.repeat(times), x.spec, dims, x.spec.sizes)


def reshape(x: ShardTensor, *shape: Any) -> ShardTensor:
    return _reshaped(x, shape[0].shape if isinstance(shape[0], Tensor | ShardTensor) else integers(shape))


def flatten(x: ShardTensor, start_dim: int = 0, end_dim: int = -1) -> ShardTensor:
    if x.ndim == 0:
        return _reshaped(x, (1,))
    first, last = dimensions((start_dim, end_dim), x.ndim)
    merged = math.prod(x.shape[first : last + 1])
    return _reshaped(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


def unflatten(x: ShardTensor, dim: int, sizes: Sequence[int]) -> ShardTensor:
    (at,) = dimensions(dim, x.ndim)
    parts = _filled(tuple(sizes), x.shape[at])
    return _reshaped(x, (*x.shape[:at], *parts, *x.shape[at + 1 :]))


def _filled(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Replaces the -1 of a shape of `count` elements."""
    known = math.prod(n for n in shape if n != -1)
    filled = tuple(count // max(known, 1) if n == -1 else n for n in shape)
    if math.prod(filled) != count:
        raise ValueError(f"shape {tuple(shape)} does not hold {count} elements")
    return filled


def _reshaped(x: ShardTensor, shape: Sequence[int]) -> ShardTensor:
    target = _filled(shape, x.shape.numel())
    dims: list[int | None] = []
    sizes: list[Sizes | None] = []
    local = list(target)
    for m, (dim, extents) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        if dim is None or extents is None:
            dims.append(None)
            sizes.append(None)
            continue
        new_dim, new_extents = follow_rows(tuple(x.shape), target, dim, extents)
        if new_extents is None:
            raise _misfit(x, target, dim, new_dim)
        dims.append(new_dim)
        sizes.append(new_extents)
        local[new_dim] = new_extents[x.spec.coordinate[m]]
    return place(x.local.reshape(local), x.spec, tuple(dims), tuple(sizes))


@planned
def follow_rows(
    shape: tuple[int, ...], target: tuple[int, ...], dim: int, sizes: Sizes
) -> tuple[int, Sizes | None]:
    """Finds which dimension of `target` a sharded dimension becomes, and its rows per rank.

    A reshape regroups neighbouring dimensions whose products agree. The shard stays one block per rank if the
    dimension is outermost in its group, and if every rank's block fills whole rows of the outermost target
    dimension.

    Returns:
        The target dimension, and its sizes or, if the blocks do not fit, None; (-1, None) if `dim` is not
        outermost.
    """
    before = math.prod(shape[:dim])
    reached = list(accumulate(target, lambda a, b: a * b, initial=1))
    candidates = [d for d in range(len(target)) if reached[d] == before]
    if not candidates or math.prod(shape) == 0:
        return (dim, sizes) if shape == target else (-1, None)
    new_dim = next((d for d in candidates if target[d] != 1), candidates[0])
    inner, new_inner = math.prod(shape[dim + 1 :]), math.prod(target[new_dim + 1 :])
    if any(rows * inner % new_inner for rows in sizes):
        return new_dim, None
    return new_dim, tuple(rows * inner // new_inner for rows in sizes)


def _misfit(x: ShardTensor, target: Sequence[int], dim: int, new_dim: int) -> UnsupportedShardedOp:
    if new_dim < 0:
        reason = f"dimension {dim} is sharded and not the outermost of the dimensions that are merged"
        return unsupported("reshape", (x,), {}, f"to {tuple(target)}: {reason}; permute it to their front")
    each = math.prod(target[new_dim + 1 :]) // math.gcd(
        math.prod(target[new_dim + 1 :]), math.prod(x.shape[dim + 1 :])
    )
    return UnsupportedShardedOp(
        "reshape",
        f"to {tuple(target)}: rows per rank of dimension {dim} are not multiples of {each} "
        f"({x.spec.describe()})",
        f"Call .redistribute(sizes=...) with multiples of {each} first.",
    )


def concatenate(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """cat and stack along a dimension that is not sharded."""
    named = dict(zip(("tensors", "dim"), args, strict=False)) | dict(kwargs)
    tensors, dim = named["tensors"], named.get("dim", named.get("axis", 0))
    stacked = func.__name__ == "stack"
    ndim = tensors[0].ndim
    at = dim % (ndim + stacked)
    axes = [
        tuple(("own", i) if d == at and not stacked else d for d in range(ndim)) for i in range(len(tensors))
    ]
    aligned = align(func.__name__, tensors, axes, range(ndim))
    if any(isinstance(label, tuple) for label in aligned.labels):
        raise unsupported(func.__name__, tensors, {}, f"dimension {at} is sharded")
    out = tuple(range(ndim))
    return aligned.wrap(
        func(list(aligned.locals), dim=at),
        (*out[:at], "new", *out[at:]) if stacked else (*out[:at], "new", *out[at + 1 :]),
    )


def along(position: int, default: Any, name: str = "dim") -> Callable[..., Any]:
    """Returns a handler for functions that couple elements along dimensions that are not sharded.

    Args:
        position: where the dimension stands among the arguments.
        default: its value when absent; None means all dimensions.
        name: its keyword.
    """

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        dim = kwargs.get(name, args[position] if len(args) > position else default)
        first = args[0] if args else None
        if not isinstance(first, ShardTensor) or first.spec.partial:
            raise unsupported(func.__name__, args, kwargs)
        dims = dimensions(dim, first.ndim)
        if any(d in dims for d in first.spec.dims):
            reason = f"couples elements along sharded dimensions of {dims}"
            raise unsupported(func.__name__, args, kwargs, reason, elsewhere(first, dims))
        out = func(*map(local_part, args), **{key: local_part(value) for key, value in kwargs.items()})
        return _wrap_along(out, first, dims)

    return handler


def _wrap_along(out: Any, x: ShardTensor, gone: Sequence[int]) -> Any:
    if not isinstance(out, Tensor):
        wrapped = [_wrap_along(part, x, gone) for part in out]
        return type(out)(wrapped)
    kept = out.ndim == x.ndim
    dims = tuple(None if d is None else d - (0 if kept else sum(g < d for g in gone)) for d in x.spec.dims)
    return place(out, x.spec, dims, x.spec.sizes)
