"""ATLAS at full size on one CUDA device: blocks against the matrix product peak, and whole 6 h steps.

    python benchmarks/models_full_size.py                                    # an 80 GB device
    python benchmarks/models_full_size.py --device cpu --parameters 1_000_000 --grid 93 180 --calls 2

The first table gives one transformer block of each network, forward and forward + backward in bfloat16, with
and without `torch.compile`, as a share of the rate of a bfloat16 matrix product on the device. The second
gives the projector's attention by backend, the third a forecast step of 6 h in inference: interpolant (20
network calls) and CRPS model (1 call), each with the projector. Operations are those of `wx_models.cost`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from wx_models import (
    Downsample,
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    cost,
    neighborhood_attention,
    scaled,
)

DTYPE = torch.bfloat16
Config = LatentTransformerConfig | LocalProjectorConfig


def networks(parameters: int | None, grid: tuple[int, int]) -> dict[str, Config]:
    """The three published networks, or smaller ones in their proportions on another grid."""
    latent = Downsample(grid, (4, 4)).size
    published: dict[str, Config] = {
        "interpolant": replace(LatentTransformerConfig.atlas_si(), grid=latent),
        "crps": replace(LatentTransformerConfig.atlas_crps(), grid=latent),
        "projector": replace(LocalProjectorConfig.atlas_projector(), grid=grid, longitude="periodic"),
    }
    if parameters is None:
        return published
    return {name: scaled(config, parameters) for name, config in published.items()}


def make(config: Config, device: torch.device) -> LatentTransformer | LocalProjector:
    with torch.device(device):
        if isinstance(config, LatentTransformerConfig):
            return LatentTransformer(config, compute_dtype=DTYPE)
        return LocalProjector(config, compute_dtype=DTYPE)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Best of some runs after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        begin = time.perf_counter()
        call()
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def peak(device: torch.device, repeats: int) -> float:
    """Operations per second of a large bfloat16 matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, repeats)


def blocks(config: Config, device: torch.device, repeats: int) -> Iterator[tuple[str, float, float, float]]:
    """(form, forward seconds, both seconds, forward operations) of one block."""
    network = make(replace(config, depth=1), device)
    block = network.blocks[0]
    rows, columns = config.tokens if isinstance(config, LatentTransformerConfig) else config.latent_grid
    tokens = torch.randn(1, rows, columns, config.width, device=device, requires_grad=True)
    c = torch.randn(1, config.width, device=device)
    xi = c if isinstance(config, LatentTransformerConfig) and config.noise_dim else None
    operations = cost(config).forward_flops - cost(replace(config, depth=config.depth - 1)).forward_flops
    for form in ("eager", "compiled"):
        run: Any = torch.compile(block) if form == "compiled" else block

        def forward(run: Any = run) -> Tensor:
            with torch.autocast(device.type, dtype=DTYPE):
                out: Tensor = run(tokens, c, xi)
            return out

        both = seconds(lambda run=run: forward(run).sum().backward(), device, repeats)
        with torch.no_grad():
            yield form, seconds(forward, device, repeats), both, operations


def attention(
    config: LocalProjectorConfig, device: torch.device, repeats: int
) -> Iterator[tuple[str, float, float]]:
    """(backend, forward seconds, both seconds) of the projector's attention alone."""
    backends = ["blocked"]
    if device.type == "cuda":
        backends += ["flex", *(["natten"] if find_spec("natten") else [])]
    shape = (1, *config.latent_grid, config.heads, config.width // config.heads)
    q, k, v = (torch.randn(shape, device=device, dtype=DTYPE, requires_grad=True) for _ in range(3))
    for backend in backends:

        def forward(backend: str = backend) -> Tensor:
            return neighborhood_attention(q, k, v, kernel=config.kernel, backend=backend)

        both = seconds(lambda backend=backend: forward(backend).sum().backward(), device, repeats)
        with torch.no_grad():
            yield backend, seconds(forward, device, repeats), both


@torch.inference_mode()
def step(
    latent: LatentTransformerConfig,
    full: LocalProjectorConfig,
    calls: int,
    device: torch.device,
    repeats: int,
) -> float:
    """Seconds of `calls` evaluations of the latent network and one of the projector."""
    network, projector = make(latent, device), make(full, device)
    z = torch.randn(1, latent.channels, *latent.grid, device=device)
    x = torch.randn(1, full.channels, *full.grid, device=device)
    cond = {"state": z, "previous": z, "forcing": z[:, : latent.forcing_channels]}
    forcing = x[:, : full.forcing_channels]
    t = torch.full((1,), 0.5, device=device) if latent.takes_t else None
    noise = torch.randn(1, latent.noise_dim, device=device) if latent.noise_dim else None

    def run() -> Tensor:
        residual = z
        for _ in range(calls):
            residual = network.predict(residual if latent.takes_x else None, cond, t=t, noise=noise)
        return projector.project(residual, x, forcing)

    return seconds(run, device, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parameters", type=int, default=None, help="of each network; full size by default")
    parser.add_argument("--grid", type=int, nargs=2, default=(721, 1440))
    parser.add_argument("--calls", type=int, default=20, help="network calls of the interpolant")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --parameters 1_000_000 --grid 93 180 runs anywhere")
    configs = networks(arguments.parameters, tuple(arguments.grid))
    top = peak(device, arguments.repeats)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; matrix product {top / 1e12:.2f} TFLOP/s in bfloat16\n")
    print(
        "| one block | form | forward ms | of the peak | both ms | of the peak |\n|---|---|---|---|---|---|"
    )
    for network, config in configs.items():
        for form, forward, both, operations in blocks(config, device, arguments.repeats):
            shares = operations / forward / top, 3 * operations / both / top
            print(
                f"| {network} | {form} | {1e3 * forward:.1f} | {shares[0]:.0%} | {1e3 * both:.1f} | "
                f"{shares[1]:.0%} |",
                flush=True,
            )
    full = configs["projector"]
    assert isinstance(full, LocalProjectorConfig)
    print("\n| projector's attention | forward ms | both ms |\n|---|---|---|")
    for backend, forward, both in attention(full, device, arguments.repeats):
        print(f"| {backend} | {1e3 * forward:.2f} | {1e3 * both:.2f} |", flush=True)
    print(
        "\n| 6 h step | network calls | seconds | PFLOP | of the peak | peak GB |\n|---|---|---|---|---|---|"
    )
    for estimator, calls in (("interpolant", arguments.calls), ("crps", 1)):
        latent = configs[estimator]
        assert isinstance(latent, LatentTransformerConfig)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        took = step(latent, full, calls, device, arguments.repeats)
        operations = calls * cost(latent).forward_flops + cost(full).forward_flops
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
        share = operations / took / top
        print(
            f"| {estimator} | {calls} | {took:.2f} | {operations / 1e15:.3g} | {share:.0%} | {memory:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
