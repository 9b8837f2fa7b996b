"""Exported models: the same predictions, nothing private, and refusal of whatever is not whole."""

import shutil

import jax
import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.data import pet_ranges
from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.jobs import evaluate, export
from cldm_jax.kernels import library
from cldm_jax.runs import inputs, readouts, stored
from cldm_jax.runtime import device, weights
from cldm_jax.volumes import opened
from configs import eval as eval_config
from configs import export as export_config


def exported(trained, out, **fields):
    """`out`, after exporting `trained` into it with `fields` of the config set."""
    config = export_config.get_config("tiny")
    config.run = str(trained)
    config.update(fields)
    export.run(config, str(out))
    return out


@pytest.fixture(scope="module")
def models(study, tmp_path_factory):
    """{name: exported folder} of the study's runs."""
    root = tmp_path_factory.mktemp("models")
    return {name: exported(getattr(study, name), root / name) for name in ("ldm", "unet")}


@pytest.fixture
def copy(models, tmp_path):
    """A copy of the exported latent model, to damage."""
    return shutil.copytree(models["ldm"], tmp_path / "copy")


def reseal(folder, change) -> None:
    """Edits the card by `change(card)` and renews its own SHA-256, as no accident would."""
    card = files.read_json(folder / weights.CARD)
    change(card)
    del card["card_sha256"]
    files.write_json(folder / weights.CARD, {**card, "card_sha256": files.sha256_json(card)})


def rows_of(study):
    data = study.config("unet").data
    data.context = 3
    return inputs.image_source(Prepared(study.prepared), "test", ("ct", "mr"), data, slice_stride=4)


def images(run, mode, study):
    out = readouts.predict_rows(run, mode, rows_of(study), batch_size=8, seed=3)
    return out.images if out.sd is None else np.stack([out.images, out.sd])


# Round trip


@pytest.mark.parametrize("name, mode", [("unet", "predict"), ("ldm", "onestep"), ("ldm", "mean4")])
def test_predictions_keep_every_bit(study, models, name, mode):
    trained, opened = (stored.open_run(str(f)) for f in (getattr(study, name), models[name]))
    assert (trained.name, trained.step) == (opened.name, opened.step)
    assert trained.manifest.data == opened.manifest.data
    np.testing.assert_array_equal(images(trained, mode, study), images(opened, mode, study))


def test_the_stored_arrays_are_the_checkpoints(study, models):
    trained, opened = (stored.read_stored(str(f)) for f in (study.ldm, models["ldm"]))
    for ours, theirs in ((opened.params, trained.params), (opened.frozen, trained.frozen)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert trained.frozen["statistics"]["std"].shape == (4, 3)


def test_ranges_of_the_training_pets_go_along(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pet_ranges, "MIN_PEOPLE", 2)
    run = shutil.copytree(study.unet, tmp_path / "run")
    manifest = files.read_json(run / "run.json")
    assert manifest["pet_ranges"] is None  # too few people when it was trained
    assert weights.read_card(exported(run, tmp_path / "a"))["training"]["pet_ranges"] is None
    assert "too few training people" in capsys.readouterr().out
    measured = pet_ranges.of_people(Prepared(study.prepared))
    assert measured["measures"]["brain_p50"][0] > 0
    files.write_json(run / "run.json", manifest | {"pet_ranges": measured})
    assert weights.read_card(exported(run, tmp_path / "b"))["training"]["pet_ranges"] == measured
    assert opened.open_model(opened.Request("", "", str(tmp_path / "b"))).pet_ranges == measured


def test_float16_is_smaller_and_close(study, models, tmp_path):
    """Measured on this tiny network: 1e-4 (onestep) and 2e-4 (sample) at most, in model range, where
    2e-4 is 0.4 HU.
    """
    half = exported(study.ldm, tmp_path, dtype="float16")
    sizes = [(f / weights.WEIGHTS).stat().st_size for f in (half, models["ldm"])]
    assert sizes[0] < 0.65 * sizes[1]  # names and small arrays weigh much in a tiny model
    run = stored.open_run(str(half))
    assert {a.dtype for a in jax.tree.leaves(run.state.ema_params)} == {np.dtype("float32")}
    for mode in ("onestep", "sample"):
        full = images(stored.open_run(str(models["ldm"])), mode, study)
        error = np.abs(images(run, mode, study) - full).max()
        assert 0 < error < 1e-3


def test_sampling_can_be_replaced(study, models):
    sampling = {**stored.open_run(str(models["ldm"])).config["recipe"]["sampling"]}
    sampling |= {"num_samples": [2], "num_sampling_steps": 2}
    for workdir in (study.ldm, models["ldm"]):
        run = stored.open_run(str(workdir), sampling)
        assert "mean2" in run.method.predict and run.method.evaluations["mean2"] == 8


def test_steps_of_a_sample_are_handed_on(study, models, tmp_path):
    """What an evaluation with so many steps draws; no other read-out changes."""
    folder = exported(study.ldm, tmp_path / "two", steps=2)
    own = stored.open_run(str(study.ldm)).config["recipe"]["sampling"]
    assert own["num_sampling_steps"] != 2
    asked = stored.open_run(str(study.ldm), {**own, "num_sampling_steps": 2})
    made = stored.open_run(str(folder))
    for mode in ("onestep", "sample"):
        np.testing.assert_array_equal(images(made, mode, study), images(asked, mode, study))
    assert files.read_json(folder / weights.CARD)["read_outs"]["sample"] == 4
    with pytest.raises(UserError, match="draws no samples"):
        exported(study.unet, tmp_path / "unet", steps=2)


def test_reports_find_the_learning_curve(study, models):
    entrants = [
        readouts.make_entrants([stored.open_run(str(f))], ("ct",))[0]
        for f in (study.ldm, models["ldm"])
    ]
    curve, ours = (readouts.learning_curves(e)["ct"] for e in entrants)
    assert curve and curve == ours
    assert "train/loss" not in (models["ldm"] / "metrics.jsonl").read_text()


def test_evaluation_takes_the_folder_once_it_is_told_of_people(study, models, tmp_path):
    config = eval_config.get_config("tiny")
    config.runs = str(models["unet"])
    with pytest.raises(UserError, match="no prepared dataset here"):
        evaluate.run(config, str(tmp_path))
    config.data.prepared = str(study.prepared)
    evaluate.run(config, str(tmp_path))
    ours, all_rows = (
        files.read_json(folder / "summary.json")["rows"] for folder in (tmp_path, study.report)
    )
    theirs = [r for r in all_rows if r["method"] == "unet"]
    scores = [[(r["mode"], r["target"], r["psnr"]) for r in rows] for rows in (ours, theirs)]
    assert scores[0] == scores[1] and len(ours) == 4


def test_same_run_same_bytes(study, models, tmp_path):
    again = exported(study.ldm, tmp_path / "again")
    twice = exported(again, tmp_path / "twice")  # an export of the export is the export
    for name in (weights.WEIGHTS, weights.CARD, "metrics.jsonl"):
        want = (models["ldm"] / name).read_bytes()
        assert (again / name).read_bytes() == want and (twice / name).read_bytes() == want


def test_the_machines_kernels_leave_no_trace(study, models, tmp_path, monkeypatch):
    """Opened for prediction, kernels are transformed for this machine; exported, they never are."""
    if library._load() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(library, "is_enabled", lambda: library._mode == "native")
    monkeypatch.setattr(library, "_mode", "native")
    opened = stored.open_run(str(study.unet))
    assert any("winograd" in k for k in weights.flatten(opened.state.ema_params))
    for kernels in ("native", "xla"):
        device.choose_kernels(kernels)
        out = exported(study.unet, tmp_path / kernels, kernels=kernels)
        for name in (weights.WEIGHTS, weights.CARD):
            assert (out / name).read_bytes() == (models["unet"] / name).read_bytes()


# The card


def test_the_card_says_what_it_is(study, models):
    card = files.read_json(models["ldm"] / weights.CARD)
    assert card["intended_use"] == "Research use only, not for clinical use."
    assert card["read_outs"] == {"onestep": 1, "mirror": 2, "sample": 8, "mean4": 32}
    path = models["ldm"] / weights.WEIGHTS
    facts = {"sha256": files.sha256_file(path), "bytes": path.stat().st_size}
    assert card["files"][weights.WEIGHTS] == facts and card["sha256"] == facts["sha256"]
    trained = files.read_json(study.ldm / "run.json")
    assert card["step"] == trained["best"]["step"]
    data = card["training"]["data"]
    assert data["modalities"]["mr"]["normaliser"]["population_scale"] > 0
    assert data["grid"]["size"] == [40, 32] and data["grid"]["center"]
    assert data["train_patients"] == trained["data"]["train_patients"]
    denoiser = {k: np.prod(s) for k, s in card["weights"]["tensors"].items() if k[:6] == "params"}
    assert sum(denoiser.values()) == trained["params"] < card["weights"]["parameters"]
    assert "frozen/statistics/mean" in card["weights"]["tensors"]


def test_nothing_private_is_handed_on(study, models):
    people = [s["id"] for s in Prepared(study.prepared).json["subjects"]]
    trained = files.read_json(study.ldm / "run.json")
    assert str(study.root) in (study.ldm / "config.json").read_text()  # there is what to hide
    for folder in models.values():
        for path in folder.iterdir():
            data = path.read_bytes()
            for secret in (*people, str(study.root), trained["command"], "/tmp", "/home"):
                assert secret.encode() not in data, (path, secret)


@pytest.mark.parametrize("path", ["/data/site/pet", "~/pet", "C:\\pet", "\\\\server\\pet"])
def test_a_path_in_the_card_is_refused(path):
    with pytest.raises(UserError, match="card.training.data.name: is a path"):
        weights.refuse_paths({"training": {"data": {"name": path, "size": [1, "a/b"]}}})


def test_a_path_in_a_name_stops_the_export(study, tmp_path):
    run = shutil.copytree(study.unet, tmp_path / "run")
    config = files.read_json(run / "config.json")
    files.write_json(run / "config.json", {**config, "name": "/data/site"})
    with pytest.raises(UserError, match="is a path"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out" / weights.CARD).exists()


# Refusals


@pytest.mark.parametrize("place", [10, -10, 4000])
def test_a_flipped_bit_is_found(copy, place):
    data = bytearray((copy / weights.WEIGHTS).read_bytes())
    data[place] ^= 1
    (copy / weights.WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="damaged") as refused:
        stored.open_run(str(copy))
    assert weights.WEIGHTS in refused.value.what and refused.value.remedy


def test_a_truncated_file_is_found(copy):
    data = (copy / weights.WEIGHTS).read_bytes()
    (copy / weights.WEIGHTS).write_bytes(data[:-8])
    with pytest.raises(UserError, match=f"{len(data) - 8} bytes, {len(data)} expected"):
        stored.open_run(str(copy))


@pytest.mark.parametrize("name", [weights.WEIGHTS, "metrics.jsonl"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        stored.open_run(str(copy))


def test_without_its_card_a_folder_is_nothing(copy):
    (copy / weights.CARD).unlink()
    with pytest.raises(UserError, match="not a run folder"):
        stored.open_run(str(copy))


def test_an_edited_card_is_found(copy):
    """Were it not, a normaliser's constant could change and every image would be in other units."""
    card = files.read_json(copy / weights.CARD)
    card["training"]["data"]["modalities"]["ct"]["normaliser"]["high"] = 2000.0
    files.write_json(copy / weights.CARD, card)
    with pytest.raises(UserError, match="was changed after the export"):
        stored.open_run(str(copy))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not the card"),
        ('{"format": "other"}', "not the card"),
        ('{"format": "cldm_jax-model", "format_version": 2}', "format version 2"),
        ('{"format": "cldm_jax-model", "format_version": 1}', "was changed"),
        (" " * (weights.MAX_CARD_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_a_file_that_is_no_card_is_refused(copy, text, message):
    (copy / weights.CARD).write_text(text)
    with pytest.raises(UserError, match=message):
        stored.open_run(str(copy))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..\\x", "..", ""])
def test_a_card_cannot_point_outside_its_folder(copy, name):
    def escape(card):
        card["files"][name] = card["files"].pop("metrics.jsonl")

    reseal(copy, escape)
    with pytest.raises(UserError, match="outside its folder"):
        stored.open_run(str(copy))


def drop_section(card):
    del card["files"]


def drop_tensors(card):
    del card["weights"]["tensors"]


def drop_hash(card):
    del card["files"][weights.WEIGHTS]["sha256"]


def drop_file(card):
    del card["files"][weights.WEIGHTS]


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_section, "no section 'files'"),
        (drop_tensors, "does not list the arrays"),
        (drop_hash, "no SHA-256"),
        (drop_file, "not listed"),
    ],
)
def test_an_incomplete_card_is_refused(copy, change, message):
    reseal(copy, change)
    with pytest.raises(UserError, match=message):
        stored.open_run(str(copy))


def lack(tensors):
    tensors["params/more/kernel"] = [3, 3]


def exceed(tensors):
    tensors.pop(min(tensors))


def reshape(tensors):
    tensors[min(tensors)] = [1, 2, 3]


@pytest.mark.parametrize(
    "change, message",
    [
        (lack, "lacks params/more/kernel"),
        (exceed, "holds, against its card"),
        (reshape, "as its card"),
    ],
)
def test_arrays_must_be_those_of_the_card(copy, change, message):
    reseal(copy, lambda card: change(card["weights"]["tensors"]))
    with pytest.raises(UserError, match=message):
        stored.open_run(str(copy))


def test_another_versions_network_is_refused(copy):
    """Sound files whose settings make other networks than the arrays are for."""
    reseal(copy, lambda card: card["config"]["recipe"]["model"]["unet"].update(base_channels=16))
    with pytest.raises(UserError, match="does not fit this version"):
        stored.open_run(str(copy))


def test_a_file_that_is_no_safetensors_is_refused(copy):
    (copy / weights.WEIGHTS).write_bytes(b"\xff" * 64)
    card = files.read_json(copy / weights.CARD)
    weights.write_card(copy, card, list(card["files"]))
    reseal(copy, lambda card: None)
    with pytest.raises(UserError, match="not a safetensors file"):
        stored.open_run(str(copy))


@pytest.mark.parametrize(
    "value, message",
    [(1e5, "more than float16"), (np.inf, "not finite"), (np.nan, "not finite")],
)
def test_values_that_cannot_be_stored_are_refused(tmp_path, value, message):
    tree = {"a": {"kernel": np.full((2, 2), value, np.float32)}}
    with pytest.raises(UserError, match=message) as refused:
        weights.save(tmp_path, tree, "float16")
    assert refused.value.what == "a/kernel" and not list(tmp_path.iterdir())


def test_only_kernels_are_halved(tmp_path):
    third = np.full(3, 1 / 3, np.float32)
    tree = {"conv": {"kernel": third[None], "bias": third}, "statistics": {"std": third}}
    facts = weights.save(tmp_path, tree, "float16")
    card = weights.write_card(
        tmp_path, {"weights": facts, "config": {}, "training": {}, "step": 0}, [weights.WEIGHTS]
    )
    found = weights.load(tmp_path, weights.read_card(tmp_path))
    np.testing.assert_array_equal(found["conv"]["bias"], third)
    np.testing.assert_array_equal(found["statistics"]["std"], third)
    error = np.abs(found["conv"]["kernel"] - third).max()
    assert 0 < error < 2e-4 and card["weights"]["parameters"] == 9


# The job


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"run": ""}, "config.run"),
        ({"run": "nowhere"}, "not a run folder"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16'"),
    ],
)
def test_wrong_settings_are_refused(study, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        exported(study.ldm, tmp_path, **fields)
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="travels inside"):
        exported(study.ae, tmp_path)


def test_an_interrupted_export_leaves_nothing_that_looks_whole(study, copy, monkeypatch):
    """Not even where it was replacing a whole one, and the same command mends it."""
    before = (copy / weights.CARD).read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    for name in ("save", "write_card"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(weights, name, killed)
            exported(study.ldm, copy, overwrite=True)
        assert not (copy / weights.CARD).exists()
        assert not list(copy.glob(".tmp-*"))
    exported(study.ldm, copy)
    assert (copy / weights.CARD).read_bytes() == before


def test_a_model_is_overwritten_only_on_demand(study, copy):
    before = (copy / weights.CARD).read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        exported(study.unet, copy)
    assert (copy / weights.CARD).read_bytes() == before
    exported(study.unet, copy, overwrite=True)
    assert stored.open_run(str(copy)).name == "unet"


def test_a_model_is_not_exported_onto_itself(tmp_path):
    """It lost its calibration, without a word: that is read after the card has gone."""
    folder = shutil.copytree(opened.SHIPPED, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="is the model to export itself"):
        exported(folder, tmp_path / "else" / ".." / "model", overwrite=True, dtype="float16")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_trainings_folder_is_not_written_to(study):
    with pytest.raises(UserError, match="folder of a training"):
        exported(study.ldm, study.ldm, overwrite=True)
