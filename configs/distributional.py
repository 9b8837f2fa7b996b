"""Control: regressions that answer with a distribution, on the latent network's grid and with its blocks.

    .venv/bin/python -m cldm_jax.main --config=configs/distributional.py:quick

A network with noise among its inputs, trained on the energy score: one evaluation a sample. Mean and
variance of every pixel by the Gaussian likelihood instead: --config.recipe.loss=gaussian
What the CLDM's spread has to be better than. Scores: docs/results.md; a6000: not measured.
"""

from configs import common, ldm, unet


def get_config(preset: str = "a6000"):
    c = ldm.on_cells(unet.get_config(preset), preset)
    c.name = c.method = "distributional"
    latent = ldm.get_config(preset).recipe
    c.recipe.loss = "energy"  # energy | gaussian
    c.recipe.beta = 0.5  # of the Gaussian likelihood: its terms times variance^beta
    c.recipe.sampling = {
        "num_samples": latent.sampling.num_samples,  # K of the read-outs: sample (K = 1) and mean4
        "noise_slices": latent.sampling.noise_slices,
    }
    c.recipe.optim = latent.optim
    # Of two answers each: half of what the CLDM takes.
    c.train.num_train_steps = common.pick(preset, tiny=20, quick=400, cpu=3500, a6000=75_000)
    return c
