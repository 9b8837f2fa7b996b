"""The compiled step of a training, alone or many in one call, and its guard: an update with a NaN or an
infinity in it is not applied.
"""

import jax
import jax.numpy as jnp
import numpy as np


def all_finite(tree):
    """Whether every float of a tree is finite, bool []."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def is_same(a, b) -> bool:
    """Whether two trees hold the same values in the same places."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def guarded(train_step):
    """(state, first_bad, batch, rng) -> (state, first_bad, metrics) of a (state, batch, rng) step.

    first_bad int32 []: 0, or the number of the first step whose metrics or new parameters were not
    finite. From that step on the state stays what it was: parameters, average, optimiser and count. A
    gradient's NaN reaches the parameters in the same step, so they need no look of their own. XLA fuses
    the choice into the update; nothing is copied.
    """

    def step(state, first_bad, batch, rng):
        new, metrics = train_step(state, batch, rng)
        is_sound = all_finite((new.params, metrics)) & (first_bad == 0)
        first_bad = jnp.where(is_sound | (first_bad > 0), first_bad, state.step + 1)
        kept = jax.tree.map(lambda a, b: jnp.where(is_sound, a, b), new, state)
        return kept, first_bad, metrics

    return step


def make_step(method, replicated, read=None, length: int = 1):
    """The jitted step, (state, first_bad, batch, rng of the run) -> (state, first_bad, metrics), guarded;
    `state` is donated.

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


def init_batch(config, source) -> dict:
    """A fixed set of training items spread over the dataset, for shapes and data-fitted constants."""
    count = min(len(source), config.train.init_items)
    picks = np.linspace(0, len(source) - 1, count).round().astype(int)
    return source.read(picks)
