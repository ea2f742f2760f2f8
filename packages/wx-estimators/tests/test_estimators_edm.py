"""EDM against the exact denoiser of a Gaussian target; no sampling noise unless churn is on trial."""
# ruff: noqa: ARG002 - signatures are those of the protocols

import math

import pytest
import torch

from wx_estimators import DPM2M, DPM2S, EDM, RK4, SRA1, Batch, Euler, Heun, Key, NetSpec, RhoQuantile

MEAN, VARIANCE = 0.3, 0.5


class Gaussian:
    """The exact F of a target N(m, q), by inverting the preconditioning of the EDM paper."""

    spec = NetSpec(out_channels=1, takes_x=True, takes_t=True)

    def __init__(self, sigma_data=1.0):
        self.sd, self.calls, self.tape = sigma_data, 0, []

    def predict(self, x, cond, /, *, t, noise):
        assert noise is None
        self.calls += 1
        sigma = (4 * t).exp()[:, None]
        norm2 = sigma**2 + self.sd**2
        noisy = x * norm2.sqrt()
        denoised = MEAN + VARIANCE / (VARIANCE + sigma**2) * (noisy - MEAN)
        return (denoised - self.sd**2 / norm2 * noisy) / (sigma * self.sd / norm2.sqrt())


class Tape:
    """A noise source that gives member m the constant m: the sampler is affine in it."""

    def draw(self, key, shape, /, *, device, dtype, window=None):
        member = key.member.expand(key.batch, key.members).to(dtype)
        return member.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)

    def to_dict(self):
        return {"type": "Tape"}


def moments(**settings):
    """Exact mean and variance of the sample law: value at noise 0, squared slope in the noise."""
    net = Gaussian()
    edm = EDM(noise=Tape(), **settings)
    key = Key(0, torch.tensor([0]), torch.tensor([0, 1]))
    zero, one = edm.sample(net, torch.zeros(1, 1, dtype=torch.float64), {}, key)[0, :, 0].tolist()
    assert net.calls == edm.calls_per_sample
    return zero, (one - zero) ** 2


@pytest.mark.parametrize(
    ("sampler", "order", "table"),
    [
        (Euler(), 1, (2.7e-1, 1.4e-1, 7.3e-2, 3.7e-2)),
        (Heun(), 2, (1.0e-1, 2.2e-2, 5.1e-3, 1.2e-3)),
        (DPM2S(), 2, (4.5e-2, 1.2e-2, 3.0e-3, 8.0e-4)),
        (DPM2M(), 2, None),
        (RK4(), 4, None),
    ],
    ids=["euler", "heun", "dpm2s", "dpm2m", "rk4"],
)
def test_variance_error_and_order(sampler, order, table):
    """Against the exact map x(0) - m = sqrt(q / (q + smax^2)) (x(smax) - m): specification 2.4.

    The last step, to 0, has an error of sigma_min^2 / q whatever the scheme: with 1e-4 it is not seen.
    """
    exact = VARIANCE if table else VARIANCE * 80.0**2 / (VARIANCE + 80.0**2)
    error = []
    for i, steps in enumerate((18, 36, 72, 144)):
        mean, variance = moments(sampler=sampler, steps=steps, sigma_min=1e-4 if table is None else 0.002)
        error.append(abs(variance / exact - 1))
        if table is not None:
            assert error[-1] < 1.5 * table[i]
        assert abs(mean - MEAN) < 0.05
    assert math.log2(error[2] / error[3]) > order - 0.25


def test_mean_has_the_bias_of_a_finite_start():
    # x(0) - m = sqrt(q / (q + smax^2)) (x(smax) - m), and x(smax) has mean 0.
    mean, _ = moments(steps=400, sigma_min=0.002)
    assert MEAN - mean == pytest.approx(MEAN * math.sqrt(VARIANCE / (VARIANCE + 80.0**2)), rel=0.02)


class Basis:
    """Noise that gives member j > 0 a one in the j-th draw of the sampler and zero elsewhere."""

    def draw(self, key, shape, /, *, device, dtype, window=None):
        column = 0 if key.stream.endswith("/start") else 1 + key.step
        one = (key.member == column + 1).expand(key.batch, key.members).to(dtype)
        return one.reshape(key.batch, key.members, *[1] * len(shape)).expand(-1, -1, *shape)

    def to_dict(self):
        return {"type": "Basis"}


def test_churn_keeps_the_marginal():
    settings = {"steps": 200, "sigma_min": 0.002, "sampler": Heun()}
    stirred = EDM(noise=Basis(), churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.0, **settings)
    key = Key(0, torch.tensor([0]), torch.arange(202))
    x = stirred.sample(Gaussian(), torch.zeros(1, 1, dtype=torch.float64), {}, key)[0, :, 0]
    variance = float((x[1:] - x[0]).square().sum())
    assert (x[2:] != x[0]).sum() > 50  # churn was at work
    assert variance == pytest.approx(VARIANCE, rel=0.01)
    assert float(x[0]) == pytest.approx(MEAN, abs=3e-3)


def test_churn_has_the_size_of_the_paper():
    """gamma = min(S_churn / n, sqrt 2 - 1) in [S_tmin, S_tmax]; noise S_noise sqrt(stirred^2 - sigma^2)."""
    for churn, gamma in ((1.0, 0.2), (5.0, math.sqrt(2) - 1)):
        seen = []

        class Watch(Gaussian):
            def predict(self, x, cond, /, *, t, noise, seen=seen):
                seen.append((math.exp(4 * float(t[0])), float(x[0, 0])))
                return super().predict(x, cond, t=t, noise=noise)

        edm = EDM(steps=5, churn=churn, churn_max=50.0, sampler=Euler(), noise=Tape())
        key = Key(0, torch.tensor([0]), torch.tensor([1]))
        edm.sample(Watch(), torch.zeros(1, 1, dtype=torch.float64), {}, key)
        stirs = [1 + gamma if 0.75 <= level <= 50 else 1.0 for level in edm.levels()[:-1]]
        assert [s for s, _ in seen] == pytest.approx(
            [a * b for a, b in zip(edm.levels(), stirs, strict=False)]
        )
        assert stirs.count(1.0) == 3  # 80 is above, two levels are below
        # The step from 80, without churn, is known; then 1.05 sqrt(stirred^2 - sigma^2) of the noise 1.
        top, level = edm.levels()[:2]
        best = MEAN + VARIANCE / (VARIANCE + top**2) * (top - MEAN)
        x = top + (level - top) * (top - best) / top + 1.05 * level * math.sqrt((1 + gamma) ** 2 - 1)
        assert seen[1][1] * math.sqrt((level * (1 + gamma)) ** 2 + 1) == pytest.approx(x)


def test_levels_are_those_of_the_paper_and_one_step_is_legal():
    levels = EDM(steps=5, sigma_min=0.002, sigma_max=80.0).levels()
    top, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(top + i / 4 * (low - top)) ** 7 for i in range(5)]
    assert levels == pytest.approx([*expected, 0.0])
    assert EDM(steps=1).levels() == pytest.approx([80.0, 0.0])
    mean, variance = moments(steps=1)
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert variance == pytest.approx((80 * VARIANCE / (80**2 + VARIANCE)) ** 2, rel=1e-9)


def test_loss_of_the_exact_denoiser_is_the_closed_form():
    """E |F - F*|^2 of the best F is (sigma^2 + sd^2) / (sigma sd)^2 times the posterior variance."""
    n = 20_000
    g = torch.Generator().manual_seed(0)
    x1 = MEAN + math.sqrt(VARIANCE) * torch.randn(n, 1, generator=g, dtype=torch.float64)
    edm, key = EDM(sigma_data=0.8), Key(0, torch.arange(n), torch.tensor([0]))
    out = edm.loss(Gaussian(0.8), Batch(base=x1, target=x1, cond={}), key)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    sigma2 = (2 * (-1.2 + 1.2 * torch.special.ndtri(u))).exp()
    posterior = VARIANCE * sigma2 / (VARIANCE + sigma2)
    expected = ((sigma2 + 0.64) / (0.64 * sigma2) * posterior).mean()
    # A chi-square per row: relative standard error near sqrt(2 / n) = 1 %.
    assert float(out.loss) == pytest.approx(float(expected), rel=0.04)
    assert float(out.count) == n


def test_one_step_methods_are_exact_for_the_flat_denoiser():
    """D = const makes every scheme but Heun exact in one step: DPM++ integrates the linear part exactly."""
    x = torch.tensor([3.0], dtype=torch.float64)
    for scheme in (DPM2S(), DPM2M()):
        out, _ = scheme.denoise_step(lambda y, _: torch.full_like(y, 0.4), x, 2.0, 0.5, None)
        assert float(out) == pytest.approx(0.4 + 0.25 * 2.6, rel=1e-14)


def test_multistep_extrapolates_a_denoiser_that_is_linear_in_log_sigma():
    """With D = ln sigma at both levels, D at the midpoint in log sigma is what 2M must use."""
    x = torch.tensor([1.0], dtype=torch.float64)
    denoise = lambda y, sigma: torch.full_like(y, math.log(sigma))  # noqa: E731
    out, last = DPM2M().denoise_step(denoise, x, 2.0, 0.7, (5.0, denoise(x, 5.0)))
    mid = math.log(math.sqrt(2.0 * 0.7))
    assert float(out) == pytest.approx(mid + 0.35 * (1.0 - mid), rel=1e-14)
    assert last[0] == 2.0
    assert float(last[1]) == math.log(2.0)


def test_rho_quantile_training_sees_the_levels_of_gencast():
    labels, n = [], 4000

    class Watch(Gaussian):
        def predict(self, x, cond, /, *, t, noise):
            labels.append(t)
            return torch.zeros_like(x)

    x = torch.zeros(n, 1, dtype=torch.float64)
    edm = EDM(training=RhoQuantile(low=0.02, high=88.0))
    edm.loss(Watch(), Batch(base=x, target=x, cond={}), Key(0, torch.arange(n), torch.tensor([0])))
    root = (4 * labels[0]).exp() ** (1 / 7)
    low, high = 0.02 ** (1 / 7), 88 ** (1 / 7)
    uniform = ((root - low) / (high - low)).sort().values
    assert (uniform - (torch.arange(n) + 0.5) / n).abs().max() < 1.63 / math.sqrt(n)


def test_settings_are_checked():
    with pytest.raises(TypeError, match="EDM needs one of the samplers DPM2S, DPM2M, Euler, Heun, RK4"):
        EDM(sampler=SRA1())
    with pytest.raises(ValueError, match="churn breaks the history"):
        EDM(sampler=DPM2M(), churn=1.0)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        EDM(sigma_min=3.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        EDM(steps=0)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        EDM(sigma_data=(1.0, 0.0))
    with pytest.raises(ValueError, match="sigma_data has 2 values for 3 channels"):
        EDM(sigma_data=(1.0, 2.0)).required(3)
