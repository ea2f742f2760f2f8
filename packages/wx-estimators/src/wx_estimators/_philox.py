"""Counter-based random numbers: Philox4x32-10 in torch integers, normals by exactly rounded arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Least-squares fits at Chebyshev nodes, in float64 then rounded. ln(1 + f) = f + f^2 P(f) for f in
# [sqrt(1/2) - 1, sqrt(2) - 1]; sin(b) = b P(b^2) and cos(b) = P(b^2) for |b| <= pi/4. Highest power first.
_LOG = (
    0.09004202485084534,
    -0.14257794618606567,
    0.14806459844112396,
    -0.16575047373771667,
    0.19973105192184448,
    -0.25001609325408936,
    0.33333659172058105,
    -0.4999999403953552,
)
_SIN = (-0.0001950396253960207, 0.008332036435604095, -0.16666650772094727, 1.0)
_COS = (-0.0013585843844339252, 0.04165502265095711, -0.4999985694885254, 1.0)


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011, doi 10.1145/2063384.2063405): four random words per counter.

    Args:
        counter: four int64 tensors that broadcast together, each in 0..2^32 - 1.
        key: two integers in 0..2^32 - 1.

    Returns:
        Four int64 tensors of words in 0..2^32 - 1.
    """
    even, low_odd, odd, low_even = counter
    k0, k1 = key
    # State: the words 0 and 2, and the 64-bit products whose low halves are the words 1 and 3. A product of
    # two 32-bit words wraps in int64, which keeps its bits; the shift is arithmetic, hence the mask after it.
    for _ in range(10):
        product_even, product_odd = even * _MULTIPLY[0], odd * _MULTIPLY[1]
        even = ((product_odd >> 32) ^ low_odd).bitwise_xor_(k0).bitwise_and_(_MASK)
        odd = ((product_even >> 32) ^ low_even).bitwise_xor_(k1).bitwise_and_(_MASK)
        low_odd, low_even = product_odd, product_even
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return even, low_odd.bitwise_and_(_MASK), odd, low_even.bitwise_and_(_MASK)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    out = (x * coefficients[0]).add_(coefficients[1])
    for coefficient in coefficients[2:]:
        # Not addcmul: a fused multiply-add rounds once, and only some devices have it.
        out.mul_(x).add_(coefficient)
    return out


def _radius(word: Tensor) -> Tensor:
    """sqrt(-ln u) for u = (word + 1/2) / 2^32, in float32."""
    x = word.float().add_(0.5)
    bits = x.view(torch.int32)
    # Split x = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
    exponent = (bits - 0x3F3504F3).bitwise_right_shift_(23)
    f = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    log = _polynomial(_LOG, f).mul_(f).mul_(f).add_(f)
    # -ln u = 32 ln 2 - exponent ln 2 - ln(1 + f); rounding must not make it negative.
    square = (32 - exponent).float().mul_(math.log(2.0)).sub_(log)
    return square.clamp_(min=0.0).sqrt_()


def _signed(x: Tensor, bits: Tensor) -> Tensor:
    return x.view(torch.int32).bitwise_xor_(bits & -(2**31)).view(torch.float32)


def normal_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent N(0, 1) float32 tensors from two tensors of random words (Box and Muller 1958).

    The angle is a quadrant from the two top bits of `second` and pi/4 + b, |b| <= pi/4, from the rest:
    sqrt(2) (cos, sin)(pi/4 + b) = (cos b - sin b, cos b + sin b). Additions, products, square roots and
    conversions only, each rounded as IEEE 754 demands: in eager mode the bits depend neither on the device
    nor on vector width or place in the tensor, unlike those of `torch.log` and `torch.cos`. `torch.compile`
    fuses operations and may differ by 5e-7. Largest |value| 6.8.
    """
    radius = _radius(first)
    word = second.to(torch.int32)
    b = (word << 2).float().mul_(math.pi / 2.0**33)
    square = b * b
    sin, cos = _polynomial(_SIN, square).mul_(b), _polynomial(_COS, square)
    x, y = (cos - sin).mul_(radius), cos.add_(sin).mul_(radius)
    return _signed(x, word), _signed(y, word << 1)


def normal_words(words: Words) -> Words:
    """Four N(0, 1) float32 tensors from the four words of `philox`."""
    return (*normal_pair(words[0], words[1]), *normal_pair(words[2], words[3]))
