"""The equations against states of rest, closed forms and conservation laws."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wx_data.nature import NatureConfig, NatureModel, State, restart_states
from wx_data.nature._config import EARTH_RADIUS, GAS_CONSTANT, GRAVITY, ROTATION
from wx_data.nature._dynamics import Dynamics
from wx_data.nature._vertical import Layers

QUIET = {
    "relaxation_days": math.inf,
    "surface_relaxation_days": math.inf,
    "friction_days": math.inf,
    "diffusion_hours": math.inf,
    "diurnal_heating": 0.0,
    "moist": False,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Bits are promised on one thread, and at these sizes more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(**changes: object) -> NatureConfig:
    return NatureConfig(**{**QUIET, **changes})  # type: ignore[arg-type]


def wind_speed(model: NatureModel, state: State) -> float:
    rows = [i for i, name in enumerate(model.channels) if name[0] in "uv"]
    return float(model.output(state)[:, rows].abs().max())


def test_rest_without_mountains_stays_at_rest_exactly() -> None:
    model = NatureModel(quiet(orography=0.0))
    state = model.advance(model.initial(2, 0, noise=0.0), 48)
    assert wind_speed(model, state) == 0.0


def test_rest_over_mountains_stays_at_rest() -> None:
    """4 km plateaus in an isothermal atmosphere; what is left is float32 rounding of R T grad ln(ps)."""
    model = NatureModel(quiet())
    state = model.advance(model.initial(2, 0, noise=0.0), 48)
    assert wind_speed(model, state) < 2e-4


def test_thickness_of_an_isothermal_atmosphere() -> None:
    """z(p1) - z(p2) = R T ln(p2 / p1); rounding of 1e5 m2/s2 in float32 is 0.01."""
    model = NatureModel(quiet(orography=0.0))
    output = model.output(model.initial(2, 0, noise=0.0))
    for above, below in ((2, 1), (1, 0)):
        ratio = model.config.pressure_levels[below] / model.config.pressure_levels[above]
        thickness = GAS_CONSTANT * 270.0 * math.log(ratio)
        assert (output[:, above] - output[:, below] - thickness).abs().max() < 0.1
    assert (output[:, 3:6] - 270.0).abs().max() < 1e-3


def rossby_haurwitz(dynamics: Dynamics, members: int) -> tuple[Tensor, float]:
    """Vorticity (m, 2, level, member, n) of wave 4 (Williamson et al. 1992, case 6), and its angular speed.

    zeta = 2 w sin(lat) - K sin(lat) cos(lat)^4 (R^2 + 3 R + 2) cos(4 lon), and without divergence it moves
    unchanged at (R (3 + R) w - 2 Omega) / ((1 + R) (2 + R)).
    """
    w = k = 7.848e-6
    around = dynamics.forcing.around
    mu, lon = around.sines, around.angles[:, None]
    zeta = 2 * w * mu - 30 * k * mu * (1 - mu**2) ** 2 * torch.cos(4 * lon)
    waves = dynamics.analysis.fourier(zeta[:, None, None].expand(-1, dynamics.config.levels, members, -1))
    return dynamics.analysis.scalar(waves), (28 * w - 2 * ROTATION) / 30


def balanced(dynamics: Dynamics, vorticity: Tensor) -> Tensor:
    """ln(ps) for which the divergence of a barotropic isothermal flow does not change at first."""
    wind = dynamics.synthesis.wind(vorticity, torch.zeros_like(vorticity))
    absolute = dynamics.synthesis.scalar(vorticity) + 2 * ROTATION * dynamics.forcing.around.sines
    east, north = absolute * wind[:, 1], -absolute * wind[:, 0]
    energy = 0.5 * (wind[:, 0] ** 2 + wind[:, 1] ** 2)
    analysis = dynamics.analysis
    source = analysis.divergence(analysis.fourier(east), analysis.fourier(north))
    inverse = torch.zeros_like(dynamics.laplacian)
    inverse[1:] = 1 / dynamics.laplacian[1:]
    head = source * inverse - analysis.scalar(analysis.fourier(energy))
    head[..., 0] = 0.0
    return head[:, :, 0] / (GAS_CONSTANT * 300.0)


def test_rossby_haurwitz_wave_moves_at_the_closed_form_speed() -> None:
    """Nondivergent formula; a divergent atmosphere is slower, by 6 % here (the speed is 12.2 deg a day)."""
    config = quiet(orography=0.0, mean_surface_pressure=1e5)
    model, dynamics = NatureModel(config), Dynamics(config, "cpu")
    vorticity, speed = rossby_haurwitz(dynamics, 2)
    inside = torch.zeros(22, 2, 4 * config.levels + 1, 2, 22)
    inside[:, :, : config.levels] = vorticity
    inside[:, :, -1] = balanced(dynamics, vorticity)
    now = torch.view_as_complex(inside.permute(3, 2, 0, 4, 1).contiguous())
    blank = model.initial(2, 0)
    state = State(now=now, previous=now, heating=blank.heating, rain=blank.rain, time=blank.time)
    days = 5
    later = model.advance(state, 24 * days)
    turned = torch.angle(later.now[0, 2, 4, 5] / now[0, 2, 4, 5]).item()
    expected = -4 * speed * 86400 * days
    turned += 2 * math.pi * round((expected - turned) / (2 * math.pi))
    assert turned / expected == pytest.approx(1.0, abs=0.08)
    assert later.now[0, 2, 4, 5].abs() / now[0, 2, 4, 5].abs() == pytest.approx(1.0, abs=0.03)


def total_energy(dynamics: Dynamics, state: State) -> tuple[Tensor, Tensor]:
    """Global mean of ps (cp T + Phi_s) / g and of ps K / g, J/m2, in float64."""
    inside = torch.view_as_real(state.now).permute(2, 4, 1, 0, 3).contiguous()
    fields, wind = (part.double() for part in dynamics.on_grid(inside))
    k = dynamics.config.levels
    mass = 1e5 * torch.exp(fields[:, -1]) / GRAVITY
    weights = dynamics.weights.double()
    heat = 1004.0 * (fields[:, 3 * k : 4 * k] + 300.0).mean(1)
    motion = 0.5 * (wind[:, :, :k] ** 2).sum(1).mean(1)
    ground = dynamics.synthesis.scalar(dynamics.surface).double()
    return (mass * (heat + ground) * weights).sum((0, 2)), (mass * motion * weights).sum((0, 2))


def test_energy_is_conserved_without_forcing_and_friction() -> None:
    """Simmons-Burridge differences: conversions cancel; the time filter and truncation lose a little."""
    config = quiet()
    model, dynamics = NatureModel(config), Dynamics(config, "cpu")
    start = restart_states().select([0, 1])
    potential, kinetic = total_energy(dynamics, start)
    after, moving = total_energy(dynamics, model.advance(start, 24))
    converted = (moving - kinetic).abs()
    assert ((after + moving - potential - kinetic).abs() < 0.05 * converted).all()
    assert (converted > 0.01 * kinetic).all()


def test_gravity_waves_of_the_vertical_scheme() -> None:
    """The external mode of an isothermal atmosphere at rest travels near sqrt(R T cp / cv) (Lamb wave)."""
    speeds, _, _ = Layers.equal(20).gravity_waves()
    lamb = math.sqrt(GAS_CONSTANT * 300.0 * 1004.0 / (1004.0 - GAS_CONSTANT))
    assert math.sqrt(speeds.max()) == pytest.approx(lamb, rel=0.02)


def test_mass_stays_to_rounding() -> None:
    model = NatureModel()
    state = model.advance(model.initial(2, 1), 24 * 5)
    drift = model.mean_surface_pressure(state) / model.config.mean_surface_pressure - 1
    assert drift.abs().max() < 2e-6


def test_radius_is_the_earth() -> None:
    dynamics = Dynamics(NatureConfig(), "cpu")
    assert dynamics.laplacian[1].item() == pytest.approx(-2 / EARTH_RADIUS**2)
