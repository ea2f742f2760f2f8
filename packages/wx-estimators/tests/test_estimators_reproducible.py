"""T12: a member is the same in any batch, order, chunk, rank and shard, and after a restart. T15: seeds."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from wx_estimators import (
    DPM2M,
    EDM,
    RK4,
    Consistency,
    EnsembleCRPS,
    EulerMaruyama,
    FlowMatching,
    Key,
    Regression,
    SphericalNoise,
    StochasticHeun,
    StochasticInterpolant,
    WhiteNoise,
    Window,
    bind,
)
from wx_estimators._noise import AntitheticNoise, AR1Noise, AtlasNoise, ShardNoise, StudentTNoise

GRID = (37, 24)
SHAPE = (3, *GRID)
LATITUDES = tuple(np.linspace(90.0, -90.0, GRID[0]))
LEADS = 4


def sources(engine):
    white = WhiteNoise(engine)
    sphere = SphericalNoise(latitudes=LATITUDES, longitudes=GRID[1], spectrum="flat", engine=engine)
    return {
        "white": white,
        "sphere": sphere,
        "atlas": AtlasNoise(rows=GRID[0], columns=GRID[1], dof=5.0, engine=engine),
        "ar1": AR1Noise(source=sphere, step=6.0, tau=24.0),
        "antithetic": AntitheticNoise(white),
        "student": StudentTNoise(source=white, dof=4.0),
    }


SOURCES = {f"{name}-{e}": s for e in ("generator", "philox") for name, s in sources(e).items()}
NOISES = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
FIELD = sources("philox")["ar1"]
ESTIMATORS = {
    "sra1": StochasticInterpolant(steps=3, noise=FIELD),
    "heun-foellmer": StochasticInterpolant(
        steps=3, sampler=StochasticHeun(), power=2, diffusion="foellmer", noise=SOURCES["sphere-generator"]
    ),
    "published": StochasticInterpolant(
        steps=3, preconditioning="atlas", sampler=EulerMaruyama(), noise=SOURCES["atlas-philox"]
    ),
    "interpolant-flow": StochasticInterpolant(
        steps=3, diffusion="none", sampler=RK4(), noise=SOURCES["white-philox"]
    ),
    "flow": FlowMatching(steps=3, noise=SOURCES["student-philox"]),
    "edm": EDM(steps=4, sampler=DPM2M(), noise=SOURCES["student-generator"]),
    "churn": EDM(steps=4, churn=2.5, noise=SOURCES["sphere-philox"]),
    "consistency": Consistency(steps=3, noise=SOURCES["sphere-philox"]),
    "crps-field": EnsembleCRPS(noise_shape=SHAPE, noise=FIELD),
    "crps-vector": EnsembleCRPS(noise_shape=(5,), noise=WhiteNoise("philox")),
    "regression": Regression(),
}
EACH = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


class Shared:
    """Negative control: a source that forgets the member number."""

    def draw(self, key, shape, /, *, device="cpu", dtype=torch.float32, window=None):
        forgetful = replace(key, member=torch.zeros_like(key.member))
        return WhiteNoise().draw(forgetful, shape, device=device, dtype=dtype, window=window)


class Positional:
    """Negative control: noise from the place in the batch, as with one generator for the whole batch."""

    def draw(self, key, shape, /, *, device="cpu", dtype=torch.float32, window=None):
        place = torch.arange(key.batch * key.members).reshape(key.batch, key.members)
        here = replace(key, init=torch.zeros_like(key.init), member=place)
        return WhiteNoise().draw(here, shape, device=device, dtype=dtype, window=window)


class Local(torch.nn.Module):
    """A network without sums over points, the same on a part of the grid."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def predict(self, x, cond, /, *, t, noise):
        y = 0.3 * cond["state"]
        for extra in (x, noise):
            if extra is not None:
                flat = extra if extra.ndim == y.ndim else extra.mean(1).reshape(-1, 1, 1, 1)
                y = y + 0.5 * torch.tanh(flat)
        return y if t is None else y * torch.cos(t).reshape(-1, 1, 1, 1)


def key(members=range(8), inits=(-5, 438_000), lead=3):
    return Key(7, torch.tensor(inits), torch.tensor(list(members)), lead=lead)


def sample(estimator, k, *, chunk=None, rows=slice(None), columns=slice(None)):
    state = torch.arange(k.batch * 3 * GRID[0] * GRID[1], dtype=torch.float32)
    state = torch.sin(state).reshape(k.batch, *SHAPE)
    # States belong to initial times, not to places in the batch.
    state = state[:1] + k.init.reshape(-1, 1, 1, 1).sign() * state[:1].flip(-1)
    state = state[..., rows, columns].contiguous()
    net = Local(estimator.required(3))
    return estimator.sample(net, state, {"state": state}, k, chunk=chunk)


def check_subsets(draw):
    """Every way to ask for the same members, against one call for all; `draw` maps a key to (B, M, ...)."""
    whole = draw(key())
    assert torch.equal(torch.cat([draw(key(range(4))), draw(key(range(4, 8)))], 1), whole)
    assert torch.equal(torch.cat([draw(key([m])) for m in range(8)], 1), whole)
    assert torch.equal(draw(key(reversed(range(8)))).flip(1), whole)
    assert torch.equal(draw(key(inits=(438_000, -5))).flip(0), whole)
    assert torch.equal(torch.cat([draw(key(inits=(i,))) for i in (-5, 438_000)]), whole)
    rows = [draw(key().rows(slice(i, i + 3))) for i in range(0, 16, 3)]
    assert torch.equal(torch.cat(rows).reshape(whole.shape), whole)


def check_distinct(draw):
    """No two members, initial times or leads have the same noise, up to sign."""
    fields = torch.cat([draw(key(lead=lead)).flatten(0, 1) for lead in (0, 1)]).flatten(1).double()
    likeness = torch.corrcoef(fields).abs() - torch.eye(len(fields))
    assert likeness.max() < 0.95


@NOISES
def test_noise_does_not_depend_on_how_members_are_asked_for(source):
    check_subsets(lambda k: source.draw(k, SHAPE))


@pytest.mark.parametrize("name", [n for n in SOURCES if "antithetic" not in n and "ar1" not in n])
def test_members_initial_times_and_leads_have_their_own_noise(name):
    check_distinct(lambda k: SOURCES[name].draw(k, SHAPE))


def test_a_seed_shared_by_members_fails():
    with pytest.raises(AssertionError):
        check_distinct(lambda k: Shared().draw(k, SHAPE))


def test_noise_by_place_in_the_batch_fails():
    with pytest.raises(AssertionError):
        check_subsets(lambda k: Positional().draw(k, SHAPE))


@NOISES
def test_a_window_has_the_bits_of_the_global_draw(source):
    whole = source.draw(key(range(2)), SHAPE)
    boxes = [
        ((0, 0, 0), SHAPE),
        ((0, 0, 0), (3, 19, 24)),
        ((0, 19, 0), (3, 18, 24)),
        ((0, 36, 0), (3, 1, 24)),
        ((1, 5, 7), (2, 20, 11)),
        ((2, 17, 23), (1, 1, 1)),
    ]
    for start, shape in boxes:
        window = Window(global_shape=SHAPE, start=start)
        part = source.draw(key(range(2)), shape, window=window)
        assert torch.equal(part, whole[(slice(None), slice(None), *window.slices(shape))])


@pytest.mark.parametrize("engine", ["generator", "philox"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (9, 5), (1, 6, 5), (2, 2, 70_000)], ids=str)
def test_windows_of_every_rank_and_size_have_the_bits_of_the_global_draw(engine, shape):
    source = WhiteNoise(engine)
    whole = source.draw(key(range(2)), shape)
    for first in range(min(6, shape[0])):
        start = (first, *[n // 2 for n in shape[1:]])
        size = tuple(n - s for n, s in zip(shape, start, strict=True))
        window = Window(global_shape=shape, start=start)
        part = source.draw(key(range(2)), size, window=window)
        assert torch.equal(part, whole[(slice(None), slice(None), *window.slices(size))])


@NOISES
def test_noise_is_the_same_in_every_dtype_and_leaves_global_state_alone(source):
    before = torch.random.get_rng_state()
    single = source.draw(key(), SHAPE)
    double = source.draw(key(), SHAPE, dtype=torch.float64)
    assert torch.equal(double.float(), single)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_noise_vector_is_the_same_on_every_shard():
    vector = WhiteNoise("philox")
    shards = [ShardNoise(source=vector, grid=GRID, start=(s, 0)) for s in (0, 19)]
    whole = vector.draw(key(), (5,))
    assert all(torch.equal(shard.draw(key(), (5,)), whole) for shard in shards)


def test_shard_noise_refuses_a_second_window_and_a_start_of_another_length():
    shard = ShardNoise(source=WhiteNoise(), grid=GRID, start=(0, 0))
    with pytest.raises(ValueError, match="sets the window itself"):
        shard.draw(key(), SHAPE, window=Window(global_shape=SHAPE, start=(0, 0, 0)))
    with pytest.raises(ValueError, match="same length"):
        ShardNoise(source=WhiteNoise(), grid=GRID, start=(0,))
    with pytest.raises(ValueError, match="leaves the global shape"):
        ShardNoise(source=WhiteNoise("philox"), grid=GRID, start=(30, 0)).draw(key(), (3, 8, 24))


# Lead time and restarts


@pytest.mark.parametrize("name", ["ar1-generator", "ar1-philox"])
def test_carried_and_recomputed_ar1_states_have_the_same_bits(name):
    source, state = SOURCES[name], None
    for lead in range(LEADS):
        state = source.advance(state, key(lead=lead), SHAPE)
        assert torch.equal(state, source.draw(key(lead=lead), SHAPE))
    window = Window(global_shape=SHAPE, start=(0, 19, 0))
    part = None
    for lead in range(LEADS):
        part = source.advance(part, key(lead=lead), (3, 18, 24), window=window)
    assert torch.equal(part, state[..., 19:, :])


def rollout(estimator, state, k, leads):
    """Autoregressive steps of a bound sampler, one member per row."""
    sampler = bind(estimator, Local(estimator.required(3)))
    for lead in leads:
        state = sampler.sample(state, {"state": state}, k.at_lead(lead))
    return state


@EACH
def test_a_rollout_restarted_in_the_middle_is_the_same(estimator):
    k = key(range(2)).rows()
    start = torch.linspace(-1, 1, 3 * GRID[0] * GRID[1]).reshape(1, *SHAPE).expand(4, -1, -1, -1)
    straight = rollout(estimator, start, k, range(LEADS))
    half = rollout(estimator, start, k, range(2))
    assert torch.equal(rollout(estimator, half.clone(), k, range(2, LEADS)), straight)
    # One member of the four, alone, from its own saved state.
    one = replace(k, init=k.init[3:], member=k.member[3:])
    torch.testing.assert_close(
        rollout(estimator, half[3:], one, range(2, LEADS)), straight[3:], rtol=0, atol=1e-6
    )


# Estimators


@EACH
def test_samples_do_not_depend_on_how_members_are_asked_for(estimator):
    check_subsets(lambda k: sample(estimator, k))


@EACH
@pytest.mark.parametrize("chunk", [1, 3, 16, 100])
def test_chunks_change_nothing(estimator, chunk):
    torch.testing.assert_close(
        sample(estimator, key(), chunk=chunk), sample(estimator, key()), rtol=0, atol=1e-6
    )


@EACH
def test_a_shard_of_the_grid_samples_its_part_of_the_global_fields(estimator):
    whole = sample(estimator, key(range(3)))
    for rows, columns in ((slice(0, 19), slice(0, 24)), (slice(19, 37), slice(5, 16))):
        local = estimator
        if hasattr(estimator, "noise"):
            shard = ShardNoise(source=estimator.noise, grid=GRID, start=(rows.start, columns.start))
            local = replace(estimator, noise=shard)
            assert local.to_dict() == estimator.to_dict()
        if isinstance(local, EnsembleCRPS) and len(local.noise_shape) == 3:
            shape = (3, rows.stop - rows.start, columns.stop - columns.start)
            local = replace(local, noise_shape=shape)
        part = sample(local, key(range(3)), rows=rows, columns=columns)
        torch.testing.assert_close(part, whole[..., rows, columns], rtol=0, atol=1e-6)


def test_samples_of_members_with_a_shared_seed_are_copies():
    with pytest.raises(AssertionError):
        check_distinct(lambda k: sample(FlowMatching(steps=2, noise=Shared()), k))


# Ranks


def share(rank, folder, world):
    """What one rank computes: its members of every source and estimator, and its rows of the grid."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    members = range(4 * rank, 4 * rank + 4)
    first, last = ((0, 19), (19, 37))[rank]
    window = Window(global_shape=SHAPE, start=(0, first, 0))
    parts = {}
    for name, source in SOURCES.items():
        parts["members", name] = source.draw(key(members), SHAPE)
        parts["grid", name] = source.draw(key(range(2)), (3, last - first, GRID[1]), window=window)
    for name, estimator in ESTIMATORS.items():
        parts["samples", name] = sample(estimator, key(members))
    everything = [None] * world
    dist.all_gather_object(everything, parts)
    if rank == 0:
        torch.save(everything, f"{folder}/parts.pt")
    dist.destroy_process_group()


def test_two_gloo_ranks_draw_what_one_process_draws(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=share, args=(rank, str(tmp_path), 2)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    parts = torch.load(tmp_path / "parts.pt", weights_only=True)
    for (what, name), value in parts[0].items():
        other = parts[1][what, name]
        if what == "members":
            assert torch.equal(torch.cat([value, other], 1), SOURCES[name].draw(key(), SHAPE)), name
        elif what == "grid":
            assert torch.equal(torch.cat([value, other], -2), SOURCES[name].draw(key(range(2)), SHAPE)), name
        else:
            whole = sample(ESTIMATORS[name], key())
            torch.testing.assert_close(torch.cat([value, other], 1), whole, rtol=0, atol=1e-6)


# Keys


def test_keys_take_times_before_1970_and_any_64_bit_member():
    times = np.array(["1940-01-01T06", "1969-12-31T23", "1970-01-01T00"], "datetime64[h]")
    members = [0, 2**31, 2**32, 2**62, -1, -(2**63), 2**63 - 1]
    k = Key.from_times(-(2**63), times, members)
    assert k.init.tolist() == [-262_986, -1, 0]
    seeds = k.seeds()
    assert len(np.unique(seeds)) == seeds.size
    for engine in ("generator", "philox"):
        x = WhiteNoise(engine).draw(k, (64,)).flatten(0, 1).double()
        likeness = torch.corrcoef(x).abs() - torch.eye(len(x))
        assert likeness.max() < 6 / np.sqrt(64)
        alone = replace(k, init=k.init[1:2], member=k.member[3:4])
        assert torch.equal(
            WhiteNoise(engine).draw(alone, (64,))[0, 0], WhiteNoise(engine).draw(k, (64,))[1, 3]
        )


def test_seeds_leads_and_steps_beyond_32_bits_all_count():
    base = key()
    variants = [base]
    variants += [replace(base, seed=base.seed + d) for d in (2**32, 2**40, -(2**33))]
    variants += [replace(base, lead=d) for d in (0, 2**33)] + [replace(base, step=d) for d in (1, 2**34)]
    draws = [WhiteNoise(e).draw(k, (8,)) for k in variants for e in ("generator", "philox")]
    flat = torch.stack(draws).reshape(-1, 8)
    assert len(torch.unique(flat, dim=0)) == len(flat)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: replace(key(), seed=2**63), ValueError, "Key.seed must fit 64 signed bits"),
        (lambda: replace(key(), lead=-(2**63) - 1), ValueError, "Key.lead must fit"),
        (lambda: replace(key(), member=torch.ones(2, dtype=torch.bool)), TypeError, "integer tensor"),
        (
            lambda: Key.from_times(1, np.array(["2020-01-01T00:30"], "datetime64[m]"), [0]),
            ValueError,
            "whole hours",
        ),
        (lambda: Key.from_times(1, np.array(["NaT"], "datetime64[h]"), [0]), ValueError, "whole hours"),
    ],
)
def test_keys_refuse_what_they_cannot_hold(make, error, message):
    with pytest.raises(error, match=message):
        make()
