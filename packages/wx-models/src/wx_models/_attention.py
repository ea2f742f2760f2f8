"""Attention on a latitude-longitude grid: every point attends to the window around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from wx_models._blocked import blocked
from wx_models._fused import choose, flex, flex_lacks, natten, natten_lacks

_LONGITUDE = ("periodic", "clamp")
_POLES = ("clamp", "cross", "cross_pole_row")


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel: tuple[int, int],
    row_offset: int = 0,
    longitude: str = "periodic",
    poles: str = "clamp",
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of every grid point over the kh x kw window around it.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j over kh rows and kw columns, always kh * kw keys
    (Hassani et al. 2023, arXiv 2204.07143).

    Columns wrap around the globe; with `longitude="clamp"` the window is shifted inward at the first and last
    column, as released ATLAS weights expect. Rows start at clamp(i - kh // 2, 0, Hk - kh): the window is
    shifted inward at the poles. With `poles="cross"` it continues across them: beyond a pole lie the same
    rows in reverse order, turned by 180 degrees of longitude. Row -1 is row 0 where rows are centres of cells
    (`"cross"`, also for patches of rows), and row 1 where row 0 lies at the pole (`"cross_pole_row"`). A key
    that a window meets on both sides of a pole counts twice. Components of vectors change sign across a pole;
    tokens are features, so a network has to learn that.

    Queries may cover only some of the rows of the keys: query row i lies at key row i + row_offset. A tensor
    type that is split by rows takes over through `__torch_function__`, hands each part the key rows it needs
    and calls this function again.

    NaN or infinity in a key or value reaches every query of a tile that reads it, not only those that see it:
    less than kh + 32 rows and kw + 32 columns away with "blocked", all queries with "dense".

    Args:
        q: queries (B, Hq, W, heads, d).
        k: keys (B, Hk, W, heads, d).
        v: values (B, Hk, W, heads, d).
        kernel: odd window sizes (rows, columns), no larger than (Hk, W).
        row_offset: key row of the first query row.
        longitude: "periodic" or "clamp".
        poles: "clamp", "cross" or "cross_pole_row"; to cross, W must be even and k, v hold all rows.
        backend: "blocked" is plain torch; "natten" and "flex" are fused CUDA kernels; "dense" computes all
            Hq Hk W^2 scores, for reference. "auto" is "blocked" but on CUDA, where it prefers "natten", and
            "flex" on large grids.

    Returns:
        Tensor (B, Hq, W, heads, d).

    Raises:
        ValueError: shapes disagree, the window does not fit, or the backend cannot serve the call.
    """
    if has_torch_function((q, k, v)):
        result: Tensor = handle_torch_function(
            neighborhood_attention,
            (q, k, v),
            q,
            k,
            v,
            kernel=kernel,
            row_offset=row_offset,
            longitude=longitude,
            poles=poles,
            backend=backend,
        )
        return result
    _check(q, k, v, kernel, row_offset)
    _check_names(q, longitude, poles)
    if backend == "auto":
        chosen = choose(q.device.type, q.dtype, q.shape[-1], kernel, k.shape[1] * k.shape[2])
    else:
        chosen = backend
        _check_backend(q, k, v, kernel, backend)
    if poles != "clamp":
        reach = kernel[0] // 2
        k, v = (_across_poles(x, reach, poles) for x in (k, v))
        row_offset += reach
    return _BACKENDS[chosen](q, k, v, kernel, row_offset, longitude == "periodic")


def _check(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int) -> None:
    agree = q.ndim == k.ndim == 5 and q.shape[0] == k.shape[0] and q.shape[2:] == k.shape[2:]
    if not agree or k.shape != v.shape:
        raise ValueError(
            "q (B, Hq, W, heads, d) and k, v (B, Hk, W, heads, d) must agree outside the rows, "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if any(size % 2 == 0 or size < 1 for size in kernel):
        raise ValueError(f"kernel sizes must be odd, got {kernel}")
    if kernel[0] > k.shape[1] or kernel[1] > k.shape[2]:
        raise ValueError(f"kernel {kernel} is larger than the {tuple(k.shape[1:3])} key grid")
    if not 0 <= row_offset <= k.shape[1] - q.shape[1]:
        raise ValueError(
            f"row_offset must put {q.shape[1]} query rows within {k.shape[1]} key rows, got {row_offset}"
        )


def _check_names(q: Tensor, longitude: str, poles: str) -> None:
    if longitude not in _LONGITUDE:
        raise ValueError(f"longitude must be one of {_LONGITUDE}, got {longitude!r}")
    if poles not in _POLES:
        raise ValueError(f"poles must be one of {_POLES}, got {poles!r}")
    if poles != "clamp" and (q.shape[2] % 2 or longitude != "periodic"):
        raise ValueError(
            f"poles={poles!r} turns rows by half their columns: it needs an even number of columns and "
            f'longitude="periodic", got {q.shape[2]} columns and longitude={longitude!r}'
        )


def _check_backend(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], backend: str) -> None:
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *_BACKENDS)}, got {backend!r}")
    lacks = ""
    if backend == "natten":
        lacks = natten_lacks(q.device.type, q.dtype, q.shape[-1], kernel)
    elif backend == "flex":
        gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        lacks = flex_lacks(q.device.type, q.dtype, q.shape[-1], gradient=gradient)
    if lacks:
        raise ValueError(f'backend="{backend}" cannot serve this call: {lacks}. Use backend="auto".')


def _across_poles(x: Tensor, reach: int, poles: str) -> Tensor:
    """Adds the `reach` rows beyond either pole to keys or values (B, H, W, heads, d)."""
    if reach == 0:
        return x
    (rows, columns), skip = x.shape[1:3], int(poles == "cross_pole_row")
    north, south = (
        x.narrow(1, start, reach).flip(1).roll(columns // 2, 2) for start in (skip, rows - skip - reach)
    )
    return torch.cat([north, x, south], 1)


def _dense(
    q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int], row_offset: int, periodic: bool
) -> Tensor:
    """Computes all scores and masks most: the reference."""
    (_, hq, w, *_), hk = q.shape, k.shape[1]
    (kh, kw), columns = kernel, torch.arange(w, device=q.device)
    first_row = _window_start(torch.arange(hq, device=q.device) + row_offset, kh, hk)[:, None]
    key_row = torch.arange(hk, device=q.device)
    sees_row = (key_row >= first_row) & (key_row < first_row + kh)
    first_column = columns - kw // 2 if periodic else _window_start(columns, kw, w)
    sees_column = (columns - first_column[:, None]) % w < kw
    mask = (sees_row[:, None, :, None] & sees_column[None, :, None, :]).reshape(hq * w, hk * w)
    queries, keys, values = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out.transpose(1, 2).reshape(q.shape)


def _window_start(index: Tensor, size: int, length: int) -> Tensor:
    return (index - size // 2).clamp(0, length - size)


_BACKENDS = {"blocked": blocked, "dense": _dense, "flex": flex, "natten": natten}
