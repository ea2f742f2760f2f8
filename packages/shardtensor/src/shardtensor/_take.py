"""Reading at index tensors: rows of a sharded dimension are read by their owners, then exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Label, Labels, Operand, align, broadcast_shape, mesh_dim
from shardtensor._collectives import Wants, fetch_rows, gather, reduce_rows, total
from shardtensor._index import slice_
from shardtensor._plans import planned
from shardtensor._pointwise import pointwise
from shardtensor._reduce import amax, dimensions
from shardtensor._spec import Sizes, chunk_sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported
from shardtensor._window import fill_empty


def take(op: str, x: Any, picks: Mapping[int, Operand], *, negative: bool = True) -> ShardTensor:
    """x[..., index, ...]: reads at index tensors that broadcast, and places the result as torch does.

    Where no indexed dimension is sharded, every rank reads its own part. Where one is, every rank reads the
    rows that it owns and puts zeros elsewhere; one exchange adds these and splits the longest dimension of
    the index (or the one that the index splits already) over the same mesh dimension. That sends as much as
    the whole result from every rank: the price of an index that only the device knows. `take_rows` is for
    rows known to Python.

    Args:
        op: name of the operation, for errors.
        x: what is read.
        picks: for every indexed dimension an integer tensor, the same on every rank or sharded.
        negative: whether negative indices count from the end; else they are out of range.

    Raises:
        IndexError: an index is out of range, see `check_range`.
        UnsupportedShardedOp: an index is a mask, or splits another axis over a mesh dimension than x does.
    """
    dims = sorted(picks)
    labels, kept, at = result_axes(x.ndim, picks)
    count = len(labels) - len(kept)
    owners = [m for m, d in enumerate(x.spec.dims) if d in picks] if isinstance(x, ShardTensor) else []
    shape = broadcast_shape(*[picks[d].shape for d in dims])
    whole: list[Operand] = [picks[d] for d in dims]
    goals = [_goal(op, x, whole, shape, m, i == 0) for i, m in enumerate(owners)]
    extents = tuple(x.shape)
    starts = {d: x.spec.starts[m] for m, d in enumerate(x.spec.dims) if m in owners} if owners else {}
    for m in owners:
        x, whole = own_part(x, m), [_whole(index, m) for index in whole]
    axes: list[Labels] = [tuple(("row", d) for d in range(x.ndim))]
    axes += [tuple(range(count - index.ndim, count)) for index in whole]
    aligned = align(op, [x, *whole], axes)
    local, *indices = aligned.locals
    mine: Tensor | None = None
    for i, d in enumerate(dims):
        if d in starts:
            indices[i], owned = own_index(op, indices[i], starts[d], local.shape[d], extents[d], negative)
            local, _ = fill_empty(local, [d])  # so that there is something to read
            mine = owned if mine is None else mine & owned
        elif not negative:
            check_range(op, indices[i], 0, extents[d])
    out = local[tuple(indices[dims.index(d)] if d in dims else slice(None) for d in range(x.ndim))]
    if mine is not None:
        out = out.masked_fill(~mine.reshape(mine.shape + (1,) * (len(kept) - at)), 0)
    result = aligned.wrap(out, labels)
    for m, goal in zip(owners, goals, strict=True):
        result = _settled(result, m, None if goal is None else goal[0] + at, goal and goal[1])
    return result


def result_axes(ndim: int, picks: Mapping[int, Operand]) -> tuple[Labels, list[Label], int]:
    """Returns the labels of x[...], those that are dimensions of x, and where the index dimensions stand."""
    dims = sorted(picks)
    adjacent = dims[-1] - dims[0] + 1 == len(dims)
    at = dims[0] if adjacent else 0
    kept: list[Label] = [("row", d) for d in range(ndim) if d not in picks]
    count = max(index.ndim for index in picks.values())
    return (*kept[:at], *range(count), *kept[at:]), kept, at


def _goal(
    op: str, x: Any, indices: Sequence[Any], shape: Sequence[int], m: int, first: bool
) -> tuple[int, Sizes] | None:
    """Returns the index dimension that mesh dimension m shall split, and how; None to replicate."""
    taken = []
    for index in indices:
        for other, dim in enumerate(index.spec.dims if isinstance(index, ShardTensor) else ()):
            if dim is None:
                continue
            d = dim + len(shape) - index.ndim
            if other == m:
                if index.shape[dim] != shape[d]:
                    raise unsupported(op, (x, index), {}, "the index is sharded where it is broadcast")
                return d, index.spec.sizes[m] or ()
            taken.append(d)
    free = [d for d in range(len(shape)) if d not in taken]
    if not free or not first:
        return None
    goal = max(free, key=lambda d: shape[d])
    return goal, chunk_sizes(shape[goal], x.spec.mesh.size(m))


def own_part(x: ShardTensor, m: int) -> ShardTensor:
    """Returns the own rows, no longer marked as sharded over m."""
    return place(x.local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))


def _whole(x: Any, m: int) -> Any:
    """Returns an index with all rows that mesh dimension m splits."""
    if not isinstance(x, ShardTensor) or x.spec.dims[m] is None:
        return x
    local = gather(x.local, x.spec.dims[m] or 0, x.spec, m, x.spec.sizes[m] or ())
    return place(local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))


def _settled(x: ShardTensor, m: int, dim: int | None, sizes: Sizes | None) -> ShardTensor:
    """Adds the terms of the ranks of mesh dimension m and splits `dim` over it."""
    if x.dtype == torch.bool:
        added = _settled(ShardTensor(x.local.to(torch.uint8), x.spec), m, dim, sizes)
        return ShardTensor(added.local.to(torch.bool), added.spec)
    if dim is None or sizes is None:
        return ShardTensor(total(x.local, x.spec, [m]), x.spec)
    local = reduce_rows(x.local, dim, x.spec, m, sizes)
    return place(local, x.spec, replaced(x.spec.dims, m, dim), replaced(x.spec.sizes, m, sizes))


def own_index(
    op: str, index: Tensor, start: int, rows: int, extent: int, negative: bool
) -> tuple[Tensor, Tensor]:
    """Returns where global rows lie among the own ones, and which of them do.

    Args:
        op: name of the operation, for errors.
        index: global rows.
        start: the first own row.
        rows: number of own rows.
        extent: number of global rows.
        negative: whether negative rows count from the end; else they are out of range.
    """
    check_range(op, index, -extent if negative else 0, extent)
    here = torch.where(index < 0, index + extent, index) - start
    return here.clamp(0, max(rows - 1, 0)), (here >= 0) & (here < rows)


_RUNTIME_ERRORS = ("gather", "take_along_dim", "index_add", "scatter", "scatter_add", "scatter_reduce")


def check_range(op: str, index: Tensor, low: int, high: int) -> None:
    """Raises torch's kind of error unless low <= index < high everywhere.

    On an accelerator, and in a compiled graph, an assertion on the device stands for it, as in torch: waiting
    for the answer would stop the host.
    """
    known = ((index >= low) & (index < high)).all()
    text = f"{op}: index out of range [{low}, {high})"
    if torch.compiler.is_compiling() or known.device.type != "cpu":
        torch._assert_async(known, text)
    elif not known:
        raise RuntimeError(text) if op in _RUNTIME_ERRORS else IndexError(text)


def take_rows(x: ShardTensor, dim: int, rows: tuple[int, ...]) -> ShardTensor:
    """Reads rows that Python knows: one all_to_all brings just them, split as by torch.chunk."""
    extent = x.shape[dim]
    if any(not -extent <= row < extent for row in rows):
        raise IndexError(f"an index is out of range for dimension {dim} of extent {extent}")
    m = x.spec.dims.index(dim)
    sizes, wants = plan_rows(rows, extent, x.spec.mesh.size(m))
    local = fetch_rows(x.local, dim, x.spec, m, wants)
    return place(local, x.spec, x.spec.dims, replaced(x.spec.sizes, m, sizes))


@planned
def plan_rows(rows: tuple[int, ...], extent: int, ranks: int) -> tuple[Sizes, Wants]:
    """Returns rows per rank, and for every rank its share of `rows` as few intervals."""
    sizes = chunk_sizes(len(rows), ranks)
    wants = []
    for start, count in zip(offsets(sizes), sizes, strict=True):
        runs: list[tuple[int, int]] = []
        for row in rows[start : start + count]:
            low = row % extent
            if runs and runs[-1][1] == low:
                runs[-1] = (runs[-1][0], low + 1)
            else:
                runs.append((low, low + 1))
        wants.append(tuple(runs))
    return sizes, tuple(wants)


def index_select(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.index_select, on any layout: one collective if `dim` is sharded, else none."""
    named = dict(zip(("input", "dim", "index"), args, strict=False)) | dict(kwargs)
    x, index = named["input"], named["index"]
    (dim,) = dimensions(named["dim"], x.ndim)
    if index.ndim > 1 or named.get("out") is not None:
        raise unsupported(func.__name__, args, kwargs, "needs an index of one dimension, and no out=")
    return take(func.__name__, x, {dim: index.reshape(1) if index.ndim == 0 else index}, negative=False)


def take_flat(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.take: reads the flattened tensor."""
    named = dict(zip(("input", "index"), args, strict=False)) | dict(kwargs)
    return take(func.__name__, named["input"].reshape(-1), {0: named["index"]})


def gather_along(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.gather: out[i, j] = x[index[i, j], j] for dim 0."""
    named = dict(zip(("input", "dim", "index"), args, strict=False)) | dict(kwargs)
    if named.get("sparse_grad") or named.get("out") is not None:
        raise unsupported(func.__name__, args, kwargs, "sparse_grad= and out= are not supported")
    (dim,) = dimensions(named["dim"], named["input"].ndim)
    return _gather(func.__name__, named["input"], dim, named["index"])


def take_along_dim(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.take_along_dim: gather with operands that broadcast; negative indices count from the end."""
    named = dict(zip(("input", "indices", "dim"), args, strict=False)) | dict(kwargs)
    x, index = named["input"], named["indices"]
    if named.get("dim") is None:
        return _gather(func.__name__, x.reshape(-1), 0, index.reshape(-1))
    (dim,) = dimensions(named["dim"], x.ndim)
    shape = list(torch.broadcast_shapes(*([*y.shape[:dim], 1, *y.shape[dim + 1 :]] for y in (x, index))))
    x, index = (y.expand(*shape[:dim], y.shape[dim], *shape[dim + 1 :]) for y in (x, index))
    return _gather(func.__name__, x, dim, index, negative=True)


def _gather(op: str, x: Any, dim: int, index: Any, *, negative: bool = False) -> ShardTensor:
    if x.ndim != index.ndim or any(index.shape[d] > x.shape[d] for d in range(x.ndim) if d != dim):
        raise RuntimeError(f"{op}: an index of shape {tuple(index.shape)} does not fit {tuple(x.shape)}")
    for d in range(x.ndim):
        if d != dim and index.shape[d] != x.shape[d]:
            part = slice(0, index.shape[d])
            x = slice_(x, d, part) if isinstance(x, ShardTensor) else x.narrow(d, 0, index.shape[d])
    m = mesh_dim(x, dim)
    source: Labels = tuple("row" if d == dim else d for d in range(x.ndim))
    target: Labels = tuple("pick" if d == dim else d for d in range(x.ndim))
    if m is None:
        aligned = align(op, [x, index], [source, target], target)
        local, here = aligned.locals
        read = torch.take_along_dim(local, here, dim) if negative else local.gather(dim, here)
        return aligned.wrap(read, target)
    goal = _goal(op, x, [index], index.shape, m, True)
    if goal is None or goal[0] != dim:
        split = isinstance(index, ShardTensor) and index.spec.dims[m] is not None
        if split:
            raise unsupported(op, (x, index), {}, "x and the index split different dimensions")
        goal = dim, chunk_sizes(index.shape[dim], x.spec.mesh.size(m))
    extent, start = x.shape[dim], x.spec.starts[m]
    aligned = align(op, [own_part(x, m), _whole(index, m)], [source, target], target)
    local, here = aligned.locals
    here, mine = own_index(op, here, start, local.shape[dim], extent, negative)
    local, _ = fill_empty(local, [dim])
    out = aligned.wrap(local.gather(dim, here).masked_fill(~mine, 0), target)
    return _settled(out, m, dim, goal[1])


def embedding(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Rows of a table at sharded indices, or of a sharded table; the gradient of a plain table is summed."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    index, table, padding = named["input"], named["weight"], named.get("padding_idx")
    if named.get("max_norm") is not None or named.get("scale_grad_by_freq") or named.get("sparse"):
        reason = "max_norm, scale_grad_by_freq and sparse need all indices at once"
        raise unsupported(func.__name__, args, kwargs, reason)
    if isinstance(table, ShardTensor) and 0 in table.spec.dims:
        found = take("embedding", table, {0: index}, negative=False)
        if padding is None:
            return found
        count = table.shape[0]
        if not -count <= padding < count:
            raise ValueError(f"padding_idx {padding} is no row of a table of {count}")
        unused = (index == padding % count).unsqueeze(-1)
        return pointwise(torch.where, (), (unused, found.detach(), found), {})
    axes: list[Labels] = [tuple(range(index.ndim)), ("row", "width")]
    aligned = align("embedding", [index, table], axes)
    rows, weight = aligned.locals
    out = F.embedding(rows, weight, padding)
    return aligned.wrap(out, (*axes[0], "width"))


def one_hot(x: ShardTensor, num_classes: int = -1) -> ShardTensor:
    """F.one_hot; without num_classes the largest index is exchanged first (one collective)."""
    if num_classes < 0:
        if torch.compiler.is_compiling():
            reason = "the number of classes would depend on the largest index"
            raise unsupported("one_hot", (x,), {}, reason, "Give num_classes.")
        if x.shape.numel() == 0:
            raise RuntimeError("one_hot: needs num_classes where there is no element")
        num_classes = int(amax(x).local) + 1
    return place(F.one_hot(x.local, num_classes), x.spec, x.spec.dims, x.spec.sizes)
