"""Networks on disk, and the published state dicts both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wx_models import (
    LatentForecaster,
    LatentTransformer,
    LatentTransformerConfig,
    LocalProjector,
    LocalProjectorConfig,
    PublishedProcessor,
    from_published,
    load_network,
    read_header,
    save_network,
    to_published,
)

SI = replace(
    LatentTransformerConfig.atlas_si(), channels=5, grid=(7, 12), width=32, depth=2, heads=2, patch=(2, 3)
)
CRPS = replace(
    LatentTransformerConfig.atlas_crps(),
    channels=5,
    grid=(7, 12),
    width=32,
    depth=2,
    heads=2,
    patch=(2, 3),
    noise_dim=32,
    streams=tuple(
        replace(stream, width=width)
        for stream, width in zip(LatentTransformerConfig.atlas_crps().streams, (8, 24), strict=True)
    ),
)
PROJECTOR = replace(
    LocalProjectorConfig.atlas_projector(),
    channels=5,
    grid=(13, 24),
    patch=(2, 2),
    width=32,
    depth=2,
    heads=2,
)
Config = LatentTransformerConfig | LocalProjectorConfig
CONFIGS: list[Config] = [SI, CRPS, PROJECTOR]


def make(config: Config) -> LatentTransformer | LocalProjector:
    if isinstance(config, LatentTransformerConfig):
        return LatentTransformer(config, seed=3)
    return LocalProjector(config, seed=3)


def shaken(network: nn.Module) -> nn.Module:
    """Weights that are nowhere zero, so that every one of them shows in the output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return network


def output(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(11)

    def field(channels: int, grid: tuple[int, int]) -> Tensor:
        return torch.randn(2, channels, *grid, generator=generator)

    with torch.no_grad():
        if isinstance(network, LocalProjector):
            config = network.config
            fields = field(5, config.latent_grid), field(5, config.grid), field(4, config.grid)
            return network.project(*fields)
        assert isinstance(network, LatentTransformer)
        takes_x, grid = network.config.takes_x, network.config.grid
        cond = {"state": field(5, grid), "previous": field(5, grid), "forcing": field(4, grid)}
        noise = None if takes_x else torch.randn(2, 32, generator=generator)
        time = torch.tensor([0.3, 0.8]) if takes_x else None
        return network.predict(field(5, grid) if takes_x else None, cond, t=time, noise=noise)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_loaded_network_is_the_saved_one(config: Config, tmp_path: Path) -> None:
    network = shaken(make(config))
    save_network(network, tmp_path / "n.safetensors", about={"channels": ["z500"]})
    loaded = load_network(tmp_path / "n.safetensors", checkpoint_every=1)
    assert type(loaded) is type(network)
    assert loaded.config == config
    assert loaded.checkpoint_every == 1
    assert torch.equal(output(loaded), output(network))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert read_header(tmp_path / "n.safetensors")["about"] == {"channels": ["z500"]}
    assert [path.name for path in tmp_path.iterdir()] == ["n.safetensors"]


def test_a_network_with_tables_of_its_own_is_loaded(tmp_path: Path) -> None:
    """The interpolation weights are not in the file."""
    config = replace(PROJECTOR, grid=(13, 24), residual_upsample=True, longitude="periodic")
    network = shaken(make(config))
    save_network(network, tmp_path / "n")
    assert torch.equal(output(load_network(tmp_path / "n")), output(network))


def test_averaged_weights_can_be_saved_instead(tmp_path: Path) -> None:
    network = make(SI)
    average = {name: value + 1 for name, value in network.state_dict().items()}
    save_network(network, tmp_path / "n", weights=average)
    for name, value in load_network(tmp_path / "n").state_dict().items():
        assert torch.equal(value, average[name])
    del average["blocks.0.attn.qkv.bias"]
    with pytest.raises(ValueError, match=r"1 missing: blocks\.0\.attn\.qkv\.bias$"):
        save_network(network, tmp_path / "n", weights=average)


def test_loading_makes_no_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(make(SI), tmp_path / "n")
    before = torch.random.get_rng_state()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were drawn")

    monkeypatch.setattr(nn.init, "xavier_uniform_", refuse)
    load_network(tmp_path / "n")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(ValueError, match="x was not written by save_network"):
        load_network(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        load_network(tmp_path / "absent")


# Published layouts, written down here once more, from the public code's own names.


def published(
    kind: str, depth: int = 2, width: int = 32, streams: tuple[int, int] = (24, 8)
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released networks, for the small configurations above."""
    projector = kind == "projector"
    under = "" if projector else "_"
    inputs = {"si": (10, 5), "crps": (5, 9), "projector": (9, 5)}[kind]
    patches = ((2, 2), (1, 1)) if projector else ((2, 3), (2, 3))
    tokens, patch = (7 * 12, (2, 2)) if projector else (4 * 4, (2, 3))
    shapes: dict[str, tuple[int, ...]] = {}
    for number in (1, 2):
        stream = streams[number - 1]
        shapes[f"x_embedder{under}{number}.proj.weight"] = (stream, inputs[number - 1], *patches[number - 1])
        shapes[f"x_embedder{under}{number}.proj.bias"] = (stream,)
        shapes[f"pos_embed{under}{number}"] = (1, tokens, stream)

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    linear("t_embedder.mlp.0", 256, width)
    linear("t_embedder.mlp.2", width, width)
    attention = "attn.attn" if projector else "attn"
    for block in range(depth):
        linear(f"blocks.{block}.{attention}.qkv", width, 3 * width)
        linear(f"blocks.{block}.{attention}.proj", width, width)
        linear(f"blocks.{block}.mlp.fc1", width, 4 * width)
        linear(f"blocks.{block}.mlp.fc2", 4 * width, width)
        linear(f"blocks.{block}.adaLN_modulation.1", width, 6 * width)
        if kind == "crps":
            linear(f"blocks.{block}.noise_modulation.1", width, 6 * width)
    linear("final_layer.linear", width, 5 * patch[0] * patch[1])
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    if kind == "crps":
        linear("noise_mlp.fc1", width, 4 * width)
        linear("noise_mlp.fc2", 4 * width, width)
        shapes["conv_head.conv.weight"], shapes["conv_head.conv.bias"] = (5, 5, 3, 3), (5,)
    return shapes


LAYOUTS = [
    pytest.param(SI, published("si"), id="si"),
    pytest.param(CRPS, published("crps", streams=(8, 24)), id="crps"),
    pytest.param(PROJECTOR, published("projector", streams=PROJECTOR.stream_widths), id="projector"),
]


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(("config", "shapes"), LAYOUTS)
def test_published_weights_go_there_and_back(config: Config, shapes: dict[str, tuple[int, ...]]) -> None:
    weights = random_weights(shapes)
    network = make(config)
    network.load_state_dict(from_published(config, weights))
    back = to_published(config, network.state_dict())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert output(network).isfinite().all()


@pytest.mark.parametrize(("config", "shapes"), LAYOUTS)
def test_every_published_weight_matters(config: Config, shapes: dict[str, tuple[int, ...]]) -> None:
    """A name that goes to the wrong place, or nowhere, would leave some weight without effect."""
    weights = random_weights(shapes)
    network = make(config)
    network.load_state_dict(from_published(config, weights))
    before = output(network)
    for name in weights:
        changed = {**weights, name: weights[name] * 1.5}
        network.load_state_dict(from_published(config, changed))
        # A constant added to all keys of a head leaves the softmax as it is; the rest of the bias does not.
        assert not torch.equal(output(network), before), name


@pytest.mark.parametrize("number", [0, 1])
def test_positions_are_rows_of_tokens(number: int) -> None:
    """Token (i, j) of ours is number i * columns + j of the published flat order."""
    weights = random_weights(published("si"))
    position = from_published(SI, weights)[f"embeddings.{number}.position"]
    for i in range(4):
        for j in range(4):
            assert torch.equal(position[0, i, j], weights[f"pos_embed_{number + 1}"][0, 4 * i + j])


@pytest.mark.parametrize(
    ("make_config", "count"),
    [
        (LatentTransformerConfig.atlas_si, 2.431e9),
        (LatentTransformerConfig.atlas_crps, 3.316e9),
        (LocalProjectorConfig.atlas_projector, 1.819e9),
    ],
)
def test_full_layouts_fit(make_config: Callable[[], Config], count: float) -> None:
    config = make_config()
    with torch.device("meta"):
        ours = make(config).state_dict()
    weights = to_published(config, ours)
    assert sum(v.numel() for name, v in weights.items() if "pos_embed" not in name) == pytest.approx(
        count, rel=3e-4
    )
    back = from_published(config, weights)
    assert {name: value.shape for name, value in back.items()} == {n: v.shape for n, v in ours.items()}


def test_weights_that_do_not_fit_are_named() -> None:
    weights = random_weights(published("si"))
    del weights["blocks.1.mlp.fc2.bias"]
    weights["blocks.0.attn.qkv.weight"] = torch.zeros(95, 32)
    weights["ema.decay"] = torch.zeros(1)
    message = (
        r"published weights do not fit the configuration: 1 missing: blocks\.1\.mlp\.fc2\.bias; "
        r"1 unknown: ema\.decay; "
        r"1 of another shape: blocks\.0\.attn\.qkv\.weight is \(95, 32\) and not \(96, 32\)"
    )
    with pytest.raises(ValueError, match=message):
        from_published(SI, weights)


@pytest.mark.parametrize(
    "config", [replace(SI, mixing=3), replace(SI, linear_skip=True), replace(PROJECTOR, qk_norm=True)]
)
def test_parts_that_were_never_published_are_refused(config: Config) -> None:
    with pytest.raises(ValueError, match="the published networks have no"):
        to_published(config, make(config).state_dict())


def buffers() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    stats = torch.rand(4, 1, 3, 1, 1, generator=generator)
    names = ("normalizer_in.mean", "normalizer_in.std", "normalizer_out.mean", "normalizer_out.std")
    found = dict(zip(names, stats, strict=True))
    found["normalizer_in.std"][0, 2] = 2e-7  # specific humidity aloft
    return {
        **found,
        "static_channels": torch.rand(1, 3, 5, 8, generator=generator),
        "device_buffer": torch.empty(0),
    }


def test_processor_goes_there_and_back() -> None:
    back = PublishedProcessor.from_published(buffers()).to_published()
    assert back.keys() == buffers().keys()
    assert all(torch.equal(back[name], value) for name, value in buffers().items())


def test_processor_normalises_as_published() -> None:
    """(x - mean) / (std + 1e-6), and 0 where SST is missing over land."""
    raw, processor = buffers(), PublishedProcessor.from_published(buffers())
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    x[0, 1, 2, 3] = torch.nan
    filled = torch.where(x.isnan(), 0.0, x)
    expected = (filled - raw["normalizer_in.mean"]) / (raw["normalizer_in.std"] + 1e-6)
    torch.testing.assert_close(processor.encode(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(processor.decode(processor.encode(x)), filled, rtol=1e-5, atol=1e-6)
    # A channel of std 2e-7 gets std 1/6, and not 1.
    assert processor.encode(raw["normalizer_in.mean"] + raw["normalizer_in.std"])[0, 2, 0, 0] < 0.2


def test_processor_gives_the_published_update() -> None:
    """x1 = x0 + (y (s_r + 1e-6) + m_r) in physical units, through the forecaster's normalised states."""
    raw, processor = buffers(), PublishedProcessor.from_published(buffers())
    generator = torch.Generator().manual_seed(4)
    x0, y, r = (torch.randn(1, 3, 5, 8, generator=generator) for _ in range(3))

    class Give:
        def sample(self, *_: object) -> Tensor:
            return r

        def project(self, *_: object) -> Tensor:
            return y

        def at_lead(self, _: int) -> Give:
            return self

        def rows(self, _: slice) -> Give:
            return self

    model = LatentForecaster[Give](
        sampler=Give(),
        projector=Give(),
        downsample=lambda x: x,
        residual_scale=processor.residual_scale,
        residual_shift=processor.residual_shift,
    )
    n0 = processor.encode(x0)
    state = model.step(model.start(n0, n0, np.array(["2020-01-01"], "datetime64[h]")), Give())
    x1 = x0 + (y * (raw["normalizer_out.std"] + 1e-6) + raw["normalizer_out.mean"])
    torch.testing.assert_close(processor.decode(state.current), x1, rtol=1e-5, atol=1e-5)
    z1 = n0 + (r * (raw["normalizer_out.std"] + 1e-6) + raw["normalizer_out.mean"]) / (
        raw["normalizer_in.std"] + 1e-6
    )
    torch.testing.assert_close(state.latent_current, z1, rtol=1e-5, atol=1e-5)


def test_processor_refuses_other_buffers() -> None:
    with pytest.raises(ValueError, match=r"lacks normalizer_out\.std"):
        PublishedProcessor.from_published({k: v for k, v in buffers().items() if k != "normalizer_out.std"})
    with pytest.raises(ValueError, match=r"normalizer_in\.mean must be \(1, C, 1, 1\), got \(3,\)"):
        PublishedProcessor.from_published({**buffers(), "normalizer_in.mean": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"static_channels must be \(1, S, H, W\)"):
        PublishedProcessor.from_published({**buffers(), "static_channels": torch.zeros(3, 5, 8)})
