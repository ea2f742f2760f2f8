"""What runs on sharded tensors: the table of operations, to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shardtensor import _fourier, _random, _table
from shardtensor._tensor import Handler

_GATHERS = "gathers the dimension, with a warning"
_DATA = "refuses: the extent of the result, or what goes where, depends on data"
_MATRICES = "refuses sharded matrices; the batch may be sharded"
_NOTES: dict[str, str] = {
    **dict.fromkeys(
        _table._words("sort argsort msort mode kthvalue median nanmedian quantile nanquantile"), _GATHERS
    ),
    **dict.fromkeys(("unique", "unique_consecutive"), "gathers all dimensions, with a warning"),
    **dict.fromkeys(("masked_select", "masked_scatter", "masked_scatter_", "nonzero", "argwhere"), _DATA),
    **dict.fromkeys(("bucketize", "searchsorted", "isin"), "refuses a sharded table"),
    **dict.fromkeys(("cross", "linalg.cross"), "refuses over sharded vectors"),
    **dict.fromkeys(
        ("channel_shuffle", "local_response_norm", "pixel_shuffle", "pixel_unshuffle"),
        "refuses over sharded channels",
    ),
    **dict.fromkeys(("view_as_real", "view_as_complex"), "refuses over a sharded last dimension"),
    **dict.fromkeys(("diagonal", "linalg.diagonal"), "refuses where both of its dimensions are sharded"),
    **dict.fromkeys(
        ("linalg.solve", "linalg.solve_triangular"),
        "refuses sharded matrices; the right sides may be sharded",
    ),
    "cdist": "refuses over sharded coordinates",
    "group_norm": "refuses where a group of channels is spread over ranks",
    "kron": "refuses: blocks of the result would lie on several ranks",
    "multi_head_attention_forward": "refuses bias_k, bias_v and add_zero_attn",
}
_MODULES = {
    "attention": "attention",
    "multihead": "attention",
    "contract": "contraction",
    "linalg": "matrix",
    "products": "contraction",
    "views": "view",
    "normalise": "norm",
    "losses": "loss",
    "pointwise": "pointwise",
    "reduce": "reduction",
    "sort": "reduction",
    "window": "window",
    "pad": "window",
    "interpolate": "window",
    "blocks": "window",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """A torch function that sharded tensors know.

    Attributes:
        name: under `torch`, `torch.nn.functional` or `torch.Tensor`.
        kind: of operation; those of a kind share their rules.
        note: where it gathers or refuses; "" where there is nothing of that to say.
    """

    name: str
    kind: str
    note: str = ""


def operations() -> tuple[Operation, ...]:
    """Returns every torch function that sharded tensors know, sorted by kind and name.

    A few are known only to be refused, with a reason that says what to do; their note begins with "refuses:".

    Examples:
        [operation.name for operation in shardtensor.operations() if operation.kind == "window"]
    """
    found = {name: Operation(name, kind, _note(name, kind)) for name, kind in _named()}
    return tuple(sorted(found.values(), key=lambda operation: (operation.kind, operation.name)))


def _named() -> Iterator[tuple[str, str]]:
    yield from _existing(_table.POINTWISE, "pointwise")
    yield from _existing(_table.IN_PLACE, "pointwise in place")
    yield from _existing(_table.CAST, "cast")
    yield from _existing(_table.QUERY, "query")
    yield from _existing(_table.RANDOM, "random")
    yield from _existing(_table.REDUCE, "reduction")
    yield from _existing(_table.VIEW, "view")
    yield from _existing(_table.WRITTEN, "in place")
    yield from _existing(_table.CONTRACT, "contraction")
    yield from _existing(_table.MATRIX_METHODS, "matrix")
    yield from _existing(_table.INDEX, "index")
    yield from _existing(_table.JOIN, "join")
    yield from _existing(_table.WINDOWS, "window")
    for name, handler in _table.SPECIAL.items():
        yield from _existing([name], _kind(handler))
    for name in _table.NORMS:
        yield f"linalg.{name}", "reduction"
    for name, handler in _table.LINALG.items():
        yield f"linalg.{name}", _kind(handler)
    for name in (*_fourier.NAMES.values(), "fftshift", "ifftshift"):
        yield f"fft.{name}", "fourier"
    yield from (("fold", "window"), ("nn.functional.unfold", "window"), ("autograd.grad", "gradient"))


def _existing(names: Iterable[str], kind: str) -> Iterator[tuple[str, str]]:
    """Yields the names that this version of torch has."""
    yield from ((name, kind) for name in names if _table._functions(name))


def _kind(handler: Handler) -> str:
    """Returns the kind of the operations of a module."""
    module = handler.__module__.rpartition("._")[2]
    return _MODULES.get(module, module)


def _note(name: str, kind: str) -> str:
    if kind == "random" and name not in _random._FUNCTIONS:
        return "refuses: the numbers of the ranks would not agree with those of one process"
    if kind == "matrix" and name not in _NOTES:
        return _MATRICES
    if kind == "fourier" and "shift" not in name and name.removeprefix("fft.") not in _fourier._COMPLEX:
        return "refuses where every dimension is transformed or sharded"
    return _NOTES.get(name, "")
