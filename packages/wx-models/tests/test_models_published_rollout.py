"""The published rollout, written out plainly: encode, sample, project, update, cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wx_models import Downsample, LatentForecaster, PublishedForcing, PublishedProcessor

GRID, LATENT, CHANNELS = (9, 16), (5, 8), 3
INIT = np.array(["2020-06-21T06"], dtype="datetime64[h]")
SIX = np.timedelta64(6, "h")


@dataclass(frozen=True)
class NoKey:
    def at_lead(self, _lead: int, /) -> NoKey:
        return self

    def rows(self, _selection: slice, /) -> NoKey:
        return self


def sampled(lr: Tensor, prev: Tensor) -> Tensor:
    """Stands for the estimator: not linear, and different in both arguments."""
    return torch.tanh(0.7 * lr - 0.4 * prev) + 0.1 * lr * prev


def projected(hr: Tensor, r1: Tensor) -> Tensor:
    """Stands for the projector: reads state, zenith angle, statics and the latent residual."""
    wide = F.interpolate(r1, size=GRID, mode="nearest")
    return torch.sin(hr[:, :CHANNELS]) * wide + hr[:, CHANNELS : CHANNELS + 1] + 0.3 * hr[:, -1:]


class Sampler:
    def sample(self, _base: Tensor, cond: Mapping[str, Tensor], _key: NoKey, /) -> Tensor:
        assert cond["forcing"].shape[1:] == (4, *LATENT)
        return sampled(cond["state"], cond["previous"])


class Projector:
    def project(self, residual: Tensor, state: Tensor, forcing: Tensor | None, /) -> Tensor:
        assert forcing is not None
        return projected(torch.cat([state, forcing], dim=1), residual)


def processor() -> PublishedProcessor:
    """Temperature, wind, humidity aloft."""
    return PublishedProcessor(
        mean=torch.tensor([280.0, 5.0, 3e-6]),
        std=torch.tensor([12.0, 3.0, 2e-7]),
        residual_mean=torch.tensor([0.1, -0.2, 1e-8]),
        residual_std=torch.tensor([2.0, 0.5, 1e-7]),
        statics=torch.randn(3, *GRID, generator=torch.Generator().manual_seed(0)),
    )


def plain(x_before: Tensor, x_now: Tensor, steps: int, *, reencode: bool) -> list[tuple[Tensor, Tensor]]:
    """The published loop in physical units, in its own order; (x1, z1) of each step."""
    p, eps = processor(), 1e-6
    assert p.statics is not None

    def column(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)

    def norm(x: Tensor) -> Tensor:
        return (x - column(p.mean)) / (column(p.std) + eps)

    def down(x: Tensor) -> Tensor:
        return F.interpolate(x, size=LATENT, mode="bilinear", align_corners=True)

    x_before, x_now = (torch.where(x.isnan(), torch.zeros(()), x) for x in (x_before, x_now))
    z_now = z_before = None
    found = []
    for step in range(steps):
        zenith = PublishedForcing(p.statics).at(INIT + step * SIX)[:, :1]
        hr = torch.cat([norm(x_now), zenith, p.statics[None]], dim=1)
        lr = down(norm(x_now)) if z_now is None else z_now
        prev = down(norm(x_before)) if reencode or z_before is None else z_before
        r1 = sampled(lr, prev)
        x_next = x_now + (projected(hr, r1) * (column(p.residual_std) + eps) + column(p.residual_mean))
        # z1 = N(N_r^-1(r1) + N^-1(z0))
        physical = (r1 * (column(p.residual_std) + eps) + column(p.residual_mean)) + (
            lr * (column(p.std) + eps) + column(p.mean)
        )
        x_before, x_now, z_before, z_now = x_now, x_next, lr, norm(physical)
        found.append((x_now, z_now))
    return found


@pytest.mark.parametrize("reencode", [True, False], ids=["interpolant", "crps"])
def test_rollout_is_the_published_one(reencode: bool) -> None:
    """Both caching rules, three steps, humidity of std 2e-7, and SST missing over land."""
    generator = torch.Generator().manual_seed(1)
    p = processor()
    noise = torch.randn(2, 1, CHANNELS, *GRID, generator=generator)
    analyses = p.mean.view(1, -1, 1, 1) + p.std.view(1, -1, 1, 1) * noise
    analyses[:, 0, 1, 2:5, 3:9] = torch.nan
    assert p.statics is not None
    model = LatentForecaster[NoKey](
        sampler=Sampler(),
        projector=Projector(),
        downsample=Downsample(GRID, (2, 2), mode="parity_bilinear"),
        residual_scale=p.residual_scale,
        residual_shift=p.residual_shift,
        forcing=PublishedForcing(p.statics),
        reencode_previous=reencode,
    )
    start = model.start(p.encode(analyses[0]), p.encode(analyses[1]), INIT)
    published = plain(analyses[0], analyses[1], steps=3, reencode=reencode)
    for state, (x, z) in zip(model.rollout(start, NoKey(), steps=3), published, strict=True):
        scale = (p.std + 1e-6).view(1, -1, 1, 1)
        torch.testing.assert_close(p.decode(state.current) / scale, x / scale, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(state.latent_current, z, rtol=1e-4, atol=1e-4)


def test_the_two_caching_rules_differ() -> None:
    noise = torch.randn(2, 1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(1))
    last = [plain(*noise, steps=3, reencode=rule)[-1][1] for rule in (True, False)]
    assert (last[0] - last[1]).abs().max() > 1e-3
