"""A dataset laid out like CERMEP-IDB-MRXFDG (Merida et al. 2021: 37 adults, FDG PET, T1, FLAIR, CT).

    .venv/bin/python -m cldm_jax.main --config=configs/cermep.py --config.cohort=BIDS_FOLDER \\
        --workdir=runs/cermep
    .venv/bin/python -m cldm_jax.main --config=configs/ldm.py --config.data.prepared=runs/cermep

Preparation of a BIDS tree `sub-*/{pet,ct,anat}` whose images lie on their own grids: CT and T1w are
registered to the PET (rigid, mutual information; look at runs/cermep/overlays). FLAIR is left alone.
That database itself is given out by its owners on request and was not at hand: tested on a generated
tree of the same layout, times and scores not measured.
"""

from configs import prepare


def get_config(preset: str = "a6000"):
    c = prepare.get_config(preset)
    c.register = "rigid"
    c.slice_spacing_mm = 2.0  # native PET and MR differ; PET resolves no more
    return c
