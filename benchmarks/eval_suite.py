"""Speed and memory of a full ensemble verification against other packages.

Prints one table: best CPU and wall time of several runs and the peak of extra memory, for members x leads x 4
variables x 121 x 240 in float32, member first. "suite" gives area-weighted means per (lead, variable) of fair
CRPS, variance and squared error of the ensemble mean, and the rank histogram ("24 regions" are 12 boxes and
their land points); "means" is squared error and bias of the ensemble mean alone; "crps" is CRPS at every
point; "kernel" is what wx-eval computes at every point. Each line has a process of its own. Other packages
are timed if they are installed, with their documented options; xskillscore has no fair CRPS and no weighted
histogram.
WeatherBench-X is not on the package index: its line is our own writing of the form that it documents (sorted
members, ranks as counts of members below the truth), in plain xarray. Needs Linux: memory is read from /proc.

    OMP_NUM_THREADS=1 python benchmarks/eval_suite.py --members 20 50
"""

import argparse
import ctypes
import importlib
import importlib.util
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

Task = Callable[[xr.DataArray, xr.DataArray], object]
LAT, LON = np.linspace(90, -90, 121), np.arange(240) * 1.5
SPACE = ["latitude", "longitude"]
EVENTS = (-0.9, -0.5, 0.0, 0.5, 0.9)


def fields(members: int, leads: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Geopotential-, temperature-, wind- and precipitation-like ensembles and truth."""
    rng = np.random.default_rng(0)
    kinds = ((5.5e4, 300.0), (280.0, 5.0), (10.0, 8.0), (-0.6, 1.0))
    x = np.empty((members, leads, len(kinds), LAT.size, LON.size), np.float32)
    y = np.empty(x.shape[1:], np.float32)
    for v, (mean, spread) in enumerate(kinds):
        for field in (*x, y):
            noise = rng.standard_normal((leads, LAT.size, LON.size), dtype=np.float32)
            field[:, v] = np.maximum(mean + spread * noise, 0 if mean < 0 else -np.inf)
    start, steps = np.datetime64("2020-01-01", "ns"), np.timedelta64(12, "h") * np.arange(1, leads + 1)
    coords = {"channel": list("ztup"), "latitude": LAT, "longitude": LON}
    forecast = xr.DataArray(
        x,
        coords | {"lead_time": steps.astype("timedelta64[ns]"), "init_time": start},
        ("member", "lead_time", "channel", *SPACE),
    )
    return forecast, xr.DataArray(y, coords | {"time": start + steps}, ("time", "channel", *SPACE))


def wx_eval(x: xr.DataArray, y: xr.DataArray, **options: Any) -> object:
    from wx_eval import CRPS, RMSE, RankHistogram, Spread, evaluate

    suite = (CRPS("fair"), Spread(), RMSE(), RankHistogram())
    return evaluate(x, y, model="x", **{"metrics": suite, "regions": ["global"], **options})


def suite_numba(x: xr.DataArray, y: xr.DataArray) -> object:
    return wx_eval(x, y, kernel="numba")


def suite_regions(x: xr.DataArray, y: xr.DataArray) -> object:
    from wx_eval._regions import BOXES

    land = np.random.default_rng(0).random((LAT.size, LON.size)) < 0.3
    names = list(BOXES)[:12]
    return wx_eval(x, y, regions=[*names, *(f"{name}_land" for name in names)], land_fraction=land * 1.0)


def suite_events(x: xr.DataArray, y: xr.DataArray) -> object:
    from wx_eval import CRPS, RMSE, Brier, RankHistogram, Spread

    levels = [{"z": 5.5e4 + 300 * s, "t": 280 + 5 * s, "u": 10 + 8 * s, "p": 1 + s} for s in EVENTS]
    metrics = (CRPS("fair"), Spread(), RMSE(), RankHistogram(), *map(Brier, levels))
    return wx_eval(x, y, metrics=metrics)


def means(x: xr.DataArray, y: xr.DataArray) -> object:
    from wx_eval import RMSE, Bias

    return wx_eval(x, y, metrics=(RMSE(), Bias()))


def suite_scores(x: xr.DataArray, y: xr.DataArray) -> object:
    scores = importlib.import_module("scores.probability")
    y, w, keep = _aligned(y), _weight(), ["lead_time", "channel"]
    mean = x.mean("member")
    return (
        scores.crps_for_ensemble(x, y, "member", method="fair", preserve_dims=keep, weights=w),
        x.var("member", ddof=1).weighted(w).mean(SPACE),
        importlib.import_module("scores.continuous").mse(mean, y, preserve_dims=keep, weights=w),
        scores.rank_histogram(x, y, "member", preserve_dims=keep, weights=w),
    )


def suite_xskillscore(x: xr.DataArray, y: xr.DataArray) -> object:
    peer = importlib.import_module("xskillscore")
    y, w = _aligned(y), _weight()
    return (
        peer.crps_ensemble(y, x, dim=SPACE, weights=w),
        x.var("member", ddof=1).weighted(w).mean(SPACE),
        peer.mse(y, x.mean("member"), dim=SPACE, weights=w),
        peer.rank_histogram(y, x, dim=SPACE),
    )


def suite_wbx_form(x: xr.DataArray, y: xr.DataArray) -> object:
    y, w, m = _aligned(y), _weight(), x.sizes["member"]
    skill = abs(x - y).mean("member")
    ordered = x.copy(data=np.sort(x.values, axis=0))
    factor = xr.DataArray((2.0 * np.arange(m) - m + 1).astype(np.float32), dims="member")
    spread = 2 * (ordered * factor).sum("member") / (m * (m - 1))
    crps, square = skill - spread / 2, (x.mean("member") - y) ** 2
    rank = (x < y).sum("member")
    counts = [(rank == k).weighted(w).mean(SPACE) for k in range(m + 1)]
    return [f.weighted(w).mean(SPACE) for f in (crps, x.var("member", ddof=1), square)], counts


def _aligned(y: xr.DataArray) -> xr.DataArray:
    return y.rename(time="lead_time").drop_vars("lead_time")


def _weight() -> xr.DataArray:
    from wx_eval import cell_weights

    rows = xr.DataArray(cell_weights(LAT), {"latitude": LAT}, ("latitude",))
    return rows * xr.DataArray(np.ones(LON.size), {"longitude": LON}, ("longitude",))


def suite_numpy_sort(x: xr.DataArray, y: xr.DataArray) -> object:
    return _suite_numpy(x.values, y.values, np.float32)


def suite_numpy_float64(x: xr.DataArray, y: xr.DataArray) -> object:
    one = np.ndindex(y.shape[:2])
    return [_suite_numpy(x.values[:, i, j], y.values[i, j], np.float64) for i, j in one]


def _suite_numpy(x: Any, y: Any, dtype: type) -> object:
    d = x.astype(dtype) - y
    order = (2 * np.arange(1, len(d) + 1) - len(d) - 1).astype(dtype)
    rank, tied = (d < 0).sum(axis=0, dtype=np.uint8), (d == 0).sum(axis=0, dtype=np.uint8)
    skill, error, variance = np.abs(d).mean(axis=0), d.mean(axis=0), d.var(axis=0, ddof=1)
    d.sort(axis=0)
    crps = skill - np.tensordot(order, d, 1) / (len(d) * (len(d) - 1))
    weight = _weight().values
    means = [(f * weight).mean(axis=(-2, -1)) for f in (crps, variance, error**2)]
    return means, np.bincount(rank.ravel(), minlength=len(d) + 1), tied


def kernel_numpy(x: xr.DataArray, y: xr.DataArray) -> object:
    return _kernel(x, y, kernel="numpy")


def kernel_numba(x: xr.DataArray, y: xr.DataArray) -> object:
    return _kernel(x, y, kernel="numba")


def _kernel(x: xr.DataArray, y: xr.DataArray, **options: Any) -> object:
    from wx_eval import ensemble_statistics

    for lead in range(x.sizes["lead_time"]):
        ensemble_statistics(x.values[:, lead], y.values[lead], ranks=True, **options)
    return None


def kernel_torch(x: xr.DataArray, y: xr.DataArray) -> object:
    torch = importlib.import_module("torch")
    from wx_eval import ensemble_statistics

    for lead in range(x.sizes["lead_time"]):
        values = torch.from_numpy(x.values[:, lead])
        ensemble_statistics(values, torch.from_numpy(y.values[lead]), ranks=True)
    return None


def crps_scores(x: xr.DataArray, y: xr.DataArray) -> object:
    scores = importlib.import_module("scores.probability")
    return scores.crps_for_ensemble(x, _aligned(y), "member", method="fair", preserve_dims="all")


def crps_xskillscore(x: xr.DataArray, y: xr.DataArray) -> object:
    return importlib.import_module("xskillscore").crps_ensemble(_aligned(y), x, dim=[])


def crps_scoringrules_fair(x: xr.DataArray, y: xr.DataArray) -> object:
    return _scoringrules(x, y, "fair")


def crps_scoringrules_pwm(x: xr.DataArray, y: xr.DataArray) -> object:
    return _scoringrules(x, y, "pwm")


def _scoringrules(x: xr.DataArray, y: xr.DataArray, estimator: str) -> object:
    score = importlib.import_module("scoringrules").crps_ensemble
    backend = "numba" if importlib.util.find_spec("numba") else "numpy"
    return score(y.values, x.values, m_axis=0, estimator=estimator, backend=backend)


def crps_properscoring(x: xr.DataArray, y: xr.DataArray) -> object:
    return importlib.import_module("properscoring").crps_ensemble(y.values, x.values, axis=0)


def read_once(x: xr.DataArray, _: xr.DataArray) -> object:
    return x.values.max()


TASKS: tuple[tuple[str, str, Task], ...] = (
    ("suite", "wx-eval", wx_eval),
    ("suite", "wx-eval, numba", suite_numba),
    ("suite", "wx-eval, 24 regions", suite_regions),
    ("suite", "wx-eval, Brier at 5 levels", suite_events),
    ("means", "wx-eval", means),
    ("suite", "scores", suite_scores),
    ("suite", "WeatherBench-X form, sorted", suite_wbx_form),
    ("suite", "xskillscore, biased CRPS", suite_xskillscore),
    ("suite", "numpy sort, whole array", suite_numpy_sort),
    ("suite", "numpy sort, float64 fields", suite_numpy_float64),
    ("kernel", "wx-eval", kernel_numpy),
    ("kernel", "wx-eval, numba", kernel_numba),
    ("kernel", "wx-eval, torch CPU", kernel_torch),
    ("crps", "scores, fair", crps_scores),
    ("crps", "xskillscore, biased", crps_xskillscore),
    ("crps", "scoringrules, fair", crps_scoringrules_fair),
    ("crps", "scoringrules, pwm", crps_scoringrules_pwm),
    ("crps", "properscoring, biased", crps_properscoring),
    ("limit", "read once", read_once),
)


def measure(index: int, members: int, leads: int, repeats: int, answer: Any) -> None:
    """Run in a fresh process, so that the peak of memory belongs to one task."""
    x, y = fields(members, leads)
    task = TASKS[index][2]
    try:
        # The first call compiles and imports; one lead keeps it out of the peak.
        task(x.isel(lead_time=[0]), y.isel(time=[0]))
    except ImportError:
        answer.put(None)
        return
    except Exception:
        answer.put(None)
        raise
    # Give back what is free and forget the peak of making the fields; the peak is then that of the task.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        task(x, y)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    answer.put((min(cpu), min(wall), _memory("VmHWM") - before))


def _memory(entry: str) -> float:
    """One entry of /proc/self/status in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0]) * 1024 / 1e6


def run(index: int, members: int, leads: int, repeats: int) -> tuple[float, float, float] | None:
    context = get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure, args=(index, members, leads, repeats, answer))
    process.start()
    found: tuple[float, float, float] | None = answer.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--leads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["suite", "means", "kernel", "crps"])
    options = parser.parse_args()
    print(
        f"{'kind':6} {'implementation':27} {'M':>3} {'CPU s':>7} {'wall s':>7} {'MB more':>8} {'of read':>8}"
    )
    chosen = [i for i, (kind, _, _) in enumerate(TASKS) if kind in options.kinds]
    for members in options.members:
        limit = run(len(TASKS) - 1, members, options.leads, options.repeats)
        assert limit is not None
        for index in (len(TASKS) - 1, *chosen):
            kind, name, _ = TASKS[index]
            found = limit if kind == "limit" else run(index, members, options.leads, options.repeats)
            if found is None:
                print(f"{kind:6} {name:27} {members:3d} {'not installed':>15}")
                continue
            cpu, wall, more = found
            part = f"{limit[0] / cpu:8.1%}"
            print(f"{kind:6} {name:27} {members:3d} {cpu:7.3f} {wall:7.3f} {more:8.1f} {part}", flush=True)


if __name__ == "__main__":
    main()
