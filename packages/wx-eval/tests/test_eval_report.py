"""The page: well-formed, self-contained, escaped and a function of its inputs."""

import base64
import io
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import wx_eval
from wx_eval import Chunk, Map, Records, Report, compare, evaluate, scores
from wx_eval._charts import class_colour, nice_ticks
from wx_eval._raster import _magnify, contour, data_uri, palette

METRICS = (*wx_eval.STANDARD_METRICS, wx_eval.RankHistogram())
LAT, LON = np.linspace(90, -90, 9), np.arange(0, 360, 22.5)
START = np.datetime64("2021-01-01T00", "ns")
DAY = np.timedelta64(1, "D")
VOID = {"meta", "br", "img"}


class Strict(HTMLParser):
    """Collects tags and references and insists that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.counts: dict[str, int] = {}
        self.references: list[str] = []
        self.words = ""
        self.feed(page)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [v or "" for k, v in attrs if k in ("href", "src")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def records(model: str, error: float, members: int = 6) -> Records:
    rng = np.random.default_rng(0)
    times = START + DAY * np.arange(12)
    dims = ("time", "channel", "latitude", "longitude")
    coords = {"time": times, "channel": ["t850", "tp"], "latitude": LAT, "longitude": LON}
    truth = xr.DataArray(rng.standard_normal((12, 2, 9, 16)), coords, dims, attrs={"units": ["K", "m"]})

    def chunk(i: int, lead: int) -> Chunk:
        noise = np.random.default_rng([i, lead]).standard_normal((members + 1, 2, 9, 16))
        values = truth[i + lead].values + error * (noise[:1] + noise[1:])
        return Chunk(init_time=times[i], lead_time=lead * DAY, channels=("t850", "tp"), values=values)

    chunks = [chunk(i, lead) for i in range(9) for lead in (1, 2, 3)]
    return evaluate(chunks, truth, model=model, metrics=METRICS)


@pytest.fixture(scope="module")
def page() -> str:
    a, b = records("a <new>", 0.8), records("b", 1.0)
    both = scores(a.merge(b))
    field = np.add.outer(LAT, LON)
    return (
        Report("Forecasts & truth", "sub <title>")
        .text("Words", "A < B.", "Second.")
        .scorecard("Card", compare(a, b), "Chosen before.")
        .curves("CRPS", both, "crps_fair", channels=["tp", "t850"])
        .curves("Spread", both, ("rmse", "spread"), region="nh")
        .curves("Ratio", both, "spread_skill_fortin")
        .maps("Maps", [Map(title="m", field=field, latitude=LAT, longitude=LON, units="K", land=field > 90)])
        .spectrum("Spectrum", {"z500": {"truth": 10.0 ** -np.arange(8), "a": 9.0 ** -np.arange(8)}})
        .rank_histograms(
            "Ranks", {"a": a.rank_histogram(model="a <new>", channel="tp", region="nh", lead_time=DAY)}
        )
        .table("Settings", {"seed": 1})
        .table("Rows", [{"x": 1.23456789, "y": "<b>"}, {"x": 2}])
        .code("Again", "python -m recipe --seed 1 && echo done")
        .html()
    )


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    parsed = Strict(page)
    assert parsed.counts["section"] == 11
    assert "script" not in parsed.counts
    assert "link" not in parsed.counts
    assert all(r.startswith(("#s", "data:image/png;base64,")) for r in parsed.references)
    assert "nan" not in page.lower().replace("finance", "")


def test_text_is_escaped(page: str) -> None:
    words = Strict(page).words
    for text in ("Forecasts & truth", "sub <title>", "A < B.", "a <new>", "<b>", "&& echo done"):
        assert text in words


def test_the_card_states_what_a_reader_must_know(page: str) -> None:
    words = Strict(page).words
    for text in (
        "a <new> against b",
        "6 against 6",
        "9 per cell",
        "spacing 24 h",
        "benjamini-hochberg over 24 tests",
        "expected false positives",
        "1.2 before the correction",
        "Region nh; a <new>: 9 starts, 6 members",
    ):
        assert text in words


def test_the_same_inputs_write_the_same_bytes(tmp_path: Path) -> None:
    one, two = (Report("t").text("h", "p").write(tmp_path / f"{k}.html").read_bytes() for k in range(2))
    assert one == two
    assert one.startswith(b"<!DOCTYPE html>")


def decode(uri: str) -> np.ndarray:
    """Read an indexed PNG with the rules of the format."""
    stream = io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    while head := stream.read(8):
        length, kind = struct.unpack(">I4s", head)
        chunks[kind] = stream.read(length)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + chunks[kind])
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (rows[:, 0] == 2).all()
    index = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)[index]


def test_images_come_back_from_a_decoder() -> None:
    index = np.random.default_rng(0).integers(0, 255, (7, 5)).astype(np.uint8)
    np.testing.assert_array_equal(
        decode(data_uri(index, palette("sequential"))), palette("sequential")[index]
    )


def test_magnification_keeps_means_and_wraps_around() -> None:
    field = np.random.default_rng(1).standard_normal((4, 6))
    fine = _magnify(field, 4)
    assert fine.shape == (16, 24)
    np.testing.assert_allclose(_magnify(np.full((4, 6), 2.5), 3), 2.5)
    np.testing.assert_allclose(np.roll(fine, 4, axis=1), _magnify(np.roll(field, 1, axis=1), 4), atol=1e-14)


def test_contours_run_where_the_field_crosses() -> None:
    mask = np.zeros((5, 6))
    mask[2, 3] = 1
    segments = contour(mask)
    points = {p for s in segments for p in (s[:2], s[2:])}
    assert points == {(2.5, 2.0), (3.5, 2.0), (3.0, 1.5), (3.0, 2.5)}
    assert len(segments) == 4


def test_colours_follow_sign_and_size() -> None:
    assert class_colour(0.5) == class_colour(-0.99)
    steps = [class_colour(-v) for v in (0, 1, 2, 5, 10, 20, 50)]
    assert len(set(steps)) == 7
    assert class_colour(7) != class_colour(-7)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (-2, 2, [-2, -1, 0, 1, 2]),
        (3, 3, [3]),
        (0, 430, [0, 100, 200, 300, 400]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


def test_maps_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="field of map 'm' must have shape"):
        Map(title="m", field=np.zeros((3, 4)), latitude=LAT, longitude=LON)
