"""What a training will need, before it is started: nothing is trained, read or written.

The step is compiled for the devices JAX finds, with the shapes its config gives, and the compiler's own
account of it is printed. On a machine without a GPU that is XLA's program for a CPU: arithmetic is the
same, memory of temporaries is what another compiler planned.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.errors import UserError, rounded
from cldm_jax.methods.codec import make_codec
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import fit
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runs.steps import make_step
from cldm_jax.runtime import sharding

GPUS = (24, 48, 80)  # GB
RESERVED = 1.5  # GB that a GPU's context, libraries and workspaces take, an assumption
# Peak of one RTX A6000 by NVIDIA's data sheet, TFLOP/s without sparsity, and the share of it that
# trainings of this kind come to, an assumption: their hours are estimates.
A6000 = {"bfloat16": 154.8, "float16": 154.8, "float32": 38.7}
UTILISATION = 0.3


def run(config, workdir: str) -> dict:
    """Prints the account of training `config` and returns it. UserError where it cannot be split over
    the devices, or is no training.
    """
    if config.job != "train":
        reason = f"job '{config.job}' trains nothing by itself"
        raise UserError("--dry-run", reason, "Give the config of a training, like configs/ldm.py")
    sharding.check_batch_size(config.train.batch_size, config.recipe.optim.accumulate)
    state, compiled = _compile(config)
    account = _account(config, state, compiled)
    for line in _lines(config, workdir, account):
        print(line, flush=True)
    return account


def example(config):
    """(method, state, batch) of a training's step: its shapes, with drawn numbers in them. The batch has
    4 rows; a latent method's autoencoder is untrained.
    """
    h, w = config.data.prepare.size
    if config.data.prepared:
        h, w = inputs_lib.open_prepared(config.data).index.grid.size
    fit.check_size(config, (h, w))
    recipe, frozen = inputs_lib.method_recipe(config), {}
    batch = images(4, h, w, config.data.context)
    if config.data.kind == "latents":
        autoencoder = config.autoencoder.train.recipe.model.to_dict()
        recipe = {"autoencoder": autoencoder, **recipe}
        variables, factor = _autoencoder(config.autoencoder.train, h, w)
        channels = autoencoder["latent_channels"]
        ones = np.ones((autoencoder["num_classes"], channels), np.float32)
        frozen = {"autoencoder": variables, "statistics": {"mean": ones, "std": ones}}
        batch["target"] = np.zeros((4, h // factor, w // factor, channels), np.float32)
        if config.data.source_kind == "latent":
            batch["source"] = np.tile(batch["target"], config.data.context)
    method = make_method(config.method, **recipe)
    return method, method.init(jax.random.key(0), batch, frozen), batch


def images(n: int, h: int, w: int, context: int) -> dict:
    noise = np.random.default_rng(0).standard_normal((n, h, w, context), np.float32)
    number = np.arange(n, dtype=np.int32)
    return {
        "source": noise,
        "target": noise[..., :1],
        "label": number,
        "mask": np.ones((n, h, w, 1), np.float32),
        "subject": number,
        "slice": number,
    }


def _autoencoder(config, h: int, w: int):
    """(frozen variables, pixels of a cell each way) of the autoencoder a latent method would train."""
    model = config.recipe.model
    method = make_method("autoencoder", **inputs_lib.method_recipe(config))
    state = method.init(jax.random.key(0), images(4, h, w, 1), {})
    return {"params": state.ema_params, **state.frozen}, make_codec(model.to_dict()).factor


def _compile(config):
    """(the state's shapes, the compiled step of whole batches)."""
    method, state, batch = example(config)
    rows, replicated = sharding.make_shardings()

    def shaped(x, where, count=None):
        shape = x.shape if count is None else (count, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

    first_bad, key = jnp.int32(0), jax.random.key(0)
    state, first_bad, key = jax.tree.map(lambda x: shaped(x, replicated), (state, first_bad, key))
    batch = {k: shaped(batch[k], rows, config.train.batch_size) for k in method.reads}
    return state, make_step(method, replicated).lower(state, first_bad, batch, key).compile()


def _bytes(tree) -> int:
    return sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _account(config, state, compiled) -> dict:
    memory = compiled.memory_analysis()
    # XLA counts one device, and the body of a loop (over the parts of a batch) once.
    flops = float(compiled.cost_analysis()["flops"]) * jax.device_count()
    flops *= config.recipe.optim.accumulate
    parts = {
        "parameters": _bytes(state.params),
        "average": _bytes(state.ema_params),
        "optimiser": _bytes(state.opt_state),
        "frozen": _bytes(state.frozen),
        "image pool": _bytes(state.extra),
    }
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    dtype = _dtype(config.recipe.to_dict())
    seconds = flops / jax.device_count() / (A6000[dtype] * 1e12 * UTILISATION)
    return {
        "parameters": int(sum(x.size for x in jax.tree.leaves(state.params))),
        "state_bytes": parts,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "flops_per_step": flops,
        "temporaries_bytes": int(memory.temp_size_in_bytes),
        "peak_bytes": int(peak),
        "fits_gb": {gb: peak / 1e9 + RESERVED <= gb for gb in GPUS},
        "dtype": dtype,
        "hours": seconds * config.train.num_train_steps / 3600,
    }


def _dtype(recipe: dict) -> str:
    """The network's computing type: the first `dtype` a recipe names, float32 where none is."""
    return next((d for d in _dtypes(recipe) if d in A6000), "float32")


def _dtypes(recipe: dict):
    for key, value in recipe.items():
        if isinstance(value, dict):
            yield from _dtypes(value)
        elif key == "dtype":
            yield value


def _lines(config, workdir: str, account: dict):
    steps, batch, n = config.train.num_train_steps, config.train.batch_size, account["devices"]
    each = f", {batch // n} on each of {n} devices" if n > 1 else ""
    yield f"dry run of {config.name}:{config.preset} (nothing is trained; it would go to {workdir})"
    yield f"  parameters    {account['parameters']:,}, computed in {account['dtype']}"
    yield f"  batch         {batch}{each}, in {config.recipe.optim.accumulate} part(s)"
    state = ", ".join(f"{k} {_size(v)}" for k, v in account["state_bytes"].items() if v)
    yield f"  state         {_size(sum(account['state_bytes'].values()))}: {state}"
    where = f"a device, compiled for {account['backend']}"
    if account["backend"] == "cpu":
        where += ", not measured on a GPU"
        if account["dtype"] != "float32":  # 11 instead of 23 GB for ldm:a6000 (docs/performance.md)
            where += "; a GPU's program, which is not in float32 meanwhile, takes about half"
    peak, temporary = (_size(account[k]) for k in ("peak_bytes", "temporaries_bytes"))
    yield f"  memory        {peak} on {where}: {temporary} of it temporary"
    fits = ", ".join(f"{gb} GB {'yes' if ok else 'NO'}" for gb, ok in account["fits_gb"].items())
    yield f"  fits          {fits} (with {RESERVED} GB for a GPU's context and libraries, assumed)"
    yield f"  arithmetic    {account['flops_per_step'] / 1e12:.3g} TFLOP a step of the whole batch"
    yield (
        f"  time          {steps:,} steps, {account['hours']:.1f} h on {n} RTX A6000 at "
        f"{UTILISATION:.0%} of its {A6000[account['dtype']]:g} TFLOP/s: assumed, not measured"
    )
    yield f"  data          {_data(config, steps * batch)}"


def _data(config, seen: int) -> str:
    data = config.data
    folder = inputs_lib.prepared_folder(data)
    if (folder / "index.json").is_file():
        prepared = inputs_lib.Prepared(folder)
        size = sum(p.stat().st_size for p in folder.glob("*.npy"))
        config, _ = inputs_lib.settled(config)
        items = sum(
            int(prepared.keep(s, t).sum())
            for s in prepared.subjects("train")
            for t in config.data.targets
            if prepared.has(s, t)
        )
        return (
            f"{folder}: {_size(size)}; {items:,} training items, each seen {seen / items:.0f} times"
        )
    # pet, ct, mr and mask, about two bytes a voxel
    size = 4 * 2 * math.prod(data.simulate.shape) * data.simulate.n_subjects
    return f"none yet: {data.simulate.n_subjects} simulated people would take about {_size(size)}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{rounded(count)} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
