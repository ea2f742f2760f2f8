"""LatentTransformer and LocalProjector: sizes, zero start, symmetry, locality, what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wx_models import (
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    NetworkSpec,
    _blocks,
)
from wx_models._blocks import TimeEmbedding, sincos_position
from wx_models._transformer import Stream

LATENT = LatentTransformerConfig(channels=3, grid=(9, 16), width=32, depth=2, heads=4, forcing_channels=2)
HISTORY_FIRST = (Stream(("previous",), 8), Stream(("state", "forcing"), 24))
CRPS = replace(LATENT, streams=HISTORY_FIRST, takes_t=False, noise_dim=5, conv_head=True)
PROJECTOR = LocalProjectorConfig(
    channels=3, grid=(17, 32), patch=(2, 2), width=32, depth=2, heads=4, forcing_channels=2
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(network: nn.Module, *, position: bool = True) -> nn.Module:
    """Leaves nothing at zero, as after training; optionally without the sense of place."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=generator)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("position") and not position:
                tensor.zero_()
    return network


def latent_inputs(config: LatentTransformerConfig, rows: int = 2) -> dict[str, Any]:
    shape = (rows, config.channels, *config.grid)
    cond = {"state": draw(*shape), "previous": draw(*shape, seed=1)}
    if config.forcing_channels:
        cond["forcing"] = draw(rows, config.forcing_channels, *config.grid, seed=2)
    return {
        "x": draw(*shape, seed=3) if config.takes_x else None,
        "cond": cond,
        "t": torch.linspace(0.1, 0.9, rows) if config.takes_t else None,
        "noise": draw(rows, config.noise_dim, seed=4) if config.noise_dim else None,
    }


def predict(network: LatentTransformer, inputs: dict[str, Any]) -> Tensor:
    return network.predict(inputs["x"], inputs["cond"], t=inputs["t"], noise=inputs["noise"])


def projector_inputs(config: LocalProjectorConfig, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(rows, config.channels, *config.latent_grid),
        draw(rows, config.channels, *config.grid, seed=1),
        draw(rows, config.forcing_channels, *config.grid, seed=2),
    )


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_count_follows_from_the_layers() -> None:
    """Eighteen D^2 per block, plus embeddings and output, plus biases."""
    d, c, patch = 32, 3, 4
    block = 18 * d * d + (3 + 1 + 4 + 1 + 6) * d
    embeddings = (2 * c + 2) * patch * 24 + 24 + c * patch * 8 + 8
    time, output = 256 * d + d + d * d + d, 2 * d * d + 2 * d + d * patch * c + patch * c
    assert parameters(LatentTransformer(LATENT)) == 2 * block + embeddings + time + output


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (LATENT, NetworkSpec(3, takes_x=True, takes_t=True, noise=None)),
        (CRPS, NetworkSpec(3, takes_x=False, takes_t=False, noise=(5,))),
    ],
)
def test_spec_says_what_the_network_takes(config: LatentTransformerConfig, spec: NetworkSpec) -> None:
    assert LatentTransformer(config).spec == spec


@pytest.mark.parametrize("config", [LATENT, CRPS, replace(LATENT, patch=(2, 3), grid=(7, 16))])
def test_starts_at_zero_and_every_weight_learns(config: LatentTransformerConfig) -> None:
    network, inputs = LatentTransformer(config), latent_inputs(config)
    start = predict(network, inputs)
    assert start.shape == (2, 3, *config.grid)
    assert not start.any()
    randomise(network)
    predict(network, inputs).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_projector_starts_at_zero_and_every_weight_learns() -> None:
    network = LocalProjector(PROJECTOR)
    assert not network.project(*projector_inputs(PROJECTOR)).any()
    randomise(network)
    network.project(*projector_inputs(PROJECTOR)).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_projector_with_residual_upsample_starts_as_interpolation() -> None:
    r, state, forcing = projector_inputs(PROJECTOR)
    out = LocalProjector(replace(PROJECTOR, residual_upsample=True)).project(r, state, forcing)
    torch.testing.assert_close(out[..., ::2, ::2], r)
    torch.testing.assert_close(out[..., ::2, 1::2], (r + r.roll(-1, -1)) / 2)


def test_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other = (LatentTransformer(LATENT, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("attention", ["global", "local", ("local", "global")])
def test_latent_network_without_position_commutes_with_rotation_by_a_patch(
    attention: str | tuple[str, ...],
) -> None:
    config = replace(LATENT, attention=attention)
    network = randomise(LatentTransformer(config), position=False)
    inputs = latent_inputs(config)
    turned = {
        **inputs,
        "x": inputs["x"].roll(4, -1),
        "cond": {name: field.roll(4, -1) for name, field in inputs["cond"].items()},
    }
    assert isinstance(network, LatentTransformer)
    torch.testing.assert_close(
        predict(network, turned), predict(network, inputs).roll(4, -1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("longitude", "commutes"), [("periodic", True), ("clamp", False)])
def test_projector_without_position_commutes_with_rotation(longitude: str, commutes: bool) -> None:
    config = replace(PROJECTOR, longitude=longitude, residual_upsample=True)
    network = randomise(LocalProjector(config), position=False)
    assert isinstance(network, LocalProjector)
    r, state, forcing = projector_inputs(config)
    out = network.project(r, state, forcing).roll(6, -1)
    turned = network.project(r.roll(3, -1), state.roll(6, -1), forcing.roll(6, -1))
    assert torch.allclose(turned, out, rtol=1e-4, atol=1e-4) is commutes


def test_projector_reaches_one_token_per_block() -> None:
    """Two blocks of 3x3 windows: a point influences at most two tokens to each side, east and west alike."""
    network = randomise(LocalProjector(PROJECTOR))
    assert isinstance(network, LocalProjector)
    r, state, forcing = projector_inputs(PROJECTOR, rows=1)
    bumped = state.clone()
    bumped[..., 8, 0] += 1.0
    moved = (network.project(r, bumped, forcing) - network.project(r, state, forcing)).abs().amax((0, 1)) > 0
    rows, columns = moved.any(1).nonzero().flatten().tolist(), moved.any(0).nonzero().flatten().tolist()
    assert rows == list(range(4, 14))
    assert columns == [*range(6), *range(28, 32)]


def test_noise_makes_members_and_is_the_only_randomness() -> None:
    network = randomise(LatentTransformer(CRPS))
    assert isinstance(network, LatentTransformer)
    inputs = latent_inputs(CRPS)
    first, again = predict(network, inputs), predict(network, inputs)
    other = predict(network, {**inputs, "noise": draw(2, 5, seed=8)})
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 1e-3


def test_rows_do_not_mix() -> None:
    network = randomise(LatentTransformer(LATENT))
    assert isinstance(network, LatentTransformer)
    inputs = latent_inputs(LATENT, rows=3)
    alone = {
        "x": inputs["x"][1:2],
        "cond": {name: field[1:2] for name, field in inputs["cond"].items()},
        "t": inputs["t"][1:2],
        "noise": None,
    }
    torch.testing.assert_close(predict(network, alone), predict(network, inputs)[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["latent", "projector"])
def test_bfloat16_blocks_stay_near_float32(name: str) -> None:
    """Bfloat16 keeps 8 bits: 0.4% per product; fields enter and leave in float32."""

    def output(dtype: torch.dtype | None) -> Tensor:
        if name == "latent":
            latent = LatentTransformer(LATENT, compute_dtype=dtype)
            randomise(latent)
            return predict(latent, latent_inputs(LATENT))
        projector = LocalProjector(PROJECTOR, compute_dtype=dtype)
        randomise(projector)
        return projector.project(*projector_inputs(PROJECTOR))

    exact, rounded = output(None), output(torch.bfloat16)
    assert rounded.dtype == torch.float32
    error = float((exact - rounded).detach().norm() / exact.detach().norm())
    assert 0.0 < error < 0.03


def test_attention_by_matrix_products_is_attention() -> None:
    """Against torch's own kernel: the function in float32, its rounding in bfloat16."""
    shape = (2, 3, 4, 5, 8)
    operands = [t.clone().requires_grad_() for t in draw(3, *shape)]
    exact = _blocks._global_attention(*operands)
    gradients = torch.autograd.grad(exact.square().sum(), operands)
    plain = [x.flatten(1, 2).transpose(1, 2) for x in operands]
    mixed = _blocks._matmul_attention(*plain).transpose(1, 2).reshape(shape)
    torch.testing.assert_close(mixed, exact)
    for ours, theirs in zip(torch.autograd.grad(mixed.square().sum(), operands), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    rounded = _blocks._global_attention(*(x.bfloat16() for x in operands))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)


def test_scores_that_do_not_fit_in_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = draw(1, 2, 64, 8).bfloat16()
    assert _blocks._matmul_is_faster(queries)
    assert not _blocks._matmul_is_faster(queries.float())
    monkeypatch.setattr(_blocks, "_SCORE_BYTES", 2 * 2 * 64 * 64 - 1)
    assert not _blocks._matmul_is_faster(queries)


def test_learned_position_and_qk_norm_are_trainable() -> None:
    network = LatentTransformer(replace(LATENT, position="learned", qk_norm=True))
    names = dict(network.named_parameters())
    assert "embeddings.0.position" in names
    assert "blocks.0.attn.q_norm.weight" in names
    torch.testing.assert_close(names["embeddings.0.position"].detach(), sincos_position(5, 8, 24))


def test_time_features() -> None:
    """cos and sin of 1000 t / 10000^(i / 128), cosine first."""
    embedding = TimeEmbedding(8)
    seen: list[Tensor] = []
    embedding.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(torch.tensor([0.0, 0.001]))
    torch.testing.assert_close(seen[0][0], torch.cat([torch.ones(128), torch.zeros(128)]))
    angle = 10000.0 ** (-torch.arange(128) / 128)
    torch.testing.assert_close(seen[0][1], torch.cat([angle.cos(), angle.sin()]), rtol=0.0, atol=1e-6)


def test_sincos_position_separates_rows_and_columns() -> None:
    table = sincos_position(3, 4, 8)
    assert table.shape == (1, 3, 4, 8)
    assert torch.equal(table[0, :, 0, :4], table[0, :, 3, :4])
    assert torch.equal(table[0, 0, :, 4:], table[0, 2, :, 4:])
    expected = torch.tensor([2.0, 0.02]).sin()
    torch.testing.assert_close(table[0, 2, 0, :2], expected)


@pytest.mark.parametrize("config", [LATENT, CRPS, replace(LATENT, attention=("local", "global")), PROJECTOR])
def test_configurations_survive_json(config: LatentTransformerConfig | LocalProjectorConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_configuration_keys_are_named() -> None:
    with pytest.raises(ValueError, match="no field widht"):
        LatentTransformerConfig.from_dict({**LATENT.to_dict(), "widht": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads 5 must divide width 32"),
        ({"width": 36}, "multiple of 16"),
        ({"depth": 0}, "depth must be positive"),
        ({"grid": (0, 16)}, "grid must be positive"),
        ({"position": "none"}, "position must be one of"),
        ({"attention": ("global",)}, "attention must be one of"),
        ({"attention": "sparse"}, "attention must be one of"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LATENT, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "takes x, but x was not given"),
        ({"t": None}, "takes t, but t was not given"),
        ({"noise": torch.zeros(2, 5)}, "takes no noise, but noise was given"),
        ({"x": torch.zeros(2, 3, 9, 15)}, r"x must be \(N, 3, 9, 16\), got \(2, 3, 9, 15\)"),
        ({"cond": {}}, r'cond\["state"\] is missing'),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(LatentTransformer(LATENT), {**latent_inputs(LATENT), **change})


def test_projector_names_wrong_inputs() -> None:
    network, (r, state, forcing) = LocalProjector(PROJECTOR), projector_inputs(PROJECTOR)
    with pytest.raises(ValueError, match=r"residual must be \(N, 3, 9, 16\)"):
        network.project(state, state, forcing)
    with pytest.raises(ValueError, match="2 forcing channels, got none"):
        network.project(r, state)
    with pytest.raises(ValueError, match="0 forcing channels, got"):
        LocalProjector(replace(PROJECTOR, forcing_channels=0)).project(r, state, forcing)


def test_additions_to_atlas_start_as_zero_and_reach_every_weight() -> None:
    """Mixing, gates and skip leave the network zero at the start, and every weight of theirs learns."""
    config = LatentTransformerConfig(
        channels=3, grid=(5, 8), width=16, depth=2, heads=2, mixing=3, gate=0.7, linear_skip=True
    )
    network = LatentTransformer(config)
    generator = torch.Generator().manual_seed(0)
    x, state, previous, weight = torch.randn(4, 2, 3, 5, 8, generator=generator)
    cond, t = {"state": state, "previous": previous}, torch.tensor([0.2, 0.7])
    assert not network.predict(x, cond, t=t).any()
    torch.nn.init.normal_(network.output.linear.weight, generator=generator)
    (network.predict(x, cond, t=t) * weight).sum().backward()
    for name, parameter in network.named_parameters():
        if "mixing" in name or "skip" in name or name.endswith("modulation.bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_mixing_is_a_periodic_convolution_and_the_skip_a_linear_map() -> None:
    """Invariance: rolling longitude by whole patches rolls the output of a network without position."""
    config = LatentTransformerConfig(
        channels=2, grid=(5, 8), width=16, depth=1, heads=2, mixing=3, gate=1.0, linear_skip=True
    )
    network = LatentTransformer(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    for embedding in network.embeddings:
        embedding.position.zero_()
    x, state, previous = torch.randn(3, 1, 2, 5, 8, generator=generator)
    t = torch.tensor([0.4])
    out = network.predict(x, {"state": state, "previous": previous}, t=t)
    rolled = network.predict(
        x.roll(2, -1), {"state": state.roll(2, -1), "previous": previous.roll(2, -1)}, t=t
    )
    torch.testing.assert_close(rolled, out.roll(2, -1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="mixing must be 0 or an odd"):
        LatentTransformerConfig(channels=2, grid=(5, 8), width=16, depth=1, heads=2, mixing=4)
