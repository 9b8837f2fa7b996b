"""Measures of a PET as it enters a network: right on shapes whose numbers are known, and compared."""

import types

import numpy as np
import pytest
from scipy import ndimage

from cldm_jax import Synthesiser
from cldm_jax.data import index, intensity, pet_ranges
from cldm_jax.data.pet_ranges import measure
from cldm_jax.errors import UserError
from faults import corpus

SPEC = intensity.make("pet", "volume_percentile", low=0, high=1.5, percentile=99)
MM = (3.0, 2.0, 2.0)
SHAPE = (70, 112, 96)
RADIUS = 60.0  # mm, of a brain; the skull is 8 mm, and the scalp as thick


def ball(*, fwhm=6.0, brain=0.8, core=None, scalp=0.0, air=0.0, noise=0.0):
    """Model range [Z, H, W]: a brain, its inner half `core`, a scalp; blurred, noise in all of it."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, MM, strict=True)]
    r = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)))
    u = np.where(r < RADIUS, brain, air)
    u = np.where(r < RADIUS / 2, brain if core is None else core, u)
    u = np.where((r > RADIUS + 8) & (r < RADIUS + 16), scalp, u)
    u = ndimage.gaussian_filter(u, fwhm / 2.355 / np.array(MM))
    u = u + noise * np.random.default_rng(0).standard_normal(SHAPE)
    return intensity.to_model(SPEC, u.astype(np.float32), 1.0)


@pytest.fixture(scope="module")
def plain():
    return measure(ball(), SPEC, MM)


def test_a_ball_has_its_own_numbers(plain):
    volume = 4 / 3 * np.pi * RADIUS**3 / 1000
    assert plain["brain_ml"] == pytest.approx(volume, rel=0.05)
    assert plain["brain_p50"] == pytest.approx(0.8, rel=0.01)
    assert plain["contrast"] == pytest.approx(1, abs=0.02)
    assert plain["cortex_over_depth"] == pytest.approx(1, abs=0.05)
    assert plain["scalp"] < 0.02 and plain["air_level"] == plain["air_noise"] == 0


@pytest.mark.parametrize("fwhm", [4.0, 6.0, 9.0])
def test_resolution_of_a_blurred_edge(fwhm):
    found = measure(ball(fwhm=fwhm), SPEC, MM)["resolution_mm"]
    assert found == pytest.approx(fwhm + 0.6, abs=0.15)  # pixels of 2 mm blur as well


def test_tracer_scalp_and_air(plain):
    """Each change moves its own number to the right value."""
    found = measure(ball(brain=0.8, core=0.2, scalp=0.4), SPEC, MM)
    assert found["contrast"] == pytest.approx(
        1, abs=0.2
    )  # the core is an eighth: below p25's reach
    assert found["cortex_over_depth"] == pytest.approx(
        0.8 / 0.56, rel=0.1
    )  # 0.56: mean of the depth
    assert found["scalp"] == pytest.approx(0.5 * 0.75, rel=0.05)  # 8 mm keep 0.75 under a blur of 6
    other = measure(ball(brain=0.4, core=0.8), SPEC, MM)
    assert other["cortex_over_depth"] < 0.75 < plain["cortex_over_depth"]
    noisy = measure(ball(air=0.2, noise=0.02), SPEC, MM)
    assert noisy["air_level"] == pytest.approx(0.25, rel=0.03)
    assert noisy["air_noise"] == pytest.approx(0.025, rel=0.1)


def test_voxels_do_not_matter(plain):
    """The same head on the slices and pixels of another grid."""
    coarse = measure(ball()[::2, ::2, ::2], SPEC, tuple(2 * s for s in MM))
    for name in ("brain_ml", "brain_p50", "contrast", "cortex_over_depth"):
        assert coarse[name] == pytest.approx(plain[name], rel=0.12)


class People:
    """What `of_people` needs of prepared data."""

    def __init__(self, pets):
        person = types.SimpleNamespace(voxel_mm=MM)
        self.pets = pets
        self.index = types.SimpleNamespace(
            people=[person] * len(pets), modalities={"pet": index.Modality(0, "SUV", SPEC)}
        )

    def subjects(self, split):
        return list(range(len(self.pets))) if split == "train" else []

    def has(self, subject, name):
        return name == "pet"

    def read(self, subject, name):
        return self.pets[subject]


def test_ranges_of_people_and_who_is_outside(monkeypatch):
    monkeypatch.setattr(pet_ranges, "MIN_PEOPLE", 4)
    drawn = ((0.1, 0.7, 0.01), (0.2, 0.8, 0.02), (0.3, 0.75, 0.015), (0.25, 0.7, 0.03))
    people = [ball(scalp=s, brain=b, noise=n) for s, b, n in drawn]
    ranges = pet_ranges.of_people(People(people))
    assert ranges["people"] == 4 and pet_ranges.check_form("x", ranges) == ranges
    low, high = ranges["measures"]["scalp"]
    assert 0.1 < low < 0.2 and 0.25 < high < 0.32
    inside = measure(ball(scalp=0.22, brain=0.75, noise=0.018), SPEC, MM)
    assert pet_ranges.outside(inside, ranges) == []
    assert pet_ranges.outside(inside | {"air_noise": 0.0, "scalp": None}, ranges) == []
    (found,) = pet_ranges.outside(inside | {"scalp": 0.9}, ranges)
    assert (found["Measure"], found["Value"], found["Trained"]) == ("scalp", 0.9, [low, high])
    (line,) = pet_ranges.checks([found])
    assert line.name == "uptake around the brain" and f"{high:.3g}" in line.warning
    assert pet_ranges.outside(inside, None) is None and pet_ranges.checks(None) == []
    assert pet_ranges.of_people(People(people[:3])) is None


@pytest.mark.parametrize("measures", [{"scalp": [1, 0]}, {"who": [0, 1]}, {"scalp": "ab"}, [1]])
def test_ranges_of_another_form_are_refused(measures):
    with pytest.raises(UserError, match="pet_ranges"):
        pet_ranges.check_form("model.json", {"people": 9, "measures": measures})


def test_no_head_is_refused_and_half_a_head_is_not(plain):
    pet_ranges.refuse_no_head("pet", plain)
    pet_ranges.refuse_no_head("pet", measure(ball()[35:], SPEC, MM))
    rng = np.random.default_rng(0)
    noise = intensity.to_model(SPEC, np.abs(rng.standard_normal(SHAPE)), 1.0)
    small = np.full(SHAPE, -1, np.float32)
    small[30:33, 50:60, 40:60] = 0.5
    for wrong in (noise, small, np.full(SHAPE, -1, np.float32)):
        with pytest.raises(UserError, match="no head stands out"):
            pet_ranges.refuse_no_head("pet", measure(wrong, SPEC, MM))


def test_a_brain_is_in_whole_millilitres():
    found = pet_ranges.outside({"brain_ml": 1612.4}, {"measures": {"brain_ml": [921.3, 1253.6]}})
    (line,) = pet_ranges.checks(found)
    assert line.value == "1610 ml" and "trained on 921 to 1250;" in line.warning


def test_a_flagged_pet_in_the_answer():
    """Inside the ranges nothing is said; of one that is outside each word is, and it is answered."""
    pet = corpus.head()["pet"], corpus.affine_of()
    with corpus.identity_model():
        model = Synthesiser(".", mode="onestep")
        unknown = model(pet)
        assert unknown.outside_training_range is None
        assert unknown["ct"].sidecar["OutsideTrainingRange"] == "not known"
        own = unknown["ct"].sidecar["InputMeasures"]
        around = {n: [0.9 * own[n], 1.1 * own[n]] for n in ("brain_p50", "scalp", "contrast")}
        for ranges, flagged in ((around, []), (around | {"scalp": [0.5, 0.6]}, ["scalp"])):
            model._model = model._model._replace(pet_ranges={"people": 9, "measures": ranges})
            made = model(pet)
            assert [x["Measure"] for x in made.outside_training_range] == flagged
            assert made["ct"].sidecar["OutsideTrainingRange"] == made.outside_training_range
            assert len(made.warnings) == len(unknown.warnings) + len(flagged)
        assert "trained on 0.5 to 0.6" in made.warnings[-1]
