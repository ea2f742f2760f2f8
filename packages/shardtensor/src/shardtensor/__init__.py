"""Domain parallelism for PyTorch: a tensor sharded over space, evenly or not; unchanged modules run on it."""

from importlib.metadata import version as _version

from shardtensor._errors import GatherWarning, UnsupportedShardedOp
from shardtensor._halo import fetch, halo_exchange, pole_pad
from shardtensor._interop import checkpointable, from_dtensor
from shardtensor._interop import einops_backend as _einops_backend
from shardtensor._local import local_map
from shardtensor._method import attention
from shardtensor._modes import TensorPromotionMode, fallback, promotion_mode, set_promotion_mode
from shardtensor._modules import bucketed_gradients, sync_module
from shardtensor._neighborhood import neighborhood_handler
from shardtensor._operations import Operation, operations
from shardtensor._overlap import overlap
from shardtensor._random import checkpoint_contexts, get_rng_state, manual_seed, set_rng_state
from shardtensor._ring import ring_shift
from shardtensor._scatter import scatter_tensor
from shardtensor._spec import ShardSpec, chunk_sizes
from shardtensor._table import install as _install
from shardtensor._tensor import (
    ShardTensor,
    is_sharded,
    register_function_handler,
    register_named_function_handler,
)
from shardtensor._wire import CommunicationError, Traffic, Transfer, traffic

_install()
_einops = _einops_backend()
sync_module_over_mesh = sync_module  # PhysicsNeMo's name

__version__ = _version("shardtensor")
__all__ = [
    "CommunicationError",
    "GatherWarning",
    "Operation",
    "ShardSpec",
    "ShardTensor",
    "TensorPromotionMode",
    "Traffic",
    "Transfer",
    "UnsupportedShardedOp",
    "attention",
    "bucketed_gradients",
    "checkpoint_contexts",
    "checkpointable",
    "chunk_sizes",
    "fallback",
    "fetch",
    "from_dtensor",
    "get_rng_state",
    "halo_exchange",
    "is_sharded",
    "local_map",
    "manual_seed",
    "neighborhood_handler",
    "operations",
    "overlap",
    "pole_pad",
    "promotion_mode",
    "register_function_handler",
    "register_named_function_handler",
    "ring_shift",
    "scatter_tensor",
    "set_promotion_mode",
    "set_rng_state",
    "sync_module",
    "sync_module_over_mesh",
    "traffic",
]
