"""Padding, along sharded dimensions and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._collectives import Wants, fetch_rows, plan_fetch
from shardtensor._index import slice_, wrapped
from shardtensor._plans import planned
from shardtensor._spec import ShardSpec, Sizes, offsets
from shardtensor._tensor import ShardTensor, place, unsupported
from shardtensor._wire import current

Rows: TypeAlias = tuple[tuple[int, int], ...]


def pad(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """F.pad: along a sharded dimension only the ranks that own the edges grow.

    Circular padding fetches a halo for every rank, so that a convolution that follows sends nothing.
    """
    named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | dict(kwargs)
    widths, mode = named["pad"], named.get("mode", "constant")
    x: ShardTensor = named["input"]
    if x.spec.partial:
        raise unsupported("pad", args, kwargs, "the tensor is a pending sum")
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise ValueError(f"mode must be constant, reflect, replicate or circular, got {mode!r}")
    rims = {x.ndim - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    if mode == "circular" and not torch.compiler.is_compiling():
        return _pad_circular(x, rims)
    inner = [0 if x.ndim - 1 - i // 2 in x.spec.dims else n for i, n in enumerate(widths)]
    if mode == "constant" and any(inner):
        x = place(F.pad(x.local, inner, value=named.get("value")), x.spec, x.spec.dims, x.spec.sizes)
    for dim, (before, after) in rims.items():
        if (before, after) != (0, 0) and (dim in x.spec.dims or mode != "constant"):
            x = pad_dimension(x, dim, before, after, mode, named.get("value") or 0.0)
    return x


class Around:
    """Rows of neighbours that circular padding fetched, for the convolution that follows it.

    It serves only the very next operation, so that nothing can have changed the padded tensor, and so that
    all ranks agree whether it serves. (Under torch.compile padding and convolution fetch separately.)

    Attributes:
        rows: {mesh dimension: rows [start, stop) of the padded tensor that every rank has}.
    """

    __slots__ = ("_count", "_dims", "_local", "_ranks", "_version", "_wide", "rows")

    def __init__(self, wide: Tensor, local: Tensor, spec: ShardSpec, rows: Mapping[int, Rows]) -> None:
        self._wide, self._local, self._version, self._count = wide, local, _version(local), current.count
        self._dims, self._ranks, self.rows = spec.dims, spec.coordinate, rows

    def serves(self, local: Tensor, wants: Mapping[int, Wants]) -> bool:
        """Whether this operation follows the padding, whose result is still `local`, and rows suffice."""
        return (
            current.count == self._count + 1
            and local is self._local
            and _version(local) == self._version
            and all(m in wants and _covers(rows, wants[m]) for m, rows in self.rows.items())
        )

    def cut(self, wants: Mapping[int, Wants]) -> Tensor:
        """Returns the rows that this rank wants, along the mesh dimensions of `rows`."""
        wide = self._wide
        for m, rows in self.rows.items():
            rank, dim = self._ranks[m], cast("int", self._dims[m])
            start, stop = wants[m][rank][0] if wants[m][rank] else (rows[rank][0],) * 2
            if (start, stop) != rows[rank]:
                wide = wide.narrow(dim, start - rows[rank][0], stop - start)
        return wide


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _covers(rows: Rows, wants: Wants) -> bool:
    return all(
        all(start <= a and b <= stop for a, b in want) and len(want) <= 1
        for (start, stop), want in zip(rows, wants, strict=True)
    )


def _pad_circular(x: ShardTensor, rims: Mapping[int, tuple[int, int]]) -> ShardTensor:
    wide, spec, sizes = x.local, x.spec, list(x.spec.sizes)
    rows: dict[int, Rows] = {}
    crops: list[tuple[int, int, int]] = []
    # Rows travel before they are padded along dimensions that no mesh dimension splits.
    for dim, (before, after) in sorted(rims.items(), key=lambda item: item[0] not in spec.dims):
        if min(before, after) < 0:
            raise ValueError(f"negative padding needs mode='constant', got 'circular' {before, after}")
        _check_width("circular", before, after, x.shape[dim])
        if dim not in spec.dims:
            above, below = _rim_rows("circular", before, after, x.shape[dim])
            wide = torch.cat([_take(wide, dim, above), wide, _take(wide, dim, below)], dim)
        elif (before, after) != (0, 0):
            m = spec.dims.index(dim)
            sizes[m], wants, rows[m], kept = plan_around(cast("Sizes", sizes[m]), before, after)
            wide = fetch_rows(wide, dim, spec, m, wants)
            crops.append((dim, *kept[spec.coordinate[m]]))
    local = wide
    for dim, start, length in crops:
        local = local if length == local.shape[dim] else local.narrow(dim, start, length)
    out = place(local, spec, spec.dims, tuple(sizes))
    if rows:
        out.around = Around(wide, local, spec, rows)
    return out


@planned
def plan_around(sizes: Sizes, before: int, after: int) -> tuple[Sizes, Wants, Rows, Rows]:
    """Plans circular padding in which every rank fetches its rows and those around them.

    Returns:
        Rows per rank; the rows that each fetches; these as rows [start, stop) of the padded tensor; and start
        and number of those among them that are its own after padding.
    """
    extent = sum(sizes)
    holders = [rank for rank, rows in enumerate(sizes) if rows] or [0]
    grown, wants, held, kept = [], [], [], []
    for rank, (offset, rows) in enumerate(zip(offsets(sizes), sizes, strict=True)):
        margin = before + after if rows else 0
        start = before if rows and rank != holders[0] else 0
        stop = rows + margin - (after if rows and rank != holders[-1] else 0)
        wants.append(wrapped(offset - before, offset + rows + after, extent) if rows else ())
        held.append((offset, offset + rows + margin))
        kept.append((start, stop - start))
        grown.append(stop - start)
    return tuple(grown), tuple(wants), tuple(held), tuple(kept)


def pad_dimension(
    x: ShardTensor,
    dim: int,
    before: int,
    after: int,
    mode: str,
    value: float = 0.0,
    change: Callable[[Tensor], Tensor] | None = None,
) -> ShardTensor:
    """Pads one dimension, sharded or not.

    Args:
        x: the tensor.
        dim: the dimension.
        before: rows to add before it.
        after: rows to add after it.
        mode: one of F.pad, or symmetric: reflect that repeats the edge.
        value: of constant padding.
        change: is applied to the new rows, those before and after together.
    """
    if before < 0 or after < 0:
        if mode != "constant":
            raise ValueError(f"negative padding needs mode='constant', got {mode!r}")
        x = slice_(x, dim, slice(max(0, -before), x.shape[dim] - max(0, -after)))
        before, after = max(before, 0), max(after, 0)
    _check_width(mode, before, after, x.shape[dim])
    if dim not in x.spec.dims:
        ends = [_take(x.local, dim, rows) for rows in _rim_rows(mode, before, after, x.shape[dim])]
        rims = [_rim(x.local, dim, *rim, mode, value) for rim in zip((before, after), ends, strict=True)]
        local = _between(rims, x.local, dim, change)
        return place(local, x.spec, x.spec.dims, x.spec.sizes)
    m = x.spec.dims.index(dim)
    sizes = cast("Sizes", x.spec.sizes[m])
    grown, wants, widths = plan_padding(sizes, before, after, mode)
    rank = x.spec.coordinate[m]
    top, bottom = widths[rank]
    rows = fetch_rows(x.local, dim, x.spec, m, wants)
    # A rank that only serves rows keeps its empty rim in the graph: the backward of the fetch is a collective
    # too.
    if (top, bottom) != (0, 0) or not plan_fetch(sizes, wants, rank).quiet:
        ends = rows.split(
            [sum(b - a for a, b in part) for part in _rim_rows(mode, top, bottom, sum(sizes))], dim
        )
        rims = [_rim(x.local, dim, *rim, mode, value) for rim in zip((top, bottom), ends, strict=True)]
        local = _between(rims, x.local, dim, change)
    else:
        local = x.local
    return place(
        local, x.spec, x.spec.dims, tuple(grown if i == m else n for i, n in enumerate(x.spec.sizes))
    )


def _between(
    rims: Sequence[Tensor], x: Tensor, dim: int, change: Callable[[Tensor], Tensor] | None
) -> Tensor:
    if change is not None:
        rims = change(torch.cat(list(rims), dim)).split([rim.shape[dim] for rim in rims], dim)
    return torch.cat([rims[0], x, rims[1]], dim)


@planned
def plan_padding(
    sizes: Sizes, before: int, after: int, mode: str
) -> tuple[Sizes, Wants, tuple[tuple[int, int], ...]]:
    """Returns rows per rank after padding, the rows each rank copies, and the rows it adds (above, below).

    The ranks that own the first and the last row own the padding beyond them.
    """
    extent = sum(sizes)
    holders = [rank for rank, rows in enumerate(sizes) if rows] or [0]
    widths, wants, grown = [], [], []
    for rank, rows in enumerate(sizes):
        top, bottom = before * (rank == holders[0]), after * (rank == holders[-1])
        above, below = _rim_rows(mode, top, bottom, extent)
        wants.append((*above, *below))
        widths.append((top, bottom))
        grown.append(top + rows + bottom)
    return tuple(grown), tuple(wants), tuple(widths)


def _rim_rows(mode: str, before: int, after: int, extent: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Returns the intervals of rows from which the padding above and below is made."""
    if mode == "reflect":
        above, below = (1, 1 + before), (extent - 1 - after, extent - 1)
    elif mode == "replicate":
        above, below = (0, 1), (extent - 1, extent)
    elif mode == "symmetric":
        above, below = (0, before), (extent - after, extent)
    elif mode == "circular":
        return wrapped(-before, 0, extent), wrapped(extent, extent + after, extent)
    else:
        return (), ()
    return ((above,) if before else ()), ((below,) if after else ())


def _rim(own: Tensor, dim: int, width: int, rows: Tensor, mode: str, value: float) -> Tensor:
    if mode == "constant":
        shape = list(own.shape)
        shape[dim] = width
        return own.new_full(shape, value)
    if mode == "replicate" and width:
        return rows.expand(*(width if d == dim else -1 for d in range(own.ndim)))
    return rows.flip(dim) if mode in ("reflect", "symmetric") else rows


def _take(x: Tensor, dim: int, intervals: Sequence[tuple[int, int]]) -> Tensor:
    parts = [x.narrow(dim, start, stop - start) for start, stop in intervals]
    return torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0)


def _check_width(mode: str, before: int, after: int, extent: int) -> None:
    most = {"reflect": extent - 1, "symmetric": extent, "circular": extent}.get(mode)
    if (most is not None and max(before, after) > most) or (mode == "replicate" and extent == 0):
        raise RuntimeError(
            f"{mode} padding ({before}, {after}) is wider than a dimension of extent {extent} allows"
        )
