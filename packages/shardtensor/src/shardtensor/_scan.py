"""Running sums and extrema, and differences, along a sharded dimension.

A scan over rows continues from the totals of the ranks before: every rank fetches these as if they were rows,
puts them before its own, scans, and drops them again. One collective forward, one backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows
from shardtensor._index import slice_
from shardtensor._moments import wide
from shardtensor._plans import planned
from shardtensor._reduce import dimensions, result, splitting, sum_
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, place, replaced

Scan = Callable[..., Tensor]


@planned
def _plan_totals(sizes: Sizes) -> tuple[Sizes, Wants, Sizes]:
    """Returns how many totals each rank has (one, or none without rows), those it wants, and their number."""
    totals = tuple(int(rows > 0) for rows in sizes)
    before = offsets(totals)
    return totals, tuple(((0, n),) if n else () for n in before), before


def _before(total: Tensor, dim: int, x: ShardTensor, m: int) -> Tensor:
    """Returns the totals of the ranks before this one, as rows."""
    totals, wants, _ = _plan_totals(x.spec.sizes[m] or ())
    return fetch_rows(total, dim, x.spec, m, wants, totals)


def _scan(x: ShardTensor, dim: int, dtype: torch.dtype | None, scan: Scan, total: Scan) -> ShardTensor:
    (dim,) = dimensions(dim, x.ndim)
    local = x.local if dtype is None else x.local.to(dtype)
    split = splitting(x, (dim,))
    if not split:
        return place(scan(local, dim), x.spec, x.spec.dims, x.spec.sizes)
    kind = torch.int64 if not (local.is_floating_point() or local.is_complex()) else local.dtype
    local = local.to(wide(kind))
    mine = total(local, dim).unsqueeze(dim) if local.shape[dim] else local
    first = _before(mine, dim, x, split[0])
    out = scan(torch.cat([first, local], dim), dim).narrow(dim, first.shape[dim], local.shape[dim])
    return place(out.to(kind), x.spec, x.spec.dims, x.spec.sizes)


def cumsum(x: ShardTensor, dim: int, *, dtype: torch.dtype | None = None) -> ShardTensor:
    """Running sum; one exchange of the ranks' sums along a sharded dimension, and one backward."""
    return _scan(x, dim, dtype, torch.cumsum, torch.sum)


def cumprod(x: ShardTensor, dim: int, *, dtype: torch.dtype | None = None) -> ShardTensor:
    """Running product; one exchange of the ranks' products along a sharded dimension, and one backward."""
    return _scan(x, dim, dtype, torch.cumprod, torch.prod)


def logcumsumexp(x: ShardTensor, dim: int) -> ShardTensor:
    """log of the running sum of exp(x); one exchange along a sharded dimension, and one backward."""
    return _scan(x, dim, None, torch.logcumsumexp, torch.logsumexp)


def cummax(x: ShardTensor, dim: int) -> Any:
    """Running maximum and its index; one exchange along a sharded dimension, and one backward."""
    return result("cummax", _running_extremum(x, dim, torch.cummax))


def cummin(x: ShardTensor, dim: int) -> Any:
    """Running minimum and its index; one exchange along a sharded dimension, and one backward."""
    return result("cummin", _running_extremum(x, dim, torch.cummin))


def _running_extremum(x: ShardTensor, dim: int, scan: Callable[..., Any]) -> tuple[ShardTensor, ShardTensor]:
    """The totals are the last value and its index; of equals torch names the latest, as here."""
    (dim,) = dimensions(dim, x.ndim)
    split = splitting(x, (dim,))
    if not split:
        values, indices = scan(x.local, dim)
        return ShardTensor(values, x.spec), ShardTensor(indices, x.spec)
    m, rows = split[0], x.local.shape[dim]
    kind = torch.float64 if x.local.is_floating_point() else torch.int64  # holds the value and the index
    start = offsets(x.spec.sizes[m] or ())[x.spec.coordinate[m]]
    shape = [rows if d == dim else 1 for d in range(x.ndim)]
    own = torch.arange(start, start + rows, device=x.local.device).view(shape).expand(x.local.shape)
    if rows:
        value, at = (part.narrow(dim, rows - 1, 1) for part in scan(x.local, dim))
        mine = torch.stack([value.to(kind), (at + start).to(kind)])
    else:
        mine = torch.stack([x.local.to(kind), own.to(kind)])
    values, indices = _before(mine, dim + 1, x, m).unbind()
    first = values.shape[dim]
    found, at = scan(torch.cat([values.to(x.dtype), x.local], dim), dim)
    indices = torch.cat([indices.detach().long(), own], dim).gather(dim, at)
    return tuple(  # type: ignore[return-value]
        ShardTensor(part.narrow(dim, first, rows), x.spec) for part in (found, indices)
    )


@planned
def _plan_diff(sizes: Sizes, n: int) -> tuple[Sizes, Wants]:
    """Output j reads rows j ... j + n and belongs to the owner of row j."""
    outputs = max(sum(sizes) - n, 0)
    counts = tuple(max(min(o + rows, outputs) - o, 0) for o, rows in zip(offsets(sizes), sizes, strict=True))
    wants: Wants = tuple(
        ((o, o + count + n),) if count else () for o, count in zip(offsets(sizes), counts, strict=True)
    )
    return counts, wants


def diff(x: ShardTensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> ShardTensor:
    """Differences of neighbouring rows; a rank fetches the n rows after its own."""
    (dim,) = dimensions(dim, x.ndim)
    ends = [prepend, x, append]
    if prepend is not None or append is not None:
        joined: Any = torch.cat([part for part in ends if part is not None], dim)
        return diff(joined, n, dim)
    split = splitting(x, (dim,))
    if not split:
        return place(x.local.diff(n, dim), x.spec, x.spec.dims, x.spec.sizes)
    m = split[0]
    counts, wants = _plan_diff(x.spec.sizes[m] or (), n)
    rows = fetch_rows(x.local, dim, x.spec, m, wants)
    out = rows.diff(n, dim) if rows.shape[dim] else rows
    return place(out, x.spec, x.spec.dims, replaced(x.spec.sizes, m, counts))


def trapezoid(y: ShardTensor, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> ShardTensor:
    """Integral by the trapezoidal rule with spacing dx, or over the points x."""
    (dim,) = dimensions(dim, y.ndim)
    left, right = slice_(y, dim, slice(0, y.shape[dim] - 1)), slice_(y, dim, slice(1, y.shape[dim]))
    if x is None:
        return sum_((left + right) * (dx / 2), dim)
    if x.ndim == 1:
        x = x.reshape(-1, *[1] * (y.ndim - 1 - dim))
    return sum_((left + right) * x.diff(dim=dim - y.ndim) / 2, dim)
