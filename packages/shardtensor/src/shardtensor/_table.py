"""Which handler runs which torch function: operations by kind, and the method surface made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shardtensor import (
    _attention,
    _blocks,
    _brackets,
    _concat,
    _contract,
    _fourier,
    _index,
    _interpolate,
    _linalg,
    _losses,
    _multihead,
    _normalise,
    _pad,
    _pointwise,
    _pool,
    _products,
    _put,
    _random,
    _rearrange,
    _reduce,
    _scan,
    _softmax,
    _sort,
    _take,
    _vector_norm,
    _views,
    _window,
)
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
    conj_physical resolve_conj resolve_neg complex polar nextafter ldexp gcd lcm arcsinh arccosh arctanh i0
    i0e
    i1 i1e igamma igammac polygamma mvlgamma multigammaln erfcx entr expit ndtr ndtri log_ndtr xlog1py zeta
    gammaln psi gammainc gammaincc bitwise_left_shift bitwise_right_shift
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __rfloordiv__
    __mod__ __rmod__ __pow__ __rpow__ __neg__ __pos__ __abs__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
    __invert__ __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __lshift__ __rshift__ __rlshift__ __rrshift__
    """
)
IN_PLACE = (
    *(name + "_" for name in POINTWISE if hasattr(torch.Tensor, name + "_")),
    *_words(
        """
        sigmoid_ tanh_ zero_ fill_ copy_ elu_ selu_ celu_ leaky_relu_ hardtanh_ threshold_ __iadd__ __isub__
        __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ __ilshift__
        __irshift__
        """
    ),
)
CAST = _words(
    "to type type_as float double half bfloat16 int long short char byte bool cfloat cdouble cpu cuda"
)
QUERY = _words(
    """
    is_floating_point is_complex element_size get_device is_contiguous new_zeros new_ones new_full new_empty
    new_tensor
    """
)
RANDOM = _words(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout dropout_
    alpha_dropout_ feature_dropout_ feature_alpha_dropout_ bernoulli bernoulli_ multinomial normal normal_
    uniform_ random_ exponential_ rand_like randn_like randint_like rrelu gumbel_softmax
    """
)
REDUCE: dict[str, Callable[..., Any]] = {
    "sum": _reduce.sum_,
    "nansum": _reduce.nansum,
    "mean": _reduce.mean,
    "nanmean": _reduce.nanmean,
    "prod": _reduce.prod,
    "amax": _reduce.amax,
    "amin": _reduce.amin,
    "aminmax": _reduce.aminmax,
    "argmax": _sort.argmax,
    "argmin": _sort.argmin,
    "any": _reduce.any_,
    "all": _reduce.all_,
    "count_nonzero": _reduce.count_nonzero,
    "var": _reduce.var,
    "std": _reduce.std,
    "var_mean": _reduce.var_mean,
    "std_mean": _reduce.std_mean,
    "norm": _vector_norm.norm,
    "dist": _vector_norm.dist,
    "histc": _reduce.histc,
    "bincount": _reduce.bincount,
    "logsumexp": _softmax.logsumexp,
    "softmax": _softmax.softmax,
    "log_softmax": _softmax.log_softmax,
    "softmin": _softmax.softmin,
    "normalize": _normalise.normalize,
    "cumsum": _scan.cumsum,
    "cumprod": _scan.cumprod,
    "cummax": _scan.cummax,
    "cummin": _scan.cummin,
    "logcumsumexp": _scan.logcumsumexp,
    "diff": _scan.diff,
    "trapezoid": _scan.trapezoid,
    "trapz": _scan.trapezoid,
    "topk": _sort.topk,
    "sort": _sort.sort,
    "argsort": _sort.argsort,
    "msort": _sort.msort,
    "median": _sort.median,
    "nanmedian": _sort.nanmedian,
    "mode": _sort.mode,
    "kthvalue": _sort.kthvalue,
    "quantile": _sort.quantile,
    "nanquantile": _sort.nanquantile,
    "unique": _sort.unique,
    "unique_consecutive": _sort.unique_consecutive,
}
NORMS = {
    "vector_norm": _vector_norm.vector_norm,
    "matrix_norm": _vector_norm.matrix_norm,
    "norm": _vector_norm.linalg_norm,
}
VIEW: dict[str, Handler] = {
    "permute": _views.view(_views.permute, "dims"),
    "transpose": _views.view(_views.transpose, "dim0|axis0", "dim1|axis1"),
    "swapaxes": _views.view(_views.transpose, "dim0|axis0", "dim1|axis1"),
    "swapdims": _views.view(_views.transpose, "dim0|axis0", "dim1|axis1"),
    "t": _views.view(_views.matrix_transpose),
    "adjoint": _views.view(_views.adjoint),
    "movedim": _views.view(_views.movedim),
    "moveaxis": _views.view(_views.movedim),
    "unsqueeze": _views.view(_views.unsqueeze),
    "squeeze": _views.view(_views.squeeze, "dim"),
    "expand": _views.view(_views.expand, "size"),
    "expand_as": _views.view(_views.expand, "other"),
    "broadcast_to": _views.view(_views.expand, "size"),
    "reshape": _views.view(_views.reshape, "shape"),
    "reshape_as": _views.view(_views.reshape, "other"),
    "view": _views.view(_views.reinterpret, "size"),
    "view_as": _views.view(_views.reshape, "other"),
    "flatten": _views.view(_views.flatten),
    "ravel": _views.view(_views.flatten),
    "unflatten": _views.view(_views.unflatten),
    "repeat": _views.view(_rearrange.repeat, "repeats"),
    "tile": _views.view(_rearrange.tile, "dims"),
    "repeat_interleave": _views.view(_rearrange.repeat_interleave),
    "unfold": _views.view(_rearrange.unfold),
    "rot90": _views.view(_rearrange.rot90),
    "diagonal": _views.view(_rearrange.diagonal),
    "diag": _views.view(_rearrange.diag, "diagonal"),
    "diag_embed": _views.view(_rearrange.diag_embed),
    "trace": _views.view(_rearrange.trace),
    "tril": _views.view(_rearrange.tril),
    "triu": _views.view(_rearrange.triu),
    "select": _views.view(_index.select),
    "narrow": _views.view(_index.narrow),
    "split": _views.view(_index.split, "split_size|split_size_or_sections"),
    "split_with_sizes": _views.view(_index.split, "split_sizes"),
    "chunk": _views.view(_index.chunk),
    "tensor_split": _views.view(_index.tensor_split, "indices_or_sections|sections|indices"),
    "hsplit": _views.view(_rearrange.partition(1), "sections|indices"),
    "vsplit": _views.view(_rearrange.partition(0), "sections|indices"),
    "dsplit": _views.view(_rearrange.partition(2), "sections|indices"),
    "unbind": _views.view(_index.unbind),
    "roll": _views.view(_index.roll),
    "flip": _views.view(_index.flip, "dims"),
    "fliplr": _views.view(lambda x: _index.flip(x, 1)),
    "flipud": _views.view(lambda x: _index.flip(x, 0)),
    "one_hot": _views.view(_take.one_hot),
    "glu": _views.view(_rearrange.glu),
}
_ADDED: dict[str, Callable[[Any, Any], Any]] = {
    "addmm": torch.matmul,
    "addmv": torch.matmul,
    "baddbmm": torch.matmul,
}
_ADDED |= {"addbmm": _products.summed_product, "addr": torch.outer}
CONTRACT: dict[str, Handler] = {
    **{name: _products.added(product) for name, product in _ADDED.items()},
    "outer": _products.outer,
    "ger": _products.outer,
    "inner": _products.inner,
    "vdot": _products.vdot,
    "tensordot": _products.tensordot,
    "chain_matmul": _products.chain,
    "bilinear": _products.bilinear,
    "cross": _products.cross,
    "cdist": _products.distances,
    "kron": _products.refused("blocks of the result would lie on several ranks"),
}
MATRICES = _words(
    """
    inv inv_ex det slogdet cholesky cholesky_ex qr svd svdvals eigh eigvalsh eig eigvals pinv matrix_rank
    matrix_exp matrix_power cond lu lu_factor
    """
)
MATRIX_METHODS = _words("inverse det logdet slogdet cholesky qr svd pinverse matrix_exp matrix_power")
LINALG: dict[str, Handler] = {
    **dict.fromkeys(MATRICES, _linalg.matrices),
    "solve": _linalg.solve,
    "solve_triangular": _linalg.solve,
    "multi_dot": _products.chain,
    "cross": _products.cross,
    "vecdot": _products.vecdot,
    "matmul": _contract.matmul,
    "diagonal": _views.view(lambda x, offset=0, dim1=-2, dim2=-1: _rearrange.diagonal(x, offset, dim1, dim2)),
}
_SCATTER = {name: _put.index_write(name) for name in _words("index_add index_copy index_fill")}
_SCATTER |= {name: _put.scatter(name) for name in _words("scatter scatter_add scatter_reduce")}
_MASKED = _products.refused(
    "the extent of the result, or which value goes where, depends on data", "Use torch.where(mask, value, x)."
)
INDEX: dict[str, Handler] = {
    **_SCATTER,
    **{f"{name}_": _put.in_place(handler) for name, handler in _SCATTER.items()},
    "__getitem__": _brackets.getitem,
    "__setitem__": _brackets.setitem,
    "index_put": _put.index_put("index_put"),
    "index_put_": _put.index_put("index_put_"),
    "index_select": _take.index_select,
    "take": _take.take_flat,
    "gather": _take.gather_along,
    "take_along_dim": _take.take_along_dim,
    "embedding": _take.embedding,
    "masked_select": _MASKED,
    "masked_scatter": _MASKED,
    "masked_scatter_": _MASKED,
    "nonzero": _MASKED,
    "argwhere": _MASKED,
}
JOIN: dict[str, Handler] = {
    **dict.fromkeys(_words("cat concat concatenate stack"), _concat.concatenate),
    **dict.fromkeys(_words("vstack row_stack"), _concat.stacked(0, 2)),
    "hstack": _concat.stacked(1, 1),
    "dstack": _concat.stacked(2, 3),
    "column_stack": _concat.stacked(1, 0),
    "atleast_1d": _rearrange.atleast(1),
    "atleast_2d": _rearrange.atleast(2),
    "atleast_3d": _rearrange.atleast(3),
    "meshgrid": _rearrange.meshgrid,
    "broadcast_tensors": _rearrange.broadcast_tensors,
}
WRITTEN: dict[str, Handler] = {
    **{f"{name}_": _put.in_place(_reduce.reduction(REDUCE[name])) for name in ("cumsum", "cumprod")},
    **{f"{name}_": _put.in_place(VIEW[name]) for name in ("tril", "triu")},
    **{f"{name}_": _put.in_place(CONTRACT[name]) for name in (*_ADDED,)},
}
SPECIAL: dict[str, Handler] = {
    "prelu": _pointwise.prelu,
    "view_as_real": _pointwise.view_as_real,
    "view_as_complex": _pointwise.view_as_real,
    "isin": _pointwise.lookup,
    "bucketize": _pointwise.lookup,
    "searchsorted": _pointwise.lookup,
    "linear": _contract.linear,
    "matmul": _contract.matmul,
    "mm": _contract.matmul,
    "bmm": _contract.matmul,
    "mv": _contract.matmul,
    "dot": _contract.matmul,
    "__matmul__": _contract.matmul,
    "__rmatmul__": _contract.matmul,
    "einsum": _contract.einsum,
    "scaled_dot_product_attention": _attention.scaled_dot_product_attention,
    "multi_head_attention_forward": _multihead.multi_head_attention,
    "layer_norm": _normalise.layer_norm,
    "rms_norm": _normalise.rms_norm,
    "group_norm": _normalise.group_norm,
    "instance_norm": _normalise.instance_norm,
    "batch_norm": _normalise.batch_norm,
    "local_response_norm": _normalise.local_response_norm,
    "max": _sort.maximum,
    "min": _sort.minimum,
    "equal": _reduce.equal,
    "allclose": _reduce.allclose,
    "cross_entropy": _losses.class_loss,
    "nll_loss": _losses.class_loss,
    "cosine_similarity": _losses.cosine_similarity,
    "cosine_embedding_loss": _losses.cosine_embedding_loss,
    **{name: _losses.elementwise(names) for name, names in _losses.ELEMENTWISE.items()},
    "conv1d": _window.convolution,
    "conv2d": _window.convolution,
    "conv3d": _window.convolution,
    "conv_transpose1d": _window.transposed_convolution,
    "conv_transpose2d": _window.transposed_convolution,
    "conv_transpose3d": _window.transposed_convolution,
    "pad": _pad.pad,
    "interpolate": _interpolate.interpolate,
    "pixel_shuffle": _blocks.pixel_shuffle,
    "pixel_unshuffle": _blocks.pixel_unshuffle,
    "channel_shuffle": _blocks.channel_shuffle,
}


WINDOWS: dict[str, Handler] = {
    f"{name}{n}d{suffix}": handler
    for n in (1, 2, 3)
    for name, suffix, handler in (
        ("max_pool", "", _pool.max_pool(n)),
        ("max_pool", "_with_indices", _pool.max_pool(n, indices=True)),
        ("avg_pool", "", _pool.avg_pool(n)),
        ("lp_pool", "", _pool.lp_pool(n)),
        ("adaptive_avg_pool", "", _pool.adaptive_avg_pool(n)),
        ("adaptive_max_pool", "", _pool.adaptive_max_pool(n)),
        ("adaptive_max_pool", "_with_indices", _pool.adaptive_max_pool(n, indices=True)),
    )
}


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
    spaces: tuple[Any, ...] = (torch.Tensor,)
    if not name.startswith("__"):
        spaces += (torch, F, torch._C._nn, torch._C._VariableFunctions, torch.special)
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


# Dynamo finds the handler of a function that it reads here, but not always of one that a closure holds.
_METHODS: dict[str, Callable[..., Any]] = {}


def _install(name: str) -> None:
    """Gives ShardTensor the Tensor method of that name."""
    if name in ShardTensor.__dict__ and name not in ("__eq__", "__ne__"):
        return
    _METHODS[name] = getattr(torch.Tensor, name)

    def method(self: ShardTensor, *args: Any, **kwargs: Any) -> Any:
        return dispatch(_METHODS[name], (ShardTensor,), (self, *args), kwargs)

    method.__name__ = name
    method.__doc__ = f"As torch.Tensor.{name}, on the global tensor."
    setattr(ShardTensor, name, method)


def install() -> None:
    """Fills ShardTensor.handlers and the method surface."""
    _register(POINTWISE, _pointwise.pointwise)
    _register(IN_PLACE, _pointwise.in_place)
    _register(CAST, _pointwise.cast)
    _register(QUERY, _pointwise.query)
    for name in RANDOM:
        _register([name], _random.random(name))
    for table in (VIEW, CONTRACT, INDEX, JOIN, WRITTEN, SPECIAL, WINDOWS):
        for name, handler in table.items():
            _register([name], handler)
    for name, function in REDUCE.items():
        _register([name], _reduce.reduction(function))
    for name, function in NORMS.items():
        ShardTensor.handlers[getattr(torch.linalg, name)] = _reduce.reduction(function)
    for name, handler in LINALG.items():
        ShardTensor.handlers[getattr(torch.linalg, name)] = handler
    _register(MATRIX_METHODS, _linalg.matrices)
    _fourier.install(ShardTensor.handlers)
    # Unlike that of torch.nn.functional, this one returns indices too.
    ShardTensor.handlers[torch.adaptive_max_pool1d] = _pool.adaptive_max_pool(1, indices=True)
    ShardTensor.handlers[F.unfold] = _blocks.unfold
    ShardTensor.handlers[F.fold] = _blocks.fold
    ShardTensor.handlers[torch.autograd.grad] = _gradient
    ShardTensor.real = property(lambda x: torch.real(x))  # type: ignore[attr-defined]
    ShardTensor.imag = property(lambda x: torch.imag(x))  # type: ignore[attr-defined]
    ShardTensor.T = property(lambda x: x.permute(*reversed(range(x.ndim))))  # type: ignore[attr-defined]
    ShardTensor.H = property(_views.adjoint)  # type: ignore[attr-defined]
    ShardTensor.mH = property(_views.adjoint)  # type: ignore[attr-defined]
    ShardTensor.mT = property(_views.matrix_transpose)  # type: ignore[attr-defined]
