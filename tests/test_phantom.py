"""The simulated people as a whole: tissue contrasts, floor and ceiling, continuity, modes."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from cldm_jax.phantom import ct, pathology, pet, subject, tissue
from cldm_jax.phantom.fields import block_mean, tissue_mean

N_PEOPLE = 6
BOTH = ("pet", "ct", "mr", "ct_reacq", "mr_reacq")


def plan(index: int, **changes) -> subject.Plan:
    base = subject.Plan(
        id=f"sub-{index:04d}",
        group="",
        seed=0,
        key=(index,),
        source="",
        vary=False,
        twin=0,
        easy=False,
        modalities=BOTH,
        profile="any",
        pet_model="fast",
        shape=(96, 112, 24),
        spacing=(2.0, 2.0, 4.0),
        canonical=(),
        pets=1,
        ranges=None,
        randomised_share=0.0,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def people():
    return [subject.simulate(plan(i)) for i in range(N_PEOPLE)]


@pytest.fixture(scope="module")
def tissues():
    """Per person: masks of nearly pure voxels, by tissue; deep = white matter 4 mm from grey."""
    result = []
    for i in range(N_PEOPLE):
        codes, grid, factor, _ = subject.build_anatomy(plan(i))
        share = {c: block_mean(codes == c, factor) for c in range(tissue.N_CODES)}
        white = share[tissue.WM] > 0.95
        result.append(
            {
                "grey": share[tissue.GM] + share[tissue.DEEP] > 0.7,
                "white": white,
                "deep": ndimage.distance_transform_edt(white, sampling=grid.spacing) > 4,
                "fluid": share[tissue.CSF] > 0.95,
                "bone": share[tissue.SKULL] > 0.9,
            }
        )
    return result


def mean_of(people, tissues, modality: str, name: str) -> np.ndarray:
    pairs = zip(people, tissues, strict=True)
    return np.array([p[0][modality][t[name]].astype(float).mean() for p, t in pairs])


def test_pet_contrast_and_units(people, tissues):
    grey, deep = (mean_of(people, tissues, "pet", t) for t in ("grey", "deep"))
    assert 2.0 < (grey / deep).mean() < 3.0  # true 4:1, after the point spread
    assert ((grey / deep) > 1.5).all()
    assert (grey > 4.5).all() and (grey < 11).all() and grey.std() > 0.3


def test_pet_noise_in_grey_matter():
    codes, grid, factor, _ = subject.build_anatomy(plan(0))
    person = tissue.draw_person(np.random.default_rng(0), 0.5, vary=False)
    rng = np.random.default_rng(0)
    true = pet.activity(rng, pathology.healthy(codes), person, grid, factor, regional=False)
    grey = block_mean(np.isin(codes, tissue.GREY), factor) > 0.7
    drawn = [pet.draw_scan(np.random.default_rng(k), "any", noise=True) for k in range(50)]
    assert 0.06 <= min(s.cov for s in drawn) and max(s.cov for s in drawn) <= 0.14
    images = [pet.fast(np.random.default_rng(k), true, grid, drawn[0]) for k in (1, 2)]
    cov = (images[0] - images[1])[grey].std() / np.sqrt(2) / images[0][grey].mean()
    assert cov == pytest.approx(drawn[0].cov, rel=0.12)


def test_ct_numbers(people, tissues):
    for name, value, slack in (
        ("grey", 37, 5),
        ("white", 28, 3),
        ("fluid", 8, 4),
        ("bone", 1150, 150),
    ):
        assert mean_of(people, tissues, "ct", name).mean() == pytest.approx(value, abs=slack), name
    spread = [p[0]["ct"][t["white"]].std() for p, t in zip(people, tissues, strict=True)]
    assert 4 < min(spread) and max(spread) < 11
    lowest, highest = ct.HU_RANGE
    for volumes, _, _ in people:
        assert volumes["ct"].min() >= lowest and volumes["ct"].max() <= highest
        corner = volumes["ct"][:6, :6]
        assert corner.mean() == pytest.approx(-1000, abs=15)


def test_mr_contrast_and_gain(people, tissues):
    white = mean_of(people, tissues, "mr", "white")
    for name, low, high in (("grey", 0.70, 0.85), ("fluid", 0.30, 0.50), ("bone", 0.0, 0.10)):
        ratio = mean_of(people, tissues, "mr", name) / white
        assert low < ratio.mean() < high, name
    assert white.max() / white.min() > 1.5  # the gain is the scanner's, not the person's


def psnr(a, b, data_range) -> float:
    return 10 * np.log10(data_range**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", ["ct", "mr"])
def test_floor_is_below_ceiling(people, tissues, name):
    def unit(key):
        if name == "ct":
            return np.stack([np.clip(p[0][key], -1000, 2000) for p in people]), 3000.0
        scale = [p[0][key][t["white"]].mean() for p, t in zip(people, tissues, strict=True)]
        scaled = [np.clip(p[0][key] / s, 0, 2) for p, s in zip(people, scale, strict=True)]
        return np.stack(scaled), 2.0

    (real, top), (again, _) = unit(name), unit(f"{name}_reacq")
    floor, ceiling = [], []
    for i in range(N_PEOPLE):
        others = np.delete(real, i, axis=0).mean(axis=0)
        floor.append(psnr(others, real[i], top))
        ceiling.append(psnr(again[i], real[i], top))
    low, high = ((15, 24), (30, 45)) if name == "ct" else ((11, 20), (23, 36))
    assert low[0] < np.mean(floor) < low[1]
    assert high[0] < np.mean(ceiling) < high[1]
    assert min(np.subtract(ceiling, floor)) > 5


def test_neighbouring_slices_belong_together(people):
    stack = np.stack([np.clip(p[0]["ct"].astype(float), -1000, 1500) for p in people])
    stack -= stack.mean(axis=0)  # what is left is the person

    def correlation(a, b):
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    within = [correlation(s[..., 4:18], s[..., 5:19]) for s in stack]
    across = [correlation(stack[i][..., 4:18], stack[i - 1][..., 5:19]) for i in range(N_PEOPLE)]
    assert min(within) > 0.4 and max(across) < 0.3


def test_the_head_has_its_parts(people):
    for volumes, grid, truth in people:
        label = volumes["label"]
        voxel = np.prod(grid.spacing) / 1000
        ml = {c: float((label == c).sum() * voxel) for c in range(tissue.N_CODES)}
        assert 250 < ml[tissue.GM] < 900 and 200 < ml[tissue.WM] < 800
        assert 8 < ml[tissue.DEEP] < 80
        assert 100 < ml[tissue.SKULL] < 700 and 40 < ml[tissue.MARROW] < 500
        middle = np.abs(grid.axis(0)) < 25
        ventricles = (label[middle][:, 40:72, 5:9] == tissue.CSF).sum() * voxel
        assert ventricles > 3
        assert truth["anatomy"]["jacobian_min"] > 0
        # a closed vault: from the brain outwards every ray in the plane meets bone
        brain = np.isin(label[..., 12], (*tissue.BRAIN, tissue.CSF))
        bone = np.isin(label[..., 12], (tissue.SKULL, tissue.MARROW))
        assert ndimage.binary_fill_holes(bone)[brain].all() and not bone[brain].any()


def test_age_means_atrophy():
    grid = subject.embedded_grid((96, 112, 24), (2.0, 2.0, 4.0))
    position = subject.warp.pull_back(subject.warp.identity(grid), grid)
    fluid, grey = [], []
    for age in (0.05, 0.95):
        shape = subject.anatomy.draw_shape(np.random.default_rng(0), age)
        codes = subject.anatomy.build(np.random.default_rng(0), shape, grid, position)
        fluid.append((codes == tissue.CSF).sum())
        grey.append((codes == tissue.GM).sum())
    assert fluid[1] > 1.5 * fluid[0] and grey[1] < grey[0]


def test_second_acquisition_differs_in_noise_only(people):
    alone, _, truth = subject.simulate(plan(0, modalities=("ct",)))
    both, _, full = people[0]
    np.testing.assert_array_equal(alone["ct"], both["ct"])
    assert truth["lesions"] == full["lesions"]
    difference = both["ct"].astype(float) - both["ct_reacq"]
    brain = np.isin(both["label"], tissue.BRAIN)
    assert 5 < difference[brain].std() < 20 and abs(difference[brain].mean()) < 5


def test_easy_people_have_neither_noise_nor_disease():
    small = dict(shape=(64, 76, 12), spacing=(3.0, 3.0, 8.0))
    volumes, _, truth = subject.simulate(plan(1, easy=True, **small))
    np.testing.assert_array_equal(volumes["ct"], volumes["ct_reacq"])
    np.testing.assert_array_equal(volumes["mr"], volumes["mr_reacq"])
    assert truth["lesions"] == [] and not volumes["lesions"].any()
    noisy, _, _ = subject.simulate(plan(1, **small))
    assert not np.array_equal(noisy["ct"], noisy["ct_reacq"])


def test_twins_share_the_pet_and_the_brain_but_not_the_skull():
    small = dict(shape=(64, 76, 12), spacing=(3.0, 3.0, 8.0))
    one, two = (subject.simulate(plan(2, twin=t, **small))[0] for t in (0, 1))
    np.testing.assert_array_equal(one["pet"], two["pet"])
    brain = [np.isin(v["label"], tissue.BRAIN) for v in (one, two)]
    np.testing.assert_array_equal(*brain)
    bone = [np.isin(v["label"], (tissue.SKULL, tissue.MARROW)).sum() for v in (one, two)]
    assert bone[1] > 1.15 * bone[0]
    assert (two["ct"].astype(float) - one["ct"]).max() > 400


def test_osem_agrees_with_the_fast_model():
    small = dict(shape=(72, 84, 12), spacing=(2.7, 2.7, 8.0), modalities=("pet",))
    images, covs = {}, {}
    label = subject.simulate(plan(3, **small))[0]["label"]
    grey, white = np.isin(label, tissue.GREY), label == tissue.WM
    for model in ("fast", "osem"):
        first = subject.simulate(plan(3, pet_model=model, **small))
        images[model] = first[0]["pet"]
        assert first[2]["acquisition"]["pet"]["model"] == model
    recovery = {m: v[grey].mean() / v[white].mean() for m, v in images.items()}
    assert recovery["osem"] == pytest.approx(recovery["fast"], rel=0.2)
    assert images["osem"][grey].mean() == pytest.approx(images["fast"][grey].mean(), rel=0.15)
    assert np.corrcoef(images["osem"][grey], images["fast"][grey])[0, 1] > 0.6

    codes, grid, factor, _ = subject.build_anatomy(plan(3, **small))
    person = tissue.draw_person(np.random.default_rng(0), 0.5, vary=False)
    true = pet.activity(
        np.random.default_rng(0), pathology.healthy(codes), person, grid, factor, regional=False
    )
    numbers = tissue_mean(person.hu, codes, factor)
    scan = pet.PetScan("any", 5.5, 0.10)
    for model in ("fast", "osem"):
        pair = []
        for k in (1, 2):
            rng = np.random.default_rng(k)
            if model == "fast":
                pair.append(pet.fast(rng, true, grid, scan))
            else:
                pair.append(subject.osem.acquire(rng, true, numbers, grid, scan)["pet"])
        covs[model] = (pair[0] - pair[1])[grey].std() / np.sqrt(2) / pair[0][grey].mean()
    assert covs["osem"] == pytest.approx(covs["fast"], rel=0.35)
