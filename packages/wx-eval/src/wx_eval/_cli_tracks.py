"""Commands of tropical cyclones: fields to tracks, and tracks to records."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._choices import BOXES
from ._texts import checked, duration, durations, members, names, pair

Arguments = argparse.Namespace

TRACKS_EXAMPLE = """\
examples:
  wx-eval tracks "ens/*.grib" --leads 0h/5d/6h -o ens.tracks.parquet
  wx-eval tracks ens.zarr --tracker "search='vorticity', vorticity=('u850', 'v850'), wind=None" -o t.parquet

Fields in files are msl, u10 and v10 unless --rename or the tracker says otherwise.
"""
SCORE_EXAMPLE = """\
example:
  wx-eval score-tracks ens=ens.tracks.parquet hres=hres.tracks.parquet --best ibtracs.csv -o cyclones.parquet
  wx-eval compare cyclones.parquet cyclones.parquet --model-a ens --model-b hres --metric mae
"""


def fill_tracks(command: argparse.ArgumentParser) -> None:
    """Options of `wx-eval tracks`."""
    command.add_argument("path", nargs="+", metavar="FORECAST", help="files of the forecast")
    command.add_argument("-o", "--output", required=True, help="parquet file of tracks")
    command.add_argument("--leads", type=checked(durations), metavar="0h/5d/6h", help="first/last/step")
    command.add_argument("--inits", metavar="A/B[/STEP]", help="first/last, first/last/step, or a list")
    command.add_argument("--members", type=checked(members), metavar="0,1-50", help="keep these members")
    command.add_argument(
        "--rename", type=checked(pair), action="append", default=[], metavar="OLD=NEW", help="channel"
    )
    command.add_argument("--lead-time", metavar="24h", help="where the files do not tell it")
    command.add_argument(
        "--tracker", default="", metavar="SETTINGS", help='of wx_eval.Tracker, such as "depth=300"'
    )


def tracks(arguments: Arguments) -> int:
    """Track cyclones in every start and member."""
    import numpy as np

    from ._config import chosen_inits
    from ._files import write_whole
    from ._open import Forecast
    from ._readers import settings_of
    from ._sections import SourceSettings
    from ._tracker import Tracker, track_forecasts

    data: dict[str, Any] = {"path": arguments.path, "rename": dict(arguments.rename)}
    if arguments.lead_time is not None:
        data["lead_time"] = arguments.lead_time
    if arguments.members is not None:
        data["members"] = [str(m) for m in arguments.members]
    given = settings_of(arguments.tracker, Tracker, "tracker")
    tracker = Tracker(**{"wind": ("u10", "v10"), **given})
    source = SourceSettings.parse(data, "forecast").open("forecast")
    wanted = [c for c in dict.fromkeys((*tracker.channels, tracker.pressure)) if c in source.channels]
    absent = sorted(set(tracker.channels) - set(wanted))
    if absent:
        raise ValueError(
            f"the tracker needs the channels {absent}, the files have {list(source.channels)}: use --rename "
            "or name others in --tracker"
        )
    leads = None if arguments.leads is None else np.array(arguments.leads, "timedelta64[s]")
    source = source.select(channels=wanted, lead_times=leads)
    starts = chosen_inits(arguments.inits, source.init_times)
    found = track_forecasts(Forecast(source).chunks(starts), tracker)
    write_whole(Path(arguments.output), found.to_parquet)
    print(
        f"{arguments.output}: {len(found.tracks)} tracks of {found.init_times.size} starts and "
        f"{found.members} members"
    )
    return 0


def fill_score(command: argparse.ArgumentParser) -> None:
    """Options of `wx-eval score-tracks`."""
    command.add_argument(
        "tracks", nargs="+", type=checked(pair), metavar="MODEL=PATH", help="written by wx-eval tracks"
    )
    command.add_argument("--best", required=True, help="best tracks, csv or parquet")
    command.add_argument("-o", "--output", required=True, help="parquet file of records")
    command.add_argument(
        "--layout", default="", metavar="SETTINGS", help="of wx_eval.TrackLayout; IBTrACS if not given"
    )
    command.add_argument(
        "--regions", type=names, metavar="A,B", default=["global"], help="of " + ", ".join(BOXES)
    )
    command.add_argument("--radius-km", type=float, default=300.0, help="between storm and track, or 300")
    command.add_argument("--late", type=checked(duration), default=43200, metavar="12h", help="of a track")
    command.add_argument("--overlap", type=int, default=1, help="common times, or 1")
    command.add_argument("--alive", type=float, default=0.5, help="share of the members, or 0.5")
    command.add_argument(
        "--sample", choices=("homogeneous", "each"), default="homogeneous", help="cases of all models"
    )


def score(arguments: Arguments) -> int:
    """Score tracks against best tracks."""
    import numpy as np

    from ._cyclones import Matching, score_tracks
    from ._files import write_whole
    from ._readers import settings_of
    from ._tracks import TrackForecasts, TrackLayout, read_tracks

    layout = settings_of(arguments.layout, TrackLayout, "layout")
    records = score_tracks(
        {model: TrackForecasts.from_parquet(path) for model, path in arguments.tracks},
        read_tracks(arguments.best, TrackLayout(**layout) if layout else None),
        matching=Matching(
            radius_km=arguments.radius_km,
            late=np.timedelta64(arguments.late, "s"),
            overlap=arguments.overlap,
        ),
        alive=arguments.alive,
        sample=arguments.sample,
        regions=arguments.regions,
        truth_name=Path(arguments.best).name.split(".")[0],
    )
    write_whole(Path(arguments.output), records.to_parquet)
    print(f"{arguments.output}: {len(records)} rows of {', '.join(records.models)}")
    return 0
