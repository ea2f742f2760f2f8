"""Whatever a user names is used, or refused in one line that says what there is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from wx_eval import (
    CRPS,
    PRESETS,
    RMSE,
    RPS,
    SEEPS,
    Brier,
    Chunk,
    JointEnergyScore,
    Metric,
    TwCRPS,
    WindRMSE,
    compare,
    evaluate,
    scores,
)
from wx_eval._cli import main
from wx_eval._climatology import DayClimatology

pytest.importorskip("h5netcdf", reason="the files of these tests are netCDF")

DAY = np.timedelta64(1, "D")
START = np.datetime64("2020-01-01", "ns")
LAT, LON = np.linspace(90, -90, 9), np.arange(0, 360, 30.0)
SPACE = {"latitude": LAT, "longitude": LON}
CHANNELS = ["t850", "z500"]


def pair(channels: list[str] = CHANNELS, inits: int = 4) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast of two days and three members, and truth."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((inits, 2, 3, len(channels), LAT.size, LON.size))
    coords = {
        "init_time": START + DAY * np.arange(inits),
        "lead_time": (DAY * np.arange(1, 3)).astype("timedelta64[ns]"),
        "channel": channels,
        **SPACE,
    }
    dims = ("init_time", "lead_time", "member", "channel", *SPACE)
    state = rng.standard_normal((inits + 3, len(channels), LAT.size, LON.size))
    times = START + DAY * np.arange(inits + 3)
    truth = xr.DataArray(state, {"time": times, "channel": channels, **SPACE}, ("time", "channel", *SPACE))
    return xr.DataArray(values, coords, dims), truth


NAMED: list[Metric] = [
    Brier({"t850": 0.0, "t855": 0.0}),
    RPS({"t850": [0.0, 1.0], "t855": [0.0, 1.0]}),
    TwCRPS(lower={"t855": 0.0}),
    SEEPS(("t855",)),
    JointEnergyScore(("t850", "t855")),
    WindRMSE((("t850", "t855"),)),
]


@pytest.mark.parametrize("metric", NAMED, ids=lambda m: type(m).__name__)
def test_a_metric_that_names_a_channel_which_is_not_there(metric: Metric) -> None:
    forecast, truth = pair()
    assert "t855" in metric.named_channels
    for given in (truth, pair([*CHANNELS, "t855"])[1]):
        side = "forecast" if given is not truth else "truth"
        with pytest.raises(ValueError, match=rf"names the channels \['t855'\] and the {side} has \['t850'"):
            evaluate(forecast, given, model="a", metrics=[metric])


def test_chunks_that_never_have_a_named_channel() -> None:
    """Some of them may be without it, such as precipitation at lead time 0."""
    forecast, truth = pair()

    def chunks(*kept: str) -> Iterator[Chunk]:
        for number, lead in enumerate(forecast["lead_time"].values):
            names = kept if number else CHANNELS[1:]
            part = forecast.isel(init_time=0).sel(lead_time=lead, channel=list(names))
            yield Chunk(init_time=START, lead_time=lead, channels=tuple(names), values=part.values)

    metric = Brier({"t850": 0.0})
    found = scores(evaluate(chunks(*CHANNELS), truth, model="a", metrics=[metric]))[metric.name]
    there = found.sel(channel="t850", region="global", model="a").notnull()
    assert there.values.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"names the channels \['t850'\] and the forecast has \['z500'\]"):
        evaluate(chunks("z500"), truth, model="a", metrics=[metric])


def test_names_that_choose_among_records() -> None:
    forecast, truth = pair(inits=40)
    a, b = (evaluate(forecast + k, truth, model=str(k), metrics=[CRPS(), RMSE()]) for k in (0, 1))
    wrong: dict[str, tuple[Any, str]] = {
        "channels": (["t855"], r"no channel \['t855'\] in the records, which hold \['t850', 'z500'\]"),
        "regions": (["europa"], r"no region \['europa'\]"),
        "lead_times": ([DAY, 3 * DAY], "no lead time 259200 seconds in the records, which hold 2"),
        "months": ([1, 7], r"lies in the months \[7\], they lie in \[1, 2\]"),
        "metrics": ("crps", "no metric 'crps' in the records"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            compare(a, b, **{"metrics": "rmse", name: value})
    # An iterator serves both models.
    card = compare(a, b, "rmse", lead_times=iter([DAY]), months=iter([1]), regions=["global"])
    assert all(c.lead_time == DAY for c in card.cells)
    assert card.months == (1,)
    with pytest.raises(ValueError, match="no init time 2019-12-31"):
        a.select(init_time=[START - DAY])
    with pytest.raises(ValueError, match=r"seeps names channels \['tp'\]"):
        DayClimatology.build(truth, window_days=180, seeps={"tp": 0.1})


def test_precipitation_of_a_preset_that_is_not_there() -> None:
    forecast, truth = pair()
    with pytest.raises(ValueError, match=r"seeps_wbx_24h' names the channels \['tp24'\] and the truth has"):
        PRESETS["wbx"].evaluate(forecast, truth, model="a", metrics=[RMSE()], precipitation={"tp24": 24})


CONFIG = """
model = "a"
output = "a.parquet"
metrics = ["rmse"]
regions = ["global"]
"""

REFUSED: dict[str, str] = {
    '[truth]\npath = "truth.nc"\nchannels = ["t850", "t855"]': "truth has no channel ['t855']; it has",
    '[truth]\npath = "truth.nc"\nchannels = ["t850", "q700"]': (
        "the truth names the channels ['t850', 'q700'] and the forecast has no ['q700']; it has ['t850',"
    ),
    '[truth]\npath = "truth.nc"\nrename = {t855 = "t"}': "truth.rename names ['t855'], which are no channels",
    '[forecast]\npath = "ens.nc"\nrename = {T850 = "t"}': "forecast.rename names ['T850'], which are no",
    '[forecast]\npath = "ens.nc"\nmembers = ["0-3"]': "forecast has no member [3]",
    '[forecast]\npath = "ens.nc"\nleads = ["1d", "9d"]': "forecast has no lead time",
    'leads = ["1d", "9d"]': "forecast has no lead time",
    'inits = ["2020-01-01", "2020-01-31"]': "forecast lacks 1 of 2 starts",
    'metrics = [{type = "Brier", threshold = {t855 = 0.0}}]': "names the channels ['t855'] and the forecast",
    'metrics = [{type = "SEEPS", channels = ["tp"]}]': "names the channels ['tp'] and the forecast has",
    'regions = ["europa"]': "unknown region 'europa'",
    '[climatology]\npath = "c.nc"\nchannels = {t855 = "t850"}': (
        "climatology.channels names ['t855'] and the forecast has ['t850', 'z500']"
    ),
    '[land]\npath = "ens.nc"\nvariable = "lsm"': "nothing uses the section land",
    'region = ["global"]': "unknown key 'region' in the configuration, did you mean 'regions'?",
    '[truth]\npath = "truth.nc"\nchannel = ["t850"]': "unknown key 'channel' in [truth], did you mean",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("named")
    forecast, _ = pair()
    _, truth = pair([*CHANNELS, "q700"])
    for array, name in ((forecast, "ens.nc"), (truth, "truth.nc")):
        array.to_dataset(dim="channel").to_netcdf(found / name, engine="h5netcdf")
    return found


def configured(folder: Path, line: str) -> Path:
    """A configuration in which a line takes the place of another one."""
    lines = {part.split(" = ")[0]: part for part in CONFIG.strip().splitlines()}
    lines |= {"forecast": 'forecast = "ens.nc"', "truth": 'truth = "truth.nc"'}
    key = line.split(" = ")[0] if not line.startswith("[") else line[1 : line.index("]")]
    lines.pop(key, None)
    path = folder / "run.toml"
    path.write_text("\n".join([*lines.values(), line]) + "\n")
    return path


@pytest.mark.parametrize("line", REFUSED)
def test_a_configuration_that_names_what_is_not_there(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(configured(folder, line)), "--quiet"]) == 1
    err = capsys.readouterr().err
    assert REFUSED[line] in err
    assert err.count("\n") == 1
    assert not (folder / "a.parquet").exists()


def test_channels_of_the_forecast_are_the_choice(folder: Path) -> None:
    """Named there, the truth may name more; not named on either side, what both have is scored."""
    line = '[truth]\npath = "truth.nc"\nchannels = ["t850", "z500", "q700"]'
    path = configured(folder, line)
    options = ["--forecast-channels", "t850", "-o", str(folder / "one.parquet"), "--quiet"]
    assert main(["run", str(path), *options]) == 0
    path = configured(folder, 'model = "a"')
    assert main(["run", str(path), "-o", str(folder / "both.parquet"), "--quiet"]) == 0


def test_two_variables_of_one_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = xr.open_dataset(folder / "ens.nc", engine="h5netcdf", decode_timedelta=True)
    twice = data.assign({"2m_temperature": data["t850"], "t2m": data["z500"]})
    twice.to_netcdf(folder / "twice.nc", engine="h5netcdf")
    assert main(["info", str(folder / "twice.nc")]) == 1
    assert "holds two channels 't2m'" in capsys.readouterr().err
