"""ShardTensor: a global tensor of which this rank holds a part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate
from torch.utils._pytree import GetAttrKey, register_pytree_node, tree_map

from shardtensor._claims import compare_ranks, extents_by_mesh_dim, global_shape_of
from shardtensor._collectives import shared
from shardtensor._errors import UnsupportedShardedOp, warn_of_gather
from shardtensor._modes import TensorPromotionMode, modes
from shardtensor._redistribute import redistribute_local
from shardtensor._spec import (
    Dims,
    ShardSpec,
    Sizes,
    SizesArgument,
    derive,
    offsets,
    retarget,
    sizes_by_mesh_dim,
    spec_named,
)
from shardtensor._wire import current

Handler: TypeAlias = Callable[[Callable[..., Any], Sequence[type], tuple[Any, ...], Mapping[str, Any]], Any]


LocalSizes: TypeAlias = SizesArgument | Mapping[int, Sequence[Sequence[int]]] | Literal["infer", "chunk"]


class _Surface:
    """Everything of torch.Tensor that `_table` installs on ShardTensor, for type checkers."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __add__(self, other: Any) -> ShardTensor: ...
        def __radd__(self, other: Any) -> ShardTensor: ...
        def __sub__(self, other: Any) -> ShardTensor: ...
        def __rsub__(self, other: Any) -> ShardTensor: ...
        def __mul__(self, other: Any) -> ShardTensor: ...
        def __rmul__(self, other: Any) -> ShardTensor: ...
        def __truediv__(self, other: Any) -> ShardTensor: ...
        def __rtruediv__(self, other: Any) -> ShardTensor: ...
        def __floordiv__(self, other: Any) -> ShardTensor: ...
        def __mod__(self, other: Any) -> ShardTensor: ...
        def __pow__(self, other: Any) -> ShardTensor: ...
        def __rpow__(self, other: Any) -> ShardTensor: ...
        def __matmul__(self, other: Any) -> ShardTensor: ...
        def __rmatmul__(self, other: Any) -> ShardTensor: ...
        def __lt__(self, other: Any) -> ShardTensor: ...
        def __le__(self, other: Any) -> ShardTensor: ...
        def __gt__(self, other: Any) -> ShardTensor: ...
        def __ge__(self, other: Any) -> ShardTensor: ...
        def __and__(self, other: Any) -> ShardTensor: ...
        def __or__(self, other: Any) -> ShardTensor: ...
        def __xor__(self, other: Any) -> ShardTensor: ...
        def __neg__(self) -> ShardTensor: ...
        def __invert__(self) -> ShardTensor: ...
        def __getitem__(self, index: Any) -> ShardTensor: ...

    def __getattr__(self, name: str) -> Any:
        member = None if name.startswith("_") else getattr(torch.Tensor, name, None)
        if member is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if not callable(member):
            return dispatch(member.__get__, (ShardTensor,), (self,), {})
        return lambda *args, **kwargs: dispatch(member, (ShardTensor,), (self, *args), kwargs)


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
class ShardTensor(_Surface):
    """A global tensor, sharded evenly or not over a device mesh; torch functions and modules run on it.

    Autograd lives in the local tensors: an operation calls the same torch function on the local parts, with
    communication where the result needs it. Functions see the global shape. Plain tensors that meet a
    ShardTensor are global values, the same on every rank: they are cut to the local rows where they extend
    over a sharded dimension, and their gradient is summed over the mesh.

    The constructor trusts its arguments; `from_local` checks them.

    Args:
        local: this rank's part.
        spec: the layout, the same on every rank.
    """

    local: Tensor
    spec: ShardSpec
    around: Any = None  # of circular padding: rows of neighbours, in `_pad.Around`

    handlers: ClassVar[dict[Callable[..., Any], Handler]] = {}
    named_handlers: ClassVar[dict[str, Handler]] = {}

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return dispatch(func, types, args, kwargs or {})

    @classmethod
    def from_local(
        cls,
        local: Tensor,
        device_mesh: DeviceMesh,
        placements: Sequence[Placement],
        sizes: LocalSizes = None,
        *,
        sharding_shapes: LocalSizes = None,
        global_shape: Sequence[int] | None = None,
        check: bool = True,
    ) -> ShardTensor:
        """Wraps each rank's part without moving it.

        Args:
            local: this rank's part.
            device_mesh: the device mesh.
            placements: one placement for each mesh dimension.
            sizes: rows per rank: a sequence where one mesh dimension is sharded, else {mesh dimension: rows
                per rank}, or {mesh dimension: shapes of the ranks' parts}; "chunk" for torch.chunk's sizes of
                `global_shape`; "infer" asks the other ranks. By default "chunk" if `global_shape` is given,
                else "infer".
            sharding_shapes: the same, by PhysicsNeMo's name.
            global_shape: global shape; needed by "chunk" only.
            check: compare layout and dtype between the ranks (one small collective for each mesh dimension,
                the one by which sizes are inferred), so that a mistake is an error here and not a hang later.

        Raises:
            ValueError: the local shape is not this rank's block of that layout, or the ranks disagree.
        """
        wanted = sharding_shapes if sizes is None else sizes
        if wanted is None or wanted == "chunk":
            wanted = "chunk" if global_shape is not None else "infer"
        if isinstance(wanted, str) and wanted not in ("infer", "chunk"):
            raise ValueError(f'sizes must be extents per rank, "infer" or "chunk", got {wanted!r}')
        given = None if isinstance(wanted, str) else extents_by_mesh_dim(placements, wanted)
        known = given
        if check or wanted == "infer":
            seen = compare_ranks(local, device_mesh, placements, given, global_shape)
            known = seen if wanted == "infer" else given
        shape = global_shape or global_shape_of(local, placements, known or {})
        spec = ShardSpec.create(device_mesh, placements, shape, known)
        if local.shape != spec.local_shape:
            raise ValueError(
                f"local has shape {tuple(local.shape)}, expected {tuple(spec.local_shape)}: {spec.describe()}"
            )
        return cls(local, spec)

    @classmethod
    def from_dtensor(cls, x: DTensor) -> ShardTensor:
        """Returns a DTensor as a ShardTensor that shares its memory and its graph."""
        from shardtensor._interop import from_dtensor

        return from_dtensor(x)

    def to_dtensor(self) -> DTensor:
        """Returns this as a DTensor that shares its memory and its graph.

        Raises:
            ValueError: the sizes are not those of torch.chunk, the only ones that a DTensor can have.
        """
        from shardtensor._interop import to_dtensor

        return to_dtensor(self)

    def to_local(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """Returns this rank's part, connected to the graph.

        Args:
            grad_placements: `Partial()` where the ranks use a replicated value differently, so that their
                gradients must be added; by default each placement itself.
        """
        return shared(self.local, self.spec, _pending(self.spec.placements, grad_placements))

    def full_tensor(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """Returns the global tensor on every rank.

        Args:
            grad_placements: `Partial()` where the ranks use the result differently; by default all use it
                alike, as in a loss that every rank computes.
        """
        whole = self.redistribute([Replicate()] * self.spec.mesh.ndim)
        return shared(whole.local, self.spec, _pending(whole.spec.placements, grad_placements))

    def redistribute(
        self, placements: Sequence[Placement] | None = None, *, sizes: SizesArgument = None
    ) -> ShardTensor:
        """Returns the same global tensor in another layout, by one collective for each change.

        Args:
            placements: target placements; by default the present ones (to change the sizes alone).
            sizes: target rows per rank, as in `from_local`; by default the present ones where a mesh
                dimension keeps its placement, else torch.chunk's.
        """
        placements = self.spec.placements if placements is None else tuple(placements)
        given = sizes_by_mesh_dim(placements, sizes)
        for m, (old, new) in enumerate(zip(self.spec.placements, placements, strict=False)):
            extents = self.spec.sizes[m]
            if old == new and extents is not None:
                given.setdefault(m, extents)
        target = retarget(self.spec, placements, given)
        return ShardTensor(redistribute_local(self.local, self.spec, target), target)

    def local_slices(self) -> tuple[slice, ...]:
        """Returns this rank's block as slices of the global array."""
        return self.spec.local_slices()

    @property
    def placements(self) -> tuple[Placement, ...]:
        """One placement for each mesh dimension."""
        return self.spec.placements

    @property
    def mesh(self) -> DeviceMesh:
        """The device mesh."""
        return self.spec.mesh

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh, by DTensor's name."""
        return self.spec.mesh

    def offsets(self, mesh_dim: int) -> Sizes | None:
        """First global row of every rank along a mesh dimension; None where it splits nothing."""
        sizes = self.spec.sizes[mesh_dim]
        return None if sizes is None else offsets(sizes)

    @property
    def sizes(self) -> tuple[Sizes | None, ...]:
        """For each mesh dimension the rows held by its ranks."""
        return self.spec.sizes

    @property
    def shape(self) -> torch.Size:
        """The global shape."""
        return spec_named(self.spec.name).shape if torch.compiler.is_compiling() else self.spec.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions of the global tensor."""
        return len(self.spec.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the elements, the same on every rank."""
        return self.local.dtype

    @property
    def device(self) -> torch.device:
        """The device of this rank's part."""
        return self.local.device

    @property
    def requires_grad(self) -> bool:
        """Whether this rank's part, and so the tensor, needs a gradient."""
        return self.local.requires_grad

    @property
    def grad_fn(self) -> Any:
        """The node of the graph that made this rank's part."""
        return self.local.grad_fn

    @property
    def is_leaf(self) -> bool:
        """Whether this rank's part is a leaf of the graph."""
        return self.local.is_leaf

    @property
    def is_cuda(self) -> bool:
        """Whether this rank's part lies on a CUDA device."""
        return self.local.is_cuda

    @property
    def is_cpu(self) -> bool:
        """Whether this rank's part lies in host memory."""
        return self.local.is_cpu

    @property
    def is_nested(self) -> bool:
        """False: nested tensors have no sharded form."""
        return False

    @property
    def is_sparse(self) -> bool:
        """False: sparse tensors have no sharded form."""
        return False

    @property
    def is_quantized(self) -> bool:
        """False: quantized tensors have no sharded form."""
        return False

    @property
    def is_meta(self) -> bool:
        """Whether this rank's part has no data."""
        return self.local.is_meta

    @property
    def layout(self) -> torch.layout:
        """torch's memory layout of this rank's part; that of the shards is `spec`."""
        return self.local.layout

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.local.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the global tensor."""
        return self.numel() * self.itemsize

    @property
    def output_nr(self) -> int:
        """Which output of `grad_fn` this rank's part is."""
        return self.local.output_nr

    @property
    def names(self) -> tuple[None, ...]:
        """None for every dimension: named tensors have no sharded form."""
        return (None,) * self.ndim

    @property
    def grad(self) -> ShardTensor | None:
        """The gradient, in the layout of the tensor (replicated where the tensor is a partial sum)."""
        grad = self.local.grad
        return None if grad is None else like(grad, self.spec)

    def requires_grad_(self, requires_grad: bool = True) -> ShardTensor:
        """Marks this rank's part as a leaf that needs a gradient; returns the tensor."""
        self.local.requires_grad_(requires_grad)
        return self

    def retain_grad(self) -> None:
        """Keeps the gradient although this is no leaf."""
        self.local.retain_grad()

    def backward(
        self,
        gradient: ShardTensor | Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Runs the backward pass; every rank of the mesh must call it.

        Args:
            gradient: gradient of this tensor in its own layout; may be left out for a replicated scalar.
            retain_graph: as for torch.Tensor.backward.
            create_graph: as for torch.Tensor.backward.
        """
        if gradient is None and not self.spec.replicated:
            raise UnsupportedShardedOp(
                "backward", "the scalar is not replicated", "Reduce it first, for example sum()."
            )
        if isinstance(gradient, ShardTensor):
            gradient = gradient.redistribute(self.placements, sizes=present_sizes(self.spec)).local
        self.local.backward(gradient, retain_graph, create_graph)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Returns the global shape, or one of its extents."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Returns the number of dimensions of the global tensor."""
        return len(self.spec.shape)

    ndimension = dim

    def numel(self) -> int:
        """Returns the number of elements of the global tensor."""
        return self.spec.shape.numel()

    nelement = numel

    def item(self) -> Any:
        """Returns the number that a replicated tensor of one element holds; refuses a sharded one."""
        return self._value("item").item()

    def tolist(self) -> Any:
        """Returns a replicated tensor as nested lists; refuses a sharded one."""
        return self._value("tolist").tolist()

    def numpy(self) -> Any:
        """Returns a replicated tensor as an array; refuses a sharded one."""
        return self._value("numpy").numpy()

    def _value(self, op: str) -> Tensor:
        if not self.spec.replicated:
            raise UnsupportedShardedOp(
                op, f"the value is spread over ranks ({self.spec.describe()})", _GATHER
            )
        return self.local

    def __bool__(self) -> bool:
        return bool(self._value("bool").item())

    def __float__(self) -> float:
        return float(self._value("float").item())

    def __int__(self) -> int:
        return int(self._value("int").item())

    def __len__(self) -> int:
        return len(self.local) if not self.spec.shape else self.spec.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(dispatch(torch.Tensor.unbind, (ShardTensor,), (self, 0), {}))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise UnsupportedShardedOp("__array__", "numpy can not hold a sharded tensor", _GATHER)

    def __repr__(self) -> str:
        grad = f", grad_fn={type(self.grad_fn).__name__}" if self.grad_fn is not None else ""
        mine = ", ".join(f"{part.start}:{part.stop}" for part in self.local_slices())
        return f"ShardTensor({self.spec.describe()}, {self.dtype}, here [{mine}]{grad})"


_GATHER = "Call .full_tensor() to gather it, or work on .to_local()."


def is_sharded(x: object) -> TypeGuard[ShardTensor]:
    """Whether x is a ShardTensor; it is not an instance of torch.Tensor."""
    return isinstance(x, ShardTensor)


def register_function_handler(function: Callable[..., Any], handler: Handler) -> None:
    """Lets `handler(func, types, args, kwargs)` run `function` whenever an argument is a ShardTensor.

    `function` may be torch's or any function that announces itself by torch.overrides.handle_torch_function.
    A later registration replaces an earlier one.
    """
    ShardTensor.handlers[function] = handler


# Dynamo of earlier releases takes every compiled graph for an exported one, and mixes up operands.
_COMPILES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def register_named_function_handler(name: str, handler: Handler) -> None:
    """As `register_function_handler`, by the name `module.qualified_name` of a function not imported yet."""
    ShardTensor.named_handlers[name] = handler


def dispatch(
    func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Runs a torch function of which some argument is a ShardTensor."""
    handler = ShardTensor.handlers.get(_readable(func) if torch.compiler.is_compiling() else func)
    if torch.compiler.is_compiling():
        if not _COMPILES:
            raise RuntimeError(
                f"torch.compile with sharded tensors needs torch >= 2.13, this is {torch.__version__}"
            )
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "a program with sharded tensors belongs to its process groups and can not be exported: "
                "export the module on plain tensors"
            )
        args, kwargs = _constant(args), {name: _constant(value) for name, value in kwargs.items()}
    else:
        current.op = func
        current.count += 1
        if modes.promotion is not TensorPromotionMode.SILENT:
            _check_promotion(func, args, kwargs)
        if DTensor in map(type, args):
            args = _without_dtensors(args)
    try:
        if handler is not None:
            return handler(func, types, args, kwargs)
        named = ShardTensor.named_handlers.get(f"{func.__module__}.{func.__qualname__}")
        if named is not None:
            return named(func, types, args, kwargs)
        raise unsupported(getattr(func, "__name__", str(func)), args, kwargs)
    except UnsupportedShardedOp as error:
        if error.random:
            raise
        if all(x.spec.replicated for x in sharded_arguments(args, kwargs)):
            return _run_locally(func, args, kwargs)
        if modes.gather:
            return _run_gathered(func, args, kwargs)
        raise


def _readable(func: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a method of torch.Tensor as read from there: Dynamo finds no other function in a dictionary."""
    method: Any = getattr(func, "__module__", "") == "torch._tensor"
    return getattr(torch.Tensor, func.__name__) if method else func


def _check_promotion(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim:
            text = (
                f"{func.__name__}: a plain tensor of shape {tuple(value.shape)} meets a sharded one and is "
                "taken for a global value, the same on every rank"
            )
            if modes.promotion is TensorPromotionMode.DISABLED:
                raise TypeError(
                    f"{text}; promotion_mode refuses that: wrap it by ShardTensor.from_local(...)"
                )
            warnings.warn(text, stacklevel=4)


def _without_dtensors(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments with every DTensor (a weight of tensor parallelism) as a ShardTensor."""
    from shardtensor._interop import from_dtensor

    mesh = next(sharded_arguments(args, {})).spec.mesh
    return tuple(from_dtensor(x, mesh) if isinstance(x, DTensor) else x for x in args)


def _constant(value: Any) -> Any:
    """Returns arguments whose layouts and shapes are constants of the graph that torch.compile makes."""
    if isinstance(value, ShardTensor):
        spec = spec_named(value.spec.name)
        return ShardTensor(value.local.view(spec.local_shape), spec)
    if isinstance(value, list | tuple):
        return type(value)([_constant(each) for each in value])
    return value


def unsupported(
    op: str, args: Iterable[Any], kwargs: Mapping[str, Any], reason: str = "", remedy: str = ""
) -> UnsupportedShardedOp:
    """Returns the error for an operation without a sharded form; by default the remedy is to replicate."""
    specs = [x.spec for x in sharded_arguments(args, kwargs)]
    layouts = "; ".join(dict.fromkeys(spec.describe() for spec in specs))
    whole = ", ".join(["Replicate()"] * (specs[0].mesh.ndim if specs else 1))
    remedy = remedy or f"Call .redistribute([{whole}]) first to run it on every rank."
    return UnsupportedShardedOp(op, f"{reason or 'has no sharded form'} ({layouts})", remedy)


def elsewhere(x: ShardTensor, dims: Sequence[int]) -> str:
    """Returns the advice to shard a dimension that is not among `dims`, or none."""
    free = [d for d in range(x.ndim) if d not in dims and x.shape[d] >= x.spec.mesh.size(0)]
    if x.spec.mesh.ndim > 1 or not free:
        return ""
    longest = next(iter([d for d in free if x.shape[d] == max([x.shape[e] for e in free])]))
    return f"Call .redistribute([Shard({longest})]) first."


def sharded_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[ShardTensor]:
    """Yields the ShardTensors among the arguments, also those in lists."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, ShardTensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from sharded_arguments(value, {})


def _run_locally(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    spec = next(sharded_arguments(args, kwargs)).spec
    out = func(*local_parts(args), **local_parts(dict(kwargs)))
    nowhere = (None,) * spec.mesh.ndim
    return tree_map(lambda x: place(x, spec, nowhere, nowhere) if isinstance(x, Tensor) else x, out)


def _run_gathered(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a function on whole operands on every rank, and shards results that have the shape of one."""
    name = getattr(func, "__name__", str(func))
    warn_of_gather(f"{name} has no sharded form: every rank gathers its operands", 5)
    models = list(sharded_arguments(args, kwargs))

    def whole(x: Any) -> Any:
        return x.redistribute([Replicate()] * x.spec.mesh.ndim) if isinstance(x, ShardTensor) else x

    def back(x: Any) -> Any:
        model = next((m for m in models if isinstance(x, ShardTensor) and m.shape == x.shape), None)
        return x if model is None else x.redistribute(model.placements, sizes=present_sizes(model.spec))

    is_leaf = is_sharded
    wholes, options = tree_map(whole, (args, dict(kwargs)), is_leaf=is_leaf)
    return tree_map(back, _run_locally(func, wholes, options), is_leaf=is_leaf)


def local_part(x: Any) -> Any:
    """Returns the local part of a ShardTensor, and anything else as it is."""
    return x.local if isinstance(x, ShardTensor) else x


def local_parts(tree: Any) -> Any:
    """Returns nested arguments with every ShardTensor replaced by its local part."""
    return tree_map(local_part, tree, is_leaf=lambda x: isinstance(x, ShardTensor))


def _flatten(x: ShardTensor) -> tuple[list[Tensor], ShardSpec]:
    return [x.local], x.spec


def _flatten_with_keys(x: ShardTensor) -> tuple[list[tuple[Any, Any]], Any]:
    return [(GetAttrKey("local"), x.local)], x.spec


def _unflatten(parts: Iterable[Any], spec: ShardSpec) -> ShardTensor:
    (local,) = parts
    return ShardTensor(local, spec)


# Hooks that torch puts on the tensors inside an output (FSDP2's in torch 2.11) find the local part.
register_pytree_node(ShardTensor, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys)


def like(local: Tensor, spec: ShardSpec) -> ShardTensor:
    """Wraps a local part that lies as `spec` says."""
    return ShardTensor(local, derive(spec, spec.dims, spec.shape, spec.sizes) if spec.partial else spec)


def place(local: Tensor, spec: ShardSpec, dims: Dims, sizes: tuple[Sizes | None, ...]) -> ShardTensor:
    """Wraps a result on the mesh of `spec`, sharded over `dims` with `sizes`, whole in the others."""
    shape = list(local.shape)
    for dim, extents in zip(dims, sizes, strict=True):
        if dim is not None and extents is not None:
            shape[dim] = sum(extents)
    return ShardTensor(local, derive(spec, dims, shape, sizes))


def present_sizes(spec: ShardSpec) -> dict[int, Sizes]:
    """Returns the sizes of the sharded mesh dimensions."""
    return {m: extents for m, extents in enumerate(spec.sizes) if extents is not None}


def _pending(placements: Sequence[Placement], grad_placements: Sequence[Placement] | None) -> list[int]:
    """Returns the mesh dimensions over which the gradients of a replicated value must be added."""
    if grad_placements is None:
        return []
    pending = []
    for m, (here, grad) in enumerate(zip(placements, grad_placements, strict=True)):
        if isinstance(here, Replicate) and isinstance(grad, Partial):
            pending.append(m)
        elif grad != here:
            raise ValueError(
                f"grad_placements[{m}] must be {here} (or Partial() for a Replicate()), got {grad}"
            )
    return pending


T = TypeVar("T")


def replaced(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    """Returns the tuple with one entry replaced."""
    return (*values[:at], value, *values[at + 1 :])
