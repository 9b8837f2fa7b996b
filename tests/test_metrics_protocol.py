"""The scoring contract and SynthRAD2023's published definition, both on random volumes."""

import json

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from cldm_jax.errors import UserError
from cldm_jax.metrics import image
from cldm_jax.metrics.protocol import PROTOCOLS, Protocol, score_volume
from cldm_jax.metrics.scores import METRICS

CLDM, SYNTHRAD = PROTOCOLS["cldm"], PROTOCOLS["synthrad2023"]


def random_volume(seed, shape=(11, 24, 26)):
    """Prediction, target in HU (some beyond the clip) and a mask of two blobs."""
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.normal(0, 1, shape), 1.5) * 12000 + 300
    pred = target + ndimage.gaussian_filter(rng.normal(0, 1, shape), 1) * 800
    mask = ndimage.gaussian_filter(rng.normal(0, 1, shape), 2) > -0.05
    return pred, target, mask


def score(pred, target, mask, protocol=CLDM, name="ct"):
    return score_volume(pred, target, mask, protocol, name)


def synthrad2023(pred, target, mask):
    """The challenge's definition of MAE, PSNR and SSIM, written from its description."""
    mae = np.abs(target - pred)[mask].mean()  # not clipped there
    low, high = -1024, 3000
    pred, target = np.clip(pred, low, high), np.clip(target, low, high)
    mse = np.mean((pred[mask] - target[mask]) ** 2)
    psnr = 10 * np.log10(4024**2 / mse)
    pred, target = (np.where(mask, x, low) + 1024 for x in (pred, target))
    _, ssims = skimage.metrics.structural_similarity(target, pred, data_range=4024, full=True)
    inner = (slice(3, -3),) * 3
    return {"mae": mae, "psnr": psnr, "ssim": ssims[inner][mask[inner]].mean()}


@pytest.mark.parametrize("seed", range(20))
def test_synthrad2023_equals_its_definition(seed):
    pred, target, mask = random_volume(seed)
    assert target[mask].max() > 3000 or target[mask].min() < -1024  # the clip matters
    expected = synthrad2023(pred, target, mask)
    ours = score(pred, target, mask, SYNTHRAD)
    for name, value in expected.items():
        assert ours[name] == pytest.approx([value], rel=1e-6, abs=1e-6), name


def test_cldm_psnr_mae_and_ssim_are_what_the_words_say():
    pred, target, mask = random_volume(3)
    ours = score(pred, target, mask)
    p, t = np.clip(pred, -1024, 3000), np.clip(target, -1024, 3000)
    for z in range(len(p)):
        m = mask[z]
        mse = np.mean((p[z][m] - t[z][m]) ** 2)
        assert ours["psnr"][z] == pytest.approx(10 * np.log10(4024**2 / mse), abs=1e-6)
        assert ours["mae"][z] == pytest.approx(np.abs(p[z] - t[z])[m].mean(), abs=1e-6)
        a, b = (np.pad(np.where(m, x[z], -1024) + 1024, 5) for x in (p, t))
        _, ssims = skimage.metrics.structural_similarity(
            a,
            b,
            data_range=4024,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert ours["ssim"][z] == pytest.approx(ssims[np.pad(m, 5)].mean(), abs=1e-6)


def test_shapes_names_and_applicability():
    pred, target, mask = random_volume(0)
    ct = score(pred, target, mask)
    bare = {name for name, metric in METRICS.items() if not metric.needs}
    assert set(ct) == bare
    for name, values in ct.items():
        assert values.dtype == np.float64
        assert values.shape == ((1,) if METRICS[name].per == "volume" else (11,))
    assert all(v.shape == (1,) for v in score(pred, target, mask, SYNTHRAD).values())
    mr = score(np.clip(pred / 1000, 0, 1), np.clip(target / 1000, 0, 1), mask, name="mr")
    assert set(ct) - set(mr) == {
        "psnr_window",
        "mae_air",
        "mae_soft",
        "mae_bone",
        "dice_bone",
    }


def test_tissue_scores_by_hand():
    target = np.full((1, 20, 20), 0.0)
    target[0, :5], target[0, 15:] = -1000, 1000
    pred = target + 0.0
    pred[0, :5] += 10
    pred[0, 5:15] += 20
    pred[0, 15:] -= 40
    pred[0, 15] = 0  # a quarter less bone than 5 rows: 4 rows kept
    ours = score(pred, target, np.ones(target.shape, bool))
    assert ours["mae_air"] == pytest.approx([10])
    assert ours["mae_soft"] == pytest.approx([20])
    assert ours["mae_bone"] == pytest.approx([(4 * 40 + 1000) / 5])
    assert ours["dice_bone"] == pytest.approx([2 * 4 / 9])
    assert ours["mean_error"] == pytest.approx([(5 * 10 + 10 * 20 - 4 * 40 - 1000) / 20])


def test_pooled_psnr_is_not_the_mean_of_slices():
    """Slices at 20 and 40 dB: their mean is 30.0 dB, their pooled error gives 22.97 dB."""
    target = np.zeros((2, 16, 16))
    pred = np.stack([np.full((16, 16), 0.1), np.full((16, 16), 0.01)])
    ours = score(pred, target, np.ones(target.shape, bool), name="mr")
    assert ours["psnr"] == pytest.approx([20, 40])
    assert ours["psnr_volume"] == pytest.approx([22.967], abs=1e-3)


def test_slices_without_mask_stay_as_nan():
    pred, target, mask = random_volume(1)
    mask[4] = False
    ours = score(pred, target, mask)
    assert ours["psnr"].shape == (11,)
    assert np.flatnonzero(np.isnan(ours["psnr"])).tolist() == [4]
    assert np.isnan(ours["ssim"][4]) and np.isfinite(ours["psnr_volume"]).all()
    ours = score(pred, target, mask, SYNTHRAD)
    assert ours["ssim"] == pytest.approx([synthrad2023(pred, target, mask)["ssim"]], abs=1e-6)


def test_exact_prediction_is_infinite_not_hidden():
    _, target, mask = random_volume(2)
    ours = score(target, target, mask)
    assert np.isinf(ours["psnr"]).all() and np.isinf(ours["psnr_volume"]).all()
    assert ours["ssim"] == pytest.approx(np.ones(len(target)))
    assert ours["sharpness"] == pytest.approx(np.ones(len(target)))


def test_protocols_round_trip_through_json_and_are_frozen():
    for protocol in PROTOCOLS.values():
        text = json.dumps(protocol.to_json(), allow_nan=False)
        assert Protocol.from_json(json.loads(text)) == protocol
    with pytest.raises(AttributeError):
        CLDM.name = "other"
    stored = CLDM.to_json()
    assert stored["ct"]["clip"] == [-1024, 3000] and stored["ct"]["data_range"] == 4024
    assert stored["aggregation"] == "patient"


def test_words_name_every_number():
    words = " ".join(CLDM.describe())
    for part in ("[-1024, 3000]", "4024", "head mask", "[0, 1]", "sigma 1.5", "patient", "HU"):
        assert part in words
    words = " ".join(SYNTHRAD.describe())
    assert "MR is not scored" in words and "unclipped" in words


def test_the_range_is_the_clips_width_and_every_word_is_known():
    for protocol in PROTOCOLS.values():
        assert protocol.describe()  # looks up every word
        assert protocol.scaling == "none" or protocol.aggregation == "patient"
        for rule in filter(None, (protocol.ct, protocol.mr)):
            low, high = rule.clip
            assert high - low == rule.data_range and low <= rule.background <= high


def test_bad_input_says_what_and_why():
    pred, target, mask = random_volume(0)
    with pytest.raises(UserError, match="synthrad2023.*'mr'"):
        score(pred, target, mask, SYNTHRAD, "mr")
    with pytest.raises(UserError, match="one .*shape"):
        score(pred[:-1], target, mask)
    with pytest.raises(UserError, match="prediction.*NaN"):
        score(np.where(mask, pred, np.nan), target, mask)
    with pytest.raises(UserError, match="3-D SSIM"):
        score(pred[:5], target[:5], mask[:5], SYNTHRAD)


def test_images_are_not_changed_in_place():
    pred, target, mask = random_volume(0)
    before = pred.copy(), target.copy(), mask.copy()
    score(pred, target, mask)
    for a, b in zip(before, (pred, target, mask), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_metric_is_labelled():
    for name, metric in METRICS.items():
        assert metric.label and metric.meaning, name
        assert metric.better in ("high", "low", "one", "zero")
        assert metric.per in ("slice", "volume")
        assert metric.unit in ("dB", "", "%", "target")
    assert image.UNIFORM_SIZE == 7 and image.GAUSSIAN_RADIUS == 5
