"""Reading one time step after another: wx-data against tensorstore, zarr-python and xarray.

Run: ``python benchmarks/data_reader.py [--steps N] [--rounds N] [--folder PATH]`` on Linux, with the package
tensorstore. Steps are read in random order from a warm page cache; the readers take turns in one process and
the best round counts. MB are decoded float32 (10^6 bytes); CPU seconds are those of all threads. Peers read
our store ("bands") and the layouts that suit them best: one unsharded chunk a step, without checksums
("whole") and with crc32c ("checked"), which our store always has. The bars compare with the best of all.
"""

import argparse
import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from wx_data import Grid, Store, convert

CHANNELS = tuple(f"{v}{p}" for v in "ztuv" for p in (1000, 850, 500, 250, 100))
GRID = Grid.regular(361, 720)
SIZE = 4 * len(CHANNELS) * GRID.shape[0] * GRID.shape[1]
Pass = Callable[[Sequence[int]], object]
Key = tuple[str, str]
Found = dict[str, float]


class Fields:
    """Red spectrum, 2 % noise, AR(1) in time; packed to 16 bits with a binary scale, as GRIB leaves them."""

    def __init__(self, steps: int) -> None:
        self.channels, self.grid = CHANNELS, GRID
        self.times = np.datetime64("2001-01-01", "ns") + np.arange(steps) * np.timedelta64(6, "h")
        self._rng = np.random.default_rng(0)
        self._state = self._noise()

    def _noise(self) -> np.ndarray:
        rows, columns = self.grid.shape
        shape = (len(self.channels), rows, columns // 2 + 1)
        wave = np.hypot(np.fft.fftfreq(rows)[:, None] * rows, np.arange(shape[-1])) + 1
        noise = self._rng.standard_normal(shape) + 1j * self._rng.standard_normal(shape)
        field = np.fft.irfft2(noise * wave**-2.5, s=(rows, columns))
        return field / field.std(axis=(1, 2), keepdims=True)

    def read(self, times: Any, channels: Sequence[str], /) -> xr.DataArray:
        values = np.empty((len(times), len(channels), *self.grid.shape), np.float32)
        for place in range(len(times)):
            self._state = 0.95 * self._state + np.sqrt(1 - 0.95**2) * self._noise()
            field = 250 + 20 * (self._state + 0.02 * self._rng.standard_normal(self._state.shape))
            low, high = (f(field, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
            scale = 2.0 ** np.ceil(np.log2((high - low) / 65535))
            values[place] = low.astype(np.float32) + np.round((field - low) / scale) * scale
        coords = {"time": times, "channel": list(channels)}
        return xr.DataArray(values, coords, ("time", "channel", "latitude", "longitude"))


def write(folder: Path, steps: int) -> None:
    """Our bands with each codec, and one chunk a step compressed (as zarr does with lz4) and not."""
    shape = (steps, len(CHANNELS), *GRID.shape)
    convert(Fields(steps), folder / "bands-lz4", implausible="keep", codec="lz4")
    for codec in ("lz4hc", "none"):
        convert(Store(folder / "bands-lz4"), folder / f"bands-{codec}", implausible="keep", codec=codec)
    packer = zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
    for layout, codec in itertools.product(("whole", "checked"), ("lz4", "none")):
        if codec == "lz4":
            (folder / f"{layout}-lz4hc").symlink_to(folder / f"{layout}-lz4")
        compressors = [packer] if codec == "lz4" else []
        compressors += [zarr.codecs.Crc32cCodec()] if layout == "checked" else []
        group = zarr.create_group(folder / f"{layout}-{codec}")
        array = group.create_array(
            "data",
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="float32",
            compressors=compressors or None,
            dimension_names=("time", "channel", "latitude", "longitude"),
        )
        zarr.consolidate_metadata(group.store)
        store = Store(folder / "bands-lz4")
        for step in range(steps):
            array[step] = store.read(store.times[step : step + 1]).values[0]


def in_threads(work: Callable[[int, np.ndarray], object], threads: int, shape: tuple[int, ...]) -> Pass:
    """Steps spread over threads, each with one buffer of its own."""
    buffers = [np.ones(shape, np.float32) for _ in range(threads)]

    def run(order: Sequence[int]) -> None:
        def part(which: int) -> None:
            for step in order[which::threads]:
                work(step, buffers[which])

        with ThreadPoolExecutor(threads) as pool:  # never the main thread: blosc behaves otherwise there
            list(pool.map(part, range(threads)))

    return run


def wx_data(path: Path, threads: int = 1, rows: int | None = None) -> Pass:
    store = Store(path)
    shape = (len(CHANNELS), rows or GRID.shape[0], GRID.shape[1])
    span = None if rows is None else (0, rows)
    return in_threads(lambda step, out: store.read_into(step, out, rows=span), threads, shape)


def memory_copy(_path: Path) -> Pass:
    other = np.ones((len(CHANNELS), *GRID.shape), np.float32)
    return in_threads(lambda _, out: np.copyto(out, other), 1, other.shape)


def zarr_each(path: Path) -> Pass:
    array = zarr.open_group(path, mode="r")["data"]

    def run(order: Sequence[int]) -> None:
        for step in order:
            array[step]

    return run


def zarr_out(path: Path) -> Pass:
    from zarr.core.buffer.cpu import NDBuffer

    array = zarr.open_group(path, mode="r")["data"]
    out = NDBuffer.from_numpy_array(np.ones((len(CHANNELS), *GRID.shape), np.float32))

    def run(order: Sequence[int]) -> None:
        for step in order:
            array.get_basic_selection(step, out=out)

    return run


def zarr_async(path: Path) -> Pass:
    array = zarr.open_group(path, mode="r")["data"].async_array

    async def all_of(order: Sequence[int]) -> None:
        limit = asyncio.Semaphore(4)

        async def one(step: int) -> None:
            async with limit:
                await array.getitem((step,))

        await asyncio.gather(*(one(step) for step in order))

    return lambda order: asyncio.run(all_of(order))


def tensorstore(path: Path, flying: int = 1) -> Pass:
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "data")}}
    array = ts.open(spec, open=True).result()

    def run(order: Sequence[int]) -> None:
        ahead: deque[Any] = deque()
        for step in order:
            ahead.append(array[step].read())
            if len(ahead) == flying:
                ahead.popleft().result()
        while ahead:
            ahead.popleft().result()

    return run


def xarray(path: Path) -> Pass:
    data = xr.open_zarr(path, chunks=None, consolidated=True)["data"]

    def run(order: Sequence[int]) -> None:
        for step in order:
            data.isel(time=step).load()

    return run


READERS: dict[str, Callable[[Path], Pass]] = {
    "copy in memory": memory_copy,
    "wx-data": wx_data,
    "wx-data, 2 threads": lambda path: wx_data(path, 2),
    "wx-data, half of the rows": lambda path: wx_data(path, rows=(GRID.shape[0] + 1) // 2),
    "tensorstore": tensorstore,
    "tensorstore, 4 in flight": lambda path: tensorstore(path, 4),
    "zarr-python a[t]": zarr_each,
    "zarr-python out=": zarr_out,
    "zarr-python async, 4 in flight": zarr_async,
    "xarray chunks=None": xarray,
}


def bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


def passes(runs: dict[Key, Pass], steps: int, rounds: int) -> dict[Key, Found]:
    """Best wall and CPU seconds a step and bytes a step; readers take turns, after a first round."""
    order = np.random.default_rng(0).permutation(steps).tolist()
    found: dict[Key, list[tuple[float, ...]]] = {key: [] for key in runs}
    for _ in range(rounds + 1):
        for key, run in runs.items():
            before = time.perf_counter(), time.process_time(), bytes_read()
            run(order)
            after = time.perf_counter(), time.process_time(), bytes_read()
            found[key].append(tuple((b - a) / steps for a, b in zip(before, after, strict=True)))
    best = {key: np.min(rows[1:], axis=0) for key, rows in found.items()}
    return {key: dict(zip(("wall", "cpu", "bytes"), row.tolist(), strict=True)) for key, row in best.items()}


def peak_so_far() -> float:
    """MB of physical memory that this process has held at most; its parent does not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024 * 1.048576


def peak_memory(reader: str, path: Path, steps: int) -> float:
    """MB that one pass adds to a process of its own, worker processes left out."""
    command = [sys.executable, __file__, "--peak", reader, "--folder", str(path), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout.splitlines()[-1])


def table(folder: Path, codec: str, steps: int, rounds: int) -> dict[Key, Found]:
    """Measure every reader on every layout and print them."""
    keys = [(reader, layout) for layout in ("bands", "whole", "checked") for reader in READERS]
    keys = [key for key in keys if key[1] == "bands" or not key[0].startswith(("wx-data", "copy"))]
    runs = {key: READERS[key[0]](folder / f"{key[1]}-{codec}") for key in keys}
    found = passes(runs, steps, rounds)
    copy = SIZE / found["copy in memory", "bands"]["wall"]
    disk = sum(file.stat().st_size for file in (folder / f"bands-{codec}" / "data").iterdir()) / steps
    print(f"\n{codec}: {SIZE / 1e6:.1f} MB a step, {SIZE / disk:.2f}x compressed, {steps} steps")
    print(f"{'reader':34}{'layout':8}{'MB/s':>8}{'of memcpy':>11}{'MB per CPU-s':>14}{'peak MB':>9}")
    for (reader, layout), one in found.items():
        size = SIZE * ((GRID.shape[0] + 1) // 2) / GRID.shape[0] if "half" in reader else SIZE
        speed, peak = size / one["wall"], peak_memory(reader, folder / f"{layout}-{codec}", min(steps, 16))
        numbers = f"{speed / 1e6:8.0f}{speed / copy:11.0%}{size / one['cpu'] / 1e6:14.0f}{peak:9.0f}"
        print(f"{reader:34}{layout:8}{numbers}", flush=True)
    return found


def bars(codec: str, found: dict[Key, Found]) -> None:
    """What the specification asks for."""
    ours = found["wx-data", "bands"]
    peers = {
        key: one["cpu"] for key, one in found.items() if "wx-data" not in key[0] and "copy" not in key[0]
    }
    for label, chosen, bar in (
        ("best peer", peers, 1.0 if codec == "none" else 1.3),
        (
            "zarr-python",
            {k: v for k, v in peers.items() if "zarr-python" in k[0]},
            1.4 if codec == "none" else 1.3,
        ),
        ("best peer that checks what it reads", {k: v for k, v in peers.items() if k[1] != "whole"}, 1.0),
        ("best peer on this store", {k: v for k, v in peers.items() if k[1] == "bands"}, 1.0),
    ):
        best = min(chosen, key=chosen.__getitem__)
        ratio = chosen[best] / ours["cpu"]
        print(f"{codec}: {ratio:.2f}x {label} per CPU-second ({best[0]}, {best[1]}); bar {bar}")
    half, two = found["wx-data, half of the rows", "bands"], found["wx-data, 2 threads", "bands"]
    share = {key: half[key] / ours[key] for key in ours}
    print(f"{codec}: half of the rows: {share['bytes']:.2f} of the bytes (bar 0.58), ", end="")
    print(f"{share['wall']:.2f} of the time (bar 0.65), {share['cpu']:.2f} of the CPU")
    gain = ours["wall"] / two["wall"]
    print(f"{codec}: two threads {gain:.2f}x the speed of one (bar 1.7 on an idle machine)", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        before = peak_so_far()
        READERS[arguments.peak](arguments.folder)(range(arguments.steps))
        print(peak_so_far() - before)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write(Path(name), arguments.steps)
        for codec in ("lz4", "lz4hc", "none"):
            bars(codec, table(Path(name), codec, arguments.steps, arguments.rounds))


if __name__ == "__main__":
    main()
