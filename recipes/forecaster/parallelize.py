"""Domain parallelism: the grid in bands of latitude, applied to a model from outside.

The full-resolution state lives in row shards; the projector, where the memory is, runs on them with one halo
exchange per block. The latent is small: it is replicated, and every rank draws the same residual from the same
key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import shardtensor as st
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from wx_estimators import BoundSampler, Estimator, Key, bind
from wx_models import LatentForecaster, neighborhood_attention

from recipes.forecaster.assemble import Parts, forecaster

_ROWS = 2


def row_sizes(rows: int, patch: int, ranks: int) -> list[int]:
    """Rows of each rank, in whole patches as far as possible: no patch is computed twice."""
    patches = -(-rows // patch)
    bounds = [min(rows, patch * (patches * rank // ranks)) for rank in range(ranks + 1)]
    return [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]


def shard_rows(fields: Tensor, mesh: DeviceMesh, patch: int) -> st.ShardTensor:
    """Keep this rank's rows of fields (N, C, H, W) that every rank holds."""
    sizes = row_sizes(fields.shape[_ROWS], patch, mesh.size())
    start = sum(sizes[: mesh.get_local_rank()])
    local = fields.narrow(_ROWS, start, sizes[mesh.get_local_rank()])
    return st.ShardTensor.from_local(local, mesh, [Shard(_ROWS)], sharding_shapes={0: sizes})


def sharded_forecaster(parts: Parts, trained: Estimator, mesh: DeviceMesh) -> LatentForecaster[Key]:
    """The forecaster of `assemble`, for states made by `shard_rows`."""
    st.ShardTensor.register_function_handler(neighborhood_attention, st.neighborhood_handler)
    latent_rows = row_sizes(parts.grid.shape[0], parts.settings.downsampling[0], mesh.size())
    sizes = [-(-rows // parts.settings.downsampling[0]) for rows in latent_rows]
    return forecaster(
        parts,
        trained,
        sampler=_ReplicatedSampler(bind(trained, parts.network), mesh),
        projector=_BandProjector(parts, mesh, sizes),
    )


@dataclass(frozen=True, eq=False)
class _ReplicatedSampler:
    sampler: BoundSampler
    mesh: DeviceMesh

    def sample(self, base: st.ShardTensor, cond: Mapping[str, st.ShardTensor], key: Key, /) -> st.ShardTensor:
        plain = {name: _whole(value) for name, value in cond.items()}
        residual = self.sampler.sample(_whole(base), plain, key)
        return st.ShardTensor.from_local(residual, self.mesh, [Replicate()])


@dataclass(frozen=True, eq=False)
class _BandProjector:
    parts: Parts
    mesh: DeviceMesh
    latent_sizes: list[int]

    def project(self, residual: st.ShardTensor, state: st.ShardTensor, forcing: Tensor, /) -> st.ShardTensor:
        bands = shard_rows(forcing, self.mesh, self.parts.settings.downsampling[0])
        return self.parts.projector.project(residual, state, bands)


def _whole(value: Tensor | st.ShardTensor) -> Tensor:
    return value.full_tensor() if isinstance(value, st.ShardTensor) else value
