"""A calibration from the end of a training to a reader: job, file, export, prediction, evaluation."""

import csv
import json
import shutil
import signal
from types import SimpleNamespace

import data_heads
import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.data import nifti
from cldm_jax.data.shards import Prepared, write_index
from cldm_jax.errors import UserError
from cldm_jax.jobs import calibrate, evaluate, export, predict, train
from cldm_jax.metrics import ensemble
from cldm_jax.metrics.regions import REGIONS
from cldm_jax.runs import calibration, spread
from cldm_jax.runs.inputs import image_source
from cldm_jax.runs.readouts import Predictor
from cldm_jax.runs.stored import open_run
from cldm_jax.scoring import coverage
from cldm_jax.volumes import names as names_lib
from cldm_jax.volumes import sidecars, synthesis, uncertainty
from cldm_jax.volumes.opened import CPU_BATCH, open_model
from configs import calibrate as calibrate_config
from configs import eval as eval_config
from configs import export as export_config

SAMPLES = 3


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    """The study's CLDM, trained by a command that calibrates at the end: only that is left to do."""
    folder = tmp_path_factory.mktemp("calibrated") / "ldm"
    shutil.copytree(study.ldm, folder)
    assert open_run(str(folder)).uncalibrated == "it was never calibrated"
    train.run(study.config("ldm", calibrate_samples=SAMPLES), str(folder))
    return folder


@pytest.fixture(scope="module")
def pet(tmp_path_factory):
    path = tmp_path_factory.mktemp("pet") / "head.nii.gz"
    array = data_heads.make_head(0)["pet"]
    nifti.write_volume(path, array, data_heads.affine_of(), dtype=np.float32)
    return path


def predicted(run, pet, out, **fields):
    request = predict.Request(str(pet), str(out), checkpoint=str(run))
    predict.predict(request._replace(**fields))
    return out


def read(out, name):
    return nifti.read_volume(out / f"head_desc-{name}.nii.gz").array


@pytest.fixture(scope="module")
def sure(run, pet, tmp_path_factory):
    """The output folder of a calibrated prediction."""
    return predicted(run, pet, tmp_path_factory.mktemp("sure"), uncertainty=True, report=True)


class TestTheFile:
    def test_what_a_training_leaves(self, study, run):
        found = open_run(str(run)).calibration
        assert (found.samples, found.point, found.step) == (SAMPLES, "mirror", 20)
        assert found.people == len(Prepared(study.prepared).subjects("val"))
        assert found.targets.keys() == {"ct", "mr"} and found.slices > 0
        for name, target in found.targets.items():
            assert min(target.factors) > 0 and min(target.q90) > 0
            assert target.regions.keys() == REGIONS[name].keys()
        assert calibration.Calibration.from_json(found.to_json()) == found

    def test_one_of_before_keeps_the_blur_it_was_measured_with(self, run):
        found = open_run(str(run)).calibration
        before = found.to_json()
        for target in before["targets"].values():
            del target["smooth_mm"]
        opened = calibration.Calibration.from_json(before).targets["ct"]
        assert opened.smooth_mm == (4.0, 4.0, 4.0) != found.targets["ct"].smooth_mm
        noise = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
        maps = [ensemble.sd_map(noise, (1, 1), s) for s in (opened.smooth_mm[0], 2.0)]
        assert maps[0].std() < 0.7 * maps[1].std()

    def test_it_fits_the_people_it_was_made_on(self, study, run):
        """On them 90 % of pixels are covered at every scale; as sampled they are not."""
        opened, prepared = open_run(str(run)), Prepared(study.prepared)
        source = image_source(prepared, "val", ("ct", "mr"), {"context": 3}, slice_stride=2)
        source = spread.first_people(source, 2, range(len(prepared.index.people)))
        drawer = spread.Drawer(opened, "mirror", SAMPLES, batch_size=4, seed=0)
        names, spacing = {1: "ct", 2: "mr"}, tuple(prepared.json["grid"]["spacing_mm"])
        judged = {"ct": [], "mr": []}
        for drawn in spread.volumes(drawer, source):
            own = opened.calibration.targets[names[drawn.code]]
            judged[names[drawn.code]].append(spread.judge(drawn, own, spacing))
        for rows in judged.values():
            np.testing.assert_allclose(np.mean([r["coverage"] for r in rows], 0), 0.9, atol=0.03)
            raw = np.mean([r["coverage_raw"] for r in rows], 0)
            assert np.abs(raw - 0.9).max() > 0.05

    def test_a_second_command_does_not_measure_again(self, study, run, monkeypatch):
        monkeypatch.setattr(calibrate, "measure", None)  # would fail
        train.run(study.config("ldm", calibrate_samples=SAMPLES), str(run))

    def test_a_signal_meanwhile_ends_the_process(self, study, run, monkeypatch, capsys):
        config = study.config("ldm", calibrate_samples=SAMPLES)
        for place, name in ((calibrate, "after_training"), (train, "_train")):
            real = getattr(place, name)

            def asked(*args, real=real):
                done = real(*args)
                signal.raise_signal(signal.SIGTERM)
                return done

            with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
                patch.setattr(place, name, asked)
                train.run(config, str(run))
            assert ended.value.code == 143
            assert "stopped by signal 15; nothing new to save" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["ldm", "unet"])
    def test_nothing_where_it_is_off_or_there_are_no_samples(self, study, name, monkeypatch):
        monkeypatch.setattr(calibrate, "open_run", None)
        samples = {"ldm": 0, "unet": SAMPLES}[name]
        train.run(study.config(name, calibrate_samples=samples), str(getattr(study, name)))
        assert not (getattr(study, name) / calibration.FILE).exists()

    def test_the_job_makes_the_same(self, study, run, tmp_path):
        shutil.copytree(run, tmp_path / "ldm")
        (tmp_path / "ldm" / calibration.FILE).unlink()
        config = calibrate_config.get_config("tiny")
        config.run, config.data.root = str(tmp_path / "ldm"), str(study.data_root)
        config.samples = SAMPLES
        calibrate.run(config, "")
        made = tmp_path / "ldm" / calibration.FILE
        assert made.read_bytes() == (run / calibration.FILE).read_bytes()

    def test_the_job_refuses_the_same_people_prepared_otherwise(self, study, run, tmp_path):
        """Their PET is scaled to another range than the network has learned from."""
        folder = shutil.copytree(study.prepared, tmp_path / "prepared")
        index = files.read_json(folder / "index.json")
        pet = index["modalities"]["pet"]
        pet["normaliser"]["high"] = 2 * pet["normaliser"]["high"]
        write_index(folder, index)
        config = calibrate_config.get_config("tiny")
        config.run, config.data.prepared = str(run), str(folder)
        with pytest.raises(UserError, match="other data or another split"):
            calibrate.run(config, "")

    def test_the_job_refuses_what_has_no_samples(self, study):
        config = calibrate_config.get_config("tiny")
        config.data.root = str(study.data_root)
        for given, why in ((study.unet, "has no samples"), ("", "empty")):
            config.run = str(given)
            with pytest.raises(UserError, match=why):
                calibrate.run(config, "")

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"step": 19}, "another training or step"),
            ({"config_sha256": "0"}, "another training or step"),
            ({"version": 99}, "version 99"),
            ({"targets": None}, "cannot be read"),
            ({"sampling": {"num_sampling_steps": 7}}, "other sampling settings"),
            ({"sampling": {}}, "other sampling settings"),
        ],
    )
    def test_another_models_is_not_used(self, run, tmp_path, change, why):
        shutil.copytree(run, tmp_path / "ldm")
        path = tmp_path / "ldm" / calibration.FILE
        files.write_json(path, {**files.read_json(path), **change})
        opened = open_run(str(tmp_path / "ldm"))
        assert opened.calibration is None and why in opened.uncalibrated

    def test_other_sampling_settings_are_not_calibrated(self, run):
        sampling = open_run(str(run)).config["recipe"]["sampling"]
        more = {**sampling, "num_samples": [1, 9]}
        assert open_run(str(run), more).calibration is not None
        guided = open_run(str(run), {**sampling, "guidance_scale": 2.0})
        assert "guidance_scale" in guided.uncalibrated

    def test_the_younger_self_sharpens_images_and_not_the_ensemble(self, run):
        """Guided images keep the ensemble that was calibrated, and one that was before there were any."""
        opened = open_run(str(run))
        assert opened.calibration.sampling["autoguidance_scale"] == 1.0
        stored = opened.calibration.to_json()
        del stored["sampling"]["autoguidance_scale"]
        assert calibration.Calibration.from_json(stored) == opened.calibration
        facts = {**opened.config["recipe"]["sampling"], "autoguidance_scale": 1.5}
        sha = opened.manifest.config_sha256
        assert calibration.misfit(opened.calibration, opened.step, sha, facts) == ""

    def test_its_samples_have_steps_of_their_own(self, study, run, pet, tmp_path):
        """Those of the images are another setting: the ensemble stays, to the bit."""
        opened = open_run(str(run))
        sampling = opened.config["recipe"]["sampling"]
        assert opened.calibration.sampling["num_sampling_steps"] == 2
        slower = open_run(str(run), {**sampling, "num_sampling_steps": 5})
        assert slower.calibration == opened.calibration
        assert slower.method.evaluations["sample"] == 10  # with the younger self
        source = image_source(
            Prepared(study.prepared), "val", ("ct",), {"context": 3}, slice_stride=4
        )
        drawers = [spread.Drawer(r, "mirror", 2, batch_size=4, seed=0) for r in (opened, slower)]
        assert drawers[0].evaluations == drawers[1].evaluations == 2 + 2 * 2
        np.testing.assert_array_equal(*(d.draw(source) for d in drawers))
        request = predict.Request(
            str(pet), str(tmp_path), checkpoint=str(run), steps=5, uncertainty=True
        )
        model = open_model(request)
        assert model.sd_mode == synthesis.CALIBRATED and sidecars._steps(model) == 2
        assert model.evaluations() == 2 + SAMPLES * 2
        assert sidecars._steps(open_model(request._replace(mode="sample"))) == 5

    def test_an_export_takes_it_along(self, run, pet, tmp_path):
        config = export_config.get_config("tiny")
        config.run = str(run)
        export.run(config, str(tmp_path / "model"))
        own = open_run(str(run)).calibration
        assert open_run(str(tmp_path / "model")).calibration == own
        path = tmp_path / "model" / calibration.FILE
        path.write_text(path.read_text().replace("mirror", "onestep"))
        with pytest.raises(UserError, match="calibration"):
            open_run(str(tmp_path / "model"))


def test_calibration_people_are_of_as_many_heads_as_there_are():
    """A cohort of label volumes lists all variants of one head before the next head."""
    source = SimpleNamespace(keys={"subject": np.repeat(np.arange(3, 19), 2)})
    groups = ["train"] * 3 + ["a"] * 8 + ["b"] * 6 + ["c"] * 2
    for people, asked in (([3, 4, 11, 12, 17], 5), (list(range(3, 19)), 0)):
        found = spread.first_people(source, asked, groups).keys["subject"]
        assert found.tolist() == np.repeat(people, 2).tolist()


def test_who_share_a_head_count_as_one_in_the_rules_of_regions():
    """Twelve people: nine units allow a quantile, two heads do not."""
    rng = np.random.default_rng(0)
    drawn = [SimpleNamespace(subject=s) for s in range(12)]
    asked = [
        spread.Asked({"brain_mean": rng.normal(size=5)}, {"brain_mean": rng.normal(size=(3, 5))})
        for _ in drawn
    ]
    for groups, people, rule in (
        (list("aaaaaabbbbbb"), 2, "student"),
        (list("abcdefghijkl"), 12, "quantile"),
        (["a"] * 12, 12, "quantile"),
    ):
        found = calibrate._rules(drawn, asked, groups)["brain_mean"]
        assert (found["people"], found["rule"]) == (people, rule)


def test_members_are_samples_of_their_own(study, run):
    """Member 0 is the single sample; others differ; a member does not depend on how many there are."""
    opened = open_run(str(run))
    prepared = Prepared(study.prepared)
    source = image_source(prepared, "val", ("ct",), {"context": 3}, slice_stride=4)
    source = spread.first_people(source, 1, range(len(prepared.index.people)))
    one = Predictor(opened._replace(method=opened.drawing), "sample")
    options = dict(batch_size=4, seed=0)
    drawn = spread.Drawer(opened, "mirror", 3, **options).draw(source)
    fewer = spread.Drawer(opened, "mirror", 2, batch_size=3, seed=0).draw(source)
    np.testing.assert_array_equal(drawn[0], np.clip(one(source, **options).images, -1, 1))
    np.testing.assert_allclose(drawn[:2], fewer, atol=1e-5)
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01


class TestPrediction:
    def test_calibrated_sd_and_regions(self, run, sure):
        out = sure
        about = files.read_json(out / "head_desc-synthsd_ct.json")
        found = open_run(str(run)).calibration
        assert about["Calibrated"] is True and about["Samples"] == SAMPLES
        assert about["IntervalMultiplier"]["4mm"] == found.targets["ct"].q90[1]
        lines = list(csv.DictReader((out / "head_desc-synth_regions.tsv").open(), delimiter="\t"))
        assert {(r["target"], r["region"]) for r in lines} == {
            (t, name) for t, names in REGIONS.items() for name in names
        }
        for r in lines:
            if "n/a" not in r.values():
                assert float(r["low"]) <= float(r["value"]) <= float(r["high"])
                assert float(r["from_mm"]) < float(r["to_mm"])
        ct_means = [r for r in lines if (r["target"], r["region"]) == ("ct", "brain_mean")]
        assert {r["unit"] for r in ct_means} == {"HU"}
        sidecar = files.read_json(out / "head_desc-synth_regions.json")
        assert sidecar["RunKey"] == about["RunKey"] and "not for clinical" in sidecar["Description"]
        assert "fitted to the error" in (out / "head_desc-synth_report.html").read_text()

    def test_slabs_of_a_tilted_pet_lie_where_the_brain_does(self):
        """A ball in a grid that is pitched by 20 degrees: its slabs' edges are the ball's."""
        turn = np.deg2rad(20)
        affine = np.eye(4)
        affine[:3, :3] = 2 * np.array(
            [[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]]
        )
        z, y, x = np.indices((40, 48, 48))
        brain = (x - 24) ** 2 + (y - 30) ** 2 + (z - 20) ** 2 <= 12**2
        centre = (affine @ (24, 30, 20, 1))[2]
        heights = uncertainty._heights(affine, brain, np.arange(40), 1)
        inside = heights[brain.any((1, 2))]
        reach = 2 * 12.5 * np.cos(turn)  # of its 25 slices, along the world's z
        np.testing.assert_allclose([inside.min(), inside.max()], [centre - reach, centre + reach])
        np.testing.assert_allclose(heights[1:, 0], heights[:-1, 1])  # they touch

    def test_finished_files_are_known_again(self, run, pet, sure, tmp_path, capsys):
        out = tmp_path / "out"
        shutil.copytree(sure, out)
        predicted(run, pet, out, uncertainty=True, report=True)
        assert "done before" in capsys.readouterr().out
        (out / "head_desc-synth_regions.tsv").write_text("")
        with pytest.raises(UserError, match="exists already"):
            predicted(run, pet, out, uncertainty=True, report=True)

    def test_the_sd_is_the_rescaled_one(self, run, pet, sure, tmp_path):
        """Doubled factors in the file, doubled SD: the map is the file's."""
        shutil.copytree(run, tmp_path / "ldm")
        path = tmp_path / "ldm" / calibration.FILE
        value = files.read_json(path)
        value["targets"]["ct"]["factors"] = [2 * f for f in value["targets"]["ct"]["factors"]]
        files.write_json(path, value)
        options = dict(uncertainty=True, targets=("ct",))
        made = predicted(tmp_path / "ldm", pet, tmp_path / "b", **options)
        one, two = (read(out, "synthsd_ct") for out in (sure, made))
        np.testing.assert_allclose(two, 2 * one, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(read(made, "synth_ct"), read(sure, "synth_ct"))

    def test_what_is_not_calibrated_says_so(self, run, pet, tmp_path, capsys):
        fields = dict(uncertainty=True, targets=("ct",))
        out = predicted(run, pet, tmp_path, samples=2, **fields)
        about, why = files.read_json(out / "head_desc-synthsd_ct.json"), "with 3 samples, not 2"
        assert about["Calibrated"] is False and why in about["CalibratedWhyNot"]
        assert f"not calibrated: it was calibrated {why}" in capsys.readouterr().out
        assert "not a confidence interval" in about["Kind"]
        assert not list(out.glob("*regions*"))

    def test_recentred_is_a_dial_from_the_point_image(self, run, pet, tmp_path):
        ct = {"targets": ("ct",), "samples": 2}
        made = {
            a: read(
                predicted(run, pet, tmp_path / str(a), mode="recentred", sharpness=a, **ct),
                "synth_ct",
            )
            for a in (0.0, 1.0)
        }
        # In batches as a mean of two has them: others round otherwise in the last bit.
        own = tmp_path / "mirror"
        predicted(run, pet, own, mode="mirror", targets=("ct",), batch_size=CPU_BATCH // 2)
        mirror = read(own, "synth_ct")
        np.testing.assert_array_equal(made[0.0], mirror)
        assert np.abs(made[1.0] - mirror).max() > 1
        about = files.read_json(tmp_path / "1.0" / "head_desc-synth_ct.json")
        assert (about["Mode"], about["Sharpness"], about["Samples"]) == ("recentred2", 1.0, 2)

    def test_recentred_refusals(self, study, run, pet, tmp_path):
        for checkpoint, fields, why in (
            (run, {"samples": 1}, "no mean of one"),
            (run, {"sharpness": -1.0}, "out of range"),
            (study.unet, {}, "not a read-out"),
        ):
            with pytest.raises(UserError, match=why):
                predicted(checkpoint, pet, tmp_path, mode="recentred", **fields)


def test_recentred_keeps_the_mean_and_takes_the_samples_detail():
    rng = np.random.default_rng(0)
    point, samples = rng.uniform(-0.2, 0.2, (2, 16, 16)), rng.uniform(-0.2, 0.2, (4, 2, 16, 16))
    made = [spread.recentred(point, s, samples.mean(0), 4, 1.0) for s in samples]
    np.testing.assert_allclose(np.mean(made, 0), point, atol=1e-6)
    np.testing.assert_allclose(np.std(made, 0), samples.std(0, ddof=1), atol=1e-6)
    half = spread.recentred(point, samples[0], samples.mean(0), 4, 0.5)
    np.testing.assert_allclose(half, (made[0] + point) / 2, atol=1e-6)
    assert np.abs(spread.recentred(point, samples[0], samples.mean(0), 4, 9.0)).max() == 1


def test_a_region_is_as_high_as_its_persons_slices(monkeypatch):
    """Of a cohort as it was scanned, slices of 2 and 4 mm: the volume in mL of either is its own."""
    rng = np.random.default_rng(0)
    people = [SimpleNamespace(voxel_mm=(mm, 2.0, 2.0), group=f"g{mm}") for mm in (2.0, 4.0)]
    index = SimpleNamespace(people=people, spacing_mm=(2.0, 2.0), names=lambda t: {1: "ct"})
    index.splits = SimpleNamespace(hash="")
    drawn = [
        spread.Drawn(i, 1, rng.uniform(-1, 1, (2, 8, 8)), rng.uniform(-1, 1, (3, 2, 8, 8)),
                     rng.uniform(-1, 1, (2, 8, 8)), np.ones((2, 8, 8), bool), np.ones((2, 8, 8)))
        for i in range(2)
    ]  # fmt: skip
    asked = []

    def frame(pet, point, target, spacing, height):
        asked.append(height)
        return SimpleNamespace(brain=None)

    nothing = SimpleNamespace(slabs=lambda *a: None, sums=lambda *a: None, values=lambda *a: {})
    for name, made in {
        "make_frame": frame,
        "regions": nothing,
        "intensity": SimpleNamespace(from_model=lambda spec, image: image),
        "volumes": lambda *a: iter(drawn),
    }.items():
        monkeypatch.setattr(spread, name, made)
    prepared = SimpleNamespace(index=index)
    modalities = {"ct": SimpleNamespace(normaliser=None)}
    manifest = SimpleNamespace(data=SimpleNamespace(modalities=modalities), config_sha256="")
    opened = SimpleNamespace(config={"data": {"targets": ("ct",)}}, manifest=manifest, step=1)
    opened._replace = lambda **fields: opened
    for where, name, made in (
        (calibrate, "_sampling", {}),
        (calibrate, "image_source", drawn),
        (calibrate, "stored_method", (None, None)),
        (spread, "first_people", drawn),
        (spread, "point_mode", "mirror"),
        (spread, "Drawer", SimpleNamespace(evaluations=1)),
    ):
        monkeypatch.setattr(where, name, lambda *a, made=made, **k: made)
    found = calibrate.measure(opened, prepared, calibrate.Settings(3, 5, 0, 4))
    assert asked == [10.0, 20.0] and found.slice_mm == 15.0

    asked.clear()
    opened.calibration = found
    drawer = SimpleNamespace(run=opened)
    monkeypatch.setattr(coverage, "_source", lambda *a: None)
    scale = SimpleNamespace(modality="mr", low=0.0, high=1.0)
    scorer = SimpleNamespace(prepared=prepared, names={1: "ct"}, specs={"ct": scale})
    coverage._rows(scorer, "ldm", drawer, ("ct",), 3)
    assert asked == [6.0, 12.0]


def test_evaluation_of_a_calibrated_model(study, run, tmp_path, capsys):
    config = eval_config.get_config("tiny")
    config.runs = f"{study.unet},{run}"
    evaluate.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = {r["target"]: r for r in summary["spread"]}
    assert rows.keys() == {"ct", "mr"}
    for row in rows.values():
        assert row["samples"] == SAMPLES and row["people"] == summary["data"]["test_patients"]
        assert len(row["coverage"]) == len(row["crps"]) == len(ensemble.SCALES_MM)
        assert all(0 <= c <= 1 for c in row["coverage"]) and row["energy"] > 0
        assert {g["name"] for g in row["regions"]} <= REGIONS[row["target"]].keys()
        # The calibrated ensemble is no worse than its own point image, whose CRPS is its MAE.
        assert row["crps"][0] < row["mae"][0]
    assert {(p["method"], p["target"]) for p in summary["points"]} == {
        (m, t) for m in ("unet", "ldm") for t in ("ct", "mr")
    }
    own = next(p for p in summary["points"] if (p["method"], p["target"]) == ("ldm", "ct"))
    if own["mode"] == rows["ct"]["point"]:
        assert own["mae"] == pytest.approx(rows["ct"]["mae"], rel=1e-3)
    modes = {r["mode"]: r for r in summary["rows"] if (r["method"], r["target"]) == ("ldm", "ct")}
    parts = [modes[m]["network_evaluations"] for m in ("mirror", "sample", "mean4")]
    assert modes["recentred4"]["network_evaluations"] == sum(parts)
    page = (tmp_path / "index.html").read_text()
    assert 'id="spread"' in page and "fitted band by band" in page
    stamps = [evaluate._stamp(config, [r], Prepared(study.prepared)) for r in
              (open_run(str(run)), open_run(str(run))._replace(calibration=None))]  # fmt: skip
    assert stamps[0] != stamps[1]  # another calibration is another evaluation
    said = capsys.readouterr().out
    assert "90 % intervals cover" in said and "CRPS at pixel/4 mm/16 mm" in said


def test_an_uncalibrated_evaluation_has_no_such_section(study):
    summary = json.loads((study.report / "summary.json").read_text())
    assert summary["spread"] == [] and summary["points"] == []
    page = (study.report / "index.html").read_text()
    assert 'id="spread"' not in page and "not a calibrated error bar" in page


def test_names_of_a_dataset_with_regions(tmp_path):
    class Found:
        name, folder = "sub-1", "sub-1"

    names = names_lib.Names(tmp_path, Found, SimpleNamespace(targets=("ct",), sd_mode="calibrated"))
    assert names.regions().name == "sub-1_desc-synth_regions.tsv"
    assert names_lib.sidecar(names.regions()).name == "sub-1_desc-synth_regions.json"
    assert names.regions() in names.all(with_report=False)
    plain = names_lib.Names(tmp_path, Found, SimpleNamespace(targets=("ct",), sd_mode="mean4"))
    assert plain.regions() not in plain.all(with_report=True)
