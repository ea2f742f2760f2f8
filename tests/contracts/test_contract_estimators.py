"""The Protocols of wx-estimators: who satisfies them, what must not, and how each implementation behaves.

mypy and pyright check the annotated factories below and refuse the `refused_*` functions; the tests run every
factory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import wx_estimators
import wx_models

Cond = Mapping[str, Tensor]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CHANNELS, GRID = 3, (5, 8)


def fields(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, *GRID, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# NetworkSpec and Network


def network_spec(spec: wx_models.NetworkSpec) -> wx_estimators.NetworkSpec:
    return spec


def own_network_spec(spec: wx_estimators.NetSpec) -> wx_estimators.NetworkSpec:
    return spec


class SpecWithNoiseWidth(Protocol):
    out_channels: int
    takes_x: bool
    takes_t: bool
    noise: int


def refused_network_spec(spec: SpecWithNoiseWidth) -> wx_estimators.NetworkSpec:
    return spec  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


WITHOUT_X = wx_models.Stream(("state",), 12), wx_models.Stream(("previous",), 4)


def transformer(
    kind: type[wx_models.LatentTransformer] = wx_models.LatentTransformer, **settings: Any
) -> wx_models.LatentTransformer:
    """A small network in float64, with weights that let every input reach the output."""
    config = wx_models.LatentTransformerConfig(
        channels=CHANNELS, grid=GRID, width=16, depth=2, heads=2, **settings
    )
    network = kind(config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return network


def denoiser() -> wx_estimators.Network:
    return transformer()


def local_denoiser() -> wx_estimators.Network:
    return transformer(attention="local")


def forced_denoiser() -> wx_estimators.Network:
    return transformer(forcing_channels=2)


def noise_driven() -> wx_estimators.Network:
    return transformer(streams=WITHOUT_X, takes_t=False, noise_dim=4)


class PredictWithoutNoise(Protocol):
    @property
    def spec(self) -> wx_estimators.NetSpec: ...
    def predict(self, x: Tensor | None, cond: Cond, /, *, t: Tensor | None) -> Tensor: ...


class PredictNeedsX(Protocol):
    @property
    def spec(self) -> wx_estimators.NetSpec: ...
    def predict(self, x: Tensor, cond: Cond, /, *, t: Tensor | None, noise: Tensor | None) -> Tensor: ...


def refused_module(network: nn.Module) -> wx_estimators.Network:
    return network  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def refused_network_without_noise(network: PredictWithoutNoise) -> wx_estimators.Network:
    return network  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def refused_network_that_needs_x(network: PredictNeedsX) -> wx_estimators.Network:
    return network  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


NETWORKS = pytest.mark.parametrize("make", [denoiser, local_denoiser, forced_denoiser, noise_driven])
MakeNetwork = Callable[[], wx_estimators.Network]
Inputs = dict[str, Tensor]


def inputs(network: wx_estimators.Network, rows: int) -> Inputs:
    """Everything that the specification asks for, by name; forcing fields for whoever reads them."""
    given = {
        "state": fields(rows, CHANNELS, seed=1),
        "previous": fields(rows, CHANNELS, seed=2),
        "forcing": fields(rows, 2, seed=3),
    }
    if network.spec.takes_x:
        given["x"] = fields(rows, network.spec.out_channels, seed=4)
    if network.spec.takes_t:
        given["t"] = torch.linspace(0.1, 0.9, rows, dtype=torch.float64)
    if network.spec.noise is not None:
        generator = torch.Generator().manual_seed(5)
        given["noise"] = torch.randn(rows, *network.spec.noise, generator=generator, dtype=torch.float64)
    return given


def predict(network: wx_estimators.Network, given: Inputs) -> Tensor:
    cond = {name: given[name] for name in ("state", "previous", "forcing")}
    return network.predict(given.get("x"), cond, t=given.get("t"), noise=given.get("noise"))


@NETWORKS
@pytest.mark.parametrize("device", DEVICES)
def test_network_shape_dtype_device(make: MakeNetwork, device: str) -> None:
    network = make()
    assert isinstance(network, nn.Module)
    network.to(device)
    out = predict(network, {name: value.to(device) for name, value in inputs(network, 3).items()})
    assert out.shape == (3, network.spec.out_channels, *GRID)
    assert out.dtype == torch.float64
    assert out.device.type == device


@NETWORKS
def test_network_is_deterministic(make: MakeNetwork) -> None:
    network = make()
    assert torch.equal(predict(network, inputs(network, 3)), predict(network, inputs(network, 3)))


@NETWORKS
def test_network_treats_rows_alone(make: MakeNetwork) -> None:
    """A forecast must not depend on what else is in its batch. Only the blocking of products may differ."""
    network = make()
    together = predict(network, inputs(network, 3))
    for row in range(3):
        alone = predict(network, {name: value[[row]] for name, value in inputs(network, 3).items()})
        torch.testing.assert_close(alone, together[[row]], rtol=1e-12, atol=1e-12)


@NETWORKS
def test_network_gradient_reaches_inputs_and_weights(make: MakeNetwork) -> None:
    network = make()
    assert isinstance(network, nn.Module)
    given = {name: value.requires_grad_() for name, value in inputs(network, 2).items()}
    predict(network, given).square().sum().backward()
    unread = {name for name, value in given.items() if value.grad is None or not value.grad.any()}
    assert unread <= {"forcing"}
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own derivatives
@pytest.mark.parametrize("make", [denoiser, local_denoiser, forced_denoiser])
def test_network_forward_derivative_is_a_central_difference(make: MakeNetwork) -> None:
    """What `Consistency` needs of a network with `supports_jvp`, as it computes it."""
    network, given = make(), inputs(make(), 2)
    x, t, dx = given["x"], given["t"], fields(2, CHANNELS, seed=6)

    def f(x: Tensor, t: Tensor) -> Tensor:
        return predict(network, given | {"x": x, "t": t})

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        derivative = torch.func.jvp(f, (x, t), (dx, torch.ones_like(t)))[1]
        difference = (f(x + 1e-7 * dx, t + 1e-7) - f(x - 1e-7 * dx, t - 1e-7)) / 2e-7
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-6 * float(derivative.abs().max()))


@NETWORKS
def test_network_refuses_what_its_spec_lacks(make: MakeNetwork) -> None:
    network = make()
    for name, shape in (("x", (CHANNELS, *GRID)), ("t", ()), ("noise", (4,))):
        given = inputs(network, 2)
        if name in given:
            del given[name]
        else:
            given[name] = torch.zeros(2, *shape, dtype=torch.float64)
        with pytest.raises(ValueError, match=name):
            predict(network, given)


# NoiseSource


def white_noise() -> wx_estimators.NoiseSource:
    return wx_estimators.WhiteNoise()


def spherical_noise() -> wx_estimators.NoiseSource:
    latitudes = tuple(torch.linspace(90, -90, GRID[0]).tolist())
    return wx_estimators.SphericalNoise(latitudes=latitudes, longitudes=GRID[1])


class NoiseFromGenerator(Protocol):
    def draw(self, generator: torch.Generator, shape: tuple[int, ...], /) -> Tensor: ...


def refused_noise(noise: NoiseFromGenerator) -> wx_estimators.NoiseSource:
    return noise  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


NOISES = pytest.mark.parametrize("make", [white_noise, spherical_noise])
MakeNoise = Callable[[], wx_estimators.NoiseSource]


def key(batch: int = 2, members: int = 3) -> wx_estimators.Key:
    return wx_estimators.Key(7, torch.arange(batch) * 6 + 438_000, torch.arange(members))


def draw(make: MakeNoise, key: wx_estimators.Key, dtype: torch.dtype = torch.float32) -> Tensor:
    return make().draw(key, (CHANNELS, *GRID), device="cpu", dtype=dtype)


@NOISES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_shape_dtype_device(make: MakeNoise, device: str, dtype: torch.dtype) -> None:
    noise = make().draw(key(), (CHANNELS, *GRID), device=device, dtype=dtype)
    assert noise.shape == (2, 3, CHANNELS, *GRID)
    assert noise.dtype == dtype
    assert noise.device.type == device
    assert torch.equal(noise.cpu().float(), draw(make, key()))


@NOISES
def test_noise_is_a_function_of_the_key_alone(make: MakeNoise) -> None:
    """Bitwise: drawn again, and for one member of one initial time; global random state does not move."""
    all_of_it = draw(make, key())
    before = torch.get_rng_state()
    assert torch.equal(all_of_it, draw(make, key()))
    assert torch.equal(before, torch.get_rng_state())
    for b in range(2):
        for m in range(3):
            one = replace(key(), init=key().init[[b]], member=key().member[[m]])
            assert torch.equal(all_of_it[b, m], draw(make, one)[0, 0])


@NOISES
def test_noise_differs_with_every_part_of_the_key(make: MakeNoise) -> None:
    one = key(1, 1)
    others = [
        replace(one, seed=8),
        replace(one, init=one.init + 1),
        replace(one, member=one.member + 1),
        one.at_lead(1),
        one.sub("other"),
        one.sub("other", 1),
    ]
    drawn = [draw(make, k) for k in (one, *others)]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert not torch.equal(first, second)


@NOISES
def test_noise_window_is_a_part_of_the_whole(make: MakeNoise) -> None:
    """What a rank draws for its rows is bitwise the field of one process."""
    whole = draw(make, key())
    window = wx_estimators.Window(global_shape=(CHANNELS, *GRID), start=(0, 2, 0))
    part = make().draw(key(), (CHANNELS, 3, GRID[1]), device="cpu", dtype=torch.float32, window=window)
    assert torch.equal(part, whole[..., 2:5, :])


@NOISES
def test_noise_has_unit_variance_at_every_row(make: MakeNoise) -> None:
    """Over M independent members and channels: |mean| and |variance - 1| within 5 standard errors."""
    members = 400
    noise = draw(make, key(1, members), torch.float64)[0, ..., 0].reshape(members * CHANNELS, GRID[0])
    n = members * CHANNELS
    assert noise.mean(0).abs().max() < 5 * n**-0.5
    assert (noise.var(0) - 1).abs().max() < 5 * (2 / (n - 1)) ** 0.5


# EnsembleScore


def crps() -> wx_estimators.EnsembleScore:
    return wx_estimators.CRPS()


def difference_crps() -> wx_estimators.EnsembleScore:
    return wx_estimators.DifferenceCRPS()


def spectral_crps() -> wx_estimators.EnsembleScore:
    return wx_estimators.SpectralCRPS()


def energy_score() -> wx_estimators.EnsembleScore:
    return wx_estimators.EnergyScore()


def sum_score() -> wx_estimators.EnsembleScore:
    return wx_estimators.SumScore(
        terms=(wx_estimators.CRPS(), wx_estimators.SpectralCRPS()), factors=(1.0, 0.1)
    )


class ScoreWithoutWeight(Protocol):
    def score(self, pred: Tensor, target: Tensor, /) -> Tensor: ...


def refused_score(score: ScoreWithoutWeight) -> wx_estimators.EnsembleScore:
    return score  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


SCORES = pytest.mark.parametrize("make", [crps, difference_crps, spectral_crps, energy_score, sum_score])
MakeScore = Callable[[], wx_estimators.EnsembleScore]


def ensemble() -> tuple[Tensor, Tensor]:
    return fields(2, 4, CHANNELS, seed=1), fields(2, CHANNELS, seed=2)


@SCORES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_shape_dtype_device(make: MakeScore, device: str, dtype: torch.dtype) -> None:
    pred, target = (x.to(device, dtype) for x in ensemble())
    score = make().score(pred, target, None)
    assert score.shape == (2, CHANNELS)
    assert score.dtype == dtype
    assert score.device.type == device


@SCORES
def test_score_gradient_is_the_finite_difference(make: MakeScore) -> None:
    pred, target = ensemble()
    pred, target = pred[:1, :2, :, :2, :4], target[:1, :, :2, :4]
    assert torch.autograd.gradcheck(lambda x: make().score(x, target, None), pred.requires_grad_())


@SCORES
def test_score_does_not_know_the_order_of_members(make: MakeScore) -> None:
    pred, target = ensemble()
    shuffled = pred[:, [2, 0, 3, 1]]
    torch.testing.assert_close(
        make().score(shuffled, target, None), make().score(pred, target, None), rtol=1e-12, atol=0
    )


@SCORES
def test_score_of_a_perfect_ensemble_is_zero(make: MakeScore) -> None:
    _, target = ensemble()
    perfect = target.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    assert make().score(perfect, target, None).abs().max() < 1e-12


@SCORES
def test_score_weight_is_relative(make: MakeScore) -> None:
    """No weight is a weight of one; a common factor drops out of a mean."""
    pred, target = ensemble()
    unweighted = make().score(pred, target, None)
    for factor in (1.0, 3.0):
        weight = torch.full_like(target, factor)
        torch.testing.assert_close(make().score(pred, target, weight), unweighted, rtol=1e-12, atol=0)


@SCORES
def test_score_is_deterministic(make: MakeScore) -> None:
    assert torch.equal(make().score(*ensemble(), None), make().score(*ensemble(), None))


# Comm


class OneRank:
    """Communication when there is nobody to talk to."""

    def gather_members(self, x: Tensor, /) -> Tensor:
        return x

    def sum_space(self, x: Tensor, /) -> Tensor:
        return x


def one_rank() -> wx_estimators.Comm:
    return OneRank()


class GatherOnly(Protocol):
    def gather_members(self, x: Tensor, /) -> Tensor: ...


def refused_comm(comm: GatherOnly) -> wx_estimators.Comm:
    return comm  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


# Estimator


def interpolant() -> wx_estimators.Estimator:
    return wx_estimators.StochasticInterpolant(steps=2)


def edm() -> wx_estimators.Estimator:
    return wx_estimators.EDM(steps=3)


def consistency() -> wx_estimators.Estimator:
    return wx_estimators.Consistency()


def ensemble_crps() -> wx_estimators.Estimator:
    return wx_estimators.EnsembleCRPS(noise_shape=(4,))


class EstimatorWithGlobalNoise(Protocol):
    @property
    def calls_per_sample(self) -> int: ...
    def required(self, out_channels: int) -> wx_estimators.NetSpec: ...
    def loss(self, net: wx_estimators.Network, batch: wx_estimators.Batch) -> wx_estimators.LossOut: ...
    def sample(self, net: wx_estimators.Network, base: Tensor, cond: Cond, /) -> Tensor: ...
    def to_dict(self) -> dict[str, Any]: ...


def refused_estimator(estimator: EstimatorWithGlobalNoise) -> wx_estimators.Estimator:
    return estimator  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


ESTIMATORS = pytest.mark.parametrize("make", [interpolant, edm, consistency, ensemble_crps])
MakeEstimator = Callable[[], wx_estimators.Estimator]


def network_for(estimator: wx_estimators.Estimator) -> wx_models.LatentTransformer:
    needed = estimator.required(CHANNELS)
    [noise_dim] = needed.noise or (0,)
    streams = () if needed.takes_x else WITHOUT_X
    return transformer(streams=streams, takes_t=needed.takes_t, noise_dim=noise_dim)


def conditions(batch: int) -> tuple[Tensor, Inputs]:
    base = fields(batch, CHANNELS, seed=1)
    return base, {"state": base, "previous": fields(batch, CHANNELS, seed=2)}


@ESTIMATORS
def test_estimator_needs_what_the_network_is(make: MakeEstimator) -> None:
    needed, found = make().required(CHANNELS), network_for(make()).spec
    for name in ("out_channels", "takes_x", "takes_t", "noise"):
        assert getattr(needed, name) == getattr(found, name)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own derivatives
@ESTIMATORS
def test_estimator_loss_trains_every_weight(make: MakeEstimator) -> None:
    network = network_for(make())
    base, cond = conditions(2)
    batch = wx_estimators.Batch(base=base, target=fields(2, CHANNELS, seed=3), cond=cond)
    out = make().loss(network, batch, key(2, 1))
    assert out.loss.shape == ()
    assert out.loss.isfinite()
    assert out.per_channel.shape == (CHANNELS,)
    assert not out.per_channel.requires_grad
    out.loss.backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]
    assert torch.equal(out.loss, make().loss(network, batch, key(2, 1)).loss)


@ESTIMATORS
@pytest.mark.parametrize("device", DEVICES)
def test_estimator_sample_shape_dtype_device(make: MakeEstimator, device: str) -> None:
    base, cond = conditions(2)
    cond = {name: value.to(device) for name, value in cond.items()}
    out = make().sample(network_for(make()).to(device), base.to(device), cond, key())
    assert out.shape == (2, 3, CHANNELS, *GRID)
    assert out.dtype == base.dtype
    assert out.device.type == device


@ESTIMATORS
def test_estimator_member_is_the_same_alone(make: MakeEstimator) -> None:
    """In a chunk, in a batch or alone; only the blocking of matrix products may differ."""
    network = network_for(make())
    base, cond = conditions(2)
    whole = make().sample(network, base, cond, key())
    assert torch.equal(whole, make().sample(network, base, cond, key()))
    chunked = make().sample(network, base, cond, key(), chunk=2)
    torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-10)
    one = replace(key(), init=key().init[[1]], member=key().member[[2]])
    alone = make().sample(network, base[[1]], {name: value[[1]] for name, value in cond.items()}, one)
    torch.testing.assert_close(alone[0, 0], whole[1, 2], rtol=1e-10, atol=1e-10)


@ESTIMATORS
def test_estimator_survives_json(make: MakeEstimator) -> None:
    data = make().to_dict()
    assert wx_estimators.estimator_from_dict(data) == make()


def test_estimator_with_one_rank_is_the_estimator() -> None:
    """`EnsembleCRPS` through a `Comm` of one rank: the same loss and the same gradient, bitwise."""
    alone = wx_estimators.EnsembleCRPS(noise_shape=(4,))
    base, cond = conditions(2)
    batch = wx_estimators.Batch(base=base, target=fields(2, CHANNELS, seed=3), cond=cond)
    results = []
    for estimator in (alone, replace(alone, comm=one_rank())):
        network = network_for(alone)
        loss = estimator.loss(network, batch, key(2, 2)).loss
        loss.backward()
        results.append([loss, *(weight.grad for weight in network.parameters())])
    for first, second in zip(*results, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)
