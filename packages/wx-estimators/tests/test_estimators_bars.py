"""Small networks must reach the acceptance bars on two problems with known laws (T14)."""

import pytest

from .known_laws import BARS, PROBLEMS, estimators, missed, scores, train

# One row of every column of the bars; the slow tier has all rows, on three seeds.
QUICK = [
    *(("A", row) for row in ("SI", "FM", "EDM", "CRPS + differences", "regression")),
    *(("B", row) for row in ("SI", "FM", "EDM", "CRPS alone")),
]
ALL = [(name, row) for name, problem in PROBLEMS.items() for row in estimators(problem)]
# Problem B after 7200 steps.
LONG = {"SI": 0.012, "FM": 0.012, "EDM": 0.012, "CRPS alone": 0.03}


def found(problem, row, seed, **settings):
    estimator = estimators(problem)[row]
    return scores(problem, estimator, train(problem, estimator, seed, **settings), seed)


def check(name, row, seed):
    problem = PROBLEMS[name]
    assert missed(problem, row, found(problem, row, seed)) == []


def test_every_row_has_a_bar():
    assert {key for key in ALL if key[1] != "regression"} == set(BARS)


@pytest.mark.parametrize(("name", "row"), QUICK)
def test_bars(name, row):
    check(name, row, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row", "seed"),
    [(*key, seed) for key in ALL for seed in (1, 2, 3) if seed > 1 or key not in QUICK],
)
def test_bars_on_every_seed(name, row, seed):
    check(name, row, seed)


@pytest.mark.slow
@pytest.mark.parametrize("row", LONG)
def test_longer_training_closes_the_gap(row):
    got = found(PROBLEMS["B"], row, 1, steps=7200)
    assert got["crps ratio"] <= 1.002
    assert got["outside 3 sd"] <= LONG[row]
