"""ERA5 and its kin, from public stores to training batches to forecast output.

A `Source` gives fields; `convert` writes them into a training `Store`; a `Loader` makes batches of it; a
`ForecastWriter` takes what a model predicts. `wx_data.nature` simulates an atmosphere where none is at hand.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wx_data._accumulation import AccumulatedSource
    from wx_data._cds import CDS, fetch_cds
    from wx_data._channels import PRESETS, Channel, channel, channels
    from wx_data._climatology import climatology, open_climatology
    from wx_data._convert import convert
    from wx_data._errors import SourceError, StoreError
    from wx_data._forcings import Forcings
    from wx_data._grid import Grid
    from wx_data._hdf5 import YearlyHdf5
    from wx_data._healpix import Healpix
    from wx_data._join import join
    from wx_data._loader import Batch, Loader
    from wx_data._opendata import OpenData, fetch_initial_state
    from wx_data._plan import ConversionPlan, plan
    from wx_data._protocols import RowRange, Source
    from wx_data._regrid import RegriddedSource
    from wx_data._remote import Remote, Traffic
    from wx_data._repair import RepairReport, repair
    from wx_data._rounding import rounding_bounds
    from wx_data._sources import open_source
    from wx_data._statistics import Statistics, compute_statistics
    from wx_data._store import Store
    from wx_data._synthetic import SyntheticSource
    from wx_data._windows import TimeWindow
    from wx_data._writer import ForecastWriter, open_forecast

__version__ = _version("wx-data")

__all__ = [
    "CDS",
    "PRESETS",
    "AccumulatedSource",
    "Batch",
    "Channel",
    "ConversionPlan",
    "Forcings",
    "ForecastWriter",
    "Grid",
    "Healpix",
    "Loader",
    "OpenData",
    "RegriddedSource",
    "Remote",
    "RepairReport",
    "RowRange",
    "Source",
    "SourceError",
    "Statistics",
    "Store",
    "StoreError",
    "SyntheticSource",
    "TimeWindow",
    "Traffic",
    "YearlyHdf5",
    "channel",
    "channels",
    "climatology",
    "compute_statistics",
    "convert",
    "fetch_cds",
    "fetch_initial_state",
    "join",
    "open_climatology",
    "open_forecast",
    "open_source",
    "plan",
    "repair",
    "rounding_bounds",
]

# The package is imported in milliseconds; xarray and torch, two seconds, come with the first name that needs
# them.
_MODULES = {
    "AccumulatedSource": "_accumulation",
    "CDS": "_cds",
    "fetch_cds": "_cds",
    "PRESETS": "_channels",
    "Channel": "_channels",
    "channel": "_channels",
    "channels": "_channels",
    "climatology": "_climatology",
    "open_climatology": "_climatology",
    "convert": "_convert",
    "SourceError": "_errors",
    "StoreError": "_errors",
    "Forcings": "_forcings",
    "Grid": "_grid",
    "YearlyHdf5": "_hdf5",
    "Healpix": "_healpix",
    "join": "_join",
    "Batch": "_loader",
    "Loader": "_loader",
    "OpenData": "_opendata",
    "fetch_initial_state": "_opendata",
    "ConversionPlan": "_plan",
    "plan": "_plan",
    "RowRange": "_protocols",
    "Source": "_protocols",
    "RegriddedSource": "_regrid",
    "Remote": "_remote",
    "Traffic": "_remote",
    "RepairReport": "_repair",
    "repair": "_repair",
    "rounding_bounds": "_rounding",
    "open_source": "_sources",
    "Statistics": "_statistics",
    "compute_statistics": "_statistics",
    "Store": "_store",
    "SyntheticSource": "_synthetic",
    "TimeWindow": "_windows",
    "ForecastWriter": "_writer",
    "open_forecast": "_writer",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
