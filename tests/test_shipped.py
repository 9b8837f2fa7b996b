"""The models that come with the repository: whole, small, and better than knowing nothing."""

import numpy as np
import pytest

from cldm_jax.data import nifti
from cldm_jax.jobs import predict, simulate
from cldm_jax.metrics.image import psnr
from cldm_jax.runtime import weights
from cldm_jax.volumes import opened
from configs import simulate as simulate_config


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Two people that the model has not seen: another seed than its training cohort's."""
    folder = tmp_path_factory.mktemp("people")
    config = simulate_config.get_config("quick")
    config.seed, config.n_subjects, config.workers, config.reacquire = 20261124, 2, 0, False
    simulate.run(config, str(folder))
    return sorted(folder.glob("sub-*"))


@pytest.mark.parametrize("model", [opened.SHIPPED, opened.PHANTOM], ids=lambda m: m.name)
def test_they_are_small_and_say_where_they_come_from(model):
    files = list(model.iterdir())
    assert sum(f.stat().st_size for f in files) <= 4 << 20
    card = weights.read_card(model)
    weights.load(model, card)
    assert card["training"]["data"]["contrast"] == "simulated"
    assert "not for clinical use" in card["intended_use"]


def test_the_one_for_scans_knows_its_range_and_its_spread():
    model = opened.open_model(predict.Request("x", "y", uncertainty=True))
    assert model.run.calibration is not None and model.run.manifest.pet_ranges


@pytest.mark.parametrize("model", [opened.SHIPPED, opened.PHANTOM], ids=lambda m: m.name)
def test_one_command_without_a_checkpoint(model, people, tmp_path):
    """CT within the head nearer to the truth than the other person's CT, which is a head as well; one
    head of the truth's outline, though the model that comes along never saw the embedded head.
    """
    truth = [nifti.read_volume(p / "ct.nii.gz").array for p in people]
    checkpoint = "" if model == opened.SHIPPED else str(model)
    for i, person in enumerate(people):
        pet, out = str(person / "pet.nii.gz"), str(tmp_path / person.name)
        request = predict.Request(pet, out, checkpoint=checkpoint)
        ct, mr = (nifti.read_volume(p).array for p in predict.predict(request))
        head, made = truth[i] > -500, ct > -500
        own = psnr(ct, truth[i], data_range=4024.0, mask=head)
        other = psnr(truth[1 - i], truth[i], data_range=4024.0, mask=head)
        assert own > other + 3 and own > 20
        assert 2 * (head & made).sum() / (head.sum() + made.sum()) > 0.95
        # MR: bright where the truth is bright, whatever the scanner's gain.
        real = nifti.read_volume(person / "mr.nii.gz").array
        assert np.corrcoef(mr[head], real[head])[0, 1] > (0.15 if model == opened.SHIPPED else 0.6)
