"""The command `wx-data`: exit code 0 ok, 1 a problem with the data, 2 usage, 3 input or output."""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from wx_data import _commands
from wx_data._channels import PRESETS
from wx_data._channels import channels as lexicon
from wx_data._commands import IO, PROBLEM, USAGE, Arguments
from wx_data._errors import SourceError, StoreError
from wx_data._grid import Grid
from wx_data._healpix import AnyGrid, Healpix

_REMEDIES: tuple[tuple[type[BaseException], int, str], ...] = (
    (SourceError, PROBLEM, "wx-data inspect SOURCE shows what is there"),
    (StoreError, PROBLEM, "wx-data inspect PATH shows what is there"),
    (FileNotFoundError, IO, "check the path"),
    (PermissionError, IO, "check the permissions of the file and of its folder"),
    (OSError, IO, "run the same command again: finished work is kept"),
    (ImportError, USAGE, "install the extra that the message names"),
    (ValueError, USAGE, "wx-data COMMAND --help explains the options"),
    (KeyError, USAGE, "wx-data COMMAND --help explains the options"),
)
# Arguments of Python that messages name, and the options they are here.
_OPTIONS: tuple[tuple[str, str], ...] = (
    (r'missing="drop"', "--missing drop"),
    (r'implausible="keep"', "--keep-implausible"),
    (r"Pass nan=\{'(\w+)': rule\}", r"Pass --nan \1=RULE"),
    (r"fill=\{name: constant or field\}", "--fill CHANNEL=VALUE"),
    (r'derive=\{"q": "relative_humidity"\}', "--derive q=relative_humidity"),
    (r"\bera5t=True", "--era5t"),
    (r"\bmember=(?=\d)", "--member "),
    (r"\bmember=", "--member"),
    (r"\blead=(?=\w)", "--forecast-lead "),
    (r"\blead=", "--forecast-lead"),
    (r"\bkind='(\w+)'", r"--kind \1"),
    (r"\bgrid=(?= )", "--grid"),
    (r"\bremote=Remote\(anonymous=False\)", "--signed"),
    (r"pass resume=True", "leave out --no-resume"),
    (r'changed="keep" \(--accept-changes\)', "--accept-changes"),
    (
        r"[Cc]all convert\(\) again( with the same arguments)? \(resume=True\)",
        "Run the same wx-data convert again",
    ),
    (r"[Cc]all convert\(\) again( with the same arguments)?", "Run the same wx-data convert again"),
    (r"hdf5=YearlyHdf5\((channels|latitude|longitude|step)=\.\.\.\)", "--hdf5 DATA.JSON"),
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            # Of what other libraries plan; what they say about the data stays.
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("wx-data: interrupted\nthe same command goes on where it stopped", file=sys.stderr)
        return 130
    except tuple(kind for kind, _, _ in _REMEDIES) as error:
        return _fail(error, arguments)


def _fail(error: BaseException, arguments: Arguments) -> int:
    """One line of cause and one of remedy, on stderr; with --json also as JSON on stdout."""
    code, remedy = next((code, text) for kind, code, text in _REMEDIES if isinstance(error, kind))
    if _from_outside(error):
        code = IO
    if code == PROBLEM and arguments.command == "inspect":
        remedy = (
            "--kind names the format where it is not recognised; wx-data inspect --help lists more options"
        )
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    for argument, option in _OPTIONS:
        text = re.sub(argument, option, text)
    lines = "; ".join(line.strip().rstrip(";") for line in text.splitlines() if line.strip())
    cause, found, rest = lines.rpartition(". ")
    if found:
        remedy = rest
    else:
        cause = lines
    print(f"wx-data: {cause}\nto fix it: {remedy}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"error": cause, "remedy": remedy, "exit_code": code}))
    return code


def _from_outside(error: BaseException | None) -> bool:
    """Whether a disk or a server is behind an error."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] == "obstore":
            return True
        error = error.__cause__
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wx-data",
        description="ERA5 and its kin, from public stores to training batches to forecast output.",
        epilog="exit codes: 0 ok, 1 problem with the data, 2 usage, 3 input or output",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, fill, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        fill(command)
        command.add_argument("--json", action="store_true", help="print the result as one JSON document")
        command.add_argument("--no-progress", action="store_true", help="show no bar and no log lines")
    return parser


# Options that several commands share.


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="path or URL: Zarr, NetCDF, GRIB, a training store")
    _add_source_options(command)


def _add_source_options(command: argparse.ArgumentParser, *, channels_needed: bool = False) -> None:
    group = command.add_argument_group("source")
    group.add_argument("--kind", default="auto", help="format; by default recognised by content")
    names = "preset, or names with commas between them"
    group.add_argument("--channels", type=_names, required=channels_needed, help=names)
    group.add_argument("--grid", type=_target, metavar="GRID", help="regrid, e.g. 121x240 or healpix:64")
    group.add_argument("--method", choices=("bilinear", "conservative"), default="bilinear")
    group.add_argument("--member", type=int, help="member of an ensemble")
    group.add_argument("--forecast-lead", type=_hours, metavar="6h", help="lead time of forecasts")
    group.add_argument("--fill", type=_number, action="append", metavar="CHANNEL=VALUE", help="if not there")
    group.add_argument("--derive", type=_pair, action="append", metavar="q=relative_humidity")
    group.add_argument("--hdf5", metavar="DATA.JSON", help="makani's metadata of yearly HDF5 files")
    group.add_argument("--era5t", action="store_true", help="of ARCO-ERA5, the provisional months as well")
    group.add_argument(
        "--signed", action="store_true", help="sign requests with the environment's credentials"
    )
    group.add_argument("--endpoint", metavar="URL", help="server of an s3:// or gs:// address, or a mirror")
    group.add_argument("--cache", metavar="FOLDER", help="keep what was fetched")


def _add_conversion(command: argparse.ArgumentParser) -> None:
    _add_source(command)
    command.add_argument("out", metavar="OUT", help="training store to write")
    group = command.add_argument_group("conversion")
    group.add_argument("--start", help="first time; the source's by default")
    group.add_argument("--stop", help="last time, inclusive; a date, month or year means the whole of it")
    group.add_argument("--step", type=_hours, metavar="6h", help="time step")
    group.add_argument(
        "--missing", choices=("error", "drop"), default="error", help="times not in the source"
    )
    group.add_argument(
        "--nan", type=_rule, action="append", metavar="CHANNEL=RULE", help="number, mean, nearest or keep"
    )
    group.add_argument(
        "--keep-implausible", action="store_true", help="store values outside plausible ranges"
    )
    group.add_argument("--band-rows", type=int, help="latitude rows in an inner chunk")
    group.add_argument("--codec", choices=("lz4hc", "lz4", "none"), default="lz4hc")
    group.add_argument("--round", type=float, metavar="F", help="allow errors of F x std of the 6 h residual")
    group.add_argument("--round-statistics", metavar="STORE", help="where that std is taken from")
    group.add_argument("--workers", type=int, default=2, help="threads")


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE", help="training store")


def _add_period(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--period", type=_period, metavar="FIRST:LAST", help="e.g. 1979:2017, both inclusive"
    )


def _names(text: str) -> tuple[str, ...]:
    try:
        found = lexicon(text if text in PRESETS else [name.strip() for name in text.split(",")])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(spec.name for spec in found)


def _grid(text: str) -> Grid:
    try:
        rows, columns = map(int, text.lower().split("x"))
        # An odd number of rows has one at each pole and one at the equator.
        return Grid.regular(rows, columns, poles=rows % 2 == 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWSxCOLUMNS, as in 721x1440 ({error})") from None


def _target(text: str) -> AnyGrid:
    kind, _, nside = text.lower().partition(":")
    if kind != "healpix":
        return _grid(text)
    try:
        return Healpix(int(nside))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not healpix:NSIDE, as in healpix:64 ({error})"
        ) from None


def _hours(text: str) -> int:
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("h", "d") else (text, "h")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 6h or 5d")
    return int(number) * (24 if unit == "d" else 1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _number(text: str) -> tuple[str, float]:
    name, value = _pair(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {value!r} is not a number") from None


def _rule(text: str) -> tuple[str, Any]:
    name, value = _pair(text)
    return (name, value) if value in ("mean", "nearest", "keep") else _number(text)


def _part(text: str) -> tuple[int, int]:
    number, slash, total = text.partition("/")
    if not (slash and number.isdigit() and total.isdigit() and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I = 0..N-1, as in 0/4")
    return int(number), int(total)


def _period(text: str) -> tuple[str, str]:
    first, _, last = text.partition(":")
    try:
        dates = [np.datetime64(part) for part in (first, last) if part]
    except ValueError:
        dates = []
    if len(dates) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FIRST:LAST, as in 1979:2017 or 2001-01-01T06:2001-02-03T18"
        )
    return first, last


def _fill_channels(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "names", nargs="?", type=_names, metavar="PRESET", help="preset, or names with commas"
    )


def _fill_plan(command: argparse.ArgumentParser) -> None:
    _add_conversion(command)
    command.add_argument("--sample", type=int, default=4, help="steps to read and time")


def _fill_convert(command: argparse.ArgumentParser) -> None:
    _add_conversion(command)
    command.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="part I = 0..N-1 of N")
    resume = argparse.BooleanOptionalAction
    command.add_argument("--resume", action=resume, default=True, help="go on with a store that was begun")


def _fill_stats(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    _add_period(command)
    command.add_argument(
        "--lead", type=_hours, action="append", metavar="6h", help="of residuals; repeatable"
    )
    command.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="the last part merges them"
    )
    command.add_argument("--workers", type=int, default=2, help="threads")


def _fill_climatology(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    _add_period(command)
    command.add_argument("--window", type=int, default=61, help="days, odd")
    command.add_argument("--weights", choices=("gaussian", "triangular"), default="gaussian")
    command.add_argument("--hour", type=int, action="append", help="hour of the day; repeatable")
    command.add_argument("--workers", type=int, default=2, help="threads")
    command.add_argument("--memory", type=float, default=2.0, metavar="GB", help="for the sums")


def _fill_verify(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    command.add_argument("--checksum", action="store_true", help="read every byte")
    command.add_argument("--workers", type=int, default=2, help="threads")


def _fill_repair(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    _add_source(command)
    command.add_argument("--sizes", action="store_true", help="look at files and sizes only")
    command.add_argument(
        "--accept-changes", action="store_true", help="take data that the source has changed"
    )


def _fill_export(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    command.add_argument("out", metavar="OUT")
    command.add_argument("--format", choices=("zarr", "netcdf"), default="zarr")
    command.add_argument("--channels", type=_names, help="preset, or names with commas between them")
    _add_period(command)


def _fill_synth(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", metavar="OUT", help="training store to write")
    command.add_argument("--channels", type=_names, default=PRESETS["atlas75"], help="preset, or names")
    command.add_argument("--grid", type=_grid, default=Grid.regular(33, 64), metavar="ROWSxCOLUMNS")
    command.add_argument("--start", default="2001-01-01")
    command.add_argument("--stop", default="2001-01-31")
    command.add_argument("--step", type=_hours, default=6, metavar="6h")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, default=2, help="threads")


def _fill_bench(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    command.add_argument("--steps", type=int, default=32, help="to read in a round")
    command.add_argument("--workers", type=int, default=2, help="threads")


def _fill_fetch_init(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", metavar="OUT", help="NetCDF file to write")
    command.add_argument("--time", required=True, help="init time, e.g. 2026-01-01T00")
    sources = "ifs-open, gfs, or as SOURCE of other commands"
    command.add_argument("--source", default="ifs-open", metavar="SOURCE", help=sources)
    _add_source_options(command, channels_needed=True)


_COMMANDS: dict[str, tuple[Callable[[Arguments], int], Callable[[argparse.ArgumentParser], None], str]] = {
    "channels": (_commands.run_channels, _fill_channels, "list presets, or the channels of one"),
    "inspect": (_commands.run_inspect, _add_source, "show channels, times and grid of a source or store"),
    "plan": (_commands.run_plan, _fill_plan, "estimate bytes, requests, disk and time of a conversion"),
    "convert": (_commands.run_convert, _fill_convert, "write a training store; goes on where it stopped"),
    "stats": (_commands.run_stats, _fill_stats, "mean and standard deviation of states and residuals"),
    "climatology": (
        _commands.run_climatology,
        _fill_climatology,
        "mean by day of year and hour of day",
    ),
    "verify": (_commands.run_verify, _fill_verify, "check every step of a store"),
    "repair": (_commands.run_repair, _fill_repair, "write damaged steps anew from the source"),
    "export": (_commands.run_export, _fill_export, "write part of a store as a plain CF data set"),
    "synth": (_commands.run_synth, _fill_synth, "write a store of synthetic fields"),
    "bench": (_commands.run_bench, _fill_bench, "measure how fast a store is read here"),
    "fetch-init": (_commands.run_fetch_init, _fill_fetch_init, "fetch an operational analysis to start from"),
}
