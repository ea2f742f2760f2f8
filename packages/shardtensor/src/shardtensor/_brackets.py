"""x[...] and x[...] = value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shardtensor._align import align, broadcast_axes
from shardtensor._index import select, slice_
from shardtensor._put import put, trimmed
from shardtensor._reduce import refuse_in_graph
from shardtensor._take import take, take_rows
from shardtensor._tensor import ShardTensor, unsupported

_MASKS = "Use torch.where(mask, value, x), x.masked_fill(mask, value), or x[mask] = value."


def getitem(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """x[...] with integers, slices, None, Ellipsis, lists and tensors.

    Slices of a sharded dimension stay on their ranks; an integer or an index tensor costs one collective.
    A mask may cover dimensions that are not sharded. For a plain tensor write plain[index, ...]: torch itself
    warns about plain[index] with a sharded index of less than 32 rows, which it looks into.

    Raises:
        UnsupportedShardedOp: a mask covers a sharded dimension: the rows of each rank would depend on data.
    """
    x, index = args
    if any(isinstance(y, ShardTensor) and y.spec.partial for y in (x, index)):
        raise unsupported("indexing", args, kwargs, "the tensor is a pending sum")
    dim = 0
    picks: dict[int, Any] = {}
    for item in items_of(x, index):
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            x = _sliced(x, dim, item)
        elif isinstance(item, int):
            x = select(x, dim, item) if isinstance(x, ShardTensor) else x.select(dim, item)
            continue
        elif item.dtype == torch.bool:
            _check_mask(x, dim, item)
            rows = item.nonzero(as_tuple=True)
            picks |= {dim + i: row for i, row in enumerate(rows)}
            dim += len(rows) - 1
        elif item.ndim == 0:
            x = take("indexing", x, {dim: item})
            continue
        else:
            picks[dim] = item
        dim += 1
    if len(picks) == 1 and isinstance(x, ShardTensor):
        ((dim, item),) = picks.items()
        rows = _known(index)
        if rows is not None and dim in x.spec.dims:
            return take_rows(x, dim, rows)
    return take("indexing", x, picks) if picks else x


def _sliced(x: Any, dim: int, item: slice) -> Any:
    if item == slice(None):
        return x
    return slice_(x, dim, item) if isinstance(x, ShardTensor) else x[(slice(None),) * dim + (item,)]


def _known(index: Any) -> tuple[int, ...] | None:
    """Returns the rows of the one flat list or range in an index, if they are numbers of Python's."""
    for item in index if isinstance(index, tuple) else (index,):
        if isinstance(item, list | range) and all(type(row) is int for row in item):
            return tuple(item)
    return None


def items_of(x: Any, index: Any) -> list[Any]:
    """Returns the items of an index, one for each None and each group of dimensions.

    They are None, slices, integers, integer tensors and masks; the Ellipsis is filled in, lists are tensors.
    """
    items = [_item(x, item) for item in (index if isinstance(index, tuple) else (index,))]
    used = sum(_width(item) for item in items)
    if used > x.ndim or sum(item is Ellipsis for item in items) > 1:
        raise IndexError(f"an index of {used} dimensions does not fit a tensor of {x.ndim}")
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[at : at + 1] = [slice(None)] * (x.ndim - used)
    return items


def _item(x: Any, item: Any) -> Any:
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, bool) or (isinstance(item, Tensor | ShardTensor) and _is_flag(item)):
        raise unsupported("indexing", (x,), {}, "with a single truth value or a uint8 mask", _MASKS)
    if isinstance(item, Tensor | ShardTensor):
        return item
    if isinstance(item, list | range) or getattr(item, "ndim", 0) > 0:
        made = torch.as_tensor(list(item) if isinstance(item, range) else item, device=x.device)
        return made.long() if made.numel() == 0 else made
    return int(item)


def _is_flag(item: Tensor | ShardTensor) -> bool:
    return item.dtype == torch.uint8 or (item.dtype == torch.bool and item.ndim == 0)


def _width(item: Any) -> int:
    """Returns how many dimensions of the tensor an item covers."""
    if item is None or item is Ellipsis:
        return 0
    mask = isinstance(item, Tensor | ShardTensor) and item.dtype == torch.bool
    return item.ndim if mask else 1


def _check_mask(x: Any, dim: int, mask: Any) -> None:
    covered = range(dim, dim + mask.ndim)
    dims = x.spec.dims if isinstance(x, ShardTensor) else ()
    if isinstance(mask, ShardTensor) or any(d in covered for d in dims):
        raise unsupported("indexing", (x, mask), {}, "the extent of x[mask] would depend on data", _MASKS)
    refuse_in_graph("indexing", (x, mask), "the extent of x[mask]", _MASKS)
    _check_extents(x, dim, mask)


def _check_extents(x: Any, dim: int, mask: Any) -> None:
    if tuple(x.shape[dim : dim + mask.ndim]) != tuple(mask.shape):
        raise IndexError(f"a mask of shape {tuple(mask.shape)} at {dim} does not fit {tuple(x.shape)}")


def setitem(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """x[...] = value, in place on the local part; nothing moves if the value is plain or lies like x.

    Masks take a value that does not depend on how many elements they choose.
    """
    x, index, value = args
    if not isinstance(x, ShardTensor):
        raise unsupported("assignment", args, kwargs, "a plain tensor can not take a sharded value or index")
    if x.spec.partial:
        raise unsupported("assignment", args, kwargs, "the tensor is a pending sum")
    items = items_of(x, index)
    tensors = [item for item in items if isinstance(item, Tensor | ShardTensor)]
    if not tensors:
        return _assign(x, items, value)
    if any(item is None or isinstance(item, int) for item in items):
        raise unsupported("assignment", args, kwargs, "index tensors together with None or integers", _STEPS)
    masks = [item for item in tensors if item.dtype == torch.bool]
    y, dim, picks = x, 0, {}
    for item in items:
        if isinstance(item, slice):
            y = _view(y, dim, item)
        else:
            picks[dim] = item
        dim += _width(item)
    if masks:
        if len(tensors) > 1:
            raise unsupported("assignment", args, kwargs, "a mask together with another index", _MASKS)
        ((dim, mask),) = picks.items()
        return _fill(y, dim, mask, value)
    put("assignment", y, picks, value, in_place=True)
    return None


_STEPS = "Assign in two steps: y = x[0]; y[index] = value writes to x if dimension 0 is not sharded."


def _view(x: ShardTensor, dim: int, item: slice) -> ShardTensor:
    return x if item == slice(None) else slice_(x, dim, item)


def _assign(x: ShardTensor, items: Sequence[Any], value: Any) -> None:
    """Writes to a box of slices; an integer is a slice of one row."""
    y, dim = x, 0
    for item in items:
        if isinstance(item, int):
            if not -x.shape[dim] <= item < x.shape[dim]:
                raise IndexError(f"index {item} is out of range for dimension {dim} of {x.shape[dim]} rows")
            y = _view(y, dim, slice(item % x.shape[dim], item % x.shape[dim] + 1))
        elif item is not None:
            y = _view(y, dim, item)
        dim += item is not None
    if not isinstance(value, Tensor | ShardTensor):
        y.local.fill_(value)
        return
    ndim = sum(not isinstance(item, int) for item in items)
    value = trimmed(value, ndim)
    while value.ndim < ndim:
        value = value.unsqueeze(0)
    at = 0
    for item in items:
        if isinstance(item, int):
            value = value.unsqueeze(at)
        elif item is None:
            if value.shape[at] != 1:
                raise RuntimeError(f"a value of shape {tuple(value.shape)} does not fit the index")
            value = value.squeeze(at)
            continue
        at += 1
    if value.ndim != y.ndim or any(n not in (1, goal) for n, goal in zip(value.shape, y.shape, strict=True)):
        raise RuntimeError(f"a value of shape {tuple(value.shape)} does not fit {tuple(y.shape)}")
    (local,) = _own_parts(y, value)
    y.local.copy_(local)


def _own_parts(y: ShardTensor, *operands: Any) -> list[Tensor]:
    """Returns the parts of a value and a mask that this rank writes to y."""
    aligned = align("assignment", [y, *operands], broadcast_axes([x.shape for x in (y, *operands)]))
    if any(label is not None and dim is None for label, dim in zip(aligned.labels, y.spec.dims, strict=True)):
        reason = "the value or the mask is sharded over a mesh dimension that does not split the tensor"
        raise unsupported("assignment", (y, *operands), {}, reason)
    return list(aligned.locals[1:])


def _fill(y: ShardTensor, dim: int, mask: Any, value: Any) -> None:
    """Writes one value, or one row of values, wherever the mask is true."""
    rest = y.ndim - dim - mask.ndim
    _check_extents(y, dim, mask)
    mask = mask.reshape(*mask.shape, *(1,) * rest)
    if not isinstance(value, Tensor | ShardTensor):
        y.local.masked_fill_(_own_parts(y, mask)[0], value)
        return
    value = trimmed(value, rest)
    if value.ndim > rest:
        reason = "the value would have as many rows as the mask chooses"
        raise unsupported("assignment", (y, mask, value), {}, reason, _MASKS)
    if any(n not in (1, goal) for n, goal in zip(reversed(value.shape), reversed(y.shape), strict=False)):
        raise RuntimeError(f"a value of shape {tuple(value.shape)} does not fit {tuple(y.shape)}")
    here, new = _own_parts(y, mask, value)
    y.local.copy_(torch.where(here, new.to(y.dtype), y.local))
