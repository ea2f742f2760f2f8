"""Samples of losses: every reduction, weights, and classes that are sharded."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor


def _same(x: Tensor) -> Tensor:
    return x


def _chance(x: Tensor) -> Tensor:
    return 0.05 + 0.9 * x.sigmoid()


def _all(run: Callable[..., Tensor], *reductions: str) -> list[tuple[Callable[..., Any], int]]:
    """Returns the loss with every reduction, and how many collectives each needs."""
    return [
        (lambda *x, how=how: run(*x, reduction=how), int(how != "none"))
        for how in reductions or ("none", "sum", "mean")
    ]


def _losses(
    op: str, run: Callable[..., Tensor], count: int = 2, *reductions: str, **options: Any
) -> list[Sample]:
    return [
        Sample(
            op=op,
            run=each,
            inputs=((4, 7, 3),) * count,
            dims=((0,) * count, (1,) * count, (2,) * count),
            grid=(((0, 1),) * count,),
            forward=forward,
            **options,
        )
        for each, forward in _all(run, *reductions)
    ]


def _sign(x: Tensor) -> Tensor:
    return x.detach().sign()


def _classes(x: Tensor) -> Tensor:
    """Five classes; samples leave out class 1."""
    return (x * 3).long() % 5


def _cross(
    op: str, run: Callable[..., Tensor], *, spread: tuple[int, int, int], spread_back: tuple[int, int, int]
) -> list[Sample]:
    """Samples with (4, 5, 7) logits for (4, 7) targets made of a second input; classes whole and sharded."""
    found = []
    pairs = zip(_all(run), spread, spread_back, strict=True)
    for (each, forward), wide, wide_back in pairs:
        target = lambda x, t, each=each: each(x, _classes(t))  # noqa: E731
        common = {"op": op, "run": target, "inputs": ((4, 5, 7), (4, 7))}
        found.append(
            Sample(
                **common,
                dims=((0, 0), (2, 1)),
                grid=(((0, 2), (0, 1)), ((1, 0), (None, 0))),
                forward=forward,
            )
        )
        found.append(Sample(**common, dims=((1, None),), forward=wide, backward=wide_back))
    return found


LOGITS = "binary_cross_entropy_with_logits"
SAMPLES = [
    *_losses("mse_loss", F.mse_loss),
    *_losses(
        "mse_loss", lambda x, y, w, reduction: F.mse_loss(x, y, None, None, reduction, w), 3, make=_chance
    ),
    *_losses("l1_loss", F.l1_loss),
    *_losses("smooth_l1_loss", lambda x, y, reduction: F.smooth_l1_loss(x, y, None, None, reduction, 0.5)),
    *_losses("huber_loss", lambda x, y, reduction: F.huber_loss(x, y, reduction, 0.3)),
    *_losses("huber_loss", lambda x, y, w, reduction: F.huber_loss(x, y, reduction, 0.3, w), 3),
    *_losses("binary_cross_entropy", F.binary_cross_entropy, make=_chance),
    *_losses(
        "binary_cross_entropy",
        lambda x, y, w, reduction: F.binary_cross_entropy(x, y, w.detach(), reduction=reduction),
        3,
        make=_chance,
    ),
    *_losses(LOGITS, F.binary_cross_entropy_with_logits),
    *_losses(
        LOGITS,
        lambda x, y, w, reduction: F.binary_cross_entropy_with_logits(
            x,
            y.sigmoid(),
            w.detach(),
            reduction=reduction,
            pos_weight=torch.tensor([1.0, 2.0, 3.0]).to(x.dtype),
        ),
        3,
    ),
    *_losses("kl_div", F.kl_div, 2, "none", "sum", "batchmean", make=_chance),
    *_losses(
        "kl_div", lambda x, y, reduction: F.kl_div(x, y, reduction=reduction, log_target=True), 2, "batchmean"
    ),
    *_losses("gaussian_nll_loss", F.gaussian_nll_loss, 3, make=_chance),
    *[
        Sample(
            op="gaussian_nll_loss",
            run=lambda x, y, v, how=how: F.gaussian_nll_loss(x, y, v, True, 1e-3, how),
            inputs=((4, 7, 3), (4, 7, 3), (4, 7)),
            dims=((0, 0, 0), (1, 1, 1)),
            grid=(((0, 1), (0, 1), (0, 1)),),
            forward=int(how != "none"),
            make=_chance,
        )
        for how in ("none", "mean", "sum")
    ],
    *_losses("poisson_nll_loss", F.poisson_nll_loss, make=_chance),
    *_losses(
        "poisson_nll_loss",
        lambda x, y, reduction: F.poisson_nll_loss(x, y, log_input=False, full=True, reduction=reduction),
        make=_chance,
    ),
    *_losses(
        "soft_margin_loss", lambda x, y, reduction: F.soft_margin_loss(x, _sign(y), reduction=reduction)
    ),
    *_losses(
        "hinge_embedding_loss",
        lambda x, y, reduction: F.hinge_embedding_loss(x, _sign(y), 0.5, reduction=reduction),
    ),
    *_losses(
        "margin_ranking_loss",
        lambda x, y, z, reduction: F.margin_ranking_loss(x, y, _sign(z), 0.1, reduction=reduction),
        3,
    ),
    *_cross("cross_entropy", F.cross_entropy, spread=(2, 2, 2), spread_back=(0, 0, 0)),
    *_cross(
        "cross_entropy",
        lambda x, t, reduction: F.cross_entropy(
            x, t, torch.arange(1.0, 6).to(x.dtype), ignore_index=1, reduction=reduction, label_smoothing=0.1
        ),
        spread=(2, 2, 2),
        spread_back=(0, 0, 0),
    ),
    *_cross(
        "nll_loss",
        lambda x, t, reduction: F.nll_loss(
            x, t, torch.arange(1.0, 6).to(x.dtype), ignore_index=1, reduction=reduction
        ),
        spread=(1, 1, 1),
        spread_back=(0, 0, 0),
    ),
    *[
        Sample(
            op="cross_entropy",
            run=lambda x, t, how=how: F.cross_entropy(
                x, t.softmax(1), torch.arange(1.0, 6).to(x.dtype), reduction=how, label_smoothing=0.1
            ),
            inputs=((4, 5, 7), (4, 5, 7)),
            dims=((0, 0), (2, 2)),
            grid=(((0, 1), (0, 1)),),
            forward=int(how != "none"),
        )
        for how in ("none", "mean", "sum")
    ],
    Sample(
        op="cross_entropy",
        run=lambda x, t: F.cross_entropy(x, t.softmax(1), label_smoothing=0.1),
        inputs=((4, 5), (4, 5)),
        dims=((1, 1),),
        forward=3,
        backward=1,
    ),
    Sample(
        op="cosine_similarity",
        run=F.cosine_similarity,
        inputs=((4, 7, 3), (4, 7, 3)),
        dims=((0, 0), (2, 2)),
        grid=(((0, 2), (0, 2)), ((0, 1), (0, 1))),
    ),
    Sample(
        op="cosine_similarity",
        run=lambda x, y: F.cosine_similarity(x, y, dim=1, eps=1e-6),
        inputs=((4, 7, 3), (4, 7, 3)),
        dims=((1, 1),),
        forward=1,
    ),
    *[
        Sample(
            op="cosine_embedding_loss",
            run=lambda x, y, z, how=how: F.cosine_embedding_loss(x, y, _sign(z), 0.1, reduction=how),
            inputs=((7, 4), (7, 4), (7,)),
            dims=((0, 0, 0),),
            forward=int(how != "none"),
        )
        for how in ("none", "mean", "sum")
    ],
]
