"""Evaluation, its references and controls, and prediction for one PET volume."""

import json
import types
from dataclasses import replace

import jax
import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.data import intensity
from cldm_jax.data.grid import ModelGrid
from cldm_jax.data.pipeline import make_source
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.jobs import evaluate
from cldm_jax.methods.base import Method, Prediction
from cldm_jax.metrics.scores import METRICS
from cldm_jax.runs import inputs, readouts, stored, validation
from cldm_jax.runs.inputs import image_source
from cldm_jax.runtime import runlock
from cldm_jax.scoring import controls, coverage, references
from cldm_jax.scoring import scorer as scorer_lib
from cldm_jax.scoring import summary as summary_lib
from cldm_jax.scoring.scorer import Scorer, main_methods
from configs import eval as eval_config


def test_summary_has_every_row(study):
    summary = files.read_json(study.report / "summary.json")
    rows = {(r["method"], r["mode"], r["target"]) for r in summary["rows"]}
    modes = [("unet", m) for m in ("predict", "mirror")]
    modes += [("ldm", m) for m in ("onestep", "mirror", "sample", "mean4", "recentred4")]
    assert rows == {(m, mode, t) for m, mode in modes for t in ("ct", "mr")}
    for row in summary["rows"]:
        assert np.isfinite(row["psnr"]["mean"]) and row["n_patients"] == 2 and row["params"] > 0
    names = {(r["name"], r["target"]) for r in summary["references"]}
    kinds = ("source_identity", "floor_mean_image", "linear_ceiling", "ae_ceiling")
    kinds += ("reacquired_ceiling",)
    assert names == {(k, t) for k in kinds for t in ("ct", "mr")}
    assert {c["name"] for c in summary["controls"]} == {
        "source_shuffle",
        "class_flip",
        "both_codes",
    }
    assert summary["data"]["contrast"] == "simulated" and summary["tests"]
    assert (study.report / "index.html").stat().st_size > 10_000


def test_trainings_on_the_same_weights_share_a_ceiling():
    def run(value, codec=True, **more):
        frozen = {"autoencoder": {"params": {"w": np.full(3, value)}, **more}}
        state = types.SimpleNamespace(frozen=frozen)
        return types.SimpleNamespace(codec=codec or None, state=state)

    runs = [run(1.0, codec=False), run(1.0), run(1.0), run(2.0), run(2.0, patch=np.ones(2))]
    assert references.one_per_autoencoder(runs) == [runs[1], runs[3], runs[4]]


def test_the_first_cldm_of_each_target_is_tested_against_all_others():
    def entrant(name, targets, share=0.5, method="ldm"):
        config = {"method": method, "recipe": {"diffusion": {"onestep_share": (1.0, share)}}}
        runs = dict.fromkeys(targets)
        return types.SimpleNamespace(
            name=name, runs=runs, first=types.SimpleNamespace(config=config)
        )

    both = ("ct", "mr")
    rivals = [entrant("unet", both, method="unet"), entrant("latent_regression", both, share=1.0)]
    seeds = [entrant(f"ldm{seed}", both) for seed in ("", "-seed1")]
    assert main_methods(rivals, both) == {}
    plain = [*rivals, *seeds, entrant("ldm-plain", both)]
    assert main_methods(plain, both) == {"ct": "ldm", "mr": "ldm"}
    single = [entrant("ldm-b", ("mr",)), entrant("ldm-a", ("ct",)), entrant("ldm-c", both)]
    assert main_methods([*rivals, *single], both) == {"ct": "ldm-a", "mr": "ldm-b"}


def test_a_targets_first_cldm_meets_the_other_targets_first():
    """One CLDM of CT and one of both, which is the first of MR: on CT they are compared, and the second
    is tested on MR alone.
    """
    rng = np.random.default_rng(0)
    scores = [
        {"method": m, "mode": "mirror", "target": t, "metric": metric, "patient": f"p{i}"}
        | {"group": f"g{i}", "split": "test", "value": rng.normal(), "n_slices": 3}
        for m, made in (("ldm-ct", ("ct",)), ("ldm", ("ct", "mr")), ("unet", ("ct", "mr")))
        for t in made
        for metric in ("psnr", "ssim")
        for i in range(6)
    ]
    chosen = {t: {s["method"]: "mirror" for s in scores if s["target"] == t} for t in ("ct", "mr")}
    tests = summary_lib._tests(scores, chosen, {"ct": "ldm-ct", "mr": "ldm"}, 0)
    assert {(t.target, t.a, t.b) for t in tests} == {
        ("ct", "ldm-ct:mirror", "ldm:mirror"),
        ("ct", "ldm-ct:mirror", "unet:mirror"),
        ("mr", "ldm:mirror", "unet:mirror"),
    }


def test_a_target_without_a_second_acquisition_costs_the_other_nothing(study, monkeypatch):
    prepared = Prepared(study.prepared)
    names = prepared.index.names(("ct", "mr"))
    data = {"context": 1}
    rows = image_source(prepared, "test", ("ct", "mr"), data, slice_stride=6)
    images, targets = references.reacquired(prepared, rows, names)
    assert targets == ["ct", "mr"] and np.isfinite(images).all()
    real = prepared.has
    monkeypatch.setattr(prepared, "has", lambda s, name: name != "mr_reacq" and real(s, name))
    fewer, targets = references.reacquired(prepared, rows, names)
    is_ct = rows.keys["label"] == prepared.index.code("ct")
    assert targets == ["ct"] and np.isnan(fewer[~is_ct]).all()
    np.testing.assert_array_equal(fewer[is_ct], images[is_ct])
    monkeypatch.setattr(prepared, "has", lambda s, name: False)
    assert references.reacquired(prepared, rows, names) == (None, [])


def test_no_untrained_method_beats_the_ceilings(study):
    summary = files.read_json(study.report / "summary.json")
    ceiling = {
        r["target"]: r["psnr"]["mean"] for r in summary["references"] if r["name"] == "ae_ceiling"
    }
    assert all(r["psnr"]["mean"] < ceiling[r["target"]] for r in summary["rows"])


def test_same_evaluation_is_not_done_twice(study, capsys):
    config = eval_config.get_config("tiny")
    config.runs = f"{study.unet},{study.ldm}"
    given = config.to_json()
    before = (study.report / "summary.json").stat().st_mtime_ns
    evaluate.run(config, str(study.report))
    assert "already evaluated" in capsys.readouterr().out
    assert (study.report / "summary.json").stat().st_mtime_ns == before
    assert config.to_json() == given


class Evaluated(Exception):
    pass


@pytest.mark.parametrize("change", ["metric", "stamp"])
def test_what_makes_another_evaluation(study, tmp_path, monkeypatch, change):
    def stop(*args):
        raise Evaluated

    summary = files.read_json(study.report / "summary.json")
    if change == "metric":
        monkeypatch.setitem(METRICS, "mine", METRICS["mae"]._replace(label="Mine"))
    if change == "stamp":  # pooled folds have none
        del summary["run"]["stamp"]
    files.write_json(tmp_path / "summary.json", summary)
    monkeypatch.setattr(evaluate, "_evaluate", stop)
    config = eval_config.get_config("tiny")
    config.runs = f"{study.unet},{study.ldm}"
    with pytest.raises(Evaluated):
        evaluate.run(config, str(tmp_path))


def test_a_folder_in_use_or_not_to_be_written_is_told_before_the_hours(tmp_path, monkeypatch):
    for name in ("open_runs", "shared_data", "_stamp", "choose_targets", "_check_protocol"):
        monkeypatch.setattr(evaluate, name, lambda *_: ())
    monkeypatch.setattr(evaluate, "_evaluate", lambda *_: pytest.fail("predicted"))
    (tmp_path / "file").touch()
    config = eval_config.get_config("tiny")
    with pytest.raises(OSError, match="file"):
        evaluate.run(config, str(tmp_path / "file" / "report"))
    with runlock.run_lock(tmp_path), pytest.raises(UserError, match="in use by"):
        evaluate.run(config, str(tmp_path))


def test_a_kill_leaves_no_summary_beside_anothers_gallery(tmp_path, monkeypatch):
    """Its command found it evaluated, and pooled folds drew the other evaluation's people."""

    def killed(*_, **__):
        raise Evaluated

    for name in ("open_runs", "shared_data", "_stamp", "choose_targets", "_check_protocol"):
        monkeypatch.setattr(evaluate, name, lambda *_: ())
    monkeypatch.setattr(evaluate, "_evaluate", lambda *_: (None, [], {"ct": {"cases": []}}))
    monkeypatch.setattr(evaluate, "write_report", killed)
    files.write_json(tmp_path / "summary.json", {"run": {"stamp": "of before"}})
    config = eval_config.get_config("tiny")
    config.title = "of now"
    with pytest.raises(Evaluated):
        evaluate.run(config, str(tmp_path))
    assert (tmp_path / "gallery.npz").is_file() and not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("name", ["model.json", "best/sha256-20.json"])
def test_other_weights_in_the_same_folder_are_another_evaluation(tmp_path, name):
    """A model exported anew with other steps or precision, a training made again on another autoencoder:
    folder, step and the training's config stay."""
    manifest = types.SimpleNamespace(config_sha256="c")
    run = types.SimpleNamespace(workdir=str(tmp_path), step=20, manifest=manifest, calibration=None)
    prepared = types.SimpleNamespace(index=types.SimpleNamespace(fingerprint="f"))
    stamps = []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for sha256 in ("a", "b", "a"):
        files.write_json(tmp_path / name, {"card_sha256": sha256})
        stamps.append(evaluate._stamp(eval_config.get_config("tiny"), [run], prepared))
    assert stamps[0] != stamps[1] and stamps[0] == stamps[2]


def test_a_read_out_is_compiled_once_per_run(study):
    run = stored.open_run(str(study.unet))
    scorer = Scorer(eval_config.get_config("tiny"), Prepared(study.prepared), {1: "ct"})
    source, compiled = scorer.source(run.config["data"]["context"]), []

    def listen(event, *_, **__):
        compiled.extend([event] * ("compile" in event))

    def predict(batch_size=8):
        return readouts.predict_rows(run, "predict", source, batch_size=batch_size, seed=0).images

    jax.monitoring.register_event_duration_secs_listener(listen)
    first = predict()
    assert compiled
    compiled.clear()
    np.testing.assert_array_equal(predict(), first)
    assert not compiled
    predict(batch_size=4)
    assert compiled  # another shape: what was listened to is still said


def test_a_method_that_failed_is_an_error_not_a_missing_target(study):
    config = eval_config.get_config("tiny")
    scorer = Scorer(config, Prepared(study.prepared), {1: "ct", 2: "mr"})
    with pytest.raises(UserError, match="NaN"):
        scorer.add("broken", "predict", np.full_like(scorer.real, np.nan))
    scorer.add("ct only", "predict", scorer.real, targets=("ct",))
    assert {s["target"] for s in scorer.scores} == {"ct"}


def test_controls_are_of_the_targets_that_the_run_makes(study, monkeypatch):
    """Trained for each target on its own, no class code can be obeyed."""
    scorer = Scorer(eval_config.get_config("tiny"), Prepared(study.prepared), {1: "ct", 2: "mr"})
    run = stored.open_run(str(study.ldm))
    source = scorer.source(run.config["data"]["context"])
    images = readouts.ReadOut(scorer.real, None, None)
    monkeypatch.setattr(controls, "predict_rows", lambda *a, **k: images)
    scorer.add(run.name, next(iter(run.method.predict)), scorer.real + 0.1)
    one = readouts.Entrant(run.name, {"ct": run, "mr": run._replace(workdir="another")})
    rows = controls.measure(scorer, one, source, scorer.real, None)
    assert [(r["name"], r["target"]) for r in rows] == [("source_shuffle", "ct")]
    both = readouts.Entrant(run.name, {"ct": run, "mr": run})
    rows = controls.measure(scorer, both, source, scorer.real, None)
    assert len(rows) == 5 and {r["name"] for r in rows} >= {"class_flip", "both_codes"}


def test_what_flatters_scores_is_said_in_the_report():
    """People of validation (split_mode abstract), and the real volume's minimum and maximum."""

    def notes(test=("a", "b"), rule="window"):
        splits = types.SimpleNamespace(train=("t",), val=("b", "v"))
        index = types.SimpleNamespace(splits=splits)
        specs = {"ct": types.SimpleNamespace(rule=rule)}
        prepared = types.SimpleNamespace(index=index)
        scorer = types.SimpleNamespace(prepared=prepared, specs=specs)
        return evaluate.notes(eval_config.get_config("tiny"), scorer, {*test})

    assert notes(test=("a",)) == []
    (said,) = notes()
    assert said.startswith("NO TEST PEOPLE: 1 of the 2 people")
    (said,) = notes(test=("a",), rule=intensity.ORACLE)
    assert (
        said.startswith("NOT COMPARABLE") and ": CT is scaled" in said and intensity.ORACLE in said
    )


def test_the_unit_of_mr_is_that_of_the_data(study):
    prepared, config = Prepared(study.prepared), eval_config.get_config("tiny")
    said = " ".join(Scorer(config, prepared, {2: "mr"}).protocol.describe())
    assert "(of the volume's own 99.5th foreground percentile)" in said
    entry = prepared.index.modalities["mr"]
    rule = replace(entry.normaliser, rule="train_percentile", percentile=97.0)
    prepared.index.modalities["mr"] = replace(entry, normaliser=rule)
    said = " ".join(Scorer(config, prepared, {2: "mr"}).protocol.describe())
    assert "(of the training people's 97th foreground percentile)" in said


def test_without_training_people_of_a_target_there_is_no_floor(study):
    prepared = Prepared(study.prepared)
    assert references.has_floor(prepared, {1: "ct", 2: "mr"})
    for person in (prepared.index.people[s] for s in prepared.subjects("train")):
        del person.volumes["ct"]
    assert references.has_floor(prepared, {2: "mr"})
    assert not references.has_floor(prepared, {1: "ct", 2: "mr"})


def test_intervals_are_of_the_people_that_are_scored(study, monkeypatch):
    config = eval_config.get_config("tiny")
    config.people_per_group = 1
    scorer = Scorer(config, Prepared(study.prepared), {1: "ct"})
    asked = {}
    monkeypatch.setattr(coverage, "image_source", lambda *a, **k: asked.update(k))
    coverage._source(scorer, stored.open_run(str(study.ldm)), ("ct",), 3)
    assert asked == {"slice_stride": 3, "people_per_group": 1}


def source_of(study, targets=("ct", "mr")):
    prepared = Prepared(study.prepared)
    source = make_source(
        prepared, split="test", targets=targets, context=1, latents=None, source_kind="image"
    )
    return prepared, source


def test_floor_is_the_mean_of_training_people_at_that_depth(study):
    prepared, source = source_of(study, ("mr",))
    floor = references.population_mean(prepared, source, {2: "mr"})
    top = {
        s: np.flatnonzero(prepared.json["subjects"][s]["keep"]).max()
        for s in [*prepared.subjects("train"), *prepared.subjects("test")]
    }
    row = int(source.keys["slice"].argmax())
    below = top[int(source.keys["subject"][row])] - source.keys["slice"][row]
    want = [prepared.read_slice(s, "mr", top[s] - below) for s in prepared.subjects("train")]
    np.testing.assert_allclose(floor[row], np.mean(want, 0), atol=1e-5)


def test_shuffle_takes_another_persons_slice_at_the_same_depth(study):
    prepared, source = source_of(study)
    rows = controls.shuffled_rows(prepared, source)
    subject = source.keys["subject"]
    assert (subject[rows] != subject).all()
    depth = np.array(
        [
            references.depth_below_vertex_mm(prepared, int(s), int(z))
            for s, z in zip(subject, source.keys["slice"], strict=True)
        ]
    )
    assert np.abs(depth[rows] - depth).max() <= 8.01  # one slice of the tiny preset


def test_trivial_classifier_separates_real_modalities_and_fails_on_swapped_ones(study):
    prepared, source = source_of(study)
    train = make_source(
        prepared, split="train", targets=("ct", "mr"), context=1, latents=None, source_kind="image"
    )
    classifier = controls.ModalityClassifier(references.targets(train, 8)[0], train.keys["label"])
    real, labels = references.targets(source, 8)[0], source.keys["label"]
    assert classifier.accuracy(real, labels) > 0.9
    assert classifier.accuracy(real, 3 - labels) < 0.1


def test_a_run_that_cannot_sample_so_is_named(study):
    config = eval_config.get_config("tiny")
    config.runs, config.replace_sampling = f"{study.unet},{study.ldm}", True
    config.sampling.num_sampling_steps = 2000
    with pytest.raises(UserError, match=f"{study.ldm}: cannot sample so: 2000 sampling steps"):
        evaluate.open_runs(config)


def test_evaluating_on_other_data_is_refused(study, tmp_path):
    config = eval_config.get_config("tiny")
    config.runs = str(study.unet)
    index = json.loads((study.prepared / "index.json").read_text())
    for name in index["shards"]:
        (tmp_path / name).symlink_to(study.prepared / name)
    index["fingerprint"] = "another"
    (tmp_path / "index.json").write_text(json.dumps(index))
    config.data.prepared = str(tmp_path)
    with pytest.raises(UserError, match="other data"):
        evaluate.run(config, str(tmp_path / "report"))


@pytest.mark.parametrize("field, value", [("high", 0.72), ("rule", "train_percentile")])
def test_other_data_must_be_in_the_runs_range(field, value):
    """Else an MR of 1 would be read as 0.72, and its scores would say so of the method."""
    mr = intensity.make("mr", "volume_percentile", low=0, high=1, percentile=99.5)
    grid = ModelGrid((40, 32), (6.0, 6.0), None)

    def data(spec):
        modalities = {"mr": types.SimpleNamespace(normaliser=intensity.fit(spec, [3.0]))}
        return types.SimpleNamespace(grid=grid, modalities=modalities)

    run = types.SimpleNamespace(workdir="ldm", manifest=types.SimpleNamespace(data=data(mr)))
    same = types.SimpleNamespace(folder="mine", index=data(mr))
    other = types.SimpleNamespace(folder="mine", index=data(replace(mr, **{field: value})))
    scorer_lib._check_range(run, same)
    with pytest.raises(UserError, match="mine: mr is not as ldm was trained on"):
        scorer_lib._check_range(run, other)
    same.index.grid = replace(grid, size=(48, 32))
    with pytest.raises(UserError, match="mine: grid is not as ldm"):
        scorer_lib._check_range(run, same)


def test_learning_curves_end_where_training_does(study):
    learning = files.read_json(study.report / "summary.json")["learning"]
    assert learning.keys() == {"unet", "ldm"}
    for curves in learning.values():
        assert all(curves[t][-1][0] == 1.0 and np.isfinite(curves[t][-1][1]) for t in curves)


def test_the_last_step_that_validates_like_the_best_is_scored(study):
    """Its checkpoint lies in best/, and that is what a run opens with."""
    for workdir in (study.unet, study.ldm):
        rows = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
        psnr = {
            r["step"]: (r["val/psnr_ct"] + r["val/psnr_mr"]) / 2 for r in rows if "val/psnr_ct" in r
        }
        best = max(s for s, value in psnr.items() if value >= max(psnr.values()) - 0.1)
        kept = files.read_json(workdir / "run.json")["best"]
        highest = pytest.approx(max(psnr.values()))
        assert kept == {"step": best, "psnr": pytest.approx(psnr[best]), "highest": highest}
        assert stored.open_run(str(workdir)).step == best


def test_tests_compare_the_read_outs_chosen_on_validation_people(study):
    summary = files.read_json(study.report / "summary.json")
    chosen = summary["chosen"]
    assert {m for modes in chosen.values() for m in modes} == {"unet", "ldm"}
    for test in summary["tests"]:
        modes = chosen[test["target"]]
        assert (test["a"], test["b"]) == (f"ldm:{modes['ldm']}", f"unet:{modes['unet']}")
    assert len(summary["tests"]) == 4  # two targets, two scores


def test_validation_draws_every_class_from_what_it_has_predicted(study, monkeypatch):
    """One batch more than the validation itself, where the first images have one code between them."""
    calls = []

    def divided(function):
        def call(*args):
            calls.append(args[1]["label"])
            return function(*args)

        return call

    monkeypatch.setattr(validation.sharding, "Divided", divided)

    def predict(state, batch, rng):
        code = np.asarray(batch["label"], np.float32)[:, None, None, None]
        return Prediction(np.zeros_like(batch["target"]) + code / 4, None)

    method = Method(None, None, {"predict": predict}, {"predict": 1})
    config, prepared = study.config("unet", val_slice_stride=1), Prepared(study.prepared)
    look = validation.Validation(config, prepared, method).look
    state = stored.open_run(str(study.unet)).state
    _, images = look(state, types.SimpleNamespace(is_asked=lambda: False))
    shown = images["val/source_ct_mr"]
    width = shown.shape[2] // 3
    for column, code in ((1, 1), (2, 2)):
        part = shown[:, :, column * width : (column + 1) * width]
        np.testing.assert_allclose(part, (code / 4 + 1) / 2)
    assert len(set(calls[0][: validation.SHOWN].tolist())) == 1
    rows = inputs.image_source(prepared, "val", ("ct", "mr"), config.data)
    assert len(calls) == -(-len(rows) // config.train.batch_size) + 1


def test_a_summary_that_a_copy_cut_short(tmp_path):
    """The evaluation of that folder writes it anew; who only reads it is told."""
    path = tmp_path / "summary.json"
    path.write_text('{"run": {"stamp": "ab')
    assert evaluate._stamp_of(path) is None
    with pytest.raises(UserError, match="summary.json: damaged, or of an early version"):
        evaluate.read_summary(path)
