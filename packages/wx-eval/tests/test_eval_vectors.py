"""The conformance vectors: this package against them, they against their generator."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from wx_eval import _case, _cli, _vectors
from wx_eval import scores as period_scores
from wx_eval._choices import BOXES, Correction, Method, Weights
from wx_eval._evaluate import evaluate
from wx_eval._kernels import ensemble_statistics
from wx_eval._scores import KNOWN, metric_from_dict
from wx_eval._vectors import VectorCase, _Fields, _weights, suite_file, vectors

GENERATOR = Path(__file__).parent / "vectors"
CASES = {case.name: case for case in vectors()}


def numbers(case: VectorCase) -> np.ndarray:
    return np.concatenate([np.ravel(v) for v in case.expected.values()])


@pytest.mark.parametrize("name", CASES)
def test_this_package_gives_the_vectors(name: str) -> None:
    case = CASES[name]
    assert case.agreement(case.compute()) >= case.digits


@pytest.mark.parametrize("kernel", ["numba", "torch"])
def test_other_kernels_give_the_vectors(kernel: Any) -> None:
    pytest.importorskip(kernel, reason=f"the kernel {kernel!r} needs it")
    for case in vectors("score")[::8]:
        assert case.agreement(case.compute(kernel)) >= case.digits, case.name


def test_all_metrics_of_one_run_give_the_vectors() -> None:
    """Metrics with other parameters must not share a result, as two variogram scores once did elsewhere."""

    def key(case: VectorCase) -> str:
        return json.dumps({k: v for k, v in case.settings.items() if k != "metric"}, sort_keys=True)

    shared = 0
    for _, found in groupby(sorted(vectors("score"), key=key), key=key):
        group = list(found)
        first, metrics = group[0], [metric_from_dict(case.settings["metric"]) for case in group]
        land = first.given.get("land_fraction")
        records = evaluate(
            first.forecast(),
            first.truth(),
            model="vectors",
            metrics=metrics,
            regions=first.settings["regions"],
            weights=_weights(first),
            climatology=_Fields(first) if "climatology" in first.given else None,
            land_fraction=None if land is None else np.reshape(land["data"], land["shape"]),
        )
        table = period_scores(records, metrics, average=first.settings["average"])
        shared = max(shared, len(group))
        for case, metric in zip(group, metrics, strict=True):
            for label, expected in case.expected.items():
                channel, region, lead = label.split()
                hours = np.timedelta64(int(lead.removesuffix("h")), "h")
                value = table[metric.name].sel(channel=channel, region=region, lead_time=hours).values[0]
                part = replace(case, expected={label: expected})
                assert part.agreement({label: value}) >= case.digits, case.name
    assert shared > 20


def test_every_name_has_a_vector() -> None:
    metrics = {case.settings["metric"]["type"] for case in vectors("score")}
    assert metrics == {cls.__name__ for cls in KNOWN}
    assert {case.settings["kind"] for case in vectors("weights")} == set(get_args(Weights))
    assert {case.settings["method"] for case in vectors("test")} == set(get_args(Method))
    assert {case.settings["correction"] for case in vectors("correction")} == set(get_args(Correction))
    regions = {name for case in vectors("regions") for name in case.expected}
    assert regions == {name + end for name in BOXES for end in ("", "_land")}


@pytest.mark.parametrize(
    "names",
    [
        [f"ACC(kind={k}) globe t850 M=8 regions [global tropics]" for k in ("wb2", "pooled", "wmo")],
        [f"SpreadSkill(kind={k}) globe t850 M=8" for k in ("raw", "fortin", "debiased")],
        [f"RankHistogram(ties={k}) globe tp M=8" for k in ("share", "lowest")],
        [f"RMSE() crop t2m M=2 weights {k}" for k in ("cell-wb2", "cell-wbx", "equal")],
        [f"Brier(threshold=0.25, event={e}, kind=fair) globe tp M=8" for e in (">", ">=")],
        [f"Brier(threshold=0.25, event={e}, kind=fair) globe tp M=8" for e in ("<", "<=")],
        [f"PowerSpectrum(of=truth, kind={k}) sphere-between t850 M=1" for k in ("zonal", "zonal-wb2")],
        [
            f"SEEPS(channels=[tp], hours=24, kind={k}, of=members) globe tp M=8"
            for k in ("wbx", "wb2", "rodwell")
        ],
        [f"VariogramScore(p={p}, norm=sum) mesh z500 t2m M=3 weights equal" for p in (0.5, 1.0)],
        [f"day of the year {k}" for k in ("monthday", "doy")],
        [f"climatological members {k}" for k in ("monthday", "doy")],
        [f"FSS(threshold=0.25, event=>=, window=3, edge={e}) box tp M=3" for e in ("interior", "zero")],
        ["RMSE(root=each) globe t850 M=8", "RMSE(debiased=True) globe t850 M=8"],
        [f"test {m} horizon=1 T=40" for m in ("iid", "geer", "geer_wbx", "ewc", "ewc_ar1", "hg")],
    ],
    ids=lambda names: names[0],
)
def test_conventions_are_told_apart(names: list[str]) -> None:
    found = [numbers(CASES[name]) for name in names]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-6 * np.abs(one).max()


def test_land_starts_at_one_half() -> None:
    [case] = [c for c in vectors("regions") if "global_land" in c.expected]
    land = np.array(case.given["land_fraction"])
    chosen = case.expected["global_land"].astype(int)
    assert {0.5, 1.0} == set(land[chosen])
    assert 0.49 in land


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every fourth case of the suite, names of which are returned."""
    some = vectors()[::4]
    monkeypatch.setattr(_vectors, "vectors", lambda: some)
    return [case.name for case in some]


def test_a_wrong_kernel_fails(
    few: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = ensemble_statistics(*args, **kwargs)
        return replace(found, pair_sum=found.pair_sum * (1 + 1e-11))

    monkeypatch.setattr(_case, "ensemble_statistics", wrong)
    output = tmp_path / "agreement.json"
    assert _cli.main(["vectors", "--json", str(output)]) == 1
    rows = json.loads(output.read_text())["cases"]
    assert [row["name"] for row in rows] == few
    failed = [row["name"] for row in rows if not row["passed"]]
    assert failed == [name for name in few if name.startswith("CRPS(")]
    assert f"FAILED {failed[0]}" in capsys.readouterr().out


def test_a_case_that_raises_fails_alone(
    few: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no weights today")

    monkeypatch.setattr(_vectors, "cell_weights", refuse)
    assert _cli.main(["vectors"]) == 1
    text = capsys.readouterr().out
    broken = sum(name.startswith("weights ") for name in few)
    assert f"{len(few) - broken} of {len(few)} cases passed" in text
    assert text.count("ValueError: no weights today") == broken > 0


def test_the_command_passes_and_names_the_file(few: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(["vectors"]) == 0
    text = capsys.readouterr().out
    assert f"{len(few)} of {len(few)} cases passed" in text
    assert str(suite_file()) in text


def test_agreement_counts_digits() -> None:
    case = replace(CASES["correction none"], expected={"a": np.array(2.0), "b": np.array([1.0, np.nan])})
    assert case.agreement({"a": 2.0, "b": [1.0, np.nan]}) == 16
    assert case.agreement({"a": 2.0002, "b": [1.0, np.nan]}) == pytest.approx(4)
    assert case.agreement({"a": 2.0, "b": [1.0, 1.0]}) == 0
    assert case.agreement({"a": 2.0, "b": [np.nan, np.nan]}) == 0
    assert case.agreement({"a": 2.0, "b": [1.0]}) == 0
    assert case.agreement({"a": 2.0}) == 0
    assert case.agreement({"a": np.inf, "b": [1.0, np.nan]}) == 0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        vectors("scores")
    with pytest.raises(ValueError, match="kernel must be one of"):
        CASES["Spread() globe t850 M=8 regions [global tropics]"].compute("cuda")  # type: ignore[arg-type]


def test_the_file_is_small_plain_json() -> None:
    text = suite_file().read_text()
    assert len(text) < 150_000
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["version"] == 1


def test_the_generator_gives_the_file() -> None:
    command = [sys.executable, "-E", str(GENERATOR / "make.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_generator_imports_the_standard_library_alone() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(GENERATOR)!r}); import make; "
        "ours = {p.stem for p in make.Path(make.__file__).parent.glob('*.py')} | sys.stdlib_module_names; "
        "print(sorted({m.split('.')[0] for m in sys.modules} - ours - {'__main__'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
