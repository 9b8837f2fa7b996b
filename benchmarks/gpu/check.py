"""Part "check": numbers against the CPU's, a training stopped and resumed.

python -m benchmarks.gpu.check --work DIR --seconds S [--rehearse]
"""

import concurrent.futures
import functools
import importlib
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import part, recipes, resume, sizes, steps
from cldm_jax.methods.registry import make_method
from cldm_jax.runtime import device

# Largest relative difference to the CPU's float32. Adam's first update has the sign of a gradient,
# however small: what follows it differs by more. In bfloat16 a number has 8 bits: 0.4 %.
FLOAT32, AFTER_UPDATE, BFLOAT16 = 1e-4, 2e-3, 2e-2
METHODS = ("ldm", "autoencoder", "unet", "attention_unet", "pix2pix", "cyclegan")
DDIM_STEPS = 5
THREADS = min(4, len(os.sched_getaffinity(0)))
RESUMING = 20.0  # seconds, to begin it
SHARE = 0.6  # of the time that comparing numbers may take


def cases():
    """tests/test_methods.py: the recipes and pictures of the golden steps."""
    sys.path.append(str(part.ROOT / "tests"))
    return importlib.import_module("test_methods")


def difference(value, reference) -> float:
    """Largest difference over the reference's largest value; infinite where one is not finite."""
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    gap = np.abs(value - reference).max() / (np.abs(reference).max() or 1.0)
    return float(gap) if np.isfinite(gap) else float("inf")


def compared(value, reference, allowed: float) -> dict:
    gap = difference(value, reference)
    return {"difference": gap, "allowed": allowed, "ok": gap <= allowed}


def on(where, precision: str, function):
    """function() with JAX's default device and the precision of its products; NumPy arrays."""
    with jax.default_device(where), jax.default_matmul_precision(precision):
        return jax.tree.map(np.asarray, function())


def golden(module, name: str, where, dtype: str = "float32") -> dict:
    """Two steps' losses and gradient norms on the device `where`, as `test_golden_step` takes them.

    Begun on the CPU: on a GPU each small operation of it would be compiled by itself.
    """
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        method, state, batch = module.start(name, warmup_steps=0)
        keys = [jax.random.key(n) for n in (1, 2)]
    if dtype == "bfloat16":
        settings = module.in_bfloat16(module.recipe(name, warmup_steps=0))
        method = make_method(module.CONFIGS[name].get_config("tiny").method, **settings)
    precision = "highest" if dtype == "float32" else "default"
    with jax.default_device(where), jax.default_matmul_precision(precision):
        state, batch, keys = jax.device_put((state, batch, keys), where)
        step = jax.jit(method.train_step)
        state, first = step(state, batch, keys[0])
        _, second = step(state, batch, keys[1])
        return {k: np.asarray([first[k], second[k]]) for k in ("loss", "grad_norm")}


def golden_row(module, known: dict, cpu, name: str) -> dict:
    """One method on the device and on the CPU, float32 and bfloat16, and the numbers of record."""
    here = jax.devices()[0]
    ours, theirs = golden(module, name, here), golden(module, name, cpu)
    row = {"loss": [float(x) for x in ours["loss"]]}
    row["first step"] = compared(
        [ours[k][0] / theirs[k][0] for k in ours], [1.0] * len(ours), FLOAT32
    )
    row["second step"] = compared(
        [ours[k][1] / theirs[k][1] for k in ours], [1.0] * len(ours), AFTER_UPDATE
    )
    row["of record"] = compared(ours["loss"], known[name]["loss"], AFTER_UPDATE)
    if name in ("ldm", "autoencoder", "unet"):
        half = golden(module, name, here, "bfloat16")
        row["bfloat16"] = compared(half["loss"], theirs["loss"], BFLOAT16)
    return row


def ddim_row(module, cpu) -> dict:
    """Five DDIM steps of the tiny CLDM with drawn weights, decoded."""

    def sample(dtype):
        settings = module.recipe("ldm")
        settings = module.in_bfloat16(settings) if dtype == "bfloat16" else settings
        settings["sampling"]["num_sampling_steps"] = DDIM_STEPS
        method = make_method("ldm", **settings)
        with jax.default_device(cpu):
            batch, frozen = module.ldm_parts()
            state = method.init(jax.random.key(0), batch, frozen)
        state = jax.tree.map(np.asarray, state)
        state = state._replace(ema_params=steps.drawn(state.ema_params))
        return jax.jit(method.predict["sample"])(state, module.images(), jax.random.key(3)).image

    return ddim_compared(sample, cpu)


def large_ddim_row(chosen, cpu) -> dict:
    """The same with the raced latent network, attention and all."""

    def sample(dtype):
        config = recipes.own_ldm(chosen, "12M", 1, dtype)
        config.recipe.sampling.num_sampling_steps = min(DDIM_STEPS, chosen.ddim_steps)
        config.recipe.sampling.num_samples = (1,)
        program = steps.reading(config, "sample", 1)
        return program.start(program.compile())()

    return ddim_compared(sample, cpu)


def ddim_compared(sample, cpu) -> dict:
    here = jax.devices()[0]
    reference = on(cpu, "highest", lambda: sample("float32"))
    assert reference.std() > 1e-3, "a constant picture compares nothing"
    ours = on(here, "highest", lambda: sample("float32"))
    half = on(here, "default", lambda: sample("bfloat16"))
    return {
        "float32": compared(ours, reference, FLOAT32),
        "bfloat16": compared(half, reference, BFLOAT16),
    }


def products() -> dict:
    """That "highest" is full float32 here, and what the default precision costs: one product."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 512, 512)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    here = jax.devices()[0]
    found = {p: difference(on(here, p, lambda: jnp.dot(a, b)), exact) for p in PRECISIONS}
    return {"difference": found, "ok": found["highest"] <= 1e-5}


PRECISIONS = ("default", "highest")


def numbers(own: part.Part, chosen) -> None:
    """Everything that is compared with the CPU, a few at a time: most of it is compilation. What is not
    done after SHARE of the time is not waited for.
    """
    cpu = jax.devices("cpu")[0]
    module = cases()
    known = json.loads(module.GOLDEN.read_text())
    own.attempt("numbers/product", products)
    tasks = {
        f"golden {name}": functools.partial(golden_row, module, known, cpu, name)
        for name in METHODS
    }
    tasks["ddim"] = functools.partial(ddim_row, module, cpu)
    tasks["ddim large"] = functools.partial(large_ddim_row, chosen, cpu)
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    jobs = [pool.submit(own.attempt, f"numbers/{name}", task) for name, task in tasks.items()]
    concurrent.futures.wait(jobs, timeout=SHARE * own.left())
    pool.shutdown(wait=False, cancel_futures=True)


def leave(status: int) -> None:
    """Ends this process without waiting for a compilation in another thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv=None) -> None:
    args = part.arguments(argv)
    own, chosen = part.Part(args.work, args.seconds), sizes.choose(args.rehearse)
    device.choose_kernels("xla")
    device.enable_compilation_cache()
    part.need_gpu(args.rehearse)
    own.put("device", device.describe())
    numbers(own, chosen)
    own.attempt("resume", lambda: resume.compare(args.work / "resume"), RESUMING)
    bad = failing(own.result)
    own.put("not ok", bad)
    print(f"check: {len(bad)} comparisons out of tolerance: {', '.join(bad) or 'none'}", flush=True)
    leave(own.status() or int(bool(bad)))


def failing(tree: dict, prefix: str = "") -> list[str]:
    """Names of the comparisons that are not ok."""
    found = [prefix] if tree.get("ok") is False else []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += failing(value, f"{prefix}/{key}" if prefix else key)
    return found


if __name__ == "__main__":
    main()
