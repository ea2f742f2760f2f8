"""Training through several autoregressive steps of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._protocols import EnsembleScore, Estimator, Network
from ._rows import check_batch, cond_rows, to_rows
from ._scores import CRPS
from ._types import Cond, Key, LossOut
from ._weights import point_weights, reduce, space_sum


class Transition(Protocol):
    """How states become the input of an estimator, and its output the next state.

    It holds what an estimator does not know: normalisation, residuals, downsampling. Both methods must be
    differentiable and treat rows alone.
    """

    def inputs(self, previous: Tensor, current: Tensor, known: Cond, /) -> tuple[Tensor, Cond]:
        """Base (N, C', *S') and cond (N, ...) of a step, from states (N, C, *S) and known fields (N, ...)."""
        ...

    def advance(self, current: Tensor, output: Tensor, /) -> Tensor:
        """Next state (N, C, *S) from the current one and the estimator's output (N, C', *S')."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """Analyses to start from, and the L analyses that follow.

    Args:
        previous: state one step before the start (B, C, *S).
        current: state at the start (B, C, *S).
        targets: states at leads 1..L (B, L, C, *S); NaN marks a missing value.
        known: fields known in advance (B, L, ...), e.g. forcings, for the step that ends at lead 1..L.
        weight: broadcastable to (B, C, *S), for every lead.
    """

    previous: Tensor
    current: Tensor
    targets: Tensor
    known: Cond = field(default_factory=dict)
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = tuple(self.previous.shape), tuple(self.current.shape)
        batch, rest = self.targets.shape[:1], self.targets.shape[2:]
        if shapes[0] != shapes[1] or tuple(batch + rest) != shapes[1]:
            raise ValueError(
                "previous and current must be (B, C, *S) and targets (B, L, C, *S), "
                f"got {shapes[0]}, {shapes[1]} and {tuple(self.targets.shape)}"
            )
        for name, value in self.known.items():
            if value.shape[:2] != self.targets.shape[:2]:
                raise ValueError(
                    f"known[{name!r}] must be (B, L, ...) = {tuple(self.targets.shape[:2])} + ..., "
                    f"got {tuple(value.shape)}"
                )

    @property
    def steps(self) -> int:
        """Number of leads L."""
        return int(self.targets.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Fine-tunes an estimator on the score of its own ensemble over several steps.

    Each member goes its own way from lead 1 on; the score compares the ensemble of states at every lead with
    the analysis. The gradient runs through the estimator's sampler, so that few network calls per sample
    (CRPS, consistency) are a condition and not a taste.

    Args:
        estimator: whose sampler is trained.
        transition: between states and the estimator's inputs and outputs.
        members: ensemble size M, at least 2.
        score: of states, in the units that `transition` gives them.
        lead_weights: weight of each lead, equal by default.
        detach_every: cut the gradient between steps after this many; 0 never.
        checkpoint: keep only the states between steps and run each step again in the backward pass: memory is
            that of one step and B M C S numbers for each lead.
        most_calls: network calls per sample that are accepted.

    References: FGN (arXiv 2506.10772); AIFS-CRPS (arXiv 2412.15832), section on rollout training.
    """

    estimator: Estimator
    transition: Transition
    members: int = 2
    score: EnsembleScore = field(default_factory=CRPS)
    lead_weights: tuple[float, ...] | None = None
    detach_every: int = 0
    checkpoint: bool = True
    most_calls: int = 4

    def __post_init__(self) -> None:
        if self.members < 2 or self.detach_every < 0:
            raise ValueError(
                f"members must be at least 2 and detach_every 0 or more: {self.members}, {self.detach_every}"
            )
        calls = self.estimator.calls_per_sample
        if calls > self.most_calls:
            raise ValueError(
                f"{type(self.estimator).__name__} calls the network {calls} times for a sample; a gradient "
                f"through all of them is accepted up to most_calls={self.most_calls}"
            )

    def loss(self, net: Network, batch: RolloutBatch, key: Key) -> LossOut:
        """Score of the ensemble, averaged over leads by their weights.

        A key that names one member m stands for the members m M, ..., m M + M - 1.

        Raises:
            ValueError: another number of members or of lead weights.
        """
        weights = self.lead_weights or (1.0,) * batch.steps
        if len(weights) != batch.steps or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"lead_weights must be {batch.steps} numbers, 0 or more, got {weights}")
        numerator = count = torch.zeros((), device=batch.current.device)
        states = batch.current
        for lead, states in enumerate(self.forecast(net, batch, key)):
            target = batch.targets[:, lead]
            points = weights[lead] * space_sum(point_weights(target, batch.weight))
            if weights[lead] > 0:
                numerator = numerator + self.score.score(states, target, batch.weight) * points
                count = count + points
        return reduce(numerator, count, states)

    def forecast(self, net: Network, batch: RolloutBatch, key: Key) -> Iterator[Tensor]:
        """Yields the ensemble of states (B, M, C, *S) at leads 1..L, with gradients if they are enabled."""
        check_batch(key, batch.current.shape[0], "batch.current")
        key = self._expand(key)
        rows = key.rows()
        previous, current = (to_rows(state, self.members) for state in (batch.previous, batch.current))
        for lead in range(1, batch.steps + 1):
            known = cond_rows({n: value[:, lead - 1] for n, value in batch.known.items()}, self.members)
            if self.detach_every and lead > 1 and (lead - 1) % self.detach_every == 0:
                previous, current = previous.detach(), current.detach()
            following = self._step(net, previous, current, known, rows.at_lead(key.lead + lead))
            previous, current = current, following
            yield current.reshape(key.batch, self.members, *current.shape[1:])

    def _step(self, net: Network, previous: Tensor, current: Tensor, known: Cond, key: Key) -> Tensor:
        def run(previous: Tensor, current: Tensor) -> Tensor:
            base, cond = self.transition.inputs(previous, current, known)
            output = self.estimator.sample(net, base, cond, key).squeeze(1)
            return self.transition.advance(current, output)

        if not (self.checkpoint and torch.is_grad_enabled()):
            return run(previous, current)
        # Noise is a function of the key, so that no state of a generator has to be kept.
        following: Tensor = checkpoint(run, previous, current, use_reentrant=False, preserve_rng_state=False)
        return following

    def _expand(self, key: Key) -> Key:
        if key.members == 1:
            ids = key.member * self.members + torch.arange(self.members, device=key.member.device)
            key = replace(key, member=ids)
        if key.members != self.members:
            raise ValueError(f"the key must name one member, or {self.members}; it names {key.members}")
        return key
