"""Lossy storage with a bound: values become multiples of a power of two, so that they compress."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numcodecs import blosc

from wx_data._manifest import Manifest
from wx_data._shards import Compression, Field
from wx_data._statistics import Statistics
from wx_data._times import LeadLike


def rounding_bounds(
    statistics: Statistics,
    fraction: float | Mapping[str, float] = 0.01,
    *,
    lead: LeadLike = 6,
) -> dict[str, float]:
    """Largest errors to allow, as shares of what changes within `lead`: f x std(x(t + lead) - x(t)).

    Args:
        statistics: with residuals of that lead; those of a sample of the period suffice.
        fraction: f for every channel, or per channel; channels without one stay exact.
        lead: hours by default.

    Returns:
        Channel -> bound in the units of the channel, for `convert(..., rounding=...)`.
    """
    shares = fraction if isinstance(fraction, Mapping) else dict.fromkeys(statistics.channels, fraction)
    wrong = {name: share for name, share in shares.items() if not 0 < share < 1}
    if wrong:
        raise ValueError(f"fraction must lie between 0 and 1; got {wrong}")
    std = statistics.select(tuple(shares)).residual(lead).std
    flat = [name for name, spread in zip(shares, std, strict=True) if not spread > 0]
    if flat:
        raise ValueError(
            f"channel {', '.join(flat)} does not change within {lead}: no bound follows from that"
        )
    return {name: share * float(spread) for (name, share), spread in zip(shares.items(), std, strict=True)}


def quantum(bound: float) -> float:
    """The largest power of two whose rounding error, half of it, is at most `bound`."""
    if not (np.isfinite(bound) and 2.0**-120 < bound < 2.0**120):
        raise ValueError(f"a rounding bound must be positive and finite; got {bound}")
    return math.ldexp(1.0, math.frexp(2.0 * bound)[1] - 1)


def round_field(field: Field, names: Sequence[str], bounds: Mapping[str, float]) -> Field:
    """The field (C, H, W) with |error| <= bound in the channels that have one; NaN stays NaN.

    x -> q rint(x / q) with q = `quantum(bound)`. Both products are exact in float32, since q is a power of
    two: what goes are the mantissa bits below q, whose number follows the size of each value.
    """
    if not bounds:
        return field
    rounded = field.copy()
    for place, name in enumerate(names):
        if name in bounds:
            step = np.float32(quantum(bounds[name]))
            rounded[place] = np.rint(field[place] / step) * step
    return rounded


def largest_errors(field: Field, rounded: Field) -> list[float]:
    """(C,) largest absolute differences, 0 for a channel that is missing throughout."""
    difference = np.abs(rounded - field).reshape(len(field), -1)
    return [float(value) for value in np.nan_to_num(np.fmax.reduce(difference, axis=1))]


def bytes_saved(field: Field, rounded: Field, compression: Compression) -> list[int]:
    """(C,) bytes that rounding saves when each channel is compressed by itself."""
    pairs = zip(field, rounded, strict=True)
    return [_compressed(exact, compression) - _compressed(coarse, compression) for exact, coarse in pairs]


def _compressed(plane: Field, compression: Compression) -> int:
    return len(blosc.compress(np.ascontiguousarray(plane), compression.encode(), 5, blosc.SHUFFLE, 0))


@dataclass(frozen=True)
class RoundingReport:
    """What rounding did to one channel.

    Attributes:
        channel: name.
        bound: largest error allowed, in the channel's units.
        largest_error: largest error of any value written.
        bytes_saved: over all steps, estimated from `sampled_steps` steps, the channel compressed by itself.
        sampled_steps: steps that were also compressed unrounded.
    """

    channel: str
    bound: float
    largest_error: float
    bytes_saved: int
    sampled_steps: int


def rounding_report(
    manifest: Manifest, channels: Sequence[str], bounds: Mapping[str, float]
) -> tuple[RoundingReport, ...]:
    """Per rounded channel: its bound, its largest error and the bytes saved."""
    if not bounds or not len(manifest.table):
        return ()
    errors = manifest.per_channel("rounding_error").max(axis=0)
    saved = manifest.per_channel("rounding_saved")
    total = saved.mean(axis=0) * len(manifest.table) if len(saved) else np.zeros(len(channels))
    return tuple(
        RoundingReport(name, bounds[name], float(errors[place]), int(total[place]), len(saved))
        for place, name in enumerate(channels)
        if name in bounds
    )
