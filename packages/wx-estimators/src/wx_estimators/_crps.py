"""Ensemble training with a proper score: one network call per member."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._noise import NOISES, AntitheticNoise, WhiteNoise
from ._protocols import Comm, EnsembleScore, Network, NoiseSource, alone
from ._rows import call, check_batch, check_network, chunks, sample_rows
from ._scores import CRPS
from ._scores_sum import SCORES
from ._settings import Settings
from ._types import Batch, Cond, Key, LossOut, NetSpec
from ._weights import point_weights, reduce, space_sum


@dataclass(frozen=True, kw_only=True)
class EnsembleCRPS(Settings):
    """A generator x = G(cond, xi), xi ~ N(0, I), trained by a proper score of small ensembles.

    Args:
        members: ensemble size M of the loss, at least 2.
        noise_shape: shape of xi for one row: (Z,) for a vector, (Z, *S) for fields.
        score: of the ensemble, e.g. a `SumScore` that constrains the joint law too.
        noise: source of xi.
        chunk: rows (a member of a forecast each) per network call of the loss; None for all.
        recompute: activation checkpointing of every chunk. Activations are then those of one chunk, however
            many members there are, for one more forward pass; the members themselves are kept.
        antithetic: in the loss, members 2k and 2k + 1 get xi and -xi (`AntitheticNoise`). Means over a pair
            are less noisy, but members are no longer independent: the fair score is biased, and so is the
            spread learnt from it. `sample` and hence any validation never use it.
        comm: for an ensemble or a grid that is spread over ranks, e.g. `ProcessGroupComm`; not part of
            `to_dict`.

    References: AIFS-CRPS (arXiv 2412.15832), FGN (arXiv 2506.10772), the CRPS estimator of ATLAS.
    """

    members: int = 2
    noise_shape: tuple[int, ...] = (32,)
    score: EnsembleScore = field(default_factory=CRPS)
    noise: NoiseSource = field(default_factory=WhiteNoise)
    chunk: int | None = None
    recompute: bool = False
    antithetic: bool = False
    comm: Comm | None = None
    _runtime: ClassVar[tuple[str, ...]] = ("comm",)

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"members must be at least 2, got {self.members}")
        if not self.noise_shape or min(self.noise_shape) < 1:
            raise ValueError(f"noise_shape must hold positive sizes, got {self.noise_shape}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be a positive number of rows, got {self.chunk}")
        if self.antithetic and self.members % 2:
            raise ValueError(f"antithetic members come in pairs, got members = {self.members}")

    @property
    def calls_per_sample(self) -> int:
        """Network evaluations per member."""
        return 1

    def required(self, out_channels: int) -> NetSpec:
        """The network this estimator needs."""
        return NetSpec(out_channels=out_channels, takes_x=False, takes_t=False, noise=self.noise_shape)

    def loss(self, net: Network, batch: Batch, key: Key) -> LossOut:
        """Score of an ensemble of `members`.

        A key that names one member m is expanded to the members m M, ..., m M + M - 1. A key that names more,
        or any key with `comm`, is taken as it is: this rank's share of the ensemble.

        Raises:
            ValueError: the (gathered) ensemble does not have `members` members.
        """
        check_network(self.required(batch.target.shape[1]), net.spec, "EnsembleCRPS")
        check_batch(key, batch.target.shape[0], "batch.target")
        key = self._expand(key)
        local = self._ensemble(net, batch, key.sub("loss"))
        ensemble = local if self.comm is None else self.comm.gather_members(local)
        if ensemble.shape[1] != self.members:
            raise ValueError(
                f"the score needs {self.members} members but the key gave {ensemble.shape[1]}; "
                f"name one member, or {self.members} over all ranks"
            )
        total = alone if self.comm is None else self.comm.sum_space
        score = self.score.score(ensemble, batch.target, batch.weight, total=total)
        count = total(space_sum(point_weights(batch.target, batch.weight)))
        return reduce(score * count, count, local)

    def sample(
        self, net: Network, base: Tensor, cond: Cond, key: Key, /, *, chunk: int | None = None
    ) -> Tensor:
        """One network call per member: (B, M, C, *S), at most `chunk` rows at a time."""
        check_network(self.required(net.spec.out_channels), net.spec, "EnsembleCRPS")

        def run(like: Tensor, picked: Cond, rows: Key) -> Tensor:
            return self._run(net, self.noise, like, picked, rows)

        return sample_rows(run, base, cond, key.sub("sample"), chunk)

    @classmethod
    def _parts(cls) -> tuple[type[Any], ...]:
        return (*NOISES, *SCORES)

    def _expand(self, key: Key) -> Key:
        if self.comm is not None or key.members > 1:
            return key
        ids = key.member * self.members + torch.arange(self.members, device=key.member.device)
        return replace(key, member=ids)

    def _ensemble(self, net: Network, batch: Batch, key: Key) -> Tensor:
        """(B, M, C, *S), conditions and noise made chunk by chunk, and made again where it recomputes."""
        like, noise = batch.target, AntitheticNoise(self.noise) if self.antithetic else self.noise

        def run(index: Tensor, rows: Key) -> Tensor:
            picked = {name: value.index_select(0, index) for name, value in batch.cond.items()}
            return self._run(net, noise, like, picked, rows)

        parts = []
        for part in chunks(key.batch * key.members, self.chunk):
            index = torch.arange(part.start, part.stop, device=like.device) // key.members
            rows = key.rows(part)
            parts.append(
                checkpoint(run, index, rows, use_reentrant=False) if self.recompute else run(index, rows)
            )
        out = torch.cat(parts)
        return out.reshape(key.batch, key.members, *out.shape[1:])

    def _run(self, net: Network, noise: NoiseSource, like: Tensor, cond: Cond, key: Key) -> Tensor:
        """One member per row."""
        xi = noise.draw(key.sub("network"), self.noise_shape, device=like.device, dtype=like.dtype)
        return call(net, None, cond, None, xi.squeeze(1), like)
