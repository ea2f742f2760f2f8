"""Which handler runs which torch function: operations by kind, and the method surface made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor import _contract, _index, _normalise, _pointwise, _reduce, _views, _window
from shardtensor._tensor import Handler, ShardTensor, dispatch, local_parts, place


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POINTWISE = _words(
    """
    abs absolute neg negative positive sign sgn signbit exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh atan2 arctan2
    hypot deg2rad rad2deg sigmoid logit erf erfc erfinv lgamma digamma sinc round floor ceil trunc fix frac
    nan_to_num clamp clamp_min clamp_max clip isnan isinf isfinite isposinf isneginf isreal real imag angle
    conj add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power rsub
    xlogy logaddexp logaddexp2 maximum minimum fmax fmin copysign heaviside lerp addcmul addcdiv where
    masked_fill eq ne lt le gt ge greater greater_equal less less_equal not_equal isclose logical_and
    logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not relu relu6 leaky_relu
    elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish hardshrink softshrink
    tanhshrink threshold logsigmoid clone contiguous detach zeros_like ones_like full_like empty_like
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __rfloordiv__
    __mod__ __rmod__ __pow__ __rpow__ __neg__ __pos__ __abs__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
    __invert__ __and__ __or__ __xor__ __rand__ __ror__ __rxor__
    """
)
IN_PLACE = _words(
    """
    add_ sub_ mul_ div_ pow_ neg_ exp_ clamp_ clamp_min_ clamp_max_ relu_ zero_ fill_ copy_ masked_fill_ lerp_
    addcmul_ __iadd__ __isub__ __imul__ __itruediv__
    """
)
CAST = _words("to type type_as float double half bfloat16 int long bool cpu cuda")
QUERY = _words(
    """
    is_floating_point is_complex element_size get_device is_contiguous new_zeros new_ones new_full new_empty
    new_tensor
    """
)
LOSS = _words("mse_loss l1_loss smooth_l1_loss huber_loss")
RANDOM = _words(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout dropout_
    bernoulli bernoulli_ multinomial normal normal_ uniform_ random_ exponential_ rand_like randn_like
    randint_like rrelu gumbel_softmax
    """
)
REDUCE: dict[str, Callable[..., ShardTensor]] = {
    "sum": _reduce.sum_,
    "mean": _reduce.mean,
    "amax": _reduce.amax,
    "amin": _reduce.amin,
    "any": _reduce.any_,
    "all": _reduce.all_,
    "var": _reduce.var,
    "std": _reduce.std,
    "softmax": _normalise.softmax,
    "log_softmax": _normalise.log_softmax,
}
VIEW: dict[str, Handler] = {
    "permute": _views.view(_views.permute, "dims"),
    "transpose": _views.view(_views.transpose, "dim0", "dim1"),
    "swapaxes": _views.view(_views.transpose, "axis0", "axis1"),
    "swapdims": _views.view(_views.transpose, "dim0", "dim1"),
    "t": _views.view(_views.matrix_transpose),
    "movedim": _views.view(_views.movedim, "source", "destination"),
    "moveaxis": _views.view(_views.movedim, "source", "destination"),
    "unsqueeze": _views.view(_views.unsqueeze, "dim"),
    "squeeze": _views.view(_views.squeeze, "dim"),
    "expand": _views.view(_views.expand, "size"),
    "expand_as": _views.view(_views.expand, "other"),
    "broadcast_to": _views.view(_views.expand, "size"),
    "repeat": _views.view(_views.repeat, "repeats"),
    "reshape": _views.view(_views.reshape, "shape"),
    "reshape_as": _views.view(_views.reshape, "other"),
    "view": _views.view(_views.reshape, "size"),
    "view_as": _views.view(_views.reshape, "other"),
    "flatten": _views.view(_views.flatten, "start_dim", "end_dim"),
    "unflatten": _views.view(_views.unflatten, "dim", "sizes"),
    "select": _views.view(_index.select, "dim", "index"),
    "narrow": _views.view(_index.narrow, "dim", "start", "length"),
    "index_select": _views.view(_index.index_select, "dim", "index"),
    "split": _views.view(_index.split, "split_size_or_sections", "split_size", "dim"),
    "chunk": _views.view(_index.chunk, "chunks", "dim"),
    "tensor_split": _views.view(_index.tensor_split, "indices_or_sections", "sections", "dim"),
    "unbind": _views.view(_index.unbind, "dim"),
    "roll": _views.view(_index.roll, "shifts", "dims"),
    "flip": _views.view(_index.flip, "dims"),
}
ALONG: dict[str, Handler] = {
    "cumsum": _views.along(1, None),
    "cumprod": _views.along(1, None),
    "logsumexp": _views.along(1, None),
    "prod": _views.along(1, None),
    "sort": _views.along(1, -1),
    "argsort": _views.along(1, -1),
    "topk": _views.along(2, -1),
    "argmax": _views.along(1, None),
    "argmin": _views.along(1, None),
    "median": _views.along(1, None),
    "diff": _views.along(2, -1),
    "glu": _views.along(1, -1),
    "normalize": _views.along(2, 1),
    "softmin": _views.along(1, None),
}
FOURIER = {name: _views.along(2, -1) for name in ("fft", "ifft", "rfft", "irfft")} | {
    name: _views.along(2, (-2, -1)) for name in ("fft2", "ifft2", "rfft2", "irfft2")
}
SPECIAL: dict[str, Handler] = {
    "linear": _contract.linear,
    "matmul": _contract.matmul,
    "mm": _contract.matmul,
    "bmm": _contract.matmul,
    "mv": _contract.matmul,
    "dot": _contract.matmul,
    "__matmul__": _contract.matmul,
    "__rmatmul__": _contract.matmul,
    "einsum": _contract.einsum,
    "scaled_dot_product_attention": _contract.scaled_dot_product_attention,
    "layer_norm": _normalise.layer_norm,
    "rms_norm": _normalise.rms_norm,
    "conv1d": _window.convolution,
    "conv2d": _window.convolution,
    "conv3d": _window.convolution,
    "pad": _window.pad,
    "cat": _views.concatenate,
    "concat": _views.concatenate,
    "concatenate": _views.concatenate,
    "stack": _views.concatenate,
    "__getitem__": _index.getitem,
}


def _max_min(whole: Callable[..., ShardTensor]) -> Handler:
    """max and min: of everything, of two tensors, or with indices along an unsharded dimension."""
    along, everything = _views.along(1, None), _reduce.reduction(whole)

    def handler(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return everything(func, types, args, kwargs)
        paired = len(args) > 1 and isinstance(args[1], Tensor | ShardTensor)
        return (_pointwise.pointwise if paired else along)(func, types, args, kwargs)

    return handler


def _gradient(func: Any, _: Any, args: Any, kwargs: Any) -> Any:
    """torch.autograd.grad: gradients in the layout of the inputs."""
    outputs, inputs, *rest = args
    flat = (inputs,) if isinstance(inputs, Tensor | ShardTensor) else tuple(inputs)
    grads = func(*local_parts((outputs, flat, *rest)), **local_parts(dict(kwargs)))
    return tuple(
        place(grad, x.spec, x.spec.dims, x.spec.sizes)
        if isinstance(x, ShardTensor) and grad is not None
        else grad
        for x, grad in zip(flat, grads, strict=True)
    )


def _functions(name: str) -> list[Callable[..., Any]]:
    """Returns torch's functions of that name: free function, method, functional."""
    spaces = (torch, torch.Tensor, F, torch._C._nn, torch.special)
    found = [getattr(space, name, None) for space in spaces]
    return [function for function in found if callable(function)]


def _register(
    names: Any, handler: Handler, spaces: Callable[[str], list[Callable[..., Any]]] = _functions
) -> None:
    for name in names:
        for function in spaces(name):
            ShardTensor.handlers[function] = handler
        if hasattr(torch.Tensor, name):
            _install(name)


def _install(name: str) -> None:
    """Gives ShardTensor the Tensor method of that name."""
    if name in ShardTensor.__dict__ and name not in ("__eq__", "__ne__"):
        return
    function = getattr(torch.Tensor, name)

    def method(self: ShardTensor, *args: Any, **kwargs: Any) -> Any:
        return dispatch(function, (ShardTensor,), (self, *args), kwargs)

    method.__name__ = name
    method.__doc__ = f"As torch.Tensor.{name}, on the global tensor."
    setattr(ShardTensor, name, method)


def install() -> None:
    """Fills ShardTensor.handlers and the method surface."""
    _register(POINTWISE, _pointwise.pointwise)
    _register(IN_PLACE, _pointwise.in_place)
    _register(CAST, _pointwise.cast)
    _register(QUERY, _pointwise.query)
    _register(RANDOM, _contract.random)
    _register(LOSS, _reduce.loss)
    for table in (VIEW, ALONG, SPECIAL):
        for name, handler in table.items():
            _register([name], handler)
    for name, function in REDUCE.items():
        _register([name], _reduce.reduction(function))
    _register(["max"], _max_min(_reduce.amax))
    _register(["min"], _max_min(_reduce.amin))
    for name, handler in FOURIER.items():
        ShardTensor.handlers[getattr(torch.fft, name)] = handler
    ShardTensor.handlers[torch.autograd.grad] = _gradient
    ShardTensor.T = property(lambda x: x.permute(*reversed(range(x.ndim))))  # type: ignore[attr-defined]
    ShardTensor.mT = property(_views.matrix_transpose)  # type: ignore[attr-defined]
