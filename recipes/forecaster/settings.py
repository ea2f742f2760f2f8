"""Every choice of the forecaster in one dataclass."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipes.forecaster.checkpoint import check_same, save_json
from wx_data.nature import NatureConfig, operational

Estimator = Literal["interpolant", "edm", "crps"]
ESTIMATORS: tuple[Estimator, ...] = ("interpolant", "edm", "crps")
FORCINGS = ("cos_zenith", "year_progress", "latlon", "orography", "land_sea_mask")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A complete experiment: planet, data, networks, training, forecasts, verification.

    Attributes:
        estimator: "interpolant", "edm", or "crps", which calls its network once per forecast step (the others
            many times) and twice per training sample (the others once).
        seed: of everything that is random.
        nature: the planet.
        first_year: calendar year of the first training year; the test year follows the last one.
        train_years: years of training data; each is an independent run.
        days: length of a year's run in days.
        step_hours: forecast step.
        forecast_days: length of a forecast.
        starts: forecasts, spread evenly over the test year.
        members: ensemble size.
        climate_members: size of the climatological ensemble, drawn from the training years.
        perturbation: initial error of the perfect-model ensemble, in climatological standard deviations.
        analysis_error: the same for the operational ensemble, with its imperfect analysis.
        downsampling: full-grid points per latent point (rows, columns).
        latent_patch: latent points per token of the latent network.
        latent_width, latent_depth, latent_heads: size of the latent network.
        history_width: part of the latent width that holds the previous state.
        latent_mixing: kernel of the depthwise convolutions in the latent network, 0 for none.
        noise_dim: length of the noise vector (CRPS only).
        projector_width, projector_depth, projector_heads: size of the projector.
        batch_size, steps: samples per training step of the latent network, and number of steps.
        projector_batch_size, projector_steps: the same of the projector. It sees every point of the grid as a
            sample, so that small batches and many steps are best.
        learning_rate: peak, of Adam.
        muon_rate: peak, of Muon, which trains the matrices of the blocks.
        weight_decay: of both.
        warmup: steps of linear warm-up.
        cooldown: last part of the training over which the rate falls to zero.
        ema: relative width of the average of the weights; 0 for none.
        difference_weight: weight of the CRPS of neighbour differences in the CRPS loss.
        sampler_steps: solver steps of interpolant and EDM, two network calls each (EDM: one in the last).
        device: "cpu" or "cuda".
        precision: "bf16" or "float32" arithmetic inside the networks.
        threads: CPU threads.
        checkpoint_seconds: time between training checkpoints.
        scorecard_days: lead times of the scorecard.
    """

    estimator: Estimator = "interpolant"
    seed: int = 0
    nature: NatureConfig = field(default_factory=NatureConfig)
    first_year: int = 2001
    train_years: int = 6
    days: int = 364
    step_hours: int = 24
    forecast_days: int = 10
    starts: int = 16
    members: int = 10
    climate_members: int = 50
    perturbation: float = 0.1
    analysis_error: float = 0.15
    downsampling: tuple[int, int] = (1, 2)
    latent_patch: tuple[int, int] = (4, 2)
    latent_width: int = 192
    latent_depth: int = 4
    latent_heads: int = 4
    history_width: int = 80
    latent_mixing: int = 3
    noise_dim: int = 32
    projector_width: int = 48
    projector_depth: int = 2
    projector_heads: int = 4
    batch_size: int = 8
    steps: int = 3000
    projector_batch_size: int = 4
    projector_steps: int = 900
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    weight_decay: float = 0.01
    warmup: int = 40
    cooldown: float = 0.6
    ema: float = 0.0
    difference_weight: float = 0.0
    sampler_steps: int = 5
    device: str = "cpu"
    precision: Literal["bf16", "float32"] = "bf16"
    threads: int = 2
    checkpoint_seconds: float = 15.0
    scorecard_days: tuple[int, ...] = (1, 2, 3, 5, 7, 10)

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")
        if self.precision not in ("bf16", "float32"):
            raise ValueError(f'precision must be "bf16" or "float32", got {self.precision!r}')
        if self.step_hours % 6 or 24 % self.step_hours:
            raise ValueError(f"step_hours must be 6, 12 or 24, got {self.step_hours}")
        if not 2 * self.starts + self.forecast_days + 3 <= self.days <= 364:
            raise ValueError(
                f"days must be 364 at most, and hold {self.starts} starts two days apart and a forecast of "
                f"{self.forecast_days} days: got {self.days}"
            )
        late = [day for day in self.scorecard_days if day > self.forecast_days]
        if late:
            raise ValueError(f"scorecard_days {late} lie beyond the {self.forecast_days} forecast days")

    @property
    def operational(self) -> NatureConfig:
        """The physical forecasting centre: the same planet, coarser and with other parameters."""
        return operational(self.nature)

    @property
    def leads(self) -> list[int]:
        """Lead times in hours."""
        return list(range(self.step_hours, 24 * self.forecast_days + 1, self.step_hours))

    @property
    def periods(self) -> list[tuple[np.datetime64, np.datetime64]]:
        """Start and stop (exclusive) of every run: the training years, then the test year.

        At least one day is left between two years, since they are independent runs of the planet: no training
        sample may reach from one into the next.
        """
        years = range(self.first_year, self.first_year + self.train_years + 1)
        starts = [np.datetime64(f"{year}-01-01T00", "h") for year in years]
        return [(start, start + np.timedelta64(24 * self.days, "h")) for start in starts]

    @property
    def init_times(self) -> np.ndarray:
        """Initial times of the forecasts: 00 UTC, evenly spread over the test year."""
        start, stop = self.periods[-1]
        day = np.timedelta64(24, "h")
        first, last = start + 2 * day, stop - (self.forecast_days + 1) * day
        room = int((last - first) / day)
        offsets = np.arange(self.starts) * (room / max(self.starts - 1, 1))
        return first + offsets.astype(int) * day

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """Inverse of `to_dict`."""
        values: dict[str, Any] = {name: _plain(value) for name, value in data.items()}
        nature: dict[str, Any] = {name: _plain(value) for name, value in data["nature"].items()}
        return cls(**{**values, "nature": NatureConfig(**nature)})

    def changed(self, assignments: list[str]) -> Settings:
        """The settings after `name=value` assignments; `nature.name=value` reaches the planet.

        Raises:
            ValueError: an unknown name, or a value that is not JSON or of another type.
        """
        own: dict[str, Any] = {}
        planet: dict[str, Any] = {}
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            inner = name.startswith("nature.")
            owner: Any = self.nature if inner else self
            leaf = name.removeprefix("nature.")
            known = {f.name for f in fields(owner)}
            if leaf not in known or leaf == "nature":
                raise ValueError(f"unknown setting {name!r}; there are {', '.join(sorted(known))}")
            (planet if inner else own)[leaf] = _parse(name, text, getattr(owner, leaf))
        # All at once: one change alone may not be valid without another.
        return replace(self, **own, nature=replace(self.nature, **planet))

    def assignments(self) -> list[str]:
        """What `changed` makes these settings of, from the default ones."""
        default = Settings()
        pairs: list[tuple[str, Any, Any]] = [
            ("", self, default),
            ("nature.", self.nature, default.nature),
        ]
        return [
            f"{prefix}{f.name}={_show(getattr(mine, f.name))}"
            for prefix, mine, theirs in pairs
            for f in fields(mine)
            if f.name != "nature" and getattr(mine, f.name) != getattr(theirs, f.name)
        ]

    def keep(self, run: Path) -> None:
        """Write the settings into a new run folder, or check that the folder belongs to them."""
        path = run / "settings.json"
        if path.exists():
            check_same(run, self.to_dict(), json.loads(path.read_text()))
            return
        run.mkdir(parents=True, exist_ok=True)
        save_json(path, self.to_dict())


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _parse(name: str, text: str, now: Any) -> Any:
    if isinstance(now, str):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError(f"{name}={text}: expected a value like {json.dumps(now)}") from None
    value = _plain(value)
    fits = isinstance(value, (int, float)) if isinstance(now, float) else type(value) is type(now)
    if not fits:
        raise ValueError(f"{name}={text}: expected a value like {json.dumps(now)}")
    return value


def _smoke() -> Settings:
    """Seconds: everything runs, nothing is learnt."""
    return Settings(
        train_years=2,
        days=25,
        starts=3,
        members=3,
        climate_members=8,
        forecast_days=2,
        latent_width=32,
        history_width=8,
        latent_depth=1,
        latent_heads=2,
        noise_dim=8,
        projector_width=16,
        projector_depth=1,
        projector_heads=2,
        batch_size=4,
        steps=40,
        projector_batch_size=2,
        projector_steps=40,
        warmup=4,
        sampler_steps=2,
        precision="float32",
        threads=1,
        checkpoint_seconds=0.0,
        scorecard_days=(1, 2),
    )


def _large() -> Settings:
    """Two hours of two cores: a finer planet, ten years, a wider network, trained by CRPS."""
    return Settings(
        estimator="crps",
        nature=NatureConfig(truncation=31, levels=8, step_minutes=24, diffusion_hours=12.0, grid=(49, 96)),
        train_years=10,
        starts=32,
        latent_width=256,
        history_width=96,
        projector_width=64,
        projector_depth=3,
        steps=4000,
        projector_steps=1500,
        warmup=100,
        checkpoint_seconds=60.0,
    )


PRESETS = {"default": Settings, "smoke": _smoke, "large": _large}
