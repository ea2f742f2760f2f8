"""Operations that rearrange dimensions: they run on the local part, and mostly nothing moves."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from shardtensor._errors import UnsupportedShardedOp
from shardtensor._index import select
from shardtensor._plans import planned
from shardtensor._redistribute import rebalance
from shardtensor._reduce import dimensions, settle
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, unsupported


def integers(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Returns f(1, 2), f((1, 2)) and f([1, 2]) alike as (1, 2)."""
    flat = values[0] if len(values) == 1 and isinstance(values[0], Sequence) else values
    return tuple(int(n) for n in flat)


def view(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Turns `function(x, ...)` into a handler.

    Args:
        function: takes a ShardTensor that is no pending sum.
        names: torch's keywords of its further arguments, in order; "a|b" where versions of the torch function
            differ. Not needed where the function uses the same names.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    spread = bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    known = {
        alias: parameter.name
        for name, parameter in zip(names, parameters, strict=False)
        for alias in name.split("|")
    }

    def handler(
        func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        rest = args[1:]
        first = args[0] if args else kwargs["input"]
        given = {known.get(name, name): value for name, value in kwargs.items() if name != "input"}
        if not isinstance(first, ShardTensor):
            return _as_other(func, first, args, kwargs)
        if first.spec.partial:
            raise unsupported(func.__name__, args, kwargs, "the tensor is a pending sum")
        if spread:
            return function(first, *rest, *given.values())
        return function(first, *rest, **given)

    return handler


def _as_other(func: Callable[..., Any], x: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """expand_as, reshape_as and view_as of a plain tensor: only the shape of the sharded one counts."""
    name = func.__name__
    if name not in ("expand_as", "reshape_as", "view_as"):
        raise unsupported(name, args, kwargs, "a plain tensor with a sharded argument")
    other = kwargs["other"] if "other" in kwargs else args[1]
    return getattr(x, name.removesuffix("_as"))(other.shape)


def permute(x: ShardTensor, *dims: Any) -> ShardTensor:
    """Dimensions in another order, on any layout; nothing moves."""
    order = dimensions(integers(dims), x.ndim)
    goals = tuple(None if dim is None else order.index(dim) for dim in x.spec.dims)
    return place(x.local.permute(order), x.spec, goals, x.spec.sizes)


def transpose(x: ShardTensor, dim0: int, dim1: int) -> ShardTensor:
    """Two dimensions exchanged, on any layout; nothing moves."""
    order = list(range(x.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(x, order)


def matrix_transpose(x: ShardTensor) -> ShardTensor:
    """The last two dimensions exchanged, on any layout; nothing moves."""
    return transpose(x, -2, -1) if x.ndim > 1 else x


def movedim(x: ShardTensor, source: int | Sequence[int], destination: int | Sequence[int]) -> ShardTensor:
    """Dimensions moved to other places, on any layout; nothing moves between ranks."""
    sources, goals = dimensions(source, x.ndim), dimensions(destination, x.ndim)
    rest = iter(d for d in range(x.ndim) if d not in sources)
    placed = dict(zip(goals, sources, strict=True))
    return permute(x, [placed[d] if d in placed else next(rest) for d in range(x.ndim)])


def adjoint(x: ShardTensor) -> ShardTensor:
    """The transposed matrices, conjugated."""
    conjugated: ShardTensor = transpose(x, -2, -1).conj()
    return conjugated


def unsqueeze(x: ShardTensor, dim: int) -> ShardTensor:
    """A new dimension of extent 1, on any layout; nothing moves."""
    (at,) = dimensions(dim, x.ndim + 1)
    dims = tuple(None if d is None else d + (d >= at) for d in x.spec.dims)
    return place(x.local.unsqueeze(at), x.spec, dims, x.spec.sizes)


def squeeze(x: ShardTensor, *dim: Any) -> ShardTensor:
    """Drops dimensions of extent 1; the row of a sharded one goes to every rank (one all_reduce)."""
    chosen = dimensions(integers(dim) if dim else None, x.ndim)
    for d in sorted((d for d in chosen if x.shape[d] == 1), reverse=True):
        sharded = d in x.spec.dims
        x = select(x, d, 0) if sharded else settle(x.local.squeeze(d), x, (d,), False, pending=False)
    return x


def expand(x: ShardTensor, *shape: Any) -> ShardTensor:
    """Repeats dimensions of extent 1 without a copy; a sharded one becomes whole on every rank first."""
    target = list(shape[0].shape if isinstance(shape[0], Tensor | ShardTensor) else integers(shape))
    lead = len(target) - x.ndim
    for dim in x.spec.dims:
        if dim is None:
            continue
        if target[dim + lead] in (-1, x.shape[dim]):
            target[dim + lead] = -1
        elif x.shape[dim] == 1:
            x = unsqueeze(select(x, dim, 0), dim)
        else:
            raise RuntimeError(f"expand: shape {tuple(x.shape)} does not expand to {tuple(target)}")
    dims = tuple(None if dim is None else dim + lead for dim in x.spec.dims)
    return place(x.local.expand(target), x.spec, dims, x.spec.sizes)


def reshape(x: ShardTensor, *shape: Any) -> ShardTensor:
    """A reshape moves rows (one all_to_all) only if some rank's block fills no whole rows of the target."""
    return _reshaped(x, shape[0].shape if isinstance(shape[0], Tensor | ShardTensor) else integers(shape))


def flatten(x: ShardTensor, start_dim: int = 0, end_dim: int = -1) -> ShardTensor:
    """Merges dimensions of which only the outermost is sharded; rows move as in reshape."""
    if x.ndim == 0:
        return _reshaped(x, (1,))
    first, last = dimensions((start_dim, end_dim), x.ndim)
    merged = math.prod(x.shape[first : last + 1])
    return _reshaped(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


def unflatten(x: ShardTensor, dim: int, sizes: Sequence[int]) -> ShardTensor:
    """Divides a dimension; if it is sharded, the first part is, and rows move as in reshape."""
    (at,) = dimensions(dim, x.ndim)
    parts = _filled(tuple(sizes), x.shape[at])
    return _reshaped(x, (*x.shape[:at], *parts, *x.shape[at + 1 :]))


def reinterpret(x: ShardTensor, *shape: Any) -> ShardTensor:
    """Tensor.view: to another shape, or the same bytes as another dtype."""
    dtype = shape[0]
    if not isinstance(dtype, torch.dtype):
        return reshape(x, *shape)
    if dtype.itemsize != x.dtype.itemsize and x.ndim - 1 in x.spec.dims:
        raise unsupported(
            "view", (x,), {}, f"{dtype} changes the extent of the last dimension, a sharded one"
        )
    return place(x.local.view(dtype), x.spec, x.spec.dims, x.spec.sizes)


def _filled(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Replaces the -1 of a shape of `count` elements."""
    known = math.prod([n for n in shape if n != -1])
    filled = tuple(count // max(known, 1) if n == -1 else n for n in shape)
    if math.prod(filled) != count:
        raise ValueError(f"shape {tuple(shape)} does not hold {count} elements")
    return filled


def _reshaped(x: ShardTensor, shape: Sequence[int]) -> ShardTensor:
    target = _filled(shape, x.shape.numel())
    if x.shape.numel() == 0 and tuple(x.shape) != target:  # no rows, so none that a rank could own
        nowhere = (None,) * x.spec.mesh.ndim
        return place(x.local.reshape(target), x.spec, nowhere, nowhere)
    dims: list[int | None] = []
    sizes: list[Sizes | None] = []
    local, part = list(target), x.local
    for m, (dim, extents) in enumerate(zip(x.spec.dims, x.spec.sizes, strict=True)):
        if dim is None or extents is None:
            dims.append(None)
            sizes.append(None)
            continue
        new_dim, new_extents = follow_rows(tuple(x.shape), target, dim, extents)
        if new_dim < 0 or new_dim in dims:
            raise _misfit(x, target, m, dim)
        if new_extents is None:
            fitting = whole_rows(tuple(x.shape), target, dim, new_dim, extents)
            part = rebalance(part, dim, x.spec, m, extents, fitting)
            new_extents = follow_rows(tuple(x.shape), target, dim, fitting)[1] or ()
        dims.append(new_dim)
        sizes.append(new_extents)
        local[new_dim] = new_extents[x.spec.coordinate[m]]
    return place(part.reshape(local), x.spec, tuple(dims), tuple(sizes))


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


@planned
def whole_rows(
    shape: tuple[int, ...], target: tuple[int, ...], dim: int, new_dim: int, sizes: Sizes
) -> Sizes:
    """Returns the nearest sizes with which every rank's block fills whole rows of the target dimension.

    A target row that lies on two ranks goes to the one with most of it.
    """
    inner, new_inner = math.prod(shape[dim + 1 :]), math.prod(target[new_dim + 1 :])
    each = new_inner // math.gcd(inner, new_inner)
    bounds = [(2 * edge + each) // (2 * each) * each for edge in (*offsets(sizes), shape[dim])]
    return tuple(stop - start for start, stop in pairwise(bounds))


def _misfit(x: ShardTensor, target: Sequence[int], m: int, dim: int) -> UnsupportedShardedOp:
    reached = set(accumulate(target, lambda a, b: a * b, initial=1))
    first = max(d for d in range(dim + 1) if math.prod(x.shape[:d]) in reached)
    front = next((d for d in range(first, dim) if x.shape[d] != 1), first)
    reason = f"to {tuple(target)}: dimension {dim} is sharded and not the outermost of those that are merged"
    if front in x.spec.dims:
        return unsupported(
            "reshape", (x,), {}, reason, f"Call .redistribute({moved(x.spec, m, None)}) first."
        )
    return unsupported("reshape", (x,), {}, reason, f"Call .redistribute({moved(x.spec, m, front)}) first.")


def moved(spec: ShardSpec, m: int, dim: int | None) -> str:
    """Returns, for an error message, the placements with mesh dimension m splitting `dim`, or none."""
    dims = [dim if i == m else d for i, d in enumerate(spec.dims)]
    return f"[{', '.join('Replicate()' if d is None else f'Shard({d})' for d in dims)}]"
