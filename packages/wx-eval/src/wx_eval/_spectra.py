"""Power spectra on the sphere and along circles of latitude."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ._case import Case
from ._grid import Array, Grid, Vector
from ._metrics import Goal, Metric, one_of
from ._statistics import AnyStatistic, FieldStatistic
from ._weights import cell_weights

_OF = ("members", "truth", "mean", "error")
_KINDS = ("sphere", "zonal", "zonal-wb2")
# Earth as WeatherBench 2 has it, for its spectra in m.
_WB2_RADIUS_M = 1000 * (6357 + 6378) / 2

# Coefficients that are worked on together: in cache where tables are kept, as many as memory allows where
# they have to be made again for each block.
_BLOCK_NUMBERS = 1 << 20, 1 << 23
_TABLE_BYTES = 128 << 20
# Orders m for which Legendre functions are made together.
_ORDERS = 8


def power_spectrum(values: npt.ArrayLike, latitude: npt.ArrayLike, *, l_max: int | None = None) -> Vector:
    """Power per total wavenumber, S_l = sum_m |a_lm|^2, normalised so that sum_l S_l is the mean of f^2.

    Exact for any field without power beyond `l_max`. On Gaussian rows by their quadrature; equidistant rows
    are first doubled by trigonometric interpolation along the meridian circle, after which Clenshaw-Curtis
    quadrature is exact. Power is quadratic: average spectra over members and dates, never fields.

    | rows (H) | largest l_max on W columns |
    |---|---|
    | equidistant with both poles | min(H - 2, (W - 1) // 2) |
    | equidistant, half a step from the poles | min(H - 1, (W - 1) // 2) |
    | Gaussian | min(H - 1, (W - 1) // 2) |

    The cost is O(H l_max^2) a field. Tables of Legendre functions are kept up to grids of about 1 degree.

    Args:
        values: fields (..., H, W) on columns that go around the globe in equal steps.
        latitude: degrees, from either pole, shape (H,).
        l_max: last total wavenumber; by default the largest.

    Returns:
        Shape (..., l_max + 1).

    Raises:
        ValueError: for another grid, values that are not finite, or an l_max that the grid cannot resolve.
    """
    fields, lat = np.asarray(values), np.asarray(latitude, np.float64)
    if fields.ndim < 2 or lat.ndim != 1 or fields.shape[-2] != lat.size or lat.size < 3:
        raise ValueError(f"values must have shape (..., {lat.size}, W) to match latitude, got {fields.shape}")
    if not np.isfinite(fields).all():
        raise ValueError("values must be finite: fill missing points before taking a spectrum")
    rows, columns = fields.shape[-2:]
    placement = _placement(lat)
    limit = min(rows - 2 if placement == "poles" else rows - 1, (columns - 1) // 2)
    l_max = limit if l_max is None else l_max
    if not 0 <= l_max <= limit:
        raise ValueError(f"l_max must lie within 0..{limit} on a {rows} x {columns} grid, got {l_max}")
    flat = fields.reshape(-1, rows, columns)[:, :: -1 if lat[0] < lat[-1] else 1]
    power = np.zeros((len(flat), l_max + 1))
    numbers = _BLOCK_NUMBERS[0 if _kept(rows, l_max) else 1]
    step = max(1, numbers // (2 * rows * (l_max + 1)))
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        for m, a_LB in enumerate(_coefficients(flat[part], placement, l_max)):
            power[part, m:] += (1 if m == 0 else 2) * (np.square(a_LB.real) + np.square(a_LB.imag)).T
    return power.reshape(*fields.shape[:-2], l_max + 1)


def zonal_spectrum(values: npt.ArrayLike) -> Vector:
    """Power per zonal wavenumber of each row, which adds up to the mean of f^2 along it.

    |F_0|^2, 2 |F_k|^2, and for an even number of columns |F_{W/2}|^2 once, where F = rfft(f) / W.

    Args:
        values: (..., W), at equal steps around a circle of latitude.

    Returns:
        Shape (..., W // 2 + 1).
    """
    fields = np.asarray(values)
    columns = fields.shape[-1]
    power = np.square(np.abs(np.fft.rfft(fields.astype(np.float64), axis=-1) / columns))
    power[..., 1 : (columns + 1) // 2] *= 2
    return np.asarray(power)


def _placement(lat: Vector) -> str:
    """Where the rows lie: "poles", "between" (half a step from the poles) or "gauss"."""
    rows = lat.size
    known = {
        "poles": np.linspace(90, -90, rows),
        "between": 90 - 180 * (np.arange(rows) + 0.5) / rows,
        "gauss": np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(rows)[0][::-1])),
    }
    south_up = lat[0] < lat[-1]
    for name, nominal in known.items():
        # Files keep Gaussian rows with as few as three digits.
        if np.abs((-lat if south_up else lat) - nominal).max() <= 1e-3:
            return name
    raise ValueError(
        f"latitude must be equidistant from pole to pole, equidistant from half a step off the poles, or "
        f"Gaussian, got {rows} rows {lat[0]:g}..{lat[-1]:g}: interpolate to such a grid first"
    )


def _coefficients(fields_BHW: Array, placement: str, l_max: int) -> Iterator[Array]:
    """For m = 0, 1, ... the coefficients l = m..l_max of every field, complex (l_max + 1 - m, B)."""
    columns = fields_BHW.shape[-1]
    zonal = np.fft.rfft(fields_BHW.astype(np.float64), axis=-1)[..., : l_max + 1] / columns
    fine = np.ascontiguousarray(zonal.transpose(2, 1, 0))
    if placement != "gauss":
        fine = _double_rows(fine, 0.0 if placement == "poles" else 0.5)
    half = fine.shape[1] // 2
    south = fine[:, : -half - 1 : -1]
    even, odd = fine[:, : fine.shape[1] - half].copy(), fine[:, :half] - south
    even[:, :half] += south
    for m, legendre in enumerate(_tables(placement, fields_BHW.shape[1], l_max)):
        out = np.empty((len(legendre), fine.shape[2]), np.complex128)
        # Functions with l - m even are symmetric about the equator, the others change sign.
        for first, rows in ((0, even[m]), (1, odd[m])):
            table = legendre[first::2, : len(rows)]
            out[first::2] = (table @ rows.view(np.float64)).view(np.complex128)
        yield out


def _double_rows(zonal_MHB: Array, offset: float) -> Array:
    """Interpolate to half the step, poles included; past a pole zonal wave m goes on as (-1)^m times itself.

    offset: distance of the first row from the pole in steps.
    """
    sign = (-1.0) ** np.arange(len(zonal_MHB))[:, None, None]
    past = zonal_MHB[:, ::-1] if offset else zonal_MHB[:, -2:0:-1]
    harmonics = np.fft.fft(np.concatenate([zonal_MHB, sign * past], axis=1), axis=1)
    points = harmonics.shape[1]
    middle = points // 2
    wave = np.fft.fftfreq(2 * points, 1 / (2 * points))
    fine = np.zeros((len(harmonics), 2 * points, harmonics.shape[2]), np.complex128)
    fine[:, :middle], fine[:, -middle + 1 :] = harmonics[:, :middle], harmonics[:, middle + 1 :]
    # The wave at the Nyquist frequency is its own mirror image: half of it belongs to either sign.
    fine[:, middle] = fine[:, -middle] = harmonics[:, middle] / 2
    fine *= 2 * np.exp(-2j * np.pi * wave * offset / points)[:, None]
    return np.ascontiguousarray(np.fft.ifft(fine, axis=1)[:, : points + 1])


def _tables(placement: str, rows: int, l_max: int) -> Iterable[Vector]:
    """For each m the functions l = m..l_max times quadrature weight / 2 on the rows down to the equator."""
    make = _kept_tables if _kept(rows, l_max) else _make_tables
    return make(placement, rows, l_max)


def _kept(rows: int, l_max: int) -> bool:
    return 4 * l_max**2 * rows < _TABLE_BYTES


@lru_cache(maxsize=4)
def _kept_tables(placement: str, rows: int, l_max: int) -> tuple[Vector, ...]:
    return tuple(table.copy() for table in _make_tables(placement, rows, l_max))


def _make_tables(placement: str, rows: int, l_max: int) -> Iterator[Vector]:
    if placement == "gauss":
        x, weight = np.polynomial.legendre.leggauss(rows)
        x, weight = x[::-1], weight[::-1]
        sine = np.sqrt(1 - x * x)
    else:
        points = 2 * rows - 1 if placement == "poles" else 2 * rows + 1
        theta = np.linspace(0, np.pi, points)
        x, sine, weight = np.cos(theta), np.sin(theta), _clenshaw_curtis(points)
    north = slice(0, (len(x) + 1) // 2)
    for table in _legendre(x[north], sine[north], l_max):
        # Half the integral over cos(colatitude) turns the mean over the sphere of f Y* into a_lm.
        table *= weight[north] / 2
        yield table


def _clenshaw_curtis(points: int) -> Vector:
    """Weights of the integral over cos(theta) on theta_j = pi j / (points - 1)."""
    n = points - 1
    k = np.arange(n // 2 + 1)
    factor = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / (1 - 4.0 * k**2)
    cosines = np.cos(2 * np.pi * np.outer(np.arange(points), k) / n)
    weights = 2 / n * (cosines @ factor)
    weights[[0, -1]] /= 2
    return np.asarray(weights)


def _legendre(x: Vector, sine: Vector, l_max: int) -> Iterator[Vector]:
    """For m = 0, 1, ... the associated Legendre functions l = m..l_max with mean square 1 on the sphere."""
    sectoral = np.ones_like(x)
    for start in range(0, l_max + 1, _ORDERS):
        order = np.arange(start, min(start + _ORDERS, l_max + 1))[:, None]
        degree = np.arange(start, l_max + 1)
        table = np.zeros((order.size, degree.size, x.size))
        for k, m in enumerate(order[:, 0]):
            sectoral = sectoral * sine * np.sqrt((2 * m + 1) / (2 * m)) if m else sectoral
            table[k, k] = sectoral
        with np.errstate(invalid="ignore", divide="ignore"):
            a = np.sqrt((4 * degree**2 - 1) / (degree**2 - order**2))[..., None]
            b = np.sqrt(((degree - 1) ** 2 - order**2) / (4 * (degree - 1) ** 2 - 1))[..., None]
        for i in range(1, degree.size):
            # Orders below this degree; b is 0 where there is no function two degrees down.
            k = min(i, order.size)
            table[:k, i] = a[:k, i] * (x * table[:k, i - 1] - b[:k, i] * table[:k, i - 2])
        yield from (table[k, k:] for k in range(order.size))


@dataclass(frozen=True)
class Power(FieldStatistic):
    """Power per wavenumber. Parameters as in `PowerSpectrum`; of="cross" is that common to member and truth.

    Not kept for fields whose truth is incomplete.
    """

    label: ClassVar[str] = "power"
    of: str = "members"
    kind: str = "sphere"
    latitudes: tuple[float, float] | None = None

    def value(self, case: Case) -> Vector:
        """(C, K)."""
        found: dict[str, Vector] = case.shared(("power", self.kind, self.latitudes), lambda: self._all(case))
        return found[self.of]

    def _all(self, case: Case) -> dict[str, Vector]:
        _check_columns(case.grid)
        whole = np.asarray(case.scored.all(axis=1))
        shape = (-1, *case.grid.shape)
        truth = np.where(whole[:, None], case.truth, 0.0).astype(np.float64)
        mean = np.where(whole[:, None], case.values.mean(axis=0, dtype=np.float64), 0.0)
        single = {"truth": truth, "error": mean - truth, "mean": mean}
        out = {name: self._power(field.reshape(shape), case.grid) for name, field in single.items()}
        out["members"] = np.zeros_like(out["truth"])
        for c in np.flatnonzero(whole):
            members = self._power(case.values[:, c].reshape(shape), case.grid)
            out["members"][c] = members.mean(axis=0)
        # The transform is linear, so the mean over members of Re(a b*) is that of their mean.
        out["cross"] = (out["mean"] + out["truth"] - out["error"]) / 2
        for power in out.values():
            power[~whole] = np.nan
        return out

    def _power(self, fields_BHW: Array, grid: Grid) -> Vector:
        assert grid.axes is not None
        latitude, columns = grid.axes[0], grid.shape[1]
        if self.kind == "sphere":
            return power_spectrum(fields_BHW, latitude)
        # Coordinates stored in float32 miss their nominal value by up to 2e-5 degrees.
        south, north = self.latitudes or (-90.0, 90.0)
        chosen = (latitude >= south - 1e-4) & (latitude <= north + 1e-4)
        if not chosen.any():
            raise ValueError(f"no row of the grid lies within {south:g}..{north:g} degrees")
        power = zonal_spectrum(fields_BHW[:, chosen])
        weight = cell_weights(latitude, "cell-wbx")[chosen]
        if self.kind == "zonal-wb2":
            power[..., columns // 2] *= 2 - columns % 2
            power *= (2 * np.pi * _WB2_RADIUS_M * np.cos(np.deg2rad(latitude[chosen])))[:, None]
        return np.asarray(np.einsum("h,bhk->bk", weight / weight.sum(), power))


def _check_columns(grid: Grid) -> None:
    if grid.axes is None:
        raise ValueError(
            f"spectra need a latitude-longitude grid, got a mesh of {grid.size} points: regrid it"
        )
    step = np.diff(grid.axes[1], append=grid.axes[1][0] + 360.0)
    if np.abs(step - 360.0 / len(step)).max() > 1e-3:
        raise ValueError(
            f"spectra need longitudes in equal steps around the globe, got {len(step)} columns "
            f"{grid.axes[1][0]:g}..{grid.axes[1][-1]:g}"
        )


@dataclass(frozen=True)
class _Spectral(Metric):
    """A function of power spectra of global fields, kept for the region "global" alone."""

    kind: str = "sphere"
    latitudes: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, _KINDS)
        if self.latitudes is not None and self.kind == "sphere":
            raise ValueError('latitudes choose the rows of zonal spectra: give kind="zonal"')
        if self.latitudes is not None and not -90 <= self.latitudes[0] <= self.latitudes[1] <= 90:
            raise ValueError(f"latitudes must be (south, north) in degrees, got {self.latitudes}")

    def _power(self, of: str) -> Power:
        return Power(of, self.kind, self.latitudes)

    def _text(self, *settings: str) -> str:
        rows = "" if self.latitudes is None else f"{self.latitudes[0]:.12g}..{self.latitudes[1]:.12g}"
        kind = "" if self.kind == "sphere" else self.kind
        found = ", ".join(part for part in (*settings, kind, rows) if part)
        return f"({found})" if found else ""

    @property
    def unit(self) -> str:
        """See `Metric.unit`."""
        return "1"


@dataclass(frozen=True)
class PowerSpectrum(_Spectral):
    """Power per wavenumber, averaged after squaring; K values from wavenumber 0 on.

    Args:
        kind: "sphere" is power per total wavenumber, see `power_spectrum`; "zonal" per zonal wavenumber,
            averaged over rows by area, so that both add up to the mean square. "zonal-wb2" is that of
            WeatherBench 2: times the length of the circle in m, and with the last wave of an even number of
            columns doubled, so that it does not add up.
        latitudes: rows (south, north) that zonal spectra are averaged over; None for all.
        of: "members" (mean of their spectra), "truth", "mean" (of the ensemble) or "error" (of that mean).
    """

    vector: ClassVar[bool] = True
    of: str = "members"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("of", self.of, _OF)

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "none"

    @property
    def unit(self) -> str:
        """See `Metric.unit`."""
        return "square m" if self.kind == "zonal-wb2" else "square"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"power{self._text(self.of)}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return (self._power(self.of),)


@dataclass(frozen=True)
class _ByWave(_Spectral):
    """A number for each wavenumber, of the "members" or of their "mean"."""

    vector: ClassVar[bool] = True
    of: str = "members"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("of", self.of, ("members", "mean"))


@dataclass(frozen=True)
class SpectralRatio(_ByWave):
    """Mean power over that of the truth, by wavenumber: below 1 where the forecast is too smooth.

    Args:
        kind, latitudes: see `PowerSpectrum`.
        of: "members", or "mean", which is below 1 wherever the ensemble spreads.
    """

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "one" if self.of == "members" else "none"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"spectral_ratio{self._text(self.of)}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return self._power(self.of), self._power("truth")

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        power, truth = (means[s.id] for s in self.statistics)
        return np.asarray(power / truth)


@dataclass(frozen=True)
class Coherence(_ByWave):
    """Correlation of forecast and truth by wavenumber, sum_m Re(a b*) / sqrt(S_a S_b) of mean spectra.

    Args:
        kind, latitudes: see `PowerSpectrum`.
        of: "members" or "mean" of the ensemble.
    """

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "high"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"coherence{self._text(self.of)}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return self._power("cross"), self._power(self.of), self._power("truth")

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        cross, power, truth = (means[s.id] for s in self.statistics)
        return np.asarray(cross / np.sqrt(power * truth))


@dataclass(frozen=True)
class LogSpectralDistance(_Spectral):
    """Root of the mean over wavenumbers of d^2, with d = 10 log10(power of members / power of truth) in dB.

    Args:
        kind, latitudes: see `PowerSpectrum`.
        first, last: wavenumbers, both included; None for the last one of the grid.
    """

    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise ValueError(f"expected 0 <= first <= last, got {self.first} and {self.last}")

    @property
    def _waves(self) -> str:
        end = "" if self.last is None else str(self.last)
        return f"{self.first}.." + end if (self.first, self.last) != (1, None) else ""

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"log_spectral_distance{self._text(self._waves)}"

    @property
    def statistics(self) -> tuple[AnyStatistic, ...]:
        """See `Metric.statistics`."""
        return self._power("members"), self._power("truth")

    def _decibels(self, means: Mapping[str, Array]) -> Array:
        power, truth = (means[s.id] for s in self.statistics)
        stop = power.shape[-1] if self.last is None else self.last + 1
        if stop > power.shape[-1]:
            raise ValueError(
                f"{self.name} needs wavenumber {self.last}, spectra end at {power.shape[-1] - 1}"
            )
        waves = slice(self.first, stop)
        return np.asarray(10 * np.log10(power[..., waves] / truth[..., waves]))

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.asarray(np.sqrt(np.square(self._decibels(means)).mean(axis=-1)))


@dataclass(frozen=True)
class SpectralBias(LogSpectralDistance):
    """Mean over wavenumbers of d, see `LogSpectralDistance`: negative where forecasts are too smooth."""

    @property
    def goal(self) -> Goal:
        """See `Metric.goal`."""
        return "zero"

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"spectral_bias{self._text(self._waves)}"

    def value(self, means: Mapping[str, Array], /) -> Array:
        """See `Metric.value`."""
        return np.asarray(self._decibels(means).mean(axis=-1))
