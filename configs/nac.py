"""CT from a PET without attenuation correction (NAC): what a scanner without a CT would correct with.

    .venv/bin/python -m cldm_jax.main --config=configs/nac.py:quick

The CLDM of configs/ldm.py, which reads the people's `nac` in place of their `pet` and makes CT alone.
With no data configured a phantom is simulated whose PETs are reconstructed from counts, with and without
correction. `predict` with such a checkpoint takes a NAC PET. Own people: a manifest with a column `nac`,
or BIDS `*_rec-nac*_pet` (docs/data.md). Any other method on the same data, such as the U-Net:

    .venv/bin/python -m cldm_jax.main --config=configs/unet.py:quick --config.data.source=nac \\
        --config.data.targets="('ct',)" --config.data.prepared=runs/data/nac-quick/prepared \\
        --workdir=runs/nac-unet-quick

Worth on the phantom, at preset quick: docs/phantom.md. Other presets: not measured.
"""

from configs import ldm


def get_config(preset: str = "a6000"):
    c = ldm.get_config(preset)
    c.name = "nac"
    c.data.source = "nac"
    c.data.targets = ("ct",)
    c.data.root = f"runs/data/nac-{preset}"
    c.data.simulate.pet_model = "osem"
    c.data.simulate.nac = True
    c.autoencoder.workdir = f"runs/nac-ae-{preset}"
    c.autoencoder.train.data.targets = ("ct",)
    return c
