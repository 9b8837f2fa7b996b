"""What a step of each method costs, and the steps that one budget of CPU time buys.

The same step costs up to twice as much CPU time when other work heats or shares the processor. So costs
are measured as ratios: each method's step in turn with a reference step, in one process, and one
number of CPU seconds for the reference step turns a budget in minutes into steps for all.
"""

import time
from collections.abc import Callable

import jax
import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.methods.codec import make_codec
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runs.latents import needed_modalities
from cldm_jax.runs.steps import make_stepper, open_step
from cldm_jax.runtime.progress import Progress

MIN_STEPS = 20  # a budget that buys fewer is refused
MIN_ROUNDS = 3


def measure(recipes: dict, autoencoder, encode_batch_size: int, seconds: float) -> dict:
    """{"reference", "cpu_seconds" of its step, "ratios": {name: cost of a step / reference step}}.

    recipes: name -> training config; the first is the reference. The autoencoder's step is "ae", the
    encoding of one slice "encode". seconds: CPU time of each measurement, both steps together. Nothing is
    trained and nothing written; latent methods are measured on an untrained autoencoder.
    """
    reference = next(iter(recipes))
    latent = any(recipe.data.kind == "latents" for recipe in recipes.values())
    untrained = _untrained(autoencoder) if latent else None
    base = _open(recipes[reference], untrained)
    ratios, costs = {reference: 1.0}, []
    with Progress(len(recipes) - 1 + 2 * latent, "measure steps", "method") as progress:

        def add(name: str, call: Callable[[], None], count: int = 1) -> None:
            own, beside = _interleave(call, base, seconds)
            ratios[name] = own / beside / count
            costs.append(beside)
            progress.update(method=name)

        if latent:
            add("ae", _open(autoencoder, None))
            add("encode", _encoder(untrained, encode_batch_size), encode_batch_size)
        for name in (n for n in recipes if n != reference):
            add(name, _open(recipes[name], untrained))
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


def _open(recipe, untrained) -> Callable[[], None]:
    """One training step of `recipe` on a batch that lies ready; latents are drawn, not encoded."""
    recipe = recipe.copy_and_resolve_references()
    with recipe.unlocked():
        recipe.train.num_train_steps = 1000  # only the schedule asks for it
        latent = recipe.data.kind == "latents"
        source_kind = recipe.data.source_kind
        recipe.data.kind, recipe.data.source_kind = "images", "image"
    if not latent:
        return open_step(recipe)
    model, variables, prepared = untrained
    codec = make_codec(model)
    classes, channels = model["num_classes"], codec.latent_channels
    ones = np.ones((classes, channels), np.float32)
    frozen = {"autoencoder": variables, "statistics": {"mean": 0 * ones, "std": ones}}
    keywords = {"autoencoder": model, **inputs_lib.method_recipe(recipe)}
    inputs = inputs_lib.Inputs(prepared, None, frozen, keywords)
    batch = inputs_lib.train_source(recipe, inputs).read(np.arange(recipe.train.batch_size))
    rng = np.random.default_rng(0)
    b, height, width, _ = batch["target"].shape
    shape = (b, height // codec.factor, width // codec.factor)
    batch["target"] = rng.normal(size=(*shape, channels)).astype(np.float32)
    if source_kind == "latent":
        slices = recipe.data.context * channels
        batch["source"] = rng.normal(size=(*shape, slices)).astype(np.float32)
    return make_stepper(recipe, inputs, batch, batch)


def _untrained(autoencoder) -> tuple[dict, dict, object]:
    """(model keywords, {"params", "patch"}, prepared) of the autoencoder before its training."""
    inputs = inputs_lib.open_inputs(autoencoder)
    method = make_method(autoencoder.method, **inputs.recipe)
    source = inputs_lib.train_source(autoencoder, inputs)
    batch = source.read(np.arange(len(source))[:: max(1, len(source) // 32)])
    state = method.init(jax.random.key(0), batch, {})
    # On the host: every method's stepper donates its own copy of them.
    variables = jax.tree.map(np.array, {"params": state.params, **state.frozen})
    return inputs.recipe["model"], variables, inputs.prepared


def _encoder(untrained, batch_size: int) -> Callable[[], None]:
    model, variables, prepared = untrained
    encode = jax.jit(make_codec(model).encode)
    grid = prepared.index.grid.size
    images = np.zeros((batch_size, *grid, 1), np.float32)
    labels = np.ones((batch_size,), np.int32)
    return lambda: jax.block_until_ready(encode(variables, images, labels))
