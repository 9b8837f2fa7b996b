"""Bands, factors and scores of an ensemble whose truth is known in closed form."""

import numpy as np
import pytest

from cldm_jax.metrics import ensemble
from cldm_jax.metrics.ensemble import SCALES_MM

SPACING = (2.0, 2.0)
SHAPE = (24, 64, 64)  # slices are independent: many of them
HEAD = np.zeros(SHAPE, bool)
HEAD[:, 4:-4, 4:-4] = True


def noise(seed, count=None, by_band=(1.0, 1.0, 1.0)):
    """Correlated Gaussian fields: fine noise, blobs of 6 mm, blobs of 20 mm; each times its factor."""
    rng = np.random.default_rng(seed)
    shape = SHAPE if count is None else (count, *SHAPE)
    total = np.zeros(shape, np.float32)
    for factor, sd, size in zip(by_band, (0.0, 6.0, 24.0), (1.0, 6.0, 18.0), strict=True):
        white = rng.normal(size=shape).astype(np.float32)
        total += factor * size * ensemble.blur(white, sd, SPACING)
    return total


def calibrated(samples, error):
    """(factors, multiplier by scale, coverage by scale) on one person, covered on the same."""
    deviation = ensemble.deviations(samples)
    factors = ensemble.factors(
        [ensemble.band_power(error, HEAD, SPACING)],
        [ensemble.band_power(deviation, HEAD, SPACING)],
    )
    return factors, ensemble.scaled(deviation, factors, SPACING)


def ratios(error, deviation, sd_mm):
    e, d = (ensemble.blur(x, sd_mm, SPACING) for x in (error, deviation))
    return ensemble.ratios(e, ensemble.sd_map(d, SPACING))[HEAD]


def coverage(error, deviation, multipliers):
    found = []
    for sd_mm, q in zip(SCALES_MM, multipliers, strict=True):
        found.append((ratios(error, deviation, sd_mm) <= q).mean())
    return found


def multipliers(error, deviation):
    found = []
    for sd_mm in SCALES_MM:
        found.append(np.quantile(ratios(error, deviation, sd_mm), ensemble.LEVEL))
    return found


def test_bands_add_up_and_separate_scales():
    image = noise(0)
    parts = ensemble.bands(image, SPACING)
    np.testing.assert_allclose(parts.sum(0), image, atol=1e-4)
    fine = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    power = ensemble.band_power(fine, HEAD, SPACING)
    assert power[0] > 20 * power[1] > 20 * power[2]
    flat = ensemble.band_power(np.full(SHAPE, 3.0, np.float32), HEAD, SPACING)
    np.testing.assert_allclose(flat, [0, 0, 9], atol=1e-5)


def test_scaled_is_the_weighted_sum_of_the_bands():
    image, factors = noise(0), np.array([2.0, 0.5, 3.0])
    expected = np.tensordot(factors, ensemble.bands(image, SPACING), 1)
    np.testing.assert_allclose(ensemble.scaled(image, factors, SPACING), expected, atol=1e-4)
    np.testing.assert_allclose(ensemble.scaled(image, (1, 1, 1), SPACING), image)


def test_deviations_are_as_large_as_a_single_sample():
    samples = np.random.default_rng(0).normal(size=(4, 200_000))
    deviation = ensemble.deviations(samples)
    np.testing.assert_allclose(np.mean(np.square(deviation)), 1.0, atol=0.01)
    flat = np.float32([-1, 1])[:, None, None] * np.full((9, 9), 3.0, np.float32)
    np.testing.assert_allclose(ensemble.sd_map(flat, SPACING), 3, rtol=1e-5)
    with pytest.raises(ValueError, match="no spread"):
        ensemble.deviations(samples[:1])


@pytest.mark.parametrize("wrong", [(1, 1, 1), (0.5, 0.5, 0.5), (2.0, 1.0, 0.3)])
def test_factors_mend_an_ensemble_that_is_wrong_by_band(wrong):
    """Right, too sure, wrong by scale: the factors say so, and 90 % of others are covered."""
    error = noise(0)
    samples = noise(1, 8, by_band=wrong)
    factors, mended = calibrated(samples, error)
    # Bands overlap, and the coarse one has few independent pixels.
    np.testing.assert_allclose(factors[:2], 1 / np.array(wrong[:2]), rtol=0.1)
    np.testing.assert_allclose(factors[2], 1 / wrong[2], rtol=0.3)
    q90 = multipliers(error, mended)
    # Normal where the blurred variance is of many pixels, Student's t of 7 degrees where of one blob.
    assert 1.6 < min(q90) and max(q90) < 2.0
    fresh = ensemble.scaled(ensemble.deviations(noise(2, 8, by_band=wrong)), factors, SPACING)
    np.testing.assert_allclose(coverage(noise(3), fresh, q90), 0.9, atol=0.04)


def test_one_factor_could_not_mend_what_is_wrong_by_scale():
    """Negative control: the best single factor leaves fine noise too sure and the coarse too timid."""
    error, samples = noise(0), noise(1, 8, by_band=(2.0, 1.0, 0.3))
    deviation = ensemble.deviations(samples)
    single = np.sqrt(np.mean(np.square(error[HEAD])) / np.mean(np.square(deviation[..., HEAD])))
    fine, _, coarse = coverage(error, single * deviation, [1.75] * 3)
    assert fine > 0.88 and coarse < 0.6


def test_a_blurred_variance_is_narrower_for_the_same_coverage():
    rng = np.random.default_rng(0)
    sd = 1 + np.hypot(*(np.mgrid[:64, :64] - 32)) / 16  # varies slowly
    error = (sd * rng.normal(size=SHAPE)).astype(np.float32)
    deviation = ensemble.deviations(sd * rng.normal(size=(8, *SHAPE)))
    widths = []
    for found in (np.sqrt(np.square(deviation).mean(0)), ensemble.sd_map(deviation, SPACING)):
        q = np.quantile(ensemble.ratios(error, found), ensemble.LEVEL)
        widths.append(q * found.mean())
    assert widths[1] < 0.95 * widths[0]


def test_an_ensemble_without_spread_stays_without():
    factors = ensemble.factors([[1.0, 1.0, 1.0]], [[0.0, 1.0, 4.0]])
    np.testing.assert_allclose(factors, [0, 1, 0.5])
    assert ensemble.ratios(np.float32([1, 0]), np.zeros(2, np.float32)).tolist() == [np.inf, 0]


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("centred", [True, False])
def test_fair_crps_of_a_gaussian(count, centred):
    """sigma / sqrt(pi) where the truth is one more draw, for any number of members."""
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(count, 400_000)), rng.normal(size=400_000)
    if centred:  # around the true mean, which is 0
        found = ensemble.crps(0 - truth, ensemble.deviations(samples))
    else:
        found = ensemble.crps(0 - truth, samples, centred=False)
    assert found.mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.004)


def test_crps_prefers_the_truth():
    """Proper: neither too sure nor too timid nor shifted scores better; without spread it is the MAE."""
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(6, 100_000)), rng.normal(size=100_000)
    deviation = ensemble.deviations(samples)

    def score(scale, shift=0.0):
        return ensemble.crps(shift - truth, scale * deviation).mean()

    assert score(1.0) < min(score(0.5), score(1.7), score(1.0, shift=0.5))
    assert score(0.0) == pytest.approx(np.abs(truth).mean())


def test_energy_score_knows_what_pixels_have_in_common():
    """Members with the right pixels but none of the truth's correlation score worse; CRPS cannot tell."""
    rng = np.random.default_rng(0)
    mask = np.ones((3000, 2, 2), bool)
    truth = np.broadcast_to(rng.normal(size=(3000, 1, 1)), mask.shape)
    common = np.broadcast_to(rng.normal(size=(8, 3000, 1, 1)), (8, *mask.shape))
    alone = rng.normal(size=(8, *mask.shape))
    right, wrong = (
        ensemble.energy_score(-truth, ensemble.deviations(m), mask).mean() for m in (common, alone)
    )
    assert right < wrong - 0.02
    assert right == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)  # a pixel's CRPS: all are one
    crps = [ensemble.crps(-truth, ensemble.deviations(m)).mean() for m in (common, alone)]
    assert crps[0] == pytest.approx(crps[1], abs=0.02)
    empty = ensemble.energy_score(-truth[:1], common[:, :1], ~mask[:1])
    assert np.isnan(empty).all()


def test_rank_correlation():
    sd = np.linspace(0.1, 1, 20_000)
    error = sd * np.random.default_rng(0).normal(size=sd.size)
    found = ensemble.rank_correlation(sd, error)
    assert 0.3 < found < 0.6
    assert ensemble.rank_correlation(sd, error[::-1]) == pytest.approx(-found, abs=0.03)
    assert np.isnan(ensemble.rank_correlation(np.ones(5), error[:5]))
