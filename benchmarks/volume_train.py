"""Trains the benchmark's networks on the embedded phantom and lays out the volume to synthesise.

    python -m benchmarks.volume_train FOLDER MINUTES PEOPLE

Cohort and slices come from this project's own jobs; the objective is its own: v-prediction on the cosine
schedule with zero terminal SNR, part of each batch at t = T from a zero latent. Weights are left for both
sides, the autoencoder's and the U-Net's averaged parameters.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from benchmarks import tasks_flax, volume_case
from cldm_jax import files
from cldm_jax.diffusion import parametrisation, schedule
from cldm_jax.jobs import make
from cldm_jax.methods.common import make_update
from cldm_jax.methods.latent_diffusion import ramp
from cldm_jax.models import monai_names
from cldm_jax.models.init import init_params
from configs import common

BATCH = 8
AUTOENCODER_SHARE = 0.35  # of the time
PROBE_STEPS = 5
TARGETS = ("ct", "mr")
ENCODE_BATCH = 16


def prepare_cohort(folder: pathlib.Path, people: int):
    """The phantom cohort at preset quick with this many people, simulated and prepared once."""
    data = common.data("quick")
    data.root = str(folder / "data")
    data.simulate.n_subjects = people
    return make.prepared(data)


def load_slices(prepared, split: str) -> dict[str, np.ndarray]:
    """The slices with head in them: pet, ct, mr [N, H, W, 1] and mask [N, H, W], row by row alike."""
    found = {name: [] for name in ("pet", *TARGETS, "mask")}
    for subject in prepared.subjects(split):
        keep = np.flatnonzero(prepared.index["subjects"][subject]["keep"])
        for name, parts in found.items():
            parts.append(prepared.read(subject, name)[keep])
    out = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: a if name == "mask" else a[..., None] for name, a in out.items()}


def draw(rng, batch) -> dict:
    """What a loss draws from: a key for every row, of which these losses use the first."""
    return {"key": jax.random.split(rng, len(next(iter(batch.values()))))}


def make_autoencoder_loss(net):
    def loss(params, state, batch, noise):
        del state
        return tasks_flax.autoencoder_loss(net, params, batch["images"], noise["key"][0]), {}

    return loss


def make_ldm_loss(net, num_train_steps: int):
    alphas_bar = schedule.cosine(volume_case.TRAINED_STEPS)

    def loss(params, state, batch, noise):
        keys = jax.random.split(noise["key"][0], 3)
        z0, rows = batch["target"], batch["target"].shape[:1]
        share = ramp(state.step, num_train_steps, 1.0, 0.5, 0.2, 0.7)
        is_onestep = jax.random.uniform(keys[0], rows) < share
        t = jax.random.randint(keys[1], rows, 0, volume_case.TRAINED_STEPS)
        t = jnp.where(is_onestep, volume_case.TRAINED_STEPS - 1, t)
        noise = jax.random.normal(keys[2], z0.shape)
        a, s = parametrisation.coefficients(alphas_bar, t, z0.ndim)
        zt = parametrisation.add_noise(z0, noise, a, s)
        zt = jnp.where(is_onestep[:, None, None, None], 0.0, zt)
        prediction = net.apply({"params": params}, zt, t, batch["code"], batch["source"])
        target = parametrisation.make_target("v", z0, noise, a, s)
        return jnp.square(prediction - target).mean(), {}

    return loss


def train(make_loss, params, arrays: dict[str, np.ndarray], seconds: float) -> tuple[dict, dict]:
    """(averaged parameters, record) after about `seconds` of steps on random rows of `arrays`.

    The learning rate ends at the last step, so a few steps are timed first to know how many there are.
    """
    rng = np.random.default_rng(0)

    def run(steps: int):
        optim = common.optim(learning_rate=1e-3, ema_decay=0.99).to_dict()
        optim["optimizer"] = "adamw"  # as the other side
        init_state, step = make_update(make_loss(steps), {**optim, "num_train_steps": steps}, draw)
        state, step = init_state(params, {}), jax.jit(step, donate_argnums=0)
        times, losses = [], []
        for i in range(steps):
            rows = rng.integers(0, len(next(iter(arrays.values()))), BATCH)
            began = time.perf_counter()
            batch = {name: array[rows] for name, array in arrays.items()}
            state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(0), i))
            losses.append(float(metrics["loss"]))
            times.append(time.perf_counter() - began)
        return state.ema_params, float(np.median(times)), losses

    step_s = run(PROBE_STEPS)[1]
    steps = max(2 * PROBE_STEPS, int(seconds / step_s))
    averaged, step_s, losses = run(steps)
    last = float(np.mean(losses[-max(1, steps // 10) :]))
    return jax.tree.map(np.asarray, averaged), {"steps": steps, "step_s": step_s, "loss": last}


def make_encoder(net, params):
    """images [N, H, W, 1] -> posterior means [N, h, w, 4], in batches of one size."""
    variables = tasks_flax.prepare_variables({"params": params})
    encode = jax.jit(lambda v, x: tasks_flax.encode(net, v, x)[0])

    def run(images: np.ndarray) -> np.ndarray:
        count = len(images)
        padded = np.resize(images, (-(-count // ENCODE_BATCH) * ENCODE_BATCH, *images.shape[1:]))
        parts = [
            np.asarray(encode(variables, padded[i : i + ENCODE_BATCH]))
            for i in range(0, len(padded), ENCODE_BATCH)
        ]
        return np.concatenate(parts)[:count]

    return run


def latent_rows(latents: dict[str, np.ndarray], moments: dict) -> dict[str, np.ndarray]:
    """Training rows of the U-Net: every slice once for each target; code 1 is CT, 2 is MR."""

    def standard(name):
        mean, std = moments[name]
        return ((latents[name] - mean) / std).astype(np.float32)

    count = len(latents["pet"])
    return {
        "target": np.concatenate([standard(name) for name in TARGETS]),
        "source": np.concatenate([standard("pet")] * len(TARGETS)),
        "code": np.repeat(np.arange(1, 1 + len(TARGETS), dtype=np.int32), count),
    }


def lay_out_case(slices: dict, latents: dict, moments: dict) -> dict[str, np.ndarray]:
    """The fields of `Case`: CT from PET for 150 test slices, repeated where there are fewer."""
    rows = np.resize(np.arange(len(slices["pet"])), volume_case.SLICES)
    source = (latents["pet"][rows] - moments["pet"][0]) / moments["pet"][1]
    noise = np.random.default_rng(1).standard_normal(source.shape)
    return {
        "source": source.astype(np.float32),
        "start": noise.astype(np.float32),
        "code": np.ones(len(rows), np.int32),
        "mean": moments["ct"][0],
        "std": moments["ct"][1],
        "truth": slices["ct"][rows, ..., 0],
        "mask": slices["mask"][rows] > 0,
    }


def save_weights(folder: pathlib.Path, params: dict[str, dict]) -> None:
    """The same weights twice: Flax paths joined by '/', and MONAI's names behind 'net/'."""
    flat = {"/".join(path): a for path, a in traverse_util.flatten_dict(params).items()}
    volume_case.save_arrays(folder / volume_case.FLAX_WEIGHTS, flat)
    states = {
        f"{net}/{name}": array
        for net, tree in params.items()
        for name, array in monai_names.to_state_dict(tree).items()
    }
    volume_case.save_arrays(folder / volume_case.TORCH_WEIGHTS, states)


def main(folder: pathlib.Path, minutes: float, people: int) -> None:
    prepared = prepare_cohort(folder, people)
    slices, held_out = load_slices(prepared, "train"), load_slices(prepared, "test")
    images = np.concatenate([slices[name] for name in ("pet", *TARGETS)])
    autoencoder, unet = tasks_flax.make_autoencoder(), tasks_flax.make_unet()
    key = jax.random.key(0)
    seconds = 60 * minutes
    eps = jnp.zeros(tasks_flax.latent_shape(autoencoder, images[:1]))
    start = init_params(autoencoder, key, images[:1], None, None, eps)
    ae_params, ae_record = train(
        lambda steps: make_autoencoder_loss(autoencoder),
        start,
        {"images": images},
        AUTOENCODER_SHARE * seconds,
    )
    encode = make_encoder(autoencoder, ae_params)
    latents = {name: encode(slices[name]) for name in ("pet", *TARGETS)}
    moments = {name: (z.mean((0, 1, 2)), z.std((0, 1, 2))) for name, z in latents.items()}
    rows = latent_rows(latents, moments)
    z, code = rows["target"][:1], rows["code"][:1]
    start = init_params(unet, key, z, code, code, z)
    unet_params, unet_record = train(
        lambda steps: make_ldm_loss(unet, steps), start, rows, (1 - AUTOENCODER_SHARE) * seconds
    )
    save_weights(folder, {"autoencoder": ae_params, "unet": unet_params})
    test_latents = {"pet": encode(held_out["pet"])}
    case = lay_out_case(held_out, test_latents, moments)
    volume_case.save_arrays(folder / volume_case.CASE, case)
    files.write_json(
        folder / volume_case.RECORD,
        {
            "minutes": minutes,
            "people": people,
            "test_slices": len(held_out["pet"]),
            "autoencoder": ae_record,
            "unet": unet_record,
        },
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
