"""Samples of every operation, and the property that each must have: sharded equals unsharded.

A sample says how to call an operation, which dimensions of its inputs may be sharded, and how many
collectives that takes. `check` runs it on a mesh with even and with random uneven sizes, empty shards among
them, and compares values and gradients with plain tensors: in float64 to rounding, in float32 and bfloat16
against the error that one process makes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from shard_ranks import close, random
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

from shardtensor import ShardSpec, ShardTensor, chunk_sizes, is_sharded, traffic

Dim = int | None
Layout = tuple[Dim, ...]  # for every input the dimension that is sharded; a plain tensor where None
Grid = tuple[tuple[Dim, Dim], ...]  # the same for both dimensions of a mesh


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One way to call an operation.

    Attributes:
        op: name in the table of operations.
        run: `run(*inputs, *weights)` returns a tensor or a sequence of tensors.
        inputs: shapes of the inputs.
        dims: layouts on a mesh of one dimension; each needs the same number of collectives.
        grid: layouts on a mesh of two dimensions.
        weights: shapes of plain tensors that all ranks hold.
        forward: collectives of the forward pass where every rank holds rows; at most as many elsewhere. May
            be a function of the number of ranks. On a mesh of two dimensions at most those that each of them
            takes alone.
        backward: the same of the backward pass.
        uneven: collectives that each pass may take at most where the sizes are not those of torch.chunk, if
            that is more.
        make: turns normal numbers into valid inputs.
        bf16: whether torch has the operation in bfloat16 on this device.
        rtol: of the comparison in float64.
    """

    op: str
    run: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    dims: tuple[Layout, ...] = ()
    grid: tuple[Grid, ...] = ()
    weights: tuple[tuple[int, ...], ...] = ()
    forward: int | Callable[[int], int] = 0
    backward: int | Callable[[int], int] = 0
    uneven: int = 0
    make: Callable[[Tensor], Tensor] = lambda x: x
    bf16: bool = True
    rtol: float = 1e-11


def possible(call: Callable[[], object]) -> bool:
    """Whether this release of torch can do something to plain tensors."""
    try:
        call()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def check(sample: Sample, mesh: DeviceMesh) -> None:
    """Asserts that the sample on `mesh` agrees with one process, and communicates as often as it says."""
    chance = Random(f"{sample.op} {sample.dims} {mesh.shape}")
    layouts: Sequence[Any] = sample.dims if mesh.ndim == 1 else sample.grid
    for layout in layouts:
        pairs = [(dim,) if mesh.ndim == 1 else dim for dim in layout]
        even = _sizes(sample, mesh, pairs, lambda extent, parts: chunk_sizes(extent, parts))
        uneven = _sizes(sample, mesh, pairs, lambda extent, parts: draw(chance, extent, parts))
        for sizes in [even, uneven] if mesh.size() > 1 else [even]:
            note = f"{sample.op}: {layout}, sizes {sizes}"
            _exact(sample, mesh, pairs, sizes, note)
            if mesh.size() == 3 and sizes is uneven:
                for dtype in (torch.float32, *([torch.bfloat16] if sample.bf16 else [])):
                    _rounded(sample, mesh, pairs, sizes, dtype, note)


def check_compiled(sample: Sample, mesh: DeviceMesh) -> None:
    """Asserts that the sample in its first layout, uneven and in one graph, agrees with one process."""
    torch._dynamo.reset()
    fast = torch.compile(sample.run, fullgraph=True, dynamic=False, backend="aot_eager")

    def run(*leaves: Any) -> Any:
        return (fast if any(map(is_sharded, leaves)) else sample.run)(*leaves)

    pairs = [(dim,) for dim in sample.dims[0]]
    sizes = _sizes(sample, mesh, pairs, lambda extent, parts: (1,) * (parts - 1) + (extent - parts + 1,))
    # The collectives of a compiled graph are not recorded; where sizes are uneven, none are too few.
    _exact(replace(sample, run=run), mesh, pairs, sizes, f"{sample.op}, compiled")


def draw(chance: Random, extent: int, parts: int) -> tuple[int, ...]:
    """Returns random sizes; every third time one of them is zero, if there is more than one."""
    cuts = sorted(chance.randint(0, extent) for _ in range(parts - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, extent], strict=True)]
    if parts > 1 and chance.random() < 1 / 3:
        gone, taker = chance.sample(range(parts), 2)
        sizes[taker] += sizes[gone]
        sizes[gone] = 0
    return tuple(sizes)


Sizes = list[dict[int, tuple[int, ...]]]  # for every input {mesh dimension: rows}


def _sizes(
    sample: Sample,
    mesh: DeviceMesh,
    layout: Sequence[Sequence[Dim]],
    choose: Callable[[int, int], tuple[int, ...]],
) -> Sizes:
    """Chooses sizes; dimensions of equal extent over one mesh dimension get the same ones."""
    known: dict[tuple[int, int], tuple[int, ...]] = {}
    chosen: Sizes = []
    for shape, dims in zip(sample.inputs, layout, strict=True):
        mine = {}
        for m, dim in enumerate(dims):
            if dim is not None:
                extent = shape[dim]
                known.setdefault((m, extent), choose(extent, mesh.size(m)))
                mine[m] = known[m, extent]
        chosen.append(mine)
    return chosen


def put(
    x: Tensor, mesh: DeviceMesh, dims: Sequence[Dim], sizes: dict[int, tuple[int, ...]]
) -> Tensor | ShardTensor:
    """Returns x with each mesh dimension splitting one of `dims`, as a leaf; plain where all are None."""
    leaf = x.is_floating_point() or x.is_complex()
    if all(dim is None for dim in dims):
        return x.detach().clone().requires_grad_(leaf)
    placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
    spec = ShardSpec.create(mesh, placements, x.shape, sizes)
    return ShardTensor(x.detach()[spec.local_slices()].clone().requires_grad_(leaf), spec)


@dataclass(frozen=True)
class Result:
    outputs: list[Any]
    gradients: list[Any]
    forward: int = 0
    backward: int = 0


def _evaluate(run: Callable[..., Any], leaves: Sequence[Any], dtype: torch.dtype) -> Result:
    """Runs forward and, from fixed random cotangents, backward."""
    with traffic() as there:
        outputs = _flat(run(*leaves))
    assert all(isinstance(out, Tensor | ShardTensor) for out in outputs), [type(out) for out in outputs]
    followed = [(i, out) for i, out in enumerate(outputs) if out.requires_grad]
    ends, seeds = [], []
    for i, out in followed:
        seed = random(*out.shape, seed=7 + i).to(out.dtype if out.is_complex() else dtype).to(out.dtype)
        ends.append(out.local if isinstance(out, ShardTensor) else out)
        seeds.append(seed[out.local_slices()] if isinstance(out, ShardTensor) else seed)
    with traffic() as back:
        torch.autograd.backward(ends, seeds) if ends else None
    return Result(outputs, [leaf.grad for leaf in leaves], len(there), len(back))


def _leaves(
    sample: Sample, mesh: DeviceMesh, layout: Sequence[Sequence[Dim]], sizes: Sizes, dtype: torch.dtype
) -> tuple[list[Any], list[Any]]:
    """Returns the same inputs and weights as plain leaves and as sharded ones."""
    inputs = [sample.make(random(*shape, seed=i)) for i, shape in enumerate(sample.inputs)]
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    weights = [random(*shape, seed=50 + i).to(dtype) for i, shape in enumerate(sample.weights)]
    nowhere = [None] * mesh.ndim
    plain = [put(x, mesh, nowhere, {}) for x in (*inputs, *weights)]
    parts = [put(x, mesh, dims, own) for x, dims, own in zip(inputs, layout, sizes, strict=True)]
    return plain, [*parts, *(put(w, mesh, nowhere, {}) for w in weights)]


def _exact(
    sample: Sample, mesh: DeviceMesh, layout: Sequence[Sequence[Dim]], sizes: Sizes, note: str
) -> None:
    plain, parts = _leaves(sample, mesh, layout, sizes, torch.float64)
    want, got = (_evaluate(sample.run, leaves, torch.float64) for leaves in (plain, parts))
    assert len(want.outputs) == len(got.outputs), note
    for a, b in zip(want.outputs, got.outputs, strict=True):
        assert isinstance(b, ShardTensor), f"{note}: returned {type(b)}"
        assert (a.dtype, a.shape) == (b.dtype, b.shape), note
        close(b, a, sample.rtol, note)
    for a, b in zip(want.gradients, got.gradients, strict=True):
        assert (a is None) == (b is None), f"{note}: only one side has a gradient"
        if a is not None:
            close(b, a, sample.rtol, note)
    if mesh.size() == 1:
        assert (got.forward, got.backward) == (0, 0), f"{note}: one rank communicates"
        return
    everywhere = all(min(rows) for own in sizes for rows in own.values())
    if mesh.ndim == 2 and min(mesh.shape) > 1 and everywhere:
        alone = [_counted(sample, mesh, layout, sizes, m) for m in (0, 1)]
        most = tuple(map(sum, zip(*alone, strict=True)))
        used = (got.forward, got.backward)
        assert all(n <= m for n, m in zip(used, most, strict=True)), f"{note}: {used}, {alone} alone"
    for kind, limit, count in (
        ("forward", sample.forward, got.forward),
        ("backward", sample.backward, got.backward),
    ):
        limit = limit(mesh.size()) if callable(limit) else limit
        fits = count == limit if everywhere and _is_even(sizes) and mesh.ndim == 1 else True
        most = limit if _is_even(sizes) else max(limit, sample.uneven)
        fits = fits and (mesh.ndim > 1 or count <= most)
        assert fits, f"{note}: {count} collectives in the {kind} pass, expected {limit}"


def _counted(
    sample: Sample, mesh: DeviceMesh, layout: Sequence[Sequence[Dim]], sizes: Sizes, m: int
) -> tuple[int, int]:
    """Returns the collectives of both passes where mesh dimension m alone splits the inputs."""
    parts, weights = _leaves(sample, mesh, layout, sizes, torch.float64)[1], len(sample.weights)
    for i, (x, dims) in enumerate(zip(parts[: len(parts) - weights], layout, strict=True)):
        if any(dim is not None for dim in dims):
            only = [dim if n == m else None for n, dim in enumerate(dims)]
            placements = [Replicate() if dim is None else Shard(dim) for dim in only]
            rows = {n: each for n, each in sizes[i].items() if n == m}
            parts[i] = ShardTensor(*_moved(x, placements, rows))
    got = _evaluate(sample.run, parts, torch.float64)
    return got.forward, got.backward


def _moved(
    x: ShardTensor, placements: Sequence[Any], rows: dict[int, tuple[int, ...]]
) -> tuple[Tensor, ShardSpec]:
    moved = x.redistribute(placements, sizes=rows)
    return moved.local.detach().clone().requires_grad_(x.requires_grad), moved.spec


def _is_even(sizes: Sizes) -> bool:
    return all(rows == chunk_sizes(sum(rows), len(rows)) for own in sizes for rows in own.values())


def _rounded(
    sample: Sample,
    mesh: DeviceMesh,
    layout: Sequence[Sequence[Dim]],
    sizes: Sizes,
    dtype: torch.dtype,
    note: str,
) -> None:
    """Asserts that the error of the sharded result is about that of one process in this dtype.

    Both are measured against float64 on the same (rounded) inputs. Another order of summation may err
    differently: three times as much, and a few units in the last place of the largest value, are allowed.
    """
    plain, parts = _leaves(sample, mesh, layout, sizes, dtype)
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in plain]
    truth, want, got = (_evaluate(sample.run, leaves, dtype) for leaves in (exact, plain, parts))
    for t, a, b in zip(
        [*truth.outputs, *truth.gradients],
        [*want.outputs, *want.gradients],
        [*got.outputs, *got.gradients],
        strict=True,
    ):
        if t is None or not a.is_floating_point() or not t.numel():
            continue
        assert b.dtype == a.dtype, f"{note}: {b.dtype} for {a.dtype}"
        t = t.detach()
        here = b.local_slices() if isinstance(b, ShardTensor) else ()
        part = (b.local if isinstance(b, ShardTensor) else b).detach().double()
        finite = t.isfinite()
        scale = float(t[finite].abs().max()) if finite.any() else 0.0
        allowed = 3 * _error(a.detach().double(), t) + 4 * torch.finfo(dtype).eps * scale
        error = _error(part, t[here])
        assert error <= allowed, (
            f"{note}: error {error} in {dtype}, one process {_error(a.detach().double(), t)}"
        )


def _error(x: Tensor, truth: Tensor) -> float:
    both = x.isfinite() & truth.isfinite()
    return float((x[both] - truth[both]).abs().max()) if both.any() else 0.0


def _flat(out: Any) -> list[Any]:
    return [out] if isinstance(out, Tensor | ShardTensor) else list(out)
