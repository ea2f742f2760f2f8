"""The page in a real browser: laptop, telephone and print, without a script error or a request."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import wx_eval
from wx_eval import Chunk, Map, Records, Report, evaluate
from wx_eval._compare import Cell, Comparison
from wx_eval._event_scores import EventFrequencies
from wx_eval._records import Conventions
from wx_eval._spectra import PowerSpectrum, SpectralRatio

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: the page was NOT looked at"
)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """Chromium through two pipes, which need neither a port nor a driver."""

    def __init__(self, profile: Path) -> None:
        theirs, self._out = os.pipe()
        self._in, answers = os.pipe()
        # The protocol wants to be read on 3 and answered on 4; both may be taken here.
        script = f'exec "$0" "$@" 3<&{theirs} 4>&{answers}'
        command = ["bash", "-c", script, str(BROWSER), *QUIET, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + 60
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)  # type: ignore[no-any-return]


LAT, LON = np.linspace(84.375, -84.375, 16), np.arange(0, 360, 22.5)
CHANNELS, UNITS = ("z500", "t850", "u850", "q700"), ["m2 s-2", "K", "m s-1", "kg kg-1"]
SCALE = np.array([800.0, 3.0, 5.0, 1e-3])[:, None, None]
DAY = np.timedelta64(1, "D")
METRICS = (
    *wx_eval.STANDARD_METRICS,
    wx_eval.RankHistogram(),
    EventFrequencies({"t850": 2.0, "q700": 1e-3}),
    PowerSpectrum(),
    PowerSpectrum(of="truth"),
    SpectralRatio(),
)


def records(model: str, error: float) -> Records:
    rng = np.random.default_rng(0)
    times = np.datetime64("2021-01-01", "ns") + DAY * np.arange(44)
    coords = {"time": times, "channel": list(CHANNELS), "latitude": LAT, "longitude": LON}
    values = rng.standard_normal((44, 4, 16, 16)) * SCALE
    truth = xr.DataArray(values, coords, tuple(coords), attrs={"units": UNITS})

    def chunk(i: int, lead: int) -> Chunk:
        noise = np.random.default_rng([i, lead]).standard_normal((6, 4, 16, 16)) * SCALE
        away = error * np.sqrt(lead) / 3 * (noise[:1] + noise[1:])
        return Chunk(
            init_time=times[i], lead_time=lead * DAY, channels=CHANNELS, values=truth[i + lead].values + away
        )

    chunks = (chunk(i, lead) for i in range(16) for lead in (1, 2, 3, 7, 10))
    return evaluate(
        chunks,
        truth,
        model=model,
        metrics=METRICS,
        regions=("global", "nh", "sh", "tropics", "europe"),
        truth_name="analysis",
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    both = records("reference <1>", 1.0).merge(
        records("a model with a rather long name, longer than a panel is wide", 0.9)
    )
    report = Report.from_records(
        both, baseline="reference <1>", data="scores.parquet", command="wx-eval " * 30
    )
    field = np.add.outer(LAT, np.cos(np.radians(LON)))
    fields = [
        Map(title=name, field=field, latitude=LAT, longitude=LON, units="K", land="earth") for name in "abcd"
    ]
    report.maps("Maps", fields)
    report.table("Order", [{"name": n, "value": v} for n, v in zip("abcde", VALUES, strict=True)])
    return report.write(tmp_path_factory.mktemp("page") / "report.html")


VALUES = [0.5, float("nan"), -3.0, 20.0, 1e-5]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def test_the_page_asks_for_nothing_and_logs_nothing(browser: Browser, path: Path) -> None:
    browser.size(1280, 900)
    browser.open(path)
    browser.run("1")
    methods = [event.get("method") for event in browser.events]
    assert not {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"} & set(methods)
    asked = [
        e["params"]["request"]["url"]
        for e in browser.events
        if e.get("method") == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


# What is cut off at the edge of a drawing, and what lies on other text of the same drawing.
DRAWN = """(() => {
  const bad = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, b], k) => {
      if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1
        || b.bottom > frame.bottom + 2)
        bad.push("cut: " + text + " in " + svg.getAttribute("aria-label"));
      for (const [other, o] of boxes.slice(k + 1))
        if (Math.min(b.right, o.right) - Math.max(b.left, o.left) > 1
          && Math.min(b.bottom, o.bottom) - Math.max(b.top, o.top) > 4)
          bad.push(text + " on " + other + " in " + svg.getAttribute("aria-label"));
    });
  }
  return bad.slice(0, 20);
})()"""

# What sticks out of the window without being in a box that scrolls, and what hides part of its text.
OUTSIDE = """(() => {
  const wide = document.documentElement.clientWidth, bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("figure, .scroll, pre, details") && !e.matches("figure, .scroll, pre, details")) continue;
    const b = e.getBoundingClientRect();
    if (b.right > wide + 0.5 || b.left < -0.5) bad.push(e.tagName + ": " + e.textContent.slice(0, 40));
  }
  return bad.slice(0, 20);
})()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_and_nothing_overlaps(
    browser: Browser, path: Path, width: int, tmp_path: Path
) -> None:
    browser.size(width, 900)
    browser.open(path)
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(OUTSIDE) == []
    assert browser.run(DRAWN) == []
    wide = "[...document.querySelectorAll('figure')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
    assert browser.run(f"{wide}.map((e) => e.firstChild.getAttribute('aria-label'))") == []
    image = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    (tmp_path / f"{width}.png").write_bytes(image)
    assert struct.unpack(">II", image[16:24]) == (width, 900)
    assert len(image) > 30_000


def test_a_figure_shrinks_on_a_telephone_but_not_below_what_can_be_read(
    browser: Browser, tmp_path: Path
) -> None:
    browser.size(390, 900)
    for count in (8, 20):
        leads = np.timedelta64(1, "D") * np.arange(1, count + 1)
        cells = [cell("z500", "global", lead) for lead in leads]
        browser.open(Report("t").scorecard("Card", card(cells)).write(tmp_path / "card.html"))
        shown, drawn, room = browser.run(
            "(() => { const f = document.querySelectorAll('.panels')[0].children[0], s = f.firstChild;"
            "return [s.getBoundingClientRect().width, Number(s.getAttribute('width')),"
            "f.clientWidth]; })()"
        )
        assert shown == pytest.approx(min(drawn, max(room, 0.72 * drawn)), abs=1)
        assert browser.run("document.documentElement.scrollWidth") == 390


def test_a_card_of_twelve_by_ten_fits_three_times_on_a_laptop(browser: Browser, tmp_path: Path) -> None:
    channels = [f"z{k}00" for k in range(12)]
    leads = np.timedelta64(1, "D") * np.arange(1, 11)
    cells = [cell(channel, region, lead) for channel in channels for region in "abcdef" for lead in leads]
    browser.size(1280, 900)
    browser.open(Report("t").scorecard("Card", card(cells)).write(tmp_path / "card.html"))
    tops = browser.run(
        "[...document.querySelectorAll('.panels')[0].children].map((f) => f.getBoundingClientRect().top)"
    )
    assert len(tops) == 6
    assert len(set(tops)) == 2
    assert browser.run(DRAWN) == []


def cell(channel: str, region: str, lead: np.timedelta64) -> Cell:
    values = dict.fromkeys([f.name for f in fields(Cell) if f.type == "float"], 0.5)
    values |= {"skill": -0.087, "n_effective": 20.0, "n": 40, "n_dropped": 0, "bias_b": -123.456}
    key = {"metric": "crps_fair", "channel": channel, "region": region, "lead_time": lead}
    return Cell(**key, **values, significant=True, notes=())


def card(cells: list[Cell]) -> Comparison:
    return Comparison(
        model_a="a",
        model_b="b",
        metrics=("crps_fair",),
        cells=tuple(cells),
        method="ewc",
        correction="none",
        alpha=0.05,
        members_a=(8,),
        members_b=(8,),
        first_start=np.datetime64("2020-01-01"),
        last_start=np.datetime64("2020-02-01"),
        spacing=np.timedelta64(1, "D"),
        conventions=Conventions(truth="t", weights="cell", grid="g"),
        n_corrected=len(cells),
    )


CONTRAST = """(() => {
  const light = (c) => {
    const p = c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2];
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== "rgba(0, 0, 0, 0)") return c;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = 21;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || e.closest("svg, script")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
})()"""


def test_text_stands_out(browser: Browser, path: Path) -> None:
    browser.size(1280, 900)
    browser.open(path)
    assert 4.5 <= browser.run(CONTRAST) < 21


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_round(browser: Browser, path: Path) -> None:
    browser.size(1280, 900)
    browser.open(path)
    table = "[...document.querySelectorAll('table.sortable')].pop()"
    names = f"[...{table}.tBodies[0].rows].map((r) => r.cells[0].textContent).join('')"
    button = f"{table}.tHead.rows[0].cells[1].querySelector('button')"
    assert browser.run(names) == "abcde"
    browser.run(f"{button}.click()")
    assert browser.run(names) == "ceadb"
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    browser.run(f"{button}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=" ", code="Space", windowsVirtualKeyCode=32, text=" "
        )
    assert browser.run(names) == "daecb"


def test_the_page_is_whole_without_script(browser: Browser, path: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path)
        assert browser.run("document.querySelectorAll('th button').length") == 0
        assert browser.run("document.querySelectorAll('section').length") >= 12
        assert browser.run("document.querySelectorAll('tbody tr').length") > 400
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_card_wider_than_paper_is_made_to_fit(browser: Browser, tmp_path: Path) -> None:
    leads = np.timedelta64(1, "D") * np.arange(1, 21)
    cells = [cell("specific humidity at 700 hPa in the band", "global", lead) for lead in leads]
    browser.size(703, 1000)
    browser.open(Report("t").scorecard("Card", card(cells)).write(tmp_path / "card.html"))
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.run("document.documentElement.scrollWidth") == 703
        assert (
            browser.run("Math.max(...[...document.querySelectorAll('svg')].map((s) => s.clientWidth))") <= 880
        )
        assert browser.run(OUTSIDE.replace("figure, .scroll, pre, details", "details")) == []
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_print_keeps_colours_and_cuts_nothing(browser: Browser, path: Path) -> None:
    browser.size(703, 1000)
    browser.open(path)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        # 703 pixels are 210 mm less two margins of 12 mm.
        assert browser.run("document.documentElement.scrollWidth") == 703
        assert browser.run(OUTSIDE) == []
        boxes = "[...document.querySelectorAll('figure, .scroll, pre')]"
        wide = f"{boxes}.filter((e) => e.scrollWidth > e.clientWidth + 1)"
        assert browser.run(f"{wide}.map((e) => e.textContent.slice(0, 60))") == []
        rect = "getComputedStyle(document.querySelector('figure rect')).printColorAdjust"
        assert browser.run(rect) == "exact"
        assert browser.run("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    pdf = base64.b64decode(
        browser.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    )
    sheets = {tuple(map(float, box)) for box in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)}
    assert len(sheets) == 1
    np.testing.assert_allclose(sheets.pop(), (595.28, 841.89), atol=1)
    assert 4 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 30
