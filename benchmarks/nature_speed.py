"""Speed of the nature run on one thread: member-days per CPU-minute and milliseconds per member and step.

    python benchmarks/nature_speed.py [--days 5]

CPU time, not wall time: other programs on the machine matter through the caches only.
"""

import argparse
import time

import torch

from wx_data.nature import NatureConfig, NatureModel

CASES = [
    (NatureConfig(truncation=15, step_minutes=45), (1, 16)),
    (NatureConfig(), (1, 2, 4, 8, 16, 64)),
    (NatureConfig(truncation=31, levels=8, step_minutes=24, diffusion_hours=12.0, grid=(49, 96)), (1, 8)),
    (NatureConfig(truncation=42, levels=8, step_minutes=18, diffusion_hours=12.0, grid=(65, 128)), (1, 4)),
]


def measure(config: NatureConfig, members: int, days: int) -> tuple[float, float]:
    """Member-days per CPU-minute of the model alone, and with six-hourly output."""
    model = NatureModel(config)
    state = model.advance(model.initial(members, 0), 6)
    start = time.process_time()
    state = model.advance(state, 24 * days)
    bare = time.process_time() - start
    start = time.process_time()
    for _ in range(4 * days):
        state = model.advance(state, 6)
        model.output(state)
    full = time.process_time() - start
    return 60 * members * days / bare, 60 * members * days / full


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=5)
    days = parser.parse_args().days
    torch.set_num_threads(1)
    print("| model | members | member-days / CPU-min | with output | ms / member-step |")
    print("|---|---|---|---|---|")
    for config, batches in CASES:
        for members in batches:
            bare, full = measure(config, members, days)
            steps = 1440 / config.step_minutes
            name = f"T{config.truncation} L{config.levels}"
            print(f"| {name} | {members} | {bare:.0f} | {full:.0f} | {6e4 / bare / steps:.2f} |", flush=True)


if __name__ == "__main__":
    main()
