"""Season and sun of the nature run: smooth functions of the calendar date."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wx_data.nature._config import DAY

_YEAR = 365.2425 * DAY
_EQUINOX = int(np.datetime64("2000-03-20T12", "s").astype(np.int64))
_OBLIQUITY = np.deg2rad(23.44)


def season(time: NDArray[np.int64], lag_days: float = 0.0) -> NDArray[np.float64]:
    """Sine of the solar longitude, 1 at the northern summer solstice; time in seconds since 1970."""
    phase = (np.asarray(time, np.float64) - _EQUINOX - lag_days * DAY) / _YEAR
    result: NDArray[np.float64] = np.sin(2 * np.pi * phase)
    return result


def zenith_anomaly(time: NDArray[np.int64], sines: Tensor, angles: Tensor, lag_hours: float = 0.0) -> Tensor:
    """Daylight cosine of the zenith angle minus its mean over the day.

    Args:
        time: seconds since 1970-01-01, (member,).
        sines: sin(latitude), (latitude,).
        angles: longitude in radians, (longitude,).
        lag_hours: the answer to the sun of so many hours before.

    Returns:
        (longitude, member, latitude), float32.
    """
    declination = np.arcsin(np.sin(_OBLIQUITY) * season(time))[:, None]
    mu = sines.double().cpu().numpy()[None, :]
    offset = np.sin(declination) * mu
    scale = np.cos(declination) * np.sqrt(np.maximum(1.0 - mu * mu, 0.0))
    sunset = np.arccos(np.clip(-offset / np.maximum(scale, 1e-9), -1.0, 1.0))
    mean = (sunset * offset + scale * np.sin(sunset)) / np.pi
    noon = 2 * np.pi * (((time - lag_hours * 3600.0) % DAY) / DAY - 0.5)
    hour = angles[:, None] + torch.from_numpy(noon).to(angles)[None, :]
    offset_t, scale_t, mean_t = (torch.from_numpy(part).to(angles) for part in (offset, scale, mean))
    return (offset_t + scale_t * torch.cos(hour)[:, :, None]).clamp_(min=0.0).sub_(mean_t)
