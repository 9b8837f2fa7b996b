"""Image scores in float64: no hidden data range, no normalisation by the images themselves.

Every function takes the prediction first, then the target, both of one shape [..., H, W] and in
the same units; `mask` (same shape, true = scored) may be None for the whole image. A score over no
pixel is NaN; PSNR of two equal images is +inf. Neither is hidden here: the caller counts them.
"""

import functools

import numpy as np
from scipy import ndimage

GAUSSIAN_SIGMA = 1.5  # pixels, Wang et al. 2004
GAUSSIAN_RADIUS = 5  # pixels: 11 taps
UNIFORM_SIZE = 7  # pixels, the box window of the 3-D form
K1, K2 = 0.01, 0.03  # SSIM stabilisers, Wang et al. 2004


def _pair(pred, target):
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")
    return pred, target


def _inside(pred, target, mask):
    """The scored pixels of both as two 1-D float64 arrays."""
    pred, target = _pair(pred, target)
    if mask is None:
        return pred.ravel(), target.ravel()
    mask = np.asarray(mask, bool)
    if mask.shape != pred.shape:
        raise ValueError(f"mask {mask.shape} and images {pred.shape} differ in shape")
    return pred[mask], target[mask]


def _check_range(data_range: float) -> float:
    if not (np.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range must be a positive number, got {data_range!r}")
    return float(data_range)


def mse(pred, target, *, mask=None) -> float:
    """Mean squared error over the mask, units squared."""
    p, t = _inside(pred, target, mask)
    return float(np.mean((p - t) ** 2)) if p.size else float("nan")


def mae(pred, target, *, mask=None) -> float:
    """Mean absolute error over the mask, units of the images."""
    p, t = _inside(pred, target, mask)
    return float(np.mean(np.abs(p - t))) if p.size else float("nan")


def mean_error(pred, target, *, mask=None) -> float:
    """Mean signed error (prediction minus target) over the mask: the bias, units of the images."""
    p, t = _inside(pred, target, mask)
    return float(np.mean(p - t)) if p.size else float("nan")


def psnr(pred, target, *, data_range: float, mask=None) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(data_range^2 / MSE), MSE over the mask."""
    error, data_range = mse(pred, target, mask=mask), _check_range(data_range)
    if error == 0:
        return float("inf")
    return float(20 * np.log10(data_range) - 10 * np.log10(error))


def affine_fit(pred, target, *, mask=None) -> tuple[float, float]:
    """(gain, offset) minimising the squared error of gain * pred + offset over the mask.

    A constant prediction gets gain 0 and the target's mean. (nan, nan) over an empty mask.
    """
    p, t = _inside(pred, target, mask)
    if not p.size:
        return float("nan"), float("nan")
    centred = p - p.mean()
    variance = np.mean(centred**2)
    gain = float(np.mean(centred * (t - t.mean())) / variance) if variance > 0 else 0.0
    return gain, float(t.mean() - gain * p.mean())


def psnr_affine(pred, target, *, data_range: float, mask=None) -> float:
    """PSNR in dB after the least-squares gain and offset: the score were the scale known.

    It looks at the target, so it is never a result by itself: it tells shape from scale errors.
    """
    gain, offset = affine_fit(pred, target, mask=mask)
    fitted = gain * np.asarray(pred, np.float64) + offset
    return psnr(fitted, target, data_range=data_range, mask=mask)


def ssim_map(pred, target, *, data_range: float, window: str) -> np.ndarray:
    """SSIM at every pixel (Wang et al. 2004, eq. 13), same shape as the images, float64.

    window "gaussian": sigma 1.5, 11 taps, population covariance (the paper's form).
    window "uniform": 7-pixel box, sample covariance (scikit-image's default form).
    Works in 2-D or 3-D: the window spans every axis. Edges are mirrored; the images should be
    non-negative (the luminance term has no meaning for signed data).
    """
    x, y = _pair(pred, target)
    data_range = _check_range(data_range)
    if window == "gaussian":
        radius, covariance_factor = GAUSSIAN_RADIUS, 1.0
        options = dict(sigma=GAUSSIAN_SIGMA, radius=radius, mode="reflect")
        blur = functools.partial(ndimage.gaussian_filter, **options)
    elif window == "uniform":
        radius, samples = UNIFORM_SIZE // 2, UNIFORM_SIZE**x.ndim
        covariance_factor = samples / (samples - 1)
        blur = functools.partial(ndimage.uniform_filter, size=UNIFORM_SIZE, mode="reflect")
    else:
        raise ValueError(f"window must be 'gaussian' or 'uniform', got {window!r}")
    if min(x.shape) < 2 * radius + 1:
        raise ValueError(f"SSIM needs at least {2 * radius + 1} pixels along each axis: {x.shape}")

    mu_x, mu_y = blur(x), blur(y)
    var_x = covariance_factor * (blur(x * x) - mu_x * mu_x)
    var_y = covariance_factor * (blur(y * y) - mu_y * mu_y)
    cov = covariance_factor * (blur(x * y) - mu_x * mu_y)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance_contrast = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    return luminance_contrast / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))


def ssim(pred, target, *, data_range: float, window: str, crop: int, mask=None) -> float:
    """Mean of the SSIM map less a border of `crop` pixels, inside the mask where one is given."""
    ssims = ssim_map(pred, target, data_range=data_range, window=window)
    inner = tuple(slice(crop, n - crop) for n in ssims.shape)
    chosen = ssims[inner] if mask is None else ssims[inner][np.asarray(mask, bool)[inner]]
    return float(chosen.mean()) if chosen.size else float("nan")


def gradient_energy(image, *, mask=None) -> float:
    """Sum of squared in-plane differences between neighbours that are both in the mask."""
    image = np.asarray(image, np.float64)
    mask = np.ones(image.shape, bool) if mask is None else np.asarray(mask, bool)
    rows = np.diff(image, axis=-2)[mask[..., 1:, :] & mask[..., :-1, :]]
    columns = np.diff(image, axis=-1)[mask[..., 1:] & mask[..., :-1]]
    return float(np.sum(rows**2) + np.sum(columns**2))


def sharpness(pred, target, *, mask=None) -> float:
    """Gradient energy of the prediction over that of the target: < 1 blurred, > 1 noisier."""
    energy = gradient_energy(target, mask=mask)
    return gradient_energy(pred, mask=mask) / energy if energy > 0 else float("nan")


def dice(pred, target, *, mask=None) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean images inside the mask; NaN if both are empty."""
    p, t = _inside(pred, target, mask)
    total = p.sum() + t.sum()
    return float(2 * np.sum(p * t) / total) if total > 0 else float("nan")
