"""Networks on disk: a safetensors file whose header holds the configuration, and no pickled code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from wx_models._projector import LocalProjector, LocalProjectorConfig
from wx_models._transformer import LatentTransformer, LatentTransformerConfig

Network: TypeAlias = LatentTransformer | LocalProjector
NetworkConfig: TypeAlias = LatentTransformerConfig | LocalProjectorConfig

_HEADER = "wx_models"
_LISTED = 4


def save_network(
    network: Network,
    path: str | Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes configuration and weights into one file, whole or not at all.

    Args:
        network: what is saved.
        path: file, by custom `.safetensors`.
        weights: saved in place of the network's own, under the same names: an exponential average, or the
            full state gathered from sharded parameters by
            `torch.distributed.checkpoint.state_dict.get_model_state_dict`.
        about: JSON data kept beside the configuration: channels, training, licence.

    Raises:
        ValueError: names or shapes of `weights` are not those of the network.
    """
    own = network.state_dict()
    weights = own if weights is None else weights
    check_weights(weights, own, f"{type(network).__name__} weights")
    header = {
        "network": type(network).__name__,
        "config": network.config.to_dict(),
        "about": dict(about or {}),
        "version": version("wx-models"),
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    try:
        save_file(plain, partial, metadata={_HEADER: json.dumps(header)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_network(path: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> Network:
    """Builds the network of a file that `save_network` wrote, with its weights.

    The weights are read once, straight to the device, and no others are made on the way: a network of N bytes
    needs N bytes.

    Args:
        path: the file.
        device: where the network goes.
        options: run-time arguments of the network, as `compute_dtype` and `checkpoint_every`.

    Raises:
        ValueError: the file holds something else, or names or shapes do not fit its configuration.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        header = _header(path, file.metadata())
        # Clones: the file's own memory is not aligned, and kernels then round differently.
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    config = _config(header)
    with torch.device("meta"):
        network = make_network(config, **options)
    check_weights(weights, network.state_dict(), str(path))
    network.load_state_dict(weights, assign=True)
    return network.to(device)


def read_header(path: str | Path) -> dict[str, Any]:
    """Returns what a file says of itself, without its weights: network, config, about, version.

    Raises:
        ValueError: the file holds something else.
    """
    with safe_open(path, framework="pt") as file:
        return _header(path, file.metadata())


def make_network(config: NetworkConfig, **options: Any) -> Network:
    """Returns the network of a configuration."""
    if isinstance(config, LatentTransformerConfig):
        return LatentTransformer(config, **options)
    return LocalProjector(config, **options)


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises ValueError, naming the first differences, unless names and shapes agree."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(value.shape)} and not {tuple(expected[name].shape)}"
        for name, value in found.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{what} do not fit the configuration: {'; '.join(problems)}")


def _header(path: str | Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or _HEADER not in metadata:
        raise ValueError(f"{path} was not written by save_network: its header has no {_HEADER!r}")
    header: dict[str, Any] = json.loads(metadata[_HEADER])
    return header


def _config(header: Mapping[str, Any]) -> NetworkConfig:
    kinds: dict[str, type[LatentTransformerConfig] | type[LocalProjectorConfig]] = {
        "LatentTransformer": LatentTransformerConfig,
        "LocalProjector": LocalProjectorConfig,
    }
    if header["network"] not in kinds:
        raise ValueError(f"the file holds a {header['network']}, expected one of {', '.join(kinds)}")
    return kinds[header["network"]].from_dict(header["config"])
