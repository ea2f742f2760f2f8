"""Configuration of `wx-eval run`: TOML or options of the command line, checked before anything is read."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from ._choices import Baseline, Calendar, PointMethod, PresetName, Weights
from ._density import DensityWeights
from ._regions import LAND
from ._regrid import Method
from ._stations import Observed, Pick, ReportLayout, Tie
from ._texts import Seconds, call, duration, durations, listed, members

if TYPE_CHECKING:
    from ._metrics import Metric
    from ._open import Source

Box = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Section `forecast` or `truth`; see `open_source`.

    Attributes:
        path: files, folders of zarr and patterns.
        name: of the truth, kept with the records.
        channels: keep these.
        rename: channel in the file to channel in the records.
        members: labels, as numbers or ranges such as "1-50".
        leads: keep these; see `durations`.
        init_time: of a forecast whose files do not tell it.
        lead_time: of a forecast whose files do not tell it.
        engine: of xarray.
    """

    path: tuple[str, ...]
    name: str | None = None
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    members: tuple[int, ...] | None = None
    leads: tuple[Seconds, ...] | None = None
    init_time: str | None = None
    lead_time: Seconds | None = None
    engine: str | None = None

    @classmethod
    def parse(cls, data: Any, section: str) -> Self:
        """From TOML; a plain string or list is a path.

        Raises:
            ValueError: naming the key and what was expected.
        """
        if isinstance(data, str | list):
            data = {"path": data}
        _known(data, cls, section)
        if "rename" in data:
            _renames(data["rename"], f"{section}.rename")
        if not data.get("path"):
            raise ValueError(
                f"[{section}] needs path = a file, a folder of zarr, a pattern or a list of them"
            )
        out = dict(data, path=_strings(data["path"], f"{section}.path"))
        if "channels" in data:
            out["channels"] = _strings(data["channels"], f"{section}.channels")
        member = data.get("members")
        if member is not None:
            out["members"] = members(member)
        if "leads" in data:
            out["leads"] = durations(data["leads"])
        if "lead_time" in data:
            out["lead_time"] = duration(data["lead_time"])
        if "init_time" in data:
            out["init_time"] = str(instant(data["init_time"]))
        return cls(**out)

    def open(self, name: str, path: Callable[[str], str] = str) -> Source:
        """The files, not read yet.

        Args:
            name: "forecast" or "truth".
            path: where a path of the section is.

        Raises:
            FileNotFoundError, ValueError: see `open_source`.
        """
        from ._open import open_source

        return open_source(
            [path(p) for p in self.path],
            name,
            truth=name == "truth",
            channels=self.channels,
            rename=self.rename,
            members=self.members,
            lead_times=None if self.leads is None else list(np.array(self.leads, "timedelta64[s]")),
            init_time=None if self.init_time is None else np.datetime64(self.init_time),
            lead_time=None if self.lead_time is None else np.timedelta64(self.lead_time, "s"),
            engine=self.engine,
        )


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Section `forecast` with a `baseline`: forecasts that are made of past states.

    Attributes:
        baseline: "persistence" or "climatology", see `wx_eval.persistence` and `wx_eval.climatology`.
        path: files of past states; of persistence by default those of the truth.
        channels: keep these.
        rename: channel in the file to channel in the records.
        engine: of xarray.
        members: M of a climatology.
        years: one member from each of these, instead of `members`.
        period: "first/last", states that may become members, such as "1990/2019"; None for all.
        window_days: around the day of the year, for `members`.
        calendar: "monthday" or "doy".
    """

    baseline: Baseline
    path: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    engine: str | None = None
    members: int | None = None
    years: tuple[int, ...] | None = None
    period: str | None = None
    window_days: int = 15
    calendar: Calendar = "monthday"

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        _known(data, cls, "forecast")
        out = dict(data)
        if "rename" in data:
            _renames(data["rename"], "forecast.rename")
        _choice(data, "baseline", get_args(Baseline), "forecast.")
        _choice(data, "calendar", get_args(Calendar), "forecast.")
        for key in ("path", "channels"):
            if key in data:
                out[key] = _strings(data[key], f"forecast.{key}")
        # An option of the command line is a list of labels.
        if "members" in data:
            counts = members(data["members"])
            if len(counts) != 1:
                raise ValueError(f"forecast.members must be one number, got {data['members']!r}")
            out["members"] = counts[0]
        if "years" in data:
            out["years"] = members(data["years"])
        _typed(data, "window_days", int, "a number of days", "forecast.")
        if "period" in data:
            _ends(data["period"])
        made = [k for k in ("members", "years", "period", "window_days", "calendar") if k in data]
        if data["baseline"] == "persistence" and made:
            raise ValueError(f"persistence takes no {made[0]}: it has one member, the state of the start")
        complete = "path" in data and ("members" in data) != ("years" in data)
        if data["baseline"] == "climatology" and not complete:
            raise ValueError(
                "a climatology needs path = files of past states, and either members = such as 50 or years = "
                'such as "1990-2019"'
            )
        return cls(**out)

    def within(self, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.bool_]:
        """Which states may become members."""
        if self.period is None:
            return np.ones(times.shape, bool)
        first, last = _ends(self.period)
        return np.asarray((times >= first) & (times <= last))


@dataclass(frozen=True, kw_only=True)
class StationSettings:
    """Section `truth` with `stations`: reports of stations, see `StationReports`.

    Attributes:
        stations: a parquet file or a folder of them.
        name: kept with the records, before the rules by which reports are chosen.
        channels: keep these.
        rename: channel by its name in `metar`, or in `variables`, to channel in the records.
        variables: instead of those of METAR tables of MADIS.
        layout: names of the columns.
        window: of the time of a report before and after the valid time.
        pick, tie, within, exclude: see `StationReports`.
        sigmas: values further than this from the climatology of the run are not used.
    """

    stations: str
    name: str | None = None
    channels: tuple[str, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[Observed, ...] | None = None
    layout: ReportLayout = field(default_factory=ReportLayout)
    window: Seconds = 1800
    pick: Pick = "nearest"
    tie: Tie = "before"
    within: Box | None = None
    exclude: tuple[str, ...] = ()
    sigmas: float | None = None

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        _known(data, cls, "truth")
        out = dict(data)
        if "rename" in data:
            _renames(data["rename"], "truth.rename")
        _typed(data, "stations", str, "a parquet file or a folder of them", "truth.")
        _typed(data, "sigmas", int | float, "a number", "truth.")
        _choice(data, "pick", get_args(Pick), "truth.")
        _choice(data, "tie", get_args(Tie), "truth.")
        for key in ("channels", "exclude"):
            if key in data:
                out[key] = _strings(data[key], f"truth.{key}")
        if "variables" in data:
            out["variables"] = tuple(_observed(v) for v in listed(data["variables"]))
        if "layout" in data:
            out["layout"] = _section(data["layout"], ReportLayout, "truth.layout")
        if "window" in data:
            out["window"] = duration(data["window"])
        if "within" in data:
            out["within"] = _box(data["within"])
        return cls(**out)


@dataclass(frozen=True, kw_only=True)
class HeightSettings:
    """Section `stations.orography`: height of the surface of the model, for the correction of temperatures.

    Attributes:
        path: a file on the grid of the forecast.
        variable: in m, or a geopotential whose unit the file states.
        rates: K per m by channel.
    """

    path: str
    variable: str
    rates: Mapping[str, float] = field(default_factory=lambda: {"t2m": 0.0065})


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """Section `stations`: how a forecast on a grid is brought to stations, see `at_points`.

    Attributes:
        interpolation: "bilinear", "nearest" or "nearest_land", which needs the section land.
        orography: of the correction of temperatures for height; None for no correction.
    """

    interpolation: PointMethod = "bilinear"
    orography: HeightSettings | None = None

    @classmethod
    def parse(cls, data: Any) -> Self:
        """From TOML.

        Raises:
            ValueError: naming the key and what was expected.
        """
        _known(data, cls, "stations")
        _choice(data, "interpolation", get_args(PointMethod), "stations.")
        out = dict(data)
        if "orography" in data:
            out["orography"] = _section(data["orography"], HeightSettings, "stations.orography")
        return cls(**out)


@dataclass(frozen=True, kw_only=True)
class ClimatologySettings:
    """Section `climatology`; see `DayClimatology.open`."""

    path: str
    name: str | None = None
    calendar: Calendar | None = None
    channels: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class LandSettings:
    """Section `land`: the share of land for regions that end in "_land"."""

    path: str
    variable: str


@dataclass(frozen=True, kw_only=True)
class RegridSettings:
    """Section `regrid`, or its method alone.

    Attributes:
        method: "bilinear" or "conservative".
        grid: "truth" or "forecast" for the grid of that side, or rows x columns of a global one, "121x240".
    """

    method: Method
    grid: str = "truth"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"regrid must be one of {get_args(Method)}, got {self.method!r}")
        if self.grid not in ("truth", "forecast") and not re.fullmatch(r"\d+x\d+", self.grid):
            raise ValueError(
                f'regrid.grid must be "truth", "forecast" or such as "121x240", got {self.grid!r}'
            )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that a run needs.

    Attributes:
        model: name under which the rows are kept.
        output: parquet file.
        forecast, truth: what is opened.
        stations: how the forecast is brought to stations; None when the truth is none.
        climatology: for anomalies and thresholds.
        land: for regions that end in "_land" and the interpolation "nearest_land" to stations; at stations
            a region of land has those whose nearest grid point is land.
        regrid: None refuses different grids.
        align: bring rows and columns of the forecast into the order and longitudes of the truth.
        preset: name; it sets weights and the defaults of metrics and regions.
        metrics: JSON data of each metric, None for the default.
        regions: names, None for the default.
        weights: convention or rule, None for that of the preset, "equal" at stations, "cell" elsewhere.
        leads: None for all of the forecast.
        inits: "first/last", "first/last/step" or a list; None for all of the forecast.
        missing_truth: see `evaluate`.
        truth_models: names of models whose own analysis the truth is, see `evaluate`.
        costly: add the costly metrics of the preset.
    """

    model: str
    output: str
    forecast: SourceSettings | BaselineSettings
    truth: SourceSettings | StationSettings
    stations: PointSettings | None = None
    climatology: ClimatologySettings | None = None
    land: LandSettings | None = None
    regrid: RegridSettings | None = None
    align: bool = False
    preset: str | None = None
    metrics: tuple[Metric, ...] | None = None
    regions: tuple[str, ...] | None = None
    weights: Weights | DensityWeights | None = None
    leads: tuple[Seconds, ...] | None = None
    inits: tuple[str, ...] | str | None = None
    missing_truth: Literal["error", "drop"] = "error"
    truth_models: tuple[str, ...] = ()
    costly: bool = False
    text: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "."

    @classmethod
    def parse(cls, data: Mapping[str, Any], folder: str = ".") -> Self:
        """From TOML data; relative paths start at `folder`.

        Raises:
            ValueError: for a key that is unknown or absent, and a value that cannot be used.
        """
        _known(data, cls, "the configuration", hidden=("text", "folder"))
        absent = [k for k in ("model", "output", "forecast", "truth") if not data.get(k)]
        if absent:
            raise ValueError(
                f"the configuration needs {', '.join(absent)}: wx-eval run --help shows an example"
            )
        out = dict(data)
        forecast, truth = data["forecast"], data["truth"]
        made = isinstance(forecast, Mapping) and "baseline" in forecast
        reported = isinstance(truth, Mapping) and "stations" in truth
        out["forecast"] = (
            BaselineSettings.parse(forecast) if made else SourceSettings.parse(forecast, "forecast")
        )
        out["truth"] = StationSettings.parse(truth) if reported else SourceSettings.parse(truth, "truth")
        if "stations" in data or reported:
            out["stations"] = PointSettings.parse(data.get("stations", {}))
        if "climatology" in data:
            out["climatology"] = _section(data["climatology"], ClimatologySettings, "climatology")
        if "land" in data:
            out["land"] = _section(data["land"], LandSettings, "land")
        if "regrid" in data:
            plain = {"method": data["regrid"]} if isinstance(data["regrid"], str) else data["regrid"]
            out["regrid"] = _section(plain, RegridSettings, "regrid")
        if "metrics" in data:
            out["metrics"] = tuple(metric(m) for m in listed(data["metrics"]))
            if not out["metrics"]:
                raise ValueError("metrics is an empty list: name one, or drop it for those of the package")
        if "regions" in data:
            out["regions"] = _strings(data["regions"], "regions")
        if "leads" in data:
            out["leads"] = durations(data["leads"])
        if "inits" in data:
            out["inits"] = _inits(data["inits"])
        _choice(data, "preset", get_args(PresetName))
        if "weights" in data:
            out["weights"] = weights(data["weights"])
        _choice(data, "missing_truth", ("error", "drop"))
        if "truth_models" in data:
            out["truth_models"] = _strings(data["truth_models"], "truth_models")
        _typed(data, "costly", bool, "true or false")
        if data.get("costly") and "preset" not in data:
            raise ValueError("costly adds metrics of a preset: name a preset, or drop costly")
        _typed(data, "align", bool, "true or false")
        _typed(data, "model", str, "a string")
        _typed(data, "output", str, "a string")
        if "preset" in data and "weights" in data:
            raise ValueError(f"preset {data['preset']!r} sets the weights: drop one of weights and preset")
        found = cls(**out, text=_plain(data), folder=folder)
        found._check_baseline()
        found._check_stations()
        return found

    def _check_baseline(self) -> None:
        if not isinstance(self.forecast, BaselineSettings):
            return
        if self.leads is None or self.inits is None:
            raise ValueError(
                'a baseline has no starts and lead times of its own: give inits, such as "2020-01-01/'
                '2020-12-31/12h", and leads, such as "1d/10d/1d"'
            )
        if not self.forecast.path and isinstance(self.truth, StationSettings):
            raise ValueError("persistence needs forecast.path = files of states: stations have no fields")

    def _check_stations(self) -> None:
        """Refuse what only a truth on a grid can have, or only one at stations."""
        if isinstance(self.truth, StationSettings):
            if self.preset is not None:
                raise ValueError(
                    f"preset {self.preset!r} weights cells of a grid and stations have none: name metrics, "
                    'regions and weights, such as "density"'
                )
            if self.regrid is not None or self.align:
                raise ValueError(
                    "regrid and align bring two grids together and the truth is stations: choose "
                    "stations.interpolation"
                )
            if self.truth.sigmas is not None and self.climatology is None:
                raise ValueError("truth.sigmas needs a climatology: add the section climatology")
            nearest = self.stations is not None and self.stations.interpolation == "nearest_land"
            if nearest and self.land is None:
                raise ValueError('interpolation "nearest_land" needs the section land: path and variable')
        elif self.stations is not None:
            raise ValueError("[stations] is for reports as the truth: give [truth] stations = a parquet file")
        nearest = self.stations is not None and self.stations.interpolation == "nearest_land"
        if self.land is not None and not nearest and not any(r.endswith(LAND) for r in self.regions or ()):
            raise ValueError(
                'nothing uses the section land: name regions that end in "_land", such as "global_land", or '
                'the interpolation "nearest_land" of stations, or drop it'
            )

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept with the records: the configuration as written, less the output, and our version."""
        return {**{k: v for k, v in self.text.items() if k != "output"}, "wx_eval": version("wx-eval")}

    def path(self, text: str) -> str:
        """A path of the configuration."""
        return text if "://" in text else str(Path(self.folder, text))


def digest(text: Mapping[str, Any]) -> str:
    """Hash of all in a kept configuration that decides on the rows of one start."""
    forecast, truth = text.get("forecast", {}), text.get("truth", {})
    # The stations are those that report in the period, which a baseline takes from its starts.
    whole = all(isinstance(s, Mapping) for s in (forecast, truth))
    whole = whole and "baseline" in forecast and "stations" in truth
    shared = {k: v for k, v in text.items() if whole or k != "inits"}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]


def load(path: str | None, options: Mapping[str, Any]) -> RunSettings:
    """Settings of a TOML file and of options, which win.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for broken TOML or settings.
    """
    data: dict[str, Any] = {}
    folder = "."
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no valid TOML: {error}") from error
        folder = str(Path(path).parent)
    for key, value in options.items():
        value = _from_here(key, value, folder)
        held = data.get(key)
        if key in _TABLES and held is not None:
            table = dict(held) if isinstance(held, Mapping) else {"path": held}
            if key == "truth" and _TRUTHS & value.keys():
                # Files or reports are the truth, not both.
                table = {k: v for k, v in table.items() if k not in _TRUTHS}
            value = {**table, **value}
        data[key] = value
    return RunSettings.parse(data, folder)


# Sections whose options are added to what the file says.
_TABLES = ("forecast", "truth", "stations")
_TRUTHS = {"path", "stations"}


def weights(data: Any) -> Weights | DensityWeights:
    """Weights from a convention, "density", "density(radius_km=50)" or TOML with `type = "density"`.

    Raises:
        ValueError: for an unknown name or setting.
    """
    if isinstance(data, str) and data in get_args(Weights):
        return data  # type: ignore[return-value]
    named = call(data, 'weights such as "cos" or "density"') if isinstance(data, str) else data
    if not isinstance(named, Mapping) or named.get("type") != "density":
        raise ValueError(f"weights must be one of {', '.join((*get_args(Weights), 'density'))}, got {data!r}")
    settings = {k: v for k, v in named.items() if k != "type"}
    _known(settings, DensityWeights, "weights")
    numbers = {k: v for k, v in settings.items() if k != "kind"}
    for key in numbers:
        _typed(numbers, key, int | float, "a number", "weights.")
    return DensityWeights(**settings)


def metric(data: Any) -> Metric:
    """A metric from its name, such as "crps_fair", from "Brier(threshold=280.0)" or from TOML with a `type`.

    Raises:
        ValueError: for an unknown name, type or setting.
    """
    # The metrics and scipy with them are not needed for the rest.
    from ._metrics import STANDARD_METRICS
    from ._scores import KNOWN

    standard = {m.name: m for m in STANDARD_METRICS}
    if isinstance(data, str):
        if data in standard:
            return standard[data]
        data = call(data, _METRICS)
    types = {cls.__name__: cls for cls in KNOWN}
    if not isinstance(data, Mapping) or "type" not in data:
        raise ValueError(
            f'expected {_METRICS}, or a table with a type such as {{type = "MAE"}}, got {data!r}'
        )
    name = data["type"]
    if name not in types:
        raise ValueError(f"unknown metric {name!r}{_near(str(name), [*standard, *types])}")
    try:
        return types[name].from_dict(data)
    except TypeError as error:
        settings = [f.name for f in fields(types[name])]
        raise ValueError(f"metric {name} takes the settings {settings}: {error}") from error


def instant(text: Any) -> np.datetime64:
    """A time in ISO form, or a time of TOML.

    Raises:
        ValueError: for anything else.
    """
    try:
        stamp = np.datetime64(str(text).replace(" ", "T").removesuffix("Z"), "s")
    except ValueError:
        stamp = None
    if stamp is None or np.isnat(stamp):
        raise ValueError(f'expected a time such as "2020-01-31T12", got {text!r}')
    return stamp


def chosen_inits(
    wanted: Sequence[str] | str | None, held: npt.NDArray[np.datetime64] | None
) -> npt.NDArray[np.datetime64]:
    """Starts of a forecast that the setting `inits` names; of None, which has any start, those it spells out.

    Raises:
        ValueError: for starts that the forecast does not have, or none at all.
    """
    if wanted is None and held is not None:
        return held
    if isinstance(wanted, str) and wanted.count("/") == 1:
        if held is None:
            raise ValueError(
                'a climatology has no starts of its own: give inits as "first/last/step" or a list, got '
                f"{wanted!r}"
            )
        first, last = (instant(t) for t in wanted.split("/"))
        chosen = held[(held >= first) & (held <= last)]
        if not chosen.size:
            raise ValueError(f"forecast has no start within {wanted}: it has {held[0]} to {held[-1]}")
        return chosen
    if isinstance(wanted, str) and "/" in wanted:
        first_text, last_text, step_text = wanted.split("/", 2)
        first, last, step = instant(first_text), instant(last_text), duration(step_text)
        if last < first or step <= 0:
            raise ValueError(f'inits must be such as "2020-01-01/2020-12-31/12h", got {wanted!r}')
        named = np.arange(first, last + np.timedelta64(1, "s"), np.timedelta64(step, "s"))
    else:
        named = np.array([instant(t) for t in listed(wanted)])
    absent = np.setdiff1d(named, named if held is None else held)
    if absent.size:
        raise ValueError(
            f"forecast lacks {absent.size} of {named.size} starts, the first is {absent[0]}: name those that "
            'it has, or a period "first/last" for all within it'
        )
    return np.unique(named)


_METRICS = 'a metric such as "crps_fair", "RMSE" or "Brier(threshold=280.0)"'


def settings_of(text: str, cls: type, section: str) -> dict[str, Any]:
    """Settings of a class from "name=value, ...".

    Raises:
        ValueError: for text of another form and for an unknown name.
    """
    data = call(f"{cls.__name__}({text})", f"{section} settings such as 'name=value, ...'")
    del data["type"]
    _known(data, cls, section)
    return data


def _known(data: Any, cls: type, section: str, hidden: tuple[str, ...] = ()) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{section} must be a table of settings, got {data!r}")
    names = [f.name for f in fields(cls) if f.name not in hidden]
    unknown = [k for k in data if k not in names]
    if unknown:
        where = section if section.startswith("the") else f"[{section}]"
        raise ValueError(f"unknown key {unknown[0]!r} in {where}{_near(unknown[0], names)}")


def _inits(data: Any) -> str | tuple[str, ...]:
    """Starts as text: a period stays as it is."""
    if isinstance(data, str):
        for part in data.split("/")[:2] if "/" in data else listed(data):
            instant(part)
        return data
    if not listed(data):
        raise ValueError("inits is an empty list: name starts, or drop it for all of the forecast")
    return tuple(str(instant(t)) for t in listed(data))


def _near(name: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    close = difflib.get_close_matches(name, listed, 1)
    return f", did you mean {close[0]!r}?" if close else f": it takes {', '.join(listed)}"


def _section(data: Any, cls: type, section: str) -> Any:
    data = {"path": data} if isinstance(data, str) else data
    _known(data, cls, section)
    absent = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING and f.name not in data]
    if absent:
        raise ValueError(f"[{section}] is not complete: it needs {' and '.join(absent)}")
    for f in fields(cls):
        if f.type == "str":
            _typed(data, f.name, str, "a string", f"{section}.")
    return cls(**data)


def _choice(data: Mapping[str, Any], key: str, choices: tuple[str, ...], section: str = "") -> None:
    if key in data and data[key] not in choices:
        raise ValueError(f"{section}{key} must be one of {', '.join(choices)}, got {data[key]!r}")


def _typed(data: Mapping[str, Any], key: str, kind: Any, text: str, section: str = "") -> None:
    if key in data and not isinstance(data[key], kind):
        raise ValueError(f"{section}{key} must be {text}, got {data[key]!r}")


def _ends(text: Any) -> tuple[np.datetime64, np.datetime64]:
    """First and last second of "first/last", days, months and years being meant whole."""
    parts = str(text).split("/")
    if len(parts) != 2:
        raise ValueError(f'expected a period such as "1990-01-01/2019-12-31", got {text!r}')
    first, last = instant(parts[0]), instant(parts[1])
    stated = np.datetime64(parts[1].strip().replace(" ", "T").removesuffix("Z"))
    if np.datetime_data(stated.dtype)[0] in ("Y", "M", "D"):
        last = (stated + 1).astype("datetime64[s]") - np.timedelta64(1, "s")
    return first, last


def _observed(data: Any) -> Any:
    """A variable of a table of reports."""
    if not isinstance(data, Mapping):
        raise ValueError(f'truth.variables must be tables such as {{column = "T", ...}}, got {data!r}')
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return _section(settings, Observed, "truth.variables")


def _box(data: Any) -> Box:
    try:
        (south, north), (west, east) = ((float(a), float(b)) for a, b in data)
    except (TypeError, ValueError):
        raise ValueError(f"truth.within must be [[south, north], [west, east]], got {data!r}") from None
    return (south, north), (west, east)


def _renames(data: Any, key: str) -> None:
    if not isinstance(data, Mapping) or not all(isinstance(v, str) for v in data.values()):
        raise ValueError(f'{key} must be a table of names such as {{"2t" = "t2m"}}, got {data!r}')


def _strings(data: Any, key: str) -> tuple[str, ...]:
    items = [data] if isinstance(data, str) else data
    if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items) or not items:
        raise ValueError(f"{key} must be a string or a list of strings, got {data!r}")
    return tuple(items)


def _plain(data: Any) -> Any:
    """JSON data of TOML data."""
    if isinstance(data, Mapping):
        return {str(k): _plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(v) for v in data]
    return data if isinstance(data, bool | int | float | str) else str(data)


def _from_here(key: str, value: Any, folder: str) -> Any:
    """Paths among the options start at the working directory, those of the file at its folder."""
    if folder in (".", "") or key not in ("forecast", "truth", "climatology", "output"):
        return value
    if isinstance(value, Mapping):
        return {k: _from_here(key, v, folder) if k in ("path", "stations") else v for k, v in value.items()}
    if isinstance(value, list):
        return [_from_here(key, v, folder) for v in value]
    return value if "://" in value else str(Path(value).absolute())
