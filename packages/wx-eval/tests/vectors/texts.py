"""What each value is, in words, and where the formula comes from."""

from __future__ import annotations

_WMO = "WMO-No. 485, appendix 2.2.34"
_WB2 = "Rasp et al. (2024), J. Adv. Model. Earth Syst. 16"
_FERRO = "Ferro (2014), Q. J. R. Meteorol. Soc. 140, 1917"
_HERSBACH = "Hersbach (2000), Weather Forecast. 15, 559"
_MURPHY = (
    "Murphy (1973), J. Appl. Meteorol. 12, 595; Stephenson et al. (2008), Weather Forecast. 23, 752; "
    "Dimitriadis et al. (2021), PNAS 118"
)
_DM = "Diebold and Mariano (1995), J. Bus. Econ. Stat. 13, 253"
_SPECTRA = "Parseval: the powers add up to the mean square over the sphere"

TEXTS: dict[str, tuple[str, str]] = {
    "Bias": ("mean over starts of the area mean of ensemble mean - truth", _WMO),
    "MAE": ("mean of |ensemble mean - truth|", _WMO),
    "MSE": ("mean of (ensemble mean - truth)^2", _WMO),
    "RMSE": (
        'root of the mean over starts of the area mean of (ensemble mean - truth)^2; root "each": mean over '
        "starts of the root of the area mean; debiased: variance / M subtracted before the root",
        _WB2,
    ),
    "WindRMSE": ("as RMSE of (u error)^2 + (v error)^2 of the ensemble mean", _WB2),
    "CRPS": (
        "mean |x - y| - sum over j < k of |x_j - x_k| / (M (M - 1)) if fair, / M^2 if biased; almost fair: "
        "alpha fair + (1 - alpha) biased",
        f"{_FERRO}; Lang et al. (2024), arXiv 2412.15832",
    ),
    "TwCRPS": (
        "CRPS of members and truth clipped to [lower, upper]",
        "Allen, Ginsbourger and Ziegel (2023), SIAM ASA J. Uncertain. 11, 906",
    ),
    "CRPSPart": (
        "means of max(x - y, 0) and of max(y - x, 0) over members, and what the fair or biased CRPS "
        "subtracts from their sum",
        "terms of the CRPS",
    ),
    "HersbachTerm": (
        "sum g_i (o_i - i/M)^2 and sum g_i o_i (1 - o_i) over bins between sorted members; uncertainty: "
        "integral of F (1 - F) of the truth, F within each of the steps the parabola with its mean; "
        "resolution: uncertainty - potential",
        _HERSBACH,
    ),
    "Spread": ("root of the mean variance over members, M - 1 in the denominator", "Fortin et al. (2014)"),
    "SpreadSkill": (
        "spread / rmse; fortin: spread^2 times (M + 1) / M; debiased: squared error less variance / M",
        "Fortin et al. (2014), J. Hydrometeor. 15, 1708",
    ),
    "QuantileScore": (
        "(1{y < q} - p) (q - y), q the quantile of the members by the method of numpy of this name",
        "Hyndman and Fan (1996), Am. Stat. 50, 361; Gneiting and Raftery (2007), JASA 102, 359",
    ),
    "IntervalScore": (
        "u - l + 2 / alpha (distance of the truth outside [l, u]), l and u the quantiles alpha / 2, 1 - "
        "alpha / 2",
        "Gneiting and Raftery (2007), JASA 102, 359",
    ),
    "WIS": (
        "(|y - median| / 2 + sum alpha_k / 2 IS_k) / (K + 1/2)",
        "Bracher et al. (2021), PLOS Comput. Biol. 17, e1008618",
    ),
    "ACC": (
        "anomalies f', y' of ensemble mean and truth; wb2: mean over starts of <f'y'> / sqrt(<f'f'><y'y'>); "
        "wmo: the same less the area means of f' and y'; pooled: one ratio of means over area and starts",
        f"{_WB2}; {_WMO}",
    ),
    "Activity": ("root of the mean square of the anomaly of ensemble mean, members or truth", _WB2),
    "MSESkill": ("1 - mean (ensemble mean - truth)^2 / mean (truth - climatology)^2", _WMO),
    "Brier": (
        "(p - o)^2, p the share of members with the event; fair: less p (1 - p) / (M - 1)",
        _FERRO,
    ),
    "RPS": ("sum over thresholds of the Brier score of the event", _FERRO),
    "EventFrequencies": (
        "for k = 0..M: weight of points where k members have the event and it does not happen, and does",
        "joint distribution of forecasts and observations, Murphy and Winkler (1987)",
    ),
    "AUC": ("chance that an event has a higher p than a non-event, ties one half", "Mason and Graham (2002)"),
    "REV": (
        "(E_climate - E) / (E_climate - E_perfect), E = C/L (hits + false alarms) + misses; one acts when p "
        '>= the decision, or C/L, or at the cutoff of the largest value ("best"), always and never included',
        "Richardson (2000), Q. J. R. Meteorol. Soc. 126, 649",
    ),
    "Categorical": (
        "score of the contingency table of the period; the event is forecast where the ensemble mean has "
        "it, or at least the fraction `by` of the members",
        "Jolliffe and Stephenson (2012), chapter 3; Ferro and Stephenson (2011), Weather Forecast. 26, 699",
    ),
    "BrierTerm": (
        "reliability sum f (p - o)^2, resolution sum f (o - s)^2, uncertainty s (1 - s), and the terms "
        "within bins [b/n, (b+1)/n); miscalibration and discrimination with isotonic o instead of bins",
        _MURPHY,
    ),
    "RankHistogram": (
        "share of points at each rank; a truth equal to t members counts 1 / (t + 1) at each of its ranks, "
        'or once at the lowest of them ("lowest")',
        "Hamill (2001), Mon. Weather Rev. 129, 550",
    ),
    "RankUniformity": (
        "sum |f_k - 1/(M+1)|; chi_square: (M + 1) sum (f_k - 1/(M+1))^2",
        "Delle Monache et al. (2006), J. Geophys. Res. 111, D24307",
    ),
    "SEEPS": (
        "categories dry, light, heavy; cost of forecast and truth 1/2 [[0, 1/(1-p1), 4/(1-p1)], [1/p1, 0, "
        "3/(1-p1)], [1/p1 + 3/(2+p1), 3/(2+p1), 0]]. Dry to 0.25 mm (24 h), 0.1 mm (6 h), rodwell 0.2 mm; "
        "heavy from the threshold on, rodwell above it; wb2: no category on the dry threshold, cost 0. "
        "Points with p1 within [0.1, 0.85], wb2 (0.1, 0.85)",
        "Rodwell et al. (2010), Q. J. R. Meteorol. Soc. 136, 1344",
    ),
    "EnergyScore": (
        'mean over starts of E||x - y|| - E||x - x\'|| / 2; norm "area": root of the area-weighted mean '
        'square, "euclidean": root of the sum; fair: pairs of different members, at most `lags` apart if '
        "not 0",
        "Gneiting and Raftery (2007), section 4.3",
    ),
    "JointEnergyScore": (
        "area mean of the energy score over channels, each divided by its scale",
        "Gneiting and Raftery (2007), section 4.3",
    ),
    "VariogramScore": (
        "(|y_i - y_j|^p - E|x_i - x_j|^p)^2 over ordered pairs, or those given: their sum, or the "
        "area-weighted mean over i of that over j (areas of cells of half a step, equal on a mesh), "
        "weighted by 1 / km if inverse; fair: less the sampling variance of the mean",
        "Scheuerer and Hamill (2015), Mon. Weather Rev. 143, 1321",
    ),
    "FSS": (
        "1 - sum (p - q)^2 / sum (p^2 + q^2), p and q the shares of a window of points or of a disc (by "
        "area, radius on a sphere of 6371.0088 km) with the event in the members and in truth; windows "
        "across an edge, other than of periodic longitude, are left out, or have no event beyond it (zero)",
        "Roberts and Lean (2008), Mon. Weather Rev. 136, 78",
    ),
    "UsefulFSS": ("1/2 + f/2, f the frequency of the event", "Roberts and Lean (2008)"),
    "PooledCRPS": (
        "CRPS of the area-weighted mean, or the maximum, over the disc around every point",
        "Price et al. (2025), Nature 637, 84",
    ),
    "PowerSpectrum": (
        "sphere: sum_m a_lm^2 of harmonics with mean square 1; zonal: area mean over rows of |F_0|^2, 2 "
        "|F_k|^2, |F_W/2|^2, F = rfft / W; zonal-wb2: times the circle in m (radius 6367.5 km), the last "
        "wave of an even W doubled. Mean over members after squaring",
        f"{_SPECTRA}; {_WB2} (zonal-wb2)",
    ),
    "SpectralRatio": ("mean power over that of the truth", _SPECTRA),
    "Coherence": ("sum_m Re(a b*) / sqrt(S_a S_b) of mean spectra", _SPECTRA),
    "LogSpectralDistance": ("root of the mean square of 10 log10(power / power of truth)", _SPECTRA),
    "SpectralBias": ("mean of 10 log10(power / power of truth)", _SPECTRA),
    "weights cell": ("|sin - sin| of midpoints between rows and the poles, over its mean", _WB2),
    "weights cell-wb2": ("the same; the edge rows of a crop own the area up to the pole", _WB2),
    "weights cell-wbx": ("the same; edge rows reach half a step out, at most to the pole", "WeatherBench-X"),
    "weights cos": ("cos(latitude) over its mean", _WMO),
    "weights gauss": (
        "weights of Gauss-Legendre quadrature over their mean",
        "Abramowitz and Stegun, 25.4.29",
    ),
    "weights equal": ("1", "-"),
    "density count": ("1 / stations within the radius (itself and edge included), over the mean", "-"),
    "density gauss": (
        "1 / sum over stations of exp(-(angle between / angle)^2), over the mean",
        "Rodwell et al. (2010), eq. 22-23",
    ),
    "regions": (
        "positions, from 0, of the points inside; edges inclusive, longitudes modulo 360; _land: land "
        "fraction of at least 0.5 as well",
        "WeatherBench-X, public benchmark",
    ),
    "test iid": ("s / sqrt(T), T - 1 degrees of freedom; two-sided t test", "-"),
    "test geer": ("iid times k of an AR(2) process", "Geer (2016), Tellus A 68, 30229"),
    "test geer_wbx": ("the same, autocovariances divided by T - k, the variance by T - 1", "WeatherBench-X"),
    "test ewc": (
        "mean square of the floor(0.4 T^(2/3)) lowest cosine coefficients, as many degrees of freedom",
        "Lazarus et al. (2018), J. Bus. Econ. Stat. 36, 541",
    ),
    "test ewc_ar1": (
        "ewc with squares times f(0) / f(omega) of AR(1), r = (T r1 + 1) / (T - 4) within +-0.97",
        "Lazarus et al. (2018); Marriott and Pope (1954); Andrews and Monahan (1992)",
    ),
    "test hln": (
        "autocovariances to lag horizon - 1 over the small-sample factor",
        f"{_DM}; Harvey et al. (1997)",
    ),
    "test hg": (
        "sigma^2 exp(-3 k / theta) fitted to the lags below max((T - 1) // 2, horizon)",
        f"{_DM}; Hering and Genton (2011), Technometrics 53, 414",
    ),
    "block": (
        "block length of the stationary bootstrap that minimises the error of the variance",
        "Politis and White (2004), corrected by Patton et al. (2009), Econometric Reviews 28, 372",
    ),
    "none": ("p itself", "-"),
    "sidak": ("1 - (1 - p)^m of the m tests made", "Sidak (1967), JASA 62, 626"),
    "holm": ("max over j <= i of (m - j + 1) p_(j)", "Holm (1979), Scand. J. Stat. 6, 65"),
    "benjamini-hochberg": ("min over j >= i of m p_(j) / j", "Benjamini and Hochberg (1995), JRSS B 57, 289"),
    "benjamini-yekutieli": (
        "the same times 1 + 1/2 + ... + 1/m",
        "Benjamini and Yekutieli (2001), Ann. Stat. 29, 1165",
    ),
    "compare CRPS": ("difference of the fair CRPS of a and b", "-"),
    "compare RMSE": ("difference of RMSE; standard error of its linearisation at the means", "delta method"),
    "compare SpreadSkill": ("difference of |ratio - 1|; standard error by linearisation", "delta method"),
    "calendar monthday": ("day in a leap year, 1 to 366: 1 March is day 61 in every year", "-"),
    "calendar doy": ("day in its own year: 1 March is day 60 or 61", "WeatherBench 2, WeatherBench-X"),
    "climatology monthday": (
        "days since 1970 of the same month and day of each year; 28 February for 29 February in common years",
        "-",
    ),
    "climatology doy": (
        "days since 1970 of the same day number of each year; day 366 of a common year is 1 January of the "
        "next",
        "WeatherBench-X",
    ),
    "climatology": (
        "statistics of all states in a window of days around the day, weight 1 - |days| / width (triangle) "
        "or 1; quantiles of type 7 with Kish's effective size; dry fraction: unweighted share in the window "
        "up to `dry`, mean over days; threshold: weighted quantile 2/3 of the rest. doy: 31 December of a "
        "common year is day 365 and 366; monthday: common years have a ring of 365 days",
        "WeatherBench 2; Akinshin (2023), arXiv 2304.07265",
    ),
}

# Packages that give the values of a case, held to them by `test_eval_parity.py`.
PEERS: dict[str, str] = {
    "CRPS(kind=fair) globe t850 M=2": "scores, scoringrules",
    "CRPS(kind=fair) globe t850 M=3": "scores, scoringrules",
    "CRPS(kind=fair) globe t850 M=8": "scores, scoringrules",
    "CRPS(kind=fair) globe tp M=8": "scores, scoringrules",
    "CRPS(kind=fair) stations tp M=51 weights equal": "scores, scoringrules",
    "CRPS(kind=fair) mesh z500 M=3 weights (area)": "scores, scoringrules",
    "TwCRPS(lower=282.0, kind=fair) globe t850 M=8": "scores, scoringrules",
    "TwCRPS(lower=278.0, upper=281.5, kind=fair) globe t850 M=8": "scores, scoringrules",
    "CRPS(kind=biased) globe t850 M=2": "properscoring, scores, scoringrules, xskillscore",
    "CRPS(kind=biased) globe t850 M=3": "properscoring, scores, scoringrules, xskillscore",
    "CRPS(kind=biased) globe t850 M=8": "properscoring, scores, scoringrules, xskillscore",
    "CRPS(kind=biased) globe tp M=8": "properscoring, scores, scoringrules, xskillscore",
    "CRPS(kind=biased) stations tp M=51 weights equal": "properscoring, scores, scoringrules, xskillscore",
    "CRPS(kind=biased) mesh z500 M=3 weights (area)": "properscoring, scores, scoringrules, xskillscore",
    "TwCRPS(lower=282.0, kind=biased) globe t850 M=8": "scores, scoringrules",
    "TwCRPS(lower=278.0, upper=281.5, kind=biased) globe t850 M=8": "scores, scoringrules",
    "QuantileScore(probability=0.9, method=linear) globe t850 M=8": "scores",
    "QuantileScore(probability=0.9, method=weibull) globe t850 M=8": "scores",
    "QuantileScore(probability=0.9, method=hazen) globe t850 M=8": "scores",
    "QuantileScore(probability=0.9, method=median_unbiased) globe t850 M=8": "scores",
    "QuantileScore(probability=0.9, method=inverted_cdf) globe t850 M=8": "scores",
    "QuantileScore(probability=0.5, method=linear) stations tp M=51 weights equal": "scores",
    "IntervalScore(level=0.5, method=linear) globe t850 M=8": "scores, scoringrules",
    "IntervalScore(level=0.5, method=inverted_cdf) globe t850 M=8": "scores, scoringrules",
    "Brier(threshold=0.25, event=>, kind=fair) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=>, kind=biased) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=>=, kind=fair) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=>=, kind=biased) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=<, kind=fair) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=<, kind=biased) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=<=, kind=fair) globe tp M=8": "scores",
    "Brier(threshold=0.25, event=<=, kind=biased) globe tp M=8": "scores",
    "Brier(threshold=0.1, event=>=, kind=fair) stations tp M=51 weights equal": "scores",
    "EnergyScore(kind=fair, norm=euclidean) mesh z500 M=3 weights equal": "scoringrules",
    "EnergyScore(kind=biased, norm=euclidean) mesh z500 M=3 weights equal": "scoringrules",
    "VariogramScore(p=0.5, norm=sum) mesh z500 t2m M=3 weights equal": "scoringrules",
    "VariogramScore(p=1.0, norm=sum) mesh z500 t2m M=3 weights equal": "scoringrules",
    "correction benjamini-hochberg": "scipy",
    "correction benjamini-yekutieli": "scipy",
    "test iid horizon=1 T=40": "scipy",
    "test iid horizon=1 T=15": "scipy",
}
