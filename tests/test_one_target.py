"""A cohort of one target, as most labs have it: what is not there is left out, or refused by its name."""

import types

import pytest
from data_heads import write_cohort

from cldm_jax.data.shards import Prepared
from cldm_jax.errors import UserError
from cldm_jax.jobs import dry_run, evaluate, predict, prepare, reproduce, train
from cldm_jax.runs import inputs
from cldm_jax.runs.inputs import needed_modalities
from cldm_jax.scoring import scorer as scoring
from configs import ae, attention_unet, cyclegan, ldm, monai_ae, monai_ldm, pix2pix, unet
from configs import eval as eval_config
from configs import prepare as prepare_config
from configs import reproduce as reproduce_config

METHODS = (unet, attention_unet, pix2pix, cyclegan, ldm, monai_ldm)
OTHER = {"ct": "mr", "mr": "ct"}


def make(folder, names) -> Prepared:
    people = {f"p{i}": {"names": ("pet", *names(i))} for i in range(6)}
    config = prepare_config.get_config("tiny")
    config.cohort = str(write_cohort(folder / "cohort", people))
    prepare.run(config, str(folder / "prepared"))
    return Prepared(folder / "prepared")


@pytest.fixture(scope="module", params=["ct", "mr"])
def only(request, tmp_path_factory):
    """(the one target, what was prepared)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, make(folder, lambda i: (request.param,))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("both"), lambda i: ("ct", "mr"))


def on(module, prepared, **data):
    config = module.get_config("tiny")
    config.data.prepared = str(prepared.folder)
    config.data.update(data)
    return config


@pytest.mark.parametrize("module", METHODS)
def test_every_method_trains_for_what_is_there(only, both, module, capsys):
    target, prepared = only
    config, _ = inputs.settled(on(module, prepared), say=True)
    assert config.data.targets == (target,)
    assert f"no training person has {OTHER[target]}" in capsys.readouterr().out
    config, _ = inputs.settled(on(module, both), say=True)
    assert config.data.targets == (("ct",) if module is cyclegan else ("ct", "mr"))
    assert capsys.readouterr().out == ""
    if "autoencoder" in config:
        assert config.autoencoder.train.data.targets == ("pet", "ct", "mr")


@pytest.mark.parametrize("module", [ae, monai_ae])
def test_an_autoencoder_adds_the_pet(only, both, module):
    target, prepared = only
    assert inputs.settled(on(module, prepared))[0].data.targets == ("pet", target)
    assert inputs.settled(on(module, both))[0].data.targets == ("pet", "ct", "mr")


@pytest.mark.parametrize("module", METHODS)
def test_a_target_that_is_named_must_be_there(only, module, tmp_path):
    target, prepared = only
    for asked in ((OTHER[target],), ("ct", "mr")):
        with pytest.raises(UserError, match=f"no training person of .* has {OTHER[target]}"):
            train.run(on(module, prepared, targets=asked), str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()  # nothing is begun
    assert inputs.settled(on(module, prepared, targets=(target,)))[0].data.targets == (target,)


def test_items_and_latents_are_of_what_is_there(only):
    target, prepared = only
    config, _ = inputs.settled(on(ldm, prepared, source_kind="latent"))
    assert needed_modalities(config.data) == ("pet", target)
    kept = sum(int(prepared.keep(s, target).sum()) for s in prepared.subjects("train"))
    assert f" {kept} training items" in dry_run._data(on(unet, prepared), 100)


def a_run(*targets):
    return types.SimpleNamespace(config={"data": {"targets": targets}})


def test_scores_are_of_what_is_made_and_there(only, both, capsys):
    target, prepared = only
    config = eval_config.get_config("tiny")
    assert scoring.choose_targets(config, [a_run("ct", "mr")], prepared) == (target,)
    assert f"{OTHER[target]}: nobody in test has it" in capsys.readouterr().out
    assert scoring.choose_targets(config, [a_run("pet", "ct"), a_run("mr")], both) == ("ct", "mr")
    assert scoring.choose_targets(config, [a_run("mr")], both) == ("mr",)
    with pytest.raises(UserError, match=f"nobody in test has {OTHER[target]}"):
        scoring.choose_targets(config, [a_run(OTHER[target])], prepared)
    config.targets = ("ct", "mr")
    with pytest.raises(UserError, match=f"nobody in test of .* has {OTHER[target]}"):
        scoring.choose_targets(config, [a_run(target)], prepared)


def test_a_comparison_leaves_out_what_nobody_has(only, both, capsys):
    target, prepared = only
    config = reproduce_config.get_config("tiny")
    names = list(config.trainings)
    left_out = f"cyclegan-{OTHER[target]}"
    assert set(names) - set(reproduce._trainable(config, names, prepared)) == {left_out}
    assert left_out in capsys.readouterr().out
    assert reproduce._trainable(config, names, both) == names
    with pytest.raises(UserError, match="none of"):
        reproduce._trainable(config, [left_out], prepared)


@pytest.mark.slow
def test_from_training_to_scores(only, tmp_path):
    target, prepared = only
    config = on(unet, prepared)
    config.train.num_train_steps = config.train.val_every = 2
    train.run(config, str(tmp_path / "unet"))
    pet = prepared.folder.parent / "cohort" / "p0" / "pet.nii.gz"
    request = predict.Request(str(pet), str(tmp_path / "out"), checkpoint=str(tmp_path / "unet"))
    (made,) = predict.predict(request)
    assert (
        made.name == {"ct": "pet_desc-synth_ct.nii.gz", "mr": "pet_desc-synth_T1w.nii.gz"}[target]
    )
    with pytest.raises(UserError, match=f"This model makes: {target}"):
        predict.predict(request._replace(targets=(OTHER[target],)))
    scores = eval_config.get_config("tiny")
    scores.runs = str(tmp_path / "unet")
    evaluate.run(scores, str(tmp_path / "eval"))
    page = (tmp_path / "eval" / "index.html").read_text()
    assert f"<title>PET to {target.upper()}</title>" in page
