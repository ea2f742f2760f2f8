"""Every constant of a nature run in one frozen dataclass."""

from dataclasses import dataclass

EARTH_RADIUS = 6.371e6
GRAVITY = 9.80665
ROTATION = 7.292e-5
GAS_CONSTANT = 287.0
HEAT_CAPACITY = 1004.0
KAPPA = GAS_CONSTANT / HEAT_CAPACITY
LATENT_HEAT = 2.5e6
REFERENCE_PRESSURE = 1.0e5
REFERENCE_TEMPERATURE = 300.0
DAY = 86400
OUTPUT_INTERVAL = 6 * 3600
_TIME_SCALES = (
    "diffusion_hours",
    "relaxation_days",
    "surface_relaxation_days",
    "friction_days",
    "evaporation_days",
    "condensation_hours",
)


@dataclass(frozen=True, kw_only=True)
class NatureConfig:
    """Resolution, numerics, forcing and output of the nature run.

    The defaults are T21 with five levels, tuned so that small errors double in two to three days.

    Attributes:
        truncation: triangular truncation T of the spherical harmonics.
        levels: number of sigma layers of equal mass.
        step_minutes: leapfrog step; divides six hours. T21 36, T31 24, T42 18, T63 12 are safe.
        robert: Robert-Asselin filter coefficient.
        diffusion_hours: e-folding time of the smallest scale under hyperdiffusion.
        diffusion_order: power of the Laplacian, 3 is del^6.
        equator_temperature: equilibrium temperature at the thermal equator at 1000 hPa, K.
        meridional_contrast: dTy of Held and Suarez (1994), K.
        stability_contrast: dTz of Held and Suarez (1994), K.
        stratosphere_temperature: floor of the equilibrium temperature, K.
        relaxation_days: relaxation time of the free atmosphere.
        surface_relaxation_days: relaxation time at the tropical surface.
        friction_days: Rayleigh friction time at the surface.
        season_amplitude: largest displacement of the thermal equator, in sin(latitude); 0 switches seasons
            off.
        season_lag_days: delay of the thermal equator behind the sun.
        land_season: extra seasonal temperature of land at the poles, K.
        diurnal_heating: heating of the lowest layer over land under an overhead sun, K per day.
        mean_surface_pressure: global mean that the mass fixer holds, Pa.
        moist: carry humidity (evaporation, condensation, precipitation).
        evaporation_days, evaporation_humidity: relaxation over the ocean towards this relative humidity.
        land_evaporation: evaporation over land as a fraction of that over the ocean.
        condensation_hours, condensation_humidity: removal of vapour above this relative humidity.
        latent_fraction: share of the latent heat that warms the air.
        orography: scale of the analytic orography, 0 for a smooth sphere.
        grid: latitudes (with both poles) and longitudes of the output.
        pressure_levels: output levels in hPa.
    """

    truncation: int = 21
    levels: int = 5
    step_minutes: int = 36
    robert: float = 0.04
    diffusion_hours: float = 20.0
    diffusion_order: int = 3
    equator_temperature: float = 315.0
    meridional_contrast: float = 85.0
    stability_contrast: float = 7.0
    stratosphere_temperature: float = 200.0
    relaxation_days: float = 20.0
    surface_relaxation_days: float = 2.0
    friction_days: float = 1.0
    season_amplitude: float = 0.15
    season_lag_days: float = 25.0
    land_season: float = 12.0
    diurnal_heating: float = 6.0
    mean_surface_pressure: float = 98550.0
    moist: bool = True
    evaporation_days: float = 2.0
    evaporation_humidity: float = 0.75
    land_evaporation: float = 0.3
    condensation_hours: float = 4.0
    condensation_humidity: float = 0.95
    latent_fraction: float = 0.4
    orography: float = 1.0
    grid: tuple[int, int] = (33, 64)
    pressure_levels: tuple[int, ...] = (850, 500, 250)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.truncation < 5 or self.levels < 2:
            raise ValueError(f"need truncation >= 5 and levels >= 2, got T{self.truncation} L{self.levels}")
        if self.step_minutes <= 0 or 360 % self.step_minutes:
            raise ValueError(f"step_minutes must divide 360 (six hours), got {self.step_minutes}")
        for name in _TIME_SCALES:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}; inf switches it off")
        latitudes, longitudes = self.grid
        if latitudes < 3 or latitudes % 2 == 0 or longitudes <= 2 * self.truncation:
            raise ValueError(
                f"grid needs an odd number of latitudes and more than {2 * self.truncation} longitudes, "
                f"got {latitudes} x {longitudes}"
            )
        if not self.pressure_levels or not all(0 < level <= 1000 for level in self.pressure_levels):
            raise ValueError(f"pressure_levels must lie in (0, 1000] hPa, got {self.pressure_levels}")

    @property
    def gaussian_grid(self) -> tuple[int, int]:
        """Latitudes and longitudes on which quadratic products are exact: 32 x 64 for T21."""
        longitudes = -(-(3 * self.truncation + 1) // 16) * 16
        return longitudes // 2, longitudes

    @property
    def step_seconds(self) -> int:
        """The leapfrog step in seconds."""
        return 60 * self.step_minutes

    @property
    def channels(self) -> tuple[str, ...]:
        """Output channels: z t u v q on every pressure level, then msl, t2m and tp."""
        upper = tuple(f"{name}{level}" for name in "ztuvq" for level in self.pressure_levels)
        return (*upper, "msl", "t2m", "tp")
