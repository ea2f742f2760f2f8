"""Training: first the projector, then the latent network; resumes anywhere with identical results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from tqdm.auto import tqdm

from recipes.forecaster import checkpoint
from recipes.forecaster.assemble import Parts, build, estimator
from recipes.forecaster.settings import Settings
from wx_data import Loader, Statistics, Store, TimeWindow
from wx_estimators import EDM, EMA, Batch, Estimator, Key, StochasticInterpolant, estimator_from_dict

_CACHE_BYTES = 4 << 30
_MOMENT_BATCHES = 8


@dataclass(frozen=True, eq=False)
class Sample:
    """Normalised fields of one batch on the full grid, and the time of `current` in hours since 1970."""

    previous: Tensor
    current: Tensor
    target: Tensor
    forcing: Tensor
    hours: Tensor


LossFunction = Callable[[Sample, int], Tensor]


def train(settings: Settings, run: Path, *, progress: bool = True) -> None:
    """Fit both networks on `run/train`; finished ones are kept."""
    store = Store(run / "train.store")
    statistics = Statistics.load(store.path)
    parts = build(settings, store, statistics).to(settings.device)
    small = _loader(settings, store, statistics, settings.projector_batch_size)
    loss = _projector_loss(parts)
    fit("projector", parts.projector, settings.projector_steps, loss, parts, small, run, progress)
    loader = _loader(settings, store, statistics, settings.batch_size)
    loss = _estimator_loss(parts, _estimator(parts, loader, run))
    fit("network", parts.network, settings.steps, loss, parts, loader, run, progress)


def load(settings: Settings, run: Path) -> tuple[Parts, Estimator]:
    """The trained parts of a run.

    Raises:
        FileNotFoundError: training has not finished.
        ValueError: the checkpoints are of another configuration.
    """
    store = Store(run / "train.store")
    parts = build(settings, store, Statistics.load(store.path))
    for name, network in (("projector", parts.projector), ("network", parts.network)):
        path = _final(run, name)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: run the `train` step first")
        tensors, _ = checkpoint.load(path, _identity(parts, network))
        network.load_state_dict(tensors)
        network.eval().requires_grad_(False)
    trained = estimator_from_dict(json.loads((run / "model" / "estimator.json").read_text()))
    if isinstance(trained, StochasticInterpolant | EDM):  # how finely to sample is chosen at the forecast
        trained = replace(trained, steps=settings.sampler_steps)
    return parts.to(settings.device), trained


def fit(
    name: str,
    network: nn.Module,
    steps: int,
    loss: LossFunction,
    parts: Parts,
    loader: Loader,
    run: Path,
    progress: bool,
) -> None:
    """Minimise `loss(sample, step)`; the result is `run/model/<name>.safetensors`."""
    settings, final = parts.settings, _final(run, name)
    identity, partial = _identity(parts, network), final.with_suffix(".checkpoint")
    if final.exists():
        checkpoint.load(final, identity)  # refuses another configuration's
        return
    state = _Training(network, settings)
    loader.load_state_dict(loader.state_dict() | {"epoch": 0, "samples": 0})
    if partial.exists():
        state.restore(*checkpoint.load(partial, identity), loader)
    saved = time.monotonic()
    samples = _samples(parts, loader)
    with tqdm(total=steps, initial=state.step, desc=f"train {name}", disable=not progress) as bar:
        while state.step < steps:
            value = state.advance(lambda sample: loss(sample, state.step), next(samples), steps)
            bar.update()
            bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
            if time.monotonic() - saved > settings.checkpoint_seconds:
                checkpoint.save(partial, *state.snapshot(identity, loader))
                saved = time.monotonic()
    if state.ema is not None:
        state.ema.copy_to(network)
    checkpoint.save(final, network.state_dict(), {"config": identity})
    partial.unlink(missing_ok=True)


class _Training:
    """Weights, optimisers, average and step of one training."""

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self.network, self.settings, self.step = network, settings, 0
        self.optimizers = optimizers(network, settings)
        self.peaks = [group["lr"] for group in self.groups]
        self.ema = EMA(network, sigma_rel=settings.ema) if settings.ema else None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Looked up every time: restoring an optimiser replaces its groups."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def advance(self, loss: Callable[[Sample], Tensor], sample: Sample, steps: int) -> float:
        rate = schedule(self.step, steps, self.settings)
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        value = loss(sample)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)
        self.step += 1
        return float(value.detach())

    def snapshot(self, identity: dict[str, Any], loader: Loader) -> tuple[checkpoint.Tensors, dict[str, Any]]:
        tensors = checkpoint.with_prefix("weights", self.network.state_dict())
        tensors |= checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.optimizers))
        if self.ema is not None:
            tensors |= checkpoint.with_prefix("average", self.ema.average)
        return tensors, {"config": identity, "step": self.step, "loader": loader.state_dict()}

    def restore(self, tensors: checkpoint.Tensors, meta: dict[str, Any], loader: Loader) -> None:
        self.step = meta["step"]
        loader.load_state_dict(meta["loader"])
        self.network.load_state_dict(checkpoint.without_prefix("weights", tensors))
        checkpoint.restore_optimizers(self.optimizers, checkpoint.without_prefix("optimizer", tensors))
        if self.ema is not None:
            average = checkpoint.without_prefix("average", tensors)
            self.ema.load_state_dict(self.ema.state_dict() | {"step": self.step, "average": average})


def optimizers(network: nn.Module, settings: Settings) -> list[Optimizer]:
    """Muon for the matrices inside the blocks (Jordan et al. 2024), AdamW for everything else.

    Whatever makes and applies the modulation moves ten times slower: it acts on all tokens of a row at once.
    """
    matrices: list[nn.Parameter] = []
    conditions: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in network.named_parameters():
        if any(part in name for part in ("modulation", "time.", "noise.")):
            conditions.append(weight)
        elif name.startswith("blocks.") and weight.ndim == 2:
            matrices.append(weight)
        else:
            others.append(weight)
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [{"params": others, "lr": rate}, {"params": conditions, "lr": rate / 10}]
    return [
        Muon(matrices, lr=settings.muon_rate, weight_decay=decay, momentum=0.95),
        AdamW(groups, lr=rate, weight_decay=decay, betas=(0.9, 0.98)),
    ]


def schedule(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero."""
    return min(1.0, (step + 1) / settings.warmup, (steps - step) / (settings.cooldown * steps))


def _loader(settings: Settings, store: Store, statistics: Statistics, batch_size: int) -> Loader:
    return Loader(
        store,
        TimeWindow((-settings.step_hours, 0), (settings.step_hours,)),
        batch_size=batch_size,
        seed=settings.seed,
        times=(settings.periods[0][0], settings.periods[-2][1]),
        normalise=statistics,
        missing="drop-window",
        cache_bytes=_CACHE_BYTES,
    )


def _samples(parts: Parts, loader: Loader) -> Iterator[Sample]:
    device = parts.settings.device
    for batch in loader.forever():
        now = batch.valid_time[:, 1]
        yield Sample(
            previous=batch.x[:, 0].to(device),
            current=batch.x[:, 1].to(device),
            target=batch.y[:, 0].to(device),
            forcing=parts.forcings.at(now).to(device),
            hours=torch.from_numpy(now.astype("datetime64[h]").astype(np.int64)),
        )


def _projector_loss(parts: Parts) -> LossFunction:
    """Area-weighted L1 of the full-resolution residual, given the true latent residual."""
    area = _row_weights(parts.grid.area_weights(), parts.settings.device)
    space = _on(parts)

    def loss(sample: Sample, step: int) -> Tensor:
        del step
        truth = space.residual(sample.current, sample.target)
        out = parts.projector.project(parts.downsample(truth), sample.current, sample.forcing)
        error: Tensor = ((out - truth).abs() * area).mean()
        return error

    return loss


def _estimator_loss(parts: Parts, trained: Estimator) -> LossFunction:
    weight = _row_weights(parts.downsample.area, parts.settings.device)

    def loss(sample: Sample, step: int) -> Tensor:
        base, target, cond = _latents(parts, sample)
        key = Key(parts.settings.seed, sample.hours, torch.zeros(1, dtype=torch.int64)).sub("train", step)
        batch = Batch(base=base, target=target, cond=cond, weight=weight)
        return trained.loss(parts.network, batch, key).loss

    return loss


def _latents(parts: Parts, sample: Sample) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Base, target and condition of the latent network."""
    base = parts.downsample(sample.current)
    target = _on(parts).residual(base, parts.downsample(sample.target))
    previous, forcing = parts.downsample(sample.previous), parts.downsample(sample.forcing)
    return base, target, {"state": base, "previous": previous, "forcing": forcing}


def _estimator(parts: Parts, loader: Loader, run: Path) -> Estimator:
    """The estimator, preconditioned with the second moments of the first batches; kept for the forecasts."""
    path = run / "model" / "estimator.json"
    if not path.exists():
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "samples": 0})
        samples = zip(_samples(parts, loader), range(_MOMENT_BATCHES), strict=False)
        pairs = [_latents(parts, sample)[:2] for sample, _ in samples]
        made = estimator(parts.settings, (torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])))
        checkpoint.save_json(path, made.to_dict())
    return estimator_from_dict(json.loads(path.read_text()))


def _on(parts: Parts) -> Any:
    return parts.space.to(parts.settings.device)


def _row_weights(values: np.ndarray, device: str) -> Tensor:
    weights = torch.as_tensor(values / values.mean(), dtype=torch.float32, device=device)
    return weights[None, None, :, None]


def _final(run: Path, name: str) -> Path:
    return run / "model" / f"{name}.safetensors"


def _identity(parts: Parts, network: Any) -> dict[str, Any]:
    """What a checkpoint belongs to: the network, the training settings, and the data's normalisation."""
    settings = parts.settings.to_dict()
    for name in (
        "members",
        "climate_members",
        "starts",
        "forecast_days",
        "scorecard_days",
        "sampler_steps",
        "checkpoint_seconds",
        "threads",
    ):
        settings.pop(name)
    return {
        "network": network.config.to_dict(),
        "channels": list(parts.channels),
        "space": parts.space.to_dict(),
    } | settings
