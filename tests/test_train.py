"""The loop: exact resume after SIGKILL and SIGTERM, refusals, what a run leaves behind."""

import concurrent.futures
import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from cldm_jax import files, settings
from cldm_jax.data import pipeline, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import encode, make, train
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import fit, inputs, record, stored
from cldm_jax.runs import manifest as manifest_lib
from cldm_jax.runs.inputs import latents_folder
from cldm_jax.runs.stored import open_run
from cldm_jax.runtime.checkpoint import restore_for_inference
from cldm_jax.runtime.writers import read_rows
from configs import ae, distributional, ldm

ROOT = pathlib.Path(__file__).parents[1]


def losses(workdir) -> dict[int, float]:
    rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").open()]
    return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def parameters(workdir) -> list[np.ndarray]:
    return jax.tree.leaves(restore_for_inference(pathlib.Path(workdir) / "checkpoints")[1])


def test_a_run_leaves_everything(study):
    for name in ("config.json", "run.json", "metrics.jsonl"):
        assert (study.ldm / name).is_file()
    assert list(study.ldm.glob("events*"))
    run = files.read_json(study.ldm / "run.json")
    assert run["finished"] and run["step"] == 20 and run["train_seconds"] > 0
    assert run["data"]["grid"]["size"] == [40, 32] and run["versions"]["jax"]
    assert sorted(losses(study.ldm)) == list(range(1, 21))
    again = manifest_lib.parse("x", run).to_json()
    assert json.dumps(again) == json.dumps(run)  # the order of keys as well
    del run["data"]["split_hash"]
    with pytest.raises(UserError, match="holds no training's record .*split_hash"):
        manifest_lib.parse("x", run)


def test_the_revision_is_this_codes_or_none(tmp_path, monkeypatch):
    """A machine without git can train; an installed package is of no commit of the folder it is in."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    git += ["-C", str(tmp_path)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch("[0-9a-f]{7,}", record.git_revision(tmp_path))
    assert record.git_revision(tmp_path / "site-packages") == "not a git checkout"
    monkeypatch.setenv("PATH", "")
    assert record.git_revision(tmp_path) == "git cannot be run"


def test_another_step_than_the_best_does_not_answer_unsaid(study, tmp_path, caplog):
    run = tmp_path / "unet"
    shutil.copytree(study.unet, run)
    best = json.loads((run / "run.json").read_text())["best"]["step"]
    assert stored.read_stored(str(run)).step == best and not caplog.records
    for path in (run / "best").glob("sha256-*.json"):  # as after a kill in the middle of its save
        path.unlink()
    assert stored.read_stored(str(run)).step == 20
    shutil.rmtree(run / "best")
    kept = json.loads((run / "run.json").read_text())
    kept["best"]["step"] = best - 1
    (run / "run.json").write_text(json.dumps(kept))
    assert stored.read_stored(str(run)).step == 20
    assert f"step {best - 1}, which was kept, is not in best/: step 20 answers" in caplog.text


def test_training_lowers_the_loss(study):
    values = list(losses(study.unet).values())
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:2])


def test_finished_run_is_not_trained_again(study, capsys):
    record = (study.unet / "run.json").read_bytes()  # of the command and commit that trained it
    before = (study.unet / "metrics.jsonl").read_bytes()
    train.run(study.config("unet"), str(study.unet))
    assert "already trained" in capsys.readouterr().out
    assert (study.unet / "run.json").read_bytes() == record
    assert (study.unet / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_the_difference(study):
    config = study.config("unet")
    config.recipe.loss = "l1"
    with pytest.raises(UserError, match="recipe.loss: 'l2' -> 'l1'"):
        train.run(config, str(study.unet))


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize("text", ["", '{"method": "un', "[]"])
def test_a_damaged_record_is_one_line(study, tmp_path, name, text):
    """Of a copy that was cut short, or edited by hand."""
    workdir = shutil.copytree(study.unet, tmp_path / "unet")
    (workdir / name).write_text(text)
    for opened in (
        lambda: train.check(study.config("unet"), str(workdir)),
        lambda: open_run(workdir),
    ):
        with pytest.raises(UserError, match=f"{name}: (not readable|holds no settings)"):
            opened()


def test_a_run_is_not_resumed_on_other_data_nor_another_split(study, tmp_path):
    """People it is scored on later could be among those that it has learned from."""
    index = shards.Prepared(study.prepared).json
    folder = shutil.copytree(study.prepared, tmp_path / "moved")
    config = study.config("unet")
    config.data.prepared = str(folder)
    train.check(config, str(study.unet))  # the same data elsewhere are the same data
    train_ids, test_ids = index["splits"]["train"], index["splits"]["test"]
    swapped = {"train": [*train_ids[1:], *test_ids], "test": train_ids[:1], "hash": "other"}
    for change in (
        {"splits": {**index["splits"], **swapped}},
        {"subjects": [{**index["subjects"][0], "keep": [True] * 24}, *index["subjects"][1:]]},
    ):
        shards.write_index(folder, {**index, **change})
        with pytest.raises(UserError, match="other data, or another split"):
            train.run(config, str(study.unet))
        latent = study.config("ldm")  # its autoencoder has seen people who are tested now
        latent.data.prepared = str(folder)
        with pytest.raises(UserError, match="another config.autoencoder.workdir"):
            train.check(latent, str(tmp_path / "new"))


def test_sigkill_then_the_same_command_repeats_every_loss_bit(study, tmp_path):
    """Killed between saves; the resumed run's losses and parameters equal the uninterrupted run's."""
    command = [
        *(sys.executable, "-m", "cldm_jax.main", "--config=configs/ldm.py:tiny"),
        *(f"--workdir={tmp_path}", f"--config.data.root={study.data_root}"),
        *(f"--config.autoencoder.workdir={study.ae}", "--config.train.save_every=4"),
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            path = tmp_path / "metrics.jsonl"
            if path.exists() and len(path.read_text().splitlines()) >= 6:
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(losses(tmp_path)) < 20, "the run finished before it was killed"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout
    assert losses(tmp_path) == losses(study.ldm)
    for ours, theirs in zip(parameters(tmp_path), parameters(study.ldm), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sigterm_saves_the_step_and_resumes_exactly(study, tmp_path, monkeypatch):
    calls, put_batch = [], train.sharding.put_batch

    def interrupting(batch, sharding):
        calls.append(1)
        if len(calls) == 8:  # put there while step 7 runs
            os.kill(os.getpid(), signal.SIGTERM)
        return put_batch(batch, sharding)

    monkeypatch.setattr(train.sharding, "put_batch", interrupting)
    with pytest.raises(SystemExit) as stopped:
        train.run(study.config("unet"), str(tmp_path))
    assert stopped.value.code == 143
    run = files.read_json(tmp_path / "run.json")
    assert run["step"] == 7 and not run["finished"]
    train.run(study.config("unet"), str(tmp_path))
    assert losses(tmp_path) == losses(study.unet)


@pytest.mark.parametrize(
    "name, size, multiple",
    [
        ("unet", (40, 31), 4),
        ("ldm", (42, 32), 4),
        ("ae", (40, 33), 2),
        ("cyclegan", (42, 32), 4),
        ("monai_ldm", (42, 32), 4),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(name, size, multiple):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    with pytest.raises(UserError, match=f"multiples of {multiple}.*config.size"):
        fit.check_size(config, size)
    fit.check_size(config, (40, 32))


def test_what_is_missing_is_refused_with_the_command_that_makes_it_there(tmp_path):
    """Not with one that another run in the folder, or a default, would turn elsewhere."""
    home = tmp_path / "ae"
    with pytest.raises(UserError, match=f"no trained autoencoder.*ae.py:PRESET --workdir={home}"):
        inputs.load_autoencoder(home)
    files.write_json(home / "config.json", {"method": "unet", "name": "unet-x"})
    with pytest.raises(UserError, match="a training of unet-x.*config.autoencoder.workdir"):
        inputs.load_autoencoder(home)
    prepared = types.SimpleNamespace(
        folder="/d/prepared", index=types.SimpleNamespace(fingerprint="f" * 64)
    )
    with pytest.raises(UserError) as caught:
        inputs.open_latents(prepared, str(home), (None, {"x": np.ones(2)}, 7), ("ct",))
    command = caught.value.remedy.partition("cldm_jax.main ")[2].split()
    known = {f"--config.{name}" for name in settings.names(ldm.get_config("tiny"))}
    assert {word.partition("=")[0] for word in command[1:]} < known
    assert f"--config.autoencoder.workdir={home}" in command
    assert "--config.data.prepared=/d/prepared" in command


def test_an_autoencoder_trained_anew_gets_latents_of_its_own(study, tmp_path):
    prepared = inputs.open_prepared(study.config("ldm").data)
    _, variables, step = inputs.load_autoencoder(str(study.ae))
    names = []
    for factor in (1.0, 1.0, 1.5):
        changed = jax.tree.map(lambda x, f=factor: x * np.float32(f), variables)
        autoencoder = (None, changed, step)
        folder = latents_folder(prepared, str(study.ae), autoencoder, ("ct",))
        names.append(folder.name)
    assert names[0] == names[1] != names[2]


def test_trainings_begun_at_once_make_what_they_share_once(tmp_path, monkeypatch):
    """The second was refused, and told to choose another --workdir, which it had."""
    config, made = ldm.get_config("tiny"), []
    config.data.root, config.autoencoder.workdir = str(tmp_path / "data"), str(tmp_path / "ae")

    def phantom(data, folder):
        made.append(folder)
        time.sleep(0.2)
        files.write_json(folder / "index.json", {})

    def locked(workdir, waits):
        raise RuntimeError(f"waits: {waits}")

    monkeypatch.setattr(make, "_phantom", phantom)
    monkeypatch.setattr(inputs, "open_prepared", lambda data: None)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(make.prepared, [config.data] * 2))
    assert len(made) == 1
    for module, name in ((make.dry_run, "example"), (train, "check")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(train, "run_lock", locked)
    with pytest.raises(RuntimeError, match="waits: True"):
        make.autoencoder(config)


def test_a_run_is_not_resumed_with_another_autoencoder(study, tmp_path, monkeypatch):
    """It would learn that one's latents, and decode with the one in its checkpoint."""
    workdir = shutil.copytree(study.ldm, tmp_path / "ldm")
    shutil.rmtree(workdir / "checkpoints" / "20")  # killed before
    config = study.config("ldm")
    found = inputs.open_inputs(config)
    again = jax.tree.map(lambda x: x * np.float32(1.5), found.frozen["autoencoder"])
    wider = {**found.recipe["autoencoder"], "latent_channels": 9}
    for other in (
        found._replace(frozen={**found.frozen, "autoencoder": again}),
        found._replace(recipe={**found.recipe, "autoencoder": wider}),
    ):
        monkeypatch.setattr(inputs, "open_inputs", lambda config, other=other: other)
        with pytest.raises(UserError, match="holds another autoencoder than the one"):
            train.run(config, str(workdir))


def test_an_autoencoder_may_move_and_another_is_refused(study, tmp_path, monkeypatch, capsys):
    """By a run that goes on, and by a finished one, where its folder has another name."""
    config = study.config("ldm")
    config.autoencoder.workdir = str(shutil.copytree(study.ae, tmp_path / "moved"))
    make.needs(config)
    for finished in (False, True):
        workdir = shutil.copytree(study.ldm, tmp_path / f"ldm-{finished}")
        if not finished:
            shutil.rmtree(workdir / "checkpoints" / "20")
        train.run(config, str(workdir))
        assert ("already trained to step 20" in capsys.readouterr().out) == finished
    found = inputs.open_inputs(config)
    again = jax.tree.map(lambda x: x * np.float32(1.5), found.frozen["autoencoder"])
    other = found._replace(frozen={**found.frozen, "autoencoder": again})
    monkeypatch.setattr(inputs, "open_inputs", lambda config: other)
    with pytest.raises(UserError, match="another autoencoder than the one"):
        train.run(config, str(workdir))


def test_an_autoencoder_that_is_gone_is_not_trained_anew_for_a_run_begun_with_it(study, tmp_path):
    config = study.config("ldm")
    config.autoencoder.workdir = str(tmp_path / "gone")
    with pytest.raises(UserError, match=f"gone: holds no trained autoencoder.*{study.ldm}"):
        make.run(config, str(study.ldm))
    assert not (tmp_path / "gone").exists()
    train.check(config, str(tmp_path / "new"))  # for a new run it is


def event_tags(workdir) -> set[str]:
    """Of TensorBoard's event files: records of length, its CRC, data, their CRC."""
    tags = set()
    for path in workdir.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            tags |= {value.tag for value in event.summary.value}
            at += 16 + length
    return tags


def test_a_step_before_the_samples_are_learnt_is_never_the_best(study):
    """The mean may be best before a noisy row was seen, and the samples are noise then."""
    state = types.SimpleNamespace(ema_params={"w": np.zeros(1)}, frozen={})
    config, manifest = study.config("ldm"), types.SimpleNamespace(best=None, step=0)
    config.recipe.diffusion.onestep_share, ramp = (1.0, 0.5), config.recipe.diffusion.onestep_ramp
    assert ramp == (0.5, 0.5) and config.recipe.diffusion.young_at == 0.22
    record.keep_best(config, study.root, manifest, 14, {"val/psnr_ct": 99.0}, state)
    assert manifest.best is None and record.first_whole_step(config) == 15
    assert files.read_json(study.ldm / "run.json")["best"]["step"] == 20
    config.recipe.diffusion.onestep_share = (
        0.5,
        0.5,
    )  # from the start: its younger self must be kept
    assert record.first_whole_step(config) == 5
    config.recipe.diffusion.young_at = 0.0
    assert record.first_whole_step(config) == 0 == record.first_whole_step(study.config("unet"))


def test_the_latest_of_the_steps_that_validate_alike_is_kept(study, tmp_path):
    """A few slices do not tell .05 dB: the step that trained longest is kept, but not one gone astray."""
    config = study.config("unet")
    state = types.SimpleNamespace(ema_params={"w": np.zeros(1)}, frozen={})
    manifest = inputs.read_manifest(study.unet)
    manifest.best = None
    kept = []
    for step, psnr in ((10, 20.0), (20, 25.0), (30, 24.95), (40, 24.91), (50, 24.8), (30, 25.0)):
        scalars = {"val/psnr_ct": psnr + 1, "val/psnr_mr": psnr - 1}
        record.keep_best(config, tmp_path, manifest, step, scalars, state)
        kept.append(manifest.best["step"])
    assert kept == [10, 20, 30, 40, 40, 40]  # the last: a resumed run meets a step again
    assert manifest.best == {"step": 40, "psnr": 24.91, "highest": 25.0}
    assert files.read_json(tmp_path / "run.json")["best"] == manifest.best
    assert [path.name for path in (tmp_path / "best").iterdir() if path.is_dir()] == ["40"]


def test_the_live_view(study):
    tags = event_tags(study.ldm)
    assert {"train/loss", "val/psnr_ct", "speed/steps_per_second", "speed/hours_left"} <= tags
    assert "val/source_prediction_target/0" in tags
    assert {"val/source_ct_mr/0"} <= tags & event_tags(study.unet)
    assert not any(t.startswith("val/source_pet") for t in event_tags(study.ae))
    # What another run would not repeat is in no row that is compared.
    assert not any(key.startswith("speed") for row in read_rows(study.ldm) for key in row)


def test_a_signal_in_validation_leaves_it_to_the_resumed_run(study, tmp_path, monkeypatch):
    class Interrupted(train.Validation):
        def look(self, state, stop):
            os.kill(os.getpid(), signal.SIGINT)
            return super().look(state, stop)

    with monkeypatch.context() as patch:
        patch.setattr(train, "Validation", Interrupted)
        with pytest.raises(SystemExit) as stopped:
            train.run(study.config("unet"), str(tmp_path))
    assert stopped.value.code == 130
    assert files.read_json(tmp_path / "run.json")["step"] == 10
    assert not any("val/psnr_ct" in row for row in read_rows(tmp_path))
    train.run(study.config("unet"), str(tmp_path))
    assert read_rows(tmp_path) == read_rows(study.unet)
    best = [files.read_json(p / "run.json")["best"] for p in (tmp_path, study.unet)]
    assert best[0] == best[1] and best[0]["step"]


def test_people_of_a_batch_with_nan_are_named_and_it_resumes(study, tmp_path, monkeypatch):
    read = pipeline.SliceSource.read
    ids = [s["id"] for s in inputs.open_prepared(study.config("unet").data).json["subjects"]]
    keys = [s["split"] for s in files.read_json(study.prepared / "index.json")["subjects"]]
    victim = keys.index("train")

    def poisoned(self, rows, names=None):
        batch = read(self, rows, names)
        if len(rows) == 4:  # not the items that constants are fitted on
            batch["source"][self.keys["subject"][rows] == victim, 0, 0, 0] = np.nan
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.SliceSource, "read", poisoned)
        with pytest.raises(UserError, match=f"in the images of {ids[victim]}; its update was not"):
            train.run(study.config("unet"), str(tmp_path))
    found = restore_for_inference(tmp_path / "checkpoints")
    assert found is None or all(np.isfinite(x).all() for x in jax.tree.leaves(found[1]))
    train.run(study.config("unet"), str(tmp_path))  # the same command, without the poison
    assert read_rows(tmp_path) == read_rows(study.unet)


def test_what_the_system_refuses_is_one_line(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"(File exists|Not a directory).*No step is saved.*resumes"
    ):
        train.run(study.config("unet"), str(tmp_path / "file" / "run"))


@pytest.mark.slow  # of the check, not of the product
def test_resume_check_can_fail(study, tmp_path):
    """Negative control: another seed gives other losses."""
    config = study.config("unet")
    config.seed = 1
    config.train.num_train_steps = 2
    train.run(config, str(tmp_path))
    assert losses(tmp_path)[1] != losses(study.unet)[1]


def test_nan_stops_the_run_before_a_checkpoint(study, tmp_path):
    config = study.config("unet")
    config.recipe.optim.learning_rate = 1e30  # overflows float32 in a step or two
    with pytest.raises(UserError, match=r"step [23]: NaN .* its update was not applied") as refused:
        train.run(config, str(tmp_path))
    step = int(refused.value.what.removeprefix("step "))
    saved, params, _ = restore_for_inference(tmp_path / "checkpoints")
    assert saved == step - 1 and all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    items = files.read_json(tmp_path / f"nonfinite-step-{step}.json")["items"]
    assert len(items) == 4 and all(item["input_is_finite"] for item in items)


def test_batch_size_must_suit_the_devices(study, tmp_path):
    with pytest.raises(UserError, match="not divisible by the 2 devices"):
        train.run(study.config("unet", batch_size=3), str(tmp_path))


def test_missing_prepared_data_names_the_command(study, tmp_path):
    config = study.config("unet")
    config.data.prepared = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="configs/prepare.py"):
        train.run(config, str(tmp_path / "run"))


def test_missing_autoencoder_is_trained_on_the_same_people(study, tmp_path):
    config = study.config("ldm")
    config.autoencoder.workdir = str(tmp_path / "ae")
    config.autoencoder.train.train.num_train_steps = 2
    make.autoencoder(config)
    assert inputs.load_autoencoder(str(tmp_path / "ae"))[2] == 2
    fingerprints = [
        files.read_json(p / "run.json")["data"]["fingerprint"] for p in (tmp_path / "ae", study.ae)
    ]
    assert fingerprints[0] == fingerprints[1]


def test_settings_that_cannot_be_are_refused_before_an_autoencoder_is_trained(study, tmp_path):
    config = study.config("ldm")
    config.autoencoder.workdir = str(tmp_path / "ae")
    config.recipe.diffusion.target = "v"
    with pytest.raises(UserError, match="config.recipe: .*gaussian_denoiser gives x0"):
        make.autoencoder(config)
    assert not (tmp_path / "ae").exists()


def test_latents_are_the_autoencoders_posterior_means(study):
    prepared = inputs.open_prepared(study.config("ldm").data)
    latents = encode.ensure_latents(prepared, str(study.ae), 8, ("ct", "mr"))
    model, variables, _ = inputs.load_autoencoder(str(study.ae))
    from cldm_jax.methods.codec import make_codec

    subject = prepared.subjects("train")[0]
    x = prepared.read(subject, "mr")[..., None]
    want = make_codec(model).encode(variables, x, np.full(len(x), 2, np.int32))
    np.testing.assert_allclose(latents.read(subject, "mr"), want, atol=5e-3)  # float16
    stats = {k: np.array(v) for k, v in latents.json["statistics"].items()}
    rows = [
        latents.read(s, "mr")[np.array(latents.json["subjects"][s]["keep"])]
        for s in latents.subjects("train")
    ]
    rows = np.concatenate(rows).reshape(-1, 3)
    np.testing.assert_allclose(stats["mean"][2], rows.mean(0), atol=2e-3)
    np.testing.assert_allclose(stats["std"][2], rows.std(0), rtol=2e-3)
    assert stats["std"][3].tolist() == [1, 1, 1]  # the null code has no images
    made = {m for s in latents.json["subjects"] for m in s["volumes"]}
    assert made == {"ct", "mr"}  # nobody reads the PET's, nor those of validation and test people
    test = latents.subjects("test")
    assert test and not any(latents.json["subjects"][s]["volumes"] for s in test)


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("ldm", {"data.source_kind": "latent"}, "Give latent for both"),
        ("ldm", {"recipe.diffusion.source_encoding": "latent"}, "Give latent for both"),
        ("cyclegan", {"data.context": 3}, "one source slice"),
    ],
)
def test_sources_that_do_not_fit_the_method_are_refused(study, tmp_path, name, changes, words):
    config = importlib.import_module(f"configs.{name}").get_config("tiny")
    config.data.prepared = str(study.prepared)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        train.check(config, str(tmp_path))


def test_recipes_that_cannot_work_are_one_line():
    recipe = inputs.scheduled(ae.get_config("tiny").recipe.to_dict(), 1)
    recipe["model"]["latent_channels"] = 5  # of cells of 2 x 2 pixels
    with pytest.raises(UserError, match="latent_channels"):
        make_method("autoencoder", **recipe)
    recipe = inputs.scheduled(distributional.get_config("tiny").recipe.to_dict(), 1)
    recipe["sampling"]["num_samples"] = ()
    with pytest.raises(UserError, match="no read-out"):
        make_method("distributional", **recipe)


def test_a_preset_for_gpus_is_warned_of_before_its_data_are_made(tmp_path, monkeypatch, capsys):
    """And by words that can be typed, whatever the run is called."""
    config = ldm.get_config("a6000")
    config.name = "mine"
    said = []
    monkeypatch.setattr(
        make, "prepared", lambda data: said.append(capsys.readouterr().out) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        make.run(config, str(tmp_path / "run"))
    assert "meant for a GPU" in said[0] and "mine" not in said[0]
