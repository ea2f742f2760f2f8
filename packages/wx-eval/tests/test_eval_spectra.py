"""Power spectra: single harmonics, Parseval, invariance."""

import numpy as np
import pytest
from scipy import special

from wx_eval import cell_weights, power_spectrum


def grid(rows: int = 33, columns: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    colatitude = np.linspace(0, np.pi, rows)
    return 90 - np.degrees(colatitude), colatitude[:, None], 2 * np.pi * np.arange(columns)[None] / columns


def harmonic(degree: int, order: int, colatitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Complex spherical harmonic with mean square 1 over the sphere, from associated Legendre polynomials."""
    norm = (2 * degree + 1) * np.exp(
        special.gammaln(degree - order + 1) - special.gammaln(degree + order + 1)
    )
    legendre: np.ndarray = special.lpmv(order, degree, np.cos(colatitude))
    wave: np.ndarray = np.exp(1j * order * longitude)
    return np.asarray(np.sqrt(norm) * legendre * wave)


@pytest.mark.parametrize(("degree", "order"), [(0, 0), (1, 0), (1, 1), (7, 3), (16, 16), (31, 0), (31, 30)])
def test_one_harmonic_fills_one_wavenumber(degree: int, order: int) -> None:
    latitude, colatitude, longitude = grid()
    power = power_spectrum(harmonic(degree, order, colatitude, longitude).real, latitude)
    expected = np.zeros(32)
    expected[degree] = 1.0 if order == 0 else 0.5
    np.testing.assert_allclose(power, expected, atol=1e-12)


def test_spectra_of_all_resolved_waves_are_exact_and_add_up_to_the_mean_square() -> None:
    latitude, colatitude, longitude = grid()
    rng = np.random.default_rng(0)
    field, expected = np.zeros((33, 64)), np.zeros(32)
    for degree in range(32):
        for order in range(degree + 1):
            a = rng.standard_normal() + 1j * rng.standard_normal() * (order > 0)
            field += (1 if order == 0 else 2) * (a * harmonic(degree, order, colatitude, longitude)).real
            expected[degree] += (1 if order == 0 else 2) * abs(a) ** 2
    got = power_spectrum(field, latitude)
    np.testing.assert_allclose(got, expected, rtol=1e-11)
    # A grid twice as fine integrates the square of the same field, so Parseval can be checked on its own.
    fine, colatitude, longitude = grid(129, 256)
    values = harmonic(9, 4, colatitude, longitude).real + 0.3 * harmonic(20, 7, colatitude, longitude).imag
    mean_square = float((cell_weights(fine) @ (values**2).mean(axis=1)) / len(fine))
    assert power_spectrum(values, fine).sum() == pytest.approx((1 + 0.09) / 2, rel=1e-12)
    assert mean_square == pytest.approx((1 + 0.09) / 2, rel=1e-3)


def test_turning_or_mirroring_the_globe_changes_nothing() -> None:
    latitude, _, _ = grid()
    field = np.random.default_rng(1).standard_normal((33, 64))
    # One value per pole, as every continuous field has.
    field[[0, -1]] = field[[0, -1]].mean(axis=1, keepdims=True)
    power = power_spectrum(field, latitude)
    np.testing.assert_allclose(power_spectrum(np.roll(field, 11, axis=1), latitude), power, rtol=1e-10)
    np.testing.assert_allclose(power_spectrum(field[::-1], latitude), power, rtol=1e-10)
    np.testing.assert_allclose(power_spectrum(field[::-1], latitude[::-1]), power, rtol=1e-10)


def test_leading_axes_are_kept_and_truncation_only_cuts() -> None:
    latitude, _, _ = grid(17, 32)
    fields = np.random.default_rng(2).standard_normal((2, 3, 17, 32))
    whole = power_spectrum(fields, latitude)
    assert whole.shape == (2, 3, 16)
    np.testing.assert_allclose(whole[1, 2], power_spectrum(fields[1, 2], latitude), rtol=1e-12)
    np.testing.assert_allclose(power_spectrum(fields, latitude, l_max=5), whole[..., :6], rtol=1e-12)


@pytest.mark.parametrize(
    ("latitude", "shape", "options", "message"),
    [
        (np.linspace(88, -88, 33), (33, 64), {}, "pole to pole"),
        (np.linspace(90, -90, 33), (32, 64), {}, "shape"),
        (np.linspace(90, -90, 33), (33, 63), {}, "even"),
        (np.linspace(90, -90, 33), (33, 64), {"l_max": 32}, r"within 0\.\.31"),
    ],
)
def test_grids_that_cannot_be_analysed_are_refused(
    latitude: np.ndarray, shape: tuple[int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        power_spectrum(np.zeros(shape), latitude, **options)


def test_missing_points_are_refused() -> None:
    latitude, _, _ = grid(17, 32)
    with pytest.raises(ValueError, match="finite"):
        power_spectrum(np.full((17, 32), np.nan), latitude)
