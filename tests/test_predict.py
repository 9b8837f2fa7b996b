"""Prediction as a user meets it: files in, files out, on the trained tiny study."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import data_heads
import nibabel as nib
import numpy as np
import pytest

import cldm_jax
from cldm_jax import files
from cldm_jax import predict as cli
from cldm_jax.data import convert, grid, nifti
from cldm_jax.data.pipeline import make_source
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.runs.readouts import predict_rows
from cldm_jax.runs.stored import open_run
from cldm_jax.volumes import names
from configs import predict as predict_config

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(study, source, out, **fields):
    request = predict.Request(str(source), str(out), checkpoint=str(study.ldm))
    return predict.predict(request._replace(**fields))


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    """Three people, one of them with two sessions and one with a file that is cut short."""
    root = tmp_path_factory.mktemp("bids")
    for number, name in enumerate(("sub-01", "sub-02/ses-a", "sub-02/ses-b", "sub-03")):
        stem = name.replace("/", "_")
        folder = root / name / "pet"
        path = folder / f"{stem}_trc-18FFDG_pet.nii.gz"
        array = data_heads.make_head(number)["pet"]
        nifti.write_volume(path, array, data_heads.affine_of(), dtype=np.float32)
    path = root / "sub-01" / "pet" / "sub-01_trc-18FFDG_pet.nii.gz"
    path.write_bytes(path.read_bytes()[:-4000])
    return root


def pet_path(bids):
    return bids / "sub-03" / "pet" / "sub-03_trc-18FFDG_pet.nii.gz"


ASKED = dict(mode="mean", samples=2, seed=5, uncertainty=True)


@pytest.fixture(scope="module")
def written(study, bids, tmp_path_factory):
    """A folder of what the command writes."""
    out = tmp_path_factory.mktemp("written")
    run(study, pet_path(bids), out, report=True, **ASKED)
    return out


class TestOutputs:
    def test_images_and_sidecars(self, written, tmp_path):
        out = written
        stem = "sub-03_trc-18FFDG_pet_desc"
        ct, sd = (nifti.read_volume(out / f"{stem}-{k}_ct.nii.gz") for k in ("synth", "synthsd"))
        assert ct.array.min() >= -1024 and ct.array.max() <= 3071 and (ct.array % 1 == 0).all()
        image = nib.load(out / f"{stem}-synth_ct.nii.gz")
        assert image.header.get_data_dtype() == np.int16
        assert (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
        mr = nib.load(out / f"{stem}-synth_T1w.nii.gz")
        assert mr.header.get_data_dtype() == np.float32
        assert sd.array.min() == 0 < sd.array.max()
        found = json.loads((out / f"{stem}-synth_ct.json").read_text())
        assert found["Units"] == "HU" and "not for clinical use" in found["Description"]
        assert (found["Mode"], found["Samples"], found["SamplingSteps"]) == ("mean2", 2, 4)
        assert found["Seed"] == 5 and found["ClassCode"] == 1
        assert not list(out.glob("*unfinished*"))
        page = (out / f"{stem}-synth_report.html").read_text()
        assert "not for clinical use" in page and 'src="data:image/png' in page
        assert "http://" not in page and "https://" not in page and str(tmp_path) not in page

    def test_the_uncertainty_of_another_readout(self, study, bids, tmp_path):
        """--uncertainty adds the SD of K samples to the one-step image and leaves that as it is."""
        run(study, pet_path(bids), tmp_path / "a", mode="onestep")
        run(
            study,
            pet_path(bids),
            tmp_path / "b",
            mode="onestep",
            uncertainty=True,
            samples=2,
            batch_size=32,  # 16 slices of two samples each
        )
        name = "sub-03_trc-18FFDG_pet_desc-synth_ct.nii.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert len(list((tmp_path / "b").glob("*synthsd*.nii.gz"))) == 2

    def test_number_of_steps_is_used_and_recorded(self, study, bids, tmp_path):
        arrays = []
        for steps in (2, 3):
            out = tmp_path / str(steps)
            paths = run(study, pet_path(bids), out, mode="sample", steps=steps, targets=("ct",))
            arrays.append(nifti.read_volume(paths[0]).array)
            assert json.loads(names.sidecar(paths[0]).read_text())["SamplingSteps"] == steps
        assert np.abs(arrays[0] - arrays[1]).max() > 1

    def test_seed_changes_the_samples(self, study, bids, tmp_path):
        options = dict(mode="sample", targets=("ct",))
        first, again, other = (
            run(study, pet_path(bids), tmp_path / name, seed=seed, **options)[0].read_bytes()
            for name, seed in (("a", 0), ("b", 0), ("c", 1))
        )
        assert first == again != other

    def test_the_config_door_is_the_same(self, study, bids, tmp_path):
        config = predict_config.get_config("tiny")
        config.input, config.checkpoint = str(pet_path(bids)), str(study.ldm)
        config.targets, config.mode = ("ct",), "onestep"
        predict.run(config, str(tmp_path / "a"))
        run(study, pet_path(bids), tmp_path / "b", targets=("ct",), mode="onestep")
        name = "sub-03_trc-18FFDG_pet_desc-synth_ct.nii.gz"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_prediction_equals_evaluation(study, tmp_path):
    """The same person through the NIfTI door and through the prepared shards: one answer."""
    prepared = Prepared(study.prepared)
    rows_of = make_source(
        prepared, split="test", targets=("ct",), context=3, latents=None, source_kind="image"
    )
    subject = int(rows_of.keys["subject"][0])
    pet = study.data_root / "cohort" / prepared.json["subjects"][subject]["id"] / "pet.nii.gz"
    run(study, pet, tmp_path, targets=("ct",), mode="onestep")
    volume = nifti.canonical(nifti.read_volume(tmp_path / "pet_desc-synth_ct.nii.gz"))
    trained = open_run(str(study.ldm))
    images = predict_rows(trained, "onestep", rows_of, batch_size=8, seed=0).images
    rows = np.flatnonzero(rows_of.keys["subject"] == subject)
    z = rows_of.keys["slice"][rows]
    center = convert.pet_center_mm(nifti.canonical(nifti.read_volume(pet)))
    slices, _ = grid.to_grid(
        volume.array,
        volume.affine,
        trained.manifest.data.grid,
        center_mm=center,
        fill=-1024.0,
    )
    hu = np.clip((images[rows] + 1) / 2 * 4095 - 1024, -1024, 3071)
    inside = slices[z] > -1024  # the PET's field of view is smaller than the grid here and there
    assert np.abs(slices[z] - hu)[inside].max() <= 2.5  # rounding of HU and of stored PET


class TestPython:
    """`cldm_jax.synthesise`: the command's numbers as nibabel images, and no files."""

    def test_the_same_bits_as_the_command(self, study, bids, written, tmp_path):
        pet = str(pet_path(bids))
        made = cldm_jax.synthesise(pet, ("ct", "mr"), checkpoint=study.ldm, **ASKED)
        stem = "sub-03_trc-18FFDG_pet_desc"
        given = nib.load(pet_path(bids))
        for target, suffix in (("ct", "ct"), ("mr", "T1w")):
            for kind, image, about in (
                ("synth", made[target].image, made[target].sidecar),
                ("synthsd", made[target].sd, made[target].sd_sidecar),
            ):
                file = nib.load(written / f"{stem}-{kind}_{suffix}.nii.gz")
                ours, theirs = np.asarray(image.dataobj), np.asarray(file.dataobj)
                whole = (target, kind) == ("ct", "synth")
                np.testing.assert_array_equal(np.rint(ours) if whole else ours, theirs)
                assert ours.dtype == np.float32 and (not whole or (ours % 1).any())
                np.testing.assert_array_equal(image.affine, given.affine)
                path = written / f"{stem}-{kind}_{suffix}.json"
                sidecar = {k: v for k, v in files.read_json(path).items() if k != "SHA256"}
                loose = ("Seconds", "Written")
                assert sidecar.keys() == about.keys()
                assert all(sidecar[k] == v for k, v in about.items() if k not in loose)
        assert any("not calibrated" in w for w in made.warnings)
        paths = made.save(tmp_path)
        assert [p.read_bytes() for p in paths] == [(written / p.name).read_bytes() for p in paths]
        with pytest.raises(UserError, match="exists already"):
            made.save(tmp_path)

    def test_one_model_for_path_image_and_array(self, study, bids):
        """Point images agree to the bit; samples are keyed by file or voxels, so the array's differ."""
        image = nib.load(pet_path(bids))
        pets = (pet_path(bids), image, (np.asarray(image.dataobj), image.affine))
        model = cldm_jax.Synthesiser(study.ldm, targets="ct", mode="onestep")
        a, b, c = (np.asarray(model(pet)["ct"].image.dataobj) for pet in pets)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert model.targets == ("ct",)
        drawn = cldm_jax.Synthesiser(study.ldm, targets="ct", mode="sample", steps=2)
        a, b, c = (np.asarray(drawn(pet)["ct"].image.dataobj) for pet in pets)
        np.testing.assert_array_equal(b, c)
        assert np.abs(a - b).max() > 1

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda a, affine: (np.where(a > 5, np.nan, a), affine), "NaN or infinite"),
            (lambda a, affine: (np.stack([a, a], -1), affine), "more than one frame"),
            (lambda a, affine: (a[0], affine), "not a 3D volume"),
            (lambda a, affine: (a * 1j, affine), "complex"),
            (lambda a, affine: (a, affine[:3]), "4x4 affine"),
            (lambda a, affine: (a, np.diag([1e-3, 1e-3, 1e-3, 1])), "voxels of 0.001"),
            (lambda a, affine: (-a - 1, affine), "no voxel is positive"),
            (lambda a, affine: a, "of type ndarray.*a path, a nibabel image, or"),
        ],
    )
    def test_what_a_file_is_refused_for_is_refused(self, study, bids, change, message):
        image = nib.load(pet_path(bids))
        model = cldm_jax.Synthesiser(study.unet, targets="ct")
        with pytest.raises(UserError, match=message):
            model(change(np.asarray(image.dataobj), image.affine))

    def test_nan_up_to_the_border_is_air(self, study, bids, tmp_path):
        """As SPM writes what a resliced PET has no data for: from a file and from memory."""
        image = nib.load(pet_path(bids))
        array, zeros = (np.asanyarray(image.dataobj).astype(np.float32) for _ in range(2))
        array[:4], zeros[:4] = np.nan, 0
        nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "rpet.nii")
        model = cldm_jax.Synthesiser(study.unet, targets="ct")
        given = ((zeros, image.affine), (array, image.affine), tmp_path / "rpet.nii")
        expected, *made = (model(pet)["ct"] for pet in given)
        for one in made:
            np.testing.assert_array_equal(one.image.dataobj, expected.image.dataobj)
            assert "NaN: no data, taken as 0" in one.sidecar["InputChecks"][0]["Warning"]

    def test_images_of_other_kinds(self, bids):
        """Codes and the frame's axis are kept, an affine that was changed in memory counts."""
        image = nib.load(pet_path(bids))
        image.set_sform(image.affine, code=4)
        framed = nib.Nifti2Image(np.asarray(image.dataobj)[..., None], image.affine, None)
        for given in (image, framed, nib.MGHImage(np.asarray(image.dataobj), image.affine)):
            volume = nifti.from_image(given)
            made = nifti.to_image(volume.array, volume)
            np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
            np.testing.assert_array_equal(made.get_fdata(), given.get_fdata())
        assert (
            int(nifti.to_image(image.get_fdata(), nifti.from_image(image)).header["sform_code"])
            == 4
        )
        image.affine[0, 3] += 7
        assert nifti.from_image(image).affine[0, 3] == image.affine[0, 3]

    def test_what_is_no_image_in_memory_is_one_line(self, bids):
        """A kind that no header holds; two paths; and frames, before they are read."""
        image = nib.load(pet_path(bids))
        mask = np.ones(image.shape, bool)
        with pytest.raises(UserError, match="memory: voxels are bool"):
            nifti.from_image(nib.Nifti1Image(mask, image.affine, image.header), "memory")
        with pytest.raises(UserError, match="memory: could not convert.*array of numbers"):
            nifti.from_array("ct.nii.gz", "pet.nii.gz", "memory")

        class Unread:
            shape, dtype, ndim = (*image.shape, 40), np.dtype(np.int16), 4

            def __array__(self, *args, **words):
                raise AssertionError("read")

        with pytest.raises(UserError, match="more than one frame"):
            nifti.from_image(nib.Nifti1Image(Unread(), image.affine))

    def test_a_dataset_is_not_one_pet(self, study, bids):
        with pytest.raises(UserError, match="holds 4 PET images.*Give one, such as"):
            cldm_jax.synthesise(bids, checkpoint=study.ldm)

    def test_importing_is_light(self):
        heavy = ("jax", "numpy", "nibabel", "flax")
        code = f"import sys, cldm_jax; cldm_jax.__version__; print(set({heavy}) & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.strip() == "set()", done.stderr
        assert "synthesise" in dir(cldm_jax) and not hasattr(cldm_jax, "synthesize")


class TestDataset:
    def test_a_bad_image_does_not_stop_the_others(self, study, bids, tmp_path, capsys):
        with pytest.raises(UserError, match="1 of 4 images failed: sub-01_trc-18FFDG"):
            run(study, bids, tmp_path, mode="sample")
        assert "cut short" in capsys.readouterr().err
        person = tmp_path / "sub-02" / "ses-b"
        assert (person / "ct" / "sub-02_ses-b_trc-18FFDG_desc-synth_ct.nii.gz").is_file()
        assert (person / "anat" / "sub-02_ses-b_trc-18FFDG_desc-synth_T1w.json").is_file()
        described = json.loads((tmp_path / "dataset_description.json").read_text())
        assert described["DatasetType"] == "derivative"
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
        assert len(before) == 6
        with pytest.raises(UserError, match="1 of 4"):
            run(study, bids, tmp_path, mode="sample")
        assert capsys.readouterr().out.count("skipped") == 3
        assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
    def test_what_the_system_refuses_ends_it(self, monkeypatch, capsys, number):
        """A full disk, a reader that left: the images after it would be computed for nothing."""
        tried = []

        def fail(request, model, found, alone):
            tried.append(found.name)
            raise OSError(number, os.strerror(number), found.name)

        monkeypatch.setattr(predict, "_one", fail)
        images = [types.SimpleNamespace(name=name) for name in "ab"]
        with pytest.raises(OSError, match=os.strerror(number)):
            predict._each(predict.Request("in", "out"), None, images)
        assert tried == ["a"] and "Traceback" not in capsys.readouterr().err

    def test_a_person_alone_or_among_others_is_the_same_to_the_bit(self, study, bids, tmp_path):
        """Samples included: the noise is keyed by the image's content, not by its place."""
        alone = run(study, pet_path(bids), tmp_path / "alone", mode="sample")
        with pytest.raises(UserError):
            run(study, bids, tmp_path / "all", mode="sample")
        shutil.copytree(bids / "sub-03", tmp_path / "first" / "sub-03")
        shutil.copytree(bids / "sub-02", tmp_path / "first" / "sub-99")
        for path in (tmp_path / "first" / "sub-99").rglob("sub-02*"):
            path.rename(path.with_name(path.name.replace("sub-02", "sub-99")))
        run(study, tmp_path / "first", tmp_path / "turned", mode="sample")
        for path in alone:
            name = path.name.replace("FDG_pet_desc", "FDG_desc")
            for other in ("all", "turned"):
                (found,) = (tmp_path / other / "sub-03").rglob(name)
                assert found.read_bytes() == path.read_bytes()

    def test_other_sessions_get_other_noise(self, study, bids):
        a, b = (
            nifti.read_volume(next((bids / "sub-02" / s / "pet").iterdir()))
            for s in ("ses-a", "ses-b")
        )
        assert a.sha256[:8] != b.sha256[:8]


class TestNothingIsLost:
    def test_other_results_are_not_replaced_unasked(self, study, bids, tmp_path, capsys):
        options = dict(targets=("ct",), mode="onestep")
        (path,) = run(study, pet_path(bids), tmp_path, **options)
        before = path.read_bytes()
        run(study, pet_path(bids), tmp_path, **options)
        assert "skipped" in capsys.readouterr().out
        with pytest.raises(UserError, match="exists already.*--overwrite"):
            run(study, pet_path(bids), tmp_path, targets=("ct",), mode="mirror")
        assert path.read_bytes() == before
        run(study, pet_path(bids), tmp_path, targets=("ct",), mode="mirror", overwrite=True)
        assert path.read_bytes() != before

    def test_two_people_of_one_name_are_not_mixed(self, study, bids, tmp_path):
        """Each asked for another target, so no file of the second is there yet."""
        paths = [tmp_path / name / "pet.nii.gz" for name in "ab"]
        for path, session in zip(paths, ("sub-02/ses-a", "sub-02/ses-b"), strict=True):
            path.parent.mkdir()
            shutil.copy(next((bids / session / "pet").iterdir()), path)
        out = tmp_path / "out"
        run(study, paths[0], out, mode="onestep", report=True)
        (out / "pet_desc-synth_ct.nii.gz").unlink()
        (out / "pet_desc-synth_ct.json").unlink()
        left = {p.name: p.read_bytes() for p in out.iterdir()}
        options = dict(targets=("ct",), mode="onestep")
        with pytest.raises(UserError, match="T1w.nii.gz.*exists already, of another input"):
            run(study, paths[1], out, **options)
        second = cldm_jax.synthesise(paths[1], checkpoint=study.ldm, **options)
        with pytest.raises(UserError, match="exists already"):
            second.save(out)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == left
        run(study, paths[1], out, overwrite=True, **options)
        names = ["dataset_description.json", "pet_desc-synth_ct.json", "pet_desc-synth_ct.nii.gz"]
        assert sorted(p.name for p in out.iterdir()) == names

    def test_what_lacks_is_made(self, study, bids, tmp_path, capsys):
        """Of the same PET, model and settings; not where a page would lose a target."""
        options = dict(mode="onestep")
        (ct,) = run(study, pet_path(bids), tmp_path, targets=("ct",), **options)
        before = ct.read_bytes()
        run(study, pet_path(bids), tmp_path, targets=("mr",), **options)
        run(study, pet_path(bids), tmp_path, report=True, **options)
        assert "skipped" not in capsys.readouterr().out
        run(study, pet_path(bids), tmp_path, report=True, **options)
        assert "skipped" in capsys.readouterr().out and ct.read_bytes() == before
        next(tmp_path.glob("*_T1w.nii.gz")).unlink()
        with pytest.raises(UserError, match="report.html.*with another target.*all targets"):
            run(study, pet_path(bids), tmp_path, targets=("mr",), report=True, **options)

    def test_two_targets_side_by_side(self, study, bids, tmp_path, monkeypatch):
        """A second process begins and ends while the first one writes."""
        real, asked = nifti.write_volume, []
        options = dict(mode="onestep")

        def meanwhile(path, *args, **keywords):
            if not asked:
                asked.append(path)
                run(study, pet_path(bids), tmp_path, targets=("mr",), **options)
                assert list(tmp_path.glob("*unfinished-ct.json"))
            real(path, *args, **keywords)

        monkeypatch.setattr(nifti, "write_volume", meanwhile)
        run(study, pet_path(bids), tmp_path, targets=("ct",), **options)
        assert len(list(tmp_path.glob("*.nii.gz"))) == 2
        assert not list(tmp_path.glob("*unfinished*"))

    def test_a_damaged_result_is_not_taken_for_finished(self, study, bids, tmp_path):
        options = dict(targets=("ct",), mode="onestep")
        (path,) = run(study, pet_path(bids), tmp_path, **options)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="exists already"):
            run(study, pet_path(bids), tmp_path, **options)

    def test_an_interrupted_one_is_finished_by_the_same_command(
        self, study, bids, tmp_path, monkeypatch
    ):
        real, calls = nifti.write_volume, []

        def fails_at_the_second(path, *args, **keywords):
            calls.append(path)
            if len(calls) == 2:
                raise OSError("disk full")
            real(path, *args, **keywords)

        monkeypatch.setattr(nifti, "write_volume", fails_at_the_second)
        with pytest.raises(OSError, match="disk full"):
            run(study, pet_path(bids), tmp_path, mode="onestep")
        assert not list(tmp_path.glob("*_ct.json"))  # no sidecar calls it whole
        monkeypatch.setattr(nifti, "write_volume", real)
        paths = run(study, pet_path(bids), tmp_path, mode="onestep")
        assert all(names.sidecar(p).is_file() for p in paths)
        assert not list(tmp_path.glob("*unfinished*"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"input": ""}, "none given"),
        ({"input": "/nowhere/pet.nii.gz"}, "no such file"),
        ({"checkpoint": "/nowhere/run"}, "not a run folder"),
        ({"mode": "predict"}, "not a read-out.*onestep, mirror, sample, mean"),
        ({"mode": "mean", "samples": 1}, "mean of one"),
        ({"uncertainty": True, "samples": 1}, "mean of one"),
        ({"samples": -1}, "positive"),
        ({"steps": 1001}, "1001 sampling steps: give 1 to 1000"),
        ({"seed": 2**32}, "seed 4294967296: out of range"),
        ({"seed": -1}, "seed -1: out of range"),
        ({"targets": ("flair",)}, "makes: ct, mr"),
    ],
)
def test_impossible_requests_are_refused(study, bids, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        run(
            study,
            **{
                "source": pet_path(bids),
                "out": tmp_path / "out",
                **fields,
                **({"source": fields["input"]} if "input" in fields else {}),
            },
        )
    assert not (tmp_path / "out").exists()


def test_a_unet_has_one_readout_and_no_uncertainty(study, bids, tmp_path):
    paths = run(study, pet_path(bids), tmp_path, checkpoint=str(study.unet), mode="predict")
    sidecar = json.loads(names.sidecar(paths[0]).read_text())
    assert (sidecar["Method"], sidecar["Samples"], sidecar["SamplingSteps"]) == ("unet", None, None)
    for fields in ({"uncertainty": True}, {"steps": 5}):
        with pytest.raises(UserError, match="samples|sample"):
            run(study, pet_path(bids), tmp_path / "x", checkpoint=str(study.unet), **fields)


def test_an_autoencoder_makes_no_images(study, bids, tmp_path):
    with pytest.raises(UserError, match="autoencoder, which predicts nothing"):
        run(study, pet_path(bids), tmp_path / "out", checkpoint=str(study.ae))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_run_is_one_line(study, bids, tmp_path, name):
    shutil.copytree(study.unet, tmp_path / "run")
    (tmp_path / "run" / name).write_text("{")
    with pytest.raises(UserError, match=f"{name}: not readable as JSON"):
        run(study, pet_path(bids), tmp_path / "out", checkpoint=str(tmp_path / "run"))


def test_the_input_folder_is_not_written_into(study, bids):
    with pytest.raises(UserError, match="input folder itself"):
        run(study, bids, bids)


class TestCommand:
    def test_prints_what_it_wrote(self, study, bids, tmp_path, capsys):
        out = tmp_path / "out"
        cli.main(
            ["-i", str(pet_path(bids)), "-o", str(out), "--checkpoint", str(study.ldm)]
            + ["--target", "ct", "--mode", "onestep", "--report"]
        )
        written = [line for line in capsys.readouterr().out.splitlines() if "wrote" in line]
        names = "ct.nii.gz", "report.html"
        start = f"wrote {out}/sub-03_trc-18FFDG_pet_desc-synth_"
        assert written == [start + name for name in names]

    def test_an_error_is_one_line_and_status_2(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as end:
            cli.main(["-i", str(tmp_path / "pet.nii.gz"), "-o", str(tmp_path / "out")])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "no such file" in err

    def test_a_missing_gpu_is_said(self):
        if "cuda" in {d.platform for d in __import__("jax").devices()}:
            pytest.skip("there is one")
        command = [sys.executable, "-m", "cldm_jax.predict", "-i", "x", "-o", "y"]
        done = subprocess.run(
            [*command, "--device", "cuda"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 2 and "device 'cuda': not found by JAX" in done.stderr
        assert "Traceback" not in done.stderr


class TestWhatIsLeftAside:
    """Every PET of a dataset is predicted, or is named with the reason; one never stops the others."""

    def test_what_is_not_predicted_is_said_and_listed(self, study, bids, tmp_path, capsys):
        root = shutil.copytree(bids, tmp_path / "in")
        (root / "sub-empty").mkdir()
        person = next(p for p in sorted(root.glob("sub-*")) if (p / "pet").is_dir())
        shutil.copy(pet_path(bids), person / "pet" / "fdgpet.nii.gz")
        link = root / "sub-link" / "pet" / "sub-link_PET.nii.gz"
        link.parent.mkdir(parents=True)
        link.symlink_to("../../.git/annex/objects/none.nii.gz")
        with pytest.raises(
            UserError, match="2 of .* images failed: sub-01.*sub-link; no PET of 1 .*"
        ):
            run(study, root, tmp_path / "out", targets=("ct",), mode="onestep")
        printed = capsys.readouterr()
        assert "a link to nothing" in printed.err
        assert "sub-empty: not predicted" in printed.out and "fdgpet.nii.gz: not" in printed.out
        listed = files.read_json(tmp_path / "out" / "left_aside.json")
        assert {pathlib.Path(x["path"]).name for x in listed["left_aside"]} == {
            "sub-empty",
            "fdgpet.nii.gz",
        }
        made = list((tmp_path / "out").rglob("*_desc-synth_ct.nii.gz"))
        assert len(made) == len(listed["images"]) - 2 > 0

    def test_people_without_pet_are_an_exit_status_after_the_others(self, study, bids, tmp_path):
        root = shutil.copytree(bids, tmp_path / "in")
        for bad in sorted(root.glob("sub-01*")):
            shutil.rmtree(bad)
        options = dict(targets=("ct",), mode="onestep")
        assert run(study, root, tmp_path / "out", **options)  # nobody is missing
        (root / "sub-empty").mkdir()
        with pytest.raises(UserError, match="no PET of 1 of the people: sub-empty. The others are"):
            run(study, root, tmp_path / "again", **options)
        made = [len(list((tmp_path / n).rglob("*_ct.nii.gz"))) for n in ("out", "again")]
        assert made[0] == made[1] > 0
