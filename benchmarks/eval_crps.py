"""Speed and memory of ensemble statistics against other packages.

Prints one table: best wall and CPU time of several runs and peak extra memory, for members x leads x 4
variables x 121 x 240 in float32. "suite" is fair CRPS, variance, squared error of the ensemble mean and rank
counts; "crps" is CRPS alone. Other packages are timed if they are installed, with their documented options.
Needs Linux, because the peak of memory is read from /proc.

    OMP_NUM_THREADS=1 python benchmarks/eval_crps.py --members 20 50
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
Task = Callable[[Array, Array], object]


def fields(members: int, leads: int) -> tuple[Array, Array]:
    """Geopotential-, temperature-, wind- and precipitation-like ensembles (M, P) and truth (P,)."""
    rng = np.random.default_rng(0)
    points = leads * 121 * 240
    blocks = []
    for mean, spread in ((5.5e4, 300.0), (280.0, 5.0), (10.0, 8.0), (-0.6, 1.0)):
        block = mean + spread * rng.standard_normal((members + 1, points), dtype=np.float32)
        blocks.append(np.maximum(block, 0) if mean < 0 else block)
    joined = np.concatenate(blocks, axis=1)
    return np.ascontiguousarray(joined[1:]), np.ascontiguousarray(joined[0])


def suite_wx_eval(x: Array, y: Array) -> object:
    from wx_eval import ensemble_statistics

    return ensemble_statistics(x, y, ranks=True).crps_fair


def crps_wx_eval(x: Array, y: Array) -> object:
    from wx_eval import ensemble_statistics

    return ensemble_statistics(x, y).crps_fair


def read_once(x: Array, _: Array) -> object:
    return x.max()


def copy_once(x: Array, _: Array) -> object:
    return x.copy()


def suite_numpy_sort(x: Array, y: Array) -> object:
    d = x - y
    ranks = (d < 0).sum(axis=0, dtype=np.uint8), (d == 0).sum(axis=0, dtype=np.uint8)
    skill, error, variance = np.abs(d).mean(axis=0), d.mean(axis=0), d.var(axis=0, ddof=1)
    d.sort(axis=0)
    order = (2 * np.arange(1, len(d) + 1) - len(d) - 1).astype(np.float32)
    return skill - order @ d / (len(d) * (len(d) - 1)), error**2, variance, ranks


def _arrays(x: Array, y: Array) -> tuple[Any, Any]:
    import xarray as xr

    return xr.DataArray(x, dims=("member", "point")), xr.DataArray(y, dims=("point",))


def crps_scores(x: Array, y: Array) -> object:
    scores = importlib.import_module("scores.probability")
    forecast, truth = _arrays(x, y)
    return scores.crps_for_ensemble(forecast, truth, "member", method="fair", preserve_dims="all")


def crps_xskillscore(x: Array, y: Array) -> object:
    forecast, truth = _arrays(x, y)
    return importlib.import_module("xskillscore").crps_ensemble(truth, forecast, dim=[])


def _scoringrules(x: Array, y: Array, estimator: str) -> object:
    score = importlib.import_module("scoringrules").crps_ensemble
    backend = "numba" if importlib.util.find_spec("numba") else "numpy"
    return score(y, x, m_axis=0, estimator=estimator, backend=backend)


def crps_scoringrules_fair(x: Array, y: Array) -> object:
    return _scoringrules(x, y, "fair")


def crps_scoringrules_pwm(x: Array, y: Array) -> object:
    return _scoringrules(x, y, "pwm")


def crps_properscoring(x: Array, y: Array) -> object:
    return importlib.import_module("properscoring").crps_ensemble(y, x, axis=0)


TASKS: tuple[tuple[str, str, Task], ...] = (
    ("suite", "wx-eval", suite_wx_eval),
    ("suite", "numpy sort, whole array", suite_numpy_sort),
    ("crps", "wx-eval", crps_wx_eval),
    ("crps", "scores, fair", crps_scores),
    ("crps", "xskillscore, biased", crps_xskillscore),
    ("crps", "scoringrules, fair", crps_scoringrules_fair),
    ("crps", "scoringrules, pwm", crps_scoringrules_pwm),
    ("crps", "properscoring, biased", crps_properscoring),
    ("limit", "read once", read_once),
    ("limit", "copy once", copy_once),
)


def measure(index: int, members: int, leads: int, repeats: int, answer: Any) -> None:
    """Run in a fresh process, so that the peak of memory belongs to one task."""
    x, y = fields(members, leads)
    task = TASKS[index][2]
    try:
        # The first call compiles and imports; a slice keeps it out of the peak.
        task(x[:, :64], y[:64])
    except ImportError:
        answer.put(None)
        return
    # Forget the peak of making the fields; the peak is then that of the task.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        task(x, y)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    answer.put((min(wall), min(cpu), _memory("VmHWM") - before))


def _memory(entry: str) -> float:
    """One entry of /proc/self/status in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{entry}:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--leads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    context = get_context("spawn")
    print(f"{'kind':6} {'implementation':26} {'M':>4} {'wall s':>8} {'CPU s':>8} {'extra MB':>9}")
    for members in options.members:
        for index, (kind, name, _) in enumerate(TASKS):
            answer = context.Queue()
            arguments = (index, members, options.leads, options.repeats, answer)
            process = context.Process(target=measure, args=arguments)
            process.start()
            result = answer.get()
            process.join()
            if result is None:
                print(f"{kind:6} {name:26} {members:4d} {'not installed':>19}")
            else:
                wall, cpu, extra = result
                print(f"{kind:6} {name:26} {members:4d} {wall:8.3f} {cpu:8.3f} {extra:9.0f}", flush=True)


if __name__ == "__main__":
    main()
