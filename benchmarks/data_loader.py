"""Batches of a training store: wx-data's Loader against torch's DataLoader over zarr-python.

Run: ``python benchmarks/data_loader.py [--steps N] [--rounds N] [--folder PATH]`` on Linux. A sample is two
states of 20.8 MB (0 h and 6 h); batches of one, shuffled, warm page cache, nothing cached by the loader.
Every line is a process of its own: best epoch after a first one, decoded MB (10^6 bytes) per second and per
CPU-second of all threads and worker processes, and what the process has grown by at its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import zarr
from data_reader import SIZE, Fields, peak_so_far
from torch.utils.data import DataLoader

from wx_data import Loader, RowRange, Store, TimeWindow, compute_statistics, convert

WINDOW = TimeWindow((0,), (6,))
DEPTH = 2


class Pairs:
    """A map-style data set of neighbouring states over zarr-python, as users write it."""

    def __init__(self, path: Path) -> None:
        self.path, self.array = path, None
        self.length = int(zarr.open_group(path, mode="r")["data"].shape[0]) - 1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> Any:
        self.array = zarr.open_group(self.path, mode="r")["data"] if self.array is None else self.array
        return torch.from_numpy(self.array[step]), torch.from_numpy(self.array[step + 1])


def ours(path: Path, threads: int, **arguments: Any) -> Loader:
    """A loader without a cache."""
    store = Store(path)
    return Loader(store, WINDOW, batch_size=1, threads=threads, depth=DEPTH, cache_bytes=0, **arguments)


def torchs(path: Path, workers: int) -> DataLoader[Any]:
    """torch's loader; worker processes start cleanly, as zarr's own threads ask for."""
    context = {"multiprocessing_context": "forkserver", "persistent_workers": True} if workers else {}
    return DataLoader(Pairs(path), batch_size=1, shuffle=True, num_workers=workers, **context)


def make(reader: str, path: Path) -> Iterable[Any]:
    """The loader of a line of the table."""
    kind, _, count = reader.rpartition(", ")
    number = int(count.split()[0])
    if kind == "DataLoader over zarr":
        return torchs(path, number)
    if kind == "wx-data, normalised":
        return ours(path, number, normalise=compute_statistics(Store(path)))
    if kind == "wx-data, northern half":
        return ours(path, number, rows=RowRange(0, Store(path).grid.shape[0] // 2, 0))
    return ours(path, number)


READERS = (
    "wx-data, 1 thread",
    "wx-data, 2 threads",
    "wx-data, normalised, 2 threads",
    "wx-data, northern half, 1 thread",
    "DataLoader over zarr, 0 workers",
    "DataLoader over zarr, 2 workers",
)


def children_seconds() -> float:
    """CPU seconds of the living descendants of this process."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, todo = 0.0, [os.getpid()]
    while todo:
        parent = todo.pop()
        below = [pid for pid, above in parents.items() if above == parent]
        found += sum(seconds[pid] for pid in below)
        todo += below
    return found


def epoch(loader: Iterable[Any]) -> int:
    """Bytes of all states of an epoch."""
    total = 0
    for batch in loader:
        x, y = (batch.x, batch.y) if hasattr(batch, "x") else batch
        total += 4 * (x.numel() + y.numel())
    return total


def measure(reader: str, path: Path, rounds: int) -> dict[str, float]:
    """Speeds of the best epoch in MB, and peak memory over that before."""
    loader = make(reader, path)
    before = peak_so_far()
    epoch(loader)
    best = {"speed": 0.0, "per_cpu": 0.0}
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time() + children_seconds()
        size = epoch(loader) / 1e6
        wall, cpu = time.perf_counter() - wall, time.process_time() + children_seconds() - cpu
        best = {"speed": max(best["speed"], size / wall), "per_cpu": max(best["per_cpu"], size / cpu)}
    peak = peak_so_far() - before
    return best | {"peak": peak, "named": getattr(loader, "memory_bytes", 0) / 1e6}


def table(path: Path, codec: str, rounds: int) -> None:
    """Print the lines and bars of one store."""
    print(f"\n{codec:34}{'MB/s':>8}{'MB per CPU-s':>14}{'peak MB':>9}{'memory_bytes':>14}")
    found = {}
    for reader in READERS:
        command = [
            sys.executable,
            __file__,
            "--measure",
            reader,
            "--folder",
            str(path),
            "--rounds",
            str(rounds),
        ]
        done = subprocess.run(
            [*command, "--rounds", str(rounds)], capture_output=True, text=True, timeout=300, check=True
        )
        one = found[reader] = json.loads(done.stdout.splitlines()[-1])
        named = f"{one['named']:14.0f}" if one["named"] else ""
        print(f"{reader:34}{one['speed']:8.0f}{one['per_cpu']:14.0f}{one['peak']:9.0f}{named}", flush=True)
    one, two = found["wx-data, 1 thread"], found["wx-data, 2 threads"]
    peer = max((found[r] for r in READERS if "DataLoader" in r), key=lambda line: line["per_cpu"])
    bound = (DEPTH + 2 + 2) * 2 * SIZE / 1e6 + 150
    print(f"{two['per_cpu'] / peer['per_cpu']:.2f}x the best DataLoader per CPU-second")
    print(f"two threads {two['speed'] / one['speed']:.2f}x the speed of one (bar 1.7 on an idle machine)")
    print(f"peak {two['peak']:.0f} MB; bar (depth + threads + 2) samples + 150 MB = {bound:.0f} MB")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder, arguments.rounds)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for codec in ("lz4hc", "lz4", "none"):
            convert(Fields(arguments.steps), Path(name) / codec, implausible="keep", codec=codec)
            table(Path(name) / codec, codec, arguments.rounds)


if __name__ == "__main__":
    main()
