"""Image scores: known values, masks, and parity with scikit-image."""

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from cldm_jax.metrics import image


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def smooth(rng, shape):
    return ndimage.gaussian_filter(rng.random(shape), 1.0)


def test_known_values():
    target = np.zeros((4, 4))
    pred = np.full((4, 4), 0.1)
    assert image.mse(pred, target) == pytest.approx(0.01)
    assert image.mae(-pred, target) == pytest.approx(0.1)
    assert image.mean_error(-pred, target) == pytest.approx(-0.1)
    assert image.psnr(pred, target, data_range=1.0) == pytest.approx(20.0)
    assert image.psnr(pred, target, data_range=2.0) == pytest.approx(26.0206, abs=1e-4)


def test_exact_prediction_is_infinite_and_empty_mask_is_nan(rng):
    x = rng.random((16, 16))
    nothing = np.zeros(x.shape, bool)
    assert image.psnr(x, x, data_range=1.0) == np.inf
    assert image.ssim(x, x, data_range=1.0, window="gaussian", crop=0) == pytest.approx(1.0)
    for score in (image.mse, image.mae, image.mean_error, image.sharpness, image.dice):
        assert np.isnan(score(x, x, mask=nothing))
    assert np.isnan(image.psnr(x, x, data_range=1.0, mask=nothing))
    assert np.isnan(image.psnr_affine(x, x, data_range=1.0, mask=nothing))
    assert np.isnan(image.ssim(x, x, data_range=1.0, window="gaussian", crop=0, mask=nothing))


def test_only_the_mask_counts(rng):
    target = rng.random((20, 20))
    mask = np.zeros(target.shape, bool)
    mask[5:15, 5:15] = True
    pred = target + 0.1
    spoiled = np.where(mask, pred, 99.0)
    assert image.mae(spoiled, target, mask=mask) == pytest.approx(0.1)
    assert image.psnr(spoiled, target, data_range=1, mask=mask) == pytest.approx(20.0)
    assert image.sharpness(spoiled, target, mask=mask) == pytest.approx(1.0)
    assert image.psnr(spoiled, target, data_range=1) < 0


@pytest.mark.parametrize("seed", range(5))
def test_psnr_equals_scikit_image(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.random((2, 24, 31))
    expected = skimage.metrics.peak_signal_noise_ratio(y, x, data_range=1.7)
    assert image.psnr(x, y, data_range=1.7) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_wang_ssim_equals_scikit_image(seed):
    rng = np.random.default_rng(seed)
    x, y = smooth(rng, (40, 37)), smooth(rng, (40, 37))
    expected, full = skimage.metrics.structural_similarity(
        x,
        y,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    np.testing.assert_allclose(
        image.ssim_map(x, y, data_range=1.0, window="gaussian"), full, atol=1e-6
    )
    ours = image.ssim(x, y, data_range=1.0, window="gaussian", crop=5)
    assert ours == pytest.approx(expected, abs=1e-6)
    mask = x > np.median(x)
    masked = image.ssim(x, y, data_range=1.0, window="gaussian", crop=0, mask=mask)
    assert masked == pytest.approx(full[mask].mean(), abs=1e-6)


@pytest.mark.parametrize("shape", [(21, 18), (12, 15, 13)])
def test_uniform_ssim_equals_scikit_image(shape, rng):
    x, y = smooth(rng, shape), smooth(rng, shape)
    expected, full = skimage.metrics.structural_similarity(x, y, data_range=1.0, full=True)
    np.testing.assert_allclose(
        image.ssim_map(x, y, data_range=1.0, window="uniform"), full, atol=1e-6
    )
    ours = image.ssim(x, y, data_range=1.0, window="uniform", crop=3)
    assert ours == pytest.approx(expected, abs=1e-6)


def test_wang_ssim_of_one_pixel_by_hand(rng):
    """The formula written out with its 11 x 11 weights, at one pixel away from the edges."""
    x, y = rng.random((2, 21, 21))
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(taps, taps) / np.sum(taps) ** 2
    a, b = x[5:16, 4:15], y[5:16, 4:15]
    mean_a, mean_b = np.sum(weights * a), np.sum(weights * b)
    var_a = np.sum(weights * (a - mean_a) ** 2)
    var_b = np.sum(weights * (b - mean_b) ** 2)
    cov = np.sum(weights * (a - mean_a) * (b - mean_b))
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    assert image.ssim_map(x, y, data_range=1, window="gaussian")[10, 9] == pytest.approx(expected)


def test_ssim_of_constants_is_the_luminance_term():
    x, y = np.full((15, 15), 0.2), np.full((15, 15), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    for window in ("gaussian", "uniform"):
        value = image.ssim(x, y, data_range=1.0, window=window, crop=0)
        assert value == pytest.approx(expected)


def test_sharpness_of_a_ramp_and_of_blur(rng):
    ramp = np.tile(np.arange(8.0), (8, 1))
    assert image.gradient_energy(ramp) == 8 * 7
    assert image.sharpness(0.5 * ramp, ramp) == pytest.approx(0.25)
    x = rng.random((64, 64))
    assert image.sharpness(ndimage.gaussian_filter(x, 1), x) < 0.2
    assert image.sharpness(x + rng.normal(0, 0.3, x.shape), x) > 1.5
    assert np.isnan(image.sharpness(x, np.ones_like(x)))


def test_gradients_do_not_cross_slices_or_the_mask_edge():
    volume = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    assert image.gradient_energy(volume) == 0
    step = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, axis=0)
    assert image.gradient_energy(step) == 4
    assert image.gradient_energy(step, mask=step > 0.5) == 0


def test_affine_fit_recovers_gain_and_offset_and_never_hurts(rng):
    target = rng.random((30, 30))
    gain, offset = image.affine_fit((target - 0.3) / 2, target)
    assert (gain, offset) == (pytest.approx(2.0), pytest.approx(0.3))
    pred = 0.7 * target + rng.normal(0, 0.05, target.shape)
    assert image.psnr_affine(pred, target, data_range=1) > image.psnr(pred, target, data_range=1)
    flat = np.zeros_like(target)
    assert image.affine_fit(flat, target) == (0.0, pytest.approx(target.mean()))


def test_dice_known_value():
    a = np.array([[1, 1, 0, 0]], bool)
    b = np.array([[1, 0, 1, 0]], bool)
    assert image.dice(a, b) == pytest.approx(0.5)
    assert image.dice(a, ~a) == 0.0


@pytest.mark.parametrize("data_range", [0, -1, float("nan"), float("inf")])
def test_bad_data_range_is_refused(data_range):
    with pytest.raises(ValueError, match="data_range"):
        image.psnr(np.zeros((2, 2)), np.ones((2, 2)), data_range=data_range)


def test_data_range_has_no_default():
    with pytest.raises(TypeError, match="data_range"):
        image.psnr(np.zeros((2, 2)), np.ones((2, 2)))
    with pytest.raises(TypeError, match="data_range"):
        image.ssim_map(np.zeros((12, 12)), np.ones((12, 12)), window="gaussian")


def test_unequal_shapes_and_small_images_are_refused():
    with pytest.raises(ValueError, match="shape"):
        image.mae(np.zeros((1, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="mask"):
        image.mae(np.zeros((4, 4)), np.zeros((4, 4)), mask=np.ones((1, 4), bool))
    with pytest.raises(ValueError, match="at least 11"):
        image.ssim_map(np.zeros((10, 40)), np.zeros((10, 40)), data_range=1, window="gaussian")
    with pytest.raises(ValueError, match="window"):
        image.ssim_map(np.zeros((20, 20)), np.zeros((20, 20)), data_range=1, window="box")
