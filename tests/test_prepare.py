"""The prepare job end to end on small cohorts: what is stored, what stops it, what it repeats."""

import json
import os
import shutil

import numpy as np
import pytest
from data_heads import affine_of, make_head, write_cohort

from cldm_jax.data import intensity, nifti, shards
from cldm_jax.data.convert import source_slices
from cldm_jax.data.grid import ModelGrid, from_grid
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from cldm_jax.runtime.runlock import run_lock
from configs import common
from configs.prepare import PRESETS, get_config

ALL = ("pet", "ct", "mr", "ct_reacq", "mr_reacq")
PEOPLE = {
    "p0": dict(names=ALL),
    "p1": dict(group="twin"),
    "p2": dict(group="twin"),
    "p3": dict(names=("pet", "ct")),
    "p4": dict(names=("pet", "mr")),
    "p5": dict(),
}


def _config(folder, **changes):
    config = get_config("tiny")
    config.cohort = str(folder)
    config.shard_items = 40
    config.size, config.spacing_mm = (
        (44, 40),
        (5.0, 5.0),
    )  # the fixture's own spacing: no resampling
    for key, value in changes.items():
        config[key] = value
    return config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, PEOPLE)
    return folder


@pytest.fixture(scope="module")
def prepared(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "prepared"
    prepare.run(_config(cohort), str(folder))
    return shards.Prepared(folder, verify=True)


def _entry(prepared, name):
    ids = [s["id"] for s in prepared.json["subjects"]]
    return ids.index(name), prepared.json["subjects"][ids.index(name)]


def test_the_index(prepared):
    index = prepared.json
    assert index["format"] == "cldm_jax-slices" and index["kind"] == "images"
    assert index["contrast"] == "unknown" and index["protocol"] == "cldm"
    assert index["grid"] == {
        "size": [44, 40],
        "spacing_mm": [5.0, 5.0],
        "slice_spacing_mm": None,
        "center": "pet",
    }
    assert {m: v["code"] for m, v in index["modalities"].items()} == {"pet": 0, "ct": 1, "mr": 2}
    assert [s["id"] for s in index["subjects"]] == sorted(PEOPLE)
    for subject in index["subjects"]:
        wanted = set(PEOPLE[subject["id"]].get("names", ("pet", "ct", "mr"))) | {"mask"}
        assert set(subject["volumes"]) == wanted
        assert len(subject["keep"]) == subject["n_slices"] == 18
        assert 8 <= sum(subject["keep"]) < 18  # the ends show no head
        assert subject["id"] in index["splits"][subject["split"]]
    assert json.loads(json.dumps(index)) == index


def test_stored_volumes_are_the_files(prepared, cohort):
    """Back in units and on the scan's own voxels: the input, to the clip and the uint16 steps."""
    i, entry = _entry(prepared, "p0")
    for name in ALL:
        volume = nifti.read_volume(cohort / "p0" / f"{name}.nii.gz")
        stored = entry["volumes"][name]
        assert stored["sha256"] == volume.sha256
        base = intensity.base_modality(name)
        spec = intensity.from_json(prepared.json["modalities"][base]["normaliser"])
        assert np.isclose(stored["scale"], intensity.volume_scaling(spec, volume.array)[0])
        units = intensity.from_model(spec, prepared.read(i, name), stored["scale"])
        back = from_grid(
            units, entry["grid_affine"], volume.array.shape, volume.affine, fill=np.nan
        )
        inside = np.isfinite(back)
        assert inside.mean() > 0.9
        expected = np.clip(volume.array, spec.low * stored["scale"], spec.high * stored["scale"])
        step = (spec.high - spec.low) * stored["scale"] / 65535
        assert np.abs(back - expected)[inside].max() < 0.6 * step + 1e-3


def test_reacquisitions_have_their_own_scale(prepared):
    _, entry = _entry(prepared, "p0")
    first, second = (entry["volumes"][m]["scale"] for m in ("mr", "mr_reacq"))
    assert first != second and np.isclose(first, second, rtol=0.05)


def test_the_head_is_centred_and_masked(prepared):
    for i in range(len(PEOPLE)):
        head = prepared.read(i, "mask") > 0
        pet = prepared.read(i, "pet") + 1
        index = np.nonzero(pet > 0.2)
        centre = [(k * pet[index]).sum() / pet[index].sum() for k in index]
        assert abs(centre[1] - 21.5) < 1 and abs(centre[2] - 19.5) < 1
        target = "ct" if prepared.has(i, "ct") else "mr"
        inside, outside = (prepared.read(i, target)[m].mean() for m in (head, ~head))
        assert inside > outside + 0.2
        area = head.mean((1, 2))
        keep = np.array(prepared.json["subjects"][i]["keep"])
        assert area[keep].min() >= 0.08 and (area[~keep] < 0.08).all()


def test_people_are_not_parted_and_constants_come_from_training(prepared, cohort):
    index = prepared.json
    home = {s["id"]: s["split"] for s in index["subjects"]}
    assert home["p1"] == home["p2"] and set(home.values()) == {"train", "val", "test"}
    for name in ("pet", "mr"):
        scales = {
            s["id"]: s["volumes"][name]["scale"] for s in index["subjects"] if name in s["volumes"]
        }
        train = [v for k, v in scales.items() if home[k] == "train"]
        fitted = index["modalities"][name]["normaliser"]["population_scale"]
        assert np.isclose(fitted, np.median(train))
    assert not np.isclose(fitted, np.median(list(scales.values())))  # negative control: MR


def test_constants_ignore_the_other_people(cohort, tmp_path):
    """Changing a test person's intensities leaves the constants; a training person's moves them."""
    constants = {}
    for case in ("as it is", "test x9", "train x9"):
        folder = tmp_path / case.replace(" ", "-")
        shutil.copytree(cohort, folder)
        plan = {"p0": "train", "p1": "val", "p2": "val", "p3": "train", "p4": "train", "p5": "test"}
        text = (folder / "manifest.csv").read_text().splitlines()
        rows = [r.split(",") for r in text]
        for row in rows[1:]:
            row[2] = plan[row[0]]
        (folder / "manifest.csv").write_text("\n".join(",".join(r) for r in rows))
        if case != "as it is":
            who = "p5" if case == "test x9" else "p0"
            path = folder / who / "mr.nii.gz"
            volume = nifti.read_volume(path)
            nifti.write_volume(path, volume.array * 9, volume.affine, dtype=np.float32)
        prepare.run(_config(folder, split_mode="manifest"), str(tmp_path / f"out-{folder.name}"))
        index = shards.Prepared(tmp_path / f"out-{folder.name}").json
        constants[case] = index["modalities"]["mr"]["normaliser"]["population_scale"]
    assert constants["as it is"] == constants["test x9"] != constants["train x9"]


def test_a_new_person_is_converted_like_the_stored_ones(prepared, cohort):
    """Without any target file: prediction sees the slices that training saw."""
    index = prepared.json
    spec = intensity.from_json(index["modalities"]["pet"]["normaliser"])
    for name in ("p0", "p4"):
        i, entry = _entry(prepared, name)
        pet = nifti.read_volume(cohort / name / "pet.nii.gz")
        model_grid = ModelGrid.from_index(index["grid"])
        slices, affine = source_slices(pet, model_grid, index["grid"]["center"], spec)
        assert np.abs(slices - prepared.read(i, "pet")).max() < 2e-5
        np.testing.assert_allclose(affine, entry["grid_affine"])


def test_resampled_grids_agree_in_world_space(cohort, prepared, tmp_path):
    """Another spacing in all three directions: the same anatomy at the same millimetres."""
    prepare.run(
        _config(cohort, size=(64, 56), spacing_mm=(3.0, 3.5), slice_spacing_mm=4.0, center="fov"),
        str(tmp_path / "fine"),
    )
    fine = shards.Prepared(tmp_path / "fine", verify=True)
    assert fine.json["subjects"][0]["n_slices"] == 36
    shape, affine = (30, 30, 20), affine_of((30, 30, 20), (5, 5, 6))
    views = []
    for p in (prepared, fine):
        entry = p.json["subjects"][0]
        views.append(from_grid(p.read(0, "pet"), entry["grid_affine"], shape, affine, fill=-1))

    def likeness(other):
        return np.corrcoef(views[0].ravel(), other.ravel())[0, 1]

    here = likeness(views[1])
    assert here > 0.98
    for axis in range(3):  # negative controls: 5 or 6 mm off in any direction is worse
        for step in (-1, 1):
            assert likeness(np.roll(views[1], step, axis)) < here - 0.01


def test_workers_and_order_change_nothing(cohort, prepared, tmp_path):
    prepare.run(_config(cohort, workers=2), str(tmp_path / "two"))
    assert shards.Prepared(tmp_path / "two").json["fingerprint"] == prepared.json["fingerprint"]
    for name, shard in prepared.json["shards"].items():
        assert (tmp_path / "two" / name).exists()
        assert shards.Prepared(tmp_path / "two").json["shards"][name] == shard


# A test set from elsewhere


def _external(folder, prepared, **changes):
    changes = {"split_mode": "external", "normalisers_from": str(prepared.folder), **changes}
    return _config(folder, **changes)


def test_an_external_set_takes_the_constants(prepared, tmp_path):
    write_cohort(
        tmp_path / "cohort", {"q0": dict(seed=50), "q1": dict(seed=51, names=("pet", "ct"))}
    )
    prepare.run(_external(tmp_path / "cohort", prepared), str(tmp_path / "work"))
    index = shards.Prepared(tmp_path / "work").json
    assert index["modalities"] == prepared.json["modalities"]
    assert index["splits"]["test"] == ["q0", "q1"] and index["splits"]["train"] == []


def test_an_external_set_must_fit_and_be_new(cohort, prepared, tmp_path):
    folder = tmp_path / "cohort"
    write_cohort(folder, {"q0": dict(seed=50)})
    for changes, fragment in (
        (dict(normalisers_from=""), "training people"),
        (dict(split_mode="default"), "training people"),
        (dict(size=(48, 40)), "is not the grid of"),
        (dict(center="fov"), "is not the grid of"),
    ):
        with pytest.raises(UserError, match=fragment):
            prepare.run(_external(folder, prepared, **changes), str(tmp_path / "work"))
    shutil.copy(cohort / "p0" / "pet.nii.gz", folder / "q0" / "pet.nii.gz")
    shutil.copy(cohort / "p0" / "ct.nii.gz", folder / "q0" / "ct.nii.gz")
    shutil.copy(cohort / "p0" / "mr.nii.gz", folder / "q0" / "mr.nii.gz")
    with pytest.raises(UserError, match="the same file as p0 pet"):
        prepare.run(_external(folder, prepared), str(tmp_path / "work"))
    assert not (tmp_path / "work" / "index.json").exists()


def test_an_external_target_the_model_never_saw(tmp_path):
    people = {k: dict(names=("pet", "ct")) for k in ("a", "b", "c")}
    write_cohort(tmp_path / "home", people)
    prepare.run(_config(tmp_path / "home"), str(tmp_path / "prepared"))
    write_cohort(tmp_path / "cohort", {"q": dict(seed=50)})
    home = shards.Prepared(tmp_path / "prepared")
    with pytest.raises(UserError, match="has no mr"):
        prepare.run(_external(tmp_path / "cohort", home), str(tmp_path / "work"))


# Running again


def test_the_same_again_is_nothing_to_do(cohort, tmp_path, capsys):
    work = tmp_path / "work"
    prepare.run(_config(cohort), str(work))
    before = {p.name: p.stat().st_mtime_ns for p in work.iterdir()}
    capsys.readouterr()
    prepare.run(_config(cohort, workers=0), str(work))
    assert "nothing to do" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in work.iterdir()} == before
    with pytest.raises(UserError, match="center, split_seed"):
        prepare.run(_config(cohort, split_seed=4, center="fov"), str(work))
    assert {p.name: p.stat().st_mtime_ns for p in work.iterdir()} == before


def test_other_files_are_noticed(cohort, tmp_path):
    folder, work = tmp_path / "cohort", tmp_path / "work"
    shutil.copytree(cohort, folder)
    prepare.run(_config(folder), str(work))
    moved = tmp_path / "elsewhere"
    os.rename(folder, moved)
    prepare.run(_config(moved), str(work))  # the content counts, not the place
    nifti.write_volume(moved / "p5" / "ct.nii.gz", make_head(99)["ct"], affine_of(), dtype=np.int16)
    with pytest.raises(UserError, match="other files or people"):
        prepare.run(_config(moved), str(work))
    (moved / "p5" / "ct.nii.gz").unlink()
    with pytest.raises(UserError, match="no such file"):
        prepare.run(_config(moved), str(work))


def test_an_interrupted_run_starts_cleanly(cohort, prepared, tmp_path, monkeypatch):
    work = tmp_path / "work"
    real = shards.write_index

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write_index", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(_config(cohort), str(work))
    assert list(work.glob("*.npy")) and not (work / "index.json").exists()
    with pytest.raises(UserError, match="not finished"):
        shards.Prepared(work)
    monkeypatch.setattr(shards, "write_index", real)
    (work / "pet-00009.npy").write_bytes(b"left over")
    prepare.run(_config(cohort), str(work))
    assert not (work / "pet-00009.npy").exists()
    index = shards.Prepared(work, verify=True).json
    assert index["fingerprint"] == prepared.json["fingerprint"]


def test_a_second_process_is_refused_and_takes_nothing_away(cohort, prepared, tmp_path):
    """It swept the first one's shards, and of other settings both said that theirs are prepared."""
    work = shutil.copytree(prepared.folder, tmp_path / "work")
    (work / "index.json").unlink()
    before = {p.name for p in work.iterdir()}
    with run_lock(work):
        with pytest.raises(UserError, match="in use by process"):
            prepare.run(_config(cohort, split_seed=1), str(work))
        assert {p.name for p in work.iterdir()} == before | {".lock"}
    (work / ".lock").touch()  # of one that was killed
    prepare.run(_config(cohort), str(work))
    assert {p.name for p in work.iterdir()} == before | {"index.json"}


def test_somebody_elses_folder_is_left_alone(cohort, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        prepare.run(_config(cohort), str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# What stops it


def _break(folder):
    """p1 without PET, p2 and p0 with one image less, each in its own way."""
    (folder / "p1" / "pet.nii.gz").write_bytes(b"")
    array = make_head(2)["mr"]
    array[4, 4, 4] = np.inf
    nifti.write_volume(folder / "p2" / "mr.nii.gz", array, affine_of(), dtype=np.float32)
    (folder / "p0" / "ct.nii.gz").write_text("<!DOCTYPE html><p>Please log in</p>")


def test_one_bad_entry_does_not_stop_the_others(cohort, tmp_path, capsys):
    folder, work = tmp_path / "cohort", tmp_path / "work"
    shutil.copytree(cohort, folder)
    _break(folder)
    with pytest.raises(UserError) as caught:
        prepare.run(_config(folder), str(work))
    printed = capsys.readouterr().out
    for text in (printed, str(caught.value)):
        for words in ("1 of 6 subjects and images of 2 others", "p1 (pet: the file is empty"):
            assert words in text
        assert (
            "p2 mr (mr: 1 voxels are NaN" in text and "p0 ct and ct_reacq (ct: not a NIfTI" in text
        )
    rows = json.loads((work / "audit.json").read_text())["left_aside"]
    assert {(r["subject"], r["path"].rpartition("/")[2].partition(".")[0]) for r in rows} == {
        *(("p1", name) for name in ("pet", "ct", "mr")),
        *(("p2", "mr"), ("p0", "ct"), ("p0", "ct_reacq")),
    }
    # What is prepared is what a cohort without them would give, to the bit.
    clean = tmp_path / "clean"
    shutil.copytree(cohort, clean)
    rows = [r.split(",") for r in (clean / "manifest.csv").read_text().splitlines()]
    rows = [r for r in rows if r[0] != "p1"]
    for who, columns in (("p2", ("mr",)), ("p0", ("ct", "ct_reacq"))):
        for column in columns:
            next(r for r in rows if r[0] == who)[rows[0].index(column)] = ""
    (clean / "manifest.csv").write_text("\n".join(map(",".join, rows)))
    prepare.run(_config(clean), str(tmp_path / "other"))
    made, other = (shards.Prepared(f, verify=True).json for f in (work, tmp_path / "other"))
    assert made["fingerprint"] == other["fingerprint"] and made["splits"] == other["splits"]
    assert "left_out" not in other
    # Again: the same answer. Taken out of the cohort: nothing to say. Repaired: another folder.
    with pytest.raises(UserError, match="1 of 6 subjects and images of 2 others"):
        prepare.run(_config(folder), str(work))
    assert prepare.make(_config(clean), str(work)) == ""
    shutil.copy(cohort / "p2" / "mr.nii.gz", folder / "p2" / "mr.nii.gz")
    with pytest.raises(UserError, match="without p2 mr, whose files are others now"):
        prepare.run(_config(folder), str(work))


def _shifted(folder, who):
    ct = make_head(0)["ct"]
    for name in who:
        nifti.write_volume(folder / name / "ct.nii.gz", ct[1:], affine_of(), dtype=np.int16)


def test_other_voxels_of_many_are_a_choice_of_one_an_accident(cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    _shifted(folder, ("p3",))
    said = prepare.make(_config(folder), str(tmp_path / "one"))
    assert "1 of 6 subjects: p3 (ct: not on the PET's voxels" in said
    _shifted(folder, ("p1", "p2"))  # of the five who have CT
    with pytest.raises(UserError, match="add --config.register=rigid") as caught:
        prepare.run(_config(folder), str(tmp_path / "many"))
    assert "found 3 errors" in str(caught.value)
    assert [p.name for p in (tmp_path / "many").iterdir()] == ["audit.json"]


def test_what_concerns_all_is_listed_and_nothing_is_prepared(cohort, tmp_path, capsys):
    folder, work = tmp_path / "cohort", tmp_path / "work"
    shutil.copytree(cohort, folder)
    _break(folder)
    shutil.copy(folder / "p3" / "ct.nii.gz", folder / "p5" / "ct.nii.gz")
    with pytest.raises(UserError) as caught:
        prepare.run(_config(folder), str(work))
    page = capsys.readouterr().out
    for text in (page, str(caught.value)):
        for fragment in ("p1", "empty", "p2", "infinite", "p5", "the same image as p3 ct"):
            assert fragment in text
    report = json.loads((work / "audit.json").read_text())
    assert sorted({f["subject"] for f in report["findings"]}) == ["p0", "p1", "p2", "p5"]
    assert [p.name for p in work.iterdir()] == ["audit.json"]
    shutil.copy(cohort / "p5" / "ct.nii.gz", folder / "p5" / "ct.nii.gz")
    for name in (
        "p0",
        "p1",
        "p2",
        "p3",
        "p5",
    ):  # of a target that most were to have, nothing is left
        (folder / name / "ct.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match="the audit found"):
        prepare.run(_config(folder), str(work))
    # Repaired, the same command goes on in the same folder.
    shutil.rmtree(folder)
    shutil.copytree(cohort, folder)
    prepare.run(_config(folder), str(work))
    assert (work / "index.json").exists()


def test_too_few_are_left_to_split(cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    for name in ("p0", "p3", "p4", "p5"):
        (folder / name / "pet.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match="found 4 errors.*; without those images, split: 1 people"):
        prepare.run(_config(folder), str(tmp_path / "work"))
    rows = [r.split(",") for r in (folder / "manifest.csv").read_text().splitlines()]
    for row in rows[1:]:
        row[1], row[2] = row[0], {"p1": "test", "p5": "val"}.get(row[0], "train")
    (folder / "manifest.csv").write_text("\n".join(map(",".join, rows)))
    shutil.copy(cohort / "p0" / "pet.nii.gz", folder / "p0" / "pet.nii.gz")
    with pytest.raises(UserError, match="without those images, nobody is in val"):
        prepare.run(_config(folder, split_mode="manifest"), str(tmp_path / "work"))


@pytest.mark.parametrize(
    "changes,fragment",
    [
        (dict(pet_rule="slice_minmax"), "cannot be inverted"),
        (dict(center="brain"), "unknown centre"),
        (dict(size=(4, 4)), "at least 8"),
        (dict(split_mode="abstract"), "50 wanted"),
        (dict(split_mode="manifest"), "nobody is in train"),
        (dict(min_head_fraction=0.99), "enough head"),
        (dict(folder="/no/such/cohort"), "no such file or folder"),
        (dict(folder=""), "names no people"),
    ],
)
def test_refused_settings(cohort, tmp_path, changes, fragment):
    with pytest.raises(UserError, match=fragment):
        prepare.run(_config(**{"folder": cohort, **changes}), str(tmp_path / "work"))
    assert not (tmp_path / "work" / "index.json").exists()


def test_a_target_nobody_trains_on(tmp_path):
    """MR only in test: its population scale would have to come from test people."""
    people = {
        "a": dict(names=("pet", "ct"), split="train"),
        "b": dict(names=("pet", "ct"), split="val"),
        "c": dict(split="test"),
    }
    write_cohort(tmp_path / "cohort", people)
    with pytest.raises(UserError, match="no training person has mr"):
        prepare.run(_config(tmp_path / "cohort", split_mode="manifest"), str(tmp_path / "work"))


def test_one_scale_for_all_is_refused_for_two_units(tmp_path):
    people = {p: dict(names=("pet", "mr")) for p in "abcdef"}
    folder = write_cohort(tmp_path / "in", people).parent
    pet = nifti.read_volume(folder / "a" / "pet.nii.gz")
    nifti.write_volume(folder / "a" / "pet.nii.gz", 5000 * pet.array, pet.affine, dtype=np.float32)
    with pytest.raises(UserError, match="1 of 6 have another unit .a: "):
        prepare.run(_config(folder, pet_rule="train_percentile"), str(tmp_path / "prepared"))
    assert not (tmp_path / "prepared" / "index.json").exists()


def test_oracle_rules_are_labelled(cohort, tmp_path):
    rules = {f"{m}_rule": "volume_minmax_oracle" for m in ("pet", "ct", "mr")}
    prepare.run(_config(cohort, **rules), str(tmp_path / "work"))
    prepared = shards.Prepared(tmp_path / "work")
    assert prepared.json["protocol"] == "abstract-oracle"
    volume = nifti.read_volume(cohort / "p0" / "ct.nii.gz").array
    stored = prepared.json["subjects"][0]["volumes"]["ct"]
    assert stored["origin"] == volume.min() and stored["scale"] == volume.max() - volume.min()
    assert prepared.read(0, "ct").max() == 1


def test_contrast_and_name_come_from_the_cohort(cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    (folder / "manifest.json").write_text('{"name": "heads", "contrast": "simulated"}')
    prepare.run(_config(folder), str(tmp_path / "work"))
    index = shards.Prepared(tmp_path / "work").json
    assert (index["name"], index["contrast"]) == ("heads", "simulated")


# Config


def test_presets():
    assert set(PRESETS) == set(common.PRESETS)
    for preset in PRESETS:
        config = get_config(preset)
        assert config.job == "prepare" and config.preset == preset and config.is_locked
        prepare._settings(config)
        config.slice_spacing_mm = 1.5
    with pytest.raises(ValueError, match="tiny, quick"):
        get_config("huge")
    with pytest.raises(AttributeError):
        config.mi_treshold = 1


def test_dicom_series_may_stand_in_a_manifest(cohort, tmp_path, capsys):
    """A folder and a zip in place of a NIfTI file: the same slices, and a rerun knows them."""
    import test_data_dicom

    root = tmp_path / "mixed"
    shutil.copytree(cohort, root)
    pet = nifti.read_volume(root / "p2" / "pet.nii.gz")
    low, slope = float(pet.array.min()), float(np.ptp(pet.array)) / 65000
    stored = np.rint((pet.array - low) / slope).astype(np.uint16)
    for z in range(stored.shape[2]):
        ds = test_data_dicom._slice(z, stored=stored, affine=pet.affine)
        ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.10g}", f"{low:.10g}"
        test_data_dicom._save(ds, root / "p2" / "series" / f"{z}.dcm")
    shutil.make_archive(str(root / "p2" / "series"), "zip", root / "p2" / "series")
    text = (root / "manifest.csv").read_text()
    slices = []
    for number, name in enumerate(("pet.nii.gz", "series", "series.zip")):
        (root / "manifest.csv").write_text(text.replace("p2/pet.nii.gz", f"p2/{name}"))
        config = _config(root)
        prepare.run(config, str(tmp_path / str(number)))
        prepare.run(config, str(tmp_path / str(number)))
        assert "nothing to do" in capsys.readouterr().out
        prepared = shards.Prepared(tmp_path / str(number))
        person = next(i for i, s in enumerate(prepared.json["subjects"]) if s["id"] == "p2")
        slices.append([prepared.read(person, v) for v in ("pet", "ct")])
    for other in slices[1:]:
        np.testing.assert_allclose(other[0], slices[0][0], atol=2e-3)
        np.testing.assert_array_equal(other[1], slices[0][1])


def test_training_people_keep_what_shows_where_the_head_ends(prepared, cohort, tmp_path):
    """With 0: every slice with PET. Who is scored keeps what is scored."""
    config = _config(cohort)
    config.train_min_head_fraction = 0.0
    prepare.run(config, str(tmp_path / "work"))
    whole, more = prepared.json, shards.Prepared(tmp_path / "work").json
    trained = 0
    for old, new in zip(whole["subjects"], more["subjects"], strict=True):
        assert (old["id"], old["split"]) == (new["id"], new["split"])
        before, after = (np.array(s["keep"]) for s in (old, new))
        if new["split"] != "train":
            assert (before == after).all()
            continue
        assert (after | ~before).all()
        trained += int((after & ~before).sum())
    assert trained > 0
    with pytest.raises(UserError, match="train_min_head_fraction"):
        prepare.run(_config(cohort), str(tmp_path / "work"))
