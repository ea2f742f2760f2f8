"""Noise sources: unit variance, pure functions of the key and the global shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ._draws import check_engine, normals
from ._protocols import NoiseSource
from ._settings import Settings
from ._sphere import TILE, coefficients, noise_basis, pack, point_variance, synthesize
from ._types import Engine, Key, Window


class _Source(Settings):
    """Base of the sources: a source may hold another one."""

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return NOISES


def is_gaussian(source: NoiseSource) -> bool:
    """Whether the source is Gaussian: its attribute `gaussian`, true where it has none."""
    return bool(getattr(source, "gaussian", True))


def check_gaussian(source: NoiseSource, what: str) -> None:
    """Raise ValueError where a sum of draws must keep the law of one draw and the source is not Gaussian.

    The sum of N independent Student-t increments tends to a Gaussian, which is not the law of training.
    """
    if not is_gaussian(source):
        raise ValueError(f"{what} adds up draws of noise, which must be Gaussian; got {source}")


@dataclass(frozen=True)
class WhiteNoise(_Source):
    """Independent N(0, 1) values.

    For a field, or for a vector of shape (Z,) that conditions a network: a vector has no grid, so every
    shard of a grid draws the same one.

    Args:
        engine: "generator" draws each (init, member, lead, stream, step) from one `torch.Generator` on the
            CPU: the cheapest, but its seed has 32 bits (two keys share a field with probability 2^-32), a
            window costs the whole draw, and torch's normals differ between CPUs with and without AVX2.
            "philox" (Philox4x32-10) computes each value from its global index: the same bits on every device
            and instruction set, a window costs its own points, keys are hashed to 64 bits. Costs 9 ns per
            value on one CPU thread against 3 (benchmarks/estimators_noise.py).
    """

    engine: Engine = "generator"
    gaussian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_engine(self.engine)

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape), see `NoiseSource.draw`."""
        x = normals(self.engine, key, tuple(shape), device, window)
        return x.reshape(key.batch, key.members, *shape).to(dtype)


class SphericalSynthesis(Protocol):
    """Synthesis by another package, for `SphericalNoise`."""

    def synthesize(self, coefficients: Tensor, /) -> Tensor:
        """Real fields (K, H, W) = sum_l a_l0 Y_l0 + 2 Re sum_{m>0} a_lm Y_lm from complex a (K, l, m).

        Y_lm is orthonormal on the unit sphere, m = 0..lmax; the phase convention does not matter.
        """
        ...


Spectrum = str | tuple[str, float]


def angular_power(spectrum: Spectrum, lmax: int) -> tuple[float, ...]:
    """C_l for l = 0..lmax of a named spectrum, with sum_l (2l + 1) C_l / 4 pi = 1.

    Raises:
        ValueError: unknown name or unusable parameter.
    """
    width = 2.0 * np.arange(lmax + 1) + 1.0
    name, value = (spectrum, 0.0) if isinstance(spectrum, str) else spectrum
    if spectrum == "white":
        raw = np.ones_like(width)
    elif spectrum == "flat":
        raw = 1.0 / width
    elif name == "power" and not isinstance(spectrum, str) and math.isfinite(value):
        raw = width**-value
    elif name == "heat" and value > 0:
        raw = np.exp(-value * (width**2 - 1.0) / 4.0)
    else:
        raise ValueError(
            "spectrum must be 'white', 'flat', ('power', p) with a finite p or ('heat', kT) with kT > 0, "
            f"got {spectrum!r}"
        )
    return tuple((raw * 4.0 * math.pi / (width * raw).sum()).tolist())


@dataclass(frozen=True)
class _Sphere(_Source, ABC):
    """Draws of a spherical source: rings, and the factors between unit normals and coefficients."""

    gaussian: ClassVar[bool] = True

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(latitudes, longitudes)."""

    @abstractmethod
    def _rings(self) -> tuple[float, ...]:
        """Latitudes in degrees."""

    @abstractmethod
    def _factors(self) -> tuple[tuple[float, ...], float]:
        """Factor of every degree for the real and imaginary parts of m > 0, and what m = 0 has on top."""

    @abstractmethod
    def _units(self, key: Key, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """(B*M, *shape) coefficients before `_factors`."""

    def point_variance(self) -> Tensor:
        """(latitude,) float64 variance of a value, computed from the basis of the synthesis."""
        tiles = noise_basis(self._rings(), *self._factors(), torch.device("cpu"))
        return point_variance(tiles, *self.grid)

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape); the global shape must end in (latitude, longitude) of this grid.

        Every rank draws all coefficients and synthesises the latitudes of its window, at a multiple of 16.
        """
        full = tuple(shape) if window is None else tuple(window.global_shape)
        if full[-2:] != self.grid:
            raise ValueError(f"shape must end in the grid {self.grid} of this noise, got {full}")
        part = tuple(slice(0, n) for n in full) if window is None else window.slices(tuple(shape))
        degrees = len(self._factors()[0])
        units = self._units(key, (math.prod(full[:-2]), degrees, degrees), device)
        # Autocast would round the synthesis to 16 bits. Row by row: a batched product may round differently
        # with the number of rows.
        with torch.autocast(units.device.type, enabled=False):
            rows = [self._rows(row, part[-2]).reshape(*full[:-2], -1, full[-1]) for row in units]
        cut = (slice(None), *part[:-2], slice(None), part[-1])
        return torch.stack(rows)[cut].reshape(key.batch, key.members, *shape).to(dtype)

    def _rows(self, units_KLL: Tensor, rows: slice) -> Tensor:
        """(K, rows, W): the latitudes of a slice, from the tiles that cover it."""
        packed, first = pack(units_KLL), rows.start // TILE * TILE
        rings = self._rings()[first : -(-rows.stop // TILE) * TILE]
        tiles = noise_basis(rings, *self._factors(), units_KLL.device)
        fields = torch.cat([synthesize(packed, tile, self.grid[1]) for tile in tiles], 1)
        return fields[:, rows.start - first : rows.stop - first]


@dataclass(frozen=True, kw_only=True)
class SphericalNoise(_Sphere):
    """Isotropic Gaussian noise on the sphere, of unit variance at every point, poles included.

    f = sum_lm a_lm Y_lm with a_l0 ~ N(0, C_l), Re a_lm and Im a_lm ~ N(0, C_l / 2) for m > 0, and
    sum_l (2l + 1) C_l / 4 pi = 1. Real fields keep only the real part of m = 0, so its variance must not be
    halved: the sqrt(2) that several published codes leave out, which costs half the variance at the poles.

    Args:
        latitudes: degrees, one per row, any order; poles allowed.
        longitudes: number of equally spaced columns from 0 degrees.
        spectrum: "white" (C_l constant: power grows like 2l + 1), "flat" (C_l ~ 1/(2l + 1): equal power per
            degree, the "white" of GenCast), ("power", p) for C_l ~ (2l + 1)^-p, or ("heat", kT) for
            C_l ~ exp(-kT l (l + 1)), the heat kernel of FourCastNet 3 (arXiv 2507.12144).
        lmax: largest degree; default and upper bound (longitudes - 1) // 2, the largest that does not alias.
        engine: see `WhiteNoise`; the coefficients are what is drawn. They have the same bits on every
            device with "philox", the fields agree to the rounding of float32 products.
        transform: synthesis in place of the built-in one, whole fields at a time; not part of `to_dict`.

    Noise of degree lmax spans (lmax + 1)^2 directions: fewer than the grid has points. The basis takes
    2 (lmax + 1)^2 bytes per latitude and is kept for the last 8 grids. On CUDA the products follow
    `torch.set_float32_matmul_precision`.
    """

    latitudes: tuple[float, ...]
    longitudes: int
    spectrum: Spectrum = "white"
    lmax: int | None = None
    engine: Engine = "generator"
    transform: SphericalSynthesis | None = None
    _runtime: ClassVar[tuple[str, ...]] = ("transform",)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        object.__setattr__(self, "latitudes", tuple(float(v) for v in self.latitudes))
        if not self.latitudes or not max(abs(v) for v in self.latitudes) <= 90.0:
            raise ValueError(f"latitudes must be degrees in [-90, 90], got {self.latitudes}")
        bound = (self.longitudes - 1) // 2
        if self.lmax is not None and not 0 <= self.lmax <= bound:
            raise ValueError(f"lmax must be in 0..{bound} for {self.longitudes} longitudes, got {self.lmax}")
        angular_power(self.spectrum, 0)

    @property
    def grid(self) -> tuple[int, int]:
        """(latitudes, longitudes)."""
        return len(self.latitudes), self.longitudes

    @property
    def degree(self) -> int:
        """Largest degree l in use."""
        return (self.longitudes - 1) // 2 if self.lmax is None else self.lmax

    def power(self) -> tuple[float, ...]:
        """C_l for l = 0..degree, normalised to unit point variance."""
        return angular_power(self.spectrum, self.degree)

    def _rings(self) -> tuple[float, ...]:
        return self.latitudes

    def _factors(self) -> tuple[tuple[float, ...], float]:
        return self._scaled

    @cached_property
    def _scaled(self) -> tuple[tuple[float, ...], float]:
        return tuple(math.sqrt(c / 2.0) for c in self.power()), math.sqrt(2.0)

    def _units(self, key: Key, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        return normals(self.engine, key, shape, device)

    def _rows(self, units_KLL: Tensor, rows: slice) -> Tensor:
        if self.transform is None:
            return super()._rows(units_KLL, rows)
        fields = self.transform.synthesize(coefficients(pack(units_KLL), *self._factors()))
        if tuple(fields.shape) != (len(units_KLL), *self.grid):
            expected = (len(units_KLL), *self.grid)
            raise ValueError(f"transform must return fields {expected}, got {tuple(fields.shape)}")
        return fields[:, rows]


@dataclass(frozen=True, kw_only=True)
class AtlasNoise(_Sphere):
    """The spherical noise of the published ATLAS code, for its released checkpoints. Not isotropic.

    Real and imaginary parts of every a_lm, l and m below L = min(rows, columns / 2 + 1), are independent
    N(0, 1) times 3.56 / sqrt(rows columns), m = 0 included. A real field keeps only the real part of m = 0,
    so the variance is 0.5 at the poles and 1.0 far from them. `SphericalNoise` is the corrected form.
    Reproduces the law, not the random numbers of the published run.

    Args:
        rows, columns: an equiangular grid from pole to pole.
        dof: degrees of freedom of independent Student-t coefficients, not scaled to unit variance; None for
            Gaussian ones. Accepted by every sampler, as published.
        engine: see `WhiteNoise`.
    """

    rows: int
    columns: int
    dof: float | None = None
    engine: Engine = "generator"

    def __post_init__(self) -> None:
        check_engine(self.engine)
        if self.rows < 2 or self.columns < 2 or self.columns % 2:
            raise ValueError(f"expected 2 rows or more and even columns, got {self.rows}, {self.columns}")
        if self.dof is not None and not self.dof > 0:
            raise ValueError(f"dof must be positive, got {self.dof}")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    def _rings(self) -> tuple[float, ...]:
        return tuple(90.0 - 180.0 * i / (self.rows - 1) for i in range(self.rows))

    def _factors(self) -> tuple[tuple[float, ...], float]:
        degrees = min(self.rows, self.columns // 2 + 1)
        return (3.56 / math.sqrt(self.rows * self.columns),) * degrees, 1.0

    def _units(self, key: Key, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        x = normals(self.engine, key, shape, device)
        if self.dof is None:
            return x
        # Bailey's polar form (doi 10.2307/2153537) of Student's t from two normals.
        square = x.square() + normals(self.engine, key.sub("tail"), shape, device).square()
        return x * (self.dof * torch.expm1(square / self.dof) / square).sqrt()


@dataclass(frozen=True, kw_only=True)
class AR1Noise(_Source):
    """First-order autoregression in lead time: n_k = phi n_(k-1) + sqrt(1 - phi^2) e_k, n_0 = e_0.

    Stationary from lead 0: unit variance, correlation phi^|j - k| between leads. `draw` recomputes the state
    from the key, so a forecast restarted at any lead continues the same noise and nothing has to be stored;
    it costs lead + 1 draws of the source. `advance` carries the state for one draw and gives the same bits.

    Args:
        source: of e_k; must be Gaussian.
        step: hours per autoregressive step.
        tau: decorrelation time in hours, phi = exp(-step / tau).
    """

    source: NoiseSource
    step: float
    tau: float
    gaussian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.tau > 0):
            raise ValueError(f"step and tau must be positive hours, got {self.step} and {self.tau}")
        check_gaussian(self.source, "AR1Noise")

    @property
    def phi(self) -> float:
        """Correlation of consecutive leads."""
        return math.exp(-self.step / self.tau)

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape) at key.lead, see `NoiseSource.draw`."""
        if key.lead < 0:
            raise ValueError(f"AR1Noise starts at lead 0, got key.lead = {key.lead}")
        state = None
        for lead in range(key.lead + 1):
            state = self.advance(state, key.at_lead(lead), shape, device=device, window=window)
        assert state is not None
        return state.to(dtype)

    def advance(
        self,
        state: Tensor | None,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        window: Window | None = None,
    ) -> Tensor:
        """Float32 noise (B, M, *shape) at key.lead from the one at key.lead - 1, None at lead 0."""
        if (state is None) != (key.lead == 0):
            raise ValueError(
                f"state must be None at lead 0 and the noise of the lead before later: {key.lead}"
            )
        fresh = self.source.draw(key, shape, device=device, dtype=torch.float32, window=window)
        return fresh if state is None else self.phi * state + math.sqrt(1.0 - self.phi**2) * fresh


@dataclass(frozen=True)
class AntitheticNoise(_Source):
    """Members 2k and 2k + 1 get the noise of member 2k and its negative.

    Halves the sampling error of an ensemble mean where the response is close to linear. Not for training with
    a fair score, and not for its validation: members of a pair are dependent, so a fair CRPS is biased.
    """

    source: NoiseSource

    @property
    def gaussian(self) -> bool:
        """That of the source."""
        return is_gaussian(self.source)

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape), see `NoiseSource.draw`."""
        odd = key.member % 2
        pair = replace(key, member=key.member - odd)
        x = self.source.draw(pair, shape, device=device, dtype=dtype, window=window)
        sign = (1 - 2 * odd).expand(key.batch, key.members).to(device=x.device, dtype=x.dtype)
        return x * sign.reshape(key.batch, key.members, *[1] * len(shape))


@dataclass(frozen=True, kw_only=True)
class StudentTNoise(_Source):
    """Multivariate Student-t of unit variance: one scale sqrt((dof - 2) / chi^2_dof) per init and member.

    For noise that is drawn once per member (the start of `EDM` or of a flow, a CRPS network). A solver that
    adds noise at every step refuses it.

    Args:
        source: Gaussian source that is scaled.
        dof: degrees of freedom, above 2.
    """

    source: NoiseSource
    dof: float
    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.dof > 2 or not math.isfinite(self.dof):
            raise ValueError(f"dof must be above 2 (finite variance), got {self.dof}")
        if not is_gaussian(self.source):
            raise ValueError(f"StudentTNoise needs a Gaussian source, got {self.source}")

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape), see `NoiseSource.draw`."""
        x = self.source.draw(key, shape, device=device, dtype=torch.float32, window=window)
        chi2 = 2.0 * _gamma(key.sub("chi2"), self.dof / 2.0)
        scale = (((self.dof - 2.0) / chi2) ** 0.5).float().to(x.device)
        return (x * scale.reshape(key.batch, key.members, *[1] * len(shape))).to(dtype)


def _gamma(key: Key, shape: float) -> Tensor:
    """(B, M) float64 Gamma(shape, 1) variates, shape >= 1 (Marsaglia and Tsang 2000).

    Scalar functions: a vectorised logarithm may round differently with the position in the batch.
    """
    d = shape - 1.0 / 3.0
    out = [math.nan] * (key.batch * key.members)
    missing, attempt = list(range(len(out))), 0
    while missing:
        first, second = (key.sub(name, attempt).uniform().reshape(-1).tolist() for name in ("x", "u"))
        for row in missing:
            x = NormalDist().inv_cdf(first[row])
            v = (1.0 + x / math.sqrt(9.0 * d)) ** 3
            if v > 0 and math.log(second[row]) < 0.5 * x * x + d - d * v + d * math.log(v):
                out[row] = d * v
        missing, attempt = [row for row in missing if math.isnan(out[row])], attempt + 1
    return torch.tensor(out, dtype=torch.float64).reshape(key.batch, key.members)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardNoise:
    """A source as seen by a rank that holds a part of the grid: an estimator on local tensors needs no more.

    Shapes (C, *S) that an estimator asks for are taken as this rank's part of (C, *grid); shapes without grid
    dimensions, such as a noise vector (Z,), are the same on every rank. `to_dict` is that of the source.

    Args:
        source: noise of the whole grid.
        grid: global sizes of the grid dimensions.
        start: first index of this rank's part in each.
    """

    source: NoiseSource
    grid: tuple[int, ...]
    start: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.grid) != len(self.start):
            raise ValueError(f"grid {self.grid} and start {self.start} must have the same length")

    @property
    def gaussian(self) -> bool:
        """That of the source."""
        return is_gaussian(self.source)

    def draw(
        self,
        key: Key,
        shape: tuple[int, ...],
        /,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        window: Window | None = None,
    ) -> Tensor:
        """Noise (B, M, *shape) of this rank; ValueError when it is given a window of its own."""
        if window is not None:
            raise ValueError("ShardNoise sets the window itself, got another one")
        lead = len(shape) - len(self.grid)
        if lead > 0:
            window = Window(global_shape=(*shape[:lead], *self.grid), start=(*[0] * lead, *self.start))
        return self.source.draw(key, shape, device=device, dtype=dtype, window=window)

    def to_dict(self) -> dict[str, Any]:
        """JSON data of the source."""
        data: dict[str, Any] = self.source.to_dict()  # type: ignore[attr-defined]
        return data


NOISES: tuple[type[Any], ...] = (
    WhiteNoise,
    SphericalNoise,
    AtlasNoise,
    AR1Noise,
    AntitheticNoise,
    StudentTNoise,
)
