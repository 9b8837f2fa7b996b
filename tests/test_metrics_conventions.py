"""One prediction, many numbers: each wrong convention must give a different score than ours.

These are the slips found in published code. A test that cannot tell the wrong one from the right
one would not protect the table, so each asserts the size of the difference.
"""

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from cldm_jax.metrics import image
from cldm_jax.metrics.protocol import PROTOCOLS, score_volume
from cldm_jax.metrics.statistics import patient_mean

CLDM = PROTOCOLS["cldm"]
SIZE = 96


@pytest.fixture(scope="module")
def head():
    """A CT-like slice in HU, a blurred and noisy prediction of it, and the head mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    radius = np.hypot(y / 1.15, x)
    ct = np.full((SIZE, SIZE), -1000.0)
    ct[radius < 0.38] = 40
    ct[radius < 0.35] = 1100
    ct[radius < 0.31] = 32
    ct[np.hypot(y, 2 * x) < 0.12] = 8
    ct += rng.normal(0, 6, ct.shape)
    mask = ndimage.binary_dilation(radius < 0.38, iterations=2)
    pred = ndimage.gaussian_filter(ct, 1.0) + rng.normal(0, 8, ct.shape)
    return pred, ct, mask


def ours(pred, target, mask, name="ct"):
    scores = score_volume(pred[None], target[None], mask[None], CLDM, name)
    return {metric: values[0] for metric, values in scores.items()}


def to_unit(hu):
    """HU to the 0..1 scale of a data set clipped as the protocol clips."""
    return (np.clip(hu, -1024, 3000) + 1024) / 4024


def wang(pred, target):
    return skimage.metrics.structural_similarity(
        pred,
        target,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def test_data_range_2_for_unit_data_adds_6_db(head):
    pred, target, mask = (to_unit(head[0]), to_unit(head[1]), head[2])
    right = image.psnr(pred, target, data_range=1.0, mask=mask)
    wrong = image.psnr(pred, target, data_range=2.0, mask=mask)
    assert wrong - right == pytest.approx(20 * np.log10(2), abs=1e-9)
    assert right == pytest.approx(ours(*head)["psnr"], abs=1e-9)  # units do not matter, range does


def test_whole_image_inflates_and_padding_inflates_further(head):
    pred, target, mask = head
    scores = ours(*head)
    assert scores["psnr_whole"] > scores["psnr"] + 1.5
    padded = [np.pad(x, SIZE // 2, constant_values=-1000) for x in (pred, target)]
    again = ours(*padded, np.pad(mask, SIZE // 2))
    assert again["psnr_whole"] > scores["psnr_whole"] + 3
    for metric in ("psnr", "ssim", "mae", "sharpness", "psnr_affine", "psnr_window", "dice_bone"):
        assert again[metric] == pytest.approx(scores[metric], abs=1e-9), metric


def test_cropping_to_the_mask_changes_nothing(head):
    """The smallest field of view that holds the mask: no window may see a mirrored edge."""
    rows, columns = (np.flatnonzero(head[2].any(axis=a)) for a in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    full, cut = ours(*head), ours(*(x[box] for x in head))
    for metric in ("psnr", "ssim", "mae", "sharpness"):
        assert cut[metric] == pytest.approx(full[metric], abs=1e-9), metric


def test_content_outside_the_mask_does_not_count(head):
    pred, target, mask = head
    bed = np.where(mask, pred, 500.0)
    for metric in ("psnr", "ssim", "mae", "sharpness"):
        assert ours(bed, target, mask)[metric] == ours(pred, target, mask)[metric], metric
    assert ours(bed, target, mask)["psnr_whole"] < ours(pred, target, mask)["psnr_whole"] - 3


def test_a_gain_error_is_not_forgiven():
    """Dividing each image by its own mean, as public code does, hides a 30 % gain error."""
    rng = np.random.default_rng(1)
    mask = np.ones((64, 64), bool)
    target = np.clip(ndimage.gaussian_filter(rng.random((64, 64)), 2) * 4 - 1.4, 0, 1)
    near = np.clip(target + rng.normal(0, 0.02, target.shape), 0, 1)
    scores, dimmed = ours(near, target, mask, "mr"), ours(0.7 * near, target, mask, "mr")
    for metric in ("psnr", "ssim", "sharpness", "psnr_volume"):
        assert dimmed[metric] < scores[metric], metric
    assert dimmed["mae"] > scores["mae"]
    assert ours(0.7 * target, target, mask, "mr")["psnr"] < 20
    own_mean = image.psnr(
        0.7 * near / np.mean(0.7 * near), target / np.mean(target), data_range=1.0
    )
    unscaled = image.psnr(near / np.mean(near), target / np.mean(target), data_range=1.0)
    assert own_mean == pytest.approx(unscaled, abs=1e-9)  # blind to the gain
    # The labelled affine row is where a known gain may be forgiven.
    assert dimmed["psnr_affine"] > dimmed["psnr"] + 5


def test_per_image_min_max_is_another_number(head):
    pred, target, mask = head

    def own(x):
        return (x - x.min()) / (x.max() - x.min())

    wrong = image.psnr(own(pred), own(target), data_range=1.0, mask=mask)
    assert abs(wrong - ours(*head)["psnr"]) > 1
    wrong = image.psnr(pred, target, data_range=np.ptp(target), mask=mask)
    assert abs(wrong - ours(*head)["psnr"]) > 1


def test_narrow_windows_are_other_numbers(head):
    pred, target, mask = head
    clipped = [np.clip(x, -1000, 1000) for x in (pred, target)]
    scores = ours(*head)
    assert abs(image.psnr(*clipped, data_range=2000, mask=mask) - scores["psnr"]) > 1
    assert scores["psnr_window"] < scores["psnr"] - 5


def test_ssim_windows_are_other_numbers(head):
    pred, target = to_unit(head[0]), to_unit(head[1])
    default = skimage.metrics.structural_similarity(pred, target, data_range=1.0)
    assert abs(default - wang(pred, target)) > 1e-4
    edges = image.ssim(pred, target, data_range=1.0, window="gaussian", crop=0)
    assert abs(edges - wang(pred, target)) > 1e-4  # whole map against the cropped one
    assert abs(ours(*head)["ssim"] - wang(pred, target)) > 5e-3  # masked against whole


def test_eight_bit_images_lose_15_hu(head):
    _, target, mask = head
    step = 4024 / 255
    assert step == pytest.approx(15.8, abs=0.1)
    quantised = np.round(to_unit(target) * 255) / 255 * 4024 - 1024
    scores = ours(quantised, target, mask)
    assert scores["mae"] == pytest.approx(step / 4, rel=0.15)
    assert np.isfinite(scores["psnr"])


def test_one_pixel_of_misregistration_is_a_ceiling(head):
    """The real image, moved by one pixel, scores below a fair prediction of it."""
    pred, target, mask = head
    shifted = ours(np.roll(target, 1, axis=1), target, mask)
    assert shifted["psnr"] < ours(pred, target, mask)["psnr"]
    assert shifted["sharpness"] == pytest.approx(1.0, abs=0.05)


def test_blur_shows_in_sharpness_more_than_in_ssim(head):
    _, target, mask = head
    scores = ours(ndimage.gaussian_filter(target, 1.0), target, mask)
    assert scores["ssim"] > 0.8
    assert scores["sharpness"] < 0.5


def test_exact_and_empty_slices_are_left_out_of_the_mean(head):
    pred, target, mask = head
    exact = target, target, mask
    volumes = [np.stack([x, y, z]) for x, y, z in zip(head, exact, head, strict=True)]
    volumes[2] = np.stack([mask, mask, np.zeros_like(mask)])
    scores = score_volume(*volumes, CLDM, "ct")
    assert np.isinf(scores["psnr"][1]) and np.isnan(scores["psnr"][2])
    assert patient_mean(scores["psnr"]) == pytest.approx(ours(pred, target, mask)["psnr"])
