"""Networks of any size in the proportions of a named one."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

from wx_models._cost import parameters as count
from wx_models._projector import LocalProjectorConfig
from wx_models._transformer import LatentTransformerConfig, Stream

_SMALLEST = 2

ConfigT = TypeVar("ConfigT", LatentTransformerConfig, LocalProjectorConfig)


def scaled(config: ConfigT, parameters: int, **changes: Any) -> ConfigT:
    """Returns a network of about `parameters` parameters with the proportions of `config`.

    Width, depth and heads are multiplied by one factor s, the cube root of the ratio of sizes, since a
    transformer has 18 width^2 depth parameters. Depth and heads are rounded and at least 2; the width then
    brings the count as near as heads and positions let it. The shares of the streams, the length of the noise
    vector over the width and all other settings stay. The size itself gives `config` back.

        scaled(LatentTransformerConfig.atlas_si(), 10_000_000, channels=8, grid=(46, 90), patch=(2, 2))

    Args:
        config: whose proportions are kept.
        parameters: wanted number of trainable parameters.
        changes: fields to replace first, as `channels`, `grid` and `patch`.

    Raises:
        ValueError: embeddings and output of the smallest network are larger already, or a changed field is
            refused.
    """
    base = replace(config, **changes)
    factor = (parameters / count(base)) ** (1 / 3)
    depth, heads = (max(_SMALLEST, round(factor * n)) for n in (base.depth, base.heads))
    # Positions need streams of a multiple of 4, the first network of ATLAS a quarter of the width.
    step = math.lcm(16, 4 * heads)

    def at(steps: int) -> ConfigT:
        return _resized(base, steps * step, depth, heads)

    low, high = 1, 2
    while count(at(high)) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(at(middle)) < parameters else (low, middle)
    found = min(at(low), at(high), key=lambda c: abs(math.log(count(c) / parameters)))
    if count(found) > 2 * parameters:
        raise ValueError(
            f"{parameters} parameters are too few for {base.channels} channels: the smallest network of "
            f"these proportions has {count(found)}"
        )
    return found


def ladder(config: ConfigT, **changes: Any) -> dict[str, ConfigT]:
    """Returns networks of 1, 10 and 100 million parameters by `scaled`: "1m", "10m" and "100m"."""
    return {f"{millions}m": scaled(config, millions * 1_000_000, **changes) for millions in (1, 10, 100)}


def _resized(base: ConfigT, width: int, depth: int, heads: int) -> ConfigT:
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads}
    if isinstance(base, LatentTransformerConfig):
        sizes["streams"] = _shared(base.streams, width)
        sizes["noise_dim"] = round(base.noise_dim * width / base.width)
    elif base.latent_width is not None:
        sizes["latent_width"] = 4 * max(1, round(base.latent_width * width / base.width / 4))
    return replace(base, **sizes)


def _shared(streams: tuple[Stream, ...], width: int) -> tuple[Stream, ...]:
    """Returns the streams with their shares of a new width, each a multiple of 4."""
    ends = list(accumulate((stream.width for stream in streams), initial=0))
    bounds = [4 * round(end * width / ends[-1] / 4) for end in ends] if streams else []
    return tuple(
        replace(stream, width=stop - start)
        for stream, (start, stop) in zip(streams, pairwise(bounds), strict=True)
    )
