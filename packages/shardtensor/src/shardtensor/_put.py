"""Writing at index tensors: every rank writes the rows that it owns, and nothing moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import Label, Labels, Operand, align, mesh_dim
from shardtensor._collectives import shared
from shardtensor._reduce import dimensions
from shardtensor._take import own_index, own_part, result_axes
from shardtensor._tensor import Handler, ShardTensor, place, replaced, unsupported

Run: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]  # target, index, source -> new target

_ADDS = ("index_add", "scatter_add")


def index_write(op: str) -> Handler:
    """Returns the handler of index_add, index_copy or index_fill: rows of a source into rows of a target."""

    def handler(
        _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        names = ("input", "dim", "index", "value" if op == "index_fill" else "source")
        named = dict(zip(names, args, strict=False)) | dict(kwargs)
        x, index, source = named.pop("input"), named.pop("index"), named.pop(names[3])
        (dim,) = dimensions(named.pop("dim"), x.ndim)
        if named.pop("out", None) is not None or index.ndim > 1:
            raise unsupported(op, args, kwargs, "needs an index of one dimension, and no out=")
        function = getattr(torch, op)

        def run(target: Tensor, rows: Tensor, values: Any) -> Tensor:
            out: Tensor = function(target, dim, rows, values, **named)
            return out

        index = index.reshape(-1)
        if op == "index_fill" and not isinstance(source, Tensor | ShardTensor):
            return _write(op, x, dim, index, ("from",), source, (), run)
        rows: Labels = tuple("from" if d == dim and op != "index_fill" else d for d in range(x.ndim))
        return _write(op, x, dim, index, ("from",), source, rows[: source.ndim], run)

    return handler


def scatter(op: str) -> Handler:
    """Returns the handler of scatter, scatter_add or scatter_reduce: x[index[i, j], j] = src[i, j]."""

    def handler(
        _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        named = dict(zip(("input", "dim", "index", "src", "reduce"), args, strict=False)) | dict(kwargs)
        x, index = named.pop("input"), named.pop("index")
        source = named.pop("value") if "value" in named else named.pop("src")
        (dim,) = dimensions(named.pop("dim"), x.ndim)
        if named.pop("out", None) is not None or index.ndim != x.ndim:
            raise unsupported(
                op, args, kwargs, "needs an index of as many dimensions as the tensor, and no out="
            )
        function = getattr(torch, op)

        def run(target: Tensor, rows: Tensor, values: Any) -> Tensor:
            out: Tensor = function(target, dim, rows, values, **named)
            return out

        axes: Labels = tuple(
            "from" if d == dim else d if index.shape[d] == x.shape[d] else ("part", d) for d in range(x.ndim)
        )
        if isinstance(source, Tensor | ShardTensor) and source.ndim:
            for d in range(x.ndim):
                if source.shape[d] != index.shape[d]:
                    source = source.narrow(d, 0, index.shape[d])
            return _write(op, x, dim, index, axes, source, axes, run)
        return _write(op, x, dim, index, axes, source, (), run)

    return handler


def _write(
    op: str, x: Any, dim: int, index: Any, index_axes: Labels, source: Any, source_axes: Labels, run: Run
) -> ShardTensor:
    """Runs `run` on local parts.

    An own row of zeros at the end of a sharded `dim` takes what other ranks own. Where the rows of index and
    source are sharded and the target is not, the added terms of the ranks are summed (one all_reduce).
    """
    operands: list[Operand] = [x, index]
    target: Labels = tuple(("to", d) if d == dim or ("part", d) in index_axes else d for d in range(x.ndim))
    axes: list[Labels] = [target, index_axes]
    if isinstance(source, Tensor | ShardTensor):
        operands.append(source)
        axes.append(source_axes)
    if not isinstance(x, ShardTensor) and op not in _ADDS:
        raise unsupported(op, operands, {}, "a plain tensor with a sharded argument")
    m = mesh_dim(x, dim)
    if m is not None:
        if any(isinstance(y, ShardTensor) and y.spec.dims[m] is not None for y in operands[1:]):
            raise unsupported(op, operands, {}, "the index or the source is sharded like the target")
        operands[0] = own_part(x, m)
    aligned = align(op, operands, axes, [label for labels in axes for label in labels])
    if any(isinstance(label, tuple) for label in aligned.labels):
        raise unsupported(op, operands, {}, "a sharded dimension is longer than that of the index")
    local, here, *rest = aligned.locals
    values = rest[0] if rest else source
    if "from" in aligned.labels:
        return _summed(op, x, operands, aligned.wrap(run(torch.zeros_like(local), here, values), target))
    if m is None:
        return aligned.wrap(run(local, here, values), target)
    rows = local.shape[dim]
    here = elsewhere_to(rows, *own_index(op, here, x.spec.starts[m], rows, x.shape[dim], op == "index_fill"))
    values = shared(values, x.spec, [m]) if rest else values
    out = aligned.wrap(run(with_spare_row(local, dim), here, values).narrow(dim, 0, rows), target)
    dims, sizes = replaced(out.spec.dims, m, dim), replaced(out.spec.sizes, m, x.spec.sizes[m])
    return place(out.local, out.spec, dims, sizes)


def _summed(op: str, x: Any, operands: Sequence[Operand], terms: ShardTensor) -> ShardTensor:
    if op not in _ADDS:
        raise unsupported(op, operands, {}, "the rows of the source are sharded, and only sums have no order")
    added: ShardTensor = x + terms
    return added


def with_spare_row(x: Tensor, dim: int) -> Tensor:
    """Returns x with one more row, for what is written to rows of other ranks."""
    return F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, 1))


def elsewhere_to(rows: int, here: Tensor, mine: Tensor) -> Tensor:
    """Returns local rows, `rows` where another rank owns the row."""
    return torch.where(mine, here, rows)


def put(
    op: str,
    x: ShardTensor,
    picks: Mapping[int, Any],
    value: Any,
    accumulate: bool = False,
    in_place: bool = False,
) -> ShardTensor:
    """Returns x with x[..., index, ...] = value, or += value; `in_place` writes to x itself.

    The index tensors and the value are the same on every rank, or sharded like the dimensions of x that are
    not indexed.
    """
    labels, kept, _ = result_axes(x.ndim, picks)
    count = len(labels) - len(kept)
    dims = sorted(picks)
    owners = [m for m, d in enumerate(x.spec.dims) if d in picks]
    value = value if isinstance(value, Tensor | ShardTensor) else torch.tensor(value, dtype=x.dtype)
    value = trimmed(value, len(labels))
    operands: list[Any] = [x, *(picks[d] for d in dims), value.to(x.dtype)]
    axes: list[Labels] = [tuple(("row", d) for d in range(x.ndim))]
    axes += [tuple(range(count - picks[d].ndim, count)) for d in dims]
    axes.append(labels[len(labels) - value.ndim :])
    _check_value(op, x, picks, value, labels)
    for m in owners:
        if any(isinstance(y, ShardTensor) and y.spec.dims[m] is not None for y in operands[1:]):
            raise unsupported(op, operands, {}, "an index or the value is sharded like the indexed dimension")
        operands[0] = own_part(operands[0], m)
    aligned = align(op, operands, axes)
    if any(label is not None and dim is None for label, dim in zip(aligned.labels, x.spec.dims, strict=True)):
        raise unsupported(op, operands, {}, "the index or the value is sharded where the tensor is whole")
    before, *indices, values = aligned.locals
    local = before
    key: list[Tensor | None] = [None] * x.ndim
    for d, index in zip(dims, indices, strict=True):
        key[d] = index
        for m in owners:
            if x.spec.dims[m] == d:
                rows = before.shape[d]
                key[d] = elsewhere_to(rows, *own_index(op, index, x.spec.starts[m], rows, x.shape[d], True))
                local = with_spare_row(local, d)
    values = shared(values, x.spec, owners)
    if in_place and not owners:
        return ShardTensor(torch.ops.aten.index_put_(before, key, values, accumulate), x.spec)
    local = torch.ops.aten.index_put(local, key, values, accumulate)
    for d, rows in enumerate(before.shape):
        local = local.narrow(d, 0, rows)
    return ShardTensor(before.copy_(local) if in_place else local, x.spec)


def trimmed(value: Any, ndim: int) -> Any:
    """Drops leading dimensions of extent 1, as assignments do."""
    while value.ndim > ndim and value.shape[0] == 1:
        value = value.squeeze(0)
    return value


def _check_value(op: str, x: ShardTensor, picks: Mapping[int, Any], value: Any, labels: Labels) -> None:
    shape = torch.broadcast_shapes(*(index.shape for index in picks.values()))
    want = [shape[label] if isinstance(label, int) else x.shape[_dimension(label)] for label in labels]
    fits = value.ndim <= len(want) and all(
        n in (1, goal) for n, goal in zip(reversed(value.shape), reversed(want), strict=False)
    )
    if not fits:
        raise RuntimeError(f"{op}: a value of shape {tuple(value.shape)} does not fit {tuple(want)}")


def _dimension(label: Label) -> int:
    assert isinstance(label, tuple)
    return int(label[1])


def index_put(op: str) -> Handler:
    """Returns the handler of index_put or index_put_."""
    inside = op == "index_put_"

    def handler(
        _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        named = dict(zip(("input", "indices", "values", "accumulate"), args, strict=False)) | dict(kwargs)
        x, indices = named["input"], named["indices"]
        picks = {d: index for d, index in enumerate(indices) if index is not None}
        if not isinstance(x, ShardTensor) or any([index.dtype == torch.bool for index in picks.values()]):
            raise unsupported(op, args, kwargs, "needs a sharded tensor and integer indices")
        return put(op, x, picks, named["values"], bool(named.get("accumulate", False)), inside)

    return handler


def in_place(write: Handler) -> Handler:
    """Turns the handler of a function into that of its in-place form."""

    def handler(
        func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        x = args[0]
        if not isinstance(x, ShardTensor):
            raise unsupported(func.__name__, args, kwargs, "a plain tensor can not take a sharded result")
        # A gradient may need the values of before.
        kept = ShardTensor(x.local.clone(), x.spec) if torch.is_grad_enabled() else x
        out = write(func, types, (kept, *args[1:]), kwargs)
        if (out.spec.dims, out.spec.sizes) != (x.spec.dims, x.spec.sizes):
            reason = "the result has another layout than the tensor it is written to"
            raise unsupported(func.__name__, args, kwargs, reason)
        x.local.copy_(out.local)
        return x

    return handler
