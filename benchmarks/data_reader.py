"""Reading a training store: wx-data's reader against zarr-python, xarray and a copy in memory.

Run: ``python benchmarks/data_reader.py [--steps N] [--folder PATH]``. MB are decoded float32 (10^6 bytes);
"per CPU-second" counts all threads of the process and is what to compare on a busy machine.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from wx_data import Grid, Loader, RowRange, Store, TimeWindow, convert

SMALL = (*(f"{v}{p}" for v in "ztuvq" for p in (850, 500, 250)), "msl", "t2m", "tp")
LARGE = tuple(f"{v}{p}" for v in "ztuv" for p in (1000, 850, 500, 250, 100))


class Fields:
    """Red-spectrum fields packed to 16 bits, as GRIB would leave them."""

    def __init__(self, channels: Sequence[str], grid: Grid, steps: int) -> None:
        self.channels, self.grid = tuple(channels), grid
        self.times = np.datetime64("2001-01-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
        rng = np.random.default_rng(0)
        rows, columns = grid.shape
        shape = (len(self.channels), rows, columns // 2 + 1)
        wave = np.hypot(np.fft.fftfreq(rows)[:, None] * rows, np.arange(shape[-1])) + 1
        noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        field = np.fft.irfft2(noise * wave**-2.5, s=(rows, columns))
        self._field = field / field.std(axis=(1, 2), keepdims=True)

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        values = np.empty((len(times), len(channels), *self.grid.shape), np.float32)
        for place, stamp in enumerate(np.asarray(times)):
            shift = int(stamp.astype("datetime64[h]").astype(int) // 6)
            values[place] = np.round(np.roll(self._field, shift, axis=-1) * 4096) / 512 + 250
        coords = {"time": times, "channel": list(channels)}
        return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"))


def measure(work: Callable[[int], object], order: Sequence[int], repeat: int = 3) -> tuple[float, float]:
    """Best wall and CPU seconds per step, run off the main thread as a loader would."""
    found: list[tuple[float, float]] = []

    def run() -> None:
        for _ in range(repeat + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            for step in order:
                work(step)
            found.append((time.perf_counter() - wall, time.process_time() - cpu))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    walls, cpus = zip(*found[1:], strict=True)
    return min(walls) / len(order), min(cpus) / len(order)


def table(title: str, channels: Sequence[str], grid: Grid, steps: int, folder: Path) -> None:
    """Convert, read in random order, print."""
    path = folder / title.replace(" ", "-")
    begin = time.perf_counter()
    report = convert(Fields(channels, grid, steps), path, implausible="keep")
    seconds = time.perf_counter() - begin
    store, raw = Store(path), zarr.open_group(path, mode="r")["data"]
    dataset = xr.open_zarr(path, chunks=None)
    out = np.empty((len(channels), *grid.shape), np.float32)
    half = np.empty((len(channels), (grid.shape[0] + 1) // 2, grid.shape[1]), np.float32)
    other = np.ones_like(out)
    order = np.random.default_rng(0).permutation(steps).tolist()
    np.testing.assert_array_equal(store.read(store.times[:1]).values[0], raw[0])

    works: dict[str, Callable[[int], object]] = {
        "copy in memory": lambda _: np.copyto(out, other),
        "wx-data": lambda step: store.read_into(step, out),
        "wx-data, half of the rows": lambda step: store.read_into(step, half, rows=(0, half.shape[1])),
        "zarr-python": lambda step: raw[step],
        "xarray": lambda step: dataset["data"][step].values,
    }
    ratio, size = out.nbytes * steps / report.bytes, out.nbytes / 1e6
    shape = f"{len(channels)} x {grid.shape[0]} x {grid.shape[1]}, {size:.2f} MB a step, {steps} steps"
    print(f"\n{title}: {shape}, {ratio:.2f}x compressed, converted at {size * steps / seconds:.0f} MB/s")
    print(f"{'reader':28}{'us a step':>12}{'MB/s':>10}{'MB per CPU-s':>15}{'over zarr-python':>18}")
    results = {name: measure(work, order) for name, work in works.items()}
    base = results["zarr-python"][1]
    for name, (wall, cpu) in results.items():
        useful = half.nbytes / 1e6 if "half" in name else size
        gain = useful / cpu / (size / base)
        print(f"{name:28}{wall * 1e6:12.0f}{useful / wall:10.0f}{useful / cpu:15.0f}{gain:17.1f}x")


def loading(folder: Path, title: str, batch: int) -> None:
    """Batches after a first epoch, which fills buffers and cache: decoding every step, or from memory."""
    store = Store(folder / title.replace(" ", "-"))
    print(f"loader, batches of {batch}, window (-6, 0) -> 6 h{'MB/s':>13}{'MB per CPU-s':>15}")
    rows = store.grid.shape[0]
    for label, part in (("whole globe", None), ("a quarter of the rows, halo 2", RowRange(0, rows // 4, 2))):
        for kind, room in (("decoding", 0), ("cached", 4 << 30)):
            loader = Loader(store, TimeWindow((-6, 0), (6,)), batch_size=batch, rows=part, cache_bytes=room)
            for _ in loader:
                pass
            wall, cpu = time.perf_counter(), time.process_time()
            size = sum(4 * (b.x.numel() + b.y.numel()) for b in loader) / 1e6
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"  {label:34}{kind:10}{size / wall:12.0f}{size / cpu:15.0f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=400, help="of the small store; the large one has a tenth"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        table("5.6 degrees", SMALL, Grid.regular(33, 64), arguments.steps, folder)
        loading(folder, "5.6 degrees", 16)
        table("half degree", LARGE, Grid.regular(361, 720), max(4, arguments.steps // 10), folder)
        loading(folder, "half degree", 2)


if __name__ == "__main__":
    main()
