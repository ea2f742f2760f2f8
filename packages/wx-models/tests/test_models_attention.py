"""Neighbourhood attention: closed forms, a plain loop, invariances, row splits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wx_models import neighborhood_attention


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(
    rows: int, columns: int, *, batch: int = 2, heads: int = 2, size: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (draw(batch, rows, columns, heads, size, seed=seed) for seed in range(3))
    return q, k, v


def window(index: int, size: int, length: int, *, wrap: bool) -> list[int]:
    if wrap:
        return [(index - size // 2 + step) % length for step in range(size)]
    start = min(max(index - size // 2, 0), length - size)
    return list(range(start, start + size))


def loop_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], offset: int, wrap: bool
) -> Tensor:
    """One query at a time, straight from the definition."""
    out = torch.zeros_like(q)
    for i in range(q.shape[1]):
        rows = window(i + offset, kernel[0], k.shape[1], wrap=False)
        for j in range(q.shape[2]):
            columns = window(j, kernel[1], k.shape[2], wrap=wrap)
            keys, values = (x[:, rows][:, :, columns].flatten(1, 2) for x in (k, v))
            logits = torch.einsum("bnd,bknd->bkn", q[:, i, j], keys) / math.sqrt(q.shape[-1])
            out[:, i, j] = torch.einsum("bkn,bknd->bnd", logits.softmax(1), values)
    return out


GRIDS = [
    pytest.param(5, 8, (3, 3), id="5x8-3x3"),
    pytest.param(3, 32, (3, 5), id="window-as-high-as-grid"),
    pytest.param(7, 18, (5, 7), id="7x18-5x7"),
    pytest.param(4, 7, (1, 7), id="window-as-wide-as-grid"),
    pytest.param(3, 17, (3, 3), id="prime-columns"),
    pytest.param(1, 1, (1, 1), id="one-point"),
]


@pytest.mark.parametrize("backend", ["blocked", "dense"])
@pytest.mark.parametrize("longitude", ["periodic", "clamp"])
@pytest.mark.parametrize(("rows", "columns", "kernel"), GRIDS)
def test_equals_loop_over_queries(
    rows: int, columns: int, kernel: tuple[int, int], longitude: str, backend: str
) -> None:
    q, k, v = qkv(rows, columns)
    out = neighborhood_attention(q, k, v, kernel=kernel, longitude=longitude, backend=backend)
    torch.testing.assert_close(out, loop_attention(q, k, v, kernel, 0, longitude == "periodic"))


@pytest.mark.parametrize("longitude", ["periodic", "clamp"])
@pytest.mark.parametrize(("rows", "columns", "kernel"), GRIDS)
def test_gradients_equal_the_dense_reference(
    rows: int, columns: int, kernel: tuple[int, int], longitude: str
) -> None:
    cotangent = draw(2, rows, columns, 2, 3, seed=9)
    grads = []
    for backend in ("blocked", "dense"):
        inputs = [x.requires_grad_() for x in qkv(rows, columns)]
        out = neighborhood_attention(*inputs, kernel=kernel, longitude=longitude, backend=backend)
        grads.append(torch.autograd.grad(out, inputs, cotangent))
    torch.testing.assert_close(grads[0], grads[1])


def test_zero_queries_average_the_window() -> None:
    _, k, _ = qkv(5, 8, batch=1, heads=1, size=1)
    column = torch.arange(8, dtype=torch.float64).view(1, 1, 8, 1, 1).expand(1, 5, 8, 1, 1)
    out = neighborhood_attention(torch.zeros_like(k), k, column, kernel=(3, 3))[0, 0, :, 0, 0]
    expected = [(7 + 0 + 1) / 3, 1, 2, 3, 4, 5, 6, (6 + 7 + 0) / 3]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_polar_windows_are_shifted_inward() -> None:
    _, k, _ = qkv(5, 8, batch=1, heads=1, size=1)
    row = torch.arange(5, dtype=torch.float64).view(1, 5, 1, 1, 1).expand(1, 5, 8, 1, 1)
    out = neighborhood_attention(torch.zeros_like(k), k, row, kernel=(3, 3))[0, :, 0, 0, 0]
    torch.testing.assert_close(out, torch.tensor([1.0, 1.0, 2.0, 3.0, 3.0], dtype=torch.float64))


def test_periodic_windows_commute_with_rotation_and_clamped_ones_do_not() -> None:
    inputs = qkv(5, 16)
    turned = [x.roll(3, 2) for x in inputs]

    def difference(longitude: str) -> float:
        out = neighborhood_attention(*inputs, kernel=(3, 3), longitude=longitude)
        rotated = neighborhood_attention(*turned, kernel=(3, 3), longitude=longitude)
        return float((out.roll(3, 2) - rotated).abs().max())

    assert difference("periodic") < 1e-12
    assert difference("clamp") > 1e-2


@pytest.mark.parametrize("sizes", [(6, 5), (1, 9, 1), (0, 11), (4, 4, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3)])
def test_rows_split_over_parts_equal_the_whole(sizes: tuple[int, ...], kernel: tuple[int, int]) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(11, 6))
    whole = neighborhood_attention(q, k, v, kernel=kernel)
    parts, first = [], 0
    for size in sizes:
        last, top = first + size, 11 - kernel[0]
        low = min(max(first - kernel[0] // 2, 0), top)
        high = min(max(last - 1 - kernel[0] // 2, 0), top) + kernel[0] if size else low + kernel[0]
        rows = slice(low, high)
        parts.append(
            neighborhood_attention(
                q[:, first:last], k[:, rows], v[:, rows], kernel=kernel, row_offset=first - low
            )
        )
        first = last
    joined, cotangent = torch.cat(parts, 1), draw(*whole.shape, seed=9)
    torch.testing.assert_close(joined, whole)
    torch.testing.assert_close(
        torch.autograd.grad(joined, (q, k, v), cotangent), torch.autograd.grad(whole, (q, k, v), cotangent)
    )


class Recorder(Tensor):
    """Stands for a tensor type that brings its own neighbourhood attention."""

    seen: tuple[Any, ...] = ()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is neighborhood_attention:
            cls.seen = (len(args), dict(kwargs))
            return "taken over"
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_any_overriding_argument_takes_over(position: int) -> None:
    arguments: list[Tensor] = list(qkv(5, 8))
    arguments[position] = arguments[position].as_subclass(Recorder)
    result: Any = neighborhood_attention(*arguments, kernel=(3, 3), row_offset=1)
    assert result == "taken over"
    assert Recorder.seen == (
        3,
        {"kernel": (3, 3), "row_offset": 1, "longitude": "periodic", "backend": "blocked"},
    )


def test_first_call_under_inference_mode_leaves_training_possible() -> None:
    q, k, v = qkv(5, 22)
    with torch.inference_mode():
        neighborhood_attention(q, k, v, kernel=(3, 3))
    neighborhood_attention(q.requires_grad_(), k, v, kernel=(3, 3)).sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": (2, 3)}, "must be odd"),
        ({"kernel": (7, 3)}, "larger than"),
        ({"kernel": (3, 9)}, "larger than"),
        ({"longitude": "reflect"}, "longitude must be one of"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
)
def test_refuses_what_it_cannot_do(change: dict[str, Any], message: str) -> None:
    q, k, v = qkv(5, 8)
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(q, k, v, **{"kernel": (3, 3), **change})


def test_refuses_unequal_columns_and_heads() -> None:
    q, k, v = qkv(5, 8)
    with pytest.raises(ValueError, match="must agree outside the rows"):
        neighborhood_attention(q[:, :, :4], k, v, kernel=(3, 3))
    with pytest.raises(ValueError, match="must agree outside the rows"):
        neighborhood_attention(q, k, v[:, :3], kernel=(3, 3))
