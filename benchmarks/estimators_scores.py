"""CRPS kernels, forward and backward: time and memory against the forms in use elsewhere.

The other forms are written plainly here, after published code: "uncentred sort" as in makani (ensemble sorted
without the truth, spread from ranks), "pairs, stable" as in anemoi (|x_i - y| + |x_j - y| - |x_i - x_j| for
all pairs at once), "pairs, broadcast" the textbook double sum. scoringrules runs through its torch backend,
which has gradients, and through numpy or numba for the values alone. Float32; CPU seconds, best of several,
variants taking turns in one process; peak memory in a fresh process each, in units of the ensemble and above
the ensemble and the truth (Linux only).

    OMP_NUM_THREADS=1 python benchmarks/estimators_scores.py [--values 524288] [--members 2 4 8 16 32 64 128]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wx_estimators import EnergyScore, crps

Score = Callable[[Tensor, Tensor], Tensor]


def uncentred_sort(pred: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS of pred (1, M, P), as sorted probability-weighted sums of x itself."""
    m = pred.shape[1]
    ordered = pred.sort(dim=1).values
    rank = torch.arange(1 - m, m, 2, dtype=pred.dtype)
    spread = (ordered * rank[:, None]).sum(1) / (m * (m - 1))
    return (pred - target.unsqueeze(1)).abs().mean(1) - spread


def centred_sort(pred: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS as sorted gaps of x - y, left to autograd."""
    m = pred.shape[1]
    d = (pred - target.unsqueeze(1)).sort(dim=1).values
    k = torch.arange(1, m, dtype=d.dtype)
    pairs = torch.einsum("k,bkp->bp", k * (m - k), d.diff(dim=1))
    return d.abs().mean(1) - pairs / (m * (m - 1))


def pairs_stable(pred: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS as a sum over pairs of terms that are not negative."""
    m = pred.shape[1]
    size = (pred - target.unsqueeze(1)).abs()
    apart = (pred.unsqueeze(1) - pred.unsqueeze(2)).abs()
    terms = (size.unsqueeze(1) + size.unsqueeze(2) - apart) * (1 - torch.eye(m))[:, :, None]
    return terms.sum((1, 2)) / (2 * m * (m - 1))


def pairs_broadcast(pred: Tensor, target: Tensor) -> Tensor:
    """Fair CRPS by its definition."""
    m = pred.shape[1]
    apart = (pred.unsqueeze(1) - pred.unsqueeze(2)).abs().sum((1, 2))
    return (pred - target.unsqueeze(1)).abs().mean(1) - apart / (2 * m * (m - 1))


def scoringrules_torch(estimator: str) -> Score:
    """A form of scoringrules with gradients."""

    def score(pred: Tensor, target: Tensor) -> Tensor:
        peer = importlib.import_module("scoringrules")
        out: Tensor = peer.crps_ensemble(target, pred, m_axis=1, estimator=estimator, backend="torch")
        return out

    return score


def scoringrules_values(pred: Tensor, target: Tensor) -> Tensor:
    """Values alone: no gradient."""
    peer = importlib.import_module("scoringrules")
    backend = "numba" if importlib.util.find_spec("numba") else "numpy"
    x, y = pred.detach().numpy(), target.numpy()
    return torch.as_tensor(peer.crps_ensemble(y, x, m_axis=1, estimator="pwm", backend=backend))


FORMS: dict[str, Score] = {
    "wx-estimators": crps,
    "uncentred sort": uncentred_sort,
    "centred sort": centred_sort,
    "pairs, stable": pairs_stable,
    "pairs, broadcast": pairs_broadcast,
    "scoringrules pwm": scoringrules_torch("pwm"),
    "scoringrules fair": scoringrules_torch("fair"),
    "  values alone": scoringrules_values,
}


def points_of(members: int, values: int) -> int:
    """Points of an ensemble of about `values` values; at least 16384."""
    return max(16384, values // members)


def ensemble(members: int, points: int, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """pred (1, M, P) and target (1, P)."""
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(1, members, points, generator=g) + offset
    return pred.requires_grad_(), torch.randn(1, points, generator=g) + offset


def run(form: Score, pred: Tensor, target: Tensor) -> Tensor:
    """Score and gradient."""
    value = form(pred, target)
    if value.requires_grad:
        pred.grad = None
        value.mean().backward()  # type: ignore[no-untyped-call]
    return value.detach()


def best_times(names: list[str], members: int, points: int, repeats: int) -> dict[str, float]:
    """CPU seconds of each form."""
    pred, target = ensemble(members, points)
    times = dict.fromkeys(names, float("inf"))
    for _ in range(repeats * max(1, 16 // members)):  # small tasks feel every interruption
        for name in names:
            start = time.process_time()
            run(FORMS[name], pred, target)
            times[name] = min(times[name], time.process_time() - start)
    return times


def measure_peak(name: str, members: int, points: int, answer: Any) -> None:
    """Peak extra memory in MB."""
    pred, target = ensemble(members, points)
    small, truth = ensemble(members, 8)
    run(FORMS[name], small, truth)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    run(FORMS[name], pred, target)
    answer.put(_memory("VmHWM") - before)


def _memory(entry: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0]) / 1024


def peak(name: str, members: int, points: int) -> float:
    """`measure_peak` in a fresh process."""
    context = get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure_peak, args=(name, members, points, answer))
    process.start()
    value: float = answer.get(timeout=300)
    process.join()
    return value


def largest_error(form: Score, members: int, offset: float) -> float:
    """Largest error in float32 of data with an offset, against float64."""
    pred, target = ensemble(members, 1000, offset)
    exact = crps(pred.detach().double(), target.double())
    return float((run(form, pred, target).double() - exact).abs().max())


def energy_rows(members: int, points: int, repeats: int) -> str:
    """`EnergyScore` against a loop over pairs that autograd keeps."""

    def loop(pred: Tensor, target: Tensor) -> Tensor:
        m = pred.shape[1]
        skill = (pred - target.unsqueeze(1)).norm(dim=-1).mean(1)
        pairs = [(pred[:, i] - pred[:, j]).norm(dim=-1) for i in range(m) for j in range(i)]
        return (skill - torch.stack(pairs).sum(0) / (m * (m - 1))) / points**0.5

    def ours(pred: Tensor, target: Tensor) -> Tensor:
        return EnergyScore().score(pred.unsqueeze(2), target.unsqueeze(1), None)

    pred, target = ensemble(members, points)
    seconds = [float("inf"), float("inf")]
    for _ in range(repeats * max(1, 16 // members)):
        for i, form in enumerate((ours, loop)):
            start = time.process_time()
            run(form, pred, target)
            seconds[i] = min(seconds[i], time.process_time() - start)
    per_value = 1e9 / members / points
    return f"{members:8d} {seconds[0] * per_value:14.2f} {seconds[1] / seconds[0]:10.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=1 << 19)
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [n for n in FORMS if "scoringrules" not in n or importlib.util.find_spec("scoringrules")]
    print(f"torch {torch.__version__}, {options.values} values or 16384 points; ns per value, then ratios")
    print(f"{'time':24s}" + "".join(f"{m:>9d}" for m in options.members))
    times = [best_times(names, m, points_of(m, options.values), options.repeats) for m in options.members]
    for name in names:
        cells = [
            f"{t[name] / m / points_of(m, options.values) * 1e9:9.2f}"
            if name == "wx-estimators"
            else f"{t[name] / t['wx-estimators']:8.1f}x"
            for t, m in zip(times, options.members, strict=True)
        ]
        print(f"{name:24s}" + "".join(cells), flush=True)
    print(f"\n{'peak, ensembles':24s}" + "".join(f"{m:>9d}" for m in options.members))
    for name in names:
        sizes = [4 * m * points_of(m, options.values) / 2**20 for m in options.members]
        cells = [
            f"{peak(name, m, points_of(m, options.values)) / size:9.1f}"
            for m, size in zip(options.members, sizes, strict=True)
        ]
        print(f"{name:24s}" + "".join(cells), flush=True)
    print("\nlargest error in float32 with an offset of 1e5, 16 members")
    for name in names:
        print(f"{name:24s} {largest_error(FORMS[name], 16, 1e5):9.1e}")
    print("\nenergy score, a norm over all points: ns per value, and a loop over pairs by autograd")
    for members in options.members[:5]:
        print(energy_rows(members, points_of(members, options.values), options.repeats), flush=True)


if __name__ == "__main__":
    main()
