"""Rollout fine-tuning: the exact chain of a linear process, gradients against plain code, memory, errors."""

from dataclasses import dataclass, replace

import pytest
import torch

from wx_estimators import CRPS, EDM, EnsembleCRPS, Key, NetSpec, Rollout, RolloutBatch

A = torch.tensor([[0.8, 0.2], [-0.1, 0.7]], dtype=torch.float64)
Q = torch.tensor([[0.30, 0.18], [0.18, 0.20]], dtype=torch.float64)
L = torch.linalg.cholesky(Q)


@dataclass
class Residual:
    """States are physical; the estimator sees them halved, and gives residuals in units of 2."""

    scale: float = 2.0

    def inputs(self, previous, current, known):
        return current / self.scale, {
            "state": current / self.scale,
            "previous": previous / self.scale,
            **known,
        }

    def advance(self, current, output):
        return current + self.scale * output


class Linear(torch.nn.Module):
    """The generator of x' = A x + L xi + shift, as a residual in the transition's units."""

    spec = NetSpec(out_channels=2, takes_x=False, takes_t=False, noise=(2,))

    def __init__(self, a=A, size=L):
        super().__init__()
        self.a, self.l = torch.nn.Parameter(a.clone()), torch.nn.Parameter(size.clone())
        self.calls = 0

    def predict(self, _x, cond, /, *, t, noise):  # noqa: ARG002
        self.calls += 1
        state = 2 * cond["state"]
        shift = cond.get("shift", 0.0)
        return (state @ self.a.T + noise.to(state) @ self.l.T + shift - state) / 2


def batch(steps, rows=3, known=False):
    g = torch.Generator().manual_seed(5)
    draw = torch.randn(rows, steps + 2, 2, generator=g, dtype=torch.float64)
    shift = {"shift": torch.randn(rows, steps, 2, generator=g, dtype=torch.float64)} if known else {}
    return RolloutBatch(previous=draw[:, 0], current=draw[:, 1], targets=draw[:, 2:], known=shift)


def key(rows=3, members=1):
    return Key(seed=3, init=torch.arange(rows) * 6, member=torch.arange(members))


def rollout(**options):
    estimator = EnsembleCRPS(noise_shape=(2,))
    return Rollout(**{"estimator": estimator, "transition": Residual(), "members": 4} | options)


def test_spread_and_mean_of_an_exact_chain():
    """Mean A^k x0, covariance sum_j A^j Q A'^j, and after 50 steps that of S = A S A' + Q."""
    members, steps = 4_000, 50
    start = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    data = RolloutBatch(previous=start, current=start, targets=torch.zeros(1, steps, 2, dtype=torch.float64))
    with torch.no_grad():
        states = list(rollout(members=members).forecast(Linear(), data, key(rows=1)))
    mean, covariance = start[0], torch.zeros(2, 2, dtype=torch.float64)
    for lead, ensemble in enumerate(states, 1):
        mean, covariance = A @ mean, A @ covariance @ A.T + Q
        if lead in (1, 2, 5, 10, 50):
            found = ensemble[0]
            assert (found.mean(0) - mean).abs().max() < 5 * (covariance.diagonal().max() / members) ** 0.5
            # Relative standard error of a variance: sqrt(2 / M).
            assert (found.T.cov() - covariance).abs().max() < 5 * covariance.max() * (2 / members) ** 0.5
    stationary = torch.linalg.solve(
        torch.eye(4, dtype=torch.float64) - torch.kron(A, A), Q.reshape(-1)
    ).reshape(2, 2)
    torch.testing.assert_close(covariance, stationary, rtol=1e-4, atol=1e-6)


def test_calibrated_ensemble_has_equal_spread_and_error():
    """Truth drawn from the same chain: E(mean error)^2 = (1 + 1/M) E variance at every lead."""
    rows, members, steps, g = 4000, 8, 6, torch.Generator().manual_seed(1)
    state = torch.randn(rows, 2, generator=g, dtype=torch.float64)
    truth, now = [], state
    for _ in range(steps):
        now = now @ A.T + torch.randn(rows, 2, generator=g, dtype=torch.float64) @ L.T
        truth.append(now)
    data = RolloutBatch(previous=state, current=state, targets=torch.stack(truth, 1))
    with torch.no_grad():
        for lead, ensemble in enumerate(rollout(members=members).forecast(Linear(), data, key(rows=rows))):
            error = (ensemble.mean(1) - truth[lead]).square().mean()
            spread = ensemble.var(1).mean() * (1 + 1 / members)
            assert (spread / error) ** 0.5 == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_loss_and_gradient_are_those_of_plain_code(checkpoint, known):
    net, data, estimator = Linear(), batch(3, known=known), EnsembleCRPS(noise_shape=(2,))
    out = rollout(checkpoint=checkpoint, lead_weights=(1.0, 0.0, 2.0)).loss(net, data, key())
    out.loss.backward()
    found = net.a.grad.clone(), net.l.grad.clone()

    plain, members = Linear(), key(members=4)
    states = data.current[:, None].expand(-1, 4, -1)
    losses = []
    for lead in range(3):
        rows = members.rows().at_lead(lead + 1)
        noise = estimator.noise.draw(
            rows.sub("sample").rows().sub("network"), (2,), device="cpu", dtype=torch.float64
        )
        states = states @ plain.a.T + noise.reshape(3, 4, 2) @ plain.l.T
        if known:
            states = states + 2 * data.known["shift"][:, None, lead] / 2
        losses.append(CRPS().score(states, data.targets[:, lead], None).mean())
    expected = (losses[0] + 2 * losses[2]) / 3
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(found, (plain.a.grad, plain.l.grad))
    torch.testing.assert_close(out.members, states)


def test_checkpointing_calls_again_and_changes_nothing():
    results = []
    for again in (False, True):
        net = Linear()
        rollout(checkpoint=again).loss(net, batch(4), key()).loss.backward()
        results.append((net.calls, net.a.grad, net.l.grad))
    assert (results[0][0], results[1][0]) == (4, 8)
    assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True))


def test_gradient_is_cut_where_asked():
    """With detach_every=1 each step is trained alone: the gradient is that of states held fixed."""
    net, data = Linear(), batch(3)
    rollout(detach_every=1).loss(net, data, key()).loss.backward()
    cut, alone = net.a.grad.clone(), Linear()
    with torch.no_grad():
        states = [data.current[:, None].expand(-1, 4, -1), *rollout().forecast(alone, data, key())]
    losses = []
    for lead in range(3):
        rows = [
            RolloutBatch(
                previous=states[lead][:, m],
                current=states[lead][:, m],
                targets=data.targets[:, lead : lead + 1],
            )
            for m in range(4)
        ]
        # Member m beside another: its noise at this lead does not depend on that.
        pairs = [replace(key(), lead=lead, member=torch.tensor([m, m + 9])) for m in range(4)]
        forecasts = [rollout(members=2).forecast(alone, r, k) for r, k in zip(rows, pairs, strict=True)]
        following = torch.cat([next(forecast)[:, :1] for forecast in forecasts], 1)
        losses.append(CRPS().score(following, data.targets[:, lead], None).mean())
    (sum(losses) / 3).backward()
    torch.testing.assert_close(cut, alone.a.grad)
    whole = Linear()
    rollout().loss(whole, data, key()).loss.backward()
    assert (whole.a.grad - cut).abs().max() > 1e-3


def test_members_do_not_depend_on_the_ensemble():
    with torch.no_grad():
        few, many = (
            list(rollout(members=m).forecast(Linear(), batch(3), key(members=m)))[-1] for m in (3, 6)
        )
    torch.testing.assert_close(many[:, :3], few, rtol=0, atol=0)


def test_training_finds_the_chain():
    """From a wrong matrix and noise, on pairs of steps of the true chain."""
    g = torch.Generator().manual_seed(0)
    net = Linear(0.5 * A, 0.5 * L)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    train = rollout(members=2)
    for step in range(400):
        state = torch.randn(256, 2, generator=g, dtype=torch.float64)
        truth, now = [], state
        for _ in range(2):
            now = now @ A.T + torch.randn(256, 2, generator=g, dtype=torch.float64) @ L.T
            truth.append(now)
        data = RolloutBatch(previous=state, current=state, targets=torch.stack(truth, 1))
        loss = train.loss(net, data, Key(seed=step, init=torch.arange(256), member=torch.tensor([0]))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net.a.detach() - A).abs().max() < 0.08
    assert ((net.l @ net.l.T).detach().diagonal() - Q.diagonal()).abs().max() < 0.06


def test_missing_targets_and_errors():
    data = batch(2)
    data.targets[0, 1, 0] = torch.nan
    assert rollout().loss(Linear(), data, key()).loss.isfinite()
    with pytest.raises(ValueError, match=r"EDM calls the network \d+ times for a sample"):
        rollout(estimator=EDM())
    with pytest.raises(ValueError, match="members must be at least 2"):
        rollout(members=1)
    with pytest.raises(ValueError, match="lead_weights must be 2 numbers"):
        rollout(lead_weights=(1.0,)).loss(Linear(), batch(2), key())
    with pytest.raises(ValueError, match="the key must name one member, or 4; it names 3"):
        rollout().loss(Linear(), batch(2), key(members=3))
    with pytest.raises(ValueError, match=r"targets \(B, L, C, \*S\)"):
        RolloutBatch(previous=data.previous, current=data.current, targets=data.current)
    with pytest.raises(ValueError, match=r"known\['f'\] must be \(B, L, ...\)"):
        replace(data, known={"f": torch.zeros(3, 1)})
