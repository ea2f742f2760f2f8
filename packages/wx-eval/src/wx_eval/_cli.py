"""The command `wx-eval`: exit code 0 fine, 1 findings or a refusal, 2 usage."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from ._choices import (
    BOXES,
    Baseline,
    Calendar,
    Correction,
    Kernel,
    Method,
    PointMethod,
    PresetName,
    Sample,
    Weights,
)
from ._cli_tracks import SCORE_EXAMPLE, TRACKS_EXAMPLE, fill_score, fill_tracks
from ._cli_vectors import VECTORS_EXAMPLE, fill_vectors
from ._texts import checked, duration, durations, months, names, natural, numbers, pair, positive, share, size

FINE, FOUND = 0, 1

_RUN_EXAMPLE = """\
example configuration:

    model = "ens"
    output = "ens.parquet"
    forecast = "ens/*.grib"
    leads = "1d/10d/1d"                  # first/last/step, or ["12h", "5d"]
    inits = "2020-01-01/2020-12-31"      # first/last, first/last/step, or a list
    metrics = ["crps_fair", "rmse", {type = "Brier", threshold = 280.0}]
    regions = ["global", "europe"]

    [truth]
    path = "era5.zarr"
    channels = ["z500", "t850"]

    [regrid]
    method = "conservative"              # or "bilinear"
    grid = "121x240"                     # or "truth", "forecast"

further keys: preset, costly, weights, align, missing_truth, truth_models; sections climatology (path, name,
calendar, channels) and land (path, variable); in forecast and truth: path, name, channels, rename, members,
leads, init_time, lead_time, engine. Relative paths start at the folder of the file. Options win over the
file.

a climatology, or "persistence", as the forecast; inits and leads have to be given:

    [forecast]
    baseline = "climatology"
    path = "era5.zarr"                   # past states; of persistence the truth if not given
    members = 50                         # or years = "1990-2019", one member of each
    period = "1990/2019"                 # without the verified one
    window_days = 15
    calendar = "monthday"                # or "doy"

METAR reports as the truth, of a forecast on a grid (temperatures are t2m, d2m, wind is 10m_wind_speed):

    weights = "density"                  # or {type = "density", kind = "count", radius_km = 75}, "equal"

    [truth]
    stations = "metar.parquet"           # or a folder of parquet files
    channels = ["t2m", "10m_wind_speed"]
    window = "30min"                     # before and after the valid time
    tie = "before"                       # or "after"
    pick = "nearest"                     # or "mean"
    sigmas = 5                           # drop what is further from the climatology; needs that section
    exclude = ["NZCM"]

    [stations]
    interpolation = "bilinear"           # or "nearest", "nearest_land" (needs the section land)
    orography = {path = "orography.nc", variable = "z", rates = {t2m = 0.0065}}

further keys of such a truth: name, rename, within ([[south, north], [west, east]]), layout (columns: station,
time, latitude, longitude, elevation; in long form also variable, value, flag) and, for tables of other
columns, variables, a list such as {column = "T", channel = "t2m", unit = "degC", to = "K",
limits = [180, 335], flag = "T_qc", reject = ["B"]} or {column = "windSpeed", direction = "windDir",
component = "u", channel = "u10", unit = "m s-1"}.

A run that was stopped goes on where it was when the same command is given again. Under torchrun the ranks
share the starts.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(given)
    arguments.again = shlex.join(["wx-eval", *given])
    try:
        _check_output(arguments)
        # Arrays and tables take a second to import, for which help and errors of usage need not wait.
        from ._commands import COMMANDS

        return COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("wx-eval: interrupted; finished starts are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not flush into the closed pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if arguments.debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        elif isinstance(error, FileNotFoundError) and error.errno is None and not text.startswith("no file"):
            # pyarrow tells the path alone.
            text = f"no file {text!r}"
        print(f"wx-eval: {text}", file=sys.stderr)
        return FOUND


def _check_output(arguments: argparse.Namespace) -> None:
    """See that the output can be written before any work is done; `run` makes its folder itself."""
    output = getattr(arguments, "output", None)
    if output is None or arguments.command == "run":
        return
    path = Path(output)
    if arguments.command == "climatology" and path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"-o of a climatology must end in .nc or .zarr, got {output!r}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"-o {output}: there is no folder {str(path.parent)!r}")
    if path.is_dir() and path.suffix != ".zarr":
        raise ValueError(f"-o {output} is a folder: name a file in it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wx-eval",
        description="Verification of probabilistic weather forecasts.",
        epilog="exit codes: 0 fine, 1 findings or a refusal, 2 usage; wx-eval COMMAND --help explains one",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (fill, text, example) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(command)
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


# Sources, for run and doctor.


def _add_sources(command: argparse.ArgumentParser) -> None:
    for side in ("forecast", "truth"):
        group = command.add_argument_group(side)
        if side == "truth" or command.prog.endswith("run"):
            group.add_argument(f"--{side}", nargs="+", metavar="PATH", help="files, zarr folders, patterns")
        group.add_argument(
            f"--{side}-channels", type=names, metavar="A,B", help="keep these, such as z500,t850"
        )
        group.add_argument(f"--{side}-members", type=names, metavar="0,1-50", help="keep these members")
        group.add_argument(f"--{side}-leads", metavar="0h", help="keep these lead times")
        group.add_argument(f"--{side}-lead-time", metavar="24h", help="where the files do not tell it")
        group.add_argument(
            f"--{side}-rename",
            type=checked(pair),
            action="append",
            default=[],
            metavar="OLD=NEW",
            help="name of a channel in the records, by its name in the files",
        )


# run


def _fill_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", nargs="?", help="TOML file, see below; without it, everything by options")
    command.add_argument("--model", help="name under which the rows are kept")
    command.add_argument("-o", "--output", help="parquet file")
    _add_sources(command)
    group = command.add_argument_group("other forecasts and truths")
    group.add_argument("--baseline", choices=get_args(Baseline), help="made of the past states --forecast")
    group.add_argument("--forecast-years", metavar="1990-2019", help="of a climatology: one member of each")
    group.add_argument("--forecast-period", metavar="A/B", help="of a climatology: states that it may use")
    group.add_argument("--stations", metavar="PATH", help="METAR reports in parquet as the truth")
    group.add_argument("--interpolation", choices=get_args(PointMethod), help="to stations")
    group = command.add_argument_group("what is computed")
    group.add_argument("--preset", choices=get_args(PresetName))
    group.add_argument("--metric", action="append", metavar="M", help='"crps_fair", "Brier(threshold=280.0)"')
    group.add_argument("--regions", type=names, metavar="A,B", help="of " + ", ".join(BOXES))
    group.add_argument(
        "--weights", metavar="W", help=f'{", ".join(get_args(Weights))}, density, "density(radius_km=50)"'
    )
    group.add_argument("--leads", metavar="1d/10d/1d", help="first/last/step, or 12h,5d")
    group.add_argument(
        "--inits", metavar="A/B[/STEP]", help="first/last, first/last/step, or a list with commas"
    )
    group.add_argument(
        "--align", action="store_true", default=None, help="bring rows, columns into truth's order"
    )
    group.add_argument(
        "--regrid", metavar="METHOD[:GRID]", help="bilinear or conservative, onto truth or 121x240"
    )
    group.add_argument("--missing-truth", choices=("error", "drop"))
    group.add_argument("--climatology", metavar="PATH")
    group.add_argument("--truth-models", type=names, metavar="A,B", help="whose own analysis the truth is")
    group.add_argument("--costly", action="store_true", default=None, help="the costly metrics of the preset")
    group = command.add_argument_group("how")
    group.add_argument("--workers", type=checked(positive), default=1, metavar="N", help="processes")
    group.add_argument("--overwrite", action="store_true", help="drop what another configuration left")
    group.add_argument("--quiet", action="store_true", help="no progress")


# merge


def _fill_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("records", nargs="+", help="parquet files")
    command.add_argument("-o", "--output", required=True)


# compare and scorecard


def _fill_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", help="records of the model under test")
    command.add_argument("b", help="records of the baseline; may be the same file")
    command.add_argument("--model-a", help="needed when A holds several models")
    command.add_argument("--model-b", help="needed when B holds several models")
    command.add_argument("--preset", choices=get_args(PresetName), help="its card, test and correction")
    command.add_argument(
        "--metric", action="append", metavar="M", help='by default "crps_fair", or "rmse" of one member'
    )
    for name in ("channels", "regions"):
        command.add_argument(f"--{name}", type=names, metavar="A,B")
    command.add_argument("--leads", type=checked(durations), metavar="1d,3d")
    _add_test(command)


def _add_test(command: argparse.ArgumentParser) -> None:
    """Options of the starts that are compared and of the test."""
    group = command.add_argument_group("starts")
    group.add_argument("--months", type=checked(months), metavar="12,1,2", help="starts in these only")
    group.add_argument(
        "--sample",
        choices=get_args(Sample),
        help="each cell has all its pairs, or all lead times share their starts or valid times",
    )
    group.add_argument(
        "--lag",
        type=checked(duration),
        metavar="12h",
        help="the baseline started so much earlier, same valid time",
    )
    group = command.add_argument_group("test", "with a preset, its own")
    group.add_argument("--method", choices=(*get_args(Method), "bootstrap"), help="ewc_ar1 if not given")
    group.add_argument("--seed", type=checked(natural), metavar="N", help="of the bootstrap")
    group.add_argument("--resamples", type=checked(positive), metavar="N", help="of the bootstrap, or 2000")
    group.add_argument("--correction", choices=get_args(Correction), help="benjamini-hochberg if not given")
    group.add_argument("--alpha", type=checked(share), default=0.05, help="level of significance, or 0.05")


def _fill_scorecard(command: argparse.ArgumentParser) -> None:
    _fill_compare(command)
    _add_page(command)


def _add_page(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, help="HTML file")
    command.add_argument("--figures", metavar="FOLDER", help="also write every figure there")
    command.add_argument("--kind", choices=("svg", "png", "pdf"), default="svg", help="of the figures")


# report


def _fill_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("records", nargs="+", help="parquet files")
    _add_page(command)
    command.add_argument("--baseline", metavar="MODEL", help="compare every other model with this one")
    command.add_argument(
        "--metric", action="append", metavar="M", help="of the cards, by its name in the records"
    )
    command.add_argument("--title")
    _add_test(command)


# climatology


def _fill_climatology(command: argparse.ArgumentParser) -> None:
    command.add_argument("history", nargs="+", help="files of past states")
    command.add_argument("-o", "--output", required=True, help="netCDF file, or a folder that ends in .zarr")
    command.add_argument("--channels", type=names, metavar="A,B")
    command.add_argument("--period", metavar="A/B", help="states from A to B, without the verified ones")
    command.add_argument("--quantiles", type=checked(numbers), default=(), metavar="0.1,0.9")
    command.add_argument("--window-days", type=int, default=30)
    command.add_argument("--kernel", choices=get_args(Kernel), default="triangle")
    command.add_argument("--calendar", choices=get_args(Calendar), default="monthday")
    command.add_argument("--name", help="kept with every score against it")
    command.add_argument(
        "--seeps",
        type=checked(pair),
        action="append",
        default=[],
        metavar="tp=0.25",
        help="channel of precipitation and its dry threshold in mm",
    )
    command.add_argument(
        "--memory",
        type=checked(size),
        default=1 << 30,
        metavar="4GB",
        help="work space, or 1GB: with more the history is read fewer times",
    )


# doctor and info


def _fill_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path", nargs="+", metavar="FORECAST", help="files of the forecast, or the configuration of a run"
    )
    _add_sources(command)
    command.add_argument(
        "--samples", type=checked(positive), default=12, metavar="N", help="chunks that are read"
    )
    command.add_argument("--seed", type=checked(natural), default=0, metavar="N", help="of their choice")
    group = command.add_argument_group("stations")
    group.add_argument("--stations", metavar="PATH", help="METAR reports in parquet as the truth")
    group.add_argument("--interpolation", choices=("bilinear", "nearest"), default="bilinear")
    group.add_argument("--orography", metavar="PATH:VARIABLE", help="of the model, on its grid")


def _fill_info(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", nargs="+", help="records, station reports, files of a forecast or a truth")
    command.add_argument(
        "--lead-time", type=checked(duration), metavar="24h", help="where the files do not tell it"
    )


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "run": (_fill_run, "score a forecast against a truth", _RUN_EXAMPLE),
    "merge": (_fill_merge, "join records", "example: wx-eval merge a.parquet b.parquet -o c.parquet"),
    "compare": (
        _fill_compare,
        "test one model against another, cell by cell",
        "examples:\n"
        "  wx-eval compare new.parquet old.parquet --metric rmse --regions global --leads 1d,5d\n"
        "  wx-eval compare new.parquet old.parquet --months 12,1,2 --sample valid\n"
        "  wx-eval compare new.parquet old.parquet --lag 12h --method bootstrap --seed 1",
    ),
    "scorecard": (
        _fill_scorecard,
        "draw the comparison of two models",
        "example: wx-eval scorecard new.parquet old.parquet -o card.html",
    ),
    "report": (
        _fill_report,
        "write one page on all models of some records",
        "example: wx-eval report new.parquet old.parquet --baseline old -o report.html",
    ),
    "climatology": (
        _fill_climatology,
        "build a climatology by day of the year and hour",
        "example: wx-eval climatology era5.zarr --period 1990/2019 --channels z500,t850 -o clim.zarr",
    ),
    "doctor": (
        _fill_doctor,
        "look for faults in a forecast and its truth",
        "examples:\n"
        '  wx-eval doctor "ens/*.grib" --truth era5.zarr\n'
        "  wx-eval doctor ens.zarr --stations metar.parquet --orography static.nc:z\n"
        "  wx-eval doctor run.toml",
    ),
    "tracks": (fill_tracks, "find tropical cyclones in a forecast", TRACKS_EXAMPLE),
    "score-tracks": (fill_score, "score tracks of cyclones against best tracks", SCORE_EXAMPLE),
    "vectors": (fill_vectors, "test this installation against exact scores", VECTORS_EXAMPLE),
    "info": (_fill_info, "say what is in records or in files", "example: wx-eval info ens.parquet"),
}
