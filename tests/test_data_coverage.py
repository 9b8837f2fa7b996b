"""What a target does not show of the head is neither trained on nor scored; whole images stay as is."""

import numpy as np
import pytest
from data_heads import SHAPE, SPACING, affine_of, make_head

from cldm_jax import files
from cldm_jax.data import audit, coverage, nifti, pipeline
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from configs import prepare as prepare_config

X, Y, Z = np.meshgrid(
    *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING, strict=True)], indexing="ij"
)
TOP = Z > 20


def bare_brain(i, head):
    """Inside the skull, with nothing around it, as a brain extraction leaves it."""
    a, b, c = np.array([68.0, 84.0, 58.0]) * np.random.default_rng(i).uniform(0.95, 1.03, 3)
    r = np.sqrt(((X - 6) / a) ** 2 + ((Y + 8) / b) ** 2 + ((Z + 7) / c) ** 2)
    head["mr"][r > 0.8] = 0


def write(folder, edit, names=("pet", "ct", "mr"), people=5):
    for i in range(people):
        head = make_head(i)
        edit(i, head)
        place = {"pet": "pet/{}_pet", "ct": "ct/{}_ct", "mr": "anat/{}_T1w"}
        for name in names:
            path = folder / f"sub-{i}" / (place[name].format(f"sub-{i}") + ".nii.gz")
            nifti.write_volume(path, head[name], affine_of(), dtype=np.float32)
    return folder


def prepared_of(tmp_path, edit, **options):
    """(what was prepared, reasons of the warnings)."""
    config = prepare_config.get_config("tiny")
    config.cohort = str(write(tmp_path / "cohort", edit, **options))
    prepare.run(config, str(tmp_path / "prepared"))
    found = files.read_json(tmp_path / "prepared" / "audit.json")["findings"]
    return Prepared(tmp_path / "prepared"), [f["reason"] for f in found]


def items_of(prepared, target):
    options = dict(context=1, latents=None, source_kind="image")
    return pipeline.make_source(prepared, split="all", targets=(target,), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    prepared, reasons = prepared_of(tmp_path_factory.mktemp("whole"), lambda i, head: None)
    assert reasons == []
    return prepared


def fill(name, where, value):
    return lambda i, head: head[name].__setitem__(where, value)


@pytest.mark.parametrize("value", [-1000, -1024, -2000, -3024])
def test_air_beside_the_head_is_air_whatever_its_number(tmp_path, whole, value):
    prepared, reasons = prepared_of(tmp_path, fill("ct", X**2 + Y**2 > 105**2, value))
    assert reasons == []
    for s in range(5):
        assert not prepared.has(s, "mask_ct")
        np.testing.assert_array_equal(prepared.read(s, "mask"), whole.read(s, "mask"))


@pytest.mark.parametrize("value", [0, 40, -200])
def test_a_fill_that_is_no_air_is_said_and_taken_as_air(tmp_path, whole, value):
    outside = X**2 + Y**2 > 100**2
    prepared, reasons = prepared_of(tmp_path, fill("ct", outside, value))
    assert len(reasons) == 5 and all(f"exactly {value} HU, up to the edge" in r for r in reasons)
    for s in range(5):
        np.testing.assert_array_equal(prepared.read(s, "mask"), whole.read(s, "mask"))
        hu = (prepared.read(s, "ct") + 1) * 2047.5 - 1024
        assert (np.abs(hu - value) < 1).mean() < 0.02  # against a quarter that was filled


@pytest.mark.parametrize(
    "name, value", [("mr", 0), ("ct", 0), ("ct", -1024), ("ct", -3024), ("mr", 700)]
)
def test_a_slab_resliced_to_the_whole_head(tmp_path, whole, name, value):
    other = {"ct": "mr", "mr": "ct"}[name]
    prepared, reasons = prepared_of(tmp_path, fill(name, TOP, value))
    assert sum("of the head:" in r for r in reasons) == 5
    assert len(items_of(prepared, other)) == len(items_of(whole, other)) > 60
    seen = int((~TOP[0, 0]).sum())
    for s in range(5):
        kept = np.flatnonzero(prepared.keep(s, name))
        np.testing.assert_array_equal(
            kept, [z for z in np.flatnonzero(whole.keep(s, name)) if z < seen]
        )
        # Whoever reads the person's list alone finds nothing in it that was not measured.
        both = prepared.keep(s, name) & prepared.keep(s, other)
        np.testing.assert_array_equal(prepared.json["subjects"][s]["keep"], both)
        np.testing.assert_array_equal(prepared.keep(s, "pet"), whole.keep(s, "pet"))
    images = items_of(prepared, name).read(np.arange(len(items_of(prepared, name))))
    assert np.ptp(images["target"], axis=(1, 2, 3)).min() > 0.5  # none is constant
    # What is masked was measured: no scored voxel is fill.
    air = -1.0
    assert (images["target"][images["mask"] > 0] == air).mean() < 0.01


@pytest.mark.parametrize("value", [-1000, -1024])
def test_a_ct_of_less_than_half_of_the_head_is_in_hu_all_the_same(tmp_path, value):
    prepared, reasons = prepared_of(tmp_path, fill("ct", Z < 0, value))
    assert sum("of the head:" in r for r in reasons) == 5
    assert all(0 < prepared.keep(s, "ct").sum() <= (Z[0, 0] >= 0).sum() for s in range(5))


def test_a_cut_through_every_slice_leaves_those_that_show_the_head(tmp_path):
    prepared, reasons = prepared_of(tmp_path, fill("mr", Y > 45, 0))
    assert sum("of the head:" in r for r in reasons) == 5
    for s in range(5):
        mask, mr = prepared.read(s, prepared.mask_of(s, "mr")) > 0, prepared.read(s, "mr")
        assert prepared.keep(s, "mr").sum() < prepared.keep(s, "ct").sum()
        assert (mr[mask] == -1).mean() < 0.01 < (mr[prepared.read(s, "mask") > 0] == -1).mean()


def test_a_scan_whose_field_of_view_ends_early(tmp_path, whole):
    """As given, not resliced: with the affines trusted."""
    folder = write(tmp_path / "cohort", lambda i, head: None)
    for i in range(5):
        slab = make_head(i)["mr"][:, :, :12]
        path = folder / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz"
        nifti.write_volume(path, slab, affine_of(), dtype=np.float32)
    config = prepare_config.get_config("tiny")
    config.cohort, config.allow_misaligned = str(folder), True
    prepare.run(config, str(tmp_path / "prepared"))
    prepared = Prepared(tmp_path / "prepared")
    for s in range(5):
        assert np.flatnonzero(prepared.keep(s, "mr")).max() == 11
        np.testing.assert_array_equal(prepared.keep(s, "ct"), whole.keep(s, "ct"))


@pytest.mark.parametrize("names", [("pet", "ct", "mr"), ("pet", "mr")])
def test_some_people_without_a_skull(tmp_path, names):
    def edit(i, head):
        if i < 2:
            bare_brain(i, head)

    prepared, reasons = prepared_of(tmp_path, edit, names=names)
    (said,) = (r for r in reasons if "without skull" in r)
    assert "2 of 5 subjects" in said and "sub-0, sub-1" in said
    if "ct" in names:
        assert sum("shows the brain and not the head" in r for r in reasons) == 2
        for s in range(5):
            mr = prepared.read(s, "mr")[prepared.keep(s, "mr")]
            assert len(mr) and np.ptp(mr, axis=(1, 2)).min() > 0.5
            assert prepared.has(s, "mask_mr") == (s < 2)
            shown = prepared.read(s, prepared.mask_of(s, "mr")) > 0
            assert (prepared.read(s, "mr")[shown] == -1).mean() < 0.02


def test_no_skull_anywhere_is_a_choice(tmp_path):
    prepared, reasons = prepared_of(tmp_path, bare_brain, names=("pet", "mr"))
    assert reasons == [] and len(items_of(prepared, "mr")) > 30


@pytest.mark.parametrize("name", ["ct", "mr"])
def test_what_this_program_made_is_no_truth(tmp_path, name):
    """Under any file name: the header says it."""
    folder = write(tmp_path, lambda i, head: None)
    end = {"ct": "ct/sub-1_ct.nii.gz", "mr": "anat/sub-1_T1w.nii.gz"}[name]
    path, array = folder / "sub-1" / end, make_head(1)[name]
    options = dict(dtype=np.float32, description=nifti.SYNTHETIC)
    nifti.write_volume(path, array, affine_of(), **options)
    config = prepare_config.get_config("tiny")
    config.cohort = str(folder)
    with pytest.raises(UserError, match="sub-1.*made by this program"):
        prepare.run(config, str(tmp_path / "prepared"))


class TestBlocks:
    def test_noise_has_none(self):
        noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
        blocks, values = coverage.filled_blocks(noise)
        assert values == {} and not blocks.any()

    def test_exactly_what_was_filled(self):
        array = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
        where = np.zeros(array.shape, bool)
        where[:, :, -1] = True  # one slice is enough
        where[:5] = True
        array[where] = 3
        inside = array.copy()
        inside[10:14, 10:14, 10:14] = 9  # a block that touches no border is anatomy
        for image in (array, inside):
            blocks, values = coverage.filled_blocks(image)
            np.testing.assert_array_equal(blocks > 0, where)
            assert set(values.values()) == {3.0}

    def test_tissue_of_an_image_without_noise_is_no_fill(self):
        """A neck of one value that ends at the border, in an image that is constant everywhere."""
        x = np.indices((30, 30, 30))
        neck = (x[0] - 15) ** 2 + (x[1] - 15) ** 2 < 81
        array = np.where(neck, 40.0, -1000.0).astype(np.float32)
        array[12:19, 12:19, 8:20] = 1000
        blocks, values = coverage.filled_blocks(array)
        assert set(values.values()) == {-1000.0} and not blocks[neck].any()


def test_people_of_one_size_have_skulls():
    sizes = dict(zip("abcde", (1.0, 1.1, 0.9, 1.2, 0.8), strict=True))
    assert audit.check_skulls({k: (False, v) for k, v in sizes.items()}) == []
    (found,) = audit.check_skulls({"z": (False, 0.5), **{k: (False, v) for k, v in sizes.items()}})
    assert "1 of 6" in found.reason and "(z)" in found.reason and found.severity == "warning"
    assert audit.check_skulls({}) == []


def test_above_the_head_a_slice_counts_only_where_the_target_was_measured():
    """All slices asked for (a share of 0): with PET in the air, a CT that ended below says nothing."""
    head = {k: v.transpose(2, 1, 0) for k, v in make_head(0).items() if k != "mr"}
    top = len(head["pet"]) - 1
    head["pet"], head["ct"] = head["pet"].copy(), head["ct"].copy()
    head["ct"][top - 1 :] = -1000.0  # air above the head; the PET's blur reaches into it
    head["pet"][top - 1 :] = 0.0
    head["pet"][top - 1 :, 20:24, 18:22] = 1.0
    seen = np.ones(head["ct"].shape, bool)
    for ends_below in (False, True):
        seen[top - 1 :] = not ends_below
        found = coverage.judge(head, {"ct": seen}, SPACING[::-1], 1.0, 0.0)
        assert found.keep[top - 1 :].all() and not found.mask[top - 1 :].any()
        assert (found.covers["ct"].keep[top - 1 :] != ends_below).all()
