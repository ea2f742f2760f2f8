"""Neighbourhood attention: closed forms, a plain loop, the doubled sphere, invariances, parts, backends."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from wx_models import _fused, neighborhood_attention
from wx_models._blocked import tile_size


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: tuple[int, int],
    offset: int,
    wrap: bool,
    *,
    wrap_rows: bool = False,
) -> Tensor:
    """One query at a time, straight from the definition."""
    out = torch.zeros_like(q)
    for i in range(q.shape[1]):
        rows = window(i + offset, kernel[0], k.shape[1], wrap=wrap_rows)
        for j in range(q.shape[2]):
            columns = window(j, kernel[1], k.shape[2], wrap=wrap)
            keys, values = (x[:, rows][:, :, columns].flatten(1, 2) for x in (k, v))
            logits = torch.einsum("bnd,bknd->bkn", q[:, i, j], keys) / math.sqrt(q.shape[-1])
            out[:, i, j] = torch.einsum("bkn,bknd->bnd", logits.softmax(1), values)
    return out


def doubled(x: Tensor, poles: str) -> Tensor:
    """The whole great circles: the rows from pole to pole and back on the other side, periodic in rows."""
    turned = x.roll(x.shape[2] // 2, 2).flip(1)
    return torch.cat([x, turned if poles == "cross" else turned[:, 1:-1]], 1)


GRIDS = [
    pytest.param(5, 8, (3, 3), id="5x8-3x3"),
    pytest.param(3, 32, (3, 5), id="window-as-high-as-grid"),
    pytest.param(7, 18, (5, 7), id="7x18-5x7"),
    pytest.param(4, 7, (1, 7), id="window-as-wide-as-grid"),
    pytest.param(3, 17, (3, 3), id="prime-columns"),
    pytest.param(1, 1, (1, 1), id="one-point"),
    pytest.param(1, 19, (1, 5), id="one-row"),
    pytest.param(5, 7, (5, 7), id="window-as-large-as-grid"),
    pytest.param(13, 37, (3, 3), id="prime-many-tiles"),
    pytest.param(12, 35, (5, 3), id="many-tiles"),
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


@pytest.mark.parametrize("poles", ["clamp", "cross", "cross_pole_row"])
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_gradients_equal_finite_differences(backend: str, poles: str) -> None:
    inputs = [x.requires_grad_() for x in qkv(3, 4, batch=1, heads=1, size=2)]
    call = lambda *x: neighborhood_attention(*x, kernel=(3, 3), poles=poles, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("poles", ["cross", "cross_pole_row"])
@pytest.mark.parametrize(
    ("rows", "columns", "kernel"),
    [(5, 8, (3, 3)), (5, 8, (5, 5)), (3, 6, (1, 3)), (3, 4, (3, 3)), (11, 26, (5, 3))],
)
@pytest.mark.parametrize("backend", ["blocked", "dense"])
def test_windows_across_the_poles_equal_those_on_the_doubled_sphere(
    rows: int, columns: int, kernel: tuple[int, int], poles: str, backend: str
) -> None:
    q, k, v = qkv(rows, columns)
    want = loop_attention(q, *(doubled(x, poles) for x in (k, v)), kernel, 0, True, wrap_rows=True)
    got = neighborhood_attention(q, k, v, kernel=kernel, poles=poles, backend=backend)
    torch.testing.assert_close(got, want)
    some = neighborhood_attention(q[:, 1:3], k, v, kernel=kernel, poles=poles, row_offset=1, backend=backend)
    torch.testing.assert_close(some, want[:, 1:3])


@pytest.mark.parametrize("poles", ["clamp", "cross", "cross_pole_row"])
def test_attention_commutes_with_mirrors_rotations_and_permutations_of_heads(poles: str) -> None:
    inputs = qkv(9, 26, heads=3)
    out = neighborhood_attention(*inputs, kernel=(3, 5), poles=poles)
    for move in (
        lambda x: x.flip(1),
        lambda x: x.flip(2),
        lambda x: x.roll(7, 2),
        lambda x: x[:, :, :, [2, 0, 1]],
        lambda x: x.flip(0),
    ):
        moved = neighborhood_attention(*map(move, inputs), kernel=(3, 5), poles=poles)
        torch.testing.assert_close(moved, move(out))


def test_zero_queries_average_the_window() -> None:
    _, k, _ = qkv(5, 8, batch=1, heads=1, size=1)
    column = torch.arange(8, dtype=torch.float64).view(1, 1, 8, 1, 1).expand(1, 5, 8, 1, 1)
    out = neighborhood_attention(torch.zeros_like(k), k, column, kernel=(3, 3))[0, 0, :, 0, 0]
    expected = [(7 + 0 + 1) / 3, 1, 2, 3, 4, 5, 6, (6 + 7 + 0) / 3]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("poles", "expected"),
    [
        ("clamp", [1, 1, 2, 3, 3]),  # shifted inward
        ("cross", [(0 + 0 + 1) / 3, 1, 2, 3, (3 + 4 + 4) / 3]),
        ("cross_pole_row", [(1 + 0 + 1) / 3, 1, 2, 3, (3 + 4 + 3) / 3]),
    ],
)
def test_polar_windows(poles: str, expected: list[float]) -> None:
    _, k, _ = qkv(5, 8, batch=1, heads=1, size=1)
    row = torch.arange(5, dtype=torch.float64).view(1, 5, 1, 1, 1).expand(1, 5, 8, 1, 1)
    out = neighborhood_attention(torch.zeros_like(k), k, row, kernel=(3, 3), poles=poles)[0, :, 0, 0, 0]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_rows_beyond_a_pole_are_turned_by_half_the_columns() -> None:
    """One key on row 0 is seen from row 0 around its own column and around the opposite one."""
    k, v = torch.zeros(1, 5, 8, 1, 1, dtype=torch.float64), torch.zeros(1, 5, 8, 1, 1, dtype=torch.float64)
    v[0, 0, 1] = 9.0
    out = neighborhood_attention(k, k, v, kernel=(3, 3), poles="cross")[0, :, :, 0, 0]
    expected = torch.zeros(5, 8, dtype=torch.float64)
    expected[:2, 0:3], expected[0, 4:7] = 1.0, 1.0
    torch.testing.assert_close(out, expected)


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
        {"kernel": (3, 3), "row_offset": 1, "longitude": "periodic", "poles": "clamp", "backend": "auto"},
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
        ({"poles": "reflect"}, "poles must be one of"),
        ({"poles": "cross", "longitude": "clamp"}, "even number of columns and"),
        ({"backend": "fast"}, "backend must be one of"),
        ({"row_offset": 1}, "row_offset must put 5 query rows within 5 key rows, got 1"),
        ({"row_offset": -1}, "got -1"),
        ({"backend": "natten"}, "cannot serve this call: it runs on CUDA, the tensors are on 'cpu'"),
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
    with pytest.raises(ValueError, match="must agree outside the rows"):
        neighborhood_attention(q[0], k, v, kernel=(3, 3))


def test_refuses_to_cross_the_poles_with_an_odd_number_of_columns() -> None:
    with pytest.raises(ValueError, match="got 7 columns"):
        neighborhood_attention(*qkv(5, 7), kernel=(3, 3), poles="cross")


def test_flex_refuses_gradients_on_a_cpu() -> None:
    q, k, v = qkv(5, 8)
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        neighborhood_attention(q.requires_grad_(), k, v, kernel=(3, 3), backend="flex")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("longitude", "poles"), [("periodic", "clamp"), ("clamp", "clamp"), ("periodic", "cross")]
)
@pytest.mark.parametrize(("rows", "columns", "kernel"), [(9, 34, (3, 5)), (3, 8, (3, 7)), (17, 32, (7, 3))])
def test_flex_sees_the_window(
    rows: int, columns: int, kernel: tuple[int, int], longitude: str, poles: str
) -> None:
    q, k, v = (x.float() for x in qkv(rows, columns))
    options: dict[str, Any] = {"kernel": kernel, "longitude": longitude, "poles": poles}
    want = neighborhood_attention(q, k, v, backend="dense", **options)
    with torch.no_grad():
        got = neighborhood_attention(q, k, v, backend="flex", **options)
        some = neighborhood_attention(q[:, 1:3], k, v, backend="flex", row_offset=1, **options)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some, want[:, 1:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("longitude", "kernel"), [("periodic", (3, 7)), ("clamp", (5, 3)), ("periodic", (1, 3))]
)
def test_flex_computes_exactly_the_blocks_that_hold_a_visible_key(
    longitude: str, kernel: tuple[int, int]
) -> None:
    rows, columns, periodic = 9, 50, longitude == "periodic"
    mask = _fused.block_mask(rows, columns, rows, kernel, 0, periodic, torch.device("cpu"))
    want = torch.zeros(4, 4, dtype=torch.int32)
    for i in range(rows):
        for j in range(columns):
            for row in window(i, kernel[0], rows, wrap=False):
                for column in window(j, kernel[1], columns, wrap=periodic):
                    want[(i * columns + j) // 128, (row * columns + column) // 128] = 1
    torch.testing.assert_close(mask.to_dense()[0, 0], want)
    derived = BlockMask.from_kv_blocks(
        mask.kv_num_blocks, mask.kv_indices, BLOCK_SIZE=128, mask_mod=mask.mask_mod, seq_lengths=(450, 450)
    )
    assert torch.equal(mask.q_num_blocks, derived.q_num_blocks)
    assert torch.equal(mask.q_indices, derived.q_indices)


def na2d(query: Tensor, key: Tensor, value: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Stands for natten.na2d: one grid for all three, windows shifted inward at every border."""
    assert query.shape == key.shape == value.shape
    assert query.is_contiguous()
    assert key.is_contiguous()
    assert value.is_contiguous()
    assert min(kernel_size) > 1
    assert kernel_size[0] <= key.shape[1]
    assert kernel_size[1] <= key.shape[2]
    return loop_attention(query, key, value, kernel_size, 0, False)


@pytest.mark.parametrize("longitude", ["periodic", "clamp"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 7), (3, 5)])
@pytest.mark.parametrize("rows", [(0, 5), (0, 3), (1, 4), (4, 5)])
def test_natten_gets_a_grid_that_gives_the_same_windows(
    longitude: str, kernel: tuple[int, int], rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("natten")
    module.na2d = na2d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "natten", module)
    grads, (first, last), periodic = [], rows, longitude == "periodic"
    for call in (_fused.natten, loop_attention):
        inputs = [x.requires_grad_() for x in qkv(5, 7)]
        out = call(inputs[0][:, first:last], *inputs[1:], kernel, first, periodic)
        grads.append((out, *torch.autograd.grad(out, inputs, draw(*out.shape, seed=9))))
    torch.testing.assert_close(grads[0], grads[1])


CALL = {"device": "cuda", "dtype": torch.bfloat16, "size": 64, "kernel": (3, 3), "tokens": 16200}


@pytest.mark.parametrize(
    ("change", "natten", "expected"),
    [
        ({}, True, "natten"),
        ({"device": "cpu"}, True, "blocked"),
        ({"device": "mps"}, True, "blocked"),
        ({"dtype": torch.float64}, True, "blocked"),
        ({"size": 20}, True, "flex"),
        ({"kernel": (1, 3)}, True, "flex"),
        ({"size": 12}, True, "blocked"),
        ({}, False, "flex"),
        ({"tokens": 4050}, False, "blocked"),
        ({"tokens": 4050}, True, "natten"),
    ],
)
def test_automatic_backend(
    change: dict[str, Any], natten: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fused, "has_natten", lambda: natten)
    monkeypatch.setattr(_fused, "has_triton", lambda: True)
    assert _fused.choose(**{**CALL, **change}) == expected


def test_automatic_backend_on_a_cpu_is_blocked() -> None:
    q, k, v = qkv(5, 8)
    both = [neighborhood_attention(q, k, v, kernel=(3, 3), backend=name) for name in ("auto", "blocked")]
    assert torch.equal(*both)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: needs CUDA")
@pytest.mark.parametrize("backend", ["auto", "blocked", "flex", "natten"])
@pytest.mark.parametrize("options", [{}, {"longitude": "clamp"}, {"poles": "cross"}])
@pytest.mark.parametrize("kernel", [(3, 3), (7, 5)])
def test_backends_agree_on_cuda(backend: str, options: dict[str, Any], kernel: tuple[int, int]) -> None:
    if backend == "natten" and find_spec("natten") is None:
        pytest.skip("NOT TESTED: needs natten")
    results = []
    for name in (backend, "dense"):
        inputs = [x.float().cuda().requires_grad_() for x in qkv(20, 70, heads=2, size=32)]
        out = neighborhood_attention(*inputs, kernel=kernel, backend=name, **options)
        results.append((out, *torch.autograd.grad(out, inputs, torch.ones_like(out))))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_float32_inside(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in qkv(5, 8)]
    out = neighborhood_attention(*inputs, kernel=(3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = neighborhood_attention(*inputs, kernel=(3, 3))
    want = neighborhood_attention(*(x.float() for x in inputs), kernel=(3, 3)).to(dtype)
    assert torch.equal(out, want)
    assert torch.equal(cast, want)


@pytest.mark.parametrize(("row", "column"), [(40, 80), (0, 3), (79, 159)])
def test_nan_stays_near_the_windows_that_see_it(row: int, column: int) -> None:
    q, k, v = qkv(80, 160, batch=1, heads=2)
    clean = neighborhood_attention(q, k, v, kernel=(3, 3))[0]
    seen = v.clone()
    seen[0, row, column, 1] = 1e6
    sees = (neighborhood_attention(q, k, seen, kernel=(3, 3))[0] - clean).abs().amax(-1) > 1e-3
    k[0, row, column, 1], v[0, row, column, 1] = math.nan, math.inf
    out = neighborhood_attention(q, k, v, kernel=(3, 3))[0]
    spoilt = out.isnan().any(-1)
    assert spoilt[sees].all()
    assert not spoilt[:, :, 0].any()
    rows, columns = spoilt[:, :, 1].nonzero().unbind(1)
    assert (rows - row).abs().max() < 3 + 32
    assert ((columns - column + 80) % 160 - 80).abs().max() < 3 + 32
    assert len(rows) <= 4 * math.prod(tile_size((80, 160), (3, 3), "cpu"))
    torch.testing.assert_close(out[~spoilt], clean[~spoilt])


@pytest.mark.parametrize(
    ("grid", "kernel"),
    [((45, 90), (3, 3)), ((45, 90), (7, 7)), ((181, 360), (3, 3)), ((1, 7), (1, 3)), ((0, 4), (3, 3))],
)
def test_tiles_are_no_larger_than_the_grid(grid: tuple[int, int], kernel: tuple[int, int]) -> None:
    rows, columns = tile_size(grid, kernel, "cpu")
    assert 1 <= rows <= min(32, max(grid[0], 1))
    assert 1 <= columns <= min(32, grid[1])


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("options", [{}, {"poles": "cross"}, {"longitude": "clamp"}, {"backend": "dense"}])
def test_compiles_to_one_graph_for_any_batch(options: dict[str, Any], dynamic: bool | None) -> None:
    torch.compiler.reset()
    graphs = []

    def count(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, kernel=(3, 3), **options)

    for backend in (count, "aot_eager"):
        compiled = torch.compile(attend, backend=backend, fullgraph=True, dynamic=dynamic)
        for batch in (2, 3, 4):
            results = []
            for function in (attend, compiled):
                inputs = [x.requires_grad_() for x in qkv(6, 8, batch=batch)]
                for x in inputs:
                    torch._dynamo.mark_dynamic(x, 0)
                out = function(*inputs)
                results.append((out, *torch.autograd.grad(out, inputs, draw(*out.shape, seed=9))))
            torch.testing.assert_close(results[0], results[1])
    assert len(graphs) == 1


def test_flex_compiles_into_one_graph() -> None:
    torch.compiler.reset()

    @torch.no_grad()
    def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return neighborhood_attention(q, k, v, kernel=(3, 5), backend=backend)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for batch in (1, 2, 3):
        inputs = [x.float() for x in qkv(9, 34, batch=batch, size=16)]
        want = attend(*inputs, "dense")
        torch.testing.assert_close(compiled(*inputs, "flex"), want, rtol=1e-5, atol=1e-5)


def test_choice_and_natten_call_compile_into_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device is only named: what runs is a stand-in."""
    _fused.has_natten()  # keeps its answer: the stand-in is not an installation
    module = ModuleType("natten")
    module.na2d = lambda q, k, v, kernel_size: (q + k + v) / kernel_size[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "natten", module)
    torch.compiler.reset()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chosen = _fused.choose("cuda", torch.bfloat16, 64, (3, 3), k.shape[1] * k.shape[2])
        assert chosen in ("natten", "flex", "blocked")
        return _fused.natten(q, k, v, (3, 3), 0, True)

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    for batch in (1, 2, 3):
        inputs = qkv(5, 8, batch=batch)
        torch.testing.assert_close(compiled(*inputs), attend(*inputs))


def test_import_does_not_load_the_compiler() -> None:
    """It would double the time that `import wx_models` takes."""
    code = "import sys, wx_models; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
