"""LatentForecaster: recurrences with known solutions, the order of calls, resuming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from wx_models import Downsample, LatentForecaster, RolloutState

SCALE = torch.tensor([0.5, 2.0])
SHIFT = torch.tensor([0.1, -0.2])
INIT = np.array(["2026-01-01T00", "2026-06-01T12"], dtype="datetime64[h]")


@dataclass(frozen=True)
class Key:
    lead: int = 0

    def at_lead(self, lead: int, /) -> Key:
        return replace(self, lead=lead)


@dataclass
class Decay:
    """r = -a z0 + b (z0 - z_-1), and remembers what it was asked."""

    a: float = 0.1
    b: float = 0.0
    leads: list[int] = field(default_factory=list)
    previous: list[Tensor] = field(default_factory=list)

    def sample(self, base: Tensor, cond: Mapping[str, Tensor], key: Key, /) -> Tensor:
        self.leads.append(key.lead)
        self.previous.append(cond["previous"])
        assert cond["state"] is base
        return -self.a * base + self.b * (base - cond["previous"])


class Repeat:
    """Decodes by repeating latent points; adds a term that the latent cannot see."""

    def project(self, residual: Tensor, state: Tensor, forcing: Tensor | None, /) -> Tensor:
        rows = residual.repeat_interleave(2, -2)[..., : state.shape[-2], :].repeat_interleave(2, -1)
        return rows if forcing is None else rows + forcing


@dataclass
class Clock:
    """A forcing whose value is the hour of the day."""

    asked: list[npt.NDArray[np.datetime64]] = field(default_factory=list)

    def at(self, valid_time: npt.NDArray[np.datetime64], /) -> Tensor:
        self.asked.append(valid_time)
        hour = (valid_time - valid_time.astype("datetime64[D]")).astype("timedelta64[h]").astype(np.float64)
        return torch.as_tensor(hour, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 5, 8)


def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 5, 8, generator=generator), torch.randn(2, 2, 5, 8, generator=generator)


def forecaster(sampler: Decay, **options: object) -> LatentForecaster[Key]:
    return LatentForecaster(
        sampler=sampler,
        projector=Repeat(),
        downsample=Downsample((5, 8), (2, 2)),
        residual_scale=SCALE,
        residual_shift=SHIFT,
        **options,  # type: ignore[arg-type]
    )


def test_latent_follows_its_own_recurrence() -> None:
    """z <- (1 - a s) z + m has the solution z_n = q^n z_0 + m (1 - q^n) / (1 - q), q = 1 - a s."""
    model = forecaster(Decay())
    state = model.start(*states())
    *_, last = model.rollout(state, INIT, Key(), steps=7)
    q = (1 - 0.1 * SCALE)[:, None, None]
    shift = SHIFT[:, None, None]
    expected = q**7 * state.latent_current + shift * (1 - q**7) / (1 - q)
    torch.testing.assert_close(last.latent_current, expected)
    assert last.lead == 7


def test_one_step_moves_both_states() -> None:
    previous, current = states()
    model = forecaster(Decay(a=0.3, b=0.2))
    state = model.start(previous, current)
    after = model.step(state, INIT, Key())
    z0, z1 = state.latent_current, state.latent_previous
    residual = -0.3 * z0 + 0.2 * (z0 - z1)
    scale, shift = SCALE[:, None, None], SHIFT[:, None, None]
    torch.testing.assert_close(after.latent_current, z0 + residual * scale + shift)
    decoded = Repeat().project(residual, current, None)
    torch.testing.assert_close(after.current, current + decoded * scale + shift)
    assert after.previous is current
    assert after.latent_previous is z0


def test_latent_states_are_cached_and_can_be_encoded_again() -> None:
    """The clock disturbs the decoded state only, so that a new encoding differs from the cached latent."""
    cached, encoded = Decay(), Decay()
    for sampler, again in ((cached, False), (encoded, True)):
        model = forecaster(sampler, forcing=Clock(), reencode_previous=again)
        list(model.rollout(model.start(*states()), INIT, Key(), steps=3))
    torch.testing.assert_close(cached.previous[:2], encoded.previous[:2])
    assert (cached.previous[2] - encoded.previous[2]).abs().max() > 0.1


def test_forcing_is_taken_at_the_time_of_the_current_state() -> None:
    clock = Clock()
    model = forecaster(Decay(), forcing=clock)
    list(model.rollout(model.start(*states()), INIT, Key(), steps=2))
    np.testing.assert_array_equal(clock.asked[0], INIT)
    np.testing.assert_array_equal(clock.asked[1], INIT + np.timedelta64(6, "h"))


def test_each_lead_has_its_own_randomness() -> None:
    sampler = Decay()
    model = forecaster(sampler)
    list(model.rollout(model.start(*states()), INIT, Key(), steps=3))
    assert sampler.leads == [1, 2, 3]


def test_resuming_equals_going_on() -> None:
    model = forecaster(Decay(b=0.4), forcing=Clock())
    *_, straight = model.rollout(model.start(*states()), INIT, Key(), steps=5)
    *_, half = model.rollout(model.start(*states()), INIT, Key(), steps=2)
    *_, resumed = model.rollout(half, INIT, Key(), steps=3)
    assert resumed.lead == straight.lead
    for name in ("previous", "current", "latent_previous", "latent_current"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name))


def test_gradients_reach_the_start() -> None:
    previous, current = (x.requires_grad_() for x in states())
    model = forecaster(Decay(b=0.4))
    *_, last = model.rollout(model.start(previous, current), INIT, Key(), steps=2)
    last.current.sum().backward()
    assert previous.grad is not None
    assert previous.grad.any()


def test_refuses_unequal_states_and_times() -> None:
    model = forecaster(Decay())
    previous, current = states()
    with pytest.raises(ValueError, match="must both be"):
        model.start(previous[:, :1], current[:, :1])
    state: RolloutState = model.start(previous, current)
    with pytest.raises(ValueError, match=r"init_time must be datetime64 \(2,\)"):
        list(model.rollout(state, INIT[:1], Key(), steps=1))
    with pytest.raises(ValueError, match="must both be"):
        replace(model, residual_shift=SHIFT[:1])
