"""Configuration of `wx-eval run`: TOML or options of the command line, checked before anything is read."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from ._choices import PresetName, Weights
from ._density import DensityWeights
from ._readers import (
    Reader,
    by,
    flag,
    instant,
    near,
    number,
    one_of,
    read_section,
    read_table,
    strings,
    text,
)
from ._regions import LAND
from ._sections import (
    BaselineSettings,
    ClimatologySettings,
    LandSettings,
    PointSettings,
    RegridSettings,
    SourceSettings,
    StationSettings,
)
from ._texts import Seconds, call, duration, durations, listed

if TYPE_CHECKING:
    from ._metrics import Metric


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
        values = read_table(data, cls, "", _RUN, hidden=("text", "folder"))
        absent = [k for k in ("model", "output", "forecast", "truth") if not values.get(k)]
        if absent:
            raise ValueError(
                f"the configuration needs {', '.join(absent)}: wx-eval run --help shows an example"
            )
        if isinstance(values["truth"], StationSettings):
            values.setdefault("stations", PointSettings())
        found = cls(**values, text=_plain(data), folder=folder)
        found._check_preset()
        found._check_baseline()
        found._check_stations()
        found._check_land()
        return found

    def _check_preset(self) -> None:
        if self.costly and self.preset is None:
            raise ValueError("costly adds metrics of a preset: name a preset, or drop costly")
        if self.preset is not None and self.weights is not None:
            raise ValueError(f"preset {self.preset!r} sets the weights: drop one of weights and preset")

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
        if not isinstance(self.truth, StationSettings):
            if self.stations is not None:
                raise ValueError(
                    "[stations] is for reports as the truth: give [truth] stations = a parquet file"
                )
            return
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

    def _check_land(self) -> None:
        nearest = self.stations is not None and self.stations.interpolation == "nearest_land"
        if nearest and self.land is None:
            raise ValueError('interpolation "nearest_land" needs the section land: path and variable')
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
    numbers = {key: number for key in settings if key != "kind"}
    return DensityWeights(**read_table(settings, DensityWeights, "weights", numbers))


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
        data = call(data, _EXPECTED)
    types = {cls.__name__: cls for cls in KNOWN}
    if not isinstance(data, Mapping) or "type" not in data:
        raise ValueError(
            f'expected {_EXPECTED}, or a table with a type such as {{type = "MAE"}}, got {data!r}'
        )
    name = data["type"]
    if name not in types:
        raise ValueError(f"unknown metric {name!r}{near(str(name), [*standard, *types])}")
    try:
        return types[name].from_dict(data)
    except TypeError as error:
        settings = [f.name for f in fields(types[name])]
        raise ValueError(f"metric {name} takes the settings {settings}: {error}") from error


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


_EXPECTED = 'a metric such as "crps_fair", "RMSE" or "Brier(threshold=280.0)"'


def _forecast(data: Any, key: str) -> SourceSettings | BaselineSettings:
    made = isinstance(data, Mapping) and "baseline" in data
    return BaselineSettings.parse(data) if made else SourceSettings.parse(data, key)


def _truth(data: Any, key: str) -> SourceSettings | StationSettings:
    reported = isinstance(data, Mapping) and "stations" in data
    return StationSettings.parse(data) if reported else SourceSettings.parse(data, key)


def _regrid(data: Any, key: str) -> Any:
    return read_section({"method": data} if isinstance(data, str) else data, RegridSettings, key)


def _metrics(data: Any, key: str) -> tuple[Metric, ...]:
    if not (found := tuple(metric(m) for m in listed(data))):
        raise ValueError(f"{key} is an empty list: name one, or drop it for those of the package")
    return found


def _inits(data: Any) -> str | tuple[str, ...]:
    """Starts as text: a period stays as it is."""
    if isinstance(data, str):
        for part in data.split("/")[:2] if "/" in data else listed(data):
            instant(part)
        return data
    if not listed(data):
        raise ValueError("inits is an empty list: name starts, or drop it for all of the forecast")
    return tuple(str(instant(t)) for t in listed(data))


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


_RUN: dict[str, Reader] = {
    "model": text,
    "output": text,
    "forecast": _forecast,
    "truth": _truth,
    "stations": by(PointSettings.parse),
    "climatology": lambda data, key: read_section(data, ClimatologySettings, key),
    "land": lambda data, key: read_section(data, LandSettings, key),
    "regrid": _regrid,
    "align": flag,
    "preset": one_of(*get_args(PresetName)),
    "metrics": _metrics,
    "regions": strings,
    "weights": by(weights),
    "leads": by(durations),
    "inits": by(_inits),
    "missing_truth": one_of("error", "drop"),
    "truth_models": strings,
    "costly": flag,
}
