"""Records: merging, files and selection."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

import wx_eval
from wx_eval import Chunk, Records, evaluate
from wx_eval._fields import States
from wx_eval._records import Conventions

METRICS = (*wx_eval.STANDARD_METRICS, wx_eval.RankHistogram())
LAT, LON = np.linspace(90, -90, 5), np.arange(0, 360, 90.0)
START = np.datetime64("2021-01-01T00", "s")
DAY = np.timedelta64(1, "D")


def states(seed: int = 0) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    times = (START + DAY * np.arange(8)).astype("datetime64[ns]")
    coords = {"time": times, "channel": ["t850"], "latitude": LAT, "longitude": LON}
    return xr.DataArray(
        rng.standard_normal((8, 1, 5, 4)), coords, ("time", "channel", "latitude", "longitude"), name="truth"
    )


def records(model: str = "a", inits: range = range(4), seed: int = 1, **options: object) -> Records:
    def chunk(i: int, lead: int) -> Chunk:
        rng = np.random.default_rng([seed, i, lead])
        return Chunk(
            init_time=START + i * DAY,
            lead_time=lead * DAY,
            channels=("t850",),
            values=rng.standard_normal((4, 1, 5, 4)),
            units=("K",),
        )

    chunks = [chunk(i, lead) for i in inits for lead in (1, 2)]
    return evaluate(chunks, States(states()), model=model, **options)  # type: ignore[arg-type]


def test_merging_is_idempotent_and_does_not_depend_on_order() -> None:
    whole = records()
    parts = [records(inits=range(i, i + 2)) for i in range(3)]
    for order in itertools.permutations(parts):
        assert order[0].merge(*order[1:]) == whole
    assert whole.merge(whole, *parts) == whole
    assert len(whole) == 4 * 2 * 4


def test_one_key_with_two_values_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"two records of model=a, .*differ in .*crps_fair"):
        records().merge(records(seed=2))


def test_models_of_different_conventions_do_not_mix() -> None:
    a = records()
    with pytest.raises(ValueError, match="different weights"):
        a.merge(records("b", weights="cos"))
    with pytest.raises(ValueError, match="different truth"):
        a.merge(records("b", truth_name="other"))
    other = Records(a.table, replace(a.conventions, units={"t850": "degC"}))
    with pytest.raises(ValueError, match="different units of 't850' cannot be combined: 'K' and 'degC'"):
        a.merge(other)
    north = np.broadcast_to((LAT > 60)[:, None], (5, 4))
    with pytest.raises(ValueError, match="different regions of 'nh'"):
        a.merge(records("b", regions={"nh": north}))
    assert a.conventions.digest != records("b", weights="cos").conventions.digest
    assert a.conventions.digest == records("b", regions=["nh"]).conventions.digest


def test_files_give_back_the_same_records_and_state_their_conventions(tmp_path: Path) -> None:
    a = records(metrics=METRICS).merge(records("b", missing_truth="drop"))
    a.to_parquet(tmp_path / "scores.parquet")
    assert Records.from_parquet(tmp_path / "scores.parquet") == a
    metadata = pq.read_schema(tmp_path / "scores.parquet").metadata[b"wx_eval"].decode()
    assert '"weights": "cell"' in metadata
    assert a.conventions.digest in metadata


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no wx-eval records"):
        Records.from_parquet(tmp_path / "x.parquet")


def test_selection_and_axes() -> None:
    both = records().merge(records("b", inits=range(1, 3)))
    assert both.models == ["a", "b"]
    assert both.channels == ["t850"]
    assert both.regions == ["global", "nh", "sh", "tropics"]
    assert both.lead_times.tolist() == (DAY * np.arange(1, 3)).astype("timedelta64[s]").tolist()
    assert both.init_times.size == 4
    one = both.select(model="b", region=["nh", "sh"], lead_time=[DAY], init_time=[START + DAY])
    assert one.table["region"].to_pylist() == ["nh", "sh"]
    with pytest.raises(ValueError, match=r"no region \['europe'\]"):
        both.select(region="europe")
    cube = both.to_xarray()
    assert cube["n"].sel(model="b", region="nh").isel(init_time=0, lead_time=0).isnull().all()


def test_a_histogram_that_was_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="RankHistogram"):
        records().rank_histogram(model="a", channel="t850", region="nh", lead_time=DAY)


def test_conventions_join_regions_and_units() -> None:
    a = Conventions(truth="t", weights="cell", grid="g", regions={"x": "1"}, units={"q": "1"})
    b = replace(a, regions={"y": "2"}, units={"t": "K"})
    assert a.union(b).regions == {"x": "1", "y": "2"}
    assert a.union(b).units == {"q": "1", "t": "K"}
