"""A dense reference of neighbourhood attention, which knows no sharded tensor but announces itself."""

import torch
from torch.overrides import handle_torch_function, has_torch_function

from shardtensor import neighborhood_handler, register_function_handler


def local_attention(q, k, v, *, kernel, row_offset=0, bias=None, longitude="periodic", poles="clamp"):
    """Dense reference: query row i sees kh key rows from clamp(i + row_offset - kh // 2, 0, Hk - kh) on, and
    columns around the globe. Across the poles, keys and values lie on the sphere written out twice.
    """
    if has_torch_function((q, k, v)):
        return handle_torch_function(
            local_attention,
            (q, k, v),
            q,
            k,
            v,
            kernel=kernel,
            row_offset=row_offset,
            bias=bias,
            longitude=longitude,
            poles=poles,
        )
    kh, kw = kernel
    if poles != "clamp":
        k, v = (beyond_poles(x, kh // 2, int(poles == "cross_pole_row")) for x in (k, v))
        row_offset += kh // 2
    rows, keys, columns = q.shape[1], k.shape[1], k.shape[2]
    if keys < kh:
        raise ValueError("kernel has more rows than there are keys")
    start = (torch.arange(rows) + row_offset - kh // 2).clamp(0, keys - kh)
    near = (torch.arange(keys) >= start[:, None]) & (torch.arange(keys) < start[:, None] + kh)
    apart = (torch.arange(columns) - torch.arange(columns)[:, None] + kw // 2) % columns
    seen = near[:, None, :, None] & (apart < kw)[None, :, None, :]
    score = torch.einsum("bhwnd,bklnd->bnhwkl", q, k) / q.shape[-1] ** 0.5
    if bias is not None:
        score = score + bias[None, :, None, None, None, None]
        score = score * bias.mean()
    weight = score.masked_fill(~seen, -torch.inf).flatten(-2).softmax(-1).unflatten(-1, (keys, columns))
    return torch.einsum("bnhwkl,bklnd->bhwnd", weight, v)


def beyond_poles(x, reach, first):
    """Adds rows one by one: row -1 - i is row first + i from the other side of the globe."""
    rows, turned = x.shape[1], x.roll(x.shape[2] // 2, 2)
    north = [turned[:, first + i] for i in reversed(range(reach))]
    south = [turned[:, rows - 1 - first - i] for i in range(reach)]
    return torch.stack([*north, *x.unbind(1), *south], 1)


register_function_handler(local_attention, neighborhood_handler)
