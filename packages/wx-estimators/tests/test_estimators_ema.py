"""Averages of weights against their closed forms."""

import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from wx_estimators import EMA, post_hoc_ema
from wx_estimators._ema import power_from_width


def module(value=0.0):
    net = torch.nn.Linear(1, 1)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return net


def test_width_and_power_agree_with_the_published_pairs():
    assert power_from_width(0.10) == pytest.approx(6.94, abs=0.005)
    assert power_from_width(0.05) == pytest.approx(16.97, abs=0.005)
    gamma = power_from_width(0.07)
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(0.07, rel=1e-10)


def test_power_average_of_a_ramp():
    # Weights w_k = k / n: the average tends to the mean of the profile, (gamma + 1) / (gamma + 2).
    net, n = module(), 4000
    ema = EMA(net, sigma_rel=0.10)
    for k in range(1, n + 1):
        with torch.no_grad():
            net.weight.fill_(k / n)
        ema.update(net)
    expected = (ema.gamma + 1) / (ema.gamma + 2)
    # A sum in place of the integral: relative error of order gamma / n; float32 adds 1e-5.
    assert float(ema.average["weight"]) == pytest.approx(expected, abs=2e-3)


def test_first_update_forgets_the_initial_weights():
    net = module(5.0)
    ema = EMA(net)
    with torch.no_grad():
        net.weight.fill_(2.0)
    ema.update(net)
    assert float(ema.average["weight"]) == 2.0


def test_constant_decay():
    net = module(1.0)
    ema = EMA(net, decay=0.9)
    with torch.no_grad():
        net.weight.fill_(0.0)
    for _ in range(3):
        ema.update(net)
    assert float(ema.average["weight"]) == pytest.approx(0.9**3)


def test_applied_gives_the_own_weights_back_even_after_an_error():
    net = module(3.0)
    ema = EMA(module(1.0))
    with ema.applied(net):
        assert float(net.weight.detach()) == 1.0
    assert float(net.weight.detach()) == 3.0
    with pytest.raises(RuntimeError, match="inside"), ema.applied(net):
        raise RuntimeError("inside")
    assert float(net.weight.detach()) == 3.0
    ema.copy_to(net)
    assert float(net.weight.detach()) == 1.0


def test_state_goes_on_where_it_stopped():
    net = module(1.0)
    ema = EMA(net, sigma_rel=0.05)
    for value in (2.0, 3.0):
        with torch.no_grad():
            net.weight.fill_(value)
        ema.update(net)
    other = EMA(module(9.0))
    other.load_state_dict(ema.state_dict())
    other.update(net)
    ema.update(net)
    assert torch.equal(other.average["weight"], ema.average["weight"])
    assert other.step == 3
    with pytest.raises(ValueError, match="another module"):
        EMA(torch.nn.Linear(1, 1, bias=False)).load_state_dict(ema.state_dict())


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EMA(module(), decay=1.0)
    with pytest.raises(ValueError, match="sigma_rel must be in"):
        EMA(module(), sigma_rel=0.5)


def walk(widths, steps=4000, every=400):
    """Averages of a random walk of weights, and the states of the first two at intervals."""
    net, rng = module(), np.random.default_rng(0)
    path = np.cumsum(rng.standard_normal(steps)) / math.sqrt(steps)
    averages = [EMA(net, sigma_rel=width) for width in widths]
    states = []
    for k in range(1, steps + 1):
        with torch.no_grad():
            net.weight.fill_(path[k - 1])
        for average in averages:
            average.update(net)
        if k % every == 0:
            states += [
                {**a.state_dict(), "average": {n: v.clone() for n, v in a.average.items()}}
                for a in averages[:2]
            ]
    return averages, states


def test_any_width_follows_from_two_tracks():
    averages, states = walk([0.05, 0.10, 0.04, 0.07, 0.12, 0.15])
    for average, width in zip(averages[2:], (0.04, 0.07, 0.12, 0.15), strict=True):
        found = post_hoc_ema(states, sigma_rel=width)["weight"]
        # The walk ends with variance one.
        assert float(found) == pytest.approx(float(average.average["weight"]), abs=3e-3)


def test_a_track_itself_is_given_back():
    averages, states = walk([0.05, 0.10], steps=800, every=200)
    for place, width in enumerate((0.05, 0.10)):
        found = post_hoc_ema(states, sigma_rel=width)["weight"]
        assert float(found) == pytest.approx(float(averages[place].average["weight"]), abs=1e-5)
    earlier = post_hoc_ema(states, sigma_rel=0.05, step=400)["weight"]
    assert float(earlier) == pytest.approx(float(states[2]["average"]["weight"]), abs=1e-5)


def test_profiles_are_those_of_the_integral():
    """<p_a, p_b> by quadrature."""
    from wx_estimators._ema import _profile_product

    tau = (np.arange(200_000) + 0.5) / 200_000 * 3.0

    def profile(end, gamma):
        return np.where(tau <= end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0.0)

    for (a, ga), (b, gb) in [((1.0, 3.0), (3.0, 7.0)), ((3.0, 7.0), (1.0, 3.0)), ((2.0, 5.0), (2.0, 5.0))]:
        integral = (profile(a, ga) * profile(b, gb)).mean() * 3.0
        values = (np.float64(v) for v in (a, ga, b, gb))
        assert _profile_product(*values) == pytest.approx(integral, rel=1e-4)


def test_post_hoc_settings_are_checked():
    state = EMA(module()).state_dict() | {"step": 10}
    with pytest.raises(ValueError, match="snapshots are needed"):
        post_hoc_ema([], sigma_rel=0.1)
    with pytest.raises(ValueError, match="constant decay has no power function"):
        post_hoc_ema([EMA(module(), decay=0.9).state_dict()], sigma_rel=0.1)
    with pytest.raises(ValueError, match="different modules"):
        post_hoc_ema([state, {**state, "average": {}}], sigma_rel=0.1)
    with pytest.raises(ValueError, match=r"step must lie in 1\.\.10"):
        post_hoc_ema([state], sigma_rel=0.1, step=11)


def trained_average(net):
    ema, states = EMA(net, sigma_rel=0.08), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(6):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net)
        states.append({**ema.state_dict(), "average": {n: v.clone() for n, v in ema.average.items()}})
    return post_hoc_ema(states[1::2], sigma_rel=0.12)


def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))


def _sharded(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = layers()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    found = {name: value.full_tensor() for name, value in trained_average(net).items()}
    if rank == 0:
        torch.save(found, os.path.join(folder, "found.pt"))
    dist.barrier()
    dist.destroy_process_group()


def test_sharded_parameters_have_the_same_averages(tmp_path):
    mp.spawn(_sharded, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    expected = trained_average(layers())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
