"""A head in a long field of view: found with arms down, up and folded over it, in any voxel order."""

import numpy as np
import pytest
from scipy import ndimage

from cldm_jax import Synthesiser
from cldm_jax.data import grid, nifti, pet_checks, whole_body
from cldm_jax.errors import UserError
from cldm_jax.report import volume_page
from faults import corpus

MM = 6.0
AXES = [np.arange(-240, 240, MM), np.arange(-150, 150, MM), np.arange(-900, 190, MM)]
BRAIN = (66.0, 84.0, 62.0)  # half axes in mm, 20 mm above the origin; the head's: 78, 98, 110
FDG = {"muscle": 0.6, "cortex": 7.0, "white": 3.0, "liver": 2.2, "heart": 5.0, "bladder": 40.0}
COLD = FDG | {"cortex": 1.2, "white": 1.0, "liver": 8.0, "bladder": 30.0}  # amyloid-like


def make_body(uptake, arms="down", head=True):
    """A person's PET, RAS: ellipsoids and capsules; float32 and its affine."""
    g = np.meshgrid(*AXES, indexing="ij", sparse=True)

    def ball(centre, half):
        return sum(((a - b) / c) ** 2 for a, b, c in zip(g, centre, half, strict=True)) < 1

    def capsule(p, q, radius):
        p, q = np.array(p, float), np.array(q, float)
        along = sum((a - b) * e for a, b, e in zip(g, p, q - p, strict=True)) / ((q - p) @ (q - p))
        along = np.clip(along, 0, 1)
        near = [(a - (b + along * e)) ** 2 for a, b, e in zip(g, p, q - p, strict=True)]
        return sum(near) < radius**2

    pet = np.zeros([len(a) for a in AXES], np.float32)
    muscle = uptake["muscle"]
    pet[ball((0, 0, -470), (170, 105, 270))] = muscle
    for side in (-1, 1):
        pet[ball((side * 75, 10, -360), (55, 75, 110))] = 0.35
        elbow = (side * 180, 0, 40)
        if arms == "down":
            pet[capsule((side * 205, 0, -270), (side * 225, 0, -800), 42)] = muscle
        else:
            pet[capsule((side * 175, 0, -260), elbow, 44)] = muscle
            hand = {"up": (side * 140, -10, 180), "folded": (side * 25, 0, 130)}[arms]
            pet[capsule(elbow, hand, {"up": 36, "folded": 48}[arms])] = muscle
    pet[ball((60, 20, -540), (95, 80, 70))] = uptake["liver"]
    pet[ball((-20, -30, -390), (45, 45, 45))] = uptake["heart"]
    pet[ball((0, -20, -760), (40, 40, 40))] = uptake["bladder"]
    if head:
        pet[capsule((0, 0, -30), (0, -10, -260), 58)] = muscle
        pet[ball((0, 0, 0), (78, 98, 110))] = 0.5 * muscle
        pet[ball((0, 0, 20), BRAIN)] = uptake["cortex"]
        pet[ball((0, 0, 20), (35, 50, 30))] = uptake["white"]
    pet = ndimage.gaussian_filter(pet, 0.7)
    pet += (0.03 + 0.05 * pet) * np.random.default_rng(0).standard_normal(pet.shape)
    affine = np.diag([MM, MM, MM, 1.0])
    affine[:3, 3] = [a[0] for a in AXES]
    return np.maximum(pet, 0).astype(np.float32), affine


def reordered(array, affine, axes):
    """The same image with its voxel axes pointing to `axes`, such as "LPS"."""
    flips = [axis for axis, letter in enumerate(axes) if letter in "LPI"]
    affine = affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    return np.flip(array, flips).copy(), affine


def ends(crop):
    """Lowest and highest x, y, z of the box in mm."""
    shape = np.array(crop.head.array.shape) - 1
    corners = np.array([[0, 0, 0, 1], [*shape, 1]]) @ crop.head.affine.T
    return corners[:, :3].min(0), corners[:, :3].max(0)


@pytest.mark.parametrize(
    "uptake, arms, axes",
    [
        (FDG, "down", "RAS"),
        (FDG, "up", "LPS"),
        (FDG, "folded", "RAI"),
        (COLD, "up", "LPI"),
        (COLD, "folded", "RAS"),
    ],
    ids=str,
)
def test_the_box_holds_the_brain_and_not_the_body(uptake, arms, axes):
    array, affine = reordered(*make_body(uptake, arms), axes)
    crop = whole_body.find_head(nifti.from_array(array, affine), "pet")
    low, high = ends(crop)
    centre = np.array([0, 0, 20])
    assert (low < centre - BRAIN).all() and (high > centre + BRAIN).all()
    assert low[2] > -150 and high[2] < 180 and (high - low <= 300).all()
    np.testing.assert_array_equal(crop.head.array, array[crop.box])
    assert (affine @ [*(b.start for b in crop.box), 1] == crop.head.affine[:, 3]).all()


@pytest.mark.parametrize("start, warned", [(0, True), (40, False)])
def test_arms_that_end_at_the_box_are_no_head_cut_by_the_image(start, warned):
    """An arm up to the box's left end: it warns where that is the image's own."""
    array = np.zeros((140, 60, 60), np.float32)
    array[start : start + 6, 20:26], array[start + 20 : start + 45, 15:45, 10:50] = 1, 1
    pet = nifti.from_array(array, np.diag([4.0, 4, 4, 1]))
    low = np.array([start, 0, 0])
    crop = whole_body._cut(pet, pet, low, low + 60, 600.0)
    assert crop.cropped.tolist() == [[start > 0, False, False], [True, False, False]]
    model = grid.ModelGrid((200, 200), (2.0, 2.0), 2.0)
    found = pet_checks.check_pet(crop.head, model, crop.head.affine, 200, crop.cropped)
    said = next(c.warning for c in found if c.name == "foreground at the image's edge")
    assert bool(said) == warned
    found = pet_checks.check_pet(crop.head, model, crop.head.affine, 200)
    assert next(c.warning for c in found if c.name == "foreground at the image's edge")


def test_a_head_alone_is_left_as_it_is():
    array, affine = make_body(FDG)
    short = nifti.from_array(array[..., -60:], affine)  # 36 cm
    assert whole_body.find_head(short, "pet") is None
    assert whole_body.paste(short.array, None, (1, 1, 1), 0.0) is short.array


def test_no_head_is_one_line():
    legs = np.zeros((80, 50, 180), np.float32)
    legs[20:30, 20:30], legs[50:60, 20:30] = 1, 1
    with pytest.raises(UserError, match="pet: no head found in a field of view of 108 cm"):
        whole_body.find_head(nifti.from_array(legs, np.diag([MM, MM, MM, 1])), "pet")


def test_the_answer_is_the_heads_on_the_whole_grid(tmp_path, monkeypatch):
    """To the bit that of the head cut out by hand, at its place; air and 0 elsewhere; and it is said.
    The report shows the head, and counts the file's voxels.
    """
    array, affine = reordered(*make_body(FDG, "up"), "LPI")
    box = whole_body.find_head(nifti.from_array(array, affine), "pet").box
    by_hand = affine.copy()
    by_hand[:3, 3] += affine[:3, :3] @ [b.start for b in box]
    with corpus.identity_model():
        model = Synthesiser(".", mode="onestep", uncertainty=True, samples=2)
        whole, alone = model((array, affine)), model((array[box], by_hand))
    for target, air in (("ct", -1024), ("mr", 0)):
        for kind, fill in (("image", air), ("sd", 0)):
            made, own = (getattr(m[target], kind) for m in (whole, alone))
            assert made.shape == array.shape
            np.testing.assert_array_equal(made.affine, affine)
            made = np.asarray(made.dataobj)
            np.testing.assert_array_equal(made[box], np.asarray(own.dataobj))
            made[box] = fill
            assert (made == fill).all()
    sidecar = whole["ct"].sidecar
    assert sidecar["HeadBox"] == [[b.start, b.stop] for b in box]
    assert alone["ct"].sidecar["HeadBox"] is None
    assert sum("field of view 109 cm long, the head found" in w for w in whole.warnings) == 1
    assert (
        sidecar["InputMeasures"] == alone["ct"].sidecar["InputMeasures"]
    )  # scaled by the head alone
    pages = []
    monkeypatch.setattr(volume_page, "write", lambda *args, **words: pages.append(args))
    whole.save(tmp_path, report=True)
    ((_, _, (pet, *_), (head, file), *_),) = pages
    hottest = np.unravel_index(pet.array.argmax(), pet.array.shape)
    voxel = np.linalg.solve(file, head @ [*hottest, 1])[:3].round().astype(int)
    assert array[tuple(voxel)] == pet.array.max()
