"""The simulate job: files, manifest, repeatability, resuming, label volumes, refusals."""

import collections
import csv
import shutil

import numpy as np
import pytest

from cldm_jax.data import audit, bids
from cldm_jax.data.nifti import read_volume, write_volume
from cldm_jax.errors import UserError
from cldm_jax.files import read_json, sha256_file
from cldm_jax.jobs import simulate
from cldm_jax.phantom import cohort, subject, tissue
from cldm_jax.phantom.fields import Grid
from cldm_jax.runtime.runlock import run_lock
from configs.simulate import PRESETS, get_config


def small(**changes):
    config = get_config("tiny")
    config.update({"n_subjects": 3, **changes})
    return config


def rows(folder):
    with open(folder / "manifest.csv", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(folder, config) of the tiny preset with three people."""
    folder = tmp_path_factory.mktemp("cohort") / "tiny"
    config = small()
    simulate.run(config, str(folder))
    return folder, config


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two label volumes in BrainWeb codes, made from the embedded head at 3 x 3 x 6 mm."""
    folder = tmp_path_factory.mktemp("heads")
    shape, spacing = (60, 72, 16), (3.0, 3.0, 6.0)
    for i, name in enumerate(("head-a", "head-b")):
        plan = cohort.plan_cohort(small(shape=shape, spacing_mm=spacing))[i]
        volumes, grid, _ = subject.simulate(plan)
        codes = volumes["label"]
        codes[codes == tissue.DEEP] = tissue.GM
        codes[codes == tissue.TUMOUR] = tissue.WM
        write_volume(folder / name / "label.nii.gz", codes, grid.affine(), dtype=np.uint8)
    return folder


def test_files_and_manifest(tiny):
    folder, config = tiny
    manifest = read_json(folder / "manifest.json")
    assert manifest["contrast"] == "simulated" and manifest["mode"] == "paired3"
    assert manifest["config"]["n_subjects"] == 3
    assert "no patient" in read_json(folder / "dataset_description.json")["Description"]
    table = rows(folder)
    assert [r["subject"] for r in table] == ["sub-0001", "sub-0002", "sub-0003"]
    for row in table:
        assert row["group"] == row["subject"] and row["split"] == ""
        for name in ("pet", "ct", "mr", "ct_reacq", "mr_reacq"):
            assert (folder / row[name]).is_file()
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert on_disk - set(manifest["files"]) == {"manifest.json", "simulate.json"}
    for name, digest in manifest["files"].items():
        assert sha256_file(folder / name) == digest


def test_volumes_agree_with_the_contract(tiny):
    folder, config = tiny
    volumes = {m: read_volume(folder / f"sub-0001/{m}.nii.gz") for m in ("pet", "ct", "mr")}
    for volume in volumes.values():
        assert volume.array.shape == config.shape
        np.testing.assert_allclose(np.diag(volume.affine)[:3], config.spacing_mm)
        centre = volume.affine[:3, :3] @ (np.array(config.shape) - 1) / 2 + volume.affine[:3, 3]
        assert np.abs(centre).max() < 45
        assert int(volume.header["qform_code"]) == int(volume.header["sform_code"]) == 1
    assert volumes["ct"].header.get_data_dtype() == np.int16
    assert volumes["ct"].array.min() >= -1024 and volumes["ct"].array.max() <= 3071
    truth = read_json(folder / "sub-0001/truth/truth.json")
    assert truth["contrast"] == "simulated"
    assert len(truth["label_codes"]) == tissue.N_CODES
    label = read_volume(folder / "sub-0001/truth/label.nii.gz").array
    assert label.shape == config.shape and set(np.unique(label)) <= set(range(tissue.N_CODES))


# mean and SD of each volume
GOLDEN = {
    "sub-0001/pet": [1.58092, 2.16239],
    "sub-0001/ct": [-472.207, 570.964],
    "sub-0001/mr": [87.3751, 90.3808],
    "sub-0003/pet": [2.09151, 2.90058],
    "sub-0003/ct": [-465.458, 566.97],
    "sub-0003/mr": [326.377, 334.367],
}


def test_default_people_have_not_changed(tiny):
    """Statistics, not bytes: filters differ in the last bits between scipy versions.

    If you did not mean to change the simulated people, this is a bug; else update GOLDEN.
    """
    folder, _ = tiny
    for key, expected in GOLDEN.items():
        values = read_volume(folder / f"{key}.nii.gz").array.astype(np.float64)
        assert [values.mean(), values.std()] == pytest.approx(expected, rel=1e-3), key


def test_rerun_has_nothing_to_do_and_other_settings_are_refused(tiny, capsys):
    folder, config = tiny
    before = (folder / "manifest.json").stat().st_mtime_ns
    simulate.run(config, str(folder))
    assert "nothing to do" in capsys.readouterr().out
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="seed") as error:
        simulate.run(small(seed=1), str(folder))
    assert "another workdir" in error.value.remedy


def test_same_bytes_from_any_number_of_workers_and_after_an_interruption(tiny, tmp_path):
    folder, _ = tiny
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "manifest.json").unlink()
    (copy / "manifest.csv").unlink()
    shutil.rmtree(copy / "sub-0001")
    shutil.rmtree(copy / "sub-0003")
    (copy / ".tmp-1-sub-0003" / "truth").mkdir(parents=True)
    kept = (copy / "sub-0002/pet.nii.gz").stat().st_mtime_ns
    simulate.run(small(workers=2), str(copy))
    assert read_json(copy / "manifest.json") == read_json(folder / "manifest.json")
    assert (copy / "sub-0002/pet.nii.gz").stat().st_mtime_ns == kept
    assert not list(copy.glob(".tmp-*"))


def test_an_unfinished_cohort_is_not_taken_for_a_whole_one(tiny, tmp_path):
    """Half of its people were prepared, as patients, and without the groups of who share a head."""
    copy = shutil.copytree(tiny[0], tmp_path / "copy")
    for name in ("manifest.csv", "dataset_description.json", "manifest.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "sub-0003")
    with pytest.raises(UserError, match="not finished. Run the command that began it again"):
        bids.find_cohort(copy)
    simulate.run(small(), str(copy))
    assert len(bids.find_cohort(copy).subjects) == 3


def test_a_second_process_is_refused_and_takes_nothing_away(tiny, tmp_path):
    """It swept the person that the first one was writing, who came out without some of the volumes."""
    folder, _ = tiny
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    (copy / ".tmp-1-sub-0009").mkdir()
    with run_lock(copy):
        with pytest.raises(UserError, match="in use by process"):
            simulate.run(small(), str(copy))
        assert (copy / ".tmp-1-sub-0009").is_dir()
    simulate.run(small(), str(copy))
    assert not (copy / ".tmp-1-sub-0009").exists() and not (copy / ".lock").exists()


@pytest.mark.parametrize("name", [".lock", ".tmp-1-simulate.json"])
def test_what_a_kill_leaves_first_is_no_other_file(tmp_path, name):
    (tmp_path / name).touch()
    simulate._check_folder(tmp_path, {})


def test_another_seed_gives_other_people(tiny, tmp_path):
    folder, _ = tiny
    simulate.run(small(seed=7, n_subjects=1, reacquire=False), str(tmp_path / "c"))
    ours = read_volume(folder / "sub-0001/pet.nii.gz").array
    assert not np.allclose(read_volume(tmp_path / "c/sub-0001/pet.nii.gz").array, ours)
    assert rows(tmp_path / "c")[0]["ct_reacq"] == ""


def test_a_crash_leaves_no_half_person(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(subject, "write_json", fail)
    with pytest.raises(OSError):
        simulate.run(small(n_subjects=1), str(tmp_path / "c"))
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["simulate.json"]


def test_too_little_disk_is_refused_before_any_work(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(simulate.shutil, "disk_usage", lambda _: usage(9e5, 8e5, 1e5))
    with pytest.raises(UserError, match="needs about 0.323 MB and has 0.1 MB free"):
        simulate.run(small(), str(tmp_path / "c"))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="other files"):
        simulate.run(small(), str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "paired"),
        ("pet_model", "mlem"),
        ("mr_target", "canonica"),
        ("shape", (10, 10, 6)),
        ("spacing_mm", (0.0, 6.0, 8.0)),
    ],
)
def test_wrong_settings_are_named(field, value, tmp_path):
    with pytest.raises(UserError, match=field):
        simulate.run(small(**{field: value}), str(tmp_path / "c"))


def test_abstract_mode_gives_each_person_one_target():
    plans = cohort.plan_cohort(small(mode="abstract", n_subjects=50))
    with_mr = [p for p in plans if "mr" in p.modalities]
    assert len(with_mr) == 12  # 24 %
    assert all(("ct" in p.modalities) != ("mr" in p.modalities) for p in plans)
    assert all(p.profile == ("pet_mr" if "mr" in p.modalities else "pet_ct") for p in plans)
    assert all(("mr_reacq" in p.modalities) == ("mr" in p.modalities) for p in plans)
    two = cohort.plan_cohort(small(mode="abstract", n_subjects=2))
    assert {"mr" in p.modalities for p in two} == {True, False}


def test_adversarial_twins_stay_together(tmp_path):
    simulate.run(small(mode="adversarial", n_subjects=2, reacquire=False), str(tmp_path / "c"))
    one, two = rows(tmp_path / "c")
    assert one["group"] == two["group"]
    digests = [sha256_file(tmp_path / "c" / r["pet"]) for r in (one, two)]
    assert digests[0] == digests[1]
    assert sha256_file(tmp_path / "c" / one["ct"]) != sha256_file(tmp_path / "c" / two["ct"])
    with pytest.raises(UserError, match="odd"):
        cohort.plan_cohort(small(mode="adversarial", n_subjects=3))


@pytest.mark.parametrize("mode", cohort.MODES)
def test_what_a_mode_makes_can_be_prepared(tmp_path, mode):
    """No image twice that the audit refuses, though twins share their PET."""
    simulate.run(small(mode=mode, n_subjects=2), str(tmp_path))
    people = bids.find_cohort(tmp_path / "manifest.csv").subjects
    pixels = {
        s.id: {n: audit.pixel_digest(read_volume(path)) for n, path in s.files.items()}
        for s in people
    }
    assert len(people) >= 2 and all(len(p) > 1 for p in pixels.values())
    assert [f for f in audit.audit_cohort(people, pixels, "default") if f.severity == "error"] == []
    one, two = (pixels[s.id] for s in people[:2])
    doubled = {people[0].id: one, people[1].id: {n: one.get(n, d) for n, d in two.items()}}
    doubled = audit.audit_cohort(people[:2], doubled, "default")  # one scan under two names
    assert any("the same image as" in f.reason for f in doubled)


def labelled(heads, **changes):
    defaults = dict(labels=str(heads), spacing_mm=(6.0, 6.0, 6.0), variants_per_head=2)
    return small(**{**defaults, "reacquire": False, **changes})


def test_label_volumes_become_groups_of_virtual_people(heads, tmp_path):
    simulate.run(labelled(heads), str(tmp_path / "c"))
    table = rows(tmp_path / "c")
    assert [r["group"] for r in table] == ["head-a", "head-a", "head-b", "head-b"]
    pets = [read_volume(tmp_path / "c" / r["pet"]).array for r in table]
    assert pets[0].shape == (30, 36, 16)  # the whole field of view
    assert not any(np.allclose(pets[0], p) for p in pets[1:])
    settings = read_json(tmp_path / "c/simulate.json")
    assert set(settings["label_files"]) == {"head-a", "head-b"}
    truth = read_json(tmp_path / "c/sub-0002/truth/truth.json")
    assert truth["anatomy"]["jacobian_min"] > 0
    assert not np.allclose(truth["anatomy"]["pose"], np.eye(3))


def test_plain_variant_keeps_the_labels_as_given(heads):
    plans = cohort.plan_cohort(labelled(heads, vary_first=False, spacing_mm=(3.0, 3.0, 6.0)))
    given = read_volume(heads / "head-a/label.nii.gz").array
    plain, grid, _, _ = subject.build_anatomy(plans[0])
    moved, _, _, _ = subject.build_anatomy(plans[1])
    np.testing.assert_array_equal(plain, given)
    assert 0.5 < (moved == given).mean() < 0.99
    np.testing.assert_allclose(grid.spacing, (3, 3, 6))


def test_adding_a_head_leaves_the_others_as_they_are(heads, tmp_path):
    shutil.copytree(heads, tmp_path / "h")
    shutil.copytree(tmp_path / "h/head-b", tmp_path / "h/head-0")
    before = {p.group: p.key for p in cohort.plan_cohort(labelled(heads, variants_per_head=1))}
    after = cohort.plan_cohort(labelled(tmp_path / "h", variants_per_head=1))
    assert {p.group: p.key for p in after if p.group in before} == before


def test_foreign_label_volumes_are_refused(tmp_path):
    grid = Grid((12, 12, 12), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    codes = np.arange(12**3).reshape(grid.shape) % 12
    for i, (reason, array) in enumerate(
        (
            ("codes from 0 to 24", codes * 24 // 11),
            ("no skull", np.where(codes == tissue.SKULL, 0, codes)),
            ("whole numbers", codes + 0.5),
        )
    ):
        folder = tmp_path / str(i)
        path = folder / "head/label.nii.gz"
        write_volume(path, array, grid.affine(), dtype=np.float32)
        with pytest.raises(UserError, match=reason):
            simulate.run(labelled(folder), str(tmp_path / "c"))
    with pytest.raises(UserError, match="label.nii.gz"):
        simulate.run(labelled(tmp_path), str(tmp_path / "c"))
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_every_preset_plans_a_cohort():
    for preset in PRESETS:
        config = get_config(preset)
        assert len(cohort.plan_cohort(config)) == config.n_subjects
    with pytest.raises(ValueError, match="quick"):
        get_config("huge")
