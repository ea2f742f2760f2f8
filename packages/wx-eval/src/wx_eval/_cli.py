"""The command `wx-eval`: exit code 0 fine, 1 findings or a refusal, 2 usage."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ._cli_tracks import SCORE_EXAMPLE, TRACKS_EXAMPLE, fill_score, fill_tracks, score, tracks
from ._compare import Comparison, checked_months, compare
from ._config import Baseline, RunSettings, SourceSettings, checked, duration, durations, load, metric
from ._inference import Method
from ._interpolate import PointMethod
from ._multiplicity import Correction
from ._presets import PRESETS
from ._records import Records
from ._regions import BOXES
from ._samples import Sample
from ._scores import metric_from_dict
from ._weights import Weights

if TYPE_CHECKING:
    from ._report import Report

FINE, FOUND, USAGE = 0, 1, 2
Arguments = argparse.Namespace

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

further keys: preset, weights, align, missing_truth; sections climatology (path, name, calendar, channels) and
land (path, variable); in forecast and truth: path, name, channels, rename, members, leads, init_time,
lead_time, engine. Relative paths start at the folder of the file. Options win over the file.

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
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("wx-eval: interrupted; finished starts are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return FINE
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if arguments.debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        print(f"wx-eval: {text}", file=sys.stderr)
        return FOUND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wx-eval",
        description="Verification of probabilistic weather forecasts.",
        epilog="exit codes: 0 fine, 1 findings or a refusal, 2 usage; wx-eval COMMAND --help explains one",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, fill, text, example) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        fill(command)
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        command.set_defaults(run=run)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# Sources, for run and doctor.


def _add_sources(command: argparse.ArgumentParser) -> None:
    for side in ("forecast", "truth"):
        group = command.add_argument_group(side)
        if side == "truth" or command.prog.endswith("run"):
            group.add_argument(f"--{side}", nargs="+", metavar="PATH", help="files, zarr folders, patterns")
        group.add_argument(
            f"--{side}-channels", type=_names, metavar="A,B", help="keep these, such as z500,t850"
        )
        group.add_argument(f"--{side}-members", type=_names, metavar="0,1-50", help="keep these members")
        group.add_argument(f"--{side}-leads", metavar="0h", help="keep these lead times")
        group.add_argument(f"--{side}-lead-time", metavar="24h", help="where the files do not tell it")
        group.add_argument(f"--{side}-rename", action="append", metavar="OLD=NEW", help="channel", default=[])


def _sources(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Settings of both sections among the options."""
    out: dict[str, dict[str, Any]] = {}
    for side in ("forecast", "truth"):
        found = {}
        for key in ("channels", "members", "leads", "lead_time"):
            value = getattr(arguments, f"{side}_{key}")
            if value is not None:
                found[key] = value
        for pair in getattr(arguments, f"{side}_rename"):
            old, equals, new = pair.partition("=")
            if not equals:
                raise ValueError(f"--{side}-rename needs OLD=NEW, got {pair!r}")
            found.setdefault("rename", {})[old] = new
        paths = getattr(arguments, side, None)
        if paths:
            found["path"] = paths
        out[side] = found
    return out


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
    group.add_argument("--preset", choices=sorted(PRESETS))
    group.add_argument("--metric", action="append", metavar="M", help='"crps_fair", "Brier(threshold=280.0)"')
    group.add_argument("--regions", type=_names, metavar="A,B", help="of " + ", ".join(BOXES))
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
    group = command.add_argument_group("how")
    group.add_argument("--workers", type=checked(_positive), default=1, metavar="N", help="processes")
    group.add_argument("--overwrite", action="store_true", help="drop what another configuration left")
    group.add_argument("--quiet", action="store_true", help="no progress")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"must be 1 or more, got {text}")
    return value


def _settings(arguments: Arguments) -> RunSettings:
    plain = ("model", "output", "preset", "regions", "weights", "leads", "inits", "align", "missing_truth")
    options: dict[str, Any] = {k: v for k in plain if (v := getattr(arguments, k)) is not None}
    if arguments.metric:
        options["metrics"] = arguments.metric
    if arguments.climatology:
        options["climatology"] = {"path": arguments.climatology}
    if arguments.regrid:
        method, _, grid = arguments.regrid.partition(":")
        options["regrid"] = {"method": method, **({"grid": grid} if grid else {})}
    if arguments.interpolation:
        options["stations"] = {"interpolation": arguments.interpolation}
    sides = _sources(arguments)
    for key in ("years", "period"):
        if (value := getattr(arguments, f"forecast_{key}")) is not None:
            sides["forecast"][key] = value
    if arguments.baseline:
        sides["forecast"]["baseline"] = arguments.baseline
    if arguments.stations:
        sides["truth"]["stations"] = arguments.stations
    return load(arguments.config, {**options, **{k: v for k, v in sides.items() if v}})


def _run(arguments: Arguments) -> int:
    from ._run import run

    settings = _settings(arguments)
    records = run(settings, workers=arguments.workers, overwrite=arguments.overwrite, quiet=arguments.quiet)
    if records is not None:
        starts = records.init_times
        print(
            f"{settings.path(settings.output)}: {len(records)} rows of {starts.size} starts, "
            f"{len(records.channels)} channels, {records.lead_times.size} lead times"
        )
    return FINE


# merge


def _fill_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("records", nargs="+", help="parquet files")
    command.add_argument("-o", "--output", required=True)


def _merge(arguments: Arguments) -> int:
    records = _read(arguments.records)
    records.to_parquet(arguments.output)
    print(f"{arguments.output}: {len(records)} rows of {', '.join(records.models)}")
    return FINE


def _read(paths: Sequence[str]) -> Records:
    first, *rest = (Records.from_parquet(path) for path in paths)
    return first.merge(*rest)


# compare and scorecard


def _fill_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", help="records of the model under test")
    command.add_argument("b", help="records of the baseline; may be the same file")
    command.add_argument("--model-a", help="needed when A holds several models")
    command.add_argument("--model-b", help="needed when B holds several models")
    command.add_argument("--preset", choices=sorted(PRESETS), help="its card, test and correction")
    command.add_argument(
        "--metric", action="append", metavar="M", help='by default "crps_fair", or "rmse" of one member'
    )
    for name in ("channels", "regions"):
        command.add_argument(f"--{name}", type=_names, metavar="A,B")
    command.add_argument("--leads", type=checked(durations), metavar="1d,3d")
    _add_test(command)


def _add_test(command: argparse.ArgumentParser) -> None:
    """Options of the starts that are compared and of the test."""
    group = command.add_argument_group("starts")
    group.add_argument("--months", type=checked(_months), metavar="12,1,2", help="starts in these only")
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
    group.add_argument("--seed", type=int, help="of the bootstrap")
    group.add_argument("--resamples", type=checked(_positive), metavar="N", help="of the bootstrap, or 2000")
    group.add_argument("--correction", choices=get_args(Correction), help="benjamini-hochberg if not given")
    group.add_argument("--alpha", type=float, default=0.05, help="level of significance, or 0.05")


def _months(text: str) -> tuple[int, ...]:
    return checked_months(tuple(int(part) for part in _names(text)))


def _choices(arguments: Arguments, preset: bool) -> dict[str, Any]:
    """Arguments of `compare` among the options, those given.

    Raises:
        ValueError: for the test of a preset.
    """
    starts = {name: getattr(arguments, name) for name in ("months", "sample", "lag")}
    if starts["lag"] is not None:
        starts["lag"] = np.timedelta64(starts["lag"], "s")
    test = {name: getattr(arguments, name) for name in ("method", "seed", "resamples", "correction")}
    given = [name for name, value in test.items() if value is not None]
    if preset and given:
        raise ValueError(f"the preset sets the test: drop --{given[0]} or the preset")
    if arguments.resamples is not None and arguments.method != "bootstrap":
        raise ValueError("--resamples is of --method bootstrap")
    return {name: value for name, value in {**starts, **test}.items() if value is not None}


def _comparison(arguments: Arguments) -> Comparison:
    a, b = Records.from_parquet(arguments.a), Records.from_parquet(arguments.b)
    chosen = [_of(a, m) for m in arguments.metric] if arguments.metric else None
    shared: dict[str, Any] = {
        "model_a": arguments.model_a,
        "model_b": arguments.model_b,
        "channels": arguments.channels,
        "regions": arguments.regions,
        "alpha": arguments.alpha,
        **_choices(arguments, arguments.preset is not None),
    }
    if arguments.leads is not None:
        shared["lead_times"] = np.array(arguments.leads, "timedelta64[s]")
    if arguments.preset:
        return PRESETS[arguments.preset].compare(a, b, metrics=chosen, **shared)
    return compare(a, b, chosen or _default_metric(a, b), **shared)


def _of(records: Records, text: str) -> Any:
    """A metric of the records by its name, or any by its type and settings."""
    return text if text in records.metrics else metric(text)


def _default_metric(a: Records, b: Records) -> str:
    ensembles = all((r.table["members"].to_numpy() > 1).all() for r in (a, b))
    return "crps_fair" if ensembles and "crps_fair" in {*a.metrics} & {*b.metrics} else "rmse"


def _compare(arguments: Arguments) -> int:
    card = _comparison(arguments)
    for name, value in card.settings().items():
        print(f"{name}: {value}")
    print()
    rows = [["metric", "channel", "region", "lead", "starts", card.model_a, card.model_b, "skill", "p", ""]]
    for cell in card.cells:
        rows.append(
            [
                cell.metric,
                cell.channel,
                cell.region,
                f"{cell.lead_time / np.timedelta64(1, 'h'):g} h",
                str(cell.n),
                f"{cell.score_a:.5g}",
                f"{cell.score_b:.5g}",
                f"{100 * cell.skill:+.2f} %",
                f"{cell.p_adjusted:.3g}",
                ("better" if cell.difference < 0 else "worse") if cell.significant else "",
            ]
        )
    _print_table(rows)
    return FINE


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _fill_scorecard(command: argparse.ArgumentParser) -> None:
    _fill_compare(command)
    _add_page(command)


def _add_page(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, help="HTML file")
    command.add_argument("--figures", metavar="FOLDER", help="also write every figure there")
    command.add_argument("--kind", choices=("svg", "png", "pdf"), default="svg", help="of the figures")


def _scorecard(arguments: Arguments) -> int:
    from ._report import Report

    card = _comparison(arguments)
    page = Report(
        f"{card.model_a} against {card.model_b}", data=_link(arguments.a, arguments), command=arguments.again
    )
    return _written(page.scorecard("Scorecard", card), arguments)


def _link(path: str, arguments: Arguments) -> str:
    """A path relative to the page."""
    return os.path.relpath(path, Path(arguments.output).parent)


def _written(page: Report, arguments: Arguments) -> int:
    print(page.write(arguments.output))
    if arguments.figures:
        print(f"{arguments.figures}: {len(page.export(arguments.figures, arguments.kind))} figures")
    return FINE


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


def _report(arguments: Arguments) -> int:
    from ._report import Report

    paths = arguments.records
    records = _read(paths)
    page = Report.from_records(
        records,
        baseline=arguments.baseline,
        metrics=arguments.metric,
        title=arguments.title,
        data=_link(paths[0], arguments) if len(paths) == 1 else "",
        command=arguments.again,
        alpha=arguments.alpha,
        **_choices(arguments, bool(records.conventions.preset)),
    )
    return _written(page, arguments)


# climatology


def _fill_climatology(command: argparse.ArgumentParser) -> None:
    command.add_argument("history", nargs="+", help="files of past states")
    command.add_argument("-o", "--output", required=True, help="netCDF file, or a folder that ends in .zarr")
    command.add_argument("--channels", type=_names, metavar="A,B")
    command.add_argument("--quantiles", type=checked(_numbers), default=(), metavar="0.1,0.9")
    command.add_argument("--window-days", type=int, default=30)
    command.add_argument("--kernel", choices=("triangle", "flat"), default="triangle")
    command.add_argument("--calendar", choices=("monthday", "doy"), default="monthday")
    command.add_argument("--name", help="kept with every score against it")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in _names(text))


def _climatology(arguments: Arguments) -> int:
    from ._climatology import DayClimatology
    from ._open import Truth, open_source

    source = open_source(arguments.history, "history", truth=True, channels=arguments.channels)
    built = DayClimatology.build(
        Truth(source),
        quantiles=arguments.quantiles,
        window_days=arguments.window_days,
        kernel=arguments.kernel,
        calendar=arguments.calendar,
        name=arguments.name,
    )
    if arguments.output.rstrip("/").endswith(".zarr"):
        built.dataset.to_zarr(arguments.output, mode="w")
    else:
        built.dataset.to_netcdf(arguments.output)
    print(f"{arguments.output}: {built.name}, channels {', '.join(built.channels)}")
    return FINE


# doctor and info


def _fill_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", nargs="+", metavar="FORECAST", help="files of the forecast")
    _add_sources(command)
    command.add_argument(
        "--samples", type=checked(_positive), default=12, metavar="N", help="chunks that are read"
    )
    command.add_argument("--seed", type=int, default=0, help="of the choice of chunks")


def _doctor(arguments: Arguments) -> int:
    from ._doctor import doctor
    from ._job import opened

    sections = _sources(arguments)
    if not sections["truth"].get("path"):
        raise ValueError("doctor needs a truth: --truth PATH")
    sections["forecast"]["path"] = arguments.path
    sides = {name: opened(SourceSettings.parse(data, name), name) for name, data in sections.items()}
    diagnosis = doctor(sides["forecast"], sides["truth"], samples=arguments.samples, seed=arguments.seed)
    print(diagnosis.text())
    return FINE if diagnosis.healthy else FOUND


def _fill_info(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", nargs="+", help="records, or files of a forecast or a truth")
    command.add_argument(
        "--lead-time", type=checked(duration), metavar="24h", help="where the files do not tell it"
    )


def _info(arguments: Arguments) -> int:
    if all(Path(p).suffix == ".parquet" for p in arguments.path):
        records = _read(arguments.path)
        facts: dict[str, Any] = {
            "rows": len(records),
            "models": ", ".join(records.models),
            "channels": ", ".join(records.channels),
            "regions": ", ".join(records.regions),
            "starts": _range(records.init_times),
            "lead times": _range(records.lead_times),
            "metrics": ", ".join(n for n, d in records.metrics.items() if metric_from_dict(d)),
            **{k: v for k, v in vars(records.conventions).items() if isinstance(v, str)},
        }
    else:
        facts = _source_facts(arguments)
    for name, value in facts.items():
        print(f"{name}: {value}")
    return FINE


def _source_facts(arguments: Arguments) -> dict[str, Any]:
    from ._open import open_source

    lead = None if arguments.lead_time is None else np.timedelta64(arguments.lead_time, "s")
    try:
        source = open_source(arguments.path, "forecast", lead_time=lead)
        times = {"starts": _range(source.init_times), "lead times": _range(source.lead_times)}
    except ValueError:
        source = open_source(arguments.path, "truth", truth=True)
        times = {"times": _range(source.init_times)}
    counts = {
        len(source.members(c, k)) for k in source.keys[:1] + source.keys[-1:] for c in source.channels_at(k)
    }
    return {
        "files": len({c.origin for c in source.cubes}),
        "channels": ", ".join(f"{c} [{source.units[c]}]" for c in source.channels),
        **times,
        "members": "/".join(map(str, sorted(counts))),
        "grid": source.grid_text,
    }


def _range(times: Any) -> str:
    """Count, ends and spacing of times."""
    if times.dtype.kind == "m":
        text = [f"{t / np.timedelta64(1, 'h'):g} h" for t in times]
    else:
        text = [str(t.astype("datetime64[m]")) for t in times]
    if times.size == 1:
        return text[0]
    steps = np.unique(np.diff(times))
    spacing = f"every {steps[0] / np.timedelta64(1, 'h'):g} h" if steps.size == 1 else "spacing uneven"
    return f"{times.size}, {text[0]} to {text[-1]}, {spacing}"


_COMMANDS: dict[
    str, tuple[Callable[[Arguments], int], Callable[[argparse.ArgumentParser], None], str, str]
] = {
    "run": (_run, _fill_run, "score a forecast against a truth", _RUN_EXAMPLE),
    "merge": (_merge, _fill_merge, "join records", "example: wx-eval merge a.parquet b.parquet -o c.parquet"),
    "compare": (
        _compare,
        _fill_compare,
        "test one model against another, cell by cell",
        "examples:\n"
        "  wx-eval compare new.parquet old.parquet --metric rmse --regions global --leads 1d,5d\n"
        "  wx-eval compare new.parquet old.parquet --months 12,1,2 --sample valid\n"
        "  wx-eval compare new.parquet old.parquet --lag 12h --method bootstrap --seed 1",
    ),
    "scorecard": (
        _scorecard,
        _fill_scorecard,
        "draw the comparison of two models",
        "example: wx-eval scorecard new.parquet old.parquet -o card.html",
    ),
    "report": (
        _report,
        _fill_report,
        "write one page on all models of some records",
        "example: wx-eval report new.parquet old.parquet --baseline old -o report.html",
    ),
    "climatology": (
        _climatology,
        _fill_climatology,
        "build a climatology by day of the year and hour",
        'example: wx-eval climatology "era5/199*.nc" --channels z500,t850 --quantiles 0.1,0.9 -o clim.nc',
    ),
    "doctor": (
        _doctor,
        _fill_doctor,
        "look for faults in a forecast and its truth",
        'example: wx-eval doctor "ens/*.grib" --truth era5.zarr',
    ),
    "tracks": (tracks, fill_tracks, "find tropical cyclones in a forecast", TRACKS_EXAMPLE),
    "score-tracks": (score, fill_score, "score tracks of cyclones against best tracks", SCORE_EXAMPLE),
    "info": (_info, _fill_info, "say what is in records or in files", "example: wx-eval info ens.parquet"),
}
