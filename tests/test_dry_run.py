"""The account of a training that is not run: against the real state, the real step and a hand count."""

import jax
import pytest

from cldm_jax.errors import UserError
from cldm_jax.jobs import dry_run
from cldm_jax.methods.common import optimizer_of
from cldm_jax.runtime.checkpoint import restore_for_inference
from configs import ae, ldm, pix2pix, unet
from configs import prepare as prepare_config


def test_the_account_of_a_latent_method(study, tmp_path, capsys):
    """Parameters, average and frozen parts have the bytes that a real run of the config has saved."""
    config = study.config("ldm")
    account = dry_run.run(config, str(tmp_path / "never"))
    _, params, frozen = restore_for_inference(study.ldm / "checkpoints")
    sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, frozen)]
    state = account["state_bytes"]
    assert [state["average"], state["frozen"]] == sizes and state["parameters"] == sizes[0]
    optim = {**config.recipe.optim.to_dict(), "num_train_steps": 20}
    moments = optimizer_of(optim).init(params)  # Muon has one of a kernel
    held = sum(x.nbytes for x in jax.tree.leaves(moments))
    assert state["optimiser"] == pytest.approx(held, rel=1e-3) and sizes[0] < held < 2 * sizes[0]
    assert account["peak_bytes"] > sum(state.values()) and account["fits_gb"][24]
    assert account["devices"] == 2 and not (tmp_path / "never").exists()
    out = capsys.readouterr().out
    assert "2 on each of 2 devices" in out and "not measured on a GPU" in out
    assert f"{study.prepared}" in out  # the data that are there are counted


@pytest.mark.slow
def test_arithmetic_grows_with_the_batch_and_parts_save_memory():
    """The compiler's count of one convolution-like net doubles with the rows."""
    accounts = []
    for batch, parts in ((16, 1), (32, 1), (32, 8)):
        config = unet.get_config("tiny")
        config.data.prepare.size = (64, 64)
        config.recipe.model.unet.channel_mult = (1,)
        config.train.batch_size, config.recipe.optim.accumulate = batch, parts
        accounts.append(dry_run.run(config, "never"))
    small, big, split = accounts
    assert big["flops_per_step"] == pytest.approx(2 * small["flops_per_step"], rel=0.05)
    assert split["flops_per_step"] == pytest.approx(big["flops_per_step"], rel=0.05)
    assert split["temporaries_bytes"] < 0.5 * big["temporaries_bytes"]


def test_what_cannot_be_planned_is_refused():
    config = prepare_config.get_config("tiny")
    with pytest.raises(UserError, match="trains nothing"):
        dry_run.run(config, "never")
    config = ldm.get_config("tiny")
    config.train.batch_size = 3
    with pytest.raises(UserError, match="multiple of 2"):
        dry_run.run(config, "never")


@pytest.mark.parametrize("module", [ae, ldm, pix2pix, unet])
def test_hours_are_those_of_the_computing_type(module):
    """Wherever in the recipe the network's settings stand."""
    assert dry_run._dtype(module.get_config("a6000").recipe.to_dict()) == "bfloat16"
    assert dry_run._dtype(module.get_config("tiny").recipe.to_dict()) == "float32"
