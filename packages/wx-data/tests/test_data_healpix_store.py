"""Training stores on HEALPix: the same guarantees as on rows of latitude, and the cells at their places."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from wx_data import (
    Forcings,
    ForecastWriter,
    Grid,
    Healpix,
    Loader,
    RegriddedSource,
    RowRange,
    SourceError,
    Statistics,
    Store,
    StoreError,
    TimeWindow,
    climatology,
    compute_statistics,
    convert,
    join,
    open_climatology,
    open_forecast,
    open_source,
    plan,
    repair,
    rounding_bounds,
)
from wx_data._cli import main
from wx_data._export import export
from wx_data._store import default_band_rows

NAMES = ("z500", "t850", "u850", "tp")
ORDERS = pytest.mark.parametrize("order", ["nested", "ring"])
CELLS = Healpix(4, "nested")


@pytest.fixture
def source(make_source):
    return make_source(steps=12, names=NAMES)


@pytest.fixture
def store(source, tmp_path) -> Store:
    convert(source, tmp_path / "store", grid=CELLS, band_rows=48)
    return Store(tmp_path / "store")


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data").iterdir()}


class WithGaps:
    """A source whose `t850` lacks the same points at every time, and `u850` all of them at one."""

    def __init__(self, inner) -> None:
        self._inner = inner
        self.channels, self.times, self.grid = inner.channels, inner.times, inner.grid

    def read(self, times, channels, /):
        found = self._inner.read(times, channels)
        found.loc[{"channel": "t850"}][:, 2:5, 3:9] = np.nan
        if "u850" in channels and self.times[3] in np.asarray(times):
            found.loc[{"channel": "u850", "time": self.times[3]}] = np.nan
        return found


# Geometry


@ORDERS
@pytest.mark.parametrize("nside", [1, 2, 16])
def test_faces_are_images_with_the_northern_corner_first(nside: int, order: str) -> None:
    healpy = pytest.importorskip("healpy")
    row, column = np.meshgrid(np.arange(nside), np.arange(nside), indexing="ij")
    # healpy's x runs from the southern to the eastern corner, its y from the southern to the western one.
    expected = [
        healpy.xyf2pix(nside, nside - 1 - row, nside - 1 - column, face, nest=order == "nested")
        for face in range(12)
    ]
    faces = Healpix(nside, order).faces
    np.testing.assert_array_equal(faces, expected)
    assert sorted(faces.ravel()) == list(range(12 * nside**2))


@ORDERS
def test_faces_meet_where_dlwp_hpx_pads_them(order: str) -> None:
    """The lower edge of a northern face lies along the upper edge of its neighbour on the equator."""
    grid = Healpix(8, order)
    phi, lam = np.deg2rad(grid.latitude)[grid.faces], np.deg2rad(grid.longitude)[grid.faces]
    xyz = np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), -1)
    spacing = np.sqrt(4 * np.pi / grid.shape[0])
    for face in range(4):
        below, right = 4 + face, 4 + (face + 1) % 4
        assert np.linalg.norm(xyz[face, -1] - xyz[below, 0], axis=-1).max() < 1.5 * spacing
        assert np.linalg.norm(xyz[face, :, -1] - xyz[right, :, 0], axis=-1).max() < 1.5 * spacing
        south = 8 + face
        assert np.linalg.norm(xyz[below, :, -1] - xyz[south, :, 0], axis=-1).max() < 1.5 * spacing


@ORDERS
@pytest.mark.parametrize("share", [0.1, 0.7, 0.99])
def test_the_nearest_present_cell_against_brute_force(order: str, share: float) -> None:
    grid = Healpix(8, order)
    missing = np.random.default_rng(1).uniform(size=grid.shape) < share
    phi, lam = np.deg2rad(grid.latitude), np.deg2rad(grid.longitude)
    xyz = np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)))
    closeness = xyz[:, missing].T @ xyz[:, ~missing]
    found = grid.nearest_present(missing)
    assert not missing[found].any()
    np.testing.assert_allclose((xyz[:, missing] * xyz[:, found]).sum(0), closeness.max(axis=1), atol=1e-12)
    with pytest.raises(ValueError, match="every cell is missing"):
        grid.nearest_present(np.ones(grid.shape, dtype=bool))


@pytest.mark.parametrize(("nside", "channels"), [(1, 1), (4, 3), (32, 75), (64, 75), (256, 8), (256, 75)])
def test_inner_chunks_are_parts_of_base_pixels(nside: int, channels: int) -> None:
    cells = 12 * nside**2
    band = default_band_rows(channels, Healpix(nside, "nested"))
    assert cells % band == 0
    per_face = nside**2
    assert band % per_face == 0 or per_face % band == 0
    size = 4 * channels * band
    assert size <= 8 << 20
    assert band == cells or size >= 1 << 20


# Conversion


@ORDERS
def test_values_are_those_of_the_regridded_source(source, tmp_path, order: str) -> None:
    grid = Healpix(4, order)
    report = convert(source, tmp_path / "s", grid=grid, band_rows=50)  # the last chunk is padded
    store, wanted = Store(tmp_path / "s"), RegriddedSource(source, grid)
    assert report.complete
    assert store.grid == grid
    assert store.codec.bands == 4
    assert (store.verify("checksum").ok, store.channels) == (True, NAMES)
    expected, found = wanted.read(source.times, NAMES), store.read(source.times)
    xr.testing.assert_identical(found.drop_attrs(deep=False), expected.drop_attrs(deep=False))
    assert found.shape == (12, 4, 192)
    for name, field in wanted.statics.items():
        np.testing.assert_array_equal(store.statics[name], field)
    assert store.attributes["provenance"]["regridding"] == "bilinear"
    assert f"4 channels, {order} Healpix of nside 4" in repr(store)


@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_ranges_of_cells_and_channels(source, tmp_path, codec: str) -> None:
    # Above 1 MiB the reader goes chunk by chunk instead of taking the whole file.
    grid = Healpix(128, "nested")
    times = source.times[:1]
    convert(source, tmp_path / "s", grid=grid, times=times, codec=codec, implausible="keep")
    store = Store(tmp_path / "s")
    assert (store.codec.bands, store.codec.band) == (3, 4 * 128**2)
    whole = store.read(times).values[0]
    np.testing.assert_array_equal(whole, RegriddedSource(source, grid).read(times).values[0])
    for start, stop in ((0, 5), (65530, 65540), (100, 196608), (0, 196608)):
        out = np.zeros((2, stop - start), dtype=np.float32)
        store.read_into(0, out, rows=(start, stop), channels=[3, 1])
        np.testing.assert_array_equal(out, whole[[3, 1], start:stop])


def test_an_interrupted_conversion_goes_on_to_the_same_bytes(source, tmp_path) -> None:
    convert(source, tmp_path / "whole", grid=CELLS, rounding={"t850": 0.01})

    class Stops:
        def __init__(self, inner) -> None:
            self.inner, self.left = inner, 5
            self.channels, self.times, self.grid = inner.channels, inner.times, inner.grid
            self.statics, self.provenance = inner.statics, inner.provenance

        def read(self, times, channels, /):
            self.left -= len(times)
            if self.left < 0:
                raise OSError("the network is gone")
            return self.inner.read(times, channels)

    out = tmp_path / "s"
    for part in ((0, 3), (1, 3)):
        convert(source, out, grid=CELLS, rounding={"t850": 0.01}, part=part)
    with pytest.raises(StoreError, match="8 of 12 steps are done"):
        Store(out)
    stopping = Stops(source)
    stopping.left = 2
    with pytest.raises(OSError, match="network"):
        convert(stopping, out, grid=CELLS, rounding={"t850": 0.01}, part=(2, 3))
    with pytest.raises(StoreError, match=r"grid was 'nested Healpix of nside 4, healpix-nested-4'"):
        convert(source, out, grid=Healpix(4, "ring"), rounding={"t850": 0.01})
    report = convert(source, out, grid=CELLS, rounding={"t850": 0.01}, part=(2, 3))
    assert report.complete
    assert files(out) == files(tmp_path / "whole")
    assert report.rounding[0].largest_error <= 0.01
    assert report.rounding[0].largest_error > 0
    exact = RegriddedSource(source, CELLS).read(source.times, ["t850"]).values
    assert np.abs(Store(out).read(source.times, ["t850"]).values - exact).max() <= 0.01


def test_damage_is_found_and_mended(store: Store, source) -> None:
    before = files(store.path)
    shard = store.path / "data" / "c.7.0.0"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    (store.path / "data" / "c.2.0.0").unlink()
    assert [failure.step for failure in store.verify("checksum").failures] == [2, 7]
    with pytest.raises(StoreError, match=r"2001-01-02T18.*data/c\.7\.0\.0.*checksum"):
        store.read(store.times[[7]])
    with pytest.raises(SourceError, match=r"the source's grid is \(9, 16\)"):
        repair(store, source)
    assert len(repair(store, RegriddedSource(source, CELLS)).repaired) == 2
    assert files(store.path) == before


@pytest.mark.parametrize("rule", ["mean", "nearest", 273.0])
def test_missing_values_are_replaced(make_source, tmp_path, rule) -> None:
    source = WithGaps(make_source(steps=2, names=("z500", "t850"), grid=Grid.regular(33, 64)))
    raw = RegriddedSource(source, CELLS).read(source.times, ["t850"]).values[:, 0]
    missing = np.isnan(raw)
    assert 0 < missing.sum() < missing.size / 4
    with pytest.raises(SourceError, match=r"channel t850 .* missing values"):
        convert(source, tmp_path / "refused", grid=CELLS)
    convert(source, tmp_path / "s", grid=CELLS, nan={"t850": rule})
    found = Store(tmp_path / "s").read(source.times, ["t850"]).values[:, 0]
    expected = raw.copy()
    for field, gone in zip(expected, missing, strict=True):
        if rule == "mean":
            field[gone] = np.mean(field[~gone], dtype=np.float64)
        else:
            field[gone] = field[CELLS.nearest_present(gone)] if rule == "nearest" else rule
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_store_is_a_source_and_stores_are_joined(store: Store, tmp_path) -> None:
    convert(store, tmp_path / "subset", channels=["u850", "z500"], period=("2001-01-01", "2001-01-01"))
    subset = Store(tmp_path / "subset")
    assert subset.grid == CELLS
    np.testing.assert_array_equal(
        subset.read(subset.times).values, store.read(subset.times, ["u850", "z500"]).values
    )
    rest = tmp_path / "rest"
    convert(store, rest, channels=["u850", "z500"], period=("2001-01-02", "2001-01-03"))
    joined = join([subset, Store(rest)])
    assert joined.read(joined.times).dims == ("time", "channel", "cell")
    np.testing.assert_array_equal(
        joined.read(joined.times).values, store.read(store.times, ["u850", "z500"]).values
    )
    with pytest.raises(ValueError, match="lies on a nested Healpix of nside 4, from which nothing is"):
        convert(store, tmp_path / "finer", grid=Healpix(8, "nested"))
    with pytest.raises(ValueError, match="lies on a nested Healpix"):
        convert(store, tmp_path / "rows", grid=Grid.regular(9, 16))


def test_statics_must_lie_on_the_stores_grid(source, tmp_path) -> None:
    wanted = r"'lsm' has shape \(9, 16\), the store's grid \(192,\)"
    with pytest.raises(ValueError, match=wanted):
        convert(source, tmp_path / "s", grid=CELLS, statics={"lsm": source.statics["lsm"]})


def test_plan_says_what_convert_does(source, tmp_path) -> None:
    found = plan(source, tmp_path / "s", grid=CELLS, sample=12)
    assert found.grid == (192,)
    assert found.decoded_bytes == 4 * 12 * 4 * 192
    assert found.disk_bytes == convert(source, tmp_path / "s", grid=CELLS).bytes


def test_export_is_refused(store: Store, tmp_path) -> None:
    with pytest.raises(StoreError, match=r"nested Healpix of nside 4; export writes latitudes"):
        export(store, tmp_path / "out")


def test_real_files_against_scipy(samples: Path, tmp_path) -> None:
    """Three files of ERA-Interim, one per variable, as one source; scipy interpolates."""
    interpolate = pytest.importorskip("scipy.interpolate")
    paths = [samples / "era_interim" / f"2005-01-23-0000-{name}.nc" for name in "uvt"]
    source = open_source(paths)
    assert {name[0] for name in source.channels} == {"u", "v", "t"}
    raw = source.read(source.times).values[0].astype(np.float64)
    south, east = source.grid.latitude[::-1], np.append(source.grid.longitude, 360.0)
    assert (south[0], south[-1]) == (-90.0, 90.0)
    grid = Healpix(16)
    convert(source, tmp_path / "s", grid=grid)
    found = Store(tmp_path / "s").read(source.times).values[0]
    for field, cells in zip(raw, found, strict=True):
        periodic = np.concatenate((field[::-1], field[::-1, :1]), axis=1)
        peer = interpolate.RegularGridInterpolator((south, east), periodic)
        expected = peer(np.stack((grid.latitude, grid.longitude), axis=1))
        np.testing.assert_allclose(cells, expected, rtol=1e-6, atol=1e-5)


# What others see


@ORDERS
def test_plain_xarray_and_zarr_open_it(source, tmp_path, order: str) -> None:
    zarr = pytest.importorskip("zarr")
    convert(source, tmp_path / "s", grid=Healpix(4, order))
    store = Store(tmp_path / "s")
    dataset = xr.open_zarr(tmp_path / "s", chunks=None)
    data = dataset["data"]
    assert data.dims == ("time", "channel", "cell")
    np.testing.assert_array_equal(data.values, store.read(store.times).values)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "s", mode="r")["data"][3], data.values[3])
    assert set(data.coords) >= {"time", "channel", "cell", "latitude", "longitude", "crs", "units"}
    assert data.sel(channel="t850", cell=17).isel(time=2) == store.read(store.times[2:3], ["t850"])[0, 0, 17]
    assert dataset["static"].dims == ("static_channel", "cell")
    # CF-1.13, section "HEALPix".
    assert dataset.attrs["Conventions"] == "CF-1.13"
    mapping = dataset[data.attrs.get("grid_mapping") or data.encoding["grid_mapping"]]
    assert mapping.attrs["grid_mapping_name"] == "healpix"
    assert (mapping.attrs["refinement_level"], mapping.attrs["indexing_scheme"]) == (2, order)
    assert (mapping.attrs["healpix_nside"], mapping.attrs["healpix_order"]) == (4, order)
    assert dataset["cell"].attrs["standard_name"] == "healpix_index"
    for name in ("latitude", "longitude"):
        assert dataset[name].attrs["standard_name"] == name
        assert "axis" not in dataset[name].attrs
    healpy = pytest.importorskip("healpy")
    east, north = healpy.pix2ang(4, np.arange(192), nest=order == "nested", lonlat=True)
    np.testing.assert_allclose(dataset["latitude"], north, atol=1e-11)
    np.testing.assert_allclose(dataset["longitude"], east, atol=1e-11)


# Statistics


def test_statistics_against_numpy(make_source, tmp_path) -> None:
    source = WithGaps(make_source(steps=12, names=("z500", "t850", "u850")))
    convert(source, tmp_path / "s", grid=CELLS, nan={"t850": "keep", "u850": "keep"})
    store = Store(tmp_path / "s")
    found = compute_statistics(store, leads=(6, 12))
    fields = store.read(store.times).values.astype(np.float64)
    for lag, moments in ((0, found.state), (1, found.residual(6)), (2, found.residual(12))):
        values = fields[lag:] - fields[:-lag] if lag else fields
        for place in range(3):
            # Each field has weight one, each present cell of it the same share.
            flat = [one[~np.isnan(one)] for one in values[:, place]]
            flat = [one for one in flat if one.size]
            mean = np.mean([one.mean() for one in flat])
            square = np.mean([((one - mean) ** 2).mean() for one in flat])
            np.testing.assert_allclose(moments.mean[place], mean, rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(moments.std[place], np.sqrt(square), rtol=1e-12)
            assert moments.minimum[place] == min(one.min() for one in flat)
    assert Statistics.load(store.path).grid == "healpix-nested-4"
    bounds = rounding_bounds(found.select(["z500"]), 0.01)
    assert bounds["z500"] == pytest.approx(0.01 * found.residual(6).std[0])
    with pytest.raises(StoreError, match="another grid"):
        found.check(store.channels, Healpix(4, "ring"))


def test_climatology_against_numpy(make_source, tmp_path) -> None:
    source = make_source(steps=4 * 366, names=("z500", "t850"), start="2004-01-01")
    convert(source, tmp_path / "s", grid=Healpix(2, "nested"), band_rows=10)
    store = Store(tmp_path / "s")
    fields = store.read(store.times).values.reshape(366, 4, 2, 48).astype(np.float64)
    per_band = 8 * (366 + 366) * 2 * 10
    found = climatology(store, window=3, weights="triangular", memory_bytes=2 * per_band)
    expected = (np.roll(fields, 1, 0) + 2 * fields + np.roll(fields, -1, 0)) / 4
    # The last two days also weigh those of the year after, which test_data_climatology.py works out.
    np.testing.assert_allclose(found.values[:-2], expected[:-2], rtol=1e-6)
    assert np.isfinite(found.values).all()
    assert found.dims == ("dayofyear", "hour", "channel", "cell")
    assert {"latitude", "longitude", "crs"} <= set(found.coords)
    assert open_climatology(Store(store.path)).sel(channel="t850").shape == (366, 4, 48)


# Training


def test_batches_equal_direct_reads(store: Store) -> None:
    statistics = compute_statistics(store)
    loader = Loader(store, TimeWindow((-6, 0), (6,)), batch_size=3, normalise=statistics, seed=2)
    mean, std = (values.astype(np.float32)[:, None] for values in (statistics.mean, statistics.std))
    seen = []
    for batch in loader:
        assert tuple(batch.x.shape) == (3, 2, 4, 192)
        assert tuple(batch.y.shape) == (3, 1, 4, 192)
        assert tuple(batch.static.shape) == (2, 192)
        states = torch.cat((batch.x, batch.y), dim=1)
        for state, times in zip(states, batch.valid_time, strict=True):
            direct = (store.read(times).values - mean) / std
            np.testing.assert_allclose(state, direct, rtol=1e-5, atol=1e-5)
            seen.append(times[1])
    assert len(set(seen)) == 9
    faces = batch.x[..., store.grid.faces]
    assert tuple(faces.shape) == (3, 2, 4, 12, 4, 4)
    latitude = torch.from_numpy(np.array(store.grid.latitude))[store.grid.faces]
    assert latitude[0, 0, 0] == store.grid.latitude.max()


def test_ranges_of_ranks_make_up_the_whole(make_source, tmp_path) -> None:
    source = WithGaps(make_source(steps=8, names=("z500", "t850", "u850")))
    source.statics = make_source(steps=1).statics
    convert(source, tmp_path / "s", grid=CELLS, band_rows=48, nan={"t850": "keep", "u850": "keep"})
    store = Store(tmp_path / "s")
    names = ["cos_zenith", "toa_incident_solar_radiation", "day_progress", "latlon", "orography"]
    settings = {
        "batch_size": 2,
        "missing": "fill",
        "fill": {"t850": 250.0},
        "forcings": Forcings(store.grid, names, store.statics),
        "drop_last": False,
    }
    window = TimeWindow((0,), (6, 12))
    whole = list(Loader(store, window, **settings))
    ranges = [RowRange(0, 48), RowRange(48, 100), RowRange(100, 192)]
    parts = [list(Loader(store, window, rows=rows, **settings)) for rows in ranges]
    for batch, *pieces in zip(whole, *parts, strict=True):
        for name in ("x", "y", "forcing", "static", "mask", "x_mask"):
            joined = torch.cat([getattr(piece, name) for piece in pieces], dim=-1)
            torch.testing.assert_close(joined, getattr(batch, name), rtol=0, atol=0, equal_nan=True)
        assert not batch.x[~batch.x_mask][:, None].isinf().any()
    absent = torch.cat([~batch.x_mask for batch in whole])
    assert absent[:, :, 2].all(dim=-1).sum() == 1  # the whole field at one time
    assert 0 < absent[:, :, 1].float().mean() < 0.5
    assert (torch.cat([batch.x for batch in whole])[:, :, 1][absent[:, :, 1]] == 250.0).all()


def test_a_rank_reads_only_its_chunks(store: Store) -> None:
    shard = store.path / "data" / "c.0.0.0"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2 + 40] ^= 1  # in the third of four chunks
    shard.write_bytes(raw)
    field = np.zeros((4, 96), dtype=np.float32)
    store.read_into(0, field, rows=(0, 96))
    np.testing.assert_array_equal(field[:, 0] != 0, [True] * 4)
    with pytest.raises(StoreError, match="checksum"):
        store.read_into(0, field, rows=(96, 192))


def test_a_halo_of_cells_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"nested Healpix of nside 4 has no rows for a halo.*halo=0"):
        Loader(store, TimeWindow((0,), (6,)), batch_size=1, rows=RowRange(0, 48, halo=2))
    with pytest.raises(ValueError, match="does not lie within a grid of 192 rows"):
        Loader(store, TimeWindow((0,), (6,)), batch_size=1, rows=RowRange(0, 193))


@ORDERS
def test_forcings_stand_at_the_cells(order: str) -> None:
    """Every cell by itself is a grid of one point."""
    grid = Healpix(8, order)
    names = ["cos_zenith", "toa_incident_solar_radiation", "day_progress", "year_progress", "latlon"]
    times = np.datetime64("2021-03-20T00", "ns") + np.arange(0, 48, 5) * np.timedelta64(1, "h")
    fields = Forcings(grid, names, interval=6).at(times)
    assert tuple(fields.shape) == (10, 10, 768)
    for cell in np.random.default_rng(0).choice(768, 25, replace=False):
        point = Grid(grid.latitude[[cell]], grid.longitude[[cell]])
        alone = Forcings(point, names, interval=6).at(times)[..., 0, 0]
        torch.testing.assert_close(fields[..., cell], alone, rtol=1e-5, atol=1e-6)
    # On cells of equal area the plain mean is the sphere's: a quarter of the solar constant over a day.
    day = np.datetime64("2021-03-21T00", "ns") + np.arange(24) * np.timedelta64(1, "h")
    power = Forcings(grid, ["toa_incident_solar_radiation"]).at(day).double().mean() / 3600
    assert power == pytest.approx(1361 / 4, rel=0.01)
    surface = np.random.default_rng(1).standard_normal(grid.shape) + 9
    orography = Forcings(grid, ["orography"], {"z_surface": surface}).at(times[:1])[0, 0].double()
    assert abs(orography.mean()) < 1e-6
    assert (orography**2).mean() == pytest.approx(1, rel=1e-5)


# Forecasts


@pytest.mark.parametrize("unit", ["lead", "member"])
def test_forecasts_are_written_and_reopened(tmp_path, unit: str) -> None:
    inits = np.array(["2021-01-01", "2021-01-02"], "datetime64[ns]")
    declared = {
        "init_times": inits,
        "lead_times": [6, 12],
        "members": 2,
        "channels": ["z500", "t850"],
        "unit": unit,
    }
    path = tmp_path / "f"
    writer = ForecastWriter.create(path, grid=CELLS, **declared)
    values = np.random.default_rng(0).standard_normal((2, 2, 2, 2, 192)).astype(np.float32)
    for init, lead, *member in writer.missing():
        field = torch.from_numpy(values[int(init == inits[1]), int(lead == 12)])
        chosen = {"member": member[0]} if member else {}
        writer.write(init, lead, field[member[0]] if member else field, **chosen)
    with pytest.raises(ValueError, match=r"must have shape \((2, )?2, 192\); got \((2, )?192, 2\)"):
        writer.write(inits[0], 6, np.zeros((2, 192, 2) if unit == "lead" else (192, 2)), **chosen)
    bad = values[0, 0].copy()
    bad[0, 1, 5] = np.nan
    with pytest.raises(ValueError, match=r"1 values are not finite, .* channels t850"):
        writer.write(inits[0], 6, bad if unit == "lead" else bad[0], **({"member": 0} if chosen else {}))
    with pytest.raises(StoreError, match="declared with other grid"):
        ForecastWriter.create(path, grid=Healpix(4, "ring"), **declared)
    writer.finalise()
    for dataset in (open_forecast(path), xr.open_zarr(path, chunks=None)):
        forecast = dataset["forecast"]
        assert forecast.dims == ("init_time", "lead_time", "member", "channel", "cell")
        np.testing.assert_array_equal(forecast.values, values)
        assert {"valid_time", "latitude", "longitude", "crs"} <= set(forecast.coords)
        np.testing.assert_array_equal(forecast["latitude"], CELLS.latitude)
        assert dataset["crs"].attrs["refinement_level"] == 2
    assert ForecastWriter(path).layout.grid == CELLS


# From a shell


def test_the_command_line(tmp_path, capsys) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "cells")
    synth = ["--channels", "t850,msl,sst", "--grid", "17x32", "--stop", "2001-01-02", "--no-progress"]
    assert main(["synth", raw, *synth]) == 0
    capsys.readouterr()
    assert main(["plan", raw, out, "--grid", "healpix:4"]) == 0
    assert "3 channels, 192: " in capsys.readouterr().out
    assert main(["convert", raw, out, "--grid", "healpix:4", "--no-progress"]) == 0
    store = Store(out)
    assert store.grid == CELLS
    expected = RegriddedSource(Store(raw), CELLS).read(store.times).values
    np.testing.assert_array_equal(store.read(store.times).values, expected)
    capsys.readouterr()
    assert main(["inspect", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["grid"] == [192]
    assert found["latitude"] == [store.grid.latitude.max(), store.grid.latitude.min()]
    assert main(["inspect", out]) == 0
    assert "grid       nested Healpix of nside 4, latitude 78.2841 to -78.2841" in capsys.readouterr().out
    for command in (["stats", out], ["verify", out, "--checksum"], ["bench", out, "--steps", "4"]):
        assert main([*command, "--no-progress"]) == 0
    (tmp_path / "cells" / "data" / "c.3.0.0").unlink()
    assert main(["repair", out, raw, "--grid", "healpix:4", "--no-progress"]) == 0
    np.testing.assert_array_equal(store.read(store.times).values, expected)
    capsys.readouterr()
    assert main(["export", out, str(tmp_path / "e"), "--no-progress"]) == 1
    assert "export writes latitudes and longitudes" in capsys.readouterr().err
    for text in ("healpix:3", "healpix:", "healpix"):
        with pytest.raises(SystemExit):
            main(["convert", raw, str(tmp_path / "no"), "--grid", text])
        assert "healpix:64" in capsys.readouterr().err or text == "healpix"
