"""Time of a tested comparison of two models from records in memory.

Prints one table of CPU seconds, best of several runs: `compare` of init times x lead times x channels x
regions with all standard errors and the correction over the card, its parts, `score_intervals`, and the
bootstrap.

    OMP_NUM_THREADS=1 python benchmarks/eval_inference.py --inits 1000
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from wx_eval import CRPS, RMSE, Records, SpreadSkill, compare, scores
from wx_eval._inference import mean_tests
from wx_eval._intervals import score_intervals
from wx_eval._multiplicity import benjamini_hochberg
from wx_eval._records import SCHEMA, Conventions

LEADS, CHANNELS, REGIONS = 10, 8, 6
STATISTICS = ("crps_fair", "mse_mean", "variance", "variance_of_mean", "error_mean")


def records(model: str, inits: int, seed: int) -> Records:
    """Made-up scores with correlated init times."""
    rng = np.random.default_rng(seed)
    cells = LEADS * CHANNELS * REGIONS
    rows = cells * inits
    names = [(f"c{c}", f"r{r}") for c in range(CHANNELS) for r in range(REGIONS)]
    starts = np.datetime64("2020-01-01", "s") + np.timedelta64(12, "h") * np.arange(inits)
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(1, "D")).astype("timedelta64[s]")
    columns = {
        "model": np.full(rows, model),
        "channel": np.repeat([c for c, _ in names], LEADS * inits),
        "region": np.repeat([r for _, r in names], LEADS * inits),
        "lead_time": np.tile(np.repeat(leads, inits), len(names)),
        "init_time": np.tile(starts, cells),
        "members": np.full(rows, 50, np.int32),
        "n": np.full(rows, 29040),
        "n_missing": np.zeros(rows, np.int64),
        "sum_w": np.full(rows, 29040.0),
    }
    noise = rng.standard_normal((cells, inits))
    for t in range(1, inits):
        noise[:, t] = 0.5 * noise[:, t - 1] + np.sqrt(0.75) * noise[:, t]
    arrays = {f.name: pa.array(columns[f.name], f.type) for f in SCHEMA}
    for k, name in enumerate(STATISTICS):
        arrays[name] = pa.array(np.exp(0.2 * np.roll(noise, k, axis=0)).ravel())
    return Records(pa.table(arrays), Conventions(truth="made up", weights="cell", grid="121x240"))


def best(task: Callable[[], object], repeats: int) -> float:
    """CPU seconds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inits", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    a, b = records("a", options.inits, 1), records("b", options.inits, 2)
    cells = LEADS * CHANNELS * REGIONS
    x = np.random.default_rng(0).standard_normal((options.inits, cells))
    p = np.random.default_rng(0).random(cells)
    three = [CRPS(), RMSE(), SpreadSkill()]
    tasks: dict[str, Callable[[], object]] = {
        "scores of both models, 3 metrics": lambda: (scores(a, three), scores(b, three)),
        "compare, CRPS": lambda: compare(a, b),
        "compare, CRPS, RMSE and spread / skill": lambda: compare(a, b, three),
        "  of which standard errors, each metric": lambda: [
            mean_tests(x, m) for m in ("iid", "geer", "ewc", "ewc_ar1")
        ],
        "  of which Benjamini-Hochberg, each metric": lambda: benjamini_hochberg(p),
        "compare, CRPS, Diebold-Mariano (Hering)": lambda: compare(a, b, method="hg"),
        "compare, RMSE, bootstrap of 1000": lambda: compare(
            a, b, RMSE(), method="bootstrap", seed=0, resamples=1000
        ),
        "score_intervals of a, 3 metrics": lambda: score_intervals(a, three),
    }
    print(f"{options.inits} init times x {LEADS} lead times x {CHANNELS} channels x {REGIONS} regions")
    for name, task in tasks.items():
        print(f"{name:45} {best(task, options.repeats):8.3f} s")


if __name__ == "__main__":
    main()
