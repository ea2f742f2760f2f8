"""Cost of noise: nanoseconds per normal of both engines, milliseconds per spherical field.

Every variant takes its turn in every round of one process, one thread; the figure is the best CPU time of all
rounds. Run:

    OMP_NUM_THREADS=1 python benchmarks/estimators_noise.py [--rounds 7] [--large] [--compile]

`--large` adds the 721 x 1440 grid (its basis takes 0.8 GB), `--compile` the Philox kernels under
torch.compile. Ratios are to torch.randn of as many values in the same run.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from wx_estimators import Key, NoiseSource, SphericalNoise, WhiteNoise, Window
from wx_estimators._philox import normal_words, philox4x32

Call = Callable[[], object]
ONE = Key(1, torch.tensor([438_000]), torch.tensor([7]))
SHAPE = (75, 181, 360)
SPEC_COUNT = 614_400


def best_times(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Seconds of CPU time of each call: best over rounds in which all take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def draw(source: NoiseSource, shape: tuple[int, ...], window: Window | None = None) -> Call:
    """A draw of one member."""
    return lambda: source.draw(ONE, shape, device="cpu", dtype=torch.float32, window=window)


def philox_block(compiled: bool) -> Call:
    """The Philox kernels alone, for SPEC_COUNT normals."""
    index, zero, word = torch.arange(SPEC_COUNT // 4), torch.tensor([0]), torch.tensor([9])

    def kernel(i: Tensor) -> Tensor:
        return torch.stack(normal_words(philox4x32((i, zero, word, word), (1, 2))))

    run = torch.compile(kernel) if compiled else kernel
    return lambda: run(index)


def normals_table(rounds: int, compiled: bool) -> None:
    """Nanoseconds per normal, white noise."""
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]
    local = (75, 23, 360)
    window = Window(global_shape=SHAPE, start=(0, 46, 0))
    generator = torch.Generator()
    cases: dict[str, tuple[int, Call]] = {
        "torch.randn, 614 400": (SPEC_COUNT, lambda: torch.randn(SPEC_COUNT, generator=generator)),
        "generator, 614 400": (SPEC_COUNT, draw(WhiteNoise(), (4, SPEC_COUNT // 4))),
        "philox, 614 400": (SPEC_COUNT, draw(WhiteNoise("philox"), (4, SPEC_COUNT // 4))),
        "torch.randn, 75 x 181 x 360": (count, lambda: torch.randn(SHAPE, generator=generator)),
        "generator, 75 x 181 x 360": (count, draw(WhiteNoise(), SHAPE)),
        "philox, 75 x 181 x 360": (count, draw(WhiteNoise("philox"), SHAPE)),
        "generator, its 23 rows of 181": (75 * 23 * 360, draw(WhiteNoise(), local, window)),
        "philox, its 23 rows of 181": (75 * 23 * 360, draw(WhiteNoise("philox"), local, window)),
    }
    if compiled:
        cases["philox kernels, torch.compile, 614 400"] = (SPEC_COUNT, philox_block(True))
    best = best_times({name: call for name, (_, call) in cases.items()}, rounds)
    unit = best["torch.randn, 75 x 181 x 360"] / count
    print(f"{'white noise':40} {'ns/normal':>10} {'ms':>9} {'x torch.randn':>14}")
    for name, (size, _) in cases.items():
        each = best[name] / size
        print(f"{name:40} {1e9 * each:10.2f} {1e3 * best[name]:9.2f} {each / unit:14.2f}")


def sphere_table(rounds: int, rows: int, columns: int, channels: tuple[int, ...]) -> None:
    """Milliseconds per spherical field, coefficients included."""
    latitudes = tuple(90.0 - 180.0 * i / (rows - 1) for i in range(rows))
    generator = torch.Generator()
    print(f"\n{f'sphere {rows} x {columns}':40} {'ms/field':>10} {'':>9} {'x torch.randn':>14}")
    for count in channels:
        shape = (count, rows, columns)
        calls: dict[str, Call] = {"torch.randn": partial(torch.randn, shape, generator=generator)}
        for engine in ("generator", "philox"):
            source = SphericalNoise(latitudes=latitudes, longitudes=columns, engine=engine)
            calls[f"{engine}, {count} channels"] = draw(source, shape)
        best = best_times(calls, rounds)
        for name in list(calls)[1:]:
            ratio = best[name] / best["torch.randn"]
            print(f"{name:40} {1e3 * best[name] / count:10.3f} {'':>9} {ratio:14.1f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {platform.machine()} {cpu}, 1 thread")
    normals_table(args.rounds, args.compile)
    sphere_table(args.rounds, 181, 360, (1, 8, 75))
    if args.large:
        sphere_table(min(args.rounds, 3), 721, 1440, (1, 8))


if __name__ == "__main__":
    main()
