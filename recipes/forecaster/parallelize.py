"""Domain parallelism: the grid in bands of latitude, applied to a model from outside.

The full-resolution state lives in row shards; the projector, where the memory is, runs on them with one halo
exchange per block. The latent is small: it is replicated, and every rank draws the same residual from the
same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard

import shardtensor as st
from recipes.forecaster.assemble import Parts, forecaster
from wx_data import RowRange, Store
from wx_estimators import BoundSampler, Estimator, Key, bind
from wx_models import LatentForecaster, neighborhood_attention

_ROWS = 2


def row_sizes(rows: int, patch: int, ranks: int) -> list[int]:
    """Rows of each rank, in whole patches as far as possible: no patch is computed twice."""
    patches = -(-rows // patch)
    bounds = [min(rows, patch * (patches * rank // ranks)) for rank in range(ranks + 1)]
    return [stop - start for start, stop in pairwise(bounds)]


def shard_rows(fields: Tensor, mesh: DeviceMesh, patch: int) -> st.ShardTensor:
    """Keep this rank's rows of fields (N, C, H, W) that every rank holds."""
    sizes = row_sizes(fields.shape[_ROWS], patch, mesh.size())
    start = sum(sizes[: mesh.get_local_rank()])
    local = fields.narrow(_ROWS, start, sizes[mesh.get_local_rank()])
    return st.ShardTensor.from_local(local, mesh, [Shard(_ROWS)], sizes=sizes)


def read_rows(
    analyses: Store, times: np.ndarray, parts: Parts, mesh: DeviceMesh, *, members: int = 1
) -> st.ShardTensor:
    """Normalised states (N, C, H, W) of a store, of which every rank reads its own rows only.

    Args:
        analyses: with the forecaster's channels, on its grid.
        times: (T,) datetime64.
        parts: give normalisation and patches.
        mesh: one dimension, which divides the rows.
        members: copies of each time, member fastest: N = T members.
    """
    patch, place = parts.settings.downsampling[0], mesh.get_local_rank()
    sizes = row_sizes(parts.grid.shape[0], patch, mesh.size())
    start = sum(sizes[:place])
    fields = analyses.read(times, parts.channels, rows=RowRange(start, start + sizes[place])).values
    local = parts.space.encode(torch.from_numpy(fields)).repeat_interleave(members, 0)
    return st.ShardTensor.from_local(local, mesh, [Shard(_ROWS)], sizes=sizes)


def sharded_forecaster(parts: Parts, trained: Estimator, mesh: DeviceMesh) -> LatentForecaster[Key]:
    """The forecaster of `assemble`, for states made by `read_rows`."""
    st.register_function_handler(neighborhood_attention, st.neighborhood_handler)
    return forecaster(
        parts,
        trained,
        sampler=_ReplicatedSampler(bind(trained, parts.network), mesh),
        projector=_BandProjector(parts, mesh),
    )


@dataclass(frozen=True, eq=False)
class _ReplicatedSampler:
    sampler: BoundSampler
    mesh: DeviceMesh

    def sample(self, base: Any, cond: Mapping[str, Any], key: Key, /) -> Any:
        plain = {name: _whole(value) for name, value in cond.items()}
        residual = self.sampler.sample(_whole(base), plain, key)
        return st.ShardTensor.from_local(residual, self.mesh, [Replicate()])


@dataclass(frozen=True, eq=False)
class _BandProjector:
    """The unchanged projector, called with fields in bands."""

    parts: Parts
    mesh: DeviceMesh

    def project(self, residual: Any, state: Any, forcing: Any, /) -> Any:
        bands: Any = shard_rows(forcing, self.mesh, self.parts.settings.downsampling[0])
        return self.parts.projector.project(residual, state, bands)


def _whole(value: Tensor | st.ShardTensor) -> Tensor:
    return value.full_tensor() if isinstance(value, st.ShardTensor) else value
