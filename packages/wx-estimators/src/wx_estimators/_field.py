"""A network as the right-hand side of a differential equation: one affine form serves every estimator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ._protocols import Network

Factor = float | Tensor
"""A number, or a tensor that broadcasts along channels."""


class Affine(NamedTuple):
    """f(x) = x_out x + base_out x0 + net_out F(x_in x + base_in x0) at one time.

    Every factor is float64 with one value for all channels or one each.
    """

    x_in: Tensor
    base_in: Tensor
    x_out: Tensor
    base_out: Tensor
    net_out: Tensor

    def mixed(self, own: Factor, x: Factor, base: Factor = 0.0) -> Affine:
        """own f(x) + x x + base x0: another drift of the same network."""
        return self._replace(
            x_out=own * self.x_out + x, base_out=own * self.base_out + base, net_out=own * self.net_out
        )


def affine(x_in: Factor, base_in: Factor, x_out: Factor, base_out: Factor, net_out: Factor) -> Affine:
    """`Affine` from numbers and tensors."""
    factors = (x_in, base_in, x_out, base_out, net_out)
    return Affine(*(torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in factors))


class Table:
    """Factors by time, ready to use: floats where one value serves all channels, else device tensors.

    The time grid is static, so every chunk of rows and every stage that meets a time again finds it here.
    """

    def __init__(self, make: Callable[[float], Affine], like: Tensor) -> None:
        self._make, self._like, self._ready = make, like, dict[float, tuple[Factor, ...]]()

    def __call__(self, t: float) -> tuple[Factor, ...]:
        if t not in self._ready:
            self._ready[t] = tuple(self._broadcast(v) for v in self._make(t))
        return self._ready[t]

    def _broadcast(self, values: Tensor) -> Factor:
        first = float(values[0])
        if bool((values == first).all()):
            return first
        shape = (-1, *[1] * (self._like.ndim - 2))
        return values.to(self._like).reshape(shape)


def combine(*terms: tuple[Factor, Tensor]) -> Tensor | None:
    """Sum of factor times tensor; terms with factor 0 are skipped, and None is left where all are."""
    out: Tensor | None = None
    for factor, value in terms:
        if isinstance(factor, float):
            if factor == 0.0:
                continue
            if out is None:
                out = value if factor == 1.0 else factor * value
            else:
                out = torch.add(out, value, alpha=factor)
        else:
            out = factor * value if out is None else torch.addcmul(out, factor, value)
    return out


class Field:
    """f(x, t) for one batch of rows.

    Args:
        net, cond: network and its condition, (N, ...).
        base: x0 (N, C, *S) in the precision of the solver; only read where a factor of it is not 0.
        table: factors by time.
        label: what the network is told about a time.
        dtype: precision of network input; the solver keeps its own.
        start: network input where neither x nor x0 enters it (t = 0 of an interpolant: pure noise).
    """

    def __init__(
        self,
        net: Network,
        cond: Mapping[str, Tensor],
        base: Tensor,
        table: Table,
        *,
        label: Callable[[float], float],
        dtype: torch.dtype,
        start: Callable[[], Tensor] | None = None,
    ) -> None:
        self._net, self._cond, self._base, self._table = net, cond, base, table
        self._label, self._dtype, self._start = label, dtype, start

    def __call__(self, x: Tensor, t: float) -> Tensor:
        x_in, base_in, x_out, base_out, net_out = self._table(t)
        u = combine((x_in, x), (base_in, self._base))
        if u is None:
            assert self._start is not None
            u = self._start()
        label = torch.full((x.shape[0],), self._label(t), device=x.device, dtype=self._dtype)
        f = self._net.predict(u.to(self._dtype), self._cond, t=label, noise=None).to(x.dtype)
        out = combine((net_out, f), (x_out, x), (base_out, self._base))
        return torch.zeros_like(x) if out is None else out


def solver_dtype(base: Tensor, double: bool) -> torch.dtype:
    """float64 when asked for, else that of the base but at least float32."""
    return torch.float64 if double else torch.promote_types(base.dtype, torch.float32)
