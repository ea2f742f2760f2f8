"""Runs the cases of the collected test modules on four processes, once, and hands every test its outcome.

A test module registers functions with `case`. Every case receives a mesh and compares, on each rank, values
and gradients with the same computation on plain tensors. One launcher process imports torch and starts the
ranks.
"""

import dataclasses
import faulthandler
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from shardtensor import ShardSpec, ShardTensor, chunk_sizes

WORLD = 4
LIMIT = int(os.environ.get("SHARDTENSOR_TEST_SECONDS", "600"))
MESHES: dict[str, list[int] | list[list[int]]] = {
    "1": [0],
    "2": [0, 1],
    "3": [0, 1, 2],
    "4": [0, 1, 2, 3],
    "2x2": [[0, 1], [2, 3]],
    "1x2": [[0, 1]],
}
# Sharded tensors compile from this release of torch on; earlier ones refuse it.
COMPILES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
Case = Callable[[DeviceMesh], None]
Cases = dict[str, tuple[Case, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the ranks report: cases that passed wherever they ran, and the tracebacks of the first failure."""

    passed: set[str]
    trouble: str


def registry() -> tuple[Cases, Callable[..., Callable[[Case], Case]]]:
    """Returns an empty table of cases and the decorator that fills it."""
    cases: Cases = {}

    def case(*meshes: str, compiles: bool = False) -> Callable[[Case], Case]:
        def add(function: Case) -> Case:
            if compiles and not COMPILES:
                return function
            cases[function.__name__] = (function, meshes or ("1", "2", "3"))
            return function

        return add

    return cases, case


def names(cases: Cases) -> list[str]:
    return [f"{name}[{mesh}]" for name, (_, meshes) in cases.items() for mesh in meshes]


@pytest.fixture(scope="session")
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Runs all cases on all ranks, until one fails."""
    folder = tmp_path_factory.mktemp("ranks")
    files = {
        str(item.path) for item in request.session.items if "outcome" in getattr(item, "fixturenames", ())
    }
    wanted = [
        item.callspec.params["name"]
        for item in request.session.items
        if hasattr(item, "callspec") and "name" in item.callspec.params
    ]
    # pytest puts a mark where a module has no cases for this release of torch.
    (folder / "wanted.json").write_text(json.dumps([name for name in wanted if isinstance(name, str)]))
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *sorted(files)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT + 30,
        check=False,
    )
    reports = []
    for rank in range(WORLD):
        report = folder / f"{rank}.json"
        last = [file.read_text() for file in sorted(folder.glob("*.last"))]
        assert report.exists(), f"rank {rank} did not finish; the ranks were at {last}\n{done.stderr}"
        reports.append(json.loads(report.read_text()))
    trouble = "\n".join(
        f"rank {r}: {text}" for r, report in enumerate(reports) for text in report["failed"].values()
    )
    failed = {name for report in reports for name in report["failed"]}
    passed = {name for report in reports for name in report["passed"]} - failed
    assert failed or done.returncode == 0, done.stderr
    return Outcome(passed, trouble or done.stderr)


def launch(folder: Path, files: Sequence[str]) -> int:
    """Starts the ranks; returns 0 if all of them ended well."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ranks = [context.Process(target=run_rank, args=(rank, folder, files)) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT + 10)
    return max(process.exitcode if process.exitcode is not None else 1 for process in ranks)


def load(file: str) -> Cases:
    """Returns the cases of a test module."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: Cases = module.CASES
    return cases


def run_rank(rank: int, folder: Path, files: Sequence[str]) -> None:
    """Runs every case on its meshes as one rank, with warnings as errors.

    A rank that fails stops: its peers, who would wait for it forever, lose the connection and stop as well.
    """
    warnings.simplefilter("error")
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD)
    torch.set_default_dtype(torch.float64)
    meshes = {name: DeviceMesh("cpu", ranks) for name, ranks in MESHES.items()}
    passed: list[str] = []
    failed = {}
    last = folder / f"{rank}.last"
    wanted = set(json.loads((folder / "wanted.json").read_text()))
    for name, function, mesh in _planned(files, meshes):
        if name not in wanted:
            continue
        last.write_text(name)  # what a rank that is killed was doing
        try:
            function(mesh)
            passed.append(name)
        except (Exception, pytest.fail.Exception):
            failed[name] = traceback.format_exc()
            break
    (folder / f"{rank}.json").write_text(json.dumps({"passed": passed, "failed": failed}))
    if failed:
        os._exit(1)
    dist.barrier()
    dist.destroy_process_group()


def _planned(
    files: Sequence[str], meshes: Mapping[str, DeviceMesh]
) -> Iterator[tuple[str, Case, DeviceMesh]]:
    for file in files:
        for name, (function, wanted) in load(file).items():
            for shape in wanted:
                if meshes[shape].get_coordinate() is not None:
                    yield f"{name}[{shape}]", function, meshes[shape]


def layouts(mesh: DeviceMesh, extent: int, mesh_dim: int = 0) -> list[tuple[int, ...]]:
    """Returns sizes to try: torch.chunk's, uneven, and with empty shards."""
    parts = mesh.size(mesh_dim)
    if parts == 1:
        return [(extent,)]
    uneven = (extent - 1, 1) if parts == 2 else (1, 0, extent - 1)
    return [chunk_sizes(extent, parts), uneven, (0, *chunk_sizes(extent, parts - 1))]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Returns a leaf of normal numbers that all ranks agree on."""
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def shard(x: Tensor, mesh: DeviceMesh, dim: int | Sequence[int], sizes: object = None) -> ShardTensor:
    """Returns x sharded over dimension dim (one for each mesh dimension), as a leaf of the graph."""
    dims = [dim] if isinstance(dim, int) else list(dim)
    spec = ShardSpec.create(mesh, [Shard(d) for d in dims], x.shape, sizes)
    local = x.detach()[spec.local_slices()].clone()
    return ShardTensor(local.requires_grad_(x.is_floating_point()), spec)


def compare(
    function: Callable[..., object],
    mesh: DeviceMesh,
    inputs: Sequence[tuple[Tensor, int | None]],
    *,
    weights: Sequence[Tensor] = (),
    sizes: Sequence[Sequence[int]] | None = None,
    rtol: float = 1e-11,
) -> None:
    """Compares function(*inputs, *weights) and all gradients with plain tensors, for every layout.

    Args:
        function: returns a tensor or a sequence of tensors.
        mesh: one-dimensional mesh.
        inputs: each with the dimension to shard, or None to stay plain.
        weights: plain tensors.
        sizes: rows per rank; by default several layouts of the first sharded extent.
    """
    extent = next(x.shape[dim] for x, dim in inputs if dim is not None)
    for rows in sizes or layouts(mesh, extent):
        plain = [x.detach().clone().requires_grad_(x.is_floating_point()) for x, _ in inputs]
        parts = [
            x.detach().clone().requires_grad_(x.is_floating_point())
            if dim is None
            else shard(x, mesh, dim, rows)
            for x, dim in inputs
        ]
        ours = [w.detach().clone().requires_grad_() for w in weights]
        theirs = [w.detach().clone().requires_grad_() for w in weights]
        want, got = _flat(function(*plain, *theirs)), _flat(function(*parts, *ours))
        assert len(want) == len(got)
        for a, b in zip(want, got, strict=True):
            assert isinstance(b, ShardTensor), type(b)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            close(b, a, rtol, rows)
        seeds = [random(*a.shape, seed=7 + i).to(a.dtype) for i, a in enumerate(want)]
        followed = [i for i, a in enumerate(want) if a.requires_grad]
        if not followed:
            continue
        assert all(got[i].requires_grad for i in followed)
        torch.autograd.backward([want[i] for i in followed], [seeds[i] for i in followed])
        torch.autograd.backward(
            [got[i].local for i in followed], [seeds[i][got[i].local_slices()] for i in followed]
        )
        for a, b in zip([*plain, *theirs], [*parts, *ours], strict=True):
            if a.grad is not None:
                close(b.grad, a.grad, rtol, rows)


def _flat(out: object) -> list[Tensor]:
    return [out] if isinstance(out, Tensor | ShardTensor) else list(out)


def close(got: Tensor | ShardTensor, want: Tensor, rtol: float = 1e-11, note: object = "") -> None:
    """Compares this rank's part of `got` with the same part of `want`; nothing is communicated."""
    if isinstance(got, ShardTensor):
        assert got.shape == want.shape
        assert got.local.shape == got.spec.local_shape
        want, got = want[got.local_slices()], got.local
    torch.testing.assert_close(
        got.detach(), want.detach(), rtol=rtol, atol=rtol, msg=lambda text: f"{text} {note}"
    )


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[1]), sys.argv[2:]))
