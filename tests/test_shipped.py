"""The small model that comes with the repository: whole, small, and better than knowing nothing."""

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


def test_it_is_small_and_says_where_it_comes_from():
    files = list(opened.SHIPPED.iterdir())
    assert sum(f.stat().st_size for f in files) <= 4 << 20
    card = weights.read_card(opened.SHIPPED)
    weights.load(opened.SHIPPED, card)
    assert card["training"]["data"]["contrast"] == "simulated"
    assert "not for clinical use" in card["intended_use"]


def test_one_command_without_a_checkpoint(people, tmp_path):
    """CT within the head nearer to the truth than the other person's CT, which is a head as well."""
    truth = [nifti.read_volume(p / "ct.nii.gz").array for p in people]
    for i, person in enumerate(people):
        request = predict.Request(str(person / "pet.nii.gz"), str(tmp_path / person.name))
        ct, mr = (nifti.read_volume(p).array for p in predict.predict(request))
        head = truth[i] > -500
        own = psnr(ct, truth[i], data_range=4024.0, mask=head)
        other = psnr(truth[1 - i], truth[i], data_range=4024.0, mask=head)
        assert own > other + 3 and own > 20
        # MR: bright where the truth is bright, whatever the scanner's gain.
        real = nifti.read_volume(person / "mr.nii.gz").array
        assert np.corrcoef(mr[head], real[head])[0, 1] > 0.6
