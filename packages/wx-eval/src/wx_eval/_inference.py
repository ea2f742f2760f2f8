"""Significance of a mean difference between two forecasts that started at the same times.

Successive differences d_1..d_T are correlated because weather is. Three estimates of the standard error of
their mean: as if independent, inflated by a second-order autoregression (Geer 2016, Tellus A 68, 30229), and
the equal-weighted cosine estimator (Lazarus, Lewis, Stock and Watson 2018, J. Bus. Econ. Stat. 36, 541).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

Method = Literal["ewc", "geer", "iid"]
Vector = npt.NDArray[np.float64]

MINIMUM_STARTS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TestResult:
    """A two-sided t test of the mean of one series.

    Attributes:
        mean: mean difference.
        stderr: its standard error.
        df: degrees of freedom of the t distribution.
        p_value: two-sided.
        inflation: stderr over the one for independent values.
        n: T, the number of finite differences.
        n_effective: T / inflation^2.
        notes: what limits trust in the result: "few starts", "irregular spacing", "constant difference".
    """

    mean: float
    stderr: float
    df: float
    p_value: float
    inflation: float
    n: int
    n_effective: float
    notes: tuple[str, ...] = ()

    # The name is the statistician's; pytest must not collect it.
    __test__ = False

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean."""
        half = float(special.stdtrit(self.df, 0.5 + level / 2)) * self.stderr
        return self.mean - half, self.mean + half


def paired_test(differences: npt.ArrayLike, *, method: Method = "ewc", regular: bool = True) -> TestResult:
    """Test whether the mean of paired differences is zero.

    "iid": s / sqrt(T) with T - 1 degrees of freedom. "geer": the same times k, with
    k^2 = (1 - r1 phi1 - r2 phi2) / (1 - phi1 - phi2)^2 from the first two autocorrelations; optimistic when T
    is small against the correlation time. "ewc": the mean square of the v = floor(0.4 T^(2/3)) lowest cosine
    coefficients, with v degrees of freedom; keeps its level at every T and pays with power.

    Args:
        differences: d_t in the order of the starts, shape (T,); NaN marks a missing pair and is left out.
        method: see above.
        regular: whether the starts are evenly spaced; if not, a note is added.

    Raises:
        ValueError: for an unknown method or fewer than 2 finite differences.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    d = np.asarray(differences, np.float64).ravel()
    gaps = not np.isfinite(d).all()
    d = d[np.isfinite(d)]
    if d.size < 2:
        raise ValueError(f"a test needs at least 2 paired differences, got {d.size}")
    notes = ("few starts",) * (d.size < MINIMUM_STARTS) + ("irregular spacing",) * (gaps or not regular)
    mean = float(d.mean())
    naive = float(d.std(ddof=1)) / np.sqrt(d.size)
    # Rounding in the mean makes a constant series vary by a few units in the last place.
    if naive <= 4 * np.finfo(np.float64).eps * abs(mean):
        p_value = 1.0 if mean == 0 else 0.0
        return TestResult(
            mean=mean,
            stderr=0.0,
            df=d.size - 1,
            p_value=p_value,
            inflation=1.0,
            n=d.size,
            n_effective=d.size,
            notes=(*notes, "constant difference"),
        )
    stderr, df = _standard_error(d - mean, naive, method)
    inflation = stderr / naive
    return TestResult(
        mean=mean,
        stderr=stderr,
        df=df,
        p_value=float(2 * special.stdtr(df, -abs(mean) / stderr)),
        inflation=inflation,
        n=d.size,
        n_effective=d.size / inflation**2,
        notes=notes,
    )


def _standard_error(anomaly: Vector, naive: float, method: Method) -> tuple[float, float]:
    n = anomaly.size
    if method == "iid":
        return naive, n - 1
    if method == "geer":
        return naive * _ar2_inflation(anomaly), n - 1
    coefficients = max(1, int(0.4 * n ** (2 / 3)))
    phase = np.pi * np.outer(np.arange(1, coefficients + 1), np.arange(n) + 0.5) / n
    cosine = np.sqrt(2 / n) * (np.cos(phase) @ anomaly)
    return float(np.sqrt(np.mean(cosine**2) / n)), coefficients


def _ar2_inflation(anomaly: Vector) -> float:
    """k of Geer (2016); autocovariances divided by T keep the fitted process stationary."""
    if anomaly.size < 4:
        return 1.0
    c0, c1, c2 = (float(anomaly[lag:] @ anomaly[: anomaly.size - lag]) for lag in range(3))
    r1, r2 = c1 / c0, c2 / c0
    phi1 = r1 * (1 - r2) / (1 - r1**2)
    phi2 = (r2 - r1**2) / (1 - r1**2)
    return float(np.sqrt(1 - r1 * phi1 - r2 * phi2) / (1 - phi1 - phi2))


def benjamini_hochberg(p_values: npt.ArrayLike) -> Vector:
    """Adjusted p-values that keep the expected share of false discoveries below the level, any shape.

    q_(i) = min over j >= i of m p_(j) / j (Benjamini and Hochberg 1995). NaN marks a test that was not made:
    it stays NaN and does not count.
    """
    p = np.asarray(p_values, np.float64)
    out = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values)[::-1]
    scaled = values[order] * values.size / np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    out[tested] = adjusted
    return out


def sidak(p_values: npt.ArrayLike) -> Vector:
    """Adjusted p-values that bound the chance of any false discovery: 1 - (1 - p)^m; NaN is not a test."""
    p = np.asarray(p_values, np.float64)
    tests = int((~np.isnan(p)).sum())
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(tests * np.log1p(-p)))


@dataclass(frozen=True, kw_only=True, slots=True)
class BootstrapResult:
    """Stationary bootstrap of a mean: percentile interval and two-sided p-value of a zero mean."""

    mean: float
    low: float
    high: float
    p_value: float
    block: float


def stationary_bootstrap(
    differences: npt.ArrayLike,
    *,
    seed: int,
    resamples: int = 2000,
    block: float | None = None,
    level: float = 0.95,
) -> BootstrapResult:
    """Resample blocks of geometric length (Politis and Romano 1994), wrapping at the end of the series.

    Args:
        differences: d_t, shape (T,).
        seed: of the resampling; the result is a function of the arguments.
        resamples: number of series drawn.
        block: mean block length; by default chosen by Politis and White (2004, corrected 2009).
        level: of the percentile interval.

    Raises:
        ValueError: for fewer than 2 differences, values that are not finite, or a block shorter than 1.
    """
    d = np.asarray(differences, np.float64).ravel()
    if d.size < 2 or not np.isfinite(d).all():
        raise ValueError(
            f"differences must be at least 2 finite values, got {d.size} values: drop missing pairs"
        )
    length = automatic_block_length(d) if block is None else float(block)
    if length < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    rng = np.random.default_rng(seed)
    fresh = rng.random((resamples, d.size)) < 1 / length
    fresh[:, 0] = True
    start = rng.integers(d.size, size=(resamples, d.size))
    step = np.arange(d.size)
    last = np.maximum.accumulate(np.where(fresh, step, 0), axis=1)
    index = (np.take_along_axis(start, last, axis=1) + step - last) % d.size
    means, mean = d[index].mean(axis=1), float(d.mean())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    extreme = int((np.abs(means - mean) >= abs(mean)).sum())
    p_value = (1 + extreme) / (1 + resamples)
    return BootstrapResult(mean=mean, low=float(low), high=float(high), p_value=p_value, block=length)


def automatic_block_length(series: npt.ArrayLike) -> float:
    """Mean block length that minimises the error of the bootstrap variance of a mean, shape (T,) in.

    Politis and White (2004, Econometric Reviews 23, 53) as corrected by Patton, Politis and White (2009):
    b = (G^2 T / (g0^2))^(1/3) with G = sum lambda |k| R(k), g0 = sum lambda R(k) over a flat-top window.
    """
    d = np.asarray(series, np.float64).ravel()
    n = d.size
    anomaly = d - d.mean()
    if not anomaly.any():
        return 1.0
    run = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    largest = min(n - 1, int(np.ceil(np.sqrt(n))) + run)
    covariance = np.array([anomaly[k:] @ anomaly[: n - k] for k in range(largest + 1)]) / n
    small = np.abs(covariance[1:]) < 2 * np.sqrt(np.log10(n) / n) * covariance[0]
    quiet: Any = (i for i in range(len(small) - run + 1) if small[i : i + run].all())
    cut = min(2 * max(next(quiet, len(small)), 1), largest)
    lags = np.arange(-cut, cut + 1)
    window = np.clip(2 * (1 - np.abs(lags) / cut), 0, 1)
    weighted = window * covariance[np.abs(lags)]
    scale = float(np.abs(lags) @ weighted) ** 2 / max(float(weighted.sum()) ** 2, np.finfo(float).tiny)
    return float(np.clip((scale * n) ** (1 / 3), 1, np.ceil(min(3 * np.sqrt(n), n / 3))))
