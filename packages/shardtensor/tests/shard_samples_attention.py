"""Samples of attention: local, over a sharded sequence by every method, and of replicated queries."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from shard_samples import Sample

from shardtensor import attention

attend = F.scaled_dot_product_attention
OP = "scaled_dot_product_attention"
SELF = ((2, 4, 7, 8),) * 3
CROSS = ((2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 8))
GROUPED = ((2, 6, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8))
NARROW = ((2, 4, 7, 8), (2, 4, 7, 8), (2, 4, 7, 5))
SEQUENCE = ((2, 2, 2),)
GRIDS = (
    ((1, 2), (1, 2), (1, 2)),
    ((2, 0), (2, 0), (2, 0)),
    ((2, None), (None, 2), (None, 2)),
    ((None, 2), (1, 2), (1, 2)),
)


def by(method: Any, masked: Callable[[Any], Any] = lambda mask: mask, **options: Any) -> Callable[..., Any]:
    """Returns attention by one method; a fourth tensor is the mask."""

    def run(q: Any, k: Any, v: Any, *mask: Any) -> Any:
        with attention(method):
            return attend(q, k, v, attn_mask=masked(mask[0]) if mask else None, **options)

    return run


def passes(ranks: int) -> int:
    """Keys go P - 1 times, and so do their gradients, a step behind."""
    return 2 * (ranks - 1)


COUNTS: dict[str, dict[str, Any]] = {
    "ring": {"forward": lambda ranks: ranks - 1, "backward": passes},
    "ulysses": {"forward": 4, "backward": 4},
    "gather": {"forward": 1, "backward": 1},
}


def more(count: Any, extra: int) -> Any:
    return (lambda ranks: count(ranks) + extra) if callable(count) else count + extra


def over_sequence(method: str) -> list[Sample]:
    counts, causal = COUNTS[method], {"is_causal": True}
    weighed = {"forward": counts["forward"], "backward": more(counts["backward"], 1)}
    grid = GRIDS if method != "ulysses" else GRIDS[:2]
    plain = [
        Sample(op=OP, run=by(method, **options), inputs=inputs, dims=SEQUENCE, grid=used, **counts)
        for inputs, options, used in (
            (SELF, {}, grid),
            (SELF, causal, grid),
            (CROSS, {"scale": 0.3}, ()),
            (CROSS, causal, grid),
            (((2, 4, 9, 8), (2, 4, 5, 8), (2, 4, 5, 8)), causal, ()),
            (GROUPED, {"enable_gqa": True}, (((1, 2), (1, 2), (1, 2)), ((1, 2), (None, 2), (None, 2)))),
            (NARROW, causal, ()),
        )
    ]
    flat = [
        Sample(
            op=OP, run=by(method), inputs=((3, 7, 4),) * 3, dims=((1, 1, 1),), grid=(((0, 1),) * 3,), **counts
        ),
        Sample(op=OP, run=by(method, **causal), inputs=((7, 4),) * 3, dims=((0, 0, 0),), **counts),
    ]
    masks = [
        Sample(
            op=OP,
            run=by(method),
            inputs=CROSS,
            dims=SEQUENCE,
            grid=(((1, 2),) * 3,),
            weights=(shape,),
            **weighed,
        )
        for shape in ((5, 9), (4, 1, 9), (2, 1, 5, 9), (1, 4, 5, 1), (9,))
    ]
    for threshold in (-0.5, 0.8):  # above the second, whole rows see nothing
        seen = lambda x, t=threshold: x.detach() > t  # noqa: E731
        run = by(method, seen)
        masks.append(Sample(op=OP, run=run, inputs=CROSS, dims=SEQUENCE, weights=((4, 5, 9),), **counts))
    return plain + flat + masks


SHARDED_MASKS = [
    Sample(
        op=OP,
        run=by("ring"),
        inputs=(*CROSS, shape),
        dims=((2, 2, 2, dim),),
        forward=more(COUNTS["ring"]["forward"], moves),
        backward=more(COUNTS["ring"]["backward"], moves_back),
    )
    for shape, dim, moves, moves_back in (
        ((5, 9), 0, 0, 0),
        ((2, 4, 5, 9), 2, 0, 0),
        ((5, 9), 1, 1, 1),
        ((2, 1, 1, 9), 3, 1, 1),
    )
]
LOCAL = [
    Sample(op=OP, run=attend, inputs=SELF, dims=((0, 0, 0), (1, 1, 1)), grid=(((0, 1),) * 3,)),
    Sample(op=OP, run=by("auto", is_causal=True), inputs=CROSS, dims=((0, 0, 0), (1, 1, 1))),
    Sample(
        op=OP,
        run=by("auto", enable_gqa=True),
        inputs=GROUPED,
        dims=((0, 0, 0),),
        grid=(((0, 1), (0, 1), (0, 1)),),
    ),
    Sample(
        op=OP,
        run=by("auto", enable_gqa=True),
        inputs=((2, 24, 5, 8), *((2, 12, 5, 8),) * 2),
        dims=((0, 0, 0),),
    ),
    Sample(op=OP, run=attend, inputs=SELF, dims=((0, 0, 0), (1, 1, 1)), weights=((2, 4, 7, 7),), backward=1),
    Sample(op=OP, run=attend, inputs=CROSS, dims=((2, None, None),), backward=2),
    Sample(op=OP, run=by("auto", is_causal=True), inputs=SELF, dims=((2, None, None),), backward=2),
    Sample(op=OP, run=attend, inputs=CROSS, dims=((2, None, None),), weights=((5, 9),), backward=3),
]
OWN_KEYS = [
    Sample(op=OP, run=attend, inputs=CROSS, dims=((None, 2, 2),), forward=2, backward=1),
    Sample(op=OP, run=by("auto", is_causal=True), inputs=SELF, dims=((None, 2, 2),), forward=2, backward=1),
    Sample(
        op=OP,
        run=by("auto", enable_gqa=True, scale=2.0),
        inputs=GROUPED,
        dims=((None, 2, 2),),
        forward=2,
        backward=1,
    ),
    Sample(
        op=OP,
        run=by("auto", enable_gqa=True, scale=2.0),
        inputs=GROUPED,
        dims=((None, 2, None), (None, None, 2)),
        forward=2,
        backward=2,
    ),
    Sample(op=OP, run=attend, inputs=CROSS, dims=((None, 2, 2),), weights=((5, 9),), forward=2, backward=2),
    Sample(
        op=OP, run=attend, inputs=CROSS, dims=((None, 2, 2),), weights=((4, 5, 1),), forward=2, backward=2
    ),
    Sample(op=OP, run=attend, inputs=(*CROSS, (5, 9)), dims=((None, 2, 2, 1),), forward=2, backward=1),
    Sample(op=OP, run=attend, inputs=(*CROSS, (5, 9)), dims=((None, 2, 2, 0),), forward=3, backward=2),
    Sample(
        op=OP,
        run=by("auto", lambda x: x.detach() > 0.8),
        inputs=CROSS,
        dims=((None, 2, 2),),
        weights=((5, 9),),
        forward=2,
        backward=1,
    ),
]
SAMPLES = [
    *LOCAL,
    *OWN_KEYS,
    *over_sequence("ring"),
    *SHARDED_MASKS,
    *over_sequence("ulysses"),
    *over_sequence("gather"),
]
