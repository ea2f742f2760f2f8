"""What the commands of `wx-eval` do. Each imports what it needs when it runs."""

from __future__ import annotations

import os
from argparse import Namespace as Arguments
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._cli import FINE, FOUND
from ._cli_tracks import score, tracks
from ._cli_vectors import vectors

if TYPE_CHECKING:
    from ._compare import Comparison
    from ._config import RunSettings
    from ._doctor import Diagnosis
    from ._records import Records
    from ._report import Report
    from ._sections import PointSettings, SourceSettings, StationSettings


def _settings(arguments: Arguments) -> RunSettings:
    from ._config import load

    plain = ["model", "output", "preset", "regions", "weights", "leads", "inits", "align", "missing_truth"]
    plain += ["truth_models", "costly"]
    options: dict[str, Any] = {k: v for k in plain if (v := getattr(arguments, k)) is not None}
    if arguments.metric:
        options["metrics"] = arguments.metric
    if arguments.climatology is not None:
        options["climatology"] = {"path": arguments.climatology}
    if arguments.regrid is not None:
        method, _, grid = arguments.regrid.partition(":")
        options["regrid"] = {"method": method, **({"grid": grid} if grid else {})}
    if arguments.interpolation:
        options["stations"] = {"interpolation": arguments.interpolation}
    sides = _sources(arguments)
    for key in ("years", "period"):
        if (value := getattr(arguments, f"forecast_{key}")) is not None:
            sides["forecast"][key] = value
    if arguments.baseline:
        sides["forecast"]["baseline"] = arguments.baseline
    if arguments.stations is not None:
        sides["truth"]["stations"] = arguments.stations
    return load(arguments.config, {**options, **{k: v for k, v in sides.items() if v}})


def _run(arguments: Arguments) -> int:
    from ._run import run

    settings = _settings(arguments)
    records = run(settings, workers=arguments.workers, overwrite=arguments.overwrite, quiet=arguments.quiet)
    if records is not None:
        starts = records.init_times
        print(
            f"{settings.path(settings.output)}: {len(records)} rows of {starts.size} starts, "
            f"{records.lead_times.size} lead times, channels {', '.join(records.channels)}"
        )
    return FINE


def _sources(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """Settings of both sections among the options."""
    out: dict[str, dict[str, Any]] = {}
    for side in ("forecast", "truth"):
        found = {}
        for key in ("channels", "members", "leads", "lead_time"):
            value = getattr(arguments, f"{side}_{key}")
            if value is not None:
                found[key] = value
        if renames := getattr(arguments, f"{side}_rename"):
            found["rename"] = dict(renames)
        paths = getattr(arguments, side, None)
        if paths:
            found["path"] = paths
        out[side] = found
    return out


def _merge(arguments: Arguments) -> int:
    from ._files import write_whole

    records = _read(arguments.records)
    write_whole(Path(arguments.output), records.to_parquet)
    print(f"{arguments.output}: {len(records)} rows of {', '.join(records.models)}")
    return FINE


def _read(paths: Sequence[str]) -> Records:
    first, *rest = map(_records, paths)
    return first.merge(*rest)


def _records(path: str) -> Records:
    from ._records import Records

    return Records.from_parquet(path)


def _choices(arguments: Arguments, preset: bool) -> dict[str, Any]:
    """Arguments of `compare` among the options, those given.

    Raises:
        ValueError: for the test of a preset.
    """
    starts = {name: getattr(arguments, name) for name in ("months", "sample", "lag")}
    if starts["lag"] is not None:
        starts["lag"] = np.timedelta64(starts["lag"], "s")
    test = {name: getattr(arguments, name) for name in ("method", "seed", "resamples", "correction")}
    given = [name for name, value in test.items() if value is not None]
    if preset and given:
        raise ValueError(f"the preset sets the test: drop --{given[0]} or the preset")
    if arguments.resamples is not None and arguments.method != "bootstrap":
        raise ValueError("--resamples is of --method bootstrap")
    return {name: value for name, value in {**starts, **test}.items() if value is not None}


def _compared(arguments: Arguments) -> tuple[Records, Records, list[Any] | None, dict[str, Any]]:
    """Both records, the metrics that were asked for and further arguments of `compare`."""
    a, b = _records(arguments.a), _records(arguments.b)
    shared: dict[str, Any] = {
        "model_a": arguments.model_a,
        "model_b": arguments.model_b,
        "channels": arguments.channels,
        "regions": arguments.regions,
        "alpha": arguments.alpha,
        **_choices(arguments, arguments.preset is not None),
    }
    if arguments.leads is not None:
        shared["lead_times"] = np.array(arguments.leads, "timedelta64[s]")
    return a, b, [_of(a, m) for m in arguments.metric] if arguments.metric else None, shared


def _comparison(arguments: Arguments) -> Comparison:
    from ._presets import PRESETS

    a, b, chosen, shared = _compared(arguments)
    if arguments.preset:
        return PRESETS[arguments.preset].compare(a, b, metrics=chosen, **shared)
    return _plain(a, b, chosen, shared)


def _plain(a: Records, b: Records, metrics: list[Any] | None, choices: dict[str, Any]) -> Comparison:
    from ._compare import compare

    return compare(a, b, metrics or _default_metric(a, b), **choices)


def _of(records: Records, text: str) -> Any:
    """A metric of the records by its name, or any by its type and settings."""
    from ._config import metric

    return text if text in records.metrics else metric(text)


def _default_metric(a: Records, b: Records) -> str:
    ensembles = all((r.table["members"].to_numpy() > 1).all() for r in (a, b))
    return "crps_fair" if ensembles and "crps_fair" in {*a.metrics} & {*b.metrics} else "rmse"


def _compare(arguments: Arguments) -> int:
    card = _comparison(arguments)
    for name, value in card.settings().items():
        print(f"{name}: {value}")
    print()
    rows = [["metric", "channel", "region", "lead", "starts", card.model_a, card.model_b, "skill", "p", ""]]
    for cell in card.cells:
        rows.append(
            [
                cell.metric,
                cell.channel,
                cell.region,
                f"{cell.lead_time / np.timedelta64(1, 'h'):g} h",
                str(cell.n),
                f"{cell.score_a:.5g}",
                f"{cell.score_b:.5g}",
                f"{100 * cell.skill:+.2f} %",
                f"{cell.p_adjusted:.3g}",
                ("better" if cell.difference < 0 else "worse") if cell.significant else "",
            ]
        )
    _print_table(rows)
    return FINE


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _scorecard(arguments: Arguments) -> int:
    from ._report import Report

    cards = _cards(arguments)
    names = " and ".join(dict.fromkeys(card.model_a for card in cards))
    paths = dict.fromkeys((arguments.a, arguments.b))
    page = Report(
        f"{names} against {cards[0].model_b}",
        f"against {cards[0].conventions.truth}",
        data=[_link(path, arguments) for path in paths],
        command=arguments.again,
    )
    for card in cards:
        page.scorecard("Scorecard" if len(cards) == 1 else card.title, card)
    return _written(page, arguments)


def _cards(arguments: Arguments) -> tuple[Comparison, ...]:
    """A card for each model of A and each test of a preset, corrected together."""
    from ._compare import corrected_together
    from ._presets import PRESETS

    a, b, chosen, shared = _compared(arguments)
    model_a, model_b = shared.pop("model_a"), shared.pop("model_b")
    b = b if model_b is None else b.select(model=model_b)
    a = a if model_a is None else a.select(model=model_a)
    if arguments.preset:
        return PRESETS[arguments.preset].cards(a, b, metrics=chosen, **shared)
    models = [m for m in a.models if len(a.models) == 1 or m not in b.models]
    return tuple(corrected_together([_plain(a.select(model=m), b, chosen, shared) for m in models]))


def _link(path: str, arguments: Arguments) -> str:
    """A path relative to the page."""
    return os.path.relpath(path, Path(arguments.output).parent)


def _written(page: Report, arguments: Arguments) -> int:
    print(page.write(arguments.output))
    if arguments.figures:
        print(f"{arguments.figures}: {len(page.export(arguments.figures, arguments.kind))} figures")
    return FINE


def _report(arguments: Arguments) -> int:
    from ._report import Report

    paths = arguments.records
    records = _read(paths)
    _check_metrics(arguments, records)
    page = Report.from_records(
        records,
        baseline=arguments.baseline,
        metrics=arguments.metric,
        title=arguments.title,
        data=[_link(path, arguments) for path in paths],
        command=arguments.again,
        alpha=arguments.alpha,
        **_choices(arguments, bool(records.conventions.preset)),
    )
    return _written(page, arguments)


def _check_metrics(arguments: Arguments, records: Records) -> None:
    """Refuse metrics of cards that cannot be drawn."""
    if arguments.metric and arguments.baseline is None:
        raise ValueError("--metric is of the cards, which need --baseline MODEL")
    absent = [name for name in arguments.metric or () if name not in records.metrics]
    if absent:
        raise ValueError(f"no metric {absent} in the records, which hold {sorted(records.metrics)}")


def _climatology(arguments: Arguments) -> int:
    from ._climatology import DayClimatology
    from ._open import Truth, open_source
    from ._readers import period

    source = open_source(arguments.history, "history", truth=True, channels=arguments.channels)
    history = Truth(source)
    if arguments.period is not None:
        history = history.within(*period(arguments.period))
    built = DayClimatology.build(
        history,
        quantiles=arguments.quantiles,
        seeps={channel: float(dry) for channel, dry in arguments.seeps},
        window_days=arguments.window_days,
        kernel=arguments.kernel,
        calendar=arguments.calendar,
        name=arguments.name,
        memory_bytes=arguments.memory,
        path=arguments.output.rstrip("/"),
    )
    print(f"{arguments.output}: {built.name}, channels {', '.join(built.channels)}")
    return FINE


def _doctor(arguments: Arguments) -> int:
    from ._doctor import doctor
    from ._sections import StationSettings

    forecast, truth, points, folder = _examined(arguments)
    if isinstance(truth, StationSettings):
        return _doctor_stations(arguments, forecast, truth, points, folder)
    sides = forecast.open("forecast", folder), truth.open("truth", folder)
    return _told(doctor(*sides, samples=arguments.samples, seed=arguments.seed))


def _told(diagnosis: Diagnosis) -> int:
    print(diagnosis.text())
    return FINE if diagnosis.healthy else FOUND


def _examined(
    arguments: Arguments,
) -> tuple[SourceSettings, SourceSettings | StationSettings, PointSettings | None, Callable[[str], str]]:
    """Forecast, truth, the way to stations and where paths are, from options or a configuration of `run`."""
    from ._config import load
    from ._sections import SourceSettings, StationSettings

    sections = _sources(arguments)
    if arguments.path[0].endswith(".toml"):
        if len(arguments.path) > 1 or arguments.stations is not None or any(sections.values()):
            raise ValueError("a configuration names forecast and truth: drop the other paths and options")
        settings = load(arguments.path[0], {})
        if not isinstance(settings.forecast, SourceSettings):
            raise ValueError("doctor examines files of a forecast, and the configuration has a baseline")
        return settings.forecast, settings.truth, settings.stations, settings.path
    forecast = SourceSettings.parse({"path": arguments.path, **sections["forecast"]}, "forecast")
    if arguments.stations is not None:
        truth = StationSettings.parse({"stations": arguments.stations, **sections["truth"]})
        return forecast, truth, None, str
    if not sections["truth"].get("path"):
        raise ValueError("doctor needs a truth: --truth PATH, --stations PATH, or a configuration of run")
    return forecast, SourceSettings.parse(sections["truth"], "truth"), None, str


def _doctor_stations(
    arguments: Arguments,
    side: SourceSettings,
    section: StationSettings,
    points: PointSettings | None,
    folder: Callable[[str], str],
) -> int:
    from ._doctor_stations import doctor_stations
    from ._job import observed_variables, station_reports, surface_height

    forecast = side.open("forecast", folder).eastwards()
    variables = observed_variables(section)
    if section.channels is None:
        variables = tuple(v for v in variables if v.channel in forecast.channels) or variables
    times = np.unique(np.array([sum(key) for key in forecast.keys], "datetime64[s]"))
    orography = None
    method = arguments.interpolation if points is None else points.interpolation
    if method == "nearest_land":
        # The share of land is no part of what is examined.
        method = "nearest"
    if arguments.orography is not None:
        path, _, variable = arguments.orography.rpartition(":")
        if not path:
            raise ValueError(f"--orography needs PATH:VARIABLE, got {arguments.orography!r}")
        orography = surface_height(path, variable, forecast)
    elif points is not None and points.orography is not None:
        orography = surface_height(folder(points.orography.path), points.orography.variable, forecast)
    diagnosis = doctor_stations(
        forecast,
        station_reports(section, variables, times, folder),
        interpolation=method,
        orography=orography,
        samples=arguments.samples,
        seed=arguments.seed,
    )
    return _told(diagnosis)


def _info(arguments: Arguments) -> int:
    tables = all(Path(path).suffix == ".parquet" for path in arguments.path)
    facts = _table_facts(arguments.path) if tables else _source_facts(arguments)
    for name, value in facts.items():
        print(f"{name}: {value}")
    return FINE


def _table_facts(paths: Sequence[str]) -> dict[str, Any]:
    """Of records, or of a table of reports."""
    from ._records import holds_records

    if len(paths) == 1 and not holds_records(paths[0]):
        from ._doctor_stations import station_facts
        from ._tracks import TrackForecasts, holds_tracks

        if holds_tracks(paths[0]):
            found = TrackForecasts.from_parquet(paths[0])
            return {
                "tracks": len(found.tracks),
                "starts": _range(found.init_times),
                "lead times": _range(found.lead_times),
                "members": found.members,
            }

        return station_facts(paths[0])
    from ._scores import metric_from_dict

    records = _read(paths)
    return {
        "rows": len(records),
        "models": ", ".join(records.models),
        "channels": ", ".join(records.channels),
        "regions": ", ".join(records.regions),
        "starts": _range(records.init_times),
        "lead times": _range(records.lead_times),
        "metrics": ", ".join(n for n, d in records.metrics.items() if metric_from_dict(d)),
        **{k: v for k, v in vars(records.conventions).items() if v and isinstance(v, str)},
    }


def _source_facts(arguments: Arguments) -> dict[str, Any]:
    from ._open import open_source

    lead = None if arguments.lead_time is None else np.timedelta64(arguments.lead_time, "s")
    try:
        source = open_source(arguments.path, "forecast", lead_time=lead)
        times = {"starts": _range(source.init_times), "lead times": _range(source.lead_times)}
    except ValueError as error:
        try:
            source = open_source(arguments.path, "truth", truth=True, lead_time=lead)
        except ValueError:
            # What keeps it from being a forecast is nearer to what it is.
            raise error from None
        times = {"times": _range(source.init_times)}
    counts = {
        len(source.members(c, k)) for k in source.keys[:1] + source.keys[-1:] for c in source.channels_at(k)
    }
    return {
        "files": len({c.origin for c in source.cubes}),
        "channels": ", ".join(f"{c} [{source.units[c]}]" for c in source.channels),
        **times,
        "members": "/".join(map(str, sorted(counts))),
        "grid": source.grid_text,
    }


def _range(times: Any) -> str:
    """Count, ends and spacing of times."""
    if times.dtype.kind == "m":
        text = [f"{t / np.timedelta64(1, 'h'):g} h" for t in times]
    else:
        text = [str(t.astype("datetime64[m]")) for t in times]
    if times.size == 1:
        return text[0]
    steps = np.unique(np.diff(times))
    spacing = f"every {steps[0] / np.timedelta64(1, 'h'):g} h" if steps.size == 1 else "spacing uneven"
    return f"{times.size}, {text[0]} to {text[-1]}, {spacing}"


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "run": _run,
    "merge": _merge,
    "compare": _compare,
    "scorecard": _scorecard,
    "report": _report,
    "climatology": _climatology,
    "doctor": _doctor,
    "info": _info,
    "tracks": tracks,
    "score-tracks": score,
    "vectors": vectors,
}
