"""The paper's comparison in one harness: every method with the same CPU time, then one report.

    bash launch/reproduce.sh --preset quick
    .venv/bin/python -m cldm_jax.main --config=configs/reproduce.py:quick --workdir=runs/reproduce

Hardware: CPU (a budget counts process CPU time). Time: about (number of trainings) x budget on one
core, somewhat less on two. quick took 41 minutes on 2 cores with two trainings fewer (docs/results.md);
with today's: not measured.
"""

from configs import (
    ae,
    attention_unet,
    common,
    cyclegan,
    distributional,
    ldm,
    pix2pix,
    prepare,
    simulate,
    unet,
)
from configs import eval as evaluation

PLAIN = "ldm-plain"  # the abstract's plain recipe
LONG = (PLAIN, "sdedit", "bridge")  # left out of preset quick, for its 45 minutes


def get_config(preset: str = "a6000"):
    c = common.base("reproduce", "reproduce", preset)
    c.prepared = ""  # folder of a prepared dataset, or
    c.cohort = ""  # BIDS folder or manifest to prepare, or "" for:
    c.simulate = simulate.get_config(preset)  # the embedded phantom, or simulate.labels
    c.prepare = prepare.get_config(preset)
    c.trainings = trainings(preset)
    # Comma-separated names of `trainings`; "" = all
    c.methods = common.pick(
        preset, quick=",".join(n for n in c.trainings if n not in LONG), a6000=""
    )
    c.seeds = 1  # trainings of each method in `headline`; the others are trained once
    c.headline = ("unet", "ldm")
    c.folds = 0  # cross-validation: everyone is tested once; 0 = one split
    c.fold = -1  # train this fold only (folds can run side by side); -1 = all, one after the other
    # Process CPU minutes of each method and seed.
    c.budget_minutes = common.pick(preset, tiny=0.1, quick=4.0, cpu=60.0, cpu1mm=10.0, a6000=6000.0)
    c.reference = "unet"  # of `trainings`: its step is the unit in which costs are measured
    c.validations = 5  # per training: record.keep_best
    # CPU seconds of measuring a step beside the reference step, both together.
    c.measured_seconds = common.pick(preset, tiny=0.3, quick=10.0, cpu=30.0, a6000=60.0)
    c.shares = {"cyclegan": 2}  # methods with one model per target divide the budget
    c.autoencoder = ae.get_config(preset)
    # Methods with an autoencoder of their own: what its recipe changes of the shared one's.
    c.own_autoencoder = {PLAIN: {"patch_skip": False}}
    c.encode_batch_size = common.pick(preset, tiny=8, cpu=16, a6000=64)
    c.eval = evaluation.get_config(preset)
    return c


def trainings(preset: str) -> dict:
    """Name in the table -> training. Rivals of the CLDM, then what separates its ingredients: unet-cells
    is the latent network itself, on pixels packed to the latent's grid.
    """
    one_slice, cells = unet.get_config(preset), ldm.on_cells(unet.get_config(preset), preset)
    one_slice.name, one_slice.data.context = "unet-1slice", 1
    cells.name = "unet-cells"
    regression = ldm.get_config(preset)
    regression.name = "latent_regression"
    regression.recipe.diffusion.onestep_share = (1.0, 1.0)
    regression.recipe.diffusion.gaussian_denoiser = False  # no noise, no variance
    regression.recipe.sampling.num_samples = ()
    ldm.without_guidance(regression)
    energy, gaussian = distributional.get_config(preset), distributional.get_config(preset)
    energy.name, gaussian.name = "energy-cells", "gaussian-cells"
    gaussian.recipe.loss = "gaussian"
    plain = ldm.plain(preset)
    plain.name = PLAIN
    # Other readings of the abstract (docs/method.md), the rest as in the CLDM of today.
    sdedit, bridge = ldm.with_latent_source(preset), ldm.with_latent_source(preset)
    for c, name in ((sdedit, "sdedit"), (bridge, "bridge")):
        c.name = c.recipe.diffusion.conditioning = name
    sdedit.data.context, sdedit.data.targets = 1, ("pet", "ct", "mr")  # it never sees the source
    bridge.recipe.diffusion.noise_weight_power = 0.0  # has no sigma
    bridge.recipe.diffusion.gaussian_denoiser = False
    ct, mr = cyclegan.get_config(preset), cyclegan.get_config(preset)
    ct.data.targets, mr.data.targets = ("ct",), ("mr",)
    for c in (ct, mr):  # the published rate trains nothing in 80 steps: docs/results/levers.md
        published = c.recipe.optim.learning_rate
        c.recipe.optim.learning_rate = common.pick(preset, cpu1mm=3e-3, a6000=published)
    return {
        "unet": unet.get_config(preset),
        "unet-1slice": one_slice,
        "attention_unet": attention_unet.get_config(preset),
        "cyclegan-ct": ct,
        "cyclegan-mr": mr,
        "pix2pix": pix2pix.get_config(preset),
        "unet-cells": cells,
        "latent_regression": regression,
        "energy-cells": energy,
        "gaussian-cells": gaussian,
        "ldm": ldm.get_config(preset),
        PLAIN: plain,
        "sdedit": sdedit,
        "bridge": bridge,
    }
