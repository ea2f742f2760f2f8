"""`cost` against torch's own counter of operations, the bytes that autograd keeps, and at full size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wx_models import (
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    Stream,
    _blocks,
)
from wx_models._cost import Config, Cost, cost

SI = LatentTransformerConfig(channels=3, grid=(9, 16), patch=(2, 3), width=32, depth=3, heads=4)
CRPS = replace(
    SI,
    forcing_channels=2,
    streams=(Stream(("previous",), 8), Stream(("state", "forcing"), 24)),
    takes_t=False,
    noise_dim=5,
    conv_head=True,
)
PROJECTOR = LocalProjectorConfig(
    channels=3, grid=(17, 32), patch=(2, 2), width=32, depth=3, heads=4, forcing_channels=2
)
SMALL: dict[str, Config] = {
    "interpolant": SI,
    "crps": CRPS,
    "crps across poles": replace(CRPS, poles="cross", patch=(2, 2)),
    "local blocks": replace(SI, attention=("global", "local", "local"), kernel=(3, 5)),
    "skip, norm, learned": replace(SI, linear_skip=True, qk_norm=True, position="learned"),
    "another grid": replace(
        SI,
        streams=(Stream(("x", "state"), 16), Stream(("previous",), 16, patch=(4, 6), grid=(17, 32))),
    ),
    "projector": PROJECTOR,
    "projector by addition": replace(PROJECTOR, fusion="token_addition", kernel=(5, 3)),
    "projector by product": replace(PROJECTOR, fusion="token_multiplication", qk_norm=True),
}
ATLAS: dict[str, Config] = {
    "atlas_si": LatentTransformerConfig.atlas_si(),
    "atlas_crps": LatentTransformerConfig.atlas_crps(),
    "atlas_projector": LocalProjectorConfig.atlas_projector(),
}


def build(config: Config, **settings: Any) -> LatentTransformer | LocalProjector:
    if isinstance(config, LocalProjectorConfig):
        return LocalProjector(config, **settings)
    return LatentTransformer(config, **settings)


def call(network: LatentTransformer | LocalProjector, batch: int) -> Tensor:
    config = network.config
    if isinstance(network, LocalProjector):
        assert isinstance(config, LocalProjectorConfig)
        forcing = torch.ones(batch, config.forcing_channels, *config.grid)
        state, residual = (torch.ones(batch, config.channels, *g) for g in (config.grid, config.latent_grid))
        return network.project(residual, state, forcing if config.forcing_channels else None)
    assert isinstance(config, LatentTransformerConfig)
    fields = {
        name: torch.ones(batch, config.channels_of(name), *config.layout(stream)[0])
        for stream in config.input_streams
        for name in stream.inputs
    }
    x = fields.pop("x", None)
    t = torch.ones(batch) if config.takes_t else None
    noise = torch.ones(batch, config.noise_dim) if config.noise_dim else None
    return network.predict(x, fields, t=t, noise=noise)


def windows_by_product(q: Tensor, k: Tensor, v: Tensor, *, kernel: tuple[int, int], **_: Any) -> Tensor:
    """Not the function, but its shapes: every query meets kh kw keys, here the same one over and over."""
    keys, values = (x.flatten(0, 2)[:, :, None].expand(-1, -1, kernel[0] * kernel[1], -1) for x in (k, v))
    return F.scaled_dot_product_attention(q.flatten(0, 2)[:, :, None], keys, values).reshape(q.shape)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlopCounterMode]:
    """Counts the products of attention as plain products: forward 2, backward 4."""
    monkeypatch.setattr(_blocks, "neighborhood_attention", windows_by_product)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


@pytest.mark.parametrize("checkpoint_every", [0, 1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_operations_are_what_the_counter_counts(
    name: str, checkpoint_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, batch = SMALL[name], 2
    expected = cost(config, batch, checkpoint_every=checkpoint_every)
    network = build(config, checkpoint_every=checkpoint_every)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected.parameters
    with counting(monkeypatch) as counter, torch.no_grad():
        call(network, batch)
    assert counter.get_total_flops() == expected.forward_flops
    with counting(monkeypatch) as counter:
        call(network, batch).sum().backward()
    assert counter.get_total_flops() == expected.training_flops


def test_mixing_counts_as_a_depthwise_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward only: for the gradient of its weights the counter of torch forgets the groups."""
    config = replace(SI, mixing=3)
    with counting(monkeypatch) as counter, torch.no_grad():
        call(build(config), 2)
    assert counter.get_total_flops() == cost(config, 2).forward_flops
    forward, training = (cost(config).forward_flops - cost(SI).forward_flops for _ in range(2))
    assert cost(config).training_flops - cost(SI).training_flops == 3 * forward
    assert training == 2 * 3 * (5 * 6) * 9 * 32


@pytest.mark.parametrize("name", ATLAS)
def test_full_size_on_the_meta_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, expected = ATLAS[name], cost(ATLAS[name])
    with torch.device("meta"):
        network = build(config)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected.parameters
        with counting(monkeypatch) as counter:
            call(network, 1).sum().backward()
    assert counter.get_total_flops() == expected.training_flops


def test_full_size_figures() -> None:
    """ATLAS (arXiv 2601.18111): 2.4, 3.3 and 1.8 billion parameters.

    Rough counts of two operations per parameter and token, 7e13 and 2.3e14, take the modulations (a third of
    the parameters) for layers that run at every token; they run once per row.
    """
    found = {name: cost(config, compute_dtype=torch.bfloat16) for name, config in ATLAS.items()}
    assert found["atlas_si"].forward_flops == 53_972_774_475_776
    assert found["atlas_crps"].forward_flops == 53_957_958_084_576
    assert found["atlas_projector"].forward_flops == 156_661_371_432_960
    assert found["atlas_si"].parameters == 2_431_139_394
    assert found["atlas_crps"].parameters == 3_316_429_774
    assert found["atlas_projector"].parameters == 1_819_423_344
    for name, tokens, rough in (("atlas_si", 91 * 120, 7e13), ("atlas_projector", 181 * 360, 2.3e14)):
        config = ATLAS[name]
        modulations = 2 * tokens * config.depth * 6 * config.width**2
        assert found[name].forward_flops + modulations == pytest.approx(rough, rel=0.04)
    assert 26e9 > found["atlas_si"].weight_bytes + found["atlas_projector"].weight_bytes > 25e9


def kept_bytes(forward: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes of all storages that autograd keeps after a forward pass, but for weights, tables and inputs."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def attention_of_all(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    """Keeps what a fused kernel keeps: q, k, v and the output."""
    return _blocks._global_attention(q, k, v)


LARGE: dict[str, Config] = {
    name: replace(config, width=128, grid=tuple(4 * n for n in config.grid), depth=2)
    for name, config in SMALL.items()
    if name not in ("local blocks", "another grid", "crps across poles")
    for config in [replace(config, streams=()) if isinstance(config, LatentTransformerConfig) else config]
}


@pytest.mark.parametrize("name", LARGE)
def test_activations_are_what_autograd_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "neighborhood_attention", attention_of_all)
    config = LARGE[name]
    network = build(config)
    measured = kept_bytes(lambda: call(network, 2), network)
    assert cost(config, 2).activation_bytes == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("checkpoint_every", [1, 2])
def test_checkpointed_blocks_keep_their_input(checkpoint_every: int) -> None:
    config = replace(LARGE["interpolant"], depth=4)
    network = build(config, checkpoint_every=checkpoint_every)
    measured = kept_bytes(lambda: call(network, 2), network)
    block = (cost(config, 2).activation_bytes - cost(replace(config, depth=2), 2).activation_bytes) // 2
    predicted = cost(config, 2, checkpoint_every=checkpoint_every).activation_bytes - block
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("name", ["interpolant", "crps", "projector"])
def test_activations_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bfloat16, as on a GPU; autocast keeps copies of the weights, part of `weight_bytes`."""
    monkeypatch.setattr(_blocks, "neighborhood_attention", attention_of_all)
    monkeypatch.setattr(_blocks, "_sdpa", torch.nn.functional.scaled_dot_product_attention)
    monkeypatch.setattr(_blocks, "_matmul_is_faster", lambda _: False)
    config = LARGE[name]
    network = build(config, compute_dtype=torch.bfloat16)
    measured = kept_bytes(lambda: call(network, 2), network)
    expected = cost(config, 2, compute_dtype=torch.bfloat16)
    copies = expected.weight_bytes - 4 * expected.parameters
    assert expected.activation_bytes + copies == pytest.approx(measured, rel=0.02)
    assert expected.activation_bytes < 0.7 * cost(config, 2).activation_bytes


def test_parts_add_up() -> None:
    each = cost(SI)
    assert isinstance(each, Cost)
    assert (each.gradient_bytes, each.optimizer_bytes) == (4 * each.parameters, 8 * each.parameters)
    assert each.training_bytes == 16 * each.parameters + each.activation_bytes
    with pytest.raises(ValueError, match="batch must be 1 or more"):
        cost(SI, 0)
