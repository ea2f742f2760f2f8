"""The page: well-formed, self-contained, escaped and a function of its inputs."""

import base64
import io
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import wx_eval
from wx_eval import Chunk, Map, Records, Report, compare, evaluate, scores
from wx_eval._card import _short, _size, class_colour, class_ink, metric_title, panels, scorecard, unit_text
from wx_eval._charts import nice_ticks
from wx_eval._compare import Comparison
from wx_eval._event_scores import AUC, EventFrequencies
from wx_eval._figure import Disc, Figure, Lines, Rect, Text, arranged, contrast, fitted, hatching, text_width
from wx_eval._intervals import score_intervals
from wx_eval._presets import PRESETS
from wx_eval._raster import _magnify, contour, data_uri, earth_coasts, palette
from wx_eval._spectra import Coherence, PowerSpectrum, SpectralRatio

METRICS = (
    *wx_eval.STANDARD_METRICS,
    wx_eval.RankHistogram(),
    PowerSpectrum(),
    PowerSpectrum(of="truth"),
    SpectralRatio(),
    Coherence(),
    EventFrequencies({"t850": 1.0}),
)
LAT, LON = np.linspace(90, -90, 9), np.arange(0, 360, 22.5)
START = np.datetime64("2021-01-01T00", "ns")
DAY = np.timedelta64(1, "D")
VOID = {"meta", "br", "img", "link"}
CLOSED_BY = {"td": ("td",), "tr": ("td", "tr"), "tbody": ("td", "tr")}


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
        self.close(tag)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.references += [v or "" for k, v in attrs if k in ("href", "src")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def close(self, tag: str) -> None:
        """Elements that end where another one starts or their parent ends."""
        for ended in CLOSED_BY.get(tag, ()):
            if self.stack and self.stack[-1] == ended:
                self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self.close(tag)
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def records(
    model: str, error: float, members: int = 6, metrics: tuple = METRICS, truth_models: tuple = ()
) -> Records:
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
    found = evaluate(chunks, truth, model=model, metrics=metrics)
    return Records(found.table, replace(found.conventions, truth_models=truth_models), found.metrics)


@pytest.fixture(scope="module")
def pair() -> tuple[Records, Records]:
    return records("a <new>", 0.8), records("b", 1.0)


@pytest.fixture(scope="module")
def card(pair: tuple[Records, Records]) -> Comparison:
    return compare(*pair, ["crps_fair", "spread_skill_debiased"])


@pytest.fixture(scope="module")
def page(pair: tuple[Records, Records]) -> str:
    a, b = pair
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
    assert parsed.counts["script"] == parsed.counts["link"] == 1
    assert '<link rel="icon" href="data:,">' in page
    assert all(r.startswith(("#s", "data:,", "data:image/png;base64,")) for r in parsed.references)
    assert not re.search(r"url\(|@import|fetch|XMLHttp", page)
    assert "nan" not in page.split("<script>")[0].lower()


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
        "effective starts",
        "inflation of standard errors",
        "crps_fair: fair",
        "Bias of b, forecast minus truth",
        "8 cells have lead times below 2 days",
        "24 of 24 cells have fewer than 30 effective starts",
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


def test_a_cell_shows_its_size_sign_significance_and_scores(card: Comparison) -> None:
    figure = scorecard(card)
    boxes = [m for m in figure.marks if isinstance(m, Rect) and m.title]
    assert len(boxes) == len(card.cells)
    for cell in card.cells:
        start = f"{cell.channel}, {cell.region}, {cell.lead_time // DAY} d: {metric_title(cell.metric)}\n"
        [box] = [b for b in boxes if b.title.startswith(start)]
        unit = {"t850": "K", "tp": "m"}[cell.channel] if cell.metric == "crps_fair" else ""
        assert f"b {cell.score_b:.4g} {unit}".strip() in box.title
        inside = [m for m in figure.marks if isinstance(m, Lines | Text) and _within(m, box)]
        [text] = [m for m in inside if isinstance(m, Text)]
        per_cent = 100 * (abs(cell.difference) / abs(_loss(cell)))
        assert float(text.text) == pytest.approx(per_cent, abs=0.05 if per_cent < 9.95 else 0.5)
        assert any(isinstance(m, Lines) and len(m.runs) > 2 for m in inside)  # 9 starts: hatched
        triangles = [m for m in inside if isinstance(m, Lines) and len(m.runs) == 1]
        assert len(triangles) == (cell.difference != 0)
        if not triangles:
            continue
        [triangle] = triangles
        assert bool(triangle.fill) == cell.significant
        tip, *base = triangle.runs[0][2:3], *triangle.runs[0][:2]
        assert (tip[0][1] < base[0][1]) == (cell.difference < 0)
        assert box.fill == class_colour(-per_cent if cell.difference > 0 else per_cent)
    # The ratio of spread and skill of an error that is only scaled is the same but for rounding.
    assert {cell.metric for cell in card.cells if cell.difference == 0} == {"spread_skill_debiased"}


def _within(mark: Lines | Text, box: Rect) -> bool:
    points = [(mark.x, mark.y)] if isinstance(mark, Text) else [p for run in mark.runs for p in run]
    return bool(points) and all(
        box.x - 0.1 <= x <= box.x + box.width + 0.1 and box.y - 0.1 <= y <= box.y + box.height + 0.1
        for x, y in points
    )


def _loss(cell: object) -> float:
    """Loss of the baseline, from its score."""
    return abs(cell.score_b - 1) if "spread_skill" in cell.metric else cell.score_b  # type: ignore[attr-defined]


def test_only_doubtful_and_untested_cells_are_hatched(card: Comparison) -> None:
    def hatched(**changes: object) -> int:
        cells = tuple(replace(cell, **{"n": 99, "n_effective": 99.0, **changes}) for cell in card.cells)
        marks = scorecard(replace(card, cells=cells)).marks
        return sum(isinstance(m, Lines) and not m.fill and len(m.runs) > 2 for m in marks)

    key = hatched()
    assert hatched(n=29) == key + len(card.cells)
    assert hatched(n_effective=29.9) == key + len(card.cells)
    assert hatched(notes=("own analysis",)) == key + len(card.cells)
    assert hatched(p_value=np.nan) == key + len(card.cells)


def test_more_is_better_where_the_goal_is_high(pair: tuple[Records, Records]) -> None:
    c = compare(*pair, [AUC({"t850": 1.0})], channels=["t850"], regions=["global"])
    assert all(cell.score_a > cell.score_b for cell in c.cells)
    boxes = [m for m in scorecard(c).marks if isinstance(m, Rect) and m.title]
    for cell, box in zip(c.cells, boxes, strict=True):
        assert "% better" in box.title
        assert box.fill == class_colour(100 * (cell.score_a / cell.score_b - 1))


def test_the_truth_of_a_model_is_named_and_its_early_cells_hatched() -> None:
    own = (records("a", 0.8, truth_models=("a",)), records("b", 1.0, truth_models=("a",)))
    page = Report("t").scorecard("c", compare(*own)).html()
    assert "The truth is the analysis of a, which favours it in the 8 cells" in page


def test_hatching_is_diagonal_and_stays_inside() -> None:
    lines = np.array(hatching(3, 7, 20, 12, 4))
    assert len(lines) == 7
    assert (lines >= [3, 7]).all()
    assert (lines <= [23, 19]).all()
    slope = lines[:, 1] - lines[:, 0]
    np.testing.assert_allclose(slope[:, 0], -slope[:, 1])


def test_every_number_on_a_card_can_be_read() -> None:
    for per_cent in (0, 1.5, 3, 7, 15, 35, 75, -1.5, -3, -7, -15, -35, -75):
        assert contrast(class_ink(per_cent), class_colour(per_cent)) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "channel", "unit"),
    [
        ("channel", "K", "K"),
        ("square", "K", "K²"),
        ("square", "m s-1", "(m s-1)²"),
        ("square m", "K", "K² m"),
        ("square", "", ""),
        ("1", "K", ""),
    ],
)
def test_units_of_metrics(kind: str, channel: str, unit: str) -> None:
    assert unit_text(kind, channel) == unit


def test_a_page_from_records_alone(pair: tuple[Records, Records]) -> None:
    both = pair[0].merge(pair[1])
    report = Report.from_records(both, baseline="b", data="s.parquet", command="wx-eval report s.parquet")
    parsed = Strict(report.html())
    for heading in (
        "a <new> against b",
        "Fair CRPS",
        "Spread and error",
        "Rank histograms",
        "Power spectra, sphere",
        "Power over that of the truth: spectral_ratio(members)",
        "Coherence with the truth: coherence(members)",
        "Reliability: t850 > 1",
        "ROC: t850 > 1",
        "Economic value: t850 > 1",
        "All 48 rows",
        "Settings",
        "Reproduce",
    ):
        assert heading in parsed.words, heading
    assert parsed.references.count("s.parquet") == 1
    assert (
        report.html()
        == Report.from_records(
            both, baseline="b", data="s.parquet", command="wx-eval report s.parquet"
        ).html()
    )
    table = scores(both)
    value = float(table["rmse"].sel(model="b", channel="tp", region="nh", lead_time=2 * DAY))
    assert f"{value:.4g}" in parsed.words


def test_a_page_of_one_model_has_no_card(pair: tuple[Records, Records]) -> None:
    words = Strict(Report.from_records(pair[1]).html()).words
    assert "Fair CRPS" in words
    assert "baseline" not in words


def test_point_forecasts_are_compared_by_what_exists_for_them() -> None:
    both = records("a", 0.8, members=1, metrics=wx_eval.STANDARD_METRICS).merge(
        records("b", 1.0, members=1, metrics=wx_eval.STANDARD_METRICS)
    )
    words = Strict(Report.from_records(both).html()).words
    assert "RMSE of the ensemble mean: b is better than a in 0 of 24 cells" in words


def test_a_model_that_cannot_be_compared_is_named(pair: tuple[Records, Records]) -> None:
    late = pair[0].select(init_time=pair[0].init_times[:1])
    table = late.table.set_column(0, "model", [["late"] * len(late)])
    both = pair[0].merge(pair[1], Records(table, late.conventions, late.metrics))
    words = Strict(Report.from_records(both, baseline="b").html()).words
    assert "No scorecard of late: " in words
    assert "a <new> against b" in words


def test_an_unknown_baseline_is_refused(pair: tuple[Records, Records]) -> None:
    with pytest.raises(ValueError, match="no model 'c' in the records"):
        Report.from_records(pair[0], baseline="c")


def test_bands_enclose_their_curves(pair: tuple[Records, Records]) -> None:
    bands = score_intervals(pair[1], ["rmse"])
    report = Report("t").curves("RMSE", scores(pair[1]), "rmse", channels=["tp"], bands=bands)
    [figure] = report.figures.values()
    [band] = [m for m in figure.marks if isinstance(m, Lines) and m.fill]
    [line] = [m for m in figure.marks if isinstance(m, Lines) and m.title]
    [polygon], [run] = band.runs, line.runs
    low, high = polygon[:3], polygon[:2:-1]
    for (x0, y0), (x, y), (x1, y1) in zip(low, run, high, strict=True):
        assert x0 == x == x1
        assert y1 < y < y0
    assert "95 % confidence intervals" in report.html()


def test_figures_are_exported_as_svg(pair: tuple[Records, Records], tmp_path: Path) -> None:
    report = Report.from_records(pair[0].merge(pair[1]))
    files = report.export(tmp_path / "svg")
    assert len(files) == len(report.figures) == len({f.name for f in files}) > 20
    for file in files:
        root = ET.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("font-family")


def test_figures_are_exported_as_png_and_pdf(card: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="PNG and PDF need the extra plot")
    figure = scorecard(card)
    content = figure.write(tmp_path / "card.png", dpi=96).read_bytes()
    assert struct.unpack(">II", content[16:24]) == (int(figure.width), int(figure.height))
    from matplotlib.image import imread

    image = imread(tmp_path / "card.png")
    for box in (m for m in figure.marks if isinstance(m, Rect) and m.title):
        shade = [int(box.fill[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        # Free of text, triangle and hatching: the upper left corner.
        np.testing.assert_allclose(image[round(box.y) + 1, round(box.x) + 1, :3], shade, atol=0.02)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_the_same_figure_is_the_same_file(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="PNG and PDF need the extra plot")
    marks = (
        Rect(1, 1, 8, 8, "#123456"),
        Text(2, 9, "a $b$ <c>"),
        Lines([[(0, 0), (9, 9)]], "#000000", dash="4 3"),
    )
    files = [Figure(60, 20, marks).write(tmp_path / f"{k}.{kind}").read_bytes() for k in range(2)]
    assert files[0] == files[1]
    assert b"CreationDate" not in files[0]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as \.svg, \.png or \.pdf, got"):
        Figure(1, 1, ()).write(tmp_path / "x.jpeg")


def test_figures_are_arranged_in_rows() -> None:
    tile = Figure(100, 40, (Text(1, 2, "x"),))
    whole = arranged([tile, tile, tile], 250, gap=10)
    assert (whole.width, whole.height) == (250, 90)
    assert [(m.x, m.y) for m in whole.marks] == [(1, 2), (111, 2), (1, 52)]  # type: ignore[union-attr]


def test_text_is_shortened_to_its_room() -> None:
    assert fitted("short", 100) == "short"
    short = fitted("a rather long name of a model", 80)
    assert short.endswith("…")
    assert text_width(short) <= 80


def test_coasts_of_the_earth_are_where_they_are() -> None:
    points = np.concatenate(earth_coasts())
    assert np.abs(points[:, 0]).max() == 180
    for lon, lat in ((20.0, -34.8), (-5.4, 35.9), (18.4, -34.1), (-68.0, -54.9), (142.5, -10.8)):
        assert np.hypot(points[:, 0] - lon, points[:, 1] - lat).min() < 1.0
    # Nothing in the middle of the Pacific, and no line across the map.
    assert np.hypot(points[:, 0] + 130, points[:, 1] + 30).min() > 10
    assert max(np.abs(np.diff(line[:, 0])).max() for line in earth_coasts()) < 180


def test_colours_follow_sign_and_size() -> None:
    assert class_colour(0.5) == class_colour(-0.99)
    steps = [class_colour(-v) for v in (0, 1, 2, 5, 10, 20, 50)]
    assert len(set(steps)) == 7
    for per_cent in (1, 3, 7, 15, 35, 75):
        better, worse = (int(class_colour(sign * per_cent)[1:], 16) for sign in (1, -1))
        assert better & 255 > better >> 16, "blue"
        assert worse & 255 < worse >> 16, "orange"


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


# What a scorecard that can be trusted has to show, each with where it is looked for.
SHOWN = {
    "models": r"<dt>models</dt><dd>a against ens</dd>",
    "truth": r"<dt>truth</dt><dd>analysis</dd>",
    "period and spacing of starts": r"2021-01-01T00 to 2021-02-09T00, spacing 24 h",
    "starts paired and dropped": r"<dt>starts paired</dt><dd>38 per cell, at most 2 dropped</dd>",
    "members of each": r"<dt>members</dt><dd>6 against 4</dd>",
    "estimator": r"crps_fair: fair",
    "weights": r"<dt>weights</dt><dd>cell</dd>",
    "grid": r"<dt>grid</dt><dd>9 x 16 \w+</dd>",
    "regridding": r"<dt>regridding</dt><dd>a: none; ens: conservative to 9x16</dd>",
    "preset": r"<dt>preset</dt><dd>atlas:\w{8}</dd>",
    "hash of the conventions": r"<dt>conventions</dt><dd>\w{16}</dd>",
    "relative difference": r"% better",
    "scores in units": r"ens itself: fair CRPS</h3>.*?>K</text>",
    "number of tests": r"<dt>number of tests</dt><dd>\d+ on this card, \d+ on all 2 cards</dd>",
    "expected false positives": r"<dt>expected false positives</dt><dd>[\d.]+ before the correction",
    "tests of the page": r"\d+ tests on 2 cards: if no model differed from the baseline, about [\d.]+ would",
    "effective starts": r"<dt>effective starts</dt><dd>median \d+",
    "inflation": r"<dt>inflation of standard errors</dt><dd>median",
    "own analysis": r"The truth is the analysis of ens, which favours it in the \d+ cells",
    "key of the hatching": r"fewer than 30 effective starts, or own analysis",
    "key of what was not tested": r">not tested<",
    "key of the significance": r">not significant<",
    "key of a lenient test": r"significant by this test, not by the default one",
    "key of the size": r"size of the difference",
    "edges of the colours": r"50</text>.*?20</text>.*?10</text>.*?5</text>.*?2</text>.*?1</text>",
    "sound result beside a plain test": r"<dt>by the default test</dt><dd>significantly better in \d+",
    "bias of the baseline": r"Bias of ens, forecast minus truth",
    "records": r'<a href="a.parquet">a.parquet</a>, <a href="ens.parquet">ens.parquet</a>',
    "command": r"<dt>made by</dt><dd><code>wx-eval report a.parquet ens.parquet</code>",
    "settings: truth": r"<th>the truth is the analysis of</th><td>ens</td>",
    "settings: missing truth": r"<th>missing truth</th><td>\d+ of \d+ rows have none and count nowhere",
    "settings: interpolation": r"<th>interpolation</th><td>none",
    "settings: regridding": r"<th>regridding</th><td>a: none; c: none; ens: conservative to 9x16</td>",
    "settings: climatology": r"<th>climatology</th><td>none</td>",
    "settings: regions": r"global \(mask \w{12}\)",
    "settings: preset": r"<th>source of the preset</th><td>ATLAS",
    "settings: published": r"<th>published: period</th><td>2020 \(not compared with the text\)</td>",
}


def run_of(model: str, error: float, members: int, dropped: int, **kept: object) -> Records:
    """As of `wx-eval run` with preset atlas."""
    rng = np.random.default_rng(0)
    times = START + DAY * np.arange(44)
    coords = {"time": times, "channel": ["t850"], "latitude": LAT, "longitude": LON}
    values = rng.standard_normal((44, 1, 9, 16))
    truth = xr.DataArray(values, coords, tuple(coords), attrs={"units": ["K"]})

    def chunk(i: int, lead: int) -> Chunk:
        noise = np.random.default_rng([i, lead, members]).standard_normal((members + 1, 1, 9, 16))
        away = error * (noise[:1] + noise[1:])
        return Chunk(
            init_time=times[i], lead_time=lead * DAY, channels=("t850",), values=values[i + lead] + away
        )

    found = PRESETS["atlas"].evaluate(
        [chunk(i, lead) for i in range(dropped, 40) for lead in (1, 3)],
        truth,
        model=model,
        metrics=[*PRESETS["atlas"].metrics, wx_eval.Bias()],
        truth_models=["ens"],
        truth_name="analysis",
    )
    return replace(found, runs={model: [{"forecast": f"{model}.nc", "truth": "t.nc", **kept}]})


@pytest.fixture(scope="module")
def trusted() -> str:
    a, c = run_of("a", 0.9, 6, 2), run_of("c", 1.0, 5, 0)
    ens = run_of("ens", 1.0, 4, 0, regrid={"method": "conservative", "grid": "9x16"}, missing_truth="drop")
    return Report.from_records(
        a.merge(c, ens),
        baseline="ens",
        data=["a.parquet", "ens.parquet"],
        command="wx-eval report a.parquet ens.parquet",
    ).html()


@pytest.mark.parametrize("item", SHOWN)
def test_the_page_shows_what_a_scorecard_needs_to_be_trusted(item: str, trusted: str) -> None:
    assert re.search(SHOWN[item], trusted, re.DOTALL), item


def test_the_policy_on_missing_truth_is_that_of_every_run(trusted: str) -> None:
    assert "policy of the runs: drop, error" in trusted


def test_points_without_truth_are_counted() -> None:
    a = records("a", 1.0, metrics=(wx_eval.RMSE(),))
    n = a.table["n"].to_numpy()
    absent = np.where(np.arange(len(n)) == 4, n[4] // 3, 0)
    names = a.table.column_names
    table = a.table.set_column(names.index("n_missing"), a.table.schema.field("n_missing"), [absent.tolist()])
    words = Strict(Report.from_records(replace(a, table=table)).html()).words
    share = 100 * absent[4] / (n[4] + absent[4])
    assert f"1 rows lack it at some points, at most {share:.3g} %" in words


def test_cells_that_only_the_test_of_the_card_finds_are_marked(card: Comparison) -> None:
    def flawed(**changes: object) -> int:
        comparison = replace(card, method="iid", cells=tuple(replace(c, **changes) for c in card.cells))
        return sum(isinstance(m, Lines) and m.width == 1.8 for m in scorecard(comparison).marks)

    key = flawed(significant=True, robust=True)
    assert key == flawed(significant=False, robust=False) == 2
    assert flawed(significant=True, robust=False) == key + len(card.cells)
    by_default = replace(card, cells=tuple(replace(c, significant=True, robust=False) for c in card.cells))
    assert by_default.by_default
    assert not any(isinstance(m, Lines) and m.width == 1.8 for m in scorecard(by_default).marks)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("crps_fair", "fair CRPS"),
        ("brier_fair(>quantile(0.999))", "fair Brier score, above quantile 0.999"),
        ("brier_biased(<=[t2m=280.0])", "Brier score, at or below [t2m=280.0]"),
        ("rev(<0.5, cost_loss=0.01, decision=best)", "economic value at cost / loss 0.01, below 0.5"),
        (
            "rev(<0.5, cost_loss=0.1, decision=0.3)",
            "economic value at cost / loss 0.1 by decision 0.3, below 0.5",
        ),
        ("auc(>=3.0)", "area under the ROC curve, at or above 3.0"),
        ("fss(>1.0, 3 points periodic)", "fss(>1.0, 3 points periodic)"),
        ("mine(>1)", "mine(>1)"),
    ],
)
def test_titles_of_metrics(name: str, title: str) -> None:
    assert metric_title(name) == title


def test_scores_of_several_thresholds_share_a_chart() -> None:
    metrics = tuple(wx_eval.Brier(level, event) for event in (">", "<") for level in (0.5, 1.0, 1.5))
    report = Report.from_records(records("a", 1.0, metrics=metrics))
    words = Strict(report.html()).words
    for heading in ("Fair Brier score, above thresholds", "Fair Brier score, below thresholds"):
        assert heading in words
    curves = [f for n, f in report.figures.items() if "above-thresholds-t850" in n]
    assert len(curves) == 1
    assert sum(isinstance(m, Lines) and bool(m.title) for m in curves[0].marks) == 3


def test_records_of_an_unknown_preset_say_so(pair: tuple[Records, Records]) -> None:
    other = replace(pair[1], conventions=replace(pair[1].conventions, preset="wb2:00000000"))
    assert "not of this version of wx-eval" in Report.from_records(other).html()


@pytest.mark.parametrize(
    ("per_cent", "text"),
    [(0.04, "0.0"), (-9.94, "9.9"), (9.96, "10"), (999.4, "999"), (-999.6, ">1k"), (-np.inf, ">1k")],
)
def test_a_size_fits_into_its_cell(per_cent: float, text: str) -> None:
    assert _size(per_cent) == text
    # A cell is 33 pixels wide, the largest triangle ends at 10.2 and the number 2.5 before the edge.
    assert text_width(text, 9.5, bold=True) < 33 - 2.5 - 10.2


@pytest.mark.parametrize(
    ("row", "texts", "factor"),
    [
        ([0.012, -0.034], ["1.20", "−3.40"], "10⁻²"),
        ([0.31, -0.0004, np.nan], ["0.31", "0.00", "–"], ""),
        ([99.96, 3.0], ["100", "3"], ""),
        ([9.996, 3.0], ["10.0", "3.0"], ""),
        ([9999.7], ["10.0"], "10³"),
        ([54000.0, 53000.0], ["5.40", "5.30"], "10⁴"),
        ([0.0, 0.0], ["0.00", "0.00"], ""),
    ],
)
def test_numbers_have_two_digits_five_characters_and_no_negative_zero(
    row: list[float], texts: list[str], factor: str
) -> None:
    got, power = _short(row)
    assert (got, power) == (texts, factor)
    assert max(map(len, got)) <= 5


def test_a_perfect_baseline_is_drawn_as_worse_and_not_as_untested(card: Comparison) -> None:
    [first, *rest] = card.cells
    lost = replace(first, skill=-np.inf, difference=1.0, significant=True, p_value=0.0, p_adjusted=0.0)
    figure = scorecard(replace(card, cells=(lost, *rest)))
    [box] = [m for m in figure.marks if isinstance(m, Rect) and "p < 1e-6, corrected < 1e-6" in m.title]
    assert box.fill == class_colour(-1000)
    assert sum(isinstance(m, Text) and m.text == ">1k" for m in figure.marks) == 1


def test_models_are_told_apart_without_colour(pair: tuple[Records, Records]) -> None:
    a, b = pair
    table = scores(a.merge(b))
    figure = next(iter(Report("t").curves("c", table, "crps_fair").figures.values()))

    def shapes(found: Figure) -> list[tuple[str, int]]:
        """Colour and number of corners of every marker."""
        discs = [(m.fill, 0) for m in found.marks if isinstance(m, Disc)]
        return discs + [
            (m.fill, len(r)) for m in found.marks if isinstance(m, Lines) and m.fill for r in m.runs
        ]

    # One shape goes with each colour, in the key as on the lines; a model alone needs none.
    assert {corners for _, corners in shapes(figure)} == {0, 4}
    assert len(set(shapes(figure))) == 2 < len(shapes(figure))
    assert not shapes(next(iter(Report("t").curves("c", scores(a), "crps_fair").figures.values())))


def test_numbers_of_the_baseline_stand_once_on_a_page(pair: tuple[Records, Records]) -> None:
    a, b = pair
    other = records("c", 0.9)
    page = Report.from_records(a.merge(b, other), baseline="b").html()
    assert page.count("b itself: fair CRPS</h3>") == 1
    assert page.count("Scores and bias of b: as in the section &#x27;a &lt;new&gt; against b&#x27;.") == 1


def test_marks_of_one_style_share_their_markup_and_nothing_moves() -> None:
    lines = [Lines([[(k, 0.0), (k, 5.0)]], "#112233", 0.8) for k in range(3)]
    titled = Lines([[(9.0, 0.0), (9.0, 5.0)]], "#112233", 0.8, title="t")
    areas = [Lines([[(0, 0), (5, 0), (5, 5)]], fill="#112233", opacity=0.2)] * 2
    words = [Text(k, 2, f"<{k}>", "end", 9.5) for k in range(3)] + [Text(7, 2, "bold", bold=True)]
    svg = Figure(10, 10, (*lines, titled, *areas, *words)).svg()
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    paths = root.findall(f"{space}path")
    assert [p.get("d") for p in paths[:2]] == ["M0 0L0 5M1 0L1 5M2 0L2 5", "M9 0L9 5"]
    assert len(paths) == 4
    [group] = root.findall(f"{space}g")
    assert (group.get("text-anchor"), group.get("font-size")) == ("end", "9.5")
    assert [t.text for t in group] == ["<0>", "<1>", "<2>"]
    [single] = root.findall(f"{space}text")
    assert (single.text, single.get("font-weight")) == ("bold", "600")


def test_numbers_in_tables_are_right_aligned_and_infinity_has_its_sign() -> None:
    rows = [
        {"name": "a", "x": 1.5, "y": -np.inf, "ok": True},
        {"name": "<b>", "x": np.nan, "y": 2, "ok": False},
    ]
    page = Report("t").table("Rows", rows).html()
    Strict(page)
    assert '<th scope="col" class="t">name</th><th scope="col">x</th>' in page
    assert '<td class="t">a<td>1.5<td>-∞<td class="t">yes' in page
    assert '<td class="t">&lt;b&gt;<td>–<td>2<td class="t">no' in page


def test_warnings_fit_the_card(pair: tuple[Records, Records]) -> None:
    drawn = compare(*pair, method="bootstrap", seed=1, resamples=50)
    page = Report("t").scorecard("c", drawn).html()
    n = drawn.n_tests
    assert f"50 resamples are few for {n} tests" in page
    assert f"That takes {20 * n} or more." in page
    assert "resamples are few" not in Report("t").scorecard("c", compare(*pair)).html()
    # Nobody's analysis is at a station.
    at_points = replace(drawn, conventions=replace(drawn.conventions, interpolation="bilinear"))
    assert "if t is the analysis" not in Report("t").scorecard("c", at_points).html()
    assert "is the analysis of one of the models" in page
    assert "is the analysis of one of the models" not in Report("t").scorecard("c", at_points).html()


def test_equal_scores_have_no_direction(card: Comparison) -> None:
    first = card.cells[0]
    assert first.difference != 0
    equal = replace(first, skill=0.0, difference=0.0, significant=False, p_value=1.0)
    figure = scorecard(replace(card, cells=(equal,)))
    [box] = [m for m in figure.marks if isinstance(m, Rect) and ", equal" in m.title]
    inside = [m for m in figure.marks if isinstance(m, Lines | Text) and _within(m, box)]
    assert [m.text for m in inside if isinstance(m, Text)] == ["0.0"]
    assert not any(isinstance(m, Lines) and len(m.runs) == 1 for m in inside)


def test_a_page_of_one_start_has_no_bands_and_claims_none() -> None:
    one = records("a", 1.0)
    first = one.init_times[:1]
    words = Strict(Report.from_records(one.select(init_time=first)).html()).words
    assert "a: 1 start, 6 members." in words
    assert "confidence intervals" not in words
    assert "confidence intervals" in Strict(Report.from_records(one).html()).words


def test_a_page_of_point_forecasts_shows_no_spread() -> None:
    both = records("a", 0.8, members=1).merge(records("b", 1.0, members=1))
    words = Strict(Report.from_records(both).html()).words
    assert "Spread and error" not in words
    assert "1 member." in words
    tests = sum(c.n_tests for c in [compare(both, both, "rmse", model_a="b", model_b="a")])
    assert f"{tests} tests on 1 card: if no model differed from the baseline, about" in words
    assert "They are corrected for their number (benjamini-hochberg)." in words


def test_a_metric_of_fewer_regions_than_others_has_fewer_panels(card: Comparison) -> None:
    # Spectra are of the globe alone.
    cells = tuple(c for c in card.cells if c.metric == "crps_fair" or c.region == "global")
    some = replace(card, cells=cells)
    regions = list(dict.fromkeys(c.region for c in cells))
    assert list(panels(some, "crps_fair")) == regions
    assert list(panels(some, "spread_skill_debiased")) == ["global"]
    assert len([m for m in scorecard(some).marks if isinstance(m, Rect) and m.title]) == len(cells)
