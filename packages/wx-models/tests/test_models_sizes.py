"""Named sizes on the meta device, and networks of other sizes in their proportions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wx_models import (
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    ladder,
    scaled,
)
from wx_models._cost import Config, parameters

NAMED: dict[str, tuple[Config, int]] = {
    "atlas_si": (LatentTransformerConfig.atlas_si(), 2_431_139_394),
    "atlas_crps": (LatentTransformerConfig.atlas_crps(), 3_316_429_774),
    "atlas_projector": (LocalProjectorConfig.atlas_projector(), 1_819_423_344),
}


def counted(config: Config) -> int:
    with torch.device("meta"):
        latent = isinstance(config, LatentTransformerConfig)
        network = LatentTransformer(config) if latent else LocalProjector(config)  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NAMED)
def test_published_sizes(name: str) -> None:
    config, published = NAMED[name]
    print(f"{name}: {counted(config):,}")
    assert counted(config) == parameters(config) == published


@pytest.mark.parametrize("name", NAMED)
def test_the_size_itself_gives_the_network_back(name: str) -> None:
    config, published = NAMED[name]
    assert scaled(config, published) == config


@pytest.mark.parametrize(("rung", "wanted"), [("1m", 1_000_000), ("10m", 10_000_000), ("100m", 100_000_000)])
@pytest.mark.parametrize("name", NAMED)
def test_ladder_keeps_count_and_proportions(name: str, rung: str, wanted: int) -> None:
    base, published = NAMED[name]
    config = ladder(base)[rung]
    assert counted(config) == pytest.approx(wanted, rel=0.25)
    factor = (wanted / published) ** (1 / 3)
    assert config.depth == max(2, round(factor * base.depth))
    assert config.heads == max(2, round(factor * base.heads))
    if wanted >= 10_000_000:  # below, two blocks are more than a share of the depth, and the width gives way
        assert config.width == pytest.approx(factor * base.width, rel=0.2)
    if isinstance(config, LatentTransformerConfig):
        assert isinstance(base, LatentTransformerConfig)
        for stream, original in zip(config.input_streams, base.input_streams, strict=True):
            assert stream.inputs == original.inputs
            assert stream.width / config.width == pytest.approx(original.width / base.width, abs=0.02)
        assert config.noise_dim == (config.width if base.noise_dim else 0)
    else:
        assert config.stream_widths[1] / config.width == pytest.approx(4 / 13, abs=0.02)


@pytest.mark.parametrize("channels", [1, 8, 150])
@pytest.mark.parametrize("grid", [(17, 32), (46, 90), (721, 1440)])
def test_any_channels_and_grid(channels: int, grid: tuple[int, int]) -> None:
    for name, (base, _) in NAMED.items():
        config = scaled(base, 10_000_000, channels=channels, grid=grid, patch=(2, 2))
        assert (config.channels, config.grid, config.patch) == (channels, grid, (2, 2)), name
        assert parameters(config) == pytest.approx(10_000_000, rel=0.25), name


def test_a_given_latent_width_keeps_its_share() -> None:
    base = replace(LocalProjectorConfig.atlas_projector(), latent_width=1248)
    config = scaled(base, 10_000_000)
    assert config.stream_widths[0] == pytest.approx(config.stream_widths[1], abs=4)


def test_too_small_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="10000 parameters are too few for 75 channels"):
        scaled(LatentTransformerConfig.atlas_si(), 10_000)
    with pytest.raises(ValueError, match="channels must be positive"):
        scaled(LatentTransformerConfig.atlas_si(), 1_000_000, channels=0)


@pytest.mark.parametrize("name", NAMED)
def test_making_a_network_leaves_the_global_generator_alone(name: str) -> None:
    config = scaled(NAMED[name][0], 100_000, channels=2, grid=(17, 32), patch=(2, 2))
    before = torch.random.get_rng_state()
    _ = LatentTransformer(config) if isinstance(config, LatentTransformerConfig) else LocalProjector(config)
    assert torch.equal(torch.random.get_rng_state(), before)
