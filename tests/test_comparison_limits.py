"""What the anatomy scores, foreign protocols, folds and budgets must not count."""

import ml_collections
import numpy as np
import pytest
import skimage.metrics
from test_budget import COSTS, FakePrepared
from test_metrics_anatomy import brain, disc, head, with_lesion
from test_metrics_foreign import images, score
from test_splits_fold import make, people

from cldm_jax.data import splits
from cldm_jax.data.bids import Subject
from cldm_jax.errors import UserError
from cldm_jax.jobs import budget
from cldm_jax.metrics import anatomy
from cldm_jax.metrics.scores import METRICS, Context

PIXEL = (1.0, 1.0)


def ct_disc(hu):
    return np.where(disc(80), hu, -1000.0)[None]


def test_attenuation_is_exponential_in_the_error_and_has_no_sign():
    mask, target = disc(80)[None], ct_disc(0.0)
    high, higher = (
        anatomy.attenuation_error(ct_disc(hu), target, mask, PIXEL) for hu in (500.0, 1000.0)
    )
    assert higher > 2.3 * high  # exp(x) - 1 is convex: a linear rule would give 2
    low = anatomy.attenuation_error(ct_disc(-200.0), target, mask, PIXEL)
    assert 0 < low < 100  # a correction of nothing loses all counts, no more


def test_attenuation_is_read_in_soft_tissue_and_made_inside_the_mask():
    mask, target = disc(80)[None], ct_disc(0.0)
    pred = ct_disc(20.0)
    found = anatomy.attenuation_error(pred, target, mask, PIXEL)
    bed = np.where(mask, pred, 500.0)
    assert anatomy.attenuation_error(bed, target, mask, PIXEL) == found
    boxed = np.ones_like(mask)  # air around the head is no tissue
    assert anatomy.attenuation_error(pred, target, boxed, PIXEL) == pytest.approx(found, rel=0.02)
    assert np.isnan(anatomy.attenuation_error(pred, ct_disc(1000.0), mask, PIXEL))  # bone alone


def test_bone_edge_leaves_out_the_inside_of_bone_and_what_is_not_masked():
    real, everywhere = head(), np.ones((3, 96, 96), bool)
    blunt = real.copy()
    blunt[:, 47:49] = 700.0  # a bar outside the mask
    mask = everywhere.copy()
    mask[:, 46:50] = False
    assert anatomy.bone_edge(blunt, real, mask, 300, PIXEL) == pytest.approx(1, abs=0.02)
    large, small = (np.where(disc(r, 96), 1000.0, -1000.0)[None] for r in (40, 20))
    assert anatomy.bone_edge(small, large, large > -2000, 300, PIXEL) == pytest.approx(1, abs=0.05)


def test_consistency_needs_both_neighbours_in_the_mask():
    real = np.random.default_rng(0).normal(size=(2, 8, 8))
    mask = np.ones(real.shape, bool)
    mask[0, :2], mask[1, -2:] = False, False
    pred = real.copy()
    pred[1, :2] += 50
    pred[1, -2:] += 50
    assert anatomy.consistency(pred, real, mask, np.arange(2)) == 1


def test_sulci_are_counted_near_the_surface_in_millimetres():
    labels, mr = brain()
    holes = mr.copy()
    holes[0, 44:52, 44:52] = 0.2  # CSF in the core, 36 pixels deep
    assert anatomy.sulcal_csf(holes, mr, labels, PIXEL) == 1
    assert anatomy.sulcal_csf(holes, mr, labels, (0.25, 0.25)) > 1


def test_deep_nuclei_are_grey_matter():
    labels, mr = brain()
    labels[0, 44:52, 44:52] = 12
    grey = np.isin(labels, (2, 12)).sum()
    missed = 2 * (grey - 64) / (2 * grey - 64)
    assert anatomy.tissue_dice(mr, labels, anatomy.GREY) == pytest.approx(missed)
    mr[labels == 12] = 0.5
    assert anatomy.tissue_dice(mr, labels, anatomy.GREY) == 1


def test_lesion_codes_are_those_of_the_phantom():
    from cldm_jax.phantom import pathology

    codes = (pathology.LESION_HYPO, pathology.LESION_TUMOUR, pathology.LESION_WHITE)
    assert codes == (anatomy.HYPOMETABOLIC, anatomy.TUMOUR, anatomy.WHITE_MATTER_LESION)


def test_the_ring_leaves_out_the_rim_other_lesions_and_other_tissue():
    labels, lesions, healthy, real = with_lesion(anatomy.TUMOUR, -0.2)
    others = lesions.copy()
    others[0, 44:50, 53:56] = anatomy.HYPOMETABOLIC
    labels[0, 54:56, 44:50] = 1
    spoiled = real.copy()
    spoiled[0, 44:50, 53:56], spoiled[0, 54:56, 44:50] = 9.0, 9.0
    spoiled[0, 42:44, 44:50] = 9.0  # partial volume beside the section
    (z, section, ring) = next(anatomy._sections(others, labels, (anatomy.TUMOUR,)))
    assert section.sum() == 36 and spoiled[z][ring].max() == pytest.approx(0.8)


def test_a_section_without_tissue_around_it_is_not_scored():
    labels, lesions, healthy, real = with_lesion(anatomy.TUMOUR, -0.2)
    labels[lesions == 0] = 1
    labels[0, 54, 44:49] = 3  # five pixels of it are too few
    assert np.isnan(anatomy.lesions_missed(healthy, real, lesions, labels))


def test_a_contrast_that_the_real_mr_has_in_part_is_not_invented():
    labels, lesions, healthy, real = with_lesion(anatomy.HYPOMETABOLIC, -0.1)
    stronger = healthy + 1.3 * (real - healthy)
    assert anatomy.lesions_invented(stronger, real, lesions, labels) == 0
    assert anatomy.lesions_invented(healthy + 1.6 * (real - healthy), real, lesions, labels) == 1


def test_foreign_ssim_equals_scikit_image():
    pred, target = images()
    p, t = pred[0] / pred[0].mean(), target[0] / target[0].mean()
    want = skimage.metrics.structural_similarity(p, t, data_range=t.max())
    assert score(pred, target, "selfrdb")["ssim"][0] == pytest.approx(want, abs=1e-9)
    start, width = target[0].min(), np.ptp(target[0])
    p, t = (np.pad((v[0] - start) / width, 5) for v in (pred, target))
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, ssims = skimage.metrics.structural_similarity(p, t, data_range=1, full=True, **wang)
    found = score(pred, target, "abstract-oracle")["ssim"][0]
    assert found == pytest.approx(ssims[5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize("name", ["selfrdb", "abstract-oracle"])
def test_foreign_scores_clip_first(name):
    pred, target = images(shape=(3, 24, 24))
    wild = np.where(pred > 0.7, 5.0, pred)
    clipped = np.clip(wild, 0, 1)
    np.testing.assert_array_equal(
        score(wild, target, name)["psnr"], score(clipped, target, name)["psnr"]
    )


def test_a_score_needs_all_it_needs():
    pred, target = images(shape=(4, 24, 24))
    labels = np.tile(np.repeat([1, 2, 3], 8)[:, None], (4, 1, 24))
    found = score(pred, target, "cldm", context=Context(labels=labels))
    assert "dice_grey" in found and not {"sulcal_csf", "lesions_missed"} & set(found)
    assert METRICS["sulcal_csf"].needs == ("labels", "spacing_mm")


def test_lesions_are_looked_for_in_their_own_slices():
    labels, lesions, healthy, real = with_lesion(anatomy.TUMOUR, -0.2)
    for kinds, missed in ((0 * lesions, np.nan), (lesions, 1.0)):
        found = score(healthy, real, "cldm", context=Context((1.0, 1.0), None, labels, kinds))
        np.testing.assert_array_equal(found["lesions_missed"], [missed])


def test_folds_share_kinds_of_people_and_val_is_its_fraction_of_all():
    files = [{"pet": "x", "ct": "y"}, {"pet": "x", "mr": "y"}]
    subjects = [Subject(f"s{g:02d}", f"s{g:02d}", "", files[g % 2]) for g in range(20)]
    for k in range(5):
        parts = make(subjects, k, 5)
        assert [len(parts[n]) for n in splits.SPLITS] == [14, 2, 4]
        for name in ("test", "val"):
            assert sum(int(i[1:]) % 2 for i in parts[name]) == len(parts[name]) / 2


def test_the_smallest_cohort_of_folds():
    for k in range(3):
        assert [len(make(people(3, 1), k, 3)[n]) for n in splits.SPLITS] == [1, 1, 1]
    with pytest.raises(UserError, match="too few"):
        make(people(3, 1), 0, 2)  # two of the three test: the other can't train and validate


def test_a_budget_is_refused_below_the_least_number_of_whole_steps():
    recipe = ml_collections.ConfigDict(
        {"data": {"kind": "images", "source_kind": "image", "targets": ("ct",)}}
    )

    def plan(steps):
        minutes = steps * COSTS["cpu_seconds"] / 60
        return budget.plan(recipe, "unet", COSTS, minutes, 1, FakePrepared(), 0)

    assert plan(20.9)["num_train_steps"] == 20
    with pytest.raises(UserError, match="buys unet 19 steps"):
        plan(19.9)


def test_few_rounds_are_not_believed(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(budget.time, "process_time", lambda: float(next(clock)))
    calls = []
    budget._interleave(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0.0)
    assert calls == ["a", "b"] * (1 + budget.MIN_ROUNDS)
