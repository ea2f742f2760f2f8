"""Averages of weights against their closed forms."""

import math

import pytest
import torch

from wx_estimators import EMA
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
