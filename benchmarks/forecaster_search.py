"""What helps on a small budget: train variants of the forecaster on one data set and compare their scores.

    python benchmarks/forecaster_search.py runs/default [--steps 3000] [--only mixing edm]

Needs the data of a run (its `data` step). Every variant changes one thing of the default and gets `--steps`
training steps, times its factor where it names one: the CRPS form calls its network twice a sample, so it
gets fewer for the same time. The table gives the seconds of training and of forecasting, the mean over
channels of fair CRPS over that of climatology, and of the debiased spread/skill, on the test year.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from wx_data import Statistics, Store, compute_statistics
from wx_eval import Records, scores

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipes.forecaster.forecast import forecast
from recipes.forecaster.settings import Settings
from recipes.forecaster.train import train
from recipes.forecaster.verify import CLIMATOLOGY, forecaster_name, score

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "another seed": {"seed": 1},
    "batch 4, 2x steps": {"batch_size": 4, "steps": 2},
    "batch 24, 1/3 of the steps": {"batch_size": 24, "steps": 1 / 3},
    "mixing 5": {"latent_mixing": 5},
    "no mixing (ATLAS blocks)": {"latent_mixing": 0},
    "12 h steps": {"step_hours": 12},
    "6 h steps": {"step_hours": 6},
    "1 year of data": {"first_year": 2006, "train_years": 1},
    "3 years of data": {"first_year": 2004, "train_years": 3},
    "cooldown 0.2": {"cooldown": 0.2},
    "cooldown 1": {"cooldown": 1.0},
    "half the rates": {"learning_rate": 1e-3, "muon_rate": 0.01},
    "float32": {"precision": "float32"},
    "width 128": {"latent_width": 128, "history_width": 48},
    "depth 6": {"latent_depth": 6},
    "weight average": {"ema": 0.05},
    "3 solver steps": {"sampler_steps": 3},
    "10 solver steps": {"sampler_steps": 10},
    "edm": {"estimator": "edm", "sampler_steps": 6},
    "crps, 2/3 of the steps": {"estimator": "crps", "steps": 2 / 3},
    "difference crps 0.2, 2/3 of the steps": {
        "estimator": "crps",
        "difference_weight": 0.2,
        "steps": 2 / 3,
    },
}
LINKS = ("train.store", "test.store", "operational.zarr", "perfect_model.zarr")
DAYS = (1, 3, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the variants to run")
    options = parser.parse_args()
    base = Settings.from_dict(json.loads((options.run / "settings.json").read_text()))
    torch.set_num_threads(base.threads)
    print(
        f"{'variant':38}{'train s':>8}{'fc s':>6}" + "".join(f"{f'day {day}':>8}{'s/s':>6}" for day in DAYS),
        flush=True,
    )
    for name, changes in VARIANTS.items():
        if options.only and not any(part in name for part in options.only):
            continue
        steps = round(options.steps * float(str(changes.get("steps", 1))))
        settings = replace(base, **changes | {"steps": steps})
        with tempfile.TemporaryDirectory() as folder:
            training, forecasting, row = measure(settings, options.run, Path(folder))
        cells = "".join(f"{share:8.3f}{ratio:6.2f}" for share, ratio in row)
        print(f"{name:38}{training:8.0f}{forecasting:6.0f}{cells}", flush=True)


def measure(settings: Settings, data: Path, folder: Path) -> tuple[float, float, list[tuple[float, float]]]:
    """Time of training and of forecasting, and (CRPS over climatology's, spread/skill) at every lead time."""
    for name in LINKS:
        (folder / name).symlink_to((data / name).resolve())
    store = Store(folder / "train.store")
    if settings.step_hours not in Statistics.load(store.path).residuals:
        compute_statistics(store, leads=(6, 12, 24))
    begin = time.monotonic()
    train(settings, folder, progress=False)
    trained = time.monotonic()
    forecast(settings, folder, progress=False)
    forecasting = time.monotonic() - trained
    records: Records = score(settings, folder, progress=False)
    table = scores(records).sel(region="global")
    ours = table.sel(model=forecaster_name(settings))
    share = ours["crps_fair"] / table["crps_fair"].sel(model=CLIMATOLOGY)
    leads = [np.timedelta64(24 * day, "h") for day in DAYS]
    return (
        trained - begin,
        forecasting,
        [
            (
                float(share.sel(lead_time=t).mean()),
                float(ours["spread_skill_debiased"].sel(lead_time=t).mean()),
            )
            for t in leads
        ],
    )


if __name__ == "__main__":
    main()
