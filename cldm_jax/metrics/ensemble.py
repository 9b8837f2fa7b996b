"""An honest ensemble around an accurate image: the samples' spread, rescaled band by band.

Samples of a diffusion model are spread by another factor at every scale, so no single factor mends
them. Each deviation of a sample from the samples' mean is split into bands of a Gaussian pyramid without
decimation (x - G4 x, G4 x - G16 x, G16 x; G_s: in-plane blur with an SD of s mm), each band is multiplied
so that its power is that of the point image's error in the same band, and the point image is added.
Fair scores: Ferro 2014 (CRPS), Gneiting & Raftery 2007 (energy score).
"""

import numpy as np
from scipy import ndimage, stats

SCALES_MM = (0.0, 4.0, 16.0)  # SD of the blur after which spread and error are compared
SMOOTH_MM = (2.0, 4.0, 4.0)  # SD of the blur of a variance over few members, at each of SCALES_MM
LEVEL = 0.9  # of every interval


def blur(images, sd_mm: float, spacing_mm) -> np.ndarray:
    """Gaussian blur [..., H, W] in plane; spacing_mm: (row, column)."""
    if sd_mm == 0:
        return np.asarray(images, np.float32)
    images = np.asarray(images, np.float32)
    sigma = [0.0] * (images.ndim - 2) + [sd_mm / s for s in spacing_mm]
    return ndimage.gaussian_filter(images, sigma, mode="nearest", truncate=3.0)


def bands(images, spacing_mm) -> np.ndarray:
    """float32 [bands, ..., H, W], fine to coarse; their sum is `images`."""
    levels = [blur(images, sd, spacing_mm) for sd in SCALES_MM]
    return np.stack([*(a - b for a, b in zip(levels[:-1], levels[1:], strict=True)), levels[-1]])


def deviations(samples) -> np.ndarray:
    """samples [K, ...] less their mean, times sqrt(K / (K - 1)): the mean square is then the unbiased
    variance, and each deviation as large as that of one sample from the true mean. K of at least 2.
    """
    samples = np.asarray(samples, np.float32)
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} samples have no spread")
    return (samples - samples.mean(0)) * np.float32(np.sqrt(len(samples) / (len(samples) - 1)))


def band_power(images, mask, spacing_mm) -> np.ndarray:
    """Mean square in each band [bands] of images [..., Z, H, W] inside mask [Z, H, W]."""
    return np.array(
        [np.square(b[..., mask], dtype=np.float64).mean() for b in bands(images, spacing_mm)]
    )


def factors(error_power, spread_power) -> np.ndarray:
    """[bands] that give the spread the error's power; [people, bands] each, every person counts once.

    A band in which the samples do not differ stays without spread: factor 0.
    """
    error, spread = (np.mean(p, axis=0, dtype=np.float64) for p in (error_power, spread_power))
    return np.sqrt(np.divide(error, spread, out=np.zeros_like(error), where=spread > 0))


def scaled(deviation, band_factors, spacing_mm) -> np.ndarray:
    """sum_b factor_b band_b of deviations [..., H, W]."""
    # By levels, not bands: the same sum with one array less alive.
    steps = np.diff(np.asarray(band_factors, np.float32), prepend=0.0).astype(np.float32)
    out = steps[0] * np.asarray(deviation, np.float32)
    for step, sd in zip(steps[1:], SCALES_MM[1:], strict=True):
        if step:
            out += step * blur(deviation, sd, spacing_mm)
    return out


def sd_map(deviation, spacing_mm, smooth_mm: float = SMOOTH_MM[0]) -> np.ndarray:
    """SD [..., H, W] over members of `deviations` [K, ..., H, W]. The variance of few members is blurred
    by smooth_mm, which makes intervals narrower for the same coverage (docs/results/levers.md).
    """
    return np.sqrt(blur(np.mean(np.square(deviation), axis=0), smooth_mm, spacing_mm))


def ratios(error, sd) -> np.ndarray:
    """|error| [...] over its SD; inf where there is error but no spread."""
    size = np.abs(error)
    quiet = np.where(size > 0, np.inf, 0.0).astype(np.float32)
    return np.divide(size, sd, out=quiet, where=sd > 0)


def crps(error, members, *, centred: bool = True) -> np.ndarray:
    """Fair CRPS [...] of members [K, ...] against the truth; members and `error` (point - truth, so that
    the truth is -error) about one point. Unbiased for a sampler of which the K are draws.

    centred: the members are `deviations`, whose differences are too large by sqrt(K / (K - 1)).
    """
    count = len(members)
    near = np.abs(np.asarray(members) + error).mean(0)
    ordered = np.sort(members, axis=0)
    weight = 2.0 * np.arange(count) - count + 1  # sum over pairs i < j of |x_i - x_j|
    pairs = np.tensordot(weight, ordered, axes=1)
    return near - _pair_factor(count, centred) * pairs


def _pair_factor(count: int, centred: bool) -> float:
    fair = 1 / (count * (count - 1))
    return fair * np.sqrt((count - 1) / count) if centred else fair


def energy_score(error, members, mask, *, centred: bool = True) -> np.ndarray:
    """Fair energy score [Z] of slices: as `crps` with root mean squares over mask [Z, H, W] in place of
    absolute values, so in the images' unit. NaN where a slice has no mask.
    """
    count, pixels = len(members), mask.sum((1, 2))

    def size(x):
        squares = (np.square(x, dtype=np.float64) * mask).sum((-2, -1))
        with np.errstate(invalid="ignore"):
            return np.sqrt(squares / np.where(pixels, pixels, np.nan))

    near = np.mean([size(m + error) for m in members], axis=0)
    pairs = sum(size(members[i] - members[j]) for i in range(count) for j in range(i))
    return near - _pair_factor(count, centred) * pairs


def rank_correlation(sd, error) -> float:
    """Spearman's, of the SD [N] with |error| [N]: does the map say where the error is? NaN where one of
    them is constant.
    """
    sd, size = np.asarray(sd).ravel(), np.abs(np.asarray(error)).ravel()
    if size.size < 2 or np.ptp(sd) == 0 or np.ptp(size) == 0:
        return float("nan")
    return float(stats.spearmanr(sd, size).statistic)
