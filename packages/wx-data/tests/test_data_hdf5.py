"""Yearly HDF5 files: every step once, at its own time, whatever the year's length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wx_data import Grid, SourceError, Store, convert, open_source
from wx_data._hdf5 import YearlyHdf5

h5py = pytest.importorskip("h5py")

NAMES = ("u10m", "t2m", "z500", "t850")
LATITUDE, LONGITUDE = np.linspace(90, -90, 5), np.arange(8) * 45.0
LAYOUT = YearlyHdf5(channels=NAMES, latitude=LATITUDE, longitude=LONGITUDE, step=24)


def field(time: np.datetime64, channel: int) -> np.ndarray:
    """Told apart by time and channel, exactly in float32."""
    day = int(time.astype("datetime64[h]").astype(int)) / 24
    return (day + 1000.0 * channel + np.arange(40).reshape(5, 8) / 64).astype(np.float32)


def year(number: int, step: int = 24) -> np.ndarray:
    first, last = (np.datetime64(f"{n}-01-01", "h") for n in (number, number + 1))
    return np.arange(first, last, np.timedelta64(step, "h")).astype("datetime64[ns]")


def write(path: Path, times: np.ndarray, *, described: bool = False, **changes: Any) -> None:
    values = np.stack([[field(time, c) for c in range(len(NAMES))] for time in times])
    with h5py.File(path, "w") as file:
        file["fields"] = changes.get("fields", values)
        if described:  # as makani's converter writes them
            file["timestamp"] = times.astype("datetime64[s]").astype(np.float64)
            file["channel"] = np.array(changes.get("channel", NAMES), dtype="S8")
            file["lat"], file["lon"] = LATITUDE, LONGITUDE


def test_a_leap_year_between_two_others(tmp_path: Path) -> None:
    """Traps: files without times shift after a leap year; steps lost or doubled at a border of years."""
    for number in (2019, 2020, 2021):
        write(tmp_path / f"{number}.h5", year(number))
    source = open_source(tmp_path, hdf5=LAYOUT)
    days = np.arange("2019-01-01", "2022-01-01", dtype="datetime64[D]").astype("datetime64[ns]")
    np.testing.assert_array_equal(source.times, days)
    assert source.times.size == 365 + 366 + 365
    assert set(source.channels) == set(NAMES)
    got = source.read(days, ["t850", "u10m"]).values
    want = np.stack([[field(time, 3), field(time, 0)] for time in days])
    np.testing.assert_array_equal(got, want)
    border = days[[364, 365, 366, 730, 731, 365 + 59]]
    np.testing.assert_array_equal(
        source.read(border, NAMES).values, [[field(t, c) for c in range(4)] for t in border]
    )
    np.testing.assert_array_equal(source.read(days[400], ["z500"]).values[0, 0], field(days[400], 2))


def test_files_that_describe_themselves(tmp_path: Path) -> None:
    write(tmp_path / "2019.h5", year(2019)[-3:], described=True)
    write(tmp_path / "2020.h5", year(2020)[:4], described=True)
    source = open_source(tmp_path)
    assert source.times.size == 7
    np.testing.assert_array_equal(np.diff(source.times), np.timedelta64(1, "D"))
    np.testing.assert_array_equal(
        source.read(source.times[2:5], ["z500"]).values[:, 0], [field(t, 2) for t in source.times[2:5]]
    )
    one = open_source(tmp_path / "2020.h5")
    np.testing.assert_array_equal(one.times, source.times[3:])
    flipped = YearlyHdf5(channels=NAMES, latitude=LATITUDE[::-1], longitude=LONGITUDE, step=24)
    assert open_source(tmp_path, hdf5=flipped).grid.latitude[0] == 90  # what the file says wins


@pytest.mark.parametrize(
    ("number", "length", "steps"),
    [(2020, 1460, 1464), (2019, 1464, 1460), (2019, 1459, 1460)],
)
def test_a_length_that_does_not_fit_the_year(tmp_path: Path, number: int, length: int, steps: int) -> None:
    fields = np.zeros((length, 1, 2, 2), np.float32)
    write(tmp_path / f"{number}.h5", year(number)[:1], fields=fields)
    layout = YearlyHdf5(channels=["t2m"], latitude=[45, -45], longitude=[0, 180], step=6)
    with pytest.raises(
        SourceError, match=rf"{number}\.h5 has {length} steps, but the .* are {steps} steps of 6 h.*times="
    ):
        open_source(tmp_path, hdf5=layout)


def test_a_year_that_is_not_whole(tmp_path: Path) -> None:
    whole, part = year(2019), np.delete(year(2020), [3, 4])[:20]
    write(tmp_path / "2019.h5", whole)
    write(tmp_path / "2020.h5", part)
    layout = YearlyHdf5(
        channels=NAMES, latitude=LATITUDE, longitude=LONGITUDE, step=24, times={"2020.h5": part}
    )
    source = open_source(tmp_path, hdf5=layout)
    np.testing.assert_array_equal(source.times, np.concatenate((whole, part)))
    np.testing.assert_array_equal(source.read(part, ["t2m"]).values[:, 0], [field(t, 1) for t in part])
    with pytest.raises(SourceError, match="times are not in the source, first 2020-01-04"):
        source.read(year(2020)[3])
    with pytest.raises(SourceError, match=r"has 20 steps, but 19 times are given"):
        open_source(tmp_path, hdf5=YearlyHdf5(**{**vars(layout), "times": {"2020.h5": part[:-1]}}))


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    write(tmp_path / "2019.h5", year(2019))
    with pytest.raises(SourceError, match=r"does not say its step; pass hdf5=YearlyHdf5\(step="):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"does not say its channels"):
        open_source(tmp_path, hdf5=YearlyHdf5(step=24))
    with pytest.raises(
        SourceError, match=r"\(4, 5, 8\) channels, rows and columns, but \(3, 5, 8\) are named"
    ):
        open_source(tmp_path, hdf5=YearlyHdf5(**{**vars(LAYOUT), "channels": NAMES[:3]}))
    with pytest.raises(SourceError, match=r"no dataset 'state'; it has \['fields'\]"):
        open_source(tmp_path, hdf5=YearlyHdf5(**{**vars(LAYOUT), "dataset": "state"}))
    write(tmp_path / "2020.h5", np.concatenate((year(2019)[-1:], year(2020))), described=True)
    with pytest.raises(SourceError, match="2019-12-31T00 is followed by 2019-12-31T00"):
        open_source(tmp_path, hdf5=LAYOUT)
    write(tmp_path / "2020.h5", year(2020), described=True, channel=(*NAMES[:3], "q850"))
    with pytest.raises(SourceError, match="has another channels than"):
        open_source(tmp_path, hdf5=LAYOUT)
    data = (tmp_path / "2020.h5").read_bytes()
    (tmp_path / "2020.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="not readable as HDF5, perhaps truncated"):
        open_source(tmp_path, hdf5=LAYOUT)


def test_what_makani_marks_as_not_valid_is_missing(tmp_path: Path) -> None:
    """`valid_data` (time, channel) is 0 where its converter found nothing in the source."""
    times = year(2019)[:8]
    write(tmp_path / "2019.h5", times, described=True)
    write(tmp_path / "2020.h5", year(2020)[:3], described=True)  # of an older converter, without it
    valid = np.ones((8, 4), np.int32)
    valid[2] = 0  # an imputed time
    valid[5, 1] = valid[6, :3] = 0
    with h5py.File(tmp_path / "2019.h5", "a") as file:
        file["valid_data"] = valid
    source = open_source(tmp_path)
    kept = np.concatenate((np.delete(times, 2), year(2020)[:3]))
    np.testing.assert_array_equal(source.times, kept)
    want = np.array([[field(time, c) for c in range(4)] for time in kept])
    want[4, 1] = want[5, :3] = np.nan
    np.testing.assert_array_equal(source.read(kept, NAMES).values, want)
    np.testing.assert_array_equal(source.read(kept[[8, 5]], ["t850", "t2m"]).values, want[[8, 5]][:, [3, 1]])
    convert(
        open_source(tmp_path / "2019.h5"),
        tmp_path / "t850",
        channels=["t850"],
        missing="drop",
        implausible="keep",
    )
    with pytest.raises(
        SourceError, match=r"t2m at 2019-01-06T00.*whole field is missing: a hole in the source"
    ):
        convert(source, tmp_path / "s", missing="drop", implausible="keep")
    with h5py.File(tmp_path / "2019.h5", "a") as file:
        file["valid_data"][...] = 0
    with pytest.raises(SourceError, match="valid_data is 0 for every time and channel"):
        open_source(tmp_path / "2019.h5")
    with h5py.File(tmp_path / "2019.h5", "a") as file:
        del file["valid_data"]
        file["valid_data"] = valid[:, 0]
    with pytest.raises(SourceError, match=r"valid_data has shape \(8,\); \(time, channel\) = \(8, 4\)"):
        open_source(tmp_path / "2019.h5")


def test_makani_metadata_conversion_and_regridding(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "2019.h5", year(2019))
    (tmp_path / "data.json").write_text(
        '{"dhours": 24, "h5_path": "fields", "coords": {"lat": [90, 45, 0, -45, -90], '
        '"lon": [0, 45, 90, 135, 180, 225, 270, 315], "channel": ["u10m", "t2m", "z500", "t850"]}}'
    )
    layout = YearlyHdf5.from_json(tmp_path / "data.json")
    source = open_source(tmp_path / "train", "hdf5", channels=["t850"], hdf5=layout)
    convert(source, tmp_path / "s", period=("2019-12-28", "2019-12-31"), implausible="keep")
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(
        store.read(store.times).values[:, 0], [field(t, 3) for t in year(2019)[-4:]]
    )
    coarse = Grid(LATITUDE[::2], LONGITUDE[::2])
    onto = open_source(tmp_path / "train", channels=["t850"], hdf5=layout, grid=coarse)
    got = onto.read(onto.times[:2]).values[:, 0]
    np.testing.assert_array_equal(got[:, 1], [field(t, 3)[2, ::2] for t in onto.times[:2]])


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (2019, 2020):
        write(tmp_path / f"{number}.h5", year(number))
    source = open_source(tmp_path, hdf5=LAYOUT)
    opened: list[str] = []
    original = h5py.File

    def counting(path: Any, *arguments: Any) -> Any:
        opened.append(Path(path).name)
        return original(path, *arguments)

    monkeypatch.setattr(h5py, "File", counting)
    source.read(source.times[3:6], ["z500"])
    assert opened == ["2019.h5"]
