"""Scores of whole periods from records."""

import numpy as np
import xarray as xr

from ._records import Records


def scores(records: Records) -> xr.Dataset:
    """Scores per (model, channel, region, lead time); each start with a truth counts once.

    - crps_fair, crps_biased: mean over starts.
    - mae: mean absolute error of the ensemble mean (of the forecast itself when it has one member).
    - rmse: sqrt of the mean over starts of the squared error of the ensemble mean.
    - bias: ensemble mean minus truth.
    - spread: sqrt of the mean over starts of the variance with M - 1 in the denominator.
    - spread_skill_raw: spread / rmse; below 1 even for a perfect ensemble.
    - spread_skill_fortin: with spread^2 (M + 1) / M (Fortin et al. 2014, J. Hydrometeor. 15, 1708).
    - spread_skill_debiased: with the expected squared error of an infinite ensemble, mse - variance / M.
    - n_starts: starts that were scored; n_dropped: starts without truth; members: M (NaN when it varies).

    Whatever needs two members is NaN for a deterministic forecast. The unit of each channel is in `units`.
    """
    rows = records.to_xarray()
    scored = rows["n"] > 0
    mean = rows.where(scored).mean("init_time")
    mse, variance = mean["mse_mean"], mean["variance"]
    members = rows["members"]
    fortin = (rows["variance"] * (members + 1) / members).where(scored).mean("init_time")
    unbiased = (rows["mse_mean"] - rows["variance"] / members).where(scored).mean("init_time")
    same = members.max("init_time") == members.min("init_time")
    # A small sample can put the debiased error below zero, where the ratio does not exist.
    with np.errstate(invalid="ignore", divide="ignore"):
        data = {
            "crps_fair": mean["crps_fair"],
            "crps_biased": mean["crps_biased"],
            "mae": mean["mae_mean"],
            "rmse": np.sqrt(mse),
            "bias": mean["error_mean"],
            "spread": np.sqrt(variance),
            "spread_skill_raw": np.sqrt(variance / mse),
            "spread_skill_fortin": np.sqrt(fortin / mse),
            "spread_skill_debiased": np.sqrt(variance / unbiased),
            "n_starts": scored.sum("init_time"),
            "n_dropped": (rows["n"] == 0).sum("init_time"),
            "members": members.max("init_time").where(same),
        }
        result = xr.Dataset(data)
    units = records.conventions.units
    return result.assign_coords(units=("channel", [units.get(str(c), "") for c in result["channel"].values]))
