"""Regions of volumes whose answers are known, and intervals from few and many people."""

import numpy as np
import pytest

from cldm_jax.data import mask
from cldm_jax.metrics import regions

SHAPE = (10, 20, 30)


def frame(**changes):
    brain, head = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    brain[1:9, 6:14, 10:20] = True
    head[:, 4:16, 5:25] = True
    made = regions.Frame(brain, head, (2.0, 3.0), 4.0)
    return made._replace(**changes)


def ct():
    image = np.full(SHAPE, -1000.0, np.float32)
    f = frame()
    image[f.head] = 500.0
    image[f.brain] = 40.0
    return image


def ask(image, f, target):
    parts = regions.slabs(f.brain)
    return regions.values(regions.sums(image, f, target), parts), parts


def test_slabs_share_the_brain():
    parts = regions.slabs(frame().brain)
    assert [p.tolist() for p in parts] == [[1, 2], [3, 4], [5, 6], [7], [8]]
    assert regions.slabs(np.zeros(SHAPE, bool)) == []
    thin = np.zeros(SHAPE, bool)
    thin[3:5] = True
    assert [p.tolist() for p in regions.slabs(thin)] == [[3], [4]]


def test_regions_of_a_ct():
    found, parts = ask(ct(), frame(), "ct")
    assert found["brain_mean"] == pytest.approx(40)
    assert found["shell_mean"] == pytest.approx(500)
    pixels = 12 * 20 - 8 * 10
    volumes = [pixels * 2 * 3 * 4 * len(p) / 1000 for p in parts]
    assert found["bone_volume"] == pytest.approx(volumes)
    soft, bone = 0.096 + 0.051 * 0.04, 0.096 + 0.051 * 0.5
    # Rows that cross the brain: 10 columns of brain, 10 of bone, 3 mm wide. Columns: 8 and 4, 2 mm.
    assert found["lateral_attenuation"] == pytest.approx(10 * 0.3 * soft + 10 * 0.3 * bone)
    assert found["frontal_attenuation"] == pytest.approx(8 * 0.2 * soft + 4 * 0.2 * bone)


def test_regions_of_an_mr():
    rng = np.random.default_rng(0)
    f = frame()
    image = np.zeros(SHAPE, np.float32)
    classes = rng.integers(0, 3, SHAPE)
    image[f.brain] = (np.array([10.0, 50.0, 90.0])[classes] + rng.normal(0, 2, SHAPE))[f.brain]
    f = f._replace(limits=regions.class_limits(image, f.brain))
    found, parts = ask(image, f, "mr")
    for number, name in enumerate(("dark_volume", "middle_volume", "bright_volume")):
        expected = [((classes == number) & f.brain)[p].sum() * 24 / 1000 for p in parts]
        assert found[name] == pytest.approx(expected)
    assert found.keys() == regions.REGIONS["mr"].keys()
    assert ask(ct(), frame(), "ct")[0].keys() == regions.REGIONS["ct"].keys()


def test_parts_of_a_volume_give_the_whole():
    """Slices gone through in two chunks, members and all, are the same numbers."""
    rng = np.random.default_rng(0)
    members, f = ct() + rng.normal(0, 300, (3, *SHAPE)).astype(np.float32), frame()
    whole = regions.sums(members, f, "ct")
    halves = [regions.sums(members[:, s], f.part(s), "ct") for s in (slice(0, 5), slice(5, 10))]
    for name, (above, below) in whole.items():
        np.testing.assert_allclose(np.concatenate([h[name][0] for h in halves], -1), above)
        np.testing.assert_allclose(np.concatenate([h[name][1] for h in halves]), below)


def test_a_slab_without_the_region_is_nan():
    f = frame()
    f = f._replace(head=f.brain)  # no shell
    found, _ = ask(ct(), f, "ct")
    assert np.isnan(found["shell_mean"]).all() and np.isfinite(found["brain_mean"]).all()


def people_of(count, rng, slabs=5, shared=0.5, bias=4.0):
    """Errors of a mean of 4 and SD 3 times the SDs given; slabs of a person partly err together."""
    sds = rng.uniform(0.8, 1.25, (count, slabs))
    common = np.sqrt(shared) * rng.normal(size=(count, 1))
    own = np.sqrt(1 - shared) * rng.normal(size=(count, slabs))
    return bias + 3 * (common + own), sds


@pytest.mark.parametrize(
    ("count", "rule"), [(3, "student"), (8, "student"), (20, "quantile"), (60, "quantile")]
)
def test_intervals_cover_new_people_however_few_were_seen(count, rule):
    rng = np.random.default_rng(count)
    covered, naive = [], []
    for _ in range(150):
        errors, sds = people_of(count, rng)
        made = regions.fit_rule(errors, sds, np.repeat(np.arange(count), 5))
        assert (made["rule"], made["people"], made["n"]) == (rule, count, 5 * count)
        assert count <= made["effective"] <= 2 * count
        members = rng.normal(size=(2, 50, 5))
        members -= members.mean(0)
        new_errors, new_sds = people_of(50, rng)
        members *= new_sds / members.std(0)
        centre, low, high = regions.interval(members, made)
        np.testing.assert_allclose(centre, made["bias"], atol=1e-9)
        covered.append(((low <= new_errors) & (new_errors <= high)).mean())
        naive.append((np.abs(new_errors - errors.mean()) <= 1.645 * new_sds).mean())
    assert 0.88 <= np.mean(covered) <= 0.97
    assert np.mean(naive) < 0.6  # negative control: the SD as it is


def test_slabs_that_err_as_one_are_worth_the_people_alone():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(6), 5)
    worth = [
        regions.fit_rule(*people_of(6, rng, shared=s), people)["effective"] for s in (1.0, 0.0)
    ]
    assert worth[0] == pytest.approx(6, abs=0.1) and worth[1] > 9


def test_no_rule_where_there_is_nothing_to_learn_from():
    for errors, sds, people in (
        ([np.nan], [1.0], [0]),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [0, 0, 0]),  # one person
        ([1.0, 2.0], [0.0, 0.0], [0, 1]),  # members agree
    ):
        made = regions.fit_rule(errors, sds, people)
        assert made["q"] is None and made["rule"] == "none"
        _, low, high = regions.interval(np.ones((4, 2)), made)
        assert np.isnan(low).all() and np.isnan(high).all()


def test_members_that_happen_to_agree_are_not_believed():
    made = regions.fit_rule([1.0, -1.0, 2.0, -2.0], [1.0] * 4, np.arange(4))
    _, low, high = regions.interval(np.full((4, 1), 7.0), made)
    _, low_wide, high_wide = regions.interval(np.array([[6.0], [8.0]] * 2), made)
    assert high - low == pytest.approx((high_wide - low_wide) / np.sqrt(2))


def test_the_brain_of_a_noisy_pet():
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:12, :64, :64]
    radius = np.hypot((y - 32) / 1.2, x - 32)
    truth = (radius < 18) & (z < 10)
    pet = np.where(truth, 1.0, np.where((radius < 26) & (z < 11), 0.15, 0.0))
    pet[:, 28:36, 28:36] *= 0.1  # ventricles are dark
    noisy = (pet + rng.normal(0, 0.15, pet.shape)).astype(np.float32)
    found = mask.brain_mask_pet(noisy, (2.0, 2.0))
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.93
    np.testing.assert_array_equal(mask.brain_mask_pet(2 * noisy - 1, (2.0, 2.0)), found)
    assert not mask.brain_mask_pet(np.ones((2, 8, 8)), (2.0, 2.0)).any()
    scalp_alone = mask.head_mask(np.maximum(noisy, 0), "mr")
    assert 2 * (scalp_alone & truth).sum() / (scalp_alone.sum() + truth.sum()) < dice
