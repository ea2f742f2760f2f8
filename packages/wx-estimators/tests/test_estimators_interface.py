"""The seven systems of the field as they would use this package: interface and wiring, with toy networks."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import pytest
import torch
from torch import nn

from wx_estimators import (
    CRPS,
    DPM2S,
    EDM,
    Batch,
    DifferenceCRPS,
    EnsembleCRPS,
    FlowMatching,
    Heun,
    Key,
    NetSpec,
    Regression,
    RhoQuantile,
    SpectralCRPS,
    SphericalNoise,
    StochasticInterpolant,
    SumScore,
    bind,
    estimator_from_dict,
)

LATITUDES = (67.5, 22.5, -22.5, -67.5)
SHAPE = (2, 4, 8)
SPHERE = SphericalNoise(latitudes=LATITUDES, longitudes=8)


class Toy(nn.Module):
    """Reads exactly what its specification declares and refuses anything else."""

    def __init__(self, spec, cond_channels):
        super().__init__()
        self.spec, self.calls = spec, 0
        vector = spec.noise is not None and len(spec.noise) == 1
        inputs = (
            cond_channels
            + spec.takes_x * spec.out_channels
            + (0 if vector or not spec.noise else spec.noise[0])
        )
        self.body = nn.Conv2d(inputs, spec.out_channels, 1)
        self.modulate = nn.Linear(spec.noise[0], spec.out_channels) if vector else None

    def predict(self, x, cond, /, *, t, noise):
        self.calls += 1
        assert (x is not None, t is not None) == (self.spec.takes_x, self.spec.takes_t)
        assert (noise is None) == (self.spec.noise is None)
        rows = next(iter(cond.values())).shape[0]
        fields = list(cond.values())
        if x is not None:
            assert x.shape == (rows, *SHAPE)
            fields.append(x)
        if noise is not None:
            assert noise.shape == (rows, *self.spec.noise)
            fields += [] if self.modulate else [noise]
        out = self.body(torch.cat(fields, 1))
        if self.modulate:
            out = out * (1 + self.modulate(noise)[:, :, None, None])
        return out if t is None else out + t.view(-1, 1, 1, 1)


def area():
    return torch.cos(torch.deg2rad(torch.tensor(LATITUDES))).view(1, 1, 4, 1)


CASES = {
    # base = low-resolution state, target = normalised residual, two states as condition.
    "ATLAS-SI": (
        StochasticInterpolant(steps=3, preconditioning="atlas", sigma_base=1.1, correlation=0.2),
        NetSpec(out_channels=2, takes_x=True, takes_t=True),
        6,
        ("state", "previous"),
    ),
    "ATLAS-EDM": (
        EDM(steps=4, sampler=Heun(), churn=2.5, sigma_min=0.002),
        NetSpec(out_channels=2, takes_x=True, takes_t=True),
        7,
        ("state", "previous"),
    ),
    "ATLAS-CRPS": (
        EnsembleCRPS(
            members=2, noise_shape=(16,), score=SumScore(terms=(CRPS(), SpectralCRPS()), factors=(1.0, 0.1))
        ),
        NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(16,)),
        1,
        ("state", "previous", "forcing"),
    ),
    "plain regression": (
        Regression(),
        NetSpec(out_channels=2, takes_x=False, takes_t=False),
        1,
        ("state",),
    ),
    "GenCast": (
        EDM(
            steps=20,
            sampler=DPM2S(),
            churn=2.5,
            training=RhoQuantile(low=0.02, high=88.0),
            noise=SphericalNoise(latitudes=LATITUDES, longitudes=8, spectrum="flat"),
        ),
        NetSpec(out_channels=2, takes_x=True, takes_t=True),
        39,
        ("state", "previous"),
    ),
    "FGN": (
        EnsembleCRPS(noise_shape=(32,), score=CRPS()),
        NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(32,)),
        1,
        ("state", "previous"),
    ),
    "FCN3": (
        EnsembleCRPS(members=4, noise_shape=(3, 4, 8), noise=SPHERE, score=CRPS(alpha=0.95)),
        NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(3, 4, 8)),
        1,
        ("state", "forcing"),
    ),
    # Swift trains a consistency network; its conditional flow teacher has this form.
    "Swift": (
        FlowMatching(steps=2, sigma_data=(0.9, 1.2)),
        NetSpec(out_channels=2, takes_x=True, takes_t=True),
        4,
        ("state",),
    ),
    "ArchesWeatherGen": (
        FlowMatching(steps=5, residual=True),
        NetSpec(out_channels=2, takes_x=True, takes_t=True),
        10,
        ("state", "mean"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_seven_systems_and_two_more(name):
    estimator, spec, calls, conditions = CASES[name]
    assert estimator.required(2) == spec
    assert estimator.calls_per_sample == calls
    torch.manual_seed(0)
    net = Toy(estimator.required(2), 2 * len(conditions))
    g = torch.Generator().manual_seed(1)
    cond = {key: torch.randn(3, *SHAPE, generator=g) for key in conditions}
    base, target = torch.randn(2, 3, *SHAPE, generator=g)

    key = Key(5, 438_000 + 6 * torch.arange(3), torch.tensor([0]))
    out = estimator.loss(net, Batch(base=base, target=target, cond=cond, weight=area()), key)
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in net.parameters())
    assert out.per_channel.shape == (2,)
    assert float(out.count) == pytest.approx(float(area().sum()) * 8 * 2 * 3, rel=1e-5)

    net.calls, many = 0, Key(5, key.init, torch.arange(4), lead=2)
    with torch.no_grad():
        members = estimator.sample(net, base, cond, many)
        assert net.calls == calls
        assert members.shape == (3, 4, *SHAPE)
        assert torch.isfinite(members).all()
        spread = members.std(1).mean()
        assert (spread == 0) == isinstance(estimator, Regression)
        rows = {key: value.repeat_interleave(4, 0) for key, value in cond.items()}
        flat = bind(estimator, net).sample(base.repeat_interleave(4, 0), rows, many.rows())
    torch.testing.assert_close(flat.view_as(members), members, rtol=1e-4, atol=1e-4)
    assert estimator_from_dict(estimator.to_dict()) == estimator


# torch registers decompositions for forward derivatives with torch.jit.script, which it deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_networks_can_be_differentiated_forwards():
    """What consistency training asks of a network: torch.func.jvp through `predict`."""
    net = Toy(NetSpec(out_channels=2, takes_x=True, takes_t=True), 2)
    x, dx = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    cond, t = {"state": torch.zeros_like(x)}, torch.full((3,), 0.3)
    f = lambda x, t: net.predict(x, cond, t=t, noise=None)  # noqa: E731
    _, tangent = torch.func.jvp(f, (x, t), (dx, torch.ones_like(t)))
    step = (f(x + 1e-2 * dx, t + 1e-2) - f(x - 1e-2 * dx, t - 1e-2)) / 2e-2
    torch.testing.assert_close(tangent, step, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("error", ["square", "absolute"])
def test_regression_finds_mean_and_median(error):
    """A constant network: the gradient vanishes at the weighted mean, or the median."""
    target = torch.tensor([0.0, 1.0, 2.0, 3.0, 14.0]).view(5, 1, 1)
    best = {"square": 4.0, "absolute": 2.0}[error]

    class Constant(nn.Module):
        spec = NetSpec(out_channels=1, takes_x=False, takes_t=False)

        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def predict(self, x, cond, /, *, t, noise):
            return self.value.expand(5, 1, 1)

    key = Key(0, torch.arange(5), torch.arange(7))  # members play no part
    values = []
    for offset in (-0.5, 0.0, 0.5):
        out = Regression(error=error).loss(
            Constant(best + offset), Batch(base=target, target=target, cond={}), key
        )
        values.append(float(out.loss.detach()))
    assert values[1] < min(values[0], values[2])
    expected = (target - best).square().mean() if error == "square" else (target - best).abs().mean()
    assert values[1] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="error must be"):
        Regression(error="huber")


def test_difference_scores_are_estimator_settings_too():
    score = SumScore(terms=(CRPS(), DifferenceCRPS()), factors=(1.0, 0.2))
    estimator = EnsembleCRPS(noise_shape=(4,), score=score)
    assert estimator_from_dict(estimator.to_dict()) == estimator
