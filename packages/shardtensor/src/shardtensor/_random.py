"""Random numbers by global index: the same for any number of ranks, any sizes and any mesh.

Element g of a global tensor gets its number from the counter-based generator Philox4x32-10 (Salmon et al.
2011, doi:10.1145/2063384.2063405), with the seed as key and a counter made of g and the number of the draw.
No rank draws what it does not hold, and none has to know what others drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor._align import align, broadcast_axes
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._tensor import Handler, ShardTensor, like, unsupported

Draw: TypeAlias = tuple[int, int | Tensor]  # seed, number of the draw
Words: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # int64 holding 32 random bits each
Transform: TypeAlias = Callable[[Words], tuple[Tensor, ...]]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 1 << 15  # counters; their state stays in a core's cache


def philox(counter: Sequence[Any], key: tuple[int, int]) -> Words:
    """Philox4x32-10: four words of 32 bits for every counter of four words.

    Args:
        counter: four int64 tensors (or ints) with values in [0, 2^32), that broadcast.
        key: two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Products wrap modulo 2^64. Only factors need a clear upper half: c1 and c3 keep it for a round.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ (c1 ^ k0)) & _MASK
        c2 = ((p0 >> 32) ^ (c3 ^ k1)) & _MASK
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def numbers(
    draw: Draw,
    shape: Sequence[int],
    block: Sequence[slice],
    device: torch.device,
    transform: Transform,
    lanes: int = 4,
) -> Tensor:
    """Returns the numbers of a block of a global tensor.

    The counter of an element is (row, column // lanes, draw): its column is its index in the last dimension,
    its row the row-major index of the others. `transform` makes the numbers of `lanes` neighbouring columns
    from the four words of their counter.

    Args:
        draw: seed and number of the draw.
        shape: global shape.
        block: the part wanted, one slice for each dimension.
        device: where to compute.
        transform: elementwise function of the four words.
        lanes: how many numbers it returns.
    """
    *outer, last = block if len(block) else (slice(0, 1),)
    rows = _row_numbers(shape, outer, device)
    first, stop = last.start // lanes, -(-last.stop // lanes)
    columns = torch.arange(first, max(stop, first), device=device)
    tall, wide = _chunks(len(rows), len(columns), device)
    bands = []
    for band in rows.split(tall):
        parts = [_lines(draw, band[:, None], part, transform) for part in columns.split(wide)]
        bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
    whole = bands[0] if len(bands) == 1 else torch.cat(bands)
    whole = whole.narrow(1, last.start - first * lanes, last.stop - last.start)
    return whole.reshape([part.stop - part.start for part in block])


def _row_numbers(shape: Sequence[int], outer: Sequence[slice], device: torch.device) -> Tensor:
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    for extent, part in zip(shape, outer, strict=False):
        index = torch.arange(part.start, part.stop, device=device)
        rows = (rows[:, None] * extent + index).flatten()
    return rows


def _chunks(rows: int, columns: int, device: torch.device) -> tuple[int, int]:
    """Returns how many rows and columns of counters to compute at once; on a CPU the caches decide."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return max(rows, 1), max(columns, 1)
    wide = min(max(columns, 1), _CHUNK)
    return max(_CHUNK // wide, 1), wide


def _lines(draw: Draw, rows: Tensor, columns: Tensor, transform: Transform) -> Tensor:
    seed, number = draw
    counter = (rows & _MASK, rows >> 32, columns, number & _MASK)
    return torch.stack(transform(philox(counter, (seed & _MASK, seed >> 32))), -1).flatten(1)


def at_least(threshold: float) -> Transform:
    """Returns the transform that is True with probability 1 - threshold."""
    bound = round(threshold * 2**32)
    return lambda words: tuple(word >= bound for word in words)


def _uniform(dtype: torch.dtype) -> tuple[Transform, int]:
    """Returns the transform to uniform numbers in [0, 1) with all bits of the dtype, and its lanes."""
    if dtype == torch.float64:
        return _uniform64, 2
    bits = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    return lambda words: tuple((word >> (32 - bits)).to(dtype) * 2.0**-bits for word in words), 4


def _uniform64(words: Words) -> tuple[Tensor, ...]:
    a, b, c, d = words
    return tuple(((high << 21) | (low >> 11)).double() * 2.0**-53 for high, low in ((a, b), (c, d)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _normal(dtype: torch.dtype) -> Transform:
    """Box and Muller (1958): two normal numbers from two uniform ones, of 32 bits each."""
    wide = _wide(dtype)

    def transform(words: Words) -> tuple[Tensor, ...]:
        out = []
        for a, b in (words[:2], words[2:]):
            radius = ((a + 1).to(wide) * 2.0**-32).log().mul(-2).sqrt()
            angle = b.to(wide) * (2 * math.pi * 2.0**-32)
            out += [(radius * angle.cos()).to(dtype), (radius * angle.sin()).to(dtype)]
        return tuple(out)

    return transform


def _exponential(dtype: torch.dtype) -> Transform:
    wide = _wide(dtype)
    return lambda words: tuple(-((word + 1).to(wide) * 2.0**-32).log().to(dtype) for word in words)


class _Stream:
    """The state of this process: what the next draw is.

    The number of draws is a tensor, for compiled code to read and advance: an int would be a constant there.
    """

    __slots__ = ("draws", "repeats", "seed")

    def __init__(self) -> None:
        self.seed: int | None = None
        self.draws = torch.zeros((), dtype=torch.int64, device="cpu")
        self.repeats = False


_stream = _Stream()


def manual_seed(seed: int) -> None:
    """Starts the random numbers of ShardTensors; call it alike on every rank.

    Plain tensors keep torch's generator. The numbers depend on the seed, on how many random operations ran on
    ShardTensors since, and on the global shape; not on ranks, sizes or the mesh. Every rank must run the same
    random operations in the same order.

    Args:
        seed: any integer; its lowest 64 bits count.
    """
    _stream.seed = int(seed) & (2**64 - 1)
    _stream.draws.zero_()


def get_rng_state() -> dict[str, int | None]:
    """Returns the state of the random numbers, for a checkpoint of a run."""
    return {"seed": _stream.seed, "draws": int(_stream.draws)}


def set_rng_state(state: Mapping[str, int | None]) -> None:
    """Continues the random numbers from a state of `get_rng_state`."""
    _stream.seed = state["seed"]
    _stream.draws.fill_(state["draws"] or 0)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Lets activation checkpointing repeat the random numbers of ShardTensors.

    Examples:
        checkpoint(block, x, use_reentrant=False, context_fn=shardtensor.checkpoint_contexts)
    """
    at: dict[str, int | None] = {}

    @contextmanager
    def forward() -> Iterator[None]:
        at.update(get_rng_state())
        yield

    @contextmanager
    def recompute() -> Iterator[None]:
        later, repeats = get_rng_state(), _stream.repeats
        set_rng_state(at)
        _stream.repeats = True
        try:
            yield
        finally:
            set_rng_state(later)
            _stream.repeats = repeats

    return forward(), recompute()


def next_draw(op: str, args: Sequence[Any]) -> Draw:
    """Returns the seed and the number of the next draw.

    Raises:
        UnsupportedShardedOp: there is no seed, or a backward pass draws anew instead of repeating.
    """
    if _stream.seed is None:
        raise _refusal(
            op,
            args,
            "random numbers need a seed that all ranks share",
            "Call shardtensor.manual_seed(seed) first, alike on every rank.",
        )
    compiling = torch.compiler.is_compiling()
    if not compiling and not _stream.repeats and torch._C._current_graph_task_id() != -1:
        raise _refusal(
            op,
            args,
            "random numbers that a backward pass draws are not those of the forward pass",
            "Give torch.utils.checkpoint context_fn=shardtensor.checkpoint_contexts.",
        )
    number = _stream.draws.clone() if compiling else int(_stream.draws)
    _stream.draws.add_(1)
    return _stream.seed, number


def _refusal(op: str, args: Sequence[Any], reason: str, remedy: str = "") -> UnsupportedShardedOp:
    error = unsupported(op, args, {}, reason, remedy)
    error.random = True
    return error


def random(name: str) -> Handler:
    """Returns the handler of the torch functions of that name, which draw random numbers."""
    run, names = _FUNCTIONS.get(name, (None, ()))
    options = {"inplace": True} if "dropout" in name and name.endswith("_") else {}

    def handler(
        _func: Callable[..., Any], _: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> ShardTensor:
        named = dict(zip(("input", *names), args, strict=False))
        named |= {_ALIASES.get(key, key): value for key, value in kwargs.items()} | options
        x = named.pop("input", None)
        if run is None or not isinstance(x, ShardTensor) or named.pop("generator", None) is not None:
            raise _refusal(
                name, args, "random numbers of the ranks would not agree with those of one process"
            )
        if x.spec.partial:
            raise _refusal(name, args, "random numbers for a pending sum")
        return run(name, x, **named)

    return handler


_ALIASES = {"train": "training", "self": "input"}


def _of(op: str, x: ShardTensor, transform: Transform, lanes: int = 4, lead: int | None = None) -> Tensor:
    """Returns this rank's numbers for x; with `lead` one for each index of the first `lead` dimensions."""
    shape, block = list(x.shape), list(x.local_slices())
    if lead is not None:
        shape[lead:], block[lead:] = [1] * (x.ndim - lead), [slice(0, 1)] * (x.ndim - lead)
    return numbers(next_draw(op, (x,)), shape, block, x.device, transform, lanes)


def _dropout(
    op: str, x: ShardTensor, p: float = 0.5, training: bool | None = None, inplace: bool = False
) -> ShardTensor:
    if training is None:  # a compiled graph leaves torch's defaults to the handler
        training = "alpha" not in op
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: dropout probability has to be between 0 and 1, got {p}")
    if p == 0 or not training:
        return x
    keep = _of(op, x, at_least(p), lead=_lead(op, x.ndim))
    if "alpha" in op:
        return _written(x, _alpha(x.local, keep, p), inplace)
    factor = keep.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p))
    return _written(x, x.local.mul_(factor) if inplace else x.local * factor, False)


def _lead(op: str, ndim: int) -> int | None:
    """Returns how many leading dimensions share no number: channels are dropped whole."""
    if "feature" in op or op.startswith("dropout2d"):
        return 2
    if op[-2:] in ("1d", "3d"):
        return ndim - int(op[-2])
    return None


def _alpha(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """Keeps mean and variance of SELU outputs (Klambauer et al. 2017, arXiv 1706.02515)."""
    low = -1.7580993408473766
    if p == 1:
        return torch.zeros_like(x)
    scale = 1 / math.sqrt((1 - p) * (1 + p * low**2))
    return torch.where(keep, x, low) * scale - scale * low * p


def _written(x: ShardTensor, out: Tensor, inplace: bool) -> ShardTensor:
    return ShardTensor(x.local.copy_(out) if inplace else out, x.spec)


def _filled(
    x: ShardTensor, values: Tensor, *, requires_grad: bool = False, device: Any = None, **_: Any
) -> ShardTensor:
    values = values if device is None else values.to(device)
    return like(values.requires_grad_() if requires_grad else values, x.spec)


def _rand_like(op: str, x: ShardTensor, dtype: torch.dtype | None = None, **options: Any) -> ShardTensor:
    return _filled(x, _of(op, x, *_uniform(dtype or x.dtype)), **options)


def _randn_like(op: str, x: ShardTensor, dtype: torch.dtype | None = None, **options: Any) -> ShardTensor:
    return _filled(x, _of(op, x, _normal(dtype or x.dtype)), **options)


def _randint_like(
    op: str,
    x: ShardTensor,
    low: int = 0,
    high: int | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> ShardTensor:
    low, high = (0, low) if high is None else (low, high)
    count = high - low
    if not 0 < count < 2**31:
        raise ValueError(f"randint_like needs 0 < high - low < 2^31, got low {low}, high {high}")
    kind = dtype or x.dtype
    values = _of(op, x, lambda words: tuple(((word * count >> 32) + low).to(kind) for word in words))
    return _filled(x, values, **options)


def _below(op: str, x: ShardTensor, p: Any) -> Tensor:
    """Returns True with probability p: a number, or a tensor that broadcasts to x."""
    if isinstance(p, float | int):
        if not 0 <= p <= 1:
            raise RuntimeError(f"{op} expects p to be in [0, 1], got {p}")
        return ~_of(op, x, at_least(p))
    aligned = align(op, [x, p], broadcast_axes([x.shape, p.shape]))
    if len(p.shape) > x.ndim or torch.broadcast_shapes(x.shape, p.shape) != x.shape:
        raise RuntimeError(f"{op}: p of shape {tuple(p.shape)} does not broadcast to {tuple(x.shape)}")
    drawn = _of(op, x, lambda words: tuple(word.double() * 2.0**-32 for word in words))
    return drawn < aligned.locals[1]


def _bernoulli(op: str, x: ShardTensor, p: float | None = None) -> ShardTensor:
    chosen = _below(op, x, x.detach() if p is None else p)
    return like(chosen.to(x.dtype), x.spec)


def _bernoulli_(op: str, x: ShardTensor, p: Any = 0.5) -> ShardTensor:
    x.local.copy_(_below(op, x, p))
    return x


def _normal_(op: str, x: ShardTensor, mean: float = 0.0, std: float = 1.0) -> ShardTensor:
    if std < 0:
        raise RuntimeError(f"normal_ expects std >= 0.0, got {std}")
    x.local.copy_(_of(op, x, _normal(x.dtype)) * std + mean)
    return x


def _uniform_(op: str, x: ShardTensor, low: float = 0.0, high: float = 1.0, **named: float) -> ShardTensor:
    low, high = named.get("from", low), named.get("to", high)
    if low > high:
        raise RuntimeError(f"uniform_ expects from <= to, got {low} and {high}")
    x.local.copy_(_of(op, x, *_uniform(x.dtype)) * (high - low) + low)
    return x


def _exponential_(op: str, x: ShardTensor, lambd: float = 1.0) -> ShardTensor:
    if lambd <= 0:
        raise RuntimeError(f"exponential_ expects lambd > 0.0, got {lambd}")
    x.local.copy_(_of(op, x, _exponential(x.dtype)) / lambd)
    return x


def _rrelu(
    op: str,
    x: ShardTensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> ShardTensor:
    if not training:
        return _written(x, F.leaky_relu(x.local, (lower + upper) / 2), inplace)
    slope = _of(op, x, lambda words: tuple(word.to(_wide(x.dtype)) * 2.0**-32 for word in words))
    slope = (slope * (upper - lower) + lower).to(x.dtype)
    return _written(x, torch.where(x.local >= 0, x.local, x.local * slope), inplace)


_PROBABILITY = ("p", "training", "inplace")
_FUNCTIONS: dict[str, tuple[Callable[..., ShardTensor], tuple[str, ...]]] = {
    name: (_dropout, _PROBABILITY)
    for name in (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
        *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
    )
} | {
    "rand_like": (_rand_like, ()),
    "randn_like": (_randn_like, ()),
    "randint_like": (_randint_like, ("low", "high")),
    "bernoulli": (_bernoulli, ("p",)),
    "bernoulli_": (_bernoulli_, ("p",)),
    "normal_": (_normal_, ("mean", "std")),
    "uniform_": (_uniform_, ("low", "high")),
    "exponential_": (_exponential_, ("lambd",)),
    "rrelu": (_rrelu, ("lower", "upper", "training", "inplace")),
}
