"""Command line: `python -m recipes.forecaster run`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from recipes.forecaster.data import data
from recipes.forecaster.forecast import forecast
from recipes.forecaster.real import real
from recipes.forecaster.settings import PRESETS, Settings
from recipes.forecaster.train import train
from recipes.forecaster.verify import verify

STEPS: dict[str, Callable[..., None]] = {"data": data, "train": train, "forecast": forecast, "verify": verify}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one step of an experiment, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m recipes.forecaster", description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "run", "real"], help="one, all in order, or a real file")
    parser.add_argument("--out", type=Path, default=Path("runs/default"), help="run folder")
    parser.add_argument("--preset", choices=PRESETS, default=None, help="settings to start from")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    files = parser.add_argument_group("real")
    files.add_argument("--file", type=Path, help="NetCDF, GRIB or Zarr with a real analysis")
    files.add_argument("--fill", choices=["none", "climatology"], default="none", help="of absent channels")
    files.add_argument("--history", choices=["required", "persist"], default="required", help="earlier state")
    files.add_argument("--member", type=int, help="member of an ensemble file")
    options = parser.parse_args(arguments)
    if options.step == "real" and options.file is None:
        parser.error("real needs --file")
    try:
        settings = _settings(options.out, options.preset, options.set)
        torch.set_num_threads(settings.threads)
        if options.step == "real":
            out = options.out / f"real-{options.file.stem}"
            chosen = {name: getattr(options, name) for name in ("file", "fill", "history", "member")}
            print(real(settings, options.out, out=out, progress=not options.quiet, **chosen))
            return
        for name in STEPS if options.step == "run" else [options.step]:
            begin = time.monotonic()
            STEPS[name](settings, options.out, progress=not options.quiet)
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _settings(run: Path, preset: str | None, changes: list[str]) -> Settings:
    """The settings of the run folder; a new folder gets those that were asked for."""
    stored = run / "settings.json"
    if stored.exists() and preset is None and not changes:
        return Settings.from_dict(json.loads(stored.read_text()))
    settings = PRESETS[preset or "default"]().changed(changes)
    settings.keep(run)
    return settings


if __name__ == "__main__":
    main()
