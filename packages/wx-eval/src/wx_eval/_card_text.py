"""What a page says of a scorecard in words, settings and rows."""

from __future__ import annotations

import numpy as np

from . import _card
from ._card import days, unit_text
from ._compare import OWN_ANALYSIS, Cell, Comparison
from ._inference import MINIMUM_STARTS


def card_summary(c: Comparison) -> str:
    """How many cells are better and worse."""
    count = c.count()
    names = _card.metrics_title(c.metrics)
    text = (
        f"{names}: {c.model_a} is better than {c.model_b} in {count['better']} of {len(c.cells)} cells "
        f"({count['better_significant']} significantly) and worse in {count['worse']} "
        f"({count['worse_significant']} significantly)."
    )
    if not c.by_default:
        better, worse = c.count_robust()
        text += (
            " By the default test, which allows for the correlation of successive starts and for the number "
            f"of tests, {better} are significantly better and {worse} worse."
        )
    return text[0].upper() + text[1:]


def card_warnings(c: Comparison) -> list[str]:
    """What a reader must know before believing the card."""
    out = []
    few = sum(map(_card.few, c.cells))
    if few:
        out.append(
            f"{few} of {len(c.cells)} cells have fewer than {MINIMUM_STARTS} effective starts (hatched): "
            "their tests are rough."
        )
    if c.spacing is None:
        out.append("Starts are unevenly spaced: corrections for serial correlation assume that they are not.")
    if c.coarse:
        out.append(
            f"{c.resamples} resamples are few for {c.n_corrected} tests: corrected for their number, a cell "
            f"that stands alone cannot become significant. That takes {c.n_corrected / c.alpha:.0f} or more."
        )
    own = [name for name in (c.model_a, c.model_b) if name in c.conventions.truth_models]
    early = sum(cell.lead_time < OWN_ANALYSIS for cell in c.cells)
    if early and own:
        out.append(
            f"The truth is the analysis of {' and '.join(own)}, which favours it in the {early} cells with "
            "lead times below 2 days (hatched)."
        )
    elif early and not c.conventions.interpolation:
        out.append(
            f"{early} cells have lead times below 2 days: if {c.conventions.truth} is the analysis of one of "
            "the models, that one is favoured there. Name it in truth_models to have these cells hatched."
        )
    return out


def card_settings(c: Comparison) -> dict[str, str]:
    """Everything a reader needs to judge or repeat a card."""
    kinds = {"crps_fair": "fair", "crps_biased": "biased"}
    effective = [cell.n_effective for cell in c.cells if np.isfinite(cell.n_effective)]
    inflation = [cell.inflation for cell in c.cells if np.isfinite(cell.inflation)]
    found = dict(c.settings())
    named = [f"{m}: {kinds[m]}" for m in c.metrics if m in kinds]
    if named:
        found["estimator"] = ", ".join(named)
    if effective:
        above = sum(cell.n_effective > cell.n for cell in c.cells)
        found["effective starts"] = f"median {np.median(effective):.0f}, at least {min(effective):.0f}" + (
            f", more than starts in {above} of the cells, whose successive differences alternate"
            if above
            else ""
        )
        found["inflation of standard errors"] = (
            f"median {np.median(inflation):.2f}, at most {max(inflation):.2f}"
        )
    few = sum(map(_card.few, c.cells))
    found[f"cells with fewer than {MINIMUM_STARTS} effective starts"] = f"{few} of {len(c.cells)}"
    return found


def cell_row(cell: Cell, c: Comparison) -> dict[str, object]:
    """All numbers of a cell by the heading of their column."""
    unit = unit_text(c.metric_units.get(cell.metric, ""), c.conventions.units.get(cell.channel, ""))
    return {
        "metric": cell.metric,
        "channel": cell.channel,
        "region": cell.region,
        "days": float(days(cell.lead_time)),
        c.model_a: cell.score_a,
        c.model_b: cell.score_b,
        "unit": unit,
        "better by %": 100 * cell.skill,
        "loss difference": cell.difference,
        "95 % low": cell.low,
        "95 % high": cell.high,
        "p": cell.p_value,
        "p corrected": cell.p_adjusted,
        "significant": cell.significant,
        "starts": cell.n,
        "dropped": cell.n_dropped,
        "effective": cell.n_effective,
        "inflation": cell.inflation,
        "p iid": cell.p_iid,
        "p Geer": cell.p_geer,
        "p EWC": cell.p_ewc,
        "p EWC AR(1)": cell.p_ewc_ar1,
        "the same corrected": cell.p_robust,
        f"bias of {c.model_a}": cell.bias_a,
        f"bias of {c.model_b}": cell.bias_b,
        "notes": ", ".join(cell.notes),
    }
