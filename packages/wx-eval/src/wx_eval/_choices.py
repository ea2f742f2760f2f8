"""Names that arguments, settings and options choose among: all that help on the command line imports."""

from typing import Literal

Weights = Literal["cell", "cell-wb2", "cell-wbx", "cos", "gauss", "equal"]
Baseline = Literal["persistence", "climatology"]
PointMethod = Literal["bilinear", "nearest", "nearest_land"]
Sample = Literal["each", "starts", "valid"]
Method = Literal["ewc_ar1", "ewc", "geer", "geer_wbx", "iid", "hln", "hg"]
"""How the standard error of a mean difference is estimated."""
Correction = Literal["benjamini-hochberg", "benjamini-yekutieli", "holm", "sidak", "none"]
Calendar = Literal["monthday", "doy"]
Kernel = Literal["triangle", "flat"]
PresetName = Literal["atlas", "gencast", "wb2", "wbx", "wmo"]

# (south, north), (west, east) in degrees, edges inclusive: the row at 20 degrees belongs to the tropics and
# to its hemisphere. The list is that of WeatherBench-X.
BOXES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "global": ((-90, 90), (0, 360)),
    "tropics": ((-20, 20), (0, 360)),
    "nh": ((20, 90), (0, 360)),
    "sh": ((-90, -20), (0, 360)),
    "europe": ((35, 75), (-12.5, 42.5)),
    "north-america": ((25, 60), (240, 285)),
    "north-atlantic": ((25, 65), (290, 350)),
    "north-pacific": ((25, 60), (145, 230)),
    "east-asia": ((25, 60), (102.5, 150)),
    "ausnz": ((-45, -12.5), (120, 175)),
    "arctic": ((60, 90), (0, 360)),
    "antarctic": ((-90, -60), (0, 360)),
    "northern-africa": ((5, 32.5), (-12.5, 37.5)),
    "southern-africa": ((-30, 5), (12.5, 37.5)),
    "south-america": ((-40, 5), (-75, -45)),
    "west-asia": ((15, 60), (42.5, 102.5)),
    "south-east-asia": ((-12.5, 25), (95, 125)),
}
