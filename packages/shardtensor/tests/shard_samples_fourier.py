"""Samples of torch.fft over sharded and other dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from shard_samples import Sample
from torch import Tensor


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(0))


def _same(x: Tensor) -> Tensor:
    return x


def _fourier(
    name: str,
    run: Callable[..., Any],
    *,
    over: tuple[int, ...],
    collectives: int = 2,
    make: Callable[[Tensor], Tensor] = _same,
    shape: tuple[int, ...] = (5, 8, 6),
) -> list[Sample]:
    """Returns samples that shard a transformed dimension, and another."""
    others = tuple((d,) for d in range(len(shape)) if d not in over)
    common = {"op": name, "run": run, "inputs": (shape,), "make": make, "bf16": False}
    grid = ((over[0], others[0][0]),) if len(others) > 1 else ((over[0], None),)
    found = [
        Sample(
            **common,
            dims=tuple((d,) for d in over),
            grid=(grid,),
            forward=collectives,
            backward=collectives,
        )
    ]
    if others:
        found.append(Sample(**common, dims=others))
    return found


SAMPLES = [
    *_fourier("fft", torch.fft.fft, over=(2,)),
    *_fourier("fft", lambda x: torch.fft.fft(x, 11, 1, "ortho"), over=(1,), make=_complex),
    *_fourier("ifft", lambda x: torch.fft.ifft(x, dim=1), over=(1,), make=_complex),
    *_fourier("rfft", lambda x: torch.fft.rfft(x, dim=1), over=(1,)),
    *_fourier("rfft", lambda x: torch.fft.rfft(x, n=5, norm="forward"), over=(2,)),
    *_fourier("irfft", lambda x: torch.fft.irfft(x, n=9, dim=1), over=(1,), make=_complex),
    *_fourier("irfft", lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1), over=(1,), collectives=4),
    *_fourier("hfft", lambda x: torch.fft.hfft(x, dim=1), over=(1,), make=_complex),
    *_fourier("ihfft", lambda x: torch.fft.ihfft(x, dim=1), over=(1,)),
    *_fourier("fft2", torch.fft.fft2, over=(1, 2)),
    *_fourier("fft2", lambda x: torch.fft.fft2(x, s=(4, 9)), over=(1, 2), make=_complex),
    *_fourier("ifft2", lambda x: torch.fft.ifft2(x, dim=(0, 1)), over=(0, 1), make=_complex),
    *_fourier("rfft2", torch.fft.rfft2, over=(1, 2)),
    *_fourier("irfft2", lambda x: torch.fft.irfft2(x, s=(8, 10)), over=(1, 2), make=_complex),
    *_fourier("fftn", lambda x: torch.fft.fftn(x, s=(6,)), over=(2,)),
    *_fourier("fftn", torch.fft.fftn, over=(0, 1, 2), make=_complex),
    *_fourier("fft2", torch.fft.fft2, over=(0, 1), shape=(6, 8)),
    *_fourier("ifftn", lambda x: torch.fft.ifftn(x, norm="ortho"), over=(0, 1), shape=(6, 8), make=_complex),
    *_fourier("rfftn", lambda x: torch.fft.rfftn(x, dim=(1, 2)), over=(1, 2)),
    *_fourier("irfftn", lambda x: torch.fft.irfftn(x, dim=(0, 1)), over=(0, 1), make=_complex),
    *_fourier("fftshift", lambda x: torch.fft.fftshift(x, 1), over=(1,), collectives=1),
    *_fourier("ifftshift", lambda x: torch.fft.ifftshift(x, dim=(0, 1)), over=(0, 1), collectives=1),
]
