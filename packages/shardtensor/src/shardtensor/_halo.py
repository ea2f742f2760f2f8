"""Rows of other ranks, for those who write their own sharded function."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shardtensor._align import split_of
from shardtensor._collectives import Interval, Wants, fetch_rows
from shardtensor._index import wrapped
from shardtensor._pad import pad_dimension
from shardtensor._plans import planned
from shardtensor._spec import Sizes, offsets
from shardtensor._tensor import ShardTensor, unsupported


def fetch(x: ShardTensor, dim: int, wants: Sequence[Sequence[Interval]]) -> Tensor:
    """Returns global rows of a sharded dimension that this rank asks for, as a plain tensor.

    Every rank knows what every rank wants, so one all_to_all_single with known sizes moves the rows. The
    backward sends the gradient of every row back to its owner, where it is added.

    Args:
        x: the sharded tensor.
        dim: a sharded dimension of x.
        wants: for every rank along that mesh dimension a list of intervals [start, stop) in output order; the
            same on all ranks.

    Raises:
        ValueError: dim is not sharded, or an interval leaves the dimension.
    """
    m, _ = split_of(x, dim)
    return fetch_rows(
        x.local, dim % x.ndim, x.spec, m, tuple(tuple((a, b) for a, b in want) for want in wants)
    )


def halo_exchange(x: ShardTensor, dim: int, before: int, after: int, *, periodic: bool = False) -> Tensor:
    """Returns the local part with the rows before and after it, as a plain tensor.

    A halo may be wider than the neighbour's shard. At the ends of the dimension it is cut off, or wraps
    around if `periodic`. A rank without rows gets none.

    Args:
        x: the sharded tensor.
        dim: a sharded dimension of x.
        before: rows wanted before the own ones.
        after: rows wanted after the own ones.
        periodic: whether the dimension is a circle.
    """
    m, sizes = split_of(x, dim)
    extent = sum(sizes)
    wants: list[tuple[Interval, ...]] = []
    for offset, rows in zip(offsets(sizes), sizes, strict=True):
        low, high = offset - before, offset + rows + after
        if rows == 0:
            wants.append(())
        elif periodic:
            wants.append(wrapped(low, high, extent))
        else:
            wants.append(((max(low, 0), min(high, extent)),))
    return fetch_rows(x.local, dim % x.ndim, x.spec, m, tuple(wants))


def pole_pad(
    x: ShardTensor,
    latitude: int,
    longitude: int,
    width: int,
    *,
    on_grid: bool,
    sign: float | Tensor = 1.0,
) -> ShardTensor:
    """Extends a global field on a latitude-longitude grid by `width` rows beyond both poles.

    The row k steps beyond a pole holds the row k steps before it, half a turn away in longitude. Either
    dimension may be sharded; the ranks that hold the polar rows grow. A convolution that follows needs no
    padding along latitude.

    Args:
        x: the field.
        latitude: dimension of latitude, from pole to pole in either direction.
        longitude: dimension of longitude, evenly spaced once around; of even extent.
        width: rows to add at each pole.
        on_grid: whether the first and the last row are the poles themselves (they are not repeated), not half
            a step off.
        sign: factor of the new rows, -1 for components of vectors, which turn over at a pole; a tensor must
            have extent 1 along sharded dimensions.

    Raises:
        ValueError: the longitudes do not divide into two halves, or `sign` extends over a sharded dimension.
        RuntimeError: there are fewer rows than `width` needs.
        UnsupportedShardedOp: x is a pending sum.
    """
    lat, lon = latitude % x.ndim, longitude % x.ndim
    if x.spec.partial:
        raise unsupported("pole_pad", (x,), {}, "the tensor is a pending sum")
    if x.shape[lon] % 2 or lat == lon:
        raise ValueError(f"half a turn needs an even number of longitudes, got {x.shape[lon]}")
    if isinstance(sign, Tensor):
        whole = (1,) * (x.ndim - sign.ndim) + tuple(sign.shape)
        if any(dim is not None and whole[dim] != 1 for dim in x.spec.dims):
            raise ValueError(f"sign of shape {tuple(sign.shape)} extends over a sharded dimension")

    def turned(rows: Tensor) -> Tensor:
        if lon in x.spec.dims:
            m = x.spec.dims.index(lon)
            rows = fetch_rows(rows, lon, x.spec, m, _half_turn(x.spec.sizes[m] or ()))
        else:
            rows = rows.roll(x.shape[lon] // 2, lon)
        return rows if isinstance(sign, float) and sign == 1.0 else rows * sign

    return pad_dimension(x, lat, width, width, "reflect" if on_grid else "symmetric", change=turned)


@planned
def _half_turn(sizes: Sizes) -> Wants:
    extent = sum(sizes)
    starts = [offset + extent // 2 for offset in offsets(sizes)]
    return tuple(wrapped(start, start + n, extent) for start, n in zip(starts, sizes, strict=True))
