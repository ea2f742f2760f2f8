"""Options of both networks: streams, poles, fusion, checkpointing, compilation, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from wx_models import LatentTransformer, LatentTransformerConfig, LocalProjector, LocalProjectorConfig, Stream
from wx_models._blocks import Block, pad_rows

LATENT = LatentTransformerConfig(channels=3, grid=(9, 16), width=32, depth=3, heads=4, forcing_channels=2)
WITHOUT_X = (Stream(("previous",), 8), Stream(("state", "forcing"), 24))
CRPS = replace(LATENT, streams=WITHOUT_X, takes_t=False, noise_dim=5, conv_head=True)
LOCAL = replace(LATENT, attention=("local", "global", "local"), mixing=3, linear_skip=True, qk_norm=True)
PROJECTOR = LocalProjectorConfig(
    channels=3, grid=(17, 32), patch=(2, 2), width=32, depth=3, heads=4, forcing_channels=2
)
NETWORKS: dict[str, LatentTransformerConfig | LocalProjectorConfig] = {
    "interpolant": LATENT,
    "crps": CRPS,
    "local": LOCAL,
    "projector": PROJECTOR,
}
Network = LatentTransformer | LocalProjector


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(config: LatentTransformerConfig | LocalProjectorConfig, **settings: Any) -> Network:
    """A network with weights as after training."""
    local = isinstance(config, LocalProjectorConfig)
    network = LocalProjector(config, **settings) if local else LatentTransformer(config, **settings)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return network


def inputs(config: LatentTransformerConfig | LocalProjectorConfig, rows: int = 2) -> tuple[Any, ...]:
    """Arguments of `forward`."""
    if isinstance(config, LocalProjectorConfig):
        shapes = (3, *config.latent_grid), (3, *config.grid), (2, *config.grid)
        return tuple(draw(rows, *shape, seed=seed) for seed, shape in enumerate(shapes))
    fields = {
        name: draw(rows, config.channels_of(name), *config.layout(stream)[0], seed=len(name))
        for stream in config.input_streams
        for name in stream.inputs
    }
    x = fields.pop("x", None)
    t = torch.linspace(0.1, 0.9, rows) if config.takes_t else None
    return x, fields, t, draw(rows, config.noise_dim, seed=9) if config.noise_dim else None


def gradients(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor, list[Tensor]]:
    out = network(*arguments)
    return out, list(torch.autograd.grad(out.square().sum(), list(network.parameters())))


def rolled(arguments: tuple[Any, ...], steps: Callable[[Tensor], int]) -> tuple[Any, ...]:
    def turn(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: turn(field) for name, field in value.items()}
        return value.roll(steps(value), -1) if isinstance(value, Tensor) and value.ndim == 4 else value

    return tuple(turn(value) for value in arguments)


# Streams


def test_streams_are_stacked_in_the_order_of_their_names() -> None:
    """The same network with inputs of a stream and the matching kernel channels in another order."""
    first = replace(LATENT, streams=(Stream(("x", "state", "forcing"), 24), Stream(("previous",), 8)))
    second = replace(first, streams=(Stream(("forcing", "state", "x"), 24), first.streams[1]))
    assert first.input_streams == LATENT.input_streams
    one, other = build(first), build(second)
    other.load_state_dict(one.state_dict())
    arguments = inputs(first)
    assert not torch.equal(one(*arguments), other(*arguments))
    order = [5, 6, 7, 2, 3, 4, 0, 1]  # where (x, state, forcing) lie in (forcing, state, x)
    with torch.no_grad():
        other.embeddings[0].proj.weight.copy_(one.embeddings[0].proj.weight[:, _inverse(order)])
    torch.testing.assert_close(one(*arguments), other(*arguments), rtol=1e-5, atol=1e-5)


def _inverse(order: list[int]) -> list[int]:
    return [order.index(position) for position in range(len(order))]


def test_a_stream_on_another_grid_and_other_fields_of_cond() -> None:
    """A finer history and a field of the user's own; each reaches the output and every weight learns."""
    fine = Stream(("previous", "analysis"), 16, patch=(4, 4), grid=(17, 32))
    config = replace(LATENT, forcing_channels=0, streams=(Stream(("x", "state"), 16), fine))
    network, arguments = build(config), inputs(config)
    out, grads = gradients(network, arguments)
    assert out.shape == (2, 3, 9, 16)
    assert all(gradient.any() for gradient in grads)
    for name in ("state", "previous", "analysis"):
        changed = {**arguments[1], name: arguments[1][name] + 1.0}
        assert not torch.allclose(network(arguments[0], changed, *arguments[2:]), out)
    assert LatentTransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": (Stream(("x", "state", "forcing"), 24),)}, r"widths \[24\] .* add up to 32"),
        ({"streams": (Stream(("x", "state"), 32),)}, "forcing_channels is 2, but the streams take"),
        (
            {"streams": (Stream(("x", "forcing"), 24), Stream(("state",), 8, grid=(18, 16)))},
            r"is \(9, 8\) tokens and not \(5, 8\)",
        ),
        (
            {"streams": (Stream(("forcing",), 24), Stream(("x",), 8, grid=(10, 16)))},
            "x lies on the latent grid",
        ),
        (
            {"streams": (Stream(("state", "forcing"), 24), Stream(("state",), 8, grid=(10, 16)))},
            "a field lies on one grid",
        ),
        (
            {
                "streams": (Stream(("forcing",), 24), Stream(("state",), 8, grid=(10, 16))),
                "linear_skip": True,
            },
            "linear_skip needs every stream on the latent grid",
        ),
        ({"attention": "local", "kernel": (3, 4)}, "kernel sizes must be odd"),
        ({"attention": "local", "kernel": (7, 3)}, r"kernel \(7, 3\) is larger than the grid of \(5, 8\)"),
        ({"poles": "cross", "grid": (9, 15)}, 'poles="cross" needs an even number of columns'),
        ({"poles": "reflect"}, "poles must be one of"),
        ({"longitude": "wrap"}, "longitude must be one of"),
        ({"noise_dim": -1}, "must be 0 or more"),
    ],
)
def test_contradicting_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LATENT, **change)


def test_streams_name_their_inputs() -> None:
    with pytest.raises(ValueError, match="must be a tuple of names, got 'state'"):
        Stream("state", 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        Stream(("state",), 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": "token_concatenation"}, "two tokens per grid point"),
        ({"fusion": "sum"}, "fusion must be one of"),
        ({"fusion": "token_addition", "latent_width": 8}, "latent_width must be None"),
        ({"kernel": (3, 2)}, "kernel sizes must be odd"),
        ({"kernel": (11, 3)}, "larger than the grid"),
        ({"heads": 5}, "heads 5 must divide width 32"),
        ({"poles": "cross", "grid": (17, 30)}, 'poles="cross" needs an even number'),
        ({"forcing_channels": -1}, "forcing_channels must be 0 or more"),
    ],
)
def test_contradicting_projectors_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PROJECTOR, **change)


# Poles and longitude


@pytest.mark.parametrize("pole_row", [True, False])
def test_rows_beyond_a_pole_are_those_of_a_smooth_field_on_the_sphere(pole_row: bool) -> None:
    """Closed form: a polynomial of the position on the sphere, read at latitudes beyond 90 degrees."""
    rows, columns, more = 9, 12, 2
    step = math.pi / (rows - 1 if pole_row else rows)
    polar = (torch.arange(-more, rows + more) + (0.0 if pole_row else 0.5)) * step
    east = torch.arange(columns) * (2 * math.pi / columns)
    x, y = polar.sin()[:, None] * east.cos(), polar.sin()[:, None] * east.sin()
    field = (x * polar.cos()[:, None] + y**2 - 0.3 * x * y + 0.5 * polar.cos()[:, None])[None, None]
    inner = field[:, :, more:-more]
    poles = "cross_pole_row" if pole_row else "cross"
    torch.testing.assert_close(pad_rows(inner, more, more, poles), field, rtol=0.0, atol=2e-6)
    assert not torch.allclose(pad_rows(inner, more, more, "clamp"), field, atol=0.01)


@pytest.mark.parametrize("poles", ["clamp", "cross", "cross_pole_row"])
@pytest.mark.parametrize("name", ["local", "crps", "projector"])
def test_turning_the_globe_turns_the_output(name: str, poles: str) -> None:
    """Invariance: whole patches in longitude, without positions, across the poles or not."""
    config = replace(NETWORKS[name], poles=poles)
    network, arguments = build(config), inputs(config)
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("position"):
            buffer.zero_()
    columns = config.grid[1]
    turned = network(*rolled(arguments, lambda field: field.shape[-1] // 4))
    expected = network(*arguments).roll(columns // 4, -1)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", ["local", "crps", "projector"])
def test_poles_matter_near_the_poles(name: str) -> None:
    config = NETWORKS[name]
    arguments = inputs(config)
    out = [build(replace(config, poles=poles))(*arguments) for poles in ("clamp", "cross", "cross_pole_row")]
    assert not torch.allclose(out[0], out[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(out[1], out[2], rtol=1e-3, atol=1e-3)


def test_local_attention_may_stop_at_the_date_line() -> None:
    config = replace(LATENT, attention="local")
    arguments = inputs(config)
    free, stopped = build(config), build(replace(config, longitude="clamp"))
    assert not torch.allclose(free(*arguments), stopped(*arguments), rtol=1e-3, atol=1e-3)


def test_global_attention_knows_no_order_of_tokens() -> None:
    """Invariance: without positions a permutation of the tokens permutes the output."""
    block = Block(32, 4, mlp_ratio=2, kernel=None)
    generator = torch.Generator().manual_seed(2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    x, c, order = draw(2, 4, 6, 32), draw(2, 32, seed=1), torch.randperm(24, generator=generator)
    shuffled = x.flatten(1, 2)[:, order].view_as(x)
    expected = block(x, c).flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(block(shuffled, c), expected, rtol=1e-5, atol=1e-5)


# The start, gradients, memory


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_start_as_the_identity_and_the_output_as_zero(name: str) -> None:
    config = NETWORKS[name]
    local = isinstance(config, LocalProjectorConfig)
    network: Network = LocalProjector(config) if local else LatentTransformer(config)  # type: ignore[arg-type]
    seen: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    assert not network(*inputs(config)).any()
    assert len(seen) == 3
    assert all(given.any() and torch.equal(given, out) for given, out in seen)


@pytest.mark.parametrize("fusion", ["token_addition", "token_multiplication"])
def test_every_weight_learns_in_other_fusions(fusion: str) -> None:
    config = replace(PROJECTOR, fusion=fusion)
    assert config.stream_widths == (32, 32)
    _, grads = gradients(build(config), inputs(config))
    assert all(gradient.any() for gradient in grads)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    small: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
    if name == "local":
        small["attention"] = "local"
    if name == "crps":
        small["streams"] = (Stream(("previous",), 4), Stream(("state", "forcing"), 12))
    config = replace(NETWORKS[name], **small)
    network, arguments = build(config).double(), inputs(config, rows=1)
    latent = isinstance(config, LatentTransformerConfig)
    state = (arguments[1]["state"] if latent else arguments[1]).double()

    def scalar(direction: Tensor, scale: Tensor) -> Tensor:
        moved = state + direction * torch.linspace(-1, 1, state.numel(), dtype=torch.float64).view_as(state)
        given = _double(arguments)
        given[1] = {**given[1], "state": moved} if latent else moved
        weight = network.blocks[0].attn.qkv.weight
        shifted = torch.func.functional_call(
            network, {"blocks.0.attn.qkv.weight": weight * scale}, tuple(given)
        )
        return shifted.square().mean()

    point = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 1.1)]
    assert torch.autograd.gradcheck(scalar, point, rtol=1e-6, atol=1e-8)


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _double(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_double(item) for item in value]
    return value.double() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_changes_no_bit(name: str, every: int, dtype: torch.dtype | None) -> None:
    config = NETWORKS[name]
    network, arguments = build(config, compute_dtype=dtype), inputs(config)
    out, plain = gradients(network, arguments)
    network.checkpoint_every = every
    again, repeated = gradients(network, arguments)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(plain, repeated, strict=True))


def test_checkpointed_blocks_run_twice() -> None:
    network, runs = build(LATENT, checkpoint_every=2), [0, 0, 0]
    for number, block in enumerate(network.blocks):
        block.mlp.register_forward_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))
    gradients(network, inputs(LATENT))
    assert runs == [1, 2, 1]
    network.checkpoint_every = -1
    with pytest.raises(ValueError, match="checkpoint_every must be 0"):
        network(*inputs(LATENT))


# Compilation


@pytest.mark.parametrize(("name", "every"), [("interpolant", 0), ("crps", 1), ("local", 1), ("projector", 0)])
def test_one_graph_serves_every_batch(name: str, every: int) -> None:
    """fullgraph, forward and backward, against the same network without compilation."""
    config = replace(NETWORKS[name], depth=1, **({"attention": "local"} if name == "local" else {}))
    torch._dynamo.reset()
    network, counter = build(config, checkpoint_every=every), CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(network, fullgraph=True, backend=counter)
    for rows in (2, 3, 5):
        arguments = inputs(config, rows)
        for tensor in _tensors(arguments):
            torch._dynamo.mark_dynamic(tensor, 0)
        ours, theirs = gradients(compiled, arguments), gradients(network, arguments)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
        for a, b in zip(ours[1], theirs[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert counter.frame_count == 1


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


# Inputs


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (2, torch.ones(2, 1), r"t must be \(2,\), one per row"),
        (2, torch.ones(3), r"t must be \(2,\)"),
        (3, torch.zeros(2, 4), "takes no noise"),
        (0, torch.zeros(3, 3, 9, 16), r"must have one number of rows, got \[3, 2, 2\]"),
        (0, torch.zeros(2, 4, 9, 16), r"x must be \(N, 3, 9, 16\), got \(2, 4, 9, 16\)"),
    ],
)
def test_wrong_arguments_are_named(position: int, value: Tensor, message: str) -> None:
    arguments = list(inputs(LATENT))
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        build(LATENT)(*arguments)


def test_rows_of_noise_and_streams_must_agree() -> None:
    network, (x, cond, t, noise) = build(CRPS), inputs(CRPS)
    with pytest.raises(ValueError, match=r"noise must be \(2, 5\), got \(2, 4\)"):
        network(x, cond, t, noise[:, :4])
    with pytest.raises(ValueError, match=r"streams have \[1, 2\] rows"):
        network(x, {**cond, "previous": cond["previous"][:1]}, t, noise)
    residual, state, forcing = inputs(PROJECTOR)
    with pytest.raises(ValueError, match="state has 2 rows and residual 1"):
        build(PROJECTOR)(residual[:1], state, forcing)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_on_request_and_never_hidden(bad: float) -> None:
    network = build(LATENT)
    assert isinstance(network, LatentTransformer)
    x, cond, t, _ = inputs(LATENT)
    cond["state"][1, 2, 4, 5] = bad
    out = network.predict(x, cond, t=t)
    assert out[1].isnan().all()  # every token attends to the one that is NaN
    assert out[0].isfinite().all()
    network.check_finite = True
    with pytest.raises(ValueError, match=r'cond\["state"\] is NaN or infinite in channels \[2\]'):
        network.predict(x, cond, t=t)
    cond["state"][1, 2, 4, 5] = 0.0
    with pytest.raises(ValueError, match="t is NaN or infinite in 1 rows"):
        network.predict(x, cond, t=torch.tensor([0.1, bad]))
    unread = {**cond, "mask": torch.full((1,), math.nan)}
    assert network.predict(x, unread, t=t).isfinite().all()


def test_projector_refuses_nan_on_request() -> None:
    network, (residual, state, forcing) = build(PROJECTOR), inputs(PROJECTOR)
    assert isinstance(network, LocalProjector)
    forcing[0, 1, 3, 4] = math.nan
    assert network.project(residual, state, forcing)[0].isnan().any()
    network.check_finite = True
    with pytest.raises(ValueError, match=r"forcing is NaN or infinite in channels \[1\]"):
        network.project(residual, state, forcing)
