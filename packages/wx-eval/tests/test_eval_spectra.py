"""Power spectra: single harmonics, Parseval, white noise, invariance, and scores made of them."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import special

from wx_eval import Chunk, Metric, Records, cell_weights, compare, evaluate, power_spectrum, scores
from wx_eval._spectra import (
    Coherence,
    LogSpectralDistance,
    PowerSpectrum,
    SpectralBias,
    SpectralRatio,
    zonal_spectrum,
)


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


def rows(placement: str, count: int) -> np.ndarray:
    """Latitudes from north to south."""
    if placement == "poles":
        return np.linspace(90, -90, count)
    if placement == "between":
        return 90 - 180 * (np.arange(count) + 0.5) / count
    return np.asarray(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(count)[0][::-1])))


def band_limited(
    latitude: np.ndarray, columns: int, l_max: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A field with random power up to l_max, and that power."""
    colatitude = np.deg2rad(90 - latitude)[:, None]
    longitude = 2 * np.pi * np.arange(columns)[None] / columns
    rng = np.random.default_rng(seed)
    field, power = np.zeros((len(latitude), columns)), np.zeros(l_max + 1)
    for degree in range(l_max + 1):
        for order in range(degree + 1):
            a = rng.standard_normal() + 1j * rng.standard_normal() * (order > 0)
            field += (1 if order == 0 else 2) * (a * harmonic(degree, order, colatitude, longitude)).real
            power[degree] += (1 if order == 0 else 2) * abs(a) ** 2
    return field, power


@pytest.mark.parametrize(
    ("placement", "count", "columns", "l_max"),
    [
        ("poles", 17, 32, 15),
        ("poles", 18, 33, 16),
        ("between", 16, 32, 15),
        ("between", 15, 31, 14),
        ("gauss", 16, 32, 15),
        ("gauss", 15, 64, 14),
    ],
)
def test_every_wave_that_a_grid_resolves_is_exact(
    placement: str, count: int, columns: int, l_max: int
) -> None:
    latitude = rows(placement, count)
    field, expected = band_limited(latitude, columns, l_max)
    got = power_spectrum(field, latitude)
    assert got.shape == (l_max + 1,)
    np.testing.assert_allclose(got, expected, rtol=1e-11)
    np.testing.assert_allclose(power_spectrum(field[::-1], latitude[::-1]), expected, rtol=1e-11)
    with pytest.raises(ValueError, match="l_max must lie within"):
        power_spectrum(field, latitude, l_max=l_max + 1)


def test_gaussian_quadrature_gives_parseval_for_any_product_it_integrates() -> None:
    latitude = rows("gauss", 32)
    field, power = band_limited(latitude, 64, 15)
    mean_square = float((cell_weights(latitude, "gauss") @ (field**2).mean(axis=1)) / 32)
    assert power_spectrum(field, latitude).sum() == pytest.approx(mean_square, rel=1e-12)
    assert power.sum() == pytest.approx(mean_square, rel=1e-12)


def test_white_noise_has_power_in_proportion_to_the_number_of_waves() -> None:
    """Values whose variance is one over their share of the area: E S_l = 2 l + 1 for resolved waves."""
    count, columns = 32, 64
    latitude = rows("gauss", count)
    weight = cell_weights(latitude, "gauss") / (count * columns)
    # Variance in inverse proportion to the area makes the noise white on the sphere.
    noise = np.random.default_rng(0).standard_normal((600, count, columns)) / np.sqrt(weight)[:, None]
    power = power_spectrum(noise, latitude).mean(axis=0)
    degree = np.arange(power.size)
    error = power / (2 * degree + 1) - 1
    assert np.abs(error).max() < 5 * np.sqrt(2 / 600)
    assert np.abs(error[20:]).max() < 5 * np.sqrt(2 / (600 * 41))


def test_large_tables_are_made_again_and_give_the_same_power(monkeypatch: pytest.MonkeyPatch) -> None:
    latitude = rows("poles", 33)
    fields = np.random.default_rng(3).standard_normal((5, 33, 64))
    kept = power_spectrum(fields, latitude)
    monkeypatch.setattr("wx_eval._spectra._TABLE_BYTES", 0)
    monkeypatch.setattr("wx_eval._spectra._BLOCK_NUMBERS", (1, 1))
    np.testing.assert_allclose(power_spectrum(fields, latitude), kept, rtol=1e-12)


@pytest.mark.parametrize("columns", [16, 15])
def test_zonal_power_adds_up_and_that_of_weatherbench2_does_not(columns: int) -> None:
    row = np.random.default_rng(1).standard_normal((4, columns))
    power = zonal_spectrum(row)
    np.testing.assert_allclose(power.sum(axis=-1), (row**2).mean(axis=-1), rtol=1e-13)
    wave = np.cos(2 * np.pi * 3 * np.arange(columns) / columns + 0.4)
    expected = np.zeros(columns // 2 + 1)
    expected[3] = 0.5
    np.testing.assert_allclose(
        zonal_spectrum(2 + wave), expected + 4 * (np.arange(expected.size) == 0), atol=1e-14
    )


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
        (np.linspace(90, -85, 33), (33, 64), {}, "pole to pole"),
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


HOUR = np.timedelta64(1, "h")
START = np.datetime64("2020-01-01T00", "ns")
LATITUDE, COLUMNS = rows("poles", 17), 32


def run(
    values: np.ndarray,
    truth: np.ndarray,
    metrics: list[Metric],
    latitude: np.ndarray = LATITUDE,
    longitude: np.ndarray | None = None,
    **options: object,
) -> Records:
    """Records of forecasts (T, M, H, W) against truths (T, H, W)."""
    times = START + 12 * HOUR * np.arange(len(truth))
    columns = np.arange(truth.shape[2]) * 360 / truth.shape[2]
    where = {"latitude": latitude, "longitude": columns if longitude is None else longitude}
    state = xr.DataArray(
        truth[:, None],
        {"time": times, "channel": ["z"], **where},
        ("time", "channel", "latitude", "longitude"),
    )
    chunks = [
        Chunk(init_time=t - 12 * HOUR, lead_time=12 * HOUR, channels=("z",), values=x[:, None])
        for t, x in zip(times, values, strict=True)
    ]
    return evaluate(chunks, state, model="a", metrics=metrics, **options)  # type: ignore[arg-type]


def score(records: Records, metric: Metric, region: str = "global") -> np.ndarray:
    found = scores(records, [metric])[metric.name].sel(model="a", region=region, channel="z")
    return np.asarray(found.values[0])


def ensemble(members: int = 4, times: int = 2) -> tuple[np.ndarray, np.ndarray]:
    fields = [
        [band_limited(LATITUDE, COLUMNS, 15, seed=100 * t + k)[0] for k in range(members + 1)]
        for t in range(times)
    ]
    return np.array(fields)[:, 1:], np.array(fields)[:, 0]


def test_spectra_of_members_are_averaged_and_never_that_of_their_mean() -> None:
    values, truth = ensemble()
    metrics = {
        "members": power_spectrum(values, LATITUDE).mean(axis=(0, 1)),
        "truth": power_spectrum(truth, LATITUDE).mean(axis=0),
        "mean": power_spectrum(values.mean(axis=1), LATITUDE).mean(axis=0),
        "error": power_spectrum(values.mean(axis=1) - truth, LATITUDE).mean(axis=0),
    }
    records = run(values, truth, [PowerSpectrum(of=of) for of in metrics])
    for of, expected in metrics.items():
        np.testing.assert_allclose(score(records, PowerSpectrum(of=of)), expected, rtol=1e-11)
        assert np.isnan(score(records, PowerSpectrum(of=of), "nh")).all()
    ratio = run(values, truth, [SpectralRatio(), SpectralRatio(of="mean")])
    for of in ("members", "mean"):
        np.testing.assert_allclose(
            score(ratio, SpectralRatio(of=of)), metrics[of] / metrics["truth"], rtol=1e-11
        )


def test_error_power_is_the_mean_square_error() -> None:
    latitude = rows("gauss", 32)
    x, y = (band_limited(latitude, 64, 15, seed=s)[0] for s in (1, 2))
    metrics: list[Metric] = [PowerSpectrum(of="error")]
    records = run(x[None, None], y[None], metrics, latitude, weights="gauss")
    expected = cell_weights(latitude, "gauss") @ ((x - y) ** 2).mean(axis=1) / 32
    assert score(records, metrics[0]).sum() == pytest.approx(float(expected), rel=1e-12)


def test_coherence_is_the_share_of_common_waves() -> None:
    _, truth = ensemble(members=1, times=1)
    for share in (1.0, 0.3, -1.0):
        forecast = (share * truth)[:, None]
        got = score(run(forecast, truth, [Coherence()]), Coherence())
        np.testing.assert_allclose(got, np.sign(share), rtol=1e-9)
    # One harmonic of the truth and another of the same degree: no phase in common.
    colatitude, longitude = np.deg2rad(90 - LATITUDE)[:, None], 2 * np.pi * np.arange(32)[None] / 32
    a, b = harmonic(9, 4, colatitude, longitude).real, harmonic(9, 4, colatitude, longitude).imag
    got = score(run((0.6 * a + 0.8 * b)[None, None], a[None], [Coherence()]), Coherence())
    assert got[9] == pytest.approx(0.6, rel=1e-11)
    # Means of cross power and power come before the ratio.
    two = run(np.stack([a, -a])[:, None], np.stack([a, 3 * a]), [Coherence()])
    assert score(two, Coherence())[9] == pytest.approx((1 - 3) / np.sqrt(2 * 10), rel=1e-11)


def test_zonal_spectra_follow_both_conventions() -> None:
    rng = np.random.default_rng(4)
    values, truth = rng.standard_normal((1, 3, 17, 32)), rng.standard_normal((1, 17, 32))
    weight = cell_weights(LATITUDE) / 17
    exact, band = PowerSpectrum(kind="zonal"), PowerSpectrum(kind="zonal", latitudes=(30.0, 60.0))
    wb2 = PowerSpectrum(kind="zonal-wb2", latitudes=(45.0, 45.0))
    records = run(values, truth, [exact, band, wb2])
    mean_square = float(weight @ (values[0] ** 2).mean(axis=(0, 2)))
    assert score(records, exact).sum() == pytest.approx(mean_square, rel=1e-12)
    chosen = (LATITUDE >= 30) & (LATITUDE <= 60)
    power = zonal_spectrum(values[0, :, chosen])
    expected = np.einsum("h,hmk->k", weight[chosen] / weight[chosen].sum() / 3, power)
    np.testing.assert_allclose(score(records, band), expected, rtol=1e-12)
    f = np.fft.rfft(values[0, :, 4], axis=-1) / 32
    circle = 2 * np.pi * 6367.5e3 * np.cos(np.deg2rad(45))
    theirs = circle * (np.abs(f) ** 2).mean(axis=0) * np.where(np.arange(17) == 0, 1, 2)
    np.testing.assert_allclose(score(records, wb2), theirs, rtol=1e-12)


def test_distances_and_bias_of_known_ratios() -> None:
    _, truth = ensemble(times=3)
    metrics: list[Metric] = [
        LogSpectralDistance(),
        SpectralBias(),
        LogSpectralDistance(first=4, last=6),
        LogSpectralDistance(kind="zonal"),
    ]
    records = run((0.5 * truth)[:, None], truth, metrics)
    for metric in metrics:
        sign = -1 if isinstance(metric, SpectralBias) else 1
        assert score(records, metric) == pytest.approx(sign * 10 * np.log10(4), rel=1e-10)
    assert score(run(truth[:, None], truth, metrics), metrics[1]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="spectra end at 15"):
        score(run(truth[:, None], truth, [metrics[0]]), LogSpectralDistance(last=40))


def test_smoother_forecasts_are_told_apart_by_their_spectra() -> None:
    rng = np.random.default_rng(7)
    truth = rng.standard_normal((20, 17, 32))
    values = rng.standard_normal((20, 3, 17, 32))
    smooth = (values + np.roll(values, 1, axis=-1)) / 2
    metrics: list[Metric] = [LogSpectralDistance(kind="zonal"), SpectralBias(kind="zonal")]
    sharp_records, smooth_records = (run(x, truth, metrics) for x in (values, smooth))
    cells = [c for c in compare(sharp_records, smooth_records, metrics).cells if c.region == "global"]
    assert len(cells) == 2
    assert all(cell.skill > 0 and cell.p_iid < 1e-6 for cell in cells)


def test_fields_with_missing_truth_have_no_spectrum() -> None:
    values, truth = ensemble()
    truth[1, 3, 3] = np.nan
    records = run(values, truth, [PowerSpectrum()])
    assert records.table[PowerSpectrum().statistics[0].id].null_count == len(records) - 1
    first = power_spectrum(values[0], LATITUDE).mean(axis=0)
    np.testing.assert_allclose(score(records, PowerSpectrum()), first, rtol=1e-11)


def test_spectral_metrics_come_back_from_files(tmp_path: object) -> None:
    metrics: list[Metric] = [
        PowerSpectrum(of="truth", kind="zonal", latitudes=(-30.0, 30.0)),
        SpectralRatio(),
        Coherence(of="mean"),
        LogSpectralDistance(last=9),
        SpectralBias(),
    ]
    run(*ensemble(), metrics).to_parquet(f"{tmp_path}/a.parquet")
    back = Records.from_parquet(f"{tmp_path}/a.parquet")
    assert set(scores(back).data_vars) >= {m.name for m in metrics}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerSpectrum("disc"), "kind must be one of"),
        (lambda: PowerSpectrum(latitudes=(0.0, 10.0)), 'kind="zonal"'),
        (lambda: PowerSpectrum("zonal", (20.0, 10.0)), "south, north"),
        (lambda: PowerSpectrum(of="median"), "of must be one of"),
        (lambda: LogSpectralDistance(first=4, last=3), "first <= last"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_limited_areas_have_no_spectrum_and_it_needs_the_globe() -> None:
    values, truth = ensemble(times=1)
    with pytest.raises(ValueError, match="around the globe"):
        run(values[..., :20], truth[..., :20], [PowerSpectrum()], longitude=np.arange(20) * 360 / 32)
    with pytest.raises(ValueError, match='add "global"'):
        run(values, truth, [PowerSpectrum()], regions=["nh"])


def test_a_real_t42_climatology_has_no_power_beyond_its_truncation(samples: Path) -> None:
    with xr.open_dataset(samples / "misc/ncep_june_climatology_t42.nc", decode_cf=False) as file:
        latitude, temperature = file["lat"].values, file["T"].values[0].astype(np.float64)
    # Temperature of a spectral model at T42, on 64 x 128 points at each level.
    power = power_spectrum(temperature, latitude)
    mean_square = np.einsum("h,lhw->l", cell_weights(latitude, "gauss"), temperature**2) / (64 * 128)
    np.testing.assert_allclose(power.sum(axis=-1), mean_square, rtol=1e-12)
    assert (power[:, 43:].sum(axis=-1) / power[:, 1:].sum(axis=-1)).max() < 1e-9
    mean = np.einsum("h,lhw->l", cell_weights(latitude, "gauss"), temperature) / (64 * 128)
    np.testing.assert_allclose(power[:, 0], mean**2, rtol=1e-12)
