"""Training step of both networks on one CPU thread: time, and share of the matrix multiplication peak.

Process time, best of several. The peak is a plain float32 product of the same size as the widest layer. Run:

    python benchmarks/models_step.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wx_models import LatentTransformer, LatentTransformerConfig, LocalProjector, LocalProjectorConfig

CHANNELS, FORCING = 18, 8
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def latent_step(rows: int, dtype: torch.dtype | None) -> tuple[nn.Module, Callable[[], Tensor]]:
    config = LatentTransformerConfig(
        channels=CHANNELS, forcing_channels=FORCING, grid=(17, 32), width=192, depth=4, heads=6
    )
    network = LatentTransformer(config, compute_dtype=dtype)
    cond = {
        "state": draw(rows, CHANNELS, 17, 32),
        "previous": draw(rows, CHANNELS, 17, 32),
        "forcing": draw(rows, FORCING, 17, 32),
    }
    x, t = draw(rows, CHANNELS, 17, 32), torch.rand(rows, generator=GENERATOR)
    return network, lambda: network.predict(x, cond, t=t)


def projector_step(rows: int, dtype: torch.dtype | None) -> tuple[nn.Module, Callable[[], Tensor]]:
    config = LocalProjectorConfig(
        channels=CHANNELS, forcing_channels=FORCING, grid=(33, 64), patch=(2, 2), width=128, depth=3, heads=4
    )
    network = LocalProjector(config, compute_dtype=dtype)
    inputs = draw(rows, CHANNELS, 17, 32), draw(rows, CHANNELS, 33, 64), draw(rows, FORCING, 33, 64)
    return network, lambda: network.project(*inputs)


def measure(forward: Callable[[], Tensor]) -> tuple[float, float]:
    begin = time.process_time()
    out = forward()
    middle = time.process_time()
    out.square().mean().backward()
    return middle - begin, time.process_time() - middle


def peak(repeats: int = 20) -> float:
    """GFLOP/s of a (3456, 192) by (192, 768) product."""
    a, b = draw(3456, 192), draw(192, 768)
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        torch.mm(a, b)
        times.append(time.process_time() - begin)
    return 2 * 3456 * 192 * 768 / min(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    top = peak()
    print(f"matrix product: {top:.0f} GFLOP/s in float32\n")
    print("| network | rows | blocks in | parameters | forward ms | backward ms | GFLOP/s | of the peak |")
    print("|---|---|---|---|---|---|---|---|")
    for name, build, rows in (("latent", latent_step, 24), ("projector", projector_step, 8)):
        for dtype in (None, torch.bfloat16):
            network, forward = build(rows, dtype)
            with FlopCounterMode(display=False) as counter:
                forward().square().mean().backward()
            best = [min(times) for times in zip(*(measure(forward) for _ in range(repeats)), strict=True)]
            rate = counter.get_total_flops() / sum(best) / 1e9
            size = sum(parameter.numel() for parameter in network.parameters())
            print(
                f"| {name} | {rows} | {'float32' if dtype is None else 'bfloat16'} | {size:,} | "
                f"{1e3 * best[0]:.0f} | {1e3 * best[1]:.0f} | {rate:.0f} | {rate / top:.0%} |"
            )


if __name__ == "__main__":
    main()
