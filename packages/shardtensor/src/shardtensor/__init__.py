"""Domain parallelism for PyTorch: a tensor sharded over space, evenly or not; unchanged modules run on it."""

from importlib.metadata import version as _version

from shardtensor._attention import neighborhood_handler
from shardtensor._errors import UnsupportedShardedOp
from shardtensor._halo import fetch, halo_exchange
from shardtensor._scatter import scatter_tensor
from shardtensor._spec import ShardSpec, chunk_sizes
from shardtensor._table import install as _install
from shardtensor._tensor import ShardTensor, is_sharded, register_function_handler
from shardtensor._wire import CommunicationError, Traffic, Transfer, traffic

_install()

__version__ = _version("shardtensor")
__all__ = [
    "CommunicationError",
    "ShardSpec",
    "ShardTensor",
    "Traffic",
    "Transfer",
    "UnsupportedShardedOp",
    "chunk_sizes",
    "fetch",
    "halo_exchange",
    "is_sharded",
    "neighborhood_handler",
    "register_function_handler",
    "scatter_tensor",
    "traffic",
]
