"""Samples of every elementwise function, in each of its forms: free function, functional and method."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from shard_samples import Sample
from torch import Tensor

from shardtensor import _table
from shardtensor._table import _words

Change = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def _positive(x: Tensor) -> Tensor:
    return x.abs() + 0.1


def _inside(x: Tensor) -> Tensor:
    return 0.9 * x.tanh()


def _probability(x: Tensor) -> Tensor:
    return 0.05 + 0.9 * x.sigmoid()


def _above_one(x: Tensor) -> Tensor:
    return x.abs() + 1.1


def _whole(x: Tensor) -> Tensor:
    return (4 * x).long()


def _small_whole(x: Tensor) -> Tensor:
    return x.long().abs()


def _bits(x: Tensor) -> Tensor:
    return x > 0


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x, x.flip(0))


DOMAINS: dict[Change, str] = {
    _positive: """
        log log2 log10 sqrt rsqrt reciprocal lgamma digamma gammaln psi mvlgamma polygamma entr
        multigammaln igamma igammac gammainc gammaincc pow float_power __pow__ __rpow__ xlogy xlog1py
        ldexp zeta fmod remainder __mod__ __rmod__ floor_divide __floordiv__ __rfloordiv__ div divide
        true_divide __truediv__ __rtruediv__ addcdiv log1p polar
    """,
    _inside: "asin acos arcsin arccos atanh arctanh erfinv",
    _probability: "logit ndtri",
    _above_one: "acosh arccosh",
    _whole: "gcd lcm",
    _small_whole: "bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ __rlshift__ __rrshift__",
    _bits: """
        bitwise_not bitwise_and bitwise_or bitwise_xor __invert__ __and__ __or__ __xor__ __rand__
        __ror__ __rxor__
    """,
    _complex: "real imag conj conj_physical resolve_conj angle view_as_real",
}
BINARY = _words(
    """
    atan2 arctan2 hypot add sub subtract mul multiply div divide true_divide floor_divide remainder fmod
    pow float_power rsub xlogy logaddexp logaddexp2 maximum minimum fmax fmin copysign heaviside eq ne lt
    le gt ge greater greater_equal less less_equal not_equal isclose logical_and logical_or logical_xor
    bitwise_and bitwise_or bitwise_xor complex polar nextafter ldexp gcd lcm igamma igammac gammainc
    gammaincc xlog1py zeta bitwise_left_shift bitwise_right_shift __add__ __radd__ __sub__ __rsub__
    __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __pow__ __rpow__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __lshift__
    __rshift__ __rlshift__ __rrshift__
    """
)
OTHERS: dict[str, tuple[int, Callable[..., Any]]] = {
    "lerp": (3, torch.lerp),
    "addcmul": (3, partial(torch.addcmul, value=0.5)),
    "addcdiv": (3, torch.addcdiv),
    "where": (2, lambda x, y: torch.where(x > y, x, y)),
    "masked_fill": (2, lambda x, y: x.masked_fill(y > 0, 2.0)),
    "clamp": (3, lambda x, y, z: [x.clamp(-0.5, 0.5), torch.clamp(x, min=y), x.clamp(max=z), x.clamp(y, z)]),
    "clip": (3, lambda x, y, z: [x.clip(-0.5, 0.5), torch.clip(x, y, z)]),
    "clamp_min": (2, lambda x, y: [torch.clamp_min(x, 0.1), x.clamp_min(y)]),
    "clamp_max": (2, lambda x, y: [torch.clamp_max(x, 0.1), x.clamp_max(y)]),
    "threshold": (1, lambda x: F.threshold(x, 0.1, 5.0)),
    "mvlgamma": (1, lambda x: [torch.mvlgamma(x + 2, 2), (x + 2).mvlgamma(2)]),
    "multigammaln": (1, lambda x: torch.special.multigammaln(x + 2, 2)),
    "polygamma": (1, lambda x: [torch.polygamma(1, x), x.polygamma(2)]),
    "full_like": (1, lambda x: torch.full_like(x, 3.0)),
    "empty_like": (1, lambda x: torch.empty_like(x).fill_(2.0)),
    "round": (1, lambda x: [torch.round(x), torch.round(x, decimals=1), x.round()]),
    "nan_to_num": (1, lambda x: torch.nan_to_num(torch.where(x > 0, x, torch.nan), nan=0.5)),
    "gelu": (1, lambda x: [F.gelu(x), F.gelu(x, approximate="tanh")]),
    "leaky_relu": (1, lambda x: F.leaky_relu(x, 0.2)),
    "softplus": (1, lambda x: F.softplus(x, beta=2, threshold=3)),
    "zeta": (2, lambda x, y: torch.special.zeta(1.5 + x.detach(), y.detach())),
    "igamma": (2, lambda x, y: torch.igamma(x.detach(), y)),
    "igammac": (2, lambda x, y: torch.igammac(x.detach(), y)),
    "gammainc": (2, lambda x, y: torch.special.gammainc(x.detach(), y)),
    "gammaincc": (2, lambda x, y: torch.special.gammaincc(x.detach(), y)),
    "nextafter": (2, lambda x, y: torch.nextafter(x.detach(), y.detach())),
    "heaviside": (2, lambda x, y: torch.heaviside(x.detach(), y.detach())),
    "__rpow__": (1, lambda x: 2.0**x),
    "__rlshift__": (1, lambda x: 3 << x),
    "__rrshift__": (1, lambda x: 64 >> x),
    "__rand__": (1, lambda x: True & x),
    "__ror__": (1, lambda x: True | x),
    "__rxor__": (1, lambda x: True ^ x),
    "__pos__": (1, lambda x: +x),
    "__abs__": (1, abs),
}
NO_BF16 = _words(
    """
    complex polar gcd lcm lgamma gammaln mvlgamma multigammaln digamma psi polygamma zeta igamma igammac
    gammainc gammaincc erfcx entr ndtr ndtri log_ndtr xlog1py i0e i1 i1e logaddexp2 heaviside nextafter
    """
)


def forms(name: str) -> list[Callable[..., Any]]:
    """Returns every way to call the function on tensors."""
    spaces = (torch, F, torch.special)
    found = [getattr(space, name, None) for space in spaces if not name.startswith("__")]
    found = [function for function in found if callable(function)]
    if callable(getattr(torch.Tensor, name, None)):
        found.append(lambda x, *rest: getattr(x, name)(*rest))
    return found


def _every(name: str) -> Callable[..., Any]:
    ways = forms(name)
    return lambda *operands: [way(*operands) for way in ways]


def _sample(name: str, count: int, run: Callable[..., Any], make: Change) -> Sample:
    return Sample(
        op=name,
        run=run,
        inputs=((3, 7),) * count,
        dims=((1,) * count,),
        grid=(((0, 1),) * count,),
        make=make,
        bf16=name not in NO_BF16,
        rtol=1e-10 if name in ("mvlgamma", "multigammaln", "ndtri") else 1e-11,
    )


_CHANGES = {name: change for change, names in DOMAINS.items() for name in names.split()}
# No derivative in torch, or none in place.
NO_GRADIENT = _words(
    """
    floor_divide __floordiv__ __rfloordiv__ floor_divide_ __ifloordiv__ asinh_ acosh_ atanh_ arcsinh_
    arccosh_ arctanh_
    """
)


def _detached(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    return (lambda *operands: run(*(x.detach() for x in operands))) if name in NO_GRADIENT else run


SAMPLES = [
    _sample(
        name,
        OTHERS[name][0] if name in OTHERS else 1 + (name in BINARY),
        _detached(name, OTHERS[name][1] if name in OTHERS else _every(name)),
        _CHANGES.get(name, _same),
    )
    for name in _table.POINTWISE
]
IN_PLACE_OTHERS: dict[str, tuple[int, Callable[..., Any]]] = {
    "zero_": (1, lambda x: x.zero_()),
    "fill_": (1, lambda x: x.fill_(2.5)),
    "copy_": (2, lambda x, y: x.copy_(y)),
    "masked_fill_": (2, lambda x, y: x.masked_fill_(y > 0, 2.0)),
    "lerp_": (3, lambda x, y, z: x.lerp_(y, z)),
    "addcmul_": (3, lambda x, y, z: x.addcmul_(y, z)),
    "addcdiv_": (3, lambda x, y, z: x.addcdiv_(y, z)),
    "clamp_": (1, lambda x: x.clamp_(-0.5, 0.5)),
    "clip_": (1, lambda x: x.clip_(-0.5, 0.5)),
    "clamp_min_": (1, lambda x: x.clamp_min_(0.1)),
    "clamp_max_": (1, lambda x: x.clamp_max_(0.1)),
    "mvlgamma_": (1, lambda x: x.add_(2).mvlgamma_(2)),
    "polygamma_": (1, lambda x: x.polygamma_(1)),
    "threshold_": (1, lambda x: F.threshold_(x, 0.1, 5.0)),
    "elu_": (1, F.elu_),
    "selu_": (1, F.selu_),
    "celu_": (1, F.celu_),
    "leaky_relu_": (1, F.leaky_relu_),
    "hardtanh_": (1, F.hardtanh_),
    "detach_": (1, lambda x: x.detach_()),
    "igamma_": (2, lambda x, y: x.detach().igamma_(y.detach())),
    "igammac_": (2, lambda x, y: x.detach().igammac_(y.detach())),
    "heaviside_": (2, lambda x, y: x.detach().heaviside_(y.detach())),
    "nextafter_": (2, lambda x, y: x.detach().nextafter_(y.detach())),
    "float_power_": (2, lambda x, y: x.double().float_power_(y)),
    "ldexp_": (2, lambda x, y: x.ldexp_(y.detach())),
}


def _in_place(name: str) -> Sample:
    base = name[3:-2] if name.startswith("__i") else name[:-1]
    base = f"__{base}__" if name.startswith("__i") else base
    binary = base in BINARY
    count, run = IN_PLACE_OTHERS.get(name, (1 + binary, lambda x, *rest: getattr(x, name)(*rest)))

    def fresh(x: Any, *rest: Any) -> Any:
        mine = x.clone()
        out = run(mine, *rest)
        return [*(out if isinstance(out, list) else [out]), mine]

    return _sample(name, count, _detached(name, fresh), _CHANGES.get(base, _same))


SAMPLES += [_in_place(name) for name in _table.IN_PLACE]
CASTS: dict[str, Callable[..., Any]] = {
    "to": lambda x: [x.to(torch.float32), x.to("cpu", torch.float32), x.to(x.float())],
    "type": lambda x: x.type(torch.float32),
    "type_as": lambda x: x.type_as(x.float()),
    "cpu": lambda x: x.cpu(),
}
SAMPLES += [
    _sample(name, 1, CASTS.get(name, lambda x, name=name: getattr(x, name)()), _same)
    for name in _table.CAST
    if name != "cuda"
]
SAMPLES += [
    # A plain operand is cut, or shared where it lacks the sharded dimension: its gradient is then summed.
    Sample(op="mul", run=torch.mul, inputs=((3, 7), (3, 7)), dims=((1, None), (None, 1)), backward=1),
    Sample(op="add", run=torch.add, inputs=((3, 7), (3, 1)), dims=((1, None),), backward=1),
    Sample(op="sub", run=lambda x, y: y - x, inputs=((2, 7, 3), (3,)), dims=((1, None),), backward=1),
    Sample(
        op="add",
        run=lambda x, y: torch.add(input=x, other=y, alpha=2),
        inputs=((7,), (7,)),
        dims=((0, 0),),
    ),
    Sample(
        op="prelu",
        run=F.prelu,
        inputs=((3, 4, 7), (4,)),
        dims=((0, None), (1, None), (2, None)),
        grid=(((1, 2), (None, None)),),
        backward=1,
    ),
    Sample(op="prelu", run=F.prelu, inputs=((3, 4, 7), (1,)), dims=((1, None), (2, None)), backward=1),
    Sample(
        op="view_as_real",
        run=lambda x: [torch.view_as_complex(torch.view_as_real(x)), x.real, x.imag.abs()],
        inputs=((3, 7),),
        dims=((1,),),
        grid=(((0, 1),),),
        make=_complex,
        bf16=False,
    ),
    Sample(
        op="isin",
        run=lambda x: torch.isin(x, torch.tensor([0, 2, 3])),
        inputs=((3, 7),),
        dims=((1,),),
        make=_whole,
    ),
    Sample(
        op="bucketize",
        run=lambda x: [
            torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5]).to(x.dtype)),
            torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5]).to(x.dtype), right=True, out_int32=True),
            torch.searchsorted(torch.tensor([-1.0, 0.0, 0.5]).to(x.dtype), x, right=True),
        ],
        inputs=((3, 7),),
        dims=((1,),),
        grid=(((0, 1),),),
    ),
]
