"""LatentForecaster: recurrences with known solutions, the order of calls, resuming."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wx_models import Downsample, LatentForecaster, RolloutState

SCALE = torch.tensor([0.5, 2.0])
SHIFT = torch.tensor([0.1, -0.2])
INIT = np.array(["2026-01-01T00", "2026-06-01T12"], dtype="datetime64[h]")


@dataclass(frozen=True)
class Key:
    """Row numbers, so that a test sees which rows a chunk was given."""

    numbers: tuple[int, ...] = (0, 1)
    lead: int = 0

    def at_lead(self, lead: int, /) -> Key:
        return replace(self, lead=lead)

    def rows(self, selection: slice, /) -> Key:
        return replace(self, numbers=self.numbers[selection])


@dataclass
class Decay:
    """r = -a z0 + b (z0 - z_-1), and remembers what it was asked."""

    a: float = 0.1
    b: float = 0.0
    leads: list[int] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    previous: list[Tensor] = field(default_factory=list)

    def sample(self, base: Tensor, cond: Mapping[str, Tensor], key: Key, /) -> Tensor:
        self.leads.append(key.lead)
        self.rows.append(key.numbers)
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
    state = model.start(*states(), INIT)
    *_, last = model.rollout(state, Key(), steps=7)
    q = (1 - 0.1 * SCALE)[:, None, None]
    shift = SHIFT[:, None, None]
    expected = q**7 * state.latent_current + shift * (1 - q**7) / (1 - q)
    torch.testing.assert_close(last.latent_current, expected)
    assert last.lead == 7


def test_one_step_moves_both_states() -> None:
    previous, current = states()
    model = forecaster(Decay(a=0.3, b=0.2))
    state = model.start(previous, current, INIT)
    after = model.step(state, Key())
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
        list(model.rollout(model.start(*states(), INIT), Key(), steps=3))
    torch.testing.assert_close(cached.previous[:2], encoded.previous[:2])
    assert (cached.previous[2] - encoded.previous[2]).abs().max() > 0.1


def test_forcing_is_taken_at_the_time_of_the_current_state() -> None:
    clock = Clock()
    model = forecaster(Decay(), forcing=clock)
    list(model.rollout(model.start(*states(), INIT), Key(), steps=2))
    np.testing.assert_array_equal(clock.asked[0], INIT)
    np.testing.assert_array_equal(clock.asked[1], INIT + np.timedelta64(6, "h"))


def test_each_lead_has_its_own_randomness() -> None:
    sampler = Decay()
    model = forecaster(sampler)
    list(model.rollout(model.start(*states(), INIT), Key(), steps=3))
    assert sampler.leads == [1, 2, 3]


def test_resuming_equals_going_on() -> None:
    model = forecaster(Decay(b=0.4), forcing=Clock())
    *_, straight = model.rollout(model.start(*states(), INIT), Key(), steps=5)
    *_, half = model.rollout(model.start(*states(), INIT), Key(), steps=2)
    *_, resumed = model.rollout(half, Key(), steps=3)
    assert resumed.lead == straight.lead
    for name in ("previous", "current", "latent_previous", "latent_current"):
        assert torch.equal(getattr(resumed, name), getattr(straight, name))


def fields_of(state: RolloutState) -> list[Tensor]:
    return [state.previous, state.current, state.latent_previous, state.latent_current]


def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = forecaster(Decay(b=0.4), forcing=Clock())
    *_, straight = model.rollout(model.start(*states(), INIT), Key(), steps=5)
    *_, half = model.rollout(model.start(*states(), INIT), Key(), steps=2)
    half.save(tmp_path / "state.safetensors")
    loaded = RolloutState.load(tmp_path / "state.safetensors")
    assert loaded.lead == 2
    np.testing.assert_array_equal(loaded.valid_time, INIT + np.timedelta64(12, "h"))
    *_, resumed = model.rollout(loaded, Key(), steps=3)
    assert all(map(torch.equal, fields_of(resumed), fields_of(straight)))
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_expanded_members_can_be_saved(tmp_path: Path) -> None:
    one = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    state = forecaster(Decay()).start(one, one, INIT)
    state.save(tmp_path / "state")
    assert torch.equal(RolloutState.load(tmp_path / "state").current, one)


def test_load_refuses_another_file(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"is not a RolloutState: RolloutState\.save"):
        RolloutState.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("again", [False, True])
def test_rows_at_once_do_not_change_the_forecast(again: bool) -> None:
    five = torch.randn(2, 5, 2, 5, 8, generator=torch.Generator().manual_seed(1))
    init, key = INIT.repeat([3, 2]), Key(numbers=(3, 1, 4, 1, 5))
    whole, parts = Decay(b=0.4), Decay(b=0.4)
    *_, expected = (model := forecaster(whole, forcing=Clock(), reencode_previous=again)).rollout(
        model.start(*five, init), key, steps=3
    )
    model = forecaster(parts, forcing=Clock(), reencode_previous=again, rows_at_once=2)
    *_, found = model.rollout(model.start(*five, init), key, steps=3)
    assert all(map(torch.equal, fields_of(found), fields_of(expected)))
    assert whole.rows == [(3, 1, 4, 1, 5)] * 3
    assert parts.rows == [(3, 1), (4, 1), (5,)] * 3
    assert parts.leads == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_rollout_keeps_no_state_but_the_last() -> None:
    model = forecaster(Decay())
    seen = []
    for state in model.rollout(model.start(*states(), INIT), Key(), steps=6):
        seen.append(weakref.ref(state.current))
        del state
        # `previous` of the state that follows is the one before.
        assert sum(reference() is not None for reference in seen) <= 2


def test_gradients_reach_the_start() -> None:
    previous, current = (x.requires_grad_() for x in states())
    model = forecaster(Decay(b=0.4))
    *_, last = model.rollout(model.start(previous, current, INIT), Key(), steps=2)
    last.current.sum().backward()
    assert previous.grad is not None
    assert previous.grad.any()


def test_a_step_takes_a_state_and_no_fields() -> None:
    """Feeding decoded fields back is the mistake that the published wrapper warns of."""
    model = forecaster(Decay())
    state = model.start(*states(), INIT)
    with pytest.raises(TypeError, match=r"expected a RolloutState, got Tensor: .*Begin with start\(\)"):
        model.step(state.current, Key())  # type: ignore[arg-type]
    other = forecaster(Decay(), interval=np.timedelta64(12, "h"))
    with pytest.raises(ValueError, match="made with steps of 6 hours, not 12 hours"):
        other.step(state, Key())
    with pytest.raises(ValueError, match="the state has 2 channels, the forecaster 3"):
        replace(model, residual_scale=torch.ones(3), residual_shift=torch.zeros(3)).step(state, Key())


def test_refuses_unequal_states_and_times() -> None:
    model = forecaster(Decay())
    previous, current = states()
    with pytest.raises(ValueError, match="must both be"):
        model.start(previous[:, :1], current[:, :1], INIT)
    with pytest.raises(ValueError, match=r"init_time must be datetime64 \(2,\)"):
        model.start(previous, current, INIT[:1])
    with pytest.raises(ValueError, match="init_time must be datetime64"):
        model.start(previous, current, np.arange(2))
    with pytest.raises(ValueError, match="must both be"):
        replace(model, residual_shift=SHIFT[:1])
    with pytest.raises(ValueError, match="rows_at_once must be positive"):
        replace(model, rows_at_once=0)
    state = model.start(previous, current, INIT)
    with pytest.raises(ValueError, match=r"latent states must be \(2, 2, h, w\)"):
        replace(state, latent_previous=current[:1], latent_current=current[:1])


def test_refuses_values_that_are_not_finite() -> None:
    previous, current = states()
    current[1, 0, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"current has values that are not finite; fill them \(SST"):
        forecaster(Decay()).start(previous, current, INIT)
