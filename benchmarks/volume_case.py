"""The volume that both sides synthesise: networks trained for it, inputs and truth, in one folder.

    python -m benchmarks.volume_case FOLDER MINUTES PEOPLE

trains the benchmark's networks as the product does (`jobs.make` with configs/monai_ldm.py on the embedded
phantom, v-prediction with one-step rows) and exports them as MONAI's files, which both sides load.
"""

import pathlib
import shutil
import sys
import time
from typing import NamedTuple

import numpy as np

from benchmarks import tasks
from cldm_jax import files

SLICES, BATCH = 150, 8
CASE, RECORD = "case.npz", "training.json"
PRESET, IMAGE = "quick", (128, 128)
AUTOENCODER_SHARE = 0.35  # of the time
PROBE_STEPS = 5  # timed to choose how many fit


class Case(NamedTuple):
    """Inputs and truth of the slices, in order. Latents are standardised."""

    source: np.ndarray  # [N, h, w, 4] latents of the PET slices
    start: np.ndarray  # [N, h, w, 4] standard normal: where sampling starts
    code: np.ndarray  # [N] int32, the target's class
    mean: np.ndarray  # [4] of the target's latents
    std: np.ndarray  # [4]
    truth: np.ndarray  # [N, H, W] the target image, model range [-1, 1]
    mask: np.ndarray  # [N, H, W] bool, the head


def load_case(folder) -> Case:
    with np.load(pathlib.Path(folder) / CASE) as stored:
        return Case(**stored)


def batches(case: Case, limit: int = 0) -> list[slice]:
    """BATCH rows each, the last one shorter; the first `limit` of them where that is not 0."""
    count = len(case.code)
    rows = [slice(i, min(i + BATCH, count)) for i in range(0, count, BATCH)]
    return rows[:limit] if limit else rows


def make_config(folder: pathlib.Path, people: int):
    """The product's latent method with the networks of `tasks`, its data and autoencoder in `folder`."""
    from configs import monai_ldm

    c = monai_ldm.get_config(PRESET)
    c.data.root, c.autoencoder.workdir = str(folder / "data"), str(folder / "ae")
    c.data.simulate.n_subjects, c.data.prepare.size = people, IMAGE
    ae = c.autoencoder.train.recipe
    model = {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}
    with c.unlocked():
        ae.model.update(tasks.AUTOENCODER | model)
        c.recipe.model.update(tasks.UNET)
    c.recipe.diffusion.update(schedule="cosine", target="v", onestep_share=(1.0, 0.5))
    for recipe in (ae, c.recipe):
        recipe.optim.optimizer = "adamw"  # as the other side
    for train in (c.train, c.autoencoder.train.train):
        train.batch_size = BATCH
    return c


def set_steps(config, seconds: float) -> None:
    """As many training steps as fit, ten at least; what the training reads is made first."""
    from cldm_jax.jobs import budget, make

    make.needs(config)
    step = budget.open_step(config)
    step()
    began = time.perf_counter()
    for _ in range(PROBE_STEPS):
        step()
    fit = seconds * PROBE_STEPS / (time.perf_counter() - began)
    config.train.num_train_steps = max(2 * PROBE_STEPS, int(fit))


def train(config, run: pathlib.Path, minutes: float) -> None:
    """A training of about so many minutes in the folder `run`."""
    from cldm_jax.jobs import make

    ae = config.autoencoder.train
    with ae.unlocked():  # the same people
        ae.data.update(root=config.data.root, simulate=config.data.simulate)
        ae.data.prepare = config.data.prepare
    set_steps(ae, AUTOENCODER_SHARE * 60 * minutes)
    set_steps(config, (1 - AUTOENCODER_SHARE) * 60 * minutes)
    for train in (ae.train, config.train):  # the last step is saved in any case
        train.val_every = train.save_every = 2 * train.num_train_steps + 1
    make.run(config, str(run))


def lay_out(folder: pathlib.Path, run: pathlib.Path, prepared) -> int:
    """Writes both networks and the case, CT from PET for SLICES slices of the test people, repeated where
    there are fewer. Returns how many they have.
    """
    from cldm_jax.jobs import export
    from cldm_jax.runs import stored as stored_lib
    from configs import export as export_config

    wanted = export_config.get_config()
    wanted.run, wanted.format, wanted.overwrite = str(run), "monai", True
    export.run(wanted, str(folder))
    stored = stored_lib.open_run(str(run))
    frozen = stored.state.frozen
    found = {"pet": [], "ct": [], "mask": []}
    for person in prepared.subjects("test"):
        keep = prepared.keep(person, "ct")
        for name, parts in found.items():
            parts.append(prepared.read(person, name)[keep])
    pet, ct, mask = (np.concatenate(parts) for parts in found.values())
    rows = np.resize(np.arange(len(pet)), SLICES)
    codes = {k: prepared.index.code(k) for k in ("pet", "ct")}
    mean, std = (np.asarray(frozen["statistics"][k]) for k in ("mean", "std"))
    latents = [
        stored.codec.encode(frozen["autoencoder"], some[..., None], np.zeros(len(some), np.int32))
        for some in np.array_split(pet, -(-len(pet) // BATCH))
    ]
    source = (np.concatenate(latents)[rows] - mean[codes["pet"]]) / std[codes["pet"]]
    start = np.random.default_rng(1).standard_normal(source.shape)
    code = np.full(SLICES, codes["ct"], np.int32)
    moments = (mean[codes["ct"]], std[codes["ct"]])
    f32 = (source.astype(np.float32), start.astype(np.float32), code, *moments)
    case = Case(*f32, ct[rows], mask[rows] > 0)
    with files.atomic_path(folder / CASE) as tmp, open(tmp, "wb") as f:
        np.savez(f, **case._asdict())
    return len(pet)


def main(folder: pathlib.Path, minutes: float, people: int) -> None:
    from cldm_jax.jobs import make

    config, run = make_config(folder, people), folder / "ldm"
    train(config, run, minutes)
    slices = lay_out(folder, run, make.prepared(config.data))
    asked = {"minutes": minutes, "people": people, "test_slices": slices}
    for name, made in (("autoencoder", folder / "ae"), ("unet", run)):
        record = files.read_json(made / "run.json")
        asked[name] = {k: record[k] for k in ("step", "train_seconds")}
    shutil.rmtree(run)
    files.write_json(folder / RECORD, asked)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
