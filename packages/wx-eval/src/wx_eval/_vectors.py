"""Conformance vectors: small inputs with exact scores, for this and for any other implementation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from ._baselines import climatology as climatology_members
from ._bootstrap import stationary_bootstrap
from ._climatology import DayClimatology
from ._compare import compare
from ._density import DensityWeights
from ._evaluate import evaluate
from ._fields import Chunk
from ._grid import Array, Grid
from ._inference import paired_test
from ._metrics import Metric
from ._multiplicity import adjusted
from ._regions import region_masks
from ._scores import metric_from_dict, scores
from ._weights import WeightSpec, cell_weights

VectorKernel = Literal["numpy", "numba", "torch"]
_MOST_DIGITS = 16.0
_HOUR, _DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


@dataclass(frozen=True, kw_only=True)
class VectorCase:
    """One named convention with its input and the values that any implementation has to give.

    The values were computed with 50 digits, by a generator that does not use this package
    (`tests/vectors/make.py`), and rounded once to float64.

    Attributes:
        name: unique.
        kind: what is tested: "score", "weights", "density", "regions", "test", "block", "correction",
            "compare", "day", "members" or "climatology".
        settings: every parameter; a metric is that of `Metric.to_dict`.
        given: input data that the settings name.
        expected: a number or a list by label; NaN is undefined. The label of a score is
            "<channel> <region> <lead time>".
        formula: in words.
        source: paper or package behind the convention.
        peers: packages that were found to give these values.
        digits: that are asked for.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    given: Mapping[str, Any]
    expected: Mapping[str, Array]
    formula: str
    source: str
    peers: str
    digits: float

    def forecast(self) -> xr.DataArray:
        """Of a score: (init_time, lead_time, member, channel, *space), its channels and members alone."""
        leads = np.array(self.given["lead_hours"], "timedelta64[h]").astype("timedelta64[ns]")
        return self._array(
            self.given["values"],
            {"init_time": _times(self.given["init_times"]), "lead_time": leads},
            slice(self.settings["members"]),
        )

    def truth(self) -> xr.DataArray:
        """Of a score: (time, channel, *space)."""
        return self._array(self.given["truth"], {"time": _times(self.given["times"])})

    def climatology(self) -> dict[str, xr.DataArray]:
        """Of a score: fields (time, channel, *space) at the valid times, by name; empty without any."""
        axes = {"time": _times(self.given["times"])}
        return {name: self._array(data, axes) for name, data in self.given.get("climatology", {}).items()}

    def _array(
        self, data: Mapping[str, Any], axes: Mapping[str, Array], members: slice | None = None
    ) -> xr.DataArray:
        given, channels = self.given, self.settings["channels"]
        positions = [given["channels"].index(c) for c in channels]
        values = _numbers(data["data"]).reshape(data["shape"])
        values = np.take(values, positions, axis=data["dims"].index("channel"))
        values = values if members is None else values[:, :, members]
        space = ("point", "point") if given["mesh"] else ("latitude", "longitude")
        where = {n: (dim, given[n]) for n, dim in zip(("latitude", "longitude"), space, strict=True)}
        units = [given["units"][k] for k in positions]
        coords = {**axes, "channel": channels, "units": ("channel", units), **where}
        return xr.DataArray(values, coords, data["dims"])

    def agreement(self, found: Mapping[str, npt.ArrayLike]) -> float:
        """Digits to which values agree with the expected ones, 0 to 16.

        -log10(max |found - expected| / max |expected|), the maxima over the numbers of a label, and the
        least over the labels. A label that is absent, has another length, or is undefined where the expected
        value is not, agrees to 0 digits.
        """
        if not self.expected:
            return _MOST_DIGITS
        return min(_digits(found.get(label, ()), value) for label, value in self.expected.items())

    def compute(self, kernel: VectorKernel = "numpy") -> dict[str, Array]:
        """What this package gives, in the form of `expected`.

        Args:
            kernel: of scores; "numba" needs the extra `fast`, "torch" the extra of its name.

        Raises:
            ImportError: when the extra is not installed.
            ValueError: for another kernel.
        """
        if kernel not in get_args(VectorKernel):
            raise ValueError(f"kernel must be one of {get_args(VectorKernel)}, got {kernel!r}")
        found = _SCORES[self.kind](self, kernel) if self.kind in _SCORES else _OTHERS[self.kind](self)
        return {label: np.asarray(value, np.float64) for label, value in found.items()}


def vectors(kind: str | None = None) -> tuple[VectorCase, ...]:
    """The cases of the conformance suite, all or of one kind.

    Raises:
        ValueError: for a kind that the suite does not have.
    """
    suite = _suite()
    kinds = dict.fromkeys(case["kind"] for case in suite["cases"])
    if kind is not None and kind not in kinds:
        raise ValueError(f"kind must be one of {list(kinds)}, got {kind!r}")
    return tuple(_case(case, suite) for case in suite["cases"] if kind in (None, case["kind"]))


def suite_file() -> Traversable:
    """The shipped JSON file, which says itself how it is read."""
    return files(__package__).joinpath("vectors.json")


def suite_version() -> int:
    """Raised whenever an input or an expected value changes."""
    return int(_suite()["version"])


@cache
def _suite() -> dict[str, Any]:
    suite: dict[str, Any] = json.loads(suite_file().read_text(encoding="utf-8"))
    return suite


def _case(case: Mapping[str, Any], suite: Mapping[str, Any]) -> VectorCase:
    settings = case["settings"] | (
        {k: v for k, v in suite["defaults"].items() if k not in case["settings"]}
        if case["kind"] == "score"
        else {}
    )
    given = suite["inputs"].get(settings.get("input"), {})
    return VectorCase(
        name=case["name"],
        kind=case["kind"],
        settings=settings,
        given=given if isinstance(given, dict) else {"values": given},
        expected={label: _numbers(value) for label, value in case["expected"].items()},
        peers=case.get("peers", ""),
        digits=case["digits"],
        **suite["topics"][case["topic"]],
    )


def _numbers(value: Any) -> Array:
    """JSON numbers as float64, null as NaN."""
    return np.array(value, np.float64)


def _times(stamps: list[str]) -> npt.NDArray[np.datetime64]:
    return np.array(stamps, "datetime64[ns]")


def _digits(found: npt.ArrayLike, expected: Array) -> float:
    values = np.asarray(found, np.float64)
    if values.shape != expected.shape or (np.isnan(values) != np.isnan(expected)).any():
        return 0.0
    there = ~np.isnan(expected)
    worst = np.abs(values - expected)[there].max(initial=0.0)
    scale = np.abs(expected)[there].max(initial=0.0) or 1.0
    return float(np.clip(-np.log10(worst / scale), 0, _MOST_DIGITS)) if worst > 0 else _MOST_DIGITS


@dataclass(frozen=True)
class _Fields:
    """Climatology of a case."""

    case: VectorCase
    name: str = "vectors"

    def at(self, statistic: str, valid_time: np.datetime64, /) -> xr.DataArray:
        field = self.case.climatology()[statistic]
        return field.isel(time=int(np.flatnonzero(field["time"].values == valid_time)[0]), drop=True)


def _score(case: VectorCase, kernel: VectorKernel) -> dict[str, Any]:
    settings, metric = case.settings, _metric(case.settings)
    land = case.given.get("land_fraction")
    records = evaluate(
        _chunks(case.forecast(), kernel),
        case.truth(),
        model="vectors",
        metrics=[metric],
        regions=settings["regions"],
        weights=_weights(case),
        climatology=_Fields(case) if "climatology" in case.given else None,
        land_fraction=None if land is None else _numbers(land["data"]).reshape(land["shape"]),
        kernel="numpy" if kernel == "torch" else kernel,
    )
    found = scores(records, [metric], average=settings["average"])[metric.name].isel(model=0)
    axes = [found[dim].values for dim in ("channel", "region", "lead_time")]
    labels = product(*axes[:2], (f"{lead / _HOUR:g}h" for lead in axes[2]))
    values = found.values.reshape(-1, *found.shape[3:])
    return {" ".join(label): value for label, value in zip(labels, values, strict=True)}


def _metric(settings: Mapping[str, Any]) -> Metric:
    metric = metric_from_dict(settings["metric"])
    if metric is None:
        raise ValueError(f"no metric of the type {settings['metric']['type']!r}")
    return metric


def _weights(case: VectorCase) -> WeightSpec:
    weights: Any = case.settings["weights"]
    if isinstance(weights, str):
        return weights  # type: ignore[return-value]
    if weights["type"] == "area":
        return _numbers(case.given["cell_area"]["data"])
    return DensityWeights(**{k: v for k, v in weights.items() if k != "type"})


def _chunks(forecast: xr.DataArray, kernel: VectorKernel) -> Iterator[Chunk]:
    values: Array = forecast.values
    inits: list[np.datetime64] = list(forecast["init_time"].values)
    leads: list[np.timedelta64] = list(forecast["lead_time"].values)
    for i, j in np.ndindex(values.shape[:2]):
        yield Chunk(
            init_time=inits[i],
            lead_time=leads[j],
            channels=tuple(forecast["channel"].values.tolist()),
            values=_tensor(values[i, j]) if kernel == "torch" else values[i, j],
            latitude=forecast["latitude"].values,
            longitude=forecast["longitude"].values,
            units=tuple(forecast["units"].values.tolist()),
        )


def _tensor(values: Array) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError('kernel "torch" needs torch: install wx-eval[torch]') from error
    return torch.from_numpy(np.ascontiguousarray(values))


def _cell_weights(case: VectorCase) -> dict[str, Any]:
    return {"weights": cell_weights(case.settings["latitude"], case.settings["kind"])}


def _density(case: VectorCase) -> dict[str, Any]:
    rule = dict(case.settings)
    grid = Grid.from_points(rule.pop("latitude"), rule.pop("longitude"))
    return {"weights": DensityWeights(**rule).of(grid)}


def _regions(case: VectorCase) -> dict[str, Any]:
    grid = Grid.from_points(case.given["latitude"], case.given["longitude"])
    land = _numbers(case.given["land_fraction"])
    masks = region_masks(grid, list(case.expected), land_fraction=land)
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def _test(case: VectorCase) -> dict[str, Any]:
    method, horizon = case.settings["method"], case.settings["horizon"]
    found = paired_test(_numbers(case.given["values"]), method=method, horizon=horizon)
    return {name: getattr(found, name) for name in ("mean", "stderr", "df", "p_value")}


def _block(case: VectorCase) -> dict[str, Any]:
    return {"block": stationary_bootstrap(_numbers(case.given["values"]), seed=0, resamples=1).block}


def _correction(case: VectorCase) -> dict[str, Any]:
    return {"p_adjusted": adjusted(_numbers(case.settings["p_values"]), case.settings["correction"])}


def _compare(case: VectorCase, kernel: VectorKernel) -> dict[str, Any]:
    settings = {"channels": case.given["channels"], "members": None}
    whole = replace(case, settings=settings)
    truth, forecast, metric = whole.truth(), whole.forecast(), _metric(case.settings)
    a, b = (
        evaluate(
            _chunks(forecast.isel(member=case.settings[name]), kernel),
            truth,
            model=name,
            metrics=[metric],
            regions=["global"],
            weights="equal",
            kernel="numpy" if kernel == "torch" else kernel,
        )
        for name in ("a", "b")
    )
    [cell] = compare(a, b, metric, method=case.settings["method"]).cells
    return {name: getattr(cell, name) for name in case.expected}


def _day(case: VectorCase) -> dict[str, Any]:
    field = (("dayofyear", "hour", "latitude", "longitude"), np.arange(1.0, 367.0).reshape(-1, 1, 1, 1))
    axes = {"dayofyear": np.arange(1, 367), "hour": [0], "latitude": [0.0], "longitude": [0.0]}
    dataset = xr.Dataset({"x": field}, axes)
    days = DayClimatology.open(dataset, name="days", calendar=case.settings["calendar"])
    return {"day": [float(days.at("mean", t).item()) for t in _times(case.settings["dates"])]}


def _members(case: VectorCase) -> dict[str, Any]:
    years, out = case.settings["years"], {}
    days = np.arange(f"{min(years)}-01-01", f"{max(years) + 1}-01-03", dtype="datetime64[D]")
    coords = {"time": days.astype("datetime64[ns]"), "channel": ["x"], "latitude": [0.0], "longitude": [0.0]}
    numbers = days.astype(np.float64).reshape(-1, 1, 1, 1)
    history = xr.DataArray(numbers, coords, ("time", "channel", "latitude", "longitude"))
    for date, time in zip(case.settings["dates"], _times(case.settings["dates"]), strict=True):
        leads = [np.timedelta64(0, "s")]
        calendar = case.settings["calendar"]
        [chunk] = climatology_members(history, [time], leads, years=years, calendar=calendar)
        out[date] = chunk.values.ravel()
    return out


def _climatology(case: VectorCase) -> dict[str, Any]:
    settings, series = case.settings, _numbers(case.given["values"])
    times = np.datetime64(case.given["first"], "ns") + _DAY * np.arange(series.size)
    coords = {"time": times, "channel": ["x"], "latitude": [0.0], "longitude": [0.0]}
    history = xr.DataArray(series.reshape(-1, 1, 1, 1), coords, tuple(coords))
    built = DayClimatology.build(
        history.assign_coords(units=("channel", [case.given["units"]])),
        quantiles=settings["quantiles"],
        seeps={"x": settings["dry"]},
        window_days=settings["window_days"],
        kernel=settings["kernel"],
        calendar=settings["calendar"],
    )
    days = _times(settings["dates"])
    return {name: [built.at(name, t).item() for t in days] for name in case.expected}


_SCORES: dict[str, Callable[[VectorCase, VectorKernel], dict[str, Any]]] = {
    "score": _score,
    "compare": _compare,
}
_OTHERS: dict[str, Callable[[VectorCase], dict[str, Any]]] = {
    "weights": _cell_weights,
    "density": _density,
    "regions": _regions,
    "test": _test,
    "block": _block,
    "correction": _correction,
    "day": _day,
    "members": _members,
    "climatology": _climatology,
}
