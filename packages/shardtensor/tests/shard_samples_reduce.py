"""Samples of reductions, scans, softmax and order statistics, over sharded and other dimensions."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample, possible
from torch import Tensor

_HAS_GRADIENT = possible(lambda: torch.ones(2, requires_grad=True).aminmax().min.backward())


def _extremes_of(x: Any) -> Any:
    """aminmax has a gradient in new releases of torch only."""
    return x if _HAS_GRADIENT else x.detach()


def _same(x: Tensor) -> Tensor:
    return x


def _whole(x: Tensor) -> Tensor:
    return (3 * x).long()


def _ties(x: Tensor) -> Tensor:
    return (2 * x).round()


def _holes(x: Tensor) -> Tensor:
    return torch.where(x > 1, torch.nan, x)


def _counts(x: Tensor) -> Tensor:
    return (3 * x.abs()).long()


def samples(
    op: str,
    run: Callable[..., Any],
    *,
    over: tuple[int, ...],
    forward: int = 1,
    backward: int = 0,
    make: Callable[[Tensor], Tensor] = _same,
    **options: Any,
) -> list[Sample]:
    """Returns samples on (4, 7, 3): with a reduced dimension sharded, and with another."""
    shape = options.pop("shape", (4, 7, 3))
    others = [d for d in range(len(shape)) if d not in over]
    grid = ((over[0], next((d for d in (*others, *over[1:])), over[0])),)
    common = {"op": op, "run": run, "inputs": (shape,), "make": make, **options}
    found = [
        Sample(
            **common,
            dims=tuple((d,) for d in over),
            grid=(grid,) if len(shape) > 1 else (),
            forward=forward,
            backward=backward,
        )
    ]
    if others:
        found.append(Sample(**common, dims=tuple((d,) for d in others)))
    return found


def quiet(run: Callable[..., Any]) -> Callable[..., Any]:
    """Runs without the warning that a dimension is gathered."""

    def silent(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(*args)

    return silent


ALL = (0, 1, 2)
SAMPLES = [
    *samples("sum", torch.sum, over=ALL),
    *samples("sum", lambda x: x.sum(1), over=(1,)),
    *samples("sum", lambda x: x.sum((0, -1), keepdim=True), over=(0, 2)),
    *samples("sum", lambda x: x.sum(axis=1, dtype=torch.float32), over=(1,), rtol=1e-5),
    *samples("sum", lambda x: (x > 0).sum(1), over=(1,)),
    *samples("nansum", lambda x: x.nansum(1), over=(1,), make=_holes),
    *samples("mean", torch.mean, over=ALL),
    *samples("mean", lambda x: x.mean((1, 2), keepdim=True), over=(1, 2)),
    *samples("nanmean", lambda x: x.nanmean(1), over=(1,), make=_holes),
    *samples("nanmean", torch.nanmean, over=ALL, make=_holes),
    *samples("prod", torch.prod, over=ALL),
    *samples("prod", lambda x: x.prod(1, keepdim=True), over=(1,)),
    *samples("prod", lambda x: x.prod(1), over=(1,), make=_whole),
    *samples("amax", lambda x: x.amax(1), over=(1,), make=_ties),
    *samples("amax", lambda x: torch.amax(x, (0, 1), keepdim=True), over=(0, 1), make=_ties),
    *samples("amax", lambda x: x.amax(1), over=(1,), make=_whole),
    *samples("amax", lambda x: (x > 0).amax(1), over=(1,)),
    *samples("amin", lambda x: x.amin(1), over=(1,), make=_ties),
    *samples("amin", lambda x: x.amin(), over=ALL, make=_ties),
    *samples("aminmax", lambda x: tuple(torch.aminmax(_extremes_of(x))), over=ALL, forward=2),
    *samples("aminmax", lambda x: tuple(_extremes_of(x).aminmax(dim=1, keepdim=True)), over=(1,), forward=2),
    *samples("max", torch.max, over=ALL, make=_ties),
    *samples("min", torch.min, over=ALL, make=_ties),
    *samples("max", lambda x: x.max(1), over=(1,), make=_ties),
    *samples("max", lambda x: torch.max(x, dim=1, keepdim=True), over=(1,), make=_whole),
    *samples("min", lambda x: list(torch.min(x, 1)), over=(1,), make=_ties),
    *samples("max", lambda x: torch.max(x, x.detach() ** 2), over=ALL, forward=0),
    *samples("argmax", torch.argmax, over=ALL, make=_ties),
    *samples("argmax", lambda x: x.argmax(keepdim=True), over=ALL, make=_whole),
    *samples("argmax", lambda x: x.argmax(1), over=(1,), make=_ties),
    *samples("argmin", torch.argmin, over=ALL, make=_ties),
    *samples("argmin", lambda x: x.argmin(dim=1, keepdim=True), over=(1,), make=_ties),
    *samples("any", lambda x: (x > 2).any(), over=ALL),
    *samples("any", lambda x: torch.any(x > 1, 1, keepdim=True), over=(1,)),
    *samples("all", lambda x: (x > -2).all(1), over=(1,)),
    *samples("all", lambda x: torch.all(x), over=ALL),
    *samples("count_nonzero", lambda x: torch.count_nonzero(x, dim=1), over=(1,), make=_whole),
    *samples("count_nonzero", lambda x: x.count_nonzero(), over=ALL, make=_whole),
    *samples("var", torch.var, over=ALL),
    *samples("var", lambda x: x.var(1, keepdim=True) + 3000, over=(1,)),
    *samples("var", lambda x: (x + 3000).var((0, 1), unbiased=False), over=(0, 1), rtol=1e-8),
    *samples("std", lambda x: x.std(1, correction=0), over=(1,)),
    *samples("std", lambda x: x.std(False), over=ALL),
    *samples("var_mean", lambda x: torch.var_mean(x, 1), over=(1,)),
    *samples("std_mean", lambda x: torch.std_mean(x, dim=(1, 2), keepdim=True), over=(1, 2)),
    *samples("norm", torch.norm, over=ALL),
    *samples("norm", lambda x: x.norm(dim=1), over=(1,)),
    *samples("norm", lambda x: x.norm(1, (0, 1), True), over=(0, 1)),
    *samples("norm", lambda x: torch.linalg.norm(x, dim=1, ord=3), over=(1,)),
    *samples("norm", lambda x: torch.linalg.norm(x), over=ALL),
    *samples("norm", lambda x: torch.linalg.matrix_norm(x), over=(1, 2)),
    *samples("norm", lambda x: torch.linalg.vector_norm(x, 0, 1), over=(1,)),
    *samples("norm", lambda x: torch.linalg.vector_norm(x, torch.inf, 1), over=(1,)),
    *samples("norm", lambda x: torch.linalg.vector_norm(x, -torch.inf, 1), over=(1,)),
    *samples("norm", lambda x: torch.linalg.vector_norm(x, 0.5, 1), over=(1,)),
    *samples("norm", lambda x: torch.linalg.vector_norm(x, -1, 1), over=(1,), bf16=False),
    *samples("dist", lambda x: torch.dist(x, x.detach() * 2 + 1), over=ALL),
    *samples("histc", lambda x: torch.histc(x.detach(), 5, -1, 1), over=ALL, bf16=False),
    *samples("histc", lambda x: x.detach().histc(4), over=ALL, forward=3, bf16=False),
    *samples(
        "bincount", lambda x: torch.bincount(x, minlength=4), over=(0,), shape=(9,), make=_counts, forward=2
    ),
    *samples("logsumexp", lambda x: x.logsumexp(1), over=(1,)),
    *samples("logsumexp", lambda x: torch.logsumexp(30 * x, (0, 1), keepdim=True), over=(0, 1)),
    *samples("softmax", lambda x: x.softmax(1), over=(1,), backward=1),
    *samples("softmax", lambda x: F.softmax(30 * x, dim=1), over=(1,), backward=1),
    *samples("softmax", lambda x: torch.softmax(x, 1, torch.float32), over=(1,), backward=1, rtol=1e-5),
    *samples("log_softmax", lambda x: F.log_softmax(30 * x, dim=-2), over=(1,), backward=1),
    *samples("log_softmax", lambda x: x.log_softmax(1), over=(1,), backward=1),
    *samples("softmin", lambda x: F.softmin(x, dim=1), over=(1,), backward=1),
    *samples("normalize", lambda x: F.normalize(x, dim=1), over=(1,), backward=1),
    *samples("normalize", lambda x: F.normalize(x, 1.0, -1), over=(2,), backward=1),
    *samples("cumsum", lambda x: x.cumsum(1), over=(1,), backward=1),
    *samples("cumsum", lambda x: torch.cumsum(x, dim=0), over=(0,), make=_whole),
    *samples("cumprod", lambda x: x.cumprod(1), over=(1,), backward=1),
    *samples("logcumsumexp", lambda x: torch.logcumsumexp(10 * x, 1), over=(1,), backward=1),
    *samples("cummax", lambda x: x.cummax(1), over=(1,), backward=1, make=_ties),
    *samples("cummin", lambda x: tuple(torch.cummin(x, dim=1)), over=(1,), backward=1, make=_ties),
    *samples("cummax", lambda x: x.cummax(1), over=(1,), make=_whole),
    *samples("diff", lambda x: x.diff(dim=1), over=(1,), backward=1),
    *samples("diff", lambda x: torch.diff(x, 3, 1), over=(1,), backward=1),
    *samples("trapezoid", lambda x: torch.trapezoid(x, dx=0.5, dim=1), over=(1,), forward=2, backward=1),
    *samples(
        "trapz",
        lambda x: torch.trapz(x, torch.arange(7.0).square().to(x.dtype), dim=1),
        over=(1,),
        forward=2,
        backward=1,
    ),
    *samples("topk", lambda x: x.topk(3, 1), over=(1,)),
    *samples("topk", lambda x: tuple(torch.topk(x, 5, dim=1, largest=False)), over=(1,)),
    *samples("sort", quiet(lambda x: x.sort(1)), over=(1,), forward=1, backward=1),
    *samples(
        "sort",
        quiet(lambda x: tuple(torch.sort(x, dim=1, descending=True, stable=True))),
        over=(1,),
        backward=1,
        make=_ties,
    ),
    *samples("argsort", quiet(lambda x: x.argsort(1)), over=(1,)),
    *samples("argsort", quiet(lambda x: torch.argsort(x, 1, True)), over=(1,)),
    *samples("msort", quiet(torch.msort), over=(0,), backward=1),
    *samples("median", quiet(torch.median), over=ALL),
    *samples("median", quiet(lambda x: x.median(1)), over=(1,)),
    *samples("nanmedian", quiet(lambda x: tuple(x.nanmedian(dim=1, keepdim=True))), over=(1,), make=_holes),
    *samples("mode", quiet(lambda x: x.mode(1)), over=(1,), make=_ties),
    *samples("kthvalue", quiet(lambda x: x.kthvalue(2, 1)), over=(1,)),
    *samples("quantile", quiet(lambda x: x.quantile(0.3)), over=ALL, bf16=False),
    *samples(
        "quantile",
        quiet(lambda x: torch.quantile(x, torch.tensor([0.2, 0.7]).to(x.dtype), dim=1)),
        over=(1,),
        bf16=False,
    ),
    *samples("nanquantile", quiet(lambda x: x.nanquantile(0.5, 1, True)), over=(1,), make=_holes, bf16=False),
    *samples("unique", quiet(torch.unique), over=ALL, make=_whole),
    *samples(
        "unique", quiet(lambda x: x.unique(return_inverse=True, return_counts=True)), over=ALL, make=_whole
    ),
]
