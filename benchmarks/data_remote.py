"""Reading ARCO-ERA5's layout from a server with latency: requests in flight, the cache, and xarray beside it.

Prints one table: wall and CPU time, requests and bytes of one state of 73 channels, from a file server on
loopback that waits before each answer. The store is ARCO in small: 37 levels in one chunk per step, format 2,
blosc-lz4, 16-bit fields. "open" is the time to open a store whose hourly axis begins in 1900.

    OMP_NUM_THREADS=1 python benchmarks/data_remote.py --rows 91 --columns 180 --delay-ms 60
"""

import argparse
import http.server
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

LEVELS = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100, 125, 150, 175, 200, 225, 250, 300, 350, 400, 450, 500, 550)
LEVELS += (600, 650, 700, 750, 775, 800, 825, 850, 875, 900, 925, 950, 975, 1000)
WIND = ("10m_{}_component_of_wind", "100m_{}_component_of_wind")
SURFACE = {
    **{name.format(c): ("m s**-1", 0.0, 8.0) for name in WIND for c in "uv"},
    "2m_temperature": ("K", 280.0, 10.0),
    "surface_pressure": ("Pa", 9.6e4, 1e3),
    "mean_sea_level_pressure": ("Pa", 1.01e5, 1e3),
    "total_column_water_vapour": ("kg m**-2", 30.0, 5.0),
}
UPPER = {
    "u_component_of_wind": ("m s**-1", 0.0, 20.0),
    "v_component_of_wind": ("m s**-1", 0.0, 20.0),
    "geopotential": ("m**2 s**-2", 5e4, 1e3),
    "temperature": ("K", 250.0, 10.0),
    "specific_humidity": ("kg kg**-1", 5e-3, 1e-3),
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, after a delay."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    delay = 0.0

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        time.sleep(self.delay)
        super().do_GET()


def serve(folder: str, delay: float, port: Any) -> None:
    handler = partial(type("Delayed", (Handler,), {"delay": delay}), directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.send(server.server_address[1])
        server.serve_forever()


def field(rng: np.random.Generator, shape: tuple[int, ...], mean: float, scale: float) -> np.ndarray:
    """Smooth along both axes, with 16 significant bits."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = noise.cumsum(-1).cumsum(-2)
    smooth *= scale / max(float(smooth.std()), 1e-9)
    quantum = 2.0 ** np.ceil(np.log2(12 * scale / 65536))
    return (mean + np.round(smooth / quantum) * quantum).astype(np.float32)


def build(folder: Path, rows: int, columns: int, steps: int) -> None:
    rng = np.random.default_rng(0)
    times = np.datetime64("2019-01-01", "ns") + np.arange(steps) * np.timedelta64(1, "h")
    coords = {
        "time": times,
        "level": list(LEVELS),
        "latitude": np.linspace(90, -90, rows),
        "longitude": np.arange(columns) * 360 / columns,
    }
    dataset = xr.Dataset(
        coords=coords, attrs={"valid_time_start": "1940-01-01", "valid_time_stop": "2019-12-31"}
    )
    for name, (units, mean, scale) in UPPER.items():
        values = field(rng, (steps, len(LEVELS), rows, columns), mean, scale)
        dataset[name] = (("time", "level", "latitude", "longitude"), values, {"units": units})
        dataset[name].encoding = {"chunks": (1, len(LEVELS), rows, columns)}
    for name, (units, mean, scale) in SURFACE.items():
        values = field(rng, (steps, rows, columns), mean, scale)
        dataset[name] = (("time", "latitude", "longitude"), values, {"units": units})
        dataset[name].encoding = {"chunks": (1, rows, columns)}
    dataset.to_zarr(folder / "full_37.zarr-v3", zarr_format=2, consolidated=True)
    build_axis(folder / "axis.zarr-v3", dataset)


def build_axis(folder: Path, like: xr.Dataset) -> None:
    """1.1 million hours and no fields."""
    hours = ("time", np.arange(1_100_000), {"units": "hours since 1900-01-01"})
    axis = like[["latitude", "longitude"]].assign_coords(time=hours)
    axis["time"].encoding = {"chunks": (1_100_000,)}
    axis.to_zarr(folder, zarr_format=2, consolidated=False)
    group = zarr.open_group(folder, zarr_format=2)
    grid = (axis.sizes["latitude"], axis.sizes["longitude"])
    array = group.create_array(
        "2m_temperature", shape=(1_100_000, *grid), chunks=(1, *grid), dtype="f4", fill_value=np.nan
    )
    array.attrs.update({"_ARRAY_DIMENSIONS": ["time", "latitude", "longitude"], "units": "K"})
    zarr.consolidate_metadata(folder, zarr_format=2)


def timed(work: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Median wall seconds and CPU seconds a step."""
    wall, cpu = [], []
    for step in range(steps):
        begun, used = time.perf_counter(), time.process_time()
        work(step)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return float(np.median(wall)), float(np.median(cpu))


def one_step(source: Any, step: int) -> object:
    return source.read(source.times[step : step + 1])


def with_xarray(url: str, names: tuple[str, ...]) -> Callable[[int], object]:
    """What a user writes without wx-data: one variable after another, then the levels."""
    from obstore.store import HTTPStore
    from zarr.storage import ObjectStore

    from wx_data import channel

    store = ObjectStore(HTTPStore(url, client_options={"allow_http": True}), read_only=True)
    dataset = xr.open_zarr(store, chunks=None, consolidated=True, zarr_format=2)
    specs = [channel(name) for name in names]
    levels = sorted({spec.level for spec in specs if spec.level is not None})

    def read(step: int) -> object:
        found = {name: dataset[name].isel(time=step) for name in SURFACE}
        arrays = [array.values[None] for array in found.values()]
        arrays += [dataset[name].isel(time=step).sel(level=levels).values for name in UPPER]
        return np.concatenate(arrays)

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=91)
    parser.add_argument("--columns", type=int, default=180)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--delay-ms", type=float, default=60.0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), args.rows, args.columns, args.steps)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        server = context.Process(target=serve, args=(folder, args.delay_ms / 1e3, theirs), daemon=True)
        server.start()
        try:
            compare(f"http://127.0.0.1:{ours.recv()}", Path(folder), args)
        finally:
            server.kill()


def compare(url: str, folder: Path, args: argparse.Namespace) -> None:
    from wx_data import PRESETS, open_source
    from wx_data._remote import Remote

    names = PRESETS["sfno73"]
    print(f"{args.rows} x {args.columns}, {len(names)} channels, {args.delay_ms:g} ms before each answer")
    print(f"{'reader':34} {'wall s':>8} {'CPU s':>8} {'requests':>9} {'MB':>7}")
    store = f"{url}/full_37.zarr-v3"
    wall, cpu = timed(with_xarray(store, names), args.steps)
    print(f"{'xarray + obstore':34} {wall:8.3f} {cpu:8.3f}")
    for label, remote in (
        *((f"wx-data, {n} in flight", Remote(requests=n)) for n in (1, 4, 8)),
        ("wx-data, 8 in flight, filling cache", Remote(cache=folder / "cache")),
        ("wx-data, from cache", Remote(cache=folder / "cache")),
    ):
        source = open_source(store, "arco", channels=names, remote=remote)
        opening = source.traffic
        wall, cpu = timed(partial(one_step, source), args.steps)
        requests = (source.traffic.requests - opening.requests) / args.steps
        megabytes = (source.traffic.bytes - opening.bytes) / args.steps / 1e6
        print(f"{label:34} {wall:8.3f} {cpu:8.3f} {requests:9.1f} {megabytes:7.2f}")
    used = time.process_time()
    count = open_source(f"{url}/axis.zarr-v3", "arco").times.size
    print(f"{f'open, {count:,} hourly times':34} {'':8} {time.process_time() - used:8.3f}")


if __name__ == "__main__":
    main()
