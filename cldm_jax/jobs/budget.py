"""What a step of each method costs, and the steps that one budget of CPU time buys.

The same step costs up to twice as much CPU time when other work heats or shares the processor. So costs
are measured as ratios: each method's step in turn with a reference step, in one process, and one
number of CPU seconds for the reference step turns a budget in minutes into steps for all.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.jobs.dry_run import example
from cldm_jax.methods.codec import make_codec
from cldm_jax.runs.inputs import needed_modalities
from cldm_jax.runs.steps import make_step
from cldm_jax.runtime import device, sharding
from cldm_jax.runtime.progress import Progress

MIN_STEPS = 20  # a budget that buys fewer is refused
MIN_ROUNDS = 3


def measure(recipes: dict, autoencoder, encode_batch_size: int, seconds: float) -> dict:
    """{"reference", "cpu_seconds" of its step, "ratios": {name: cost of a step / reference step}}.

    recipes: name -> training config; the first is the reference. The autoencoder's step is "ae", the
    encoding of one slice "encode". seconds: CPU time of each measurement, both steps together. Nothing is
    trained or read and nothing written; latent methods are measured on an untrained autoencoder.
    """
    reference = next(iter(recipes))
    latent = any(recipe.data.kind == "latents" for recipe in recipes.values())
    base = open_step(recipes[reference], autoencoder)
    ratios, costs = {reference: 1.0}, []
    with Progress(len(recipes) - 1 + 2 * latent, "measure steps", "method") as progress:

        def add(name: str, call: Callable[[], None], count: int = 1) -> None:
            own, beside = _interleave(call, base, seconds)
            ratios[name] = own / beside / count
            costs.append(beside)
            progress.update(method=name)

        if latent:
            add("ae", open_step(autoencoder))
            add("encode", _encoder(autoencoder, encode_batch_size), encode_batch_size)
        for name in (n for n in recipes if n != reference):
            add(name, open_step(recipes[name], autoencoder))
    if not costs:
        costs = [_interleave(base, base, seconds)[1]]
    return {"reference": reference, "cpu_seconds": float(np.median(costs)), "ratios": ratios}


def plan(
    recipe, name: str, costs: dict, minutes: float, share: int, prepared, ae_steps: int
) -> dict:
    """{"num_train_steps", "budget", "paid"}: what `minutes` CPU minutes buy of method `name`.

    The latter two in reference steps: the budget, and what the autoencoder and the latents take of it.
    share: models that divide the budget. UserError where it buys too little.
    """
    ratios = costs["ratios"]
    budget = 60 * minutes / costs["cpu_seconds"] / share
    paid = 0.0
    if recipe.data.kind == "latents":
        slices = _train_slices(prepared, needed_modalities(recipe.data))
        paid = ae_steps * ratios["ae"] + slices * ratios["encode"]
    steps = int((budget - paid) / ratios[name])
    if steps < MIN_STEPS:
        raise UserError(
            f"config.budget_minutes={minutes:g}",
            f"buys {name} {max(0, steps)} steps of {ratios[name] * costs['cpu_seconds']:.2f} CPU s",
            "Give more minutes, or leave the method out with config.methods.",
        )
    return {"num_train_steps": steps, "budget": budget, "paid": paid}


def _train_slices(prepared, modalities) -> int:
    return sum(
        prepared.index.people[s].n_slices
        for s in prepared.subjects("train")
        for m in modalities
        if prepared.has(s, m)
    )


def _interleave(call, base, seconds: float) -> tuple[float, float]:
    """Mean CPU seconds of `call` and of `base`, in turns, the first of each not counted."""
    call(), base()
    spent = np.zeros(2)
    rounds = 0
    while spent.sum() < seconds or rounds < MIN_ROUNDS:
        for i, step in enumerate((call, base)):
            began = time.process_time()
            step()
            spent[i] += time.process_time() - began
        rounds += 1
    return tuple(spent / rounds)


def open_step(config, autoencoder=None) -> Callable[[], None]:
    """One training step of `config` on drawn numbers, compiled and finished when it returns.

    autoencoder: training config of a latent method's, in place of the one that `config` holds.
    """
    config = config.copy_and_resolve_references()
    config.train.num_train_steps = 1000  # only the schedule asks for it
    if autoencoder is not None and config.data.kind == "latents":
        config.autoencoder.train = autoencoder
    rows = config.train.batch_size
    sharding.check_batch_size(rows, config.recipe.optim.accumulate)
    batch_sharding, replicated = sharding.make_shardings()
    method, state, batch = example(config)
    state, key, first_bad = sharding.replicate((state, jax.random.key(config.seed), jnp.int32(0)))
    batch = {k: np.resize(batch[k], (rows, *batch[k].shape[1:])) for k in method.reads}
    batch = sharding.put_batch(batch, batch_sharding)
    compiled = device.compile_step(make_step(method, replicated), state, first_bad, batch, key)

    def call() -> None:
        nonlocal state
        state, _, _ = compiled(state, first_bad, batch, key)
        jax.block_until_ready(state)

    return call


def _encoder(autoencoder, batch_size: int) -> Callable[[], None]:
    _, state, batch = example(autoencoder)
    encode = jax.jit(make_codec(autoencoder.recipe.model.to_dict()).encode)
    variables = {"params": state.params, **state.frozen}
    images = np.zeros((batch_size, *batch["target"].shape[1:]), np.float32)
    labels = np.ones((batch_size,), np.int32)
    return lambda: jax.block_until_ready(encode(variables, images, labels))
