"""Neighbourhood attention over sharded rows: every rank fetches the key rows that its queries see."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Labels, Operand, align
from shardtensor._collectives import Interval, fetch_rows, shared
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced, unsupported

_ROWS = 1  # of (B, H, W, heads, d)


def neighborhood_handler(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Runs `func(q, k, v, *, kernel=(kh, kw), row_offset=0, ...)` on row-sharded queries, keys and values.

    `func` works on (B, H, W, heads, d); query row i attends to the kh key rows from
    clamp(i + row_offset - kh // 2, 0, H_k - kh) on, H_k rows of keys in all. A rank with queries [i0, i1)
    fetches the union of these windows and calls `func` on local tensors with the row offset that this
    implies. Batch and heads may be sharded as well. Use it as `register_function_handler(func,
    neighborhood_handler)`.

    Raises:
        UnsupportedShardedOp: columns or channels are sharded, or keys are sharded by rows and queries are
            not.
        ValueError: the kernel has more rows than there are keys.
    """
    extra = inspect.signature(func).bind(*args, **kwargs).arguments
    q, k, v = (extra.pop(name) for name in ("q", "k", "v"))
    kernel, offset = extra["kernel"], extra.pop("row_offset", 0)
    if kernel[0] > k.shape[_ROWS]:
        raise ValueError(f"kernel {tuple(kernel)} has more rows than the {k.shape[_ROWS]} rows of the keys")
    m = _row_mesh_dim(func.__name__, q, k, v)
    query, key, value, sizes = q, k, v, None
    if m is not None:
        sizes = q.spec.sizes[m]
        windows = key_windows(sizes, k.shape[_ROWS], kernel[0], offset)
        here = q.spec.coordinate[m]
        query = place(q.local, q.spec, replaced(q.spec.dims, m, None), replaced(q.spec.sizes, m, None))
        key, value = (_rows_of(x, q.spec, m, tuple(window[:2] for window in windows)) for x in (k, v))
        offset = windows[here][2]
    aligned = align(func.__name__, [query, key, value], [_AXES, _KEY_AXES, _KEY_AXES], _KEY_AXES)
    if {"column", "width", "row", "key"} & set(aligned.labels):
        raise unsupported(func.__name__, (q, k, v), {}, "only rows, heads and batch may be sharded")
    split = [i for i, label in enumerate(aligned.labels) if label is not None or i == m]
    extra = {
        name: shared(x, aligned.spec, split) if isinstance(x, Tensor) else x for name, x in extra.items()
    }
    out = aligned.wrap(_attend(func, *aligned.locals, row_offset=offset, **extra), _AXES)
    if m is None:
        return out
    return place(out.local, out.spec, replaced(out.spec.dims, m, _ROWS), replaced(out.spec.sizes, m, sizes))


_AXES: Labels = ("batch", "row", "column", "head", "width")
_KEY_AXES: Labels = ("batch", "key", "column", "head", "width")


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


def _row_mesh_dim(op: str, q: Operand, k: Operand, v: Operand) -> int | None:
    """Returns the mesh dimension that splits the query rows."""
    found = [
        x.spec.dims.index(_ROWS) if isinstance(x, ShardTensor) and _ROWS in x.spec.dims else None
        for x in (q, k, v)
    ]
    if any(m is not None and m != found[0] for m in found):
        raise unsupported(
            op, (q, k, v), {}, "keys are sharded by rows, so queries must be, over the same mesh dimension"
        )
    return found[0]


def _rows_of(x: Operand, spec: ShardSpec, m: int, wants: tuple[Interval, ...]) -> Operand:
    """Returns the wanted rows of x, no longer marked as sharded over mesh dimension m."""
    start, stop = wants[spec.coordinate[m]]
    if not isinstance(x, ShardTensor):
        return shared(x, spec, [m]).narrow(_ROWS, start, stop - start)
    if x.spec.dims[m] is None:
        local = shared(x.local, spec, [m]).narrow(_ROWS, start, stop - start)
        return place(local, x.spec, x.spec.dims, x.spec.sizes)
    local = fetch_rows(x.local, _ROWS, x.spec, m, tuple((want,) for want in wants))
    return place(local, x.spec, replaced(x.spec.dims, m, None), replaced(x.spec.sizes, m, None))


def _attend(func: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    if q.shape[_ROWS]:
        out: Tensor = func(q, k, v, **options)
        return out
    # A rank without queries attends with one row of zeros, so that its part of the graph exists.
    out = func(F.pad(q, [0, 0] * 3 + [0, 1]), k, v, **options)
    return out.narrow(_ROWS, 0, 0)
