"""Mode `randomised`: every draw in the truth and in its range, repeatable, and what each one does."""

import csv
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from cldm_jax.data.nifti import read_volume
from cldm_jax.errors import UserError
from cldm_jax.files import read_json
from cldm_jax.jobs import prepare, simulate
from cldm_jax.phantom import (
    attenuation,
    camera,
    cohort,
    draws,
    labels,
    subject,
    tissue,
    tracer,
    warp,
)
from cldm_jax.phantom import randomised as people
from cldm_jax.phantom.fields import Grid
from cldm_jax.runs import record
from cldm_jax.usage import comments
from configs import prepare as prepare_config
from configs import randomised, unet
from configs.simulate import get_config as ordinary_config
from configs.simulate import randomised as ranges

ROOT = pathlib.Path(__file__).parents[1]
SECTIONS = ("uptake", "correction", "scanner", "noise", "view")


def small(section="", **changes):
    """The tiny preset, coarser; `changes` to its settings or to a section of its ranges."""
    config = randomised.get_config("tiny")
    config.n_subjects = 2
    target = config.randomised[section] if section else config
    with config.unlocked():
        for name, value in changes.items():
            target[name] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def first(config, number=1):
    """(volumes, grid, the record of a PET) of the first person."""
    volumes, grid, truth = subject.simulate(cohort.plan_cohort(config)[0])
    return volumes, grid, truth["acquisition"]["pet" if number == 1 else f"pet_{number}"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort of four people with two PETs each, all of them randomised."""
    folder = tmp_path_factory.mktemp("cohort") / "c"
    config = small(n_subjects=4, pets_per_person=2, randomised_share=1.0)
    simulate.run(config, str(folder))
    return folder, config


def inside(value, setting, name):
    if isinstance(setting, dict):
        return value in setting
    values = value if isinstance(value, list) else [value]
    if isinstance(setting, float):
        return all(isinstance(v, bool) for v in values)
    assert len(values) == draws.COUNTS.get(name, 1)
    return all(setting[0] <= v <= setting[1] for v in values)


def test_every_draw_is_in_the_truth_and_in_its_range(made):
    folder, config = made
    for truth in (read_json(p) for p in sorted(folder.glob("*/truth/truth.json"))):
        places = {"person": [truth["anatomy"]["person"]]}
        pets = [truth["acquisition"][name] for name in ("pet", "pet_2")]
        places |= {s: [pet[s] for pet in pets] for s in SECTIONS}
        assert set(places) == set(config.randomised)
        for section, settings in config.randomised.to_dict().items():
            for found in places[section]:
                assert set(found) == set(settings)
                for name, setting in settings.items():
                    assert inside(found[name], setting, name), (section, name, found[name])


def test_draws_follow_their_laws():
    found = [draws.Dice(0, (i,), 1).draw(ranges()["scanner"]) for i in range(400)]
    fwhm = np.array([f["fwhm_mm"] for f in found])
    assert np.median(fwhm) == pytest.approx(np.sqrt(3.5 * 10), rel=0.06)  # log-uniform
    assert np.mean([f["resampled"] for f in found]) == pytest.approx(0.7, abs=0.07)
    noise = [draws.Dice(0, (i,), 1).draw(ranges()["noise"]) for i in range(400)]
    assert np.mean([n["law"] == "fbp" for n in noise]) == pytest.approx(0.35, abs=0.07)
    assert {n["views"] for n in noise} >= {24, 140}
    scalp = {"scalp_absent": ranges()["uptake"]["scalp_absent"]}
    absent = [draws.Dice(0, (i,), 1).draw(scalp)["scalp_absent"] for i in range(3000)]
    assert np.mean(absent) == pytest.approx(0.25, abs=0.03)


def test_one_range_changed_leaves_all_other_draws_as_they_are():
    *_, before = first(small())
    *_, after = first(small("scanner", fwhm_mm=(5.0, 5.0), resampled=0.0))
    assert after["scanner"]["fwhm_mm"] == 5.0 != before["scanner"]["fwhm_mm"]
    for section in SECTIONS:
        for name, value in before[section].items():
            assert name in ("fwhm_mm", "resampled") or after[section][name] == value, name
    assert before["foci"] == after["foci"] and before["spots"] == after["spots"]


def test_the_same_bytes_from_processes_and_another_order(made, tmp_path):
    folder, config = made
    again = small(n_subjects=4, pets_per_person=2, randomised_share=1.0, workers=2)
    simulate.run(again, str(tmp_path / "c"))
    assert read_json(tmp_path / "c/manifest.json") == read_json(folder / "manifest.json")
    # A person does not depend on how many there are, a PET not on how many the person has.
    volumes, _, _ = first(small(n_subjects=1, randomised_share=1.0))
    np.testing.assert_array_equal(volumes["pet"], read_volume(folder / "sub-0001/pet.nii.gz").array)
    other, _, _ = first(small(seed=1, randomised_share=1.0))
    assert not np.array_equal(volumes["pet"], other["pet"])


def test_ordinary_modes_know_nothing_of_it(tmp_path):
    plain = ordinary_config("tiny")
    before = simulate._settings(plain)
    assert not {"randomised", "mr_target", "ct_target", "pets_per_person"} & set(before)
    changed = ordinary_config("tiny")
    changed.randomised.scanner.fwhm_mm = (5.0, 5.0)
    changed.randomised_share = 0.1
    assert simulate._settings(changed) == before
    for a, b in zip(cohort.plan_cohort(plain), cohort.plan_cohort(changed), strict=True):
        assert a == b or (a.randomised_share != b.randomised_share and a.ranges is b.ranges is None)
    two = [subject.simulate(cohort.plan_cohort(c)[1])[0] for c in (plain, changed)]
    for name in two[0]:
        np.testing.assert_array_equal(two[0][name], two[1][name])
    changed.mr_target = "canonical"
    assert simulate._settings(changed) != before


def test_a_share_of_the_pets_is_ordinary():
    kinds = []
    for plan in cohort.plan_cohort(small(n_subjects=200)):
        gain = plan.pet_gain(1)
        kinds.append(gain == 1.0)
        assert 0.65 <= gain <= 1.5
    assert np.mean(kinds) == pytest.approx(0.2, abs=0.08)
    *_, record = first(small(randomised_share=0.0))
    assert record["model"] == "fast" and 4.5 <= record["fwhm_mm"] <= 6.5


def test_canonical_targets():
    volumes, _, _ = first(small())
    assert set(volumes) == {"pet", "ct", "mr", "label", "lesions"}
    whole = small(n_subjects=1, shape=(96, 112, 24), spacing_mm=(2.0, 2.0, 4.0))
    volumes, _, _ = first(whole)
    assert volumes["mr"].dtype == volumes["ct"].dtype == np.int16
    white = volumes["label"] == tissue.WM
    assert np.median(volumes["mr"][white]) == pytest.approx(600, rel=0.01)
    assert volumes["mr"][:3].max() == 0 and (volumes["ct"][:3] == -1000).all()  # no noise in air
    acquired = small(mr_target="acquired", ct_target="acquired", reacquire=True)
    volumes, _, _ = first(acquired)
    assert {"mr_reacq", "ct_reacq"} <= set(volumes)
    assert len(np.unique(volumes["mr"][:3])) > 100


def test_a_mirrored_person_has_the_other_side_of_the_head():
    """The same person, pose and deformation; what is looked up lies across the head's middle."""
    plan = cohort.plan_cohort(small())[0]
    grid, centre = Grid((12, 14, 6), (12.0, 12.0, 20.0), (-60.0, -75.0, -50.0)), (3.0, -18.0, 9.0)
    drawn = plan.dice(0).draw(plan.ranges["person"])
    here, there = (
        warp.pull_back(people.pose(plan.dice(0), drawn | {"mirrored": m}, grid, centre), grid)
        for m in (False, True)
    )
    np.testing.assert_allclose(here[0] + there[0], 2 * centre[0], atol=1e-3)
    assert np.ptp(here[0]) > 100 and all(np.array_equal(here[i], there[i]) for i in (1, 2))
    codes = []
    for share in (0.0, 1.0):
        codes.append(
            subject.build_anatomy(cohort.plan_cohort(small("person", mirrored=share))[0])[0]
        )
    assert 0.01 < np.mean(codes[0] != codes[1]) < 0.4  # nobody's sides are the same


def test_levels_of_the_tracers():
    drawn = draws.Dice(0, (0,), 1).draw(ranges()["uptake"])
    usual = {**drawn, "scalp_absent": False, "tissue_absent": [False] * 6}
    fdg = tracer.levels({**usual, "tracer": "fdg"})
    assert fdg["grey"] == 1 and 1 / 6 <= fdg["white"] <= 1 / 1.5 and fdg["fat"] > 0
    assert tracer.levels({**usual, "tracer": "amyloid_negative"})["grey"] < 1
    assert tracer.levels({**usual, "tracer": "any"})["bone"] == usual["any_uptake"][6]
    bare = tracer.levels({**usual, "tracer": "any", "scalp_absent": True})
    assert bare["fat"] == bare["muscle"] == bare["skin"] == 0 < bare["bone"]
    absent = tracer.levels({**usual, "tracer": "fdg", "tissue_absent": [False] * 5 + [True]})
    assert absent["vessels"] == 0 < absent["marrow"]


def test_mean_line_integral_of_a_disc():
    """At the centre of a disc every line crosses its diameter; half of them less at the rim."""
    grid = Grid((80, 80, 1), (2.0, 2.0, 2.0), (-79.0, -79.0, 0.0))
    r = np.hypot(grid.axis(0)[:, None], grid.axis(1))[..., None]
    path = attenuation.mean_line_integral((r < 60).astype(np.float32) * 0.01, grid)
    assert path[39:41, 39:41].mean() == pytest.approx(1.2, rel=0.02)
    # rim: the mean over directions of 2 R |cos| is 4 R / pi, half of the lines' lengths
    rim = path[(np.abs(r[..., 0] - 60) < 1)].mean()
    assert rim == pytest.approx(0.01 * 4 * 60 / np.pi, rel=0.05)


def head_scene():
    plan = cohort.plan_cohort(
        small(n_subjects=1, shape=(64, 76, 12), spacing_mm=(3.0, 3.0, 8.0), randomised_share=1.0)
    )[0]
    codes, grid, factor, _ = subject.build_anatomy(plan)
    person = tissue.draw_person(np.random.default_rng(0), 0.5, vary=False)
    return subject.scene.make(subject.pathology.healthy(codes), person.hu, grid, factor)


def correction(**changes):
    drawn = draws.Dice(0, (0,), 1).draw(ranges()["correction"])
    off = dict(nac=False, bone_as_water=False, mu_shifted=False, mu_scale=1.0, has_holder=False)
    return {**drawn, **off, **changes}


def test_attenuation_errors():
    scene = head_scene()
    flat = np.ones(scene.grid.shape, np.float32)
    none = np.zeros(scene.grid.shape[:2], np.float32)

    def ratio(**changes):
        return attenuation.corrected(correction(**changes), flat, scene, none)

    np.testing.assert_allclose(ratio(), 1, atol=1e-3)
    brain = scene.shares["white"] > 0.9
    assert 0.7 < ratio(bone_as_water=True)[brain].mean() < 0.97  # bone's loss is not made good
    assert ratio(mu_scale=1.08)[brain].mean() == pytest.approx(1.11, abs=0.05)
    shifted = ratio(mu_shifted=True, mu_shift_mm=6.0, mu_shift_direction=[1.0, 0.0, 0.0])[brain]
    assert shifted.max() > 1.01 and shifted.min() < 0.99
    nac = ratio(nac=True, nac_strength=1.0, nac_rim=0.0)
    middle = np.array(scene.grid.shape) // 2
    # a dark centre: 16 cm of water, and the bone
    assert nac[tuple(middle)] < 0.3 and nac[tuple(middle)] < 0.85 * nac[brain].max()


def test_a_holder_is_behind_the_head_and_not_in_the_targets():
    scene = head_scene()
    cup = attenuation.holder(correction(has_holder=True), scene)
    assert not attenuation.holder(correction(), scene).any()
    outline = scene.head.max(axis=2) > 0.5
    behind = scene.grid.axis(1)[cup.any(axis=0)]
    assert cup.max() > 0.9 and behind.max() < scene.grid.axis(1)[outline.any(axis=0)].mean()
    assert cup[outline].mean() < 0.05


def scan(**changes):
    """(image of a warm ellipsoid, grid) with a plain scanner and these changes."""
    grid = Grid((60, 70, 40), (3.0, 3.0, 3.0), (-88.5, -103.5, -58.5))
    r = sum(
        (a / s) ** 2
        for a, s in zip(
            np.meshgrid(*(grid.axis(i) for i in range(3)), indexing="ij"), (70, 85, 50), strict=True
        )
    )
    dice = draws.Dice(3, (0,), 1)
    drawn = {s: dice.draw(ranges()[s]) for s in ("scanner", "noise", "view")}
    drawn["scanner"] |= dict(fwhm_mm=6.0, axial_ratio=1.0, has_scatter=False, resampled=False)
    drawn["noise"] |= dict(law="even", cov=1e-9, has_uneven=False, negatives="kept")
    drawn["view"] |= dict(has_cut_ends=False, round=False, has_cut_side=False, gamma=1.0)
    for section in drawn.values():
        section |= {k: v for k, v in changes.items() if k in section}
    assert set(changes) <= {k for s in drawn.values() for k in s}
    true = (r < 1).astype(np.float32)
    return camera.image(dice, drawn, true, grid, grid)[0], r, grid


def test_resolution_and_slices():
    """A point keeps its sum; its width is the scanner's, wider after thick slices."""

    def width(image, grid, axis):
        profile = image.sum(tuple(i for i in range(3) if i != axis))
        at = grid.axis(axis)
        mean = (profile * at).sum() / profile.sum()
        return 2.355 * np.sqrt((profile * (at - mean) ** 2).sum() / profile.sum())

    grid = Grid((40, 40, 40), (2.0, 2.0, 2.0), (-39.0, -39.0, -39.0))
    point = np.zeros(grid.shape, np.float32)
    point[20, 20, 20] = 1000
    dice = draws.Dice(3, (0,), 1)
    drawn = {s: dice.draw(ranges()[s]) for s in ("scanner", "noise", "view")}
    drawn["noise"] |= dict(cov=0.0, negatives="kept")
    drawn["view"] |= dict(has_cut_ends=False, round=False, has_cut_side=False, gamma=1.0)
    drawn["scanner"] |= dict(fwhm_mm=7.0, axial_ratio=1.5, has_scatter=False, resampled=False)
    sharp, _ = camera.image(dice, drawn, point, grid, grid)
    expected = np.sqrt(7**2 - 2.355**2 * 4 / 12)  # the voxel's average is in the 7 mm
    assert width(sharp, grid, 0) == pytest.approx(expected, rel=0.03)
    assert width(sharp, grid, 2) == pytest.approx(10.5, rel=0.04)
    drawn["scanner"] |= dict(resampled=True, slice_mm=8.0, pixel_mm=2.0, phase_x=0.0, phase_y=0.0)
    thick, record = camera.image(dice, drawn, point, grid, grid)
    assert record["voxel_mm"] == [2.0, 2.0, 8.0]
    assert width(thick, grid, 0) == pytest.approx(expected, rel=0.03)
    assert width(thick, grid, 2) > 12
    assert thick.sum() == pytest.approx(sharp.sum(), rel=0.1)


@pytest.mark.parametrize("law", ["em", "even", "fbp"])
def test_noise_laws(law):
    clean, r, _ = scan()
    noisy, _, _ = scan(law=law, cov=0.2, air=0.0, correlation=0.6, missing_rays=0.05)
    noise = noisy - clean
    inside_sd, air_sd = noise[r < 0.7].std(), noise[r > 2.2].std()
    assert inside_sd == pytest.approx(0.2 * 0.8, rel=0.15)
    low, high = {"em": (0, 0.15), "even": (0.8, 1.2), "fbp": (0.05, 0.8)}[law]
    assert low <= air_sd / inside_sd <= high
    assert (noisy.min() < -0.02) == (law != "em")
    for how in ("clipped", "absolute"):
        assert scan(law=law, cov=0.2, negatives=how)[0].min() >= 0


def test_cut_fields_of_view():
    full, _, grid = scan()
    ends, _, _ = scan(has_cut_ends=True, cut_ends=0.3, cut_at_bottom=1.0)
    seen = ends.any((0, 1))
    assert not seen[:11].any() and seen[13:].all()
    np.testing.assert_allclose(ends[..., 14:], full[..., 14:], atol=1e-3)
    side, _, _ = scan(has_cut_side=True, cut_side_mm=44.0, side="right")
    assert not side[-14:].any() and side[:-15].any()
    circle, _, _ = scan(round=True, round_mm=60.0)
    r = np.hypot(grid.axis(0)[:, None], grid.axis(1))
    assert not circle[r > 61].any() and circle[r < 59].all()


def test_gamma_keeps_the_reference_and_the_sign():
    plain, r, _ = scan(law="even", cov=0.3)
    bent, _, _ = scan(law="even", cov=0.3, gamma=1.25)
    assert ((plain < 0) == (bent < 0)).all()
    assert (np.abs(bent)[np.abs(plain) < 0.5] <= np.abs(plain)[np.abs(plain) < 0.5] + 1e-6).all()


def test_ranges_that_cannot_be_drawn_are_refused():
    for section, name, value in (
        ("scanner", "fwhm_mm", (0.0, 5.0)),
        ("scanner", "slice_mm", (8.0, 2.0)),
        ("scanner", "has_scatter", 1.5),
        ("noise", "law", {"em": 0.0, "even": 0.0, "fbp": 0.0}),
    ):
        with pytest.raises(UserError, match=f"randomised.{section}.{name}"):
            cohort.plan_cohort(small(section, **{name: value}))
    with pytest.raises(UserError, match="pets_per_person"):
        cohort.plan_cohort(small(mode="paired3", pets_per_person=2))


def test_prepared_with_its_gain_and_shared_targets(made, tmp_path):
    """PETs of a person share targets and split; the gain reaches the slices; a real twin does not."""
    folder, _ = made
    config = prepare_config.get_config("tiny")
    config.cohort, config.split_fractions = str(folder), (0.5, 0.25, 0.25)
    config.mr_rule, config.mr_high = "train_percentile", 0.72
    prepare.run(config, str(tmp_path / "p"))
    index = read_json(tmp_path / "p/index.json")
    split = {s["id"]: s["split"] for s in index["subjects"]}
    assert len(split) == 8
    with open(folder / "manifest.csv", newline="") as f:
        rows = {r["subject"]: r for r in csv.DictReader(f)}
    for entry in index["subjects"]:
        name = entry["id"]
        assert split[name] == split[name.partition("_")[0]]
        pet = read_volume(folder / rows[name]["pet"]).array
        bright = pet > 0.1 * np.percentile(pet[pet > 0], 99.9)
        own = np.percentile(pet[bright], 99)
        expected = own / float(rows[name]["pet_gain"])
        assert entry["volumes"]["pet"]["scale"] == pytest.approx(expected, rel=1e-3)
    # The same targets under two people's names are still an error.
    text = (folder / "manifest.csv").read_text().replace("sub-0001_pet2,sub-0001", "x,x")
    twin = folder / "twin.csv"
    twin.write_text(text)
    config.cohort = str(twin)
    with pytest.raises(UserError, match="the same image as sub-0001"):
        prepare.run(config, str(tmp_path / "q"))
    twin.write_text(text.replace("pet_gain", "pet_gian"))
    with pytest.raises(UserError, match="pet_gain"):
        prepare.run(config, str(tmp_path / "r"))
    twin.unlink()


def test_blobs_beside_the_head_are_left_out(tmp_path):
    from cldm_jax.data.nifti import write_volume

    codes = np.zeros((40, 40, 40), np.uint8)
    codes[10:30, 10:30, 10:30] = tissue.SKULL
    codes[15:25, 15:25, 15:25] = tissue.WM
    codes[18, 18, 18] = tissue.GM
    codes[1:3, 1:3, 1:3] = tissue.SKIN
    path = tmp_path / "label.nii.gz"
    write_volume(path, codes, np.diag([4.0, 4.0, 4.0, 1.0]), dtype=np.uint8)
    assert labels.read_labels(path).codes[1, 1, 1] == tissue.SKIN
    cleaned = labels.read_head(str(path)).codes
    assert cleaned[1, 1, 1] == tissue.AIR
    np.testing.assert_array_equal(cleaned[5:], codes[5:])


def test_older_runs_resume(tmp_path):
    """A training made before the mode existed has none of its settings. Its data are compared instead."""
    from cldm_jax import files

    new = record.comparable(unet.get_config("tiny"))
    old = record.comparable(unet.get_config("tiny"))
    for name in ("randomised", "randomised_share", "pets_per_person", "mr_target", "ct_target"):
        del old["data"]["simulate"][name]
    del old["data"]["prepare"]["train_min_head_fraction"]
    files.write_json(tmp_path / "config.json", old)
    record.check_same_config(tmp_path, new)


def test_every_range_has_its_words():
    said = comments((ROOT / "configs/simulate.py").read_text(encoding="utf-8"))
    names = [name for settings in ranges().values() for name in settings]
    assert len(names) == len(set(names)) > 60
    assert not [n for n in names if not said.get(n)]
