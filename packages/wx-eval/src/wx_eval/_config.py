"""Configuration of `wx-eval run`: TOML or options of the command line, checked before anything is read."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from ._metrics import STANDARD_METRICS, Metric
from ._presets import PRESETS
from ._regrid import Method
from ._scores import KNOWN
from ._weights import Weights

Seconds = int


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


@dataclass(frozen=True, kw_only=True)
class ClimatologySettings:
    """Section `climatology`; see `DayClimatology.open`."""

    path: str
    name: str | None = None
    calendar: Literal["monthday", "doy"] | None = None
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
        climatology: for anomalies and thresholds.
        land: for regions that end in "_land".
        regrid: None refuses different grids.
        align: bring rows and columns of the forecast into the order and longitudes of the truth.
        preset: name; it sets weights and the defaults of metrics and regions.
        metrics: JSON data of each metric, None for the default.
        regions: names, None for the default.
        weights: convention, None for that of the preset or "cell".
        leads: None for all of the forecast.
        inits: "first/last", "first/last/step" or a list; None for all of the forecast.
        missing_truth: see `evaluate`.
    """

    model: str
    output: str
    forecast: SourceSettings
    truth: SourceSettings
    climatology: ClimatologySettings | None = None
    land: LandSettings | None = None
    regrid: RegridSettings | None = None
    align: bool = False
    preset: str | None = None
    metrics: tuple[Metric, ...] | None = None
    regions: tuple[str, ...] | None = None
    weights: Weights | None = None
    leads: tuple[Seconds, ...] | None = None
    inits: tuple[str, ...] | str | None = None
    missing_truth: Literal["error", "drop"] = "error"
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
        for section in ("forecast", "truth"):
            out[section] = SourceSettings.parse(data[section], section)
        if "climatology" in data:
            out["climatology"] = _section(data["climatology"], ClimatologySettings, "climatology")
        if "land" in data:
            out["land"] = _section(data["land"], LandSettings, "land")
        if "regrid" in data:
            plain = {"method": data["regrid"]} if isinstance(data["regrid"], str) else data["regrid"]
            out["regrid"] = _section(plain, RegridSettings, "regrid")
        if "metrics" in data:
            out["metrics"] = tuple(metric(m) for m in _list(data["metrics"]))
        if "regions" in data:
            out["regions"] = _strings(data["regions"], "regions")
        if "leads" in data:
            out["leads"] = durations(data["leads"])
        if "inits" in data:
            inits = data["inits"]
            out["inits"] = inits if isinstance(inits, str) else tuple(str(instant(t)) for t in inits)
        _choice(data, "preset", tuple(PRESETS))
        _choice(data, "weights", get_args(Weights))
        _choice(data, "missing_truth", ("error", "drop"))
        _typed(data, "align", bool, "true or false")
        _typed(data, "model", str, "a string")
        _typed(data, "output", str, "a string")
        if "preset" in data and "weights" in data:
            raise ValueError(f"preset {data['preset']!r} sets the weights: drop one of weights and preset")
        return cls(**out, text=_plain(data), folder=folder)

    @property
    def kept(self) -> dict[str, Any]:
        """What is kept with the records: the configuration as written, less the output, and our version."""
        return {**{k: v for k, v in self.text.items() if k != "output"}, "wx_eval": version("wx-eval")}

    def path(self, text: str) -> str:
        """A path of the configuration."""
        return text if "://" in text else str(Path(self.folder, text))


def digest(text: Mapping[str, Any]) -> str:
    """Hash of all in a kept configuration that decides on the rows of one start."""
    shared = {k: v for k, v in text.items() if k != "inits"}
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
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is no valid TOML: {error}") from error
        folder = str(Path(path).parent)
    for key, value in options.items():
        if key in ("forecast", "truth") and isinstance(data.get(key), dict):
            value = {**data[key], "path": value}
        data[key] = _from_here(key, value, folder)
    return RunSettings.parse(data, folder)


def metric(data: Any) -> Metric:
    """A metric from its name, such as "crps_fair", from "Brier(threshold=280.0)" or from TOML with a `type`.

    Raises:
        ValueError: for an unknown name, type or setting.
    """
    standard = {m.name: m for m in STANDARD_METRICS}
    if isinstance(data, str):
        if data in standard:
            return standard[data]
        data = _call(data)
    types = {cls.__name__: cls for cls in KNOWN}
    name = data.get("type")
    if name not in types:
        raise ValueError(f"unknown metric {name!r}{_near(str(name), [*standard, *types])}")
    try:
        return types[name].from_dict(data)
    except TypeError as error:
        settings = [f.name for f in fields(types[name])]
        raise ValueError(f"metric {name} takes the settings {settings}: {error}") from error


def duration(text: Any) -> Seconds:
    """Seconds of "6h", "10d", "30min" or "90s".

    Raises:
        ValueError: for anything else.
    """
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f'expected a duration such as "6h" or "10d", got {text!r}')
    return round(float(found[1]) * units[found[2]])


def durations(data: Any) -> tuple[Seconds, ...]:
    """Durations of a list, or of a range "first/last/step" with its end."""
    if isinstance(data, str) and "/" in data:
        parts = [duration(p) for p in data.split("/")]
        if len(parts) != 3 or parts[2] <= 0:
            raise ValueError(f'expected a range such as "6h/10d/6h", got {data!r}')
        return tuple(range(parts[0], parts[1] + 1, parts[2]))
    return tuple(duration(t) for t in _list(data))


def instant(text: Any) -> np.datetime64:
    """A time in ISO form, or a time of TOML.

    Raises:
        ValueError: for anything else.
    """
    try:
        stamp = np.datetime64(str(text).replace(" ", "T").removesuffix("Z"), "s")
    except ValueError:
        raise ValueError(f'expected a time such as "2020-01-31T12", got {text!r}') from None
    return stamp


def chosen_inits(
    wanted: Sequence[str] | str | None, held: npt.NDArray[np.datetime64]
) -> npt.NDArray[np.datetime64]:
    """Starts of a forecast that the setting `inits` names.

    Raises:
        ValueError: for starts that the forecast does not have, or none at all.
    """
    if wanted is None:
        return held
    if isinstance(wanted, str) and wanted.count("/") == 1:
        first, last = (instant(t) for t in wanted.split("/"))
        chosen = held[(held >= first) & (held <= last)]
        if not chosen.size:
            raise ValueError(f"forecast has no start within {wanted}: it has {held[0]} to {held[-1]}")
        return chosen
    if isinstance(wanted, str) and "/" in wanted:
        first_text, last_text, step = wanted.split("/", 2)
        span = np.timedelta64(1, "s") + (instant(last_text) - instant(first_text))
        named = instant(first_text) + np.arange(0, span.astype(int), duration(step)).astype("timedelta64[s]")
    else:
        named = np.array([instant(t) for t in _list(wanted)])
    absent = np.setdiff1d(named, held)
    if absent.size:
        raise ValueError(
            f"forecast lacks {absent.size} of {named.size} starts, the first is {absent[0]}: name those that "
            'it has, or a period "first/last" for all within it'
        )
    return np.unique(named)


def members(data: Any) -> tuple[int, ...]:
    """Labels of a list of numbers and of ranges such as "1-50"."""
    out: list[int] = []
    for item in _list(data):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(item).strip())
        if found is None or isinstance(item, bool):
            raise ValueError(f'expected members such as 0 or "1-50", got {item!r}')
        out += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(out)


def _call(text: str) -> dict[str, Any]:
    """JSON data of "Name" or "Name(key=value, ...)"."""
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return {"type": node.id}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return {"type": node.func.id, **{str(k.arg): ast.literal_eval(k.value) for k in node.keywords}}
    except (SyntaxError, ValueError):
        pass
    raise ValueError(
        f'expected a metric such as "crps_fair", "RMSE" or "Brier(threshold=280.0)", got {text!r}'
    )


def _known(data: Any, cls: type, section: str, hidden: tuple[str, ...] = ()) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{section} must be a table of settings, got {data!r}")
    names = [f.name for f in fields(cls) if f.name not in hidden]
    unknown = [k for k in data if k not in names]
    if unknown:
        where = section if section.startswith("the") else f"[{section}]"
        raise ValueError(f"unknown key {unknown[0]!r} in {where}{_near(unknown[0], names)}")


def _near(name: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    close = difflib.get_close_matches(name, listed, 1)
    return f", did you mean {close[0]!r}?" if close else f": it takes {', '.join(listed)}"


def _section(data: Any, cls: type, section: str) -> Any:
    data = {"path": data} if isinstance(data, str) else data
    _known(data, cls, section)
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"[{section}] is not complete: {str(error).partition(' ')[2]}") from error


def _choice(data: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> None:
    if key in data and data[key] not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {data[key]!r}")


def _typed(data: Mapping[str, Any], key: str, kind: type, text: str) -> None:
    if key in data and not isinstance(data[key], kind):
        raise ValueError(f"{key} must be {text}, got {data[key]!r}")


def _list(data: Any) -> list[Any]:
    if isinstance(data, str):
        return [part.strip() for part in data.split(",")] if "(" not in data else [data]
    return list(data) if isinstance(data, list | tuple) else [data]


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
        return {**value, "path": _from_here(key, value["path"], folder)}
    if isinstance(value, list):
        return [_from_here(key, v, folder) for v in value]
    return value if "://" in value else str(Path(value).absolute())
