"""The compiled step of a training, alone or many in one call."""

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.methods.registry import make_method
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runtime import device, sharding
from cldm_jax.runtime.finite import guarded


def make_step(method, replicated, read=None, length: int = 1):
    """The jitted step, (state, first_bad, batch, rng of the run) -> (state, first_bad, metrics), guarded
    against what is not finite (`runtime/finite.py`); `state` is donated.

    length > 1: so many steps in one scan, of batches stacked [length, B, ...], each with the key that it
    has alone; metrics of the last. read(item, *tables) -> batch, where the tables are further arguments.
    """

    def step(state, batch, rng):
        return method.train_step(state, batch, jax.random.fold_in(rng, state.step + 1))

    one = guarded(step)

    def call(state, first_bad, items, rng, *tables):
        def turn(carry, item):
            batch = item if read is None else read(item, *tables)
            state, first_bad, metrics = one(*carry, batch, rng)
            return (state, first_bad), metrics

        if length == 1:
            (state, first_bad), metrics = turn((state, first_bad), items)
            return state, first_bad, metrics
        (state, first_bad), metrics = jax.lax.scan(turn, (state, first_bad), items, length)
        return state, first_bad, jax.tree.map(lambda x: x[-1], metrics)

    return jax.jit(call, donate_argnums=0, out_shardings=(replicated,) * 3)


def open_step(config):
    """() -> None: one training step of `config` on a batch that lies ready, compiled and finished when
    it returns. For measuring what a step costs; nothing is written.
    """
    config, _ = inputs_lib.settled(config)
    inputs = inputs_lib.open_inputs(config)
    source = inputs_lib.train_source(config, inputs)
    batch = source.read(np.arange(config.train.batch_size))
    return make_stepper(config, inputs, init_batch(config, source), batch)


def make_stepper(config, inputs, first: dict, batch: dict):
    """`open_step` for inputs and a batch that are given."""
    sharding.check_batch_size(config.train.batch_size, config.recipe.optim.accumulate)
    batch_sharding, replicated = sharding.make_shardings()
    method = make_method(config.method, **inputs.recipe)
    key = jax.random.key(config.seed)
    state = method.init(key, first, inputs.frozen)
    state, key, first_bad = sharding.replicate((state, key, jnp.int32(0)))
    batch = sharding.put_batch({k: batch[k] for k in method.reads}, batch_sharding)
    compiled = device.compile_step(make_step(method, replicated), state, first_bad, batch, key)

    def call() -> None:
        nonlocal state
        state, _, _ = compiled(state, first_bad, batch, key)
        jax.block_until_ready(state)

    return call


def init_batch(config, source) -> dict:
    """A fixed set of training items spread over the dataset, for shapes and data-fitted constants."""
    count = min(len(source), config.train.init_items)
    picks = np.linspace(0, len(source) - 1, count).round().astype(int)
    return source.read(picks)
