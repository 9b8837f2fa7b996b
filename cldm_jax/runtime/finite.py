"""The guard of the training loop: an update with a NaN or an infinity in it is not applied."""

import jax
import jax.numpy as jnp


def all_finite(tree):
    """Whether every float of a tree is finite, bool []."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


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
