"""Matrix products in any order."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from shardtensor._align import Labels, Operand, align
from shardtensor._collectives import shared_all, tied
from shardtensor._spec import derive
from shardtensor._tensor import ShardTensor, unsupported


def linear(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """y = x W^T + b; a sharded contraction is all-reduced before the bias is added."""
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    x, weight, bias = named["input"], named["weight"], named.get("bias")
    if type(x) is ShardTensor and not isinstance(weight, ShardTensor) and not isinstance(bias, ShardTensor):
        spec = x.spec
        if not spec.partial and x.ndim - 1 not in spec.dims:
            weights = [weight] if bias is None else [weight, bias]
            weights = shared_all(weights, spec, spec.split)
            y = F.linear(x.local, *weights)
            y = tied(y, weights) if y.numel() == 0 else y
            return ShardTensor(y, derive(spec, spec.dims, (*spec.shape[:-1], *weight.shape[:-1]), spec.sizes))
    batch = tuple(range(x.ndim - 1))
    outer = ("out",) if weight.ndim == 2 else ()
    operands: list[Operand] = [x, weight]
    axes: list[Labels] = [(*batch, "in"), (*outer, "in")]
    if bias is not None and not any(_splits(p, -1) for p in operands):
        operands.append(bias)
        axes.append(outer)
    aligned = align("linear", operands, axes, ["in", "out"])
    product: Any = aligned.wrap(F.linear(*aligned.locals), (*batch, *outer))
    biased: ShardTensor = product if bias is None or len(operands) == 3 else product + bias
    return biased


def _splits(x: Operand, dim: int) -> bool:
    return isinstance(x, ShardTensor) and dim % x.ndim in x.spec.dims


def matmul(
    func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ShardTensor:
    """matmul, mm, bmm, mv and dot: sharded over the batch, the rows, the columns or the contraction."""
    a, b = (*args, *kwargs.values())
    if torch.compiler.is_compiling() and func is torch.Tensor.matmul and not isinstance(a, ShardTensor):
        # Dynamo (torch 2.13) calls this for `sharded @ plain` as well, with the operands exchanged.
        raise unsupported(
            "matmul", args, kwargs, "the operator @ can not be compiled here", "Use torch.matmul(a, b)."
        )
    if func is torch.Tensor.__rmatmul__:
        a, b = b, a
    left: Labels = (*_batch(a.ndim), "row", "inner") if a.ndim > 1 else ("inner",)
    right: Labels = (*_batch(b.ndim), "inner", "column") if b.ndim > 1 else ("inner",)
    aligned = align("matmul", [a, b], [left, right], ["inner"])
    axes = (
        *_batch(max(a.ndim, b.ndim)),
        *(["row"] if a.ndim > 1 else []),
        *(["column"] if b.ndim > 1 else []),
    )
    return aligned.wrap(torch.matmul(*aligned.locals), axes)


def _batch(ndim: int) -> tuple[int | str, ...]:
    """Labels of batch dimensions, counted from the right so that they broadcast."""
    return tuple(range(-(ndim - 2), 0))


def einsum(
    _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], _kwargs: Mapping[str, Any]
) -> ShardTensor:
    """torch.einsum with a subscript string, or with lists of numbers after the operands."""
    equation, *operands = args
    if not isinstance(equation, str):
        equation, operands = _from_lists(args)
    elif len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    inputs, output = _subscripts(equation, [x.ndim for x in operands])
    for i, labels in enumerate(inputs):
        operands[i], inputs[i] = _off_diagonals(operands[i], labels)
    aligned = align("einsum", operands, inputs)
    names = dict.fromkeys(label for labels in inputs for label in labels)
    letters = dict(zip(names, string.ascii_letters, strict=False))
    left, right = (["".join(letters[label] for label in labels) for labels in x] for x in (inputs, [output]))
    return aligned.wrap(torch.einsum(f"{','.join(left)}->{right[0]}", *aligned.locals), output)


def _from_lists(args: Sequence[Any]) -> tuple[str, list[Any]]:
    """Returns the subscript string of einsum(a, [0, 1], b, [1, 2], [0, 2]), and the operands."""
    words = ",".join(map(_word, args[1::2]))
    return (f"{words}->{_word(args[-1])}", list(args[0:-1:2])) if len(args) % 2 else (words, list(args[0::2]))


def _word(numbers: Sequence[Any]) -> str:
    return "".join("..." if n is ... else string.ascii_letters[n] for n in numbers)


def _off_diagonals(x: Operand, labels: Labels) -> tuple[Operand, Labels]:
    """Returns the operand with dimensions of equal labels reduced to their diagonal."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = x.diagonal(0, first, second)
            labels = (*(part for d, part in enumerate(labels) if d not in (first, second)), label)
    return x, labels


def _subscripts(equation: str, ndims: Sequence[int]) -> tuple[list[Labels], Labels]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    inputs = [_expand(term, ndim) for term, ndim in zip(terms, ndims, strict=True)]
    longest = max([len(_dots(labels)) for labels in inputs])
    dots = tuple(range(-longest, 0))
    if arrow:
        return inputs, tuple(
            label for part in right.partition("...") for label in (dots if part == "..." else part)
        )
    once = sorted(c for c in string.ascii_letters if left.count(c) == 1)
    return inputs, (*dots, *once)


def _dots(labels: Labels) -> Labels:
    return tuple(label for label in labels if isinstance(label, int))


def _expand(term: str, ndim: int) -> Labels:
    """Replaces the ellipsis by integers counted from the right."""
    head, dots, tail = term.partition("...")
    missing = ndim - len(head) - len(tail)
    return (*head, *(range(-missing, 0) if dots else ()), *tail)
