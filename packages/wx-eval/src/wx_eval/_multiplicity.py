"""Corrections for the number of tests on a card; NaN marks a test that was not made and does not count."""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt

from ._choices import Correction as Correction
from ._grid import Vector


def adjusted(p_values: npt.ArrayLike, correction: Correction) -> Vector:
    """Adjusted p-values, any shape.

    "benjamini-hochberg" and "benjamini-yekutieli" bound the expected share of false discoveries, the second
    whatever the dependence between tests. "holm" and "sidak" bound the chance of any false discovery, Holm
    whatever the dependence.

    Raises:
        ValueError: for another correction.
    """
    if correction not in get_args(Correction):
        raise ValueError(f"correction must be one of {get_args(Correction)}, got {correction!r}")
    if correction == "none":
        return np.array(p_values, np.float64)
    if correction == "benjamini-hochberg":
        return benjamini_hochberg(p_values)
    if correction == "benjamini-yekutieli":
        return benjamini_yekutieli(p_values)
    return holm(p_values) if correction == "holm" else sidak(p_values)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Vector:
    """Adjusted p-values that keep the expected share of false discoveries below the level, any shape.

    q_(i) = min over j >= i of m p_(j) / j (Benjamini and Hochberg 1995). Holds for independent tests and for
    the positive dependence of neighbouring lead times, regions and channels (Benjamini and Yekutieli 2001;
    Wilks 2016, Bull. Am. Meteorol. Soc. 97, 2263).
    """
    return _step_up(p_values, 1.0)


def benjamini_yekutieli(p_values: npt.ArrayLike) -> Vector:
    """`benjamini_hochberg` times 1 + 1/2 + ... + 1/m, for any dependence (2001, Ann. Stat. 29, 1165)."""
    tests = int((~np.isnan(np.asarray(p_values, np.float64))).sum())
    return _step_up(p_values, float((1 / np.arange(1, tests + 1)).sum()))


def _step_up(p_values: npt.ArrayLike, factor: float) -> Vector:
    p = np.asarray(p_values, np.float64)
    out = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values)[::-1]
    scaled = factor * values[order] * values.size / np.arange(values.size, 0, -1)
    result = np.empty_like(values)
    result[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    out[tested] = result
    return out


def holm(p_values: npt.ArrayLike) -> Vector:
    """Adjusted p-values that bound the chance of any false discovery whatever the dependence.

    max over j <= i of (m - j + 1) p_(j) (Holm 1979, Scand. J. Stat. 6, 65).
    """
    p = np.asarray(p_values, np.float64)
    out = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    values = p[tested]
    order = np.argsort(values)
    result = np.empty_like(values)
    result[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)), 1.0)
    out[tested] = result
    return out


def sidak(p_values: npt.ArrayLike) -> Vector:
    """Adjusted p-values that bound the chance of any false discovery of independent tests: 1 - (1 - p)^m."""
    p = np.asarray(p_values, np.float64)
    tests = int((~np.isnan(p)).sum())
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(tests * np.log1p(-p)))
