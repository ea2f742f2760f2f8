"""What installing and importing the package costs."""

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

import wx_data

HEAVY = ("torch", "xarray", "pandas", "zarr", "pyarrow")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_takes_less_than_half_a_second_and_nothing_heavy() -> None:
    """In CPU time, which other processes do not change."""
    code = (
        "import sys, time; start = time.process_time(); import wx_data; "
        f"print(time.process_time() - start, [m for m in {HEAVY} if m in sys.modules])"
    )
    seconds, loaded = run(code).split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.5


def test_converting_needs_no_torch() -> None:
    code = "import sys; from wx_data import convert, open_source, Store, compute_statistics, plan, repair; "
    assert run(code + "print('torch' in sys.modules)").strip() == "False"


def test_every_exported_name_is_there_and_listed() -> None:
    assert set(wx_data.__all__) == set(wx_data._MODULES)
    assert set(wx_data.__all__) <= set(dir(wx_data))
    for name in wx_data.__all__:
        assert getattr(wx_data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Stoer'"):
        wx_data.Stoer  # noqa: B018


def test_no_dask_and_no_cloud_client_is_required() -> None:
    core = {re.split(r"[<>=]", text)[0] for text in requires("wx-data") or [] if "extra ==" not in text}
    assert core == {
        "google-crc32c",
        "numcodecs",
        "numpy",
        "pyarrow",
        "torch",
        "tqdm",
        "xarray",
        "zarr",
    }
