"""A test set from elsewhere, held against a prepared folder, a run or an exported model."""

import pathlib
import shutil

import numpy as np
import pytest
from data_heads import write_cohort

from cldm_jax import files
from cldm_jax.data import nifti, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import evaluate, export, external, prepare
from configs import eval as eval_config
from configs import export as export_config
from configs import prepare as prepare_config


def _config(folder, home):
    config = prepare_config.get_config("tiny")
    config.cohort, config.split_mode, config.normalisers_from = str(folder), "external", str(home)
    return config


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    config = export_config.get_config("tiny")
    config.run, folder = str(study.ldm), tmp_path_factory.mktemp("exported") / "model"
    export.run(config, str(folder))
    return folder


def test_a_model_is_scored_on_pairs_of_ones_own(study, exported, tmp_path, capsys):
    """All that somebody has who was handed a model: its folder, and people with PET and CT."""
    write_cohort(tmp_path / "own", {k: dict(seed=i + 50) for i, k in enumerate("ab")})
    prepare.run(_config(tmp_path / "own", exported), str(tmp_path / "prepared"))
    assert "does not list its people" in capsys.readouterr().out
    index = shards.Prepared(tmp_path / "prepared").json
    home = shards.Prepared(study.prepared).json
    assert index["modalities"] == home["modalities"] and index["grid"] == home["grid"]
    assert index["splits"]["test"] == ["a", "b"]
    config = eval_config.get_config("tiny")
    config.runs, config.other_data = str(exported), True
    config.data.prepared = str(tmp_path / "prepared")
    evaluate.run(config, str(tmp_path / "report"))
    summary = files.read_json(tmp_path / "report" / "summary.json")
    assert {(r["method"], r["n_patients"]) for r in summary["rows"]} == {("ldm", 2)}


def test_run_and_exported_model_tell_the_same_home(study, exported):
    run, model = external.open_home(str(study.ldm)), external.open_home(str(exported))
    assert run == model
    prepared = external.open_home(str(study.prepared))
    assert prepared[:2] == run[:2] and prepared.images and run.images is None


def test_mr_of_another_scanner_has_another_unit(exported, tmp_path):
    """One scale for all training MR is no scale of a scanner elsewhere."""
    home = tmp_path / "model"
    shutil.copytree(exported, home)
    card = files.read_json(home / "model.json")
    card["training"]["data"]["modalities"]["mr"]["normaliser"]["rule"] = "train_percentile"
    files.write_json(home / "model.json", card)
    found = []
    for gain in (1, 20):
        folder, work = tmp_path / f"own{gain}", tmp_path / f"prepared{gain}"
        write_cohort(folder, {"a": dict(seed=50)})
        mr = nifti.read_volume(folder / "a" / "mr.nii.gz")
        path, array = folder / "a" / "mr.nii.gz", mr.array * gain
        nifti.write_volume(path, array, mr.affine, dtype=np.float32)
        prepare.run(_config(folder, home), str(work))
        prepared = shards.Prepared(work)
        assert prepared.index.modalities["mr"].normaliser.rule == "train_percentile"  # the model's
        found.append(prepared.read(0, "mr"))
    np.testing.assert_allclose(*found, atol=1e-4)
    assert np.ptp(found[0]) > 1.5


def test_another_grid_is_refused_before_an_image_is_read(exported, tmp_path):
    write_cohort(tmp_path, {"a": dict(seed=50)})
    (tmp_path / "a" / "pet.nii.gz").write_bytes(b"")
    config = _config(tmp_path, exported)
    config.size = (48, 40)
    with pytest.raises(UserError, match="is not the grid of"):
        prepare.run(config, str(tmp_path / "work"))


@pytest.mark.parametrize("damage", ["{", "{}", '{"training": {}}', "[]"])
def test_a_card_that_tells_no_data_is_named(exported, tmp_path, damage):
    home = pathlib.Path(shutil.copytree(exported, tmp_path / "model"))
    (home / "model.json").write_text(damage)
    with pytest.raises(UserError, match="model.json"):
        external.open_home(str(home))
    with pytest.raises(UserError, match="no index.json"):
        external.open_home(str(tmp_path))
