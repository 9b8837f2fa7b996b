"""Our read-outs of the volume, for the JAX worker."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from benchmarks import flops, tasks_flax, volume_case
from cldm_jax.diffusion import schedule


def load_variables(folder) -> dict:
    """{"unet", "decoder"} prepared for inference, as `tasks_flax.onestep` takes them."""
    flat = volume_case.load_arrays(pathlib.Path(folder) / volume_case.FLAX_WEIGHTS)
    params = traverse_util.unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})
    tree = {"unet": params["unet"], "decoder": params["autoencoder"]}
    return tasks_flax.prepare_variables({"params": jax.tree.map(jnp.asarray, tree)})["params"]


def setup(folder: str, steps: int):
    """steps 0: `onestep`, one evaluation and the decoder; else DDIM with that many steps, and the
    decoder. Returns (call -> images [N, H, W], facts).
    """
    case = volume_case.load_case(folder)
    params = load_variables(folder)
    unet, autoencoder = tasks_flax.make_unet(), tasks_flax.make_autoencoder()
    alphas_bar = schedule.cosine(volume_case.TRAINED_STEPS)

    def read_out(params, source, start, code, mean, std):
        if steps == 0:
            z = tasks_flax.onestep_latents(unet, params, source, code, alphas_bar)
        else:
            variables = {"params": params["unet"]}
            z = tasks_flax.ddim(unet, variables, start, source, code, alphas_bar, steps)
        z = z * std[None, None, None] + mean[None, None, None]
        return tasks_flax.decode(autoencoder, {"params": params["decoder"]}, z)[..., 0]

    compiled = jax.jit(read_out)
    batch = volume_case.BATCH

    def call():
        parts = []
        for rows in volume_case.batches(case):
            count = rows.stop - rows.start
            picks = np.resize(np.arange(rows.start, rows.stop), batch)  # the last one is filled up
            fields = (case.source[picks], case.start[picks], case.code[picks])
            images = compiled(params, *fields, case.mean, case.std)
            parts.append(np.asarray(images)[:count])
        return np.concatenate(parts)

    z, code = case.source[:batch], case.code[:batch]
    evaluation = flops.forward_flops(unet, z, code, code, z)
    decoding = flops.forward_flops(autoencoder, z, None, None, method="decode")
    per_batch = max(1, steps) * evaluation + decoding
    return call, {"flops": per_batch * len(case.code) // batch}
