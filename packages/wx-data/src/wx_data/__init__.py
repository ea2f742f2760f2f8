"""ERA5 and its kin, from public stores to training batches to forecast output.

A `Source` gives fields; `convert` writes them into a training `Store`; a `Loader` makes batches of it; a
`ForecastWriter` takes what a model predicts. `wx_data.nature` simulates an atmosphere where none is at hand.
"""

from importlib.metadata import version as _version

from wx_data._channels import PRESETS, Channel, channel, channels
from wx_data._convert import convert
from wx_data._errors import SourceError, StoreError
from wx_data._forcings import Forcings
from wx_data._grid import Grid
from wx_data._loader import Batch, Loader, TimeWindow
from wx_data._protocols import RowRange, Source
from wx_data._sources import open_source
from wx_data._statistics import Statistics, compute_statistics
from wx_data._store import Store
from wx_data._writer import ForecastWriter, open_forecast

__version__ = _version("wx-data")

__all__ = [
    "PRESETS",
    "Batch",
    "Channel",
    "Forcings",
    "ForecastWriter",
    "Grid",
    "Loader",
    "RowRange",
    "Source",
    "SourceError",
    "Statistics",
    "Store",
    "StoreError",
    "TimeWindow",
    "channel",
    "channels",
    "compute_statistics",
    "convert",
    "open_forecast",
    "open_source",
]
