"""The product's own training step and read-outs on drawn numbers, compiled and ready to be called."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.jobs import dry_run
from cldm_jax.runs.steps import make_step
from cldm_jax.runtime import device, sharding


class Program(NamedTuple):
    """compile() once, in any thread; then start() -> call, one step handed to the device."""

    compile: Callable[[], object]
    start: Callable[[object], Callable[[], object]]


def rows(batch: dict, count: int) -> dict:
    """`count` rows of a batch, repeated where it has fewer."""
    return {k: np.resize(v, (count, *v.shape[1:])) for k, v in batch.items()}


def drawn(tree, seed: int = 0):
    """Leaves moved by normal numbers: residual branches start at zero, which would hide mistakes."""
    rng = np.random.default_rng(seed)

    def move(x):
        fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 16
        noise = 0.3 * rng.standard_normal(x.shape) / np.sqrt(fan_in)
        return (np.asarray(x) + noise).astype(np.float32)

    return jax.tree.map(move, tree)


def example(config):
    """`dry_run.example`, begun on the CPU: on a GPU each small operation would be compiled by itself."""
    with jax.default_device(jax.devices("cpu")[0]):
        method, state, batch = dry_run.example(config)
        return method, jax.tree.map(np.asarray, state), batch


def training(config) -> Program:
    """A step of `config`'s training on a batch that lies on the device, as `jobs.train` compiles it."""
    batch_sharding, replicated = sharding.make_shardings()
    method, state, batch = example(config)
    batch, key = rows(batch, config.train.batch_size), jax.random.key(config.seed)
    step = make_step(method, replicated)

    def arguments():
        placed = sharding.replicate((state, jnp.int32(0), key))
        return placed[0], placed[1], sharding.put_batch(batch, batch_sharding), placed[2]

    def start(compiled):
        now, first_bad, placed, rng = arguments()

        def call():
            nonlocal now, first_bad
            now, first_bad, metrics = compiled(now, first_bad, placed, rng)
            return metrics["loss"]

        return call

    return Program(lambda: device.compile_step(step, *arguments()), start)


def reading(config, mode: str, count: int) -> Program:
    """A read-out of `count` slices, images in and images out, with drawn weights."""
    method, state, _ = example(config)
    weights = drawn(state.ema_params)
    state = state._replace(params=(), opt_state=(), extra=(), ema_params=weights)
    h, w = config.data.prepare.size
    images = dry_run.images(count, h, w, config.data.context)
    batch = {k: images[k] for k in ("source", "label", "subject", "slice")}
    batch["label"] = np.ones_like(batch["label"])
    predict = jax.jit(method.predict[mode])

    def arguments():
        return jax.device_put((state, batch, jax.random.key(0)))

    def start(compiled):
        placed = arguments()
        return lambda: compiled(*placed).image

    return Program(lambda: predict.lower(*arguments()).compile(), start)


def function(call: Callable, *args) -> Program:
    """Any function of arrays."""
    jitted = jax.jit(call)

    def start(compiled):
        placed = jax.device_put(args)
        return lambda: compiled(*placed)

    return Program(lambda: jitted.lower(*args).compile(), start)
