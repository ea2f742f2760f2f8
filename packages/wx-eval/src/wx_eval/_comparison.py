"""A card of tested cells with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from ._cells import Cell, hours, p_text
from ._multiplicity import Correction, benjamini_hochberg
from ._records import Conventions
from ._samples import Sample
from ._scores import Average


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Scores of model a against model b over the starts that both have, cell by cell.

    Attributes:
        model_a: name of the model under test.
        model_b: name of the baseline.
        metrics: names of what is compared.
        cells: one per metric, channel, region and lead time.
        method: of the standard error behind `p_value`.
        correction: for the number of tests.
        alpha: level of significance, after the correction.
        members_a: ensemble sizes found.
        members_b: ensemble sizes found.
        first_start: first start that entered any cell.
        last_start: last start that entered any cell.
        spacing: between starts, None when uneven.
        conventions: of both sets of records.
        n_corrected: tests that were corrected together, more than `n_tests` in one of several cards.
        n_cards: cards of which these are the tests.
        sample: which starts enter, see `compare`.
        months: of the starts, empty for all.
        lag: how much earlier b started, None for at the same time.
        average: over starts.
        resampling: of the bootstrap, "" without one.
        resamples: of the bootstrap, 0 without one.
        metric_units: `Metric.unit` by name.
        regridding: what was done to each forecast before it was scored, "" where the records do not tell.
    """

    model_a: str
    model_b: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    method: str
    correction: Correction
    alpha: float
    members_a: tuple[int, ...]
    members_b: tuple[int, ...]
    first_start: np.datetime64
    last_start: np.datetime64
    spacing: np.timedelta64 | None
    conventions: Conventions
    n_corrected: int
    sample: Sample = "each"
    months: tuple[int, ...] = ()
    lag: np.timedelta64 | None = None
    average: Average = "starts"
    resampling: str = ""
    resamples: int = 0
    metric_units: Mapping[str, str] = field(default_factory=dict)
    n_cards: int = 1
    regridding: tuple[str, str] = ("", "")

    @property
    def title(self) -> str:
        """Who is compared, and how if not by a t test."""
        return f"{self.model_a} against {self.model_b}" + (", bootstrap" if self.resampling else "")

    @property
    def by_default(self) -> bool:
        """Whether test and correction are the defaults of `compare`, to which `Cell.robust` refers."""
        return (self.method, self.correction) == ("ewc_ar1", "benjamini-hochberg")

    @property
    def n_tests(self) -> int:
        """Cells that were tested."""
        return sum(not np.isnan(cell.p_value) for cell in self.cells)

    @property
    def coarse(self) -> bool:
        """Whether the bootstrap has too few resamples for one cell of so many to become significant."""
        corrected = self.correction != "none"
        return bool(corrected and self.resamples and self.n_corrected >= self.alpha * (1 + self.resamples))

    @property
    def expected_false_positives(self) -> float:
        """Expected number of cells below alpha without a correction if the models were equal."""
        return self.alpha * self.n_tests

    @property
    def field_p_value(self) -> float:
        """P-value of no difference in any cell: the smallest after Benjamini-Hochberg (test of Simes 1986).

        Valid under positive dependence between cells, where counting significant cells is not (Wilks 2016,
        Bull. Am. Meteorol. Soc. 97, 2263). NaN without a test.
        """
        p = benjamini_hochberg([cell.p_value for cell in self.cells])
        return float(np.nanmin(p)) if self.n_tests else np.nan

    def count(self) -> dict[str, int]:
        """Cells in which a is better or worse, and in how many of them significantly."""
        better = [cell for cell in self.cells if cell.difference < 0]
        worse = [cell for cell in self.cells if cell.difference > 0]
        return {
            "cells": len(self.cells),
            "tested": self.n_tests,
            "better": len(better),
            "better_significant": sum(cell.significant for cell in better),
            "worse": len(worse),
            "worse_significant": sum(cell.significant for cell in worse),
        }

    def count_robust(self) -> tuple[int, int]:
        """Cells in which a is significantly better, and worse, by the default test and correction."""
        sure = [cell.difference for cell in self.cells if cell.robust]
        return sum(d < 0 for d in sure), sum(d > 0 for d in sure)

    def table(self) -> pa.Table:
        """One row per cell.

        n starts are paired and n_dropped left out because one model lacks a score. difference = loss_a -
        loss_b with its standard error (t distribution with df) and 95 % interval, negative if a is better.
        The loss is the score where low is good, its negative where high is, and |score - 1| or |score| where
        1 or 0 is. skill = (loss_b - loss_a) / |loss_b|, infinite where b alone is perfect. Scores that differ
        by rounding alone, 64 units in the last place, are equal. bias_a and bias_b are mean errors over the
        same starts, null where the records do not hold them. inflation is the standard error over the one for
        independent starts, n_effective = n / inflation^2, above n where successive differences alternate.
        p_iid, p_geer, p_ewc and p_ewc_ar1 come before any correction; p_value is the one of `method`,
        p_adjusted that after `correction`, p_robust the p_ewc_ar1 after the correction of Benjamini and
        Hochberg over the same tests, so that a lenient test has a sound one beside it. The notes are those of
        `paired_test` and

        - "own analysis": the truth is the analysis of a or b and the lead time below two days;
        - "near its target": a score whose best value is 0 or 1 lies within two standard errors of it, where
          the loss has a kink and the test is conservative;
        - "undefined in some resamples" of the bootstrap;
        - "not defined", "fewer than 2 pairs", "lead time beyond the sample": no test was made.

        The settings are in the schema metadata.
        """
        columns = {f.name: [getattr(cell, f.name) for cell in self.cells] for f in fields(Cell)}
        leads = np.array(columns.pop("lead_time"), "timedelta64[s]")
        notes = pa.array([", ".join(n) for n in columns.pop("notes")], pa.string())
        # What does not exist is null.
        kinds = {f.name: pa.float64() for f in fields(Cell) if f.type == "float"}
        table = pa.table({n: pa.array(c, kinds.get(n), from_pandas=True) for n, c in columns.items()})
        table = table.append_column("lead_time", pa.array(leads)).append_column("notes", notes)
        names = [f.name for f in fields(Cell)]
        return table.select(names).replace_schema_metadata({k: str(v) for k, v in self.settings().items()})

    def settings(self) -> dict[str, str]:
        """Everything a reader needs to judge or repeat the comparison."""
        paired = [cell.n for cell in self.cells]
        dropped = max((cell.n_dropped for cell in self.cells), default=0)
        spacing = "uneven" if self.spacing is None else hours(self.spacing)
        c = self.conventions
        return {
            "models": f"{self.model_a} against {self.model_b}",
            "metric": ", ".join(self.metrics),
            "truth": c.truth,
            "period of starts": f"{self.first_start} to {self.last_start}, spacing {spacing}",
            "starts paired": f"{_span(paired)} per cell, at most {dropped} dropped",
            "sample": _SAMPLES[self.sample],
            "average": f"equal weight of {self.average}" if self.average == "starts" else "weights of points",
            "members": f"{sizes_text(self.members_a)} against {sizes_text(self.members_b)}",
            "weights": c.weights,
            "grid": c.grid,
            "climatology": c.climatology or "none",
            "preset": c.preset or "none",
            "conventions": c.digest,
            "test": _TESTS[self.method],
            "number of tests": f"{self.n_tests} on this card"
            + (f", {self.n_corrected} on all {self.n_cards} cards" if self.n_cards > 1 else ""),
            "correction": f"{self.correction} over {self.n_corrected} tests at level {self.alpha:g}"
            + (", and over those of this card" if self.n_cards > 1 and self.correction != "none" else ""),
            "expected false positives": f"{self.expected_false_positives:.1f} before the correction",
            "any difference at all": f"p {p_text(self.field_p_value)} (Simes)",
            **{name: text for name, text in self._optional_settings().items() if text},
        }

    def _optional_settings(self) -> dict[str, str]:
        """What only some comparisons have to say, "" for what this one has not."""
        c, both = self.conventions, (self.model_a, self.model_b)
        better, worse = self.count_robust()
        brought = [f"{name}: {how}" for name, how in zip(both, self.regridding, strict=True) if how]
        own = " and ".join(name for name in both if name in c.truth_models)
        older = f"{self.model_b} started {hours(self.lag)} earlier, same valid time" if self.lag else ""
        sound = (
            f"significantly better in {better} and worse in {worse} cells (ewc_ar1, Benjamini-Hochberg over "
            f"the same {self.n_corrected} tests)"
        )
        return {
            "months of starts": " ".join(map(str, self.months)),
            "pairing": older,
            "own analysis": f"the truth is that of {own}: below 2 days it is favoured" * bool(own),
            "resampling": self.resampling,
            "interpolation": c.interpolation,
            "regridding": "; ".join(brought),
            "by the default test": sound * (not self.by_default),
        }


_SAMPLES: Mapping[str, str] = {
    "each": "each cell has all its pairs",
    "starts": "the same starts at all lead times",
    "valid": "the same valid times at all lead times",
}


_T = "two-sided paired t test, standard error"


_TESTS: Mapping[str, str] = {
    "iid": f"{_T} iid (independent starts)",
    "geer": f"{_T} geer (AR(2) inflation)",
    "geer_wbx": f"{_T} geer_wbx (AR(2) inflation as in WeatherBench-X)",
    "ewc": f"{_T} ewc (equal-weighted cosines)",
    "ewc_ar1": f"{_T} ewc_ar1 (equal-weighted cosines, corrected by an AR(1) spectrum)",
    "hln": "Diebold-Mariano test of Harvey, Leybourne and Newbold (hln)",
    "hg": "Diebold-Mariano test of Hering and Genton (hg)",
    "bootstrap": "two-sided stationary bootstrap of starts",
}


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def sizes_text(members: tuple[int, ...]) -> str:
    """Ensemble sizes."""
    return "/".join(map(str, members))
