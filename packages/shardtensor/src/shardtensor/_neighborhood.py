"""Neighbourhood attention on a sharded grid: every rank fetches the keys that its queries see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Labels, Operand, align, mesh_dim
from shardtensor._collectives import Interval, Wants, fetch_rows, shared
from shardtensor._index import wrapped
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported

_ROWS, _COLUMNS = 1, 2  # of (B, H, W, heads, d)
_AXES: Labels = ("batch", "row", "column", "head", "width")
_KEY_AXES: Labels = ("batch", "key", "column", "head", "width")


def neighborhood_handler(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Runs `func(q, k, v, *, kernel=(kh, kw), row_offset=0, ...)` on a sharded grid of queries and keys.

    `func` works on (B, H, W, heads, d). Query row i attends to the kh key rows from
    clamp(i + row_offset - kh // 2, 0, H_k - kh) on, H_k rows of keys in all; query column j to the kw columns
    from j - kw // 2 on, around the globe. With an option `poles` other than "clamp" rows go on across the
    poles, turned by half the columns: row -1 is row 0 ("cross") or row 1 ("cross_pole_row").

    A rank fetches the union of its windows and calls `func` on local tensors: with the row offset that this
    implies, and where columns are sharded with kw // 2 more columns of keys on either side, and as many
    queries of zeros, which are cut off again. Rows from across the poles come among the keys, with
    poles="clamp". Rows, columns, batch and heads may be sharded. Use it as
    `register_function_handler(func, neighborhood_handler)`; `func` must pass q, k and v by position to
    `handle_torch_function`.

    Raises:
        UnsupportedShardedOp: channels are sharded, keys are sharded over a grid dimension and queries are
            not, or columns are sharded that do not wrap (`longitude` other than "periodic") or that turn at
            the poles.
        ValueError: the kernel is larger than the grid of keys, the grids do not match, or rows cannot cross
            the poles.
    """
    q, k, v = args
    extra = dict(kwargs)
    kernel, offset = extra["kernel"], extra.pop("row_offset", 0)
    _check(q, k, v, kernel)
    over_rows, over_columns = (_queries_dim(func.__name__, q, k, v, axis) for axis in (_ROWS, _COLUMNS))
    query, key, value, halo = q, k, v, 0
    cut: list[tuple[int, int, Sizes]] = []  # mesh dimensions that alignment does not see
    poles = extra.get("poles", "clamp")
    _check_poles(poles, k, extra.get("longitude", "periodic"))
    if poles != "clamp" and over_columns is not None:
        raise unsupported(
            func.__name__, (q, k, v), {}, "columns that turn at the poles are sharded", _BY_ROWS
        )
    if over_rows is not None:
        sizes, rank = q.spec.sizes[over_rows], q.spec.coordinate[over_rows]
        query = _stripped(query.local, query, over_rows)
        if poles == "clamp":
            windows = key_windows(sizes, k.shape[_ROWS], kernel[0], offset)
            wants: Wants = tuple((window[:2],) for window in windows)
            key, value = (_fetched(x, _ROWS, q.spec, over_rows, wants) for x in (key, value))
            offset = windows[rank][2]
        else:
            wants, beyond = rows_across(sizes, k.shape[_ROWS], kernel[0], offset, poles == "cross_pole_row")
            key, value = (_fetched(x, _ROWS, q.spec, over_rows, wants) for x in (key, value))
            key, value = (_turned(x, *beyond[rank]) for x in (key, value))
            offset, extra["poles"] = kernel[0] // 2, "clamp"
        cut.append((over_rows, _ROWS, sizes))
    if over_columns is not None:
        sizes = q.spec.sizes[over_columns]
        if extra.get("longitude", "periodic") != "periodic":
            raise unsupported(func.__name__, (q, k, v), {}, "columns that do not wrap are sharded", _BY_ROWS)
        halo = kernel[1] // 2 if len(sizes) > 1 else 0
        wants = columns_around(sizes, halo)
        key, value = (_fetched(x, _COLUMNS, q.spec, over_columns, wants) for x in (key, value))
        query = _stripped(_widened(query.local, halo, len(sizes)), query, over_columns)
        cut.append((over_columns, _COLUMNS, sizes))
    aligned = align(func.__name__, [query, key, value], [_AXES, _KEY_AXES, _KEY_AXES], _KEY_AXES)
    if {"column", "width", "row", "key"} & set(aligned.labels):
        raise unsupported(func.__name__, (q, k, v), {}, "channels are sharded", _BY_ROWS)
    split = [m for m, label in enumerate(aligned.labels) if label is not None] + [m for m, *_ in cut]
    extra = {
        name: shared(x, aligned.spec, split) if isinstance(x, Tensor) else x for name, x in extra.items()
    }
    local = _attend(func, *aligned.locals, row_offset=offset, **extra)
    if over_columns is not None:
        local = local.narrow(_COLUMNS, halo, q.spec.local_shape[_COLUMNS])
    out = aligned.wrap(local, _AXES)
    dims, extents = out.spec.dims, out.spec.sizes
    for m, axis, sizes in cut:
        dims, extents = replaced(dims, m, axis), replaced(extents, m, sizes)
    return place(out.local, out.spec, dims, extents) if cut else out


_POLES = ("clamp", "cross", "cross_pole_row")
_BY_ROWS = "Call .redistribute([Shard(1)]) on queries, keys and values to shard the rows."


def _check_poles(poles: str, k: Operand, longitude: str) -> None:
    """Checks what `func` does not see where it gets the rows from across the poles among the keys."""
    if poles not in _POLES:
        raise ValueError(f"poles must be one of {_POLES}, got {poles!r}")
    if poles != "clamp" and (k.shape[_COLUMNS] % 2 or longitude != "periodic"):
        raise ValueError(
            f"poles={poles!r} turns rows by half their columns, which must be even and wrap; got "
            f"{k.shape[_COLUMNS]} columns and longitude={longitude!r}"
        )


def _check(q: Operand, k: Operand, v: Operand, kernel: Sequence[int]) -> None:
    """Checks the global grids; the local ones might fit by accident."""
    if q.shape[_COLUMNS] != k.shape[_COLUMNS] or k.shape != v.shape:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise ValueError(f"keys and values must have one shape and the columns of the queries, got {shapes}")
    for axis, name in ((_ROWS, "rows"), (_COLUMNS, "columns")):
        if kernel[axis - 1] > k.shape[axis]:
            raise ValueError(
                f"kernel {tuple(kernel)} has more {name} than the {k.shape[axis]} {name} of the keys"
            )


@planned
def key_windows(sizes: Sizes, keys: int, kernel: int, offset: int) -> tuple[tuple[int, int, int], ...]:
    """Returns for every rank the key rows [start, stop) that its queries see, and where its first query lies.

    The last is counted from `start`. A rank without queries gets the window of one neighbouring query.
    """
    last_query = sum(sizes) - 1
    windows = []
    for first, rows in zip(offsets(sizes), sizes, strict=True):
        first = min(first, last_query)
        start, end = (
            min(max(i + offset - kernel // 2, 0), keys - kernel) for i in (first, first + max(rows, 1) - 1)
        )
        windows.append((start, end + kernel, first + offset - start))
    return tuple(windows)


@planned
def rows_across(
    sizes: Sizes, keys: int, kernel: int, offset: int, at_pole: bool
) -> tuple[Wants, tuple[tuple[int, int], ...]]:
    """Returns for every rank the key rows that its queries see, also across the poles, and how many of them
    lie beyond the first and the last row.

    A rank without queries gets the window of one neighbouring query.
    """
    last_query, reach, wants, beyond = sum(sizes) - 1, kernel // 2, [], []
    for first, rows in zip(offsets(sizes), sizes, strict=True):
        start = min(first, last_query) + offset - reach
        stop = start + max(rows, 1) + 2 * reach
        north, south = (tuple(range(start, 0)), tuple(range(keys, stop)))
        mirrored = [at_pole - 1 - row for row in north], [2 * keys - 1 - at_pole - row for row in south]
        before, after = (tuple((row, row + 1) for row in side) for side in mirrored)
        wants.append((*before, (max(start, 0), min(stop, keys)), *after))
        beyond.append((len(north), len(south)))
    return tuple(wants), tuple(beyond)


@planned
def columns_around(sizes: Sizes, halo: int) -> Wants:
    """Returns for every rank its columns and `halo` more on both sides, around the globe.

    A rank without columns gets those around one.
    """
    return tuple(
        wrapped(first - halo, first + max(columns, 1) + halo, sum(sizes))
        for first, columns in zip(offsets(sizes), sizes, strict=True)
    )


def _queries_dim(op: str, q: Operand, k: Operand, v: Operand, axis: int) -> int | None:
    """Returns the mesh dimension that splits this axis of the queries."""
    found = [mesh_dim(x, axis) for x in (q, k, v)]
    if any(m is not None and m != found[0] for m in found):
        raise unsupported(
            op,
            (q, k, v),
            {},
            f"keys are sharded over dimension {axis}, so queries must be, over the same mesh dimension",
        )
    return found[0]


def _stripped(local: Tensor, x: ShardTensor, m: int) -> ShardTensor:
    """Wraps a local part of x that is no longer marked as sharded over mesh dimension m."""
    return place(local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))


def _fetched(x: Operand, axis: int, spec: ShardSpec, m: int, wants: Wants) -> Operand:
    """Returns the wanted part of x along an axis, no longer marked as sharded over mesh dimension m."""
    mine = wants[spec.coordinate[m]]
    if not isinstance(x, ShardTensor):
        return _taken(shared(x, spec, [m]), axis, mine)
    if x.spec.dims[m] is None:
        return _stripped(_taken(shared(x.local, spec, [m]), axis, mine), x, m)
    return _stripped(fetch_rows(x.local, axis, x.spec, m, wants), x, m)


def _turned(x: Operand, north: int, south: int) -> Operand:
    """Turns the rows beyond the poles by half the columns."""
    if isinstance(x, ShardTensor):
        return ShardTensor(_turned_rows(x.local, north, south), x.spec)
    return _turned_rows(x, north, south)


def _turned_rows(x: Tensor, north: int, south: int) -> Tensor:
    parts = x.split([north, x.shape[_ROWS] - north - south, south], _ROWS)
    half = x.shape[_COLUMNS] // 2
    return torch.cat([parts[0].roll(half, _COLUMNS), parts[1], parts[2].roll(half, _COLUMNS)], _ROWS)


def _taken(x: Tensor, axis: int, intervals: tuple[Interval, ...]) -> Tensor:
    parts = [x.narrow(axis, start, stop - start) for start, stop in intervals]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _widened(q: Tensor, halo: int, ranks: int) -> Tensor:
    """Adds queries of zeros to the columns, and one where there would be none."""
    missing = int(q.shape[_COLUMNS] == 0 and ranks > 1)
    return F.pad(q, [0, 0, 0, 0, halo, halo + missing]) if halo or missing else q


def _attend(func: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    if q.shape[_ROWS]:
        out: Tensor = func(q, k, v, **options)
        return out
    # A rank without queries attends with one row of zeros, so that its part of the graph exists.
    out = func(F.pad(q, [0, 0] * 3 + [0, 1]), k, v, **options)
    return out.narrow(_ROWS, 0, 0)
