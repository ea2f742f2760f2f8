"""Operations that act on every element alone, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from typing import cast as cast_type

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import align, broadcast_axes
from shardtensor._spec import Dims
from shardtensor._tensor import ShardTensor, place, unsupported


def pointwise(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Runs an elementwise function of any number of tensors."""
    first = args[0] if args else None
    if type(first) is ShardTensor and not first.spec.partial:
        rest = args[1:]
        if not _has_tensor(rest) and not _has_tensor(kwargs.values()):
            out = func(first.local, *rest, **kwargs)
            if not isinstance(out, Tensor):
                raise unsupported(func.__name__, args, kwargs, "in this form it is no elementwise function")
            return ShardTensor(out, first.spec)
        if len(rest) == 1 and not kwargs and type(rest[0]) is ShardTensor and rest[0].spec is first.spec:
            return ShardTensor(func(first.local, rest[0].local), first.spec)
    return _broadcast(func, args, kwargs)


def in_place(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Runs an elementwise function that writes into its first argument, whose layout must not change."""
    first = args[0] if args else kwargs["input"]
    if not isinstance(first, ShardTensor):
        raise unsupported(func.__name__, args, kwargs, "a plain tensor can not take a sharded result")
    out = _broadcast(func, args, kwargs)
    there, here = out.spec, first.spec
    if (there.dims, there.sizes, there.shape) != (here.dims, here.sizes, here.shape):
        raise unsupported(
            func.__name__, args, kwargs, "the result has another layout than the tensor it is written to"
        )
    return first


def cast(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Converts the dtype or device of the first argument; a second tensor only gives its own."""
    first = args[0]
    rest = [x.local if isinstance(x, ShardTensor) else x for x in args[1:]]
    if not isinstance(first, ShardTensor):
        return func(first, *rest, **kwargs)
    out = func(first.local, *rest, **kwargs)
    return ShardTensor(out, first.spec) if isinstance(out, Tensor) else out


def view_as_real(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """Complex numbers as a last dimension of extent 2, and back."""
    (x,) = (*args, *kwargs.values())
    if x.spec.partial or (func is torch.view_as_complex and x.ndim - 1 in x.spec.dims):
        raise unsupported(func.__name__, args, kwargs, "the last dimension is sharded, or a sum is pending")
    part = x.local
    if func is torch.view_as_complex and not part.numel():  # whose strides may be any
        return place(torch.complex(part[..., 0], part[..., 1]), x.spec, x.spec.dims, x.spec.sizes)
    return place(func(part), x.spec, x.spec.dims, x.spec.sizes)


def lookup(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """isin, bucketize and searchsorted: every element is looked up in a table that all ranks hold whole."""
    name = func.__name__
    keys = {"isin": ("elements", "test_elements"), "searchsorted": ("sorted_sequence", "input")}
    first, second = keys.get(name, ("input", "boundaries"))
    named = dict(zip((first, second), args, strict=False)) | dict(kwargs)
    values, table = ("input", "sorted_sequence") if name == "searchsorted" else (first, second)
    x, known = named[values], named[table]
    if isinstance(known, ShardTensor) and known.spec.replicated:
        known = known.local
    if not isinstance(x, ShardTensor) or x.spec.partial or isinstance(known, ShardTensor):
        raise unsupported(name, args, kwargs, "needs sharded values and a table that is not sharded")
    if name == "searchsorted" and known.ndim != 1:
        raise unsupported(name, args, kwargs, "needs a table of one dimension")
    return ShardTensor(func(**{**named, values: x.local, table: known}), x.spec)


def prelu(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """max(x, 0) + w min(x, 0) with one weight, or one for each channel (dimension 1)."""
    x, weight = (*args, *kwargs.values())
    axes = tuple(range(x.ndim))
    aligned = align("prelu", [x, weight], [axes, axes[1:2] if weight.numel() > 1 else ("one",)], axes)
    return aligned.wrap(F.prelu(*aligned.locals), axes)


def query(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Answers a question that every local part answers alike, or makes a plain tensor of the same kind."""
    return func(args[0].local, *args[1:], **kwargs)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor | ShardTensor)


def _has_tensor(values: Any) -> bool:
    return any(isinstance(x, Tensor | ShardTensor) for x in values)


def _broadcast(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShardTensor:
    if kwargs.get("out") is not None:
        raise unsupported(func.__name__, args, kwargs, "out= is not supported")
    operands = [x for x in (*args, *kwargs.values()) if _is_tensor(x)]
    axes = broadcast_axes([x.shape for x in operands])
    aligned = align(func.__name__, operands, axes)
    parts = iter(aligned.locals)
    local_args = [next(parts) if _is_tensor(x) else x for x in args]
    local_kwargs = {name: next(parts) if _is_tensor(x) else x for name, x in kwargs.items()}
    out = func(*local_args, **local_kwargs)
    dims = cast_type("Dims", aligned.labels)  # labels are dimensions of the result
    return place(out, aligned.spec, dims, aligned.sizes)
