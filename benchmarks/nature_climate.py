"""Climate, conservation and predictability of the nature run; minutes of one core, printed as tables.

python benchmarks/nature_climate.py [--days 365] [--members 8]
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor

from wx_data.nature import NatureConfig, NatureModel, State, perturb, restart_states

HELD_SUAREZ = NatureConfig(
    meridional_contrast=60.0,
    stability_contrast=10.0,
    relaxation_days=40.0,
    surface_relaxation_days=4.0,
    season_amplitude=0.0,
    land_season=0.0,
    diurnal_heating=0.0,
    moist=False,
    orography=0.0,
    mean_surface_pressure=1e5,
    levels=10,
)


def area() -> Tensor:
    weights = torch.cos(torch.deg2rad(torch.linspace(90, -90, 33)))
    return weights / weights.sum()


def mean(fields: Tensor) -> Tensor:
    """Global mean of (..., latitude, longitude)."""
    return (fields.mean(-1) * area()).sum(-1)


def records(model: NatureModel, state: State, days: int) -> tuple[Tensor, State]:
    """Daily output (day, member, channel, latitude, longitude)."""
    daily = []
    for _ in range(days):
        state = model.advance(state, 24)
        daily.append(model.output(state))
    return torch.stack(daily), state


def held_suarez(days: int) -> None:
    """The published benchmark: jets near 30 m/s at 45 degrees at 250 hPa (Held and Suarez 1994, figure 2)."""
    model = NatureModel(HELD_SUAREZ)
    state = model.advance(model.initial(4, 0), 24 * 200)
    daily, _ = records(model, state, days // 4)
    wind = daily[:, :, model.channels.index("u250")].mean((0, 1, 3))
    north, south = wind[:17], wind[16:]
    latitudes = np.linspace(90, -90, 33)
    print(f"\nHeld-Suarez T21 L10, {4 * (days // 4)} member-days after 200 days:")
    print(f"  jets {north.max():.1f} m/s at {latitudes[north.argmax()]:.0f} deg,", end=" ")
    print(f"{south.max():.1f} m/s at {latitudes[16 + int(south.argmax())]:.0f} deg")
    print(f"  equator u250 {wind[16]:.1f} m/s, u850 at 45 N", end=" ")
    print(f"{daily[:, :, model.channels.index('u850'), 8].mean():.1f} m/s")
    spectrum = model.spectrum(state).mean((0, 1))
    print("  kinetic energy n = 5, 10, 15, 20, 21:", [f"{spectrum[n]:.3g}" for n in (5, 10, 15, 20, 21)])


def climate(days: int, members: int) -> Tensor:
    """Zonal means and transient variability; returns the variance of z500 about 30-day means."""
    model = NatureModel()
    start = restart_states().select(slice(0, members))
    before = model.mean_surface_pressure(start)
    daily, last = records(model, start, days)
    drift = (model.mean_surface_pressure(last) / before - 1).abs().max()
    print(f"\nDefault T21 L5, {members} members x {days} days; mass drift {drift:.1e}")
    rows = [("lat", np.linspace(90, -90, 33)[::4])]
    zonal = daily.mean((0, 1, 4))
    scale = {"u250": 1, "t850": 1, "t2m": 1, "q850": 1e3, "tp": 4e3, "msl": 0.01}
    rows += [
        (name, (zonal[model.channels.index(name)] * factor).numpy()[::4]) for name, factor in scale.items()
    ]
    for name, values in rows:
        print(f"  {name:5s}", " ".join(f"{v:7.1f}" for v in values))
    blocks = daily[: days // 30 * 30].unflatten(0, (-1, 30))
    variance = mean((blocks - blocks.mean(1, keepdim=True)).square()).mean((0, 1, 2))
    print("  transient std:", {c: f"{v.sqrt():.3g}" for c, v in zip(model.channels, variance, strict=True)})
    wind, rain = daily[:, :, 6:12].abs().max(), daily[:, :, -1].max() * 1e3
    print(f"  strongest wind {wind:.0f} m/s, strongest rain {rain:.0f} mm in 6 h")
    return variance


def growth(variance: Tensor, members: int, days: int = 30) -> None:
    """Error of z500 over its saturation value sqrt(2) std; doubling time fitted between 2 and 35 %."""
    model = NatureModel()
    truth = restart_states().select(slice(0, members))
    pool = restart_states().at("1999-01-05")
    row = model.channels.index("z500")
    for size in (0.02, 0.1):
        one = perturb(truth, pool, size=size / math.sqrt(2), seed=0, members=1)
        error, a, b = [], truth, one
        for _ in range(days):
            a, b = model.advance(a, 24), model.advance(b, 24)
            error.append(mean((model.output(a) - model.output(b))[:, row].square()).mean().item())
        ratio = np.sqrt(np.array(error) / (2 * variance[row].item()))
        fit = np.flatnonzero((ratio > 0.02) & (ratio < 0.35) & (np.arange(days) > 0))
        doubling = math.log(2) / np.polyfit(fit, np.log(ratio[fit]), 1)[0] if fit.size > 2 else math.nan
        shown = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
        print(f"\nz500 error / saturation from {size} std: doubling {doubling:.1f} days")
        print("  ", {day: f"{ratio[day - 1]:.2f}" for day in shown})


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--members", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variance = climate(arguments.days, arguments.members)
    growth(variance, arguments.members)
    held_suarez(max(arguments.days, 400))


if __name__ == "__main__":
    main()
