"""Does the spread of K samples say how large the error of their mean is?

If the real image were one more draw from the sampler, the error of the mean of K samples would have
variance sd^2 (1 + 1/K), and error / (sd sqrt(1 + 1/K)) would follow Student's t with K - 1 degrees of
freedom (for Gaussian pixels).
"""

import numpy as np
from scipy import stats

LEVELS = (0.5, 0.8, 0.9, 0.95)
BINS = 10


def summarise(error, sd, samples: int) -> dict:
    """error, sd: [N] pixels of the mean of `samples` and of their SD (ddof 1), in one unit.

    {"coverage": {level: share of pixels inside their interval}, "bins": [{"sd": root mean square
    predicted, "rmse"}] of pixels sorted by SD, equally many in each, "ratio": overall rmse / predicted;
    1 is honest, > 1 over-confident}. ValueError for fewer than two samples.
    """
    if samples < 2:
        raise ValueError(f"{samples} samples have no spread")
    error = np.asarray(error, np.float64)
    predicted = np.asarray(sd, np.float64) * np.sqrt(1 + 1 / samples)
    coverage = {}
    for level in LEVELS:
        half = stats.t.ppf((1 + level) / 2, samples - 1) * predicted
        coverage[str(level)] = float((np.abs(error) <= half).mean())
    parts = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    bins = [{"sd": _rms(predicted[p]), "rmse": _rms(error[p])} for p in parts if p.size]
    return {"coverage": coverage, "bins": bins, "ratio": _rms(error) / max(_rms(predicted), 1e-12)}


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
