"""What each command of `wx-data` does with its parsed arguments; it returns the exit code."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from wx_data._bench import bench
from wx_data._channels import PRESETS, channel
from wx_data._climatology import climatology
from wx_data._convert import ConversionReport, convert
from wx_data._errors import StoreError
from wx_data._export import export, to_netcdf, with_cf
from wx_data._grid import Grid
from wx_data._hdf5 import YearlyHdf5
from wx_data._opendata import ARCHIVES, OpenData, fetch_initial_state
from wx_data._plan import ConversionPlan, plan
from wx_data._protocols import Source
from wx_data._regrid import RegriddedSource
from wx_data._remote import Remote, is_url
from wx_data._repair import repair
from wx_data._rounding import rounding_bounds
from wx_data._sources import open_source
from wx_data._statistics import Statistics, compute_statistics
from wx_data._store import Store
from wx_data._synthetic import SyntheticSource
from wx_data._times import show

OK, PROBLEM, USAGE, IO = 0, 1, 2, 3
Arguments = argparse.Namespace


def run_channels(arguments: Arguments) -> int:
    if arguments.names is None:
        lines = [f"{name:10} {len(names)} channels" for name, names in PRESETS.items()]
        _print(arguments, PRESETS, lines)
        return OK
    specs = [channel(name) for name in arguments.names]
    lines = [f"{spec.name:10} {spec.units:10} {spec.long_name} ({spec.standard_name})" for spec in specs]
    _print(arguments, {spec.name: spec.attributes() for spec in specs}, lines)
    return OK


def run_inspect(arguments: Arguments) -> int:
    source = _source(arguments)
    steps, counts = np.unique(np.diff(source.times), return_counts=True)
    usual = steps[counts.argmax()] if len(steps) else np.timedelta64(0, "ns")
    gaps = [[a, b] for a, b in zip(source.times, source.times[1:], strict=False) if b - a != usual]
    latitude, longitude = source.grid.latitude, source.grid.longitude
    result = {
        "source": arguments.source,
        "training_store": isinstance(source, Store),
        "channels": list(source.channels),
        "times": len(source.times),
        "first": source.times[0],
        "last": source.times[-1],
        "step_hours": int(usual / np.timedelta64(1, "h")),
        "gaps": gaps,
        "grid": list(source.grid.shape),
        "latitude": [float(latitude.max()), float(latitude.min())],
        "longitude": [float(longitude.min()), float(longitude.max())],
        "statics": sorted(getattr(source, "statics", {})),
        "provenance": getattr(source, "provenance", getattr(source, "attributes", {})),
    }
    lines = [
        f"{arguments.source}: {'training store' if isinstance(source, Store) else 'source'}",
        f"times      {len(source.times)}, {show(source.times[0])} to {show(source.times[-1])}, "
        f"step {result['step_hours']} h, {len(gaps)} gaps",
        *(f"           gap {show(a)} to {show(b)}" for a, b in gaps[:10]),
        f"grid       {source.grid}, latitude {latitude.max():g} to "
        f"{latitude.min():g}, longitude {longitude.min():g} to {longitude.max():g}",
        f"channels   {len(source.channels)}: {', '.join(source.channels)}",
        f"statics    {', '.join(sorted(getattr(source, 'statics', {}))) or 'none'}",
    ]
    _print(arguments, result, lines)
    return OK


def run_plan(arguments: Arguments) -> int:
    source = _source(arguments)
    found = plan(source, arguments.out, **_conversion(arguments, source), sample=arguments.sample)
    _print(arguments, {**asdict(found), "fits": found.fits}, _plan_lines(found))
    return OK if found.fits else PROBLEM


def _plan_lines(found: ConversionPlan) -> list[str]:
    remote = "unknown (a local source counts none)"
    if found.requests is not None and found.read_bytes is not None:
        remote = f"{found.requests} requests, {_bytes(found.read_bytes)}"
    return [
        f"steps      {found.steps}, {show(found.first)} to {show(found.last)}; {found.done} done, "
        f"{len(found.holes)} holes",
        f"fields     {len(found.channels)} channels, {' x '.join(map(str, found.grid))}: "
        f"{_bytes(found.decoded_bytes)} decoded",
        f"to read    {remote}",
        f"on disk    {_bytes(found.disk_bytes)}; {_bytes(found.disk_free)} free"
        + ("" if found.fits else ": NOT ENOUGH"),
        f"time       {_seconds(found.seconds)} in one process, held up by {found.bottleneck}",
        f"estimated from {found.sampled} steps, which passed all checks",
    ]


def run_convert(arguments: Arguments) -> int:
    source = _source(arguments)
    report = convert(
        source,
        arguments.out,
        **_conversion(arguments, source),
        part=arguments.part,
        resume=arguments.resume,
        progress=not arguments.no_progress,
    )
    _print(arguments, {**asdict(report), "complete": report.complete}, _report_lines(report))
    return OK


def _report_lines(report: ConversionReport) -> list[str]:
    state = "complete" if report.complete else "other parts are still to come"
    lines = [
        f"{report.path}: {report.done} of {report.steps} steps, {report.written} written now, "
        f"{_bytes(report.bytes)}; {state}"
    ]
    lines += [f"hole       {show(hole)}" for hole in report.holes]
    lines += [
        f"rounded    {entry.channel}: largest error {entry.largest_error:.3g} of {entry.bound:.3g} allowed, "
        f"about {_bytes(entry.bytes_saved)} saved"
        for entry in report.rounding
    ]
    return lines


def run_stats(arguments: Arguments) -> int:
    store = Store(arguments.store)
    found = compute_statistics(
        store,
        period=arguments.period,
        leads=arguments.lead or [6],
        part=arguments.part,
        workers=arguments.workers,
        progress=not arguments.no_progress,
    )
    if arguments.part != (0, 1):
        name = f"stats-{arguments.part[0]:04d}-of-{arguments.part[1]:04d}.parquet"
        found.save(store.path / "_wx" / name)
        found = _merge_parts(store.path / "_wx", arguments.part[1]) or found
    lines = [f"{show(found.period[0])} to {show(found.period[1])}, {found.state.count} steps"]
    for place, name in enumerate(found.channels):
        spread = "".join(f"  {lead} h {m.std[place]:.4g}" for lead, m in found.residuals.items())
        lines.append(f"{name:10} mean {found.mean[place]:.6g}  std {found.std[place]:.4g}{spread}")
    _print(arguments, {**asdict(found), "period": found.period}, lines)
    return OK


def _merge_parts(folder: Path, parts: int) -> Statistics | None:
    """The statistics of all parts, saved in the store; None while parts are missing."""
    paths = [folder / f"stats-{part:04d}-of-{parts:04d}.parquet" for part in range(parts)]
    if not all(path.exists() for path in paths):
        return None
    first, *others = [Statistics.load(path) for path in paths]
    merged = first.merge(*others)
    merged.save(folder / "stats.parquet")
    for path in paths:
        path.unlink()
    return merged


def run_climatology(arguments: Arguments) -> int:
    store = Store(arguments.store)
    found = climatology(
        store,
        period=arguments.period,
        window=arguments.window,
        weights=arguments.weights,
        hours=arguments.hour,
        workers=arguments.workers,
        memory_bytes=int(arguments.memory * 1e9),
        progress=not arguments.no_progress,
    )
    about = json.loads(found.attrs["wx_climatology"])
    result = {"store": store.path, "sizes": dict(found.sizes), **about}
    sizes = ", ".join(f"{name} {size}" for name, size in found.sizes.items())
    _print(arguments, result, [f"{store.path}: climatology of {' to '.join(about['period'])} ({sizes})"])
    return OK


def run_verify(arguments: Arguments) -> int:
    store = Store(arguments.store, verify=None)
    level: Literal["checksum", "sizes"] = "checksum" if arguments.checksum else "sizes"
    found = store.verify(level, workers=arguments.workers, progress=not arguments.no_progress)
    lines = [f"{store.path}: {found.steps} steps, {len(found.failures)} damaged ({level})"]
    lines += [str(failure) for failure in found.failures]
    if found.failures:
        lines.append(f"wx-data repair {store.path} SOURCE writes them anew")
    _print(arguments, {**asdict(found), "ok": found.ok}, lines)
    return OK if found.ok else PROBLEM


def run_repair(arguments: Arguments) -> int:
    store = Store(arguments.store, verify=None)
    arguments.channels = arguments.channels or store.channels
    found = repair(
        store,
        _source(arguments),
        level="sizes" if arguments.sizes else "checksum",
        changed="keep" if arguments.accept_changes else "error",
        progress=not arguments.no_progress,
    )
    lines = [f"{store.path}: {len(found.repaired)} steps written anew, {len(found.changed)} with new data"]
    lines += [str(failure) for failure in found.repaired]
    _print(arguments, found, lines)
    return OK


def run_export(arguments: Arguments) -> int:
    path = export(
        Store(arguments.store),
        arguments.out,
        channels=arguments.channels,
        period=arguments.period,
        kind=arguments.format,
        progress=not arguments.no_progress,
    )
    _print(arguments, {"path": path}, [f"{path} written"])
    return OK


def run_synth(arguments: Arguments) -> int:
    period = (arguments.start, arguments.stop)
    source = SyntheticSource(arguments.channels, arguments.grid, period, arguments.step, arguments.seed)
    report = convert(
        source,
        arguments.out,
        nan={"sst": "nearest"} if "sst" in arguments.channels else None,
        workers=arguments.workers,
        progress=not arguments.no_progress,
    )
    _print(arguments, {**asdict(report), "complete": report.complete}, _report_lines(report))
    return OK


def run_bench(arguments: Arguments) -> int:
    found = bench(Store(arguments.store), steps=arguments.steps, workers=arguments.workers)
    lines = [
        f"{found.steps} steps of {found.megabytes:.1f} MB decoded, {found.ratio:.2f} times their stored size",
        *(
            f"{name:22} {speed:8.0f} MB/s  {speed / found.memcpy:6.1%} of memcpy"
            for name, speed in (
                ("memcpy", found.memcpy),
                ("files", found.files),
                ("files and checksum", found.checksum),
                ("decoded, 1 thread", found.one_thread),
                (f"decoded, {found.workers} threads", found.threads),
            )
        ),
        f"held up by {found.bottleneck}",
    ]
    _print(arguments, {**asdict(found), "bottleneck": found.bottleneck}, lines)
    return OK


def run_fetch_init(arguments: Arguments) -> int:
    out = Path(arguments.out)
    if out.exists():
        raise StoreError(f"{out} exists; delete it or choose another name")
    if arguments.source in ARCHIVES:
        state = _fetch_analysis(arguments)
        grid = arguments.grid or Grid(state["latitude"].values, state["longitude"].values)
    else:
        source = _source(arguments)
        state, grid = fetch_initial_state(arguments.time, arguments.channels, source), source.grid
    state.attrs = {name: v if isinstance(v, str) else json.dumps(v) for name, v in state.attrs.items()}
    to_netcdf(with_cf(state.to_dataset(name="state"), grid), out)
    result = {"path": out, "time": arguments.time, "sizes": dict(state.sizes)}
    _print(arguments, result, [f"{out}: {arguments.time}, {state.sizes['channel']} channels"])
    return OK


def _fetch_analysis(arguments: Arguments) -> xr.DataArray:
    """From an operational centre, of which there is nothing to choose."""
    given = {
        "--kind": arguments.kind != "auto",
        "--member": arguments.member is not None,
        "--forecast-lead": arguments.forecast_lead is not None,
        "--hdf5": arguments.hdf5 is not None,
        "--era5t": arguments.era5t,
        "--signed": arguments.signed,
    }
    wrong = [option for option, is_given in given.items() if is_given]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} would be ignored: {arguments.source} has one analysis")
    return fetch_initial_state(
        arguments.time,
        arguments.channels,
        OpenData(arguments.source, root=arguments.endpoint or ""),
        grid=arguments.grid,
        method=arguments.method,
        cache=arguments.cache,
        fill=dict(arguments.fill or []),
        derive=dict(arguments.derive or []),
    )


def _source(arguments: Arguments) -> Source:
    """The source of the command line: a training store, or anything that `open_source` takes."""
    data, channels = arguments.source, arguments.channels
    if not is_url(data) and not Path(data).exists():
        raise FileNotFoundError(f"{data} does not exist")
    source: Any
    if _is_store(data):
        source = Store(data)
    else:
        remote = Remote(anonymous=not arguments.signed, endpoint=arguments.endpoint, cache=arguments.cache)
        source = open_source(
            data,
            arguments.kind,
            channels=channels,
            member=arguments.member,
            lead=arguments.forecast_lead,
            fill=dict(arguments.fill or []),
            derive=dict(arguments.derive or []),
            remote=remote if is_url(data) else None,
            era5t=arguments.era5t,
            hdf5=YearlyHdf5.from_json(arguments.hdf5) if arguments.hdf5 else None,
        )
    if arguments.grid is not None and arguments.grid != source.grid:
        source = RegriddedSource(source, arguments.grid, arguments.method)
    found: Source = source
    return found


def _is_store(data: str) -> bool:
    path = Path(data) / "zarr.json"
    if is_url(data) or not path.exists():
        return False
    return "wxstore" in json.loads(path.read_text()).get("attributes", {})


def _conversion(arguments: Arguments, source: Source) -> dict[str, Any]:
    """Arguments that `convert` and `plan` share."""
    period = None
    if arguments.start or arguments.stop:
        first, last = arguments.start or show(source.times[0]), arguments.stop or show(source.times[-1])
        period = (first, last)
    rounding = None
    if arguments.round is not None:
        if arguments.round_statistics is None:
            raise ValueError("--round needs --round-statistics: a store, or the table of `wx-data stats`")
        rounding = rounding_bounds(_statistics(arguments.round_statistics), arguments.round)
        rounding = {n: b for n, b in rounding.items() if n in (arguments.channels or source.channels)}
    return {
        "channels": arguments.channels,
        "period": period,
        "step": arguments.step,
        "missing": arguments.missing,
        "nan": dict(arguments.nan or []),
        "implausible": "keep" if arguments.keep_implausible else "error",
        "band_rows": arguments.band_rows,
        "codec": arguments.codec,
        "rounding": rounding,
        "workers": arguments.workers,
    }


def _statistics(path: str) -> Statistics:
    """Without the channels that do not change, which therefore stay exact."""
    found = Statistics.load(path)
    moving = found.residual(6).std > 0
    return found.select([name for name, moves in zip(found.channels, moving, strict=True) if moves])


def _print(arguments: Arguments, result: Any, lines: list[str]) -> None:
    if arguments.json:
        print(json.dumps(_plain(result), indent=1, allow_nan=False))
    else:
        print("\n".join(lines))


def _plain(value: Any) -> Any:
    """As JSON data."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.datetime64):
        return show(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | datetime) else value


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
