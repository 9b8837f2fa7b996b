"""What the adversarial baselines share: two optimisers in one step, an image pool, losses."""

import jax
import jax.numpy as jnp
import optax

from cldm_jax.errors import UserError
from cldm_jax.methods.common import optimizer_of
from cldm_jax.runtime.optim import update_ema
from cldm_jax.runtime.train_state import TrainState


def lsgan(scores, is_real: bool):
    """Least squares (Mao 2017): mean (D - 1)^2 or mean D^2."""
    return jnp.square(scores - float(is_real)).mean()


def cross_entropy(scores, is_real: bool):
    """The original GAN loss on logits, generator in its non-saturating form (Goodfellow 2014)."""
    return optax.sigmoid_binary_cross_entropy(scores, jnp.full_like(scores, is_real)).mean()


def make_pool(size: int, shape) -> dict:
    """An empty pool of `size` images of `shape` [H, W, C]."""
    return {"images": jnp.zeros((size, *shape)), "count": jnp.zeros((), jnp.int32)}


def query_pool(pool: dict, images, rng):
    """(images for the discriminator [B, H, W, C], pool) (Shrivastava 2017).

    Until the pool is full every image is stored and returned; then each is, with probability 1/2,
    swapped for a random one of the pool.
    """
    size = pool["images"].shape[0]

    def one(pool, item):
        image, key = item
        swap_key, place_key = jax.random.split(key)
        is_filling = pool["count"] < size
        place = jnp.where(is_filling, pool["count"], jax.random.randint(place_key, (), 0, size))
        is_swapped = jax.random.bernoulli(swap_key) & ~is_filling
        old = pool["images"][place]
        stored = jnp.where(is_filling | is_swapped, image, old)
        pool = {
            "images": pool["images"].at[place].set(stored),
            "count": jnp.minimum(pool["count"] + 1, size),
        }
        return pool, jnp.where(is_swapped, old, image)

    pool, out = jax.lax.scan(one, pool, (images, jax.random.split(rng, images.shape[0])))
    return out, pool


def _through_pools(pools: dict, fakes: dict, rng) -> tuple[dict, dict]:
    """(what the discriminators see, pools): images whose name has a pool have gone through it."""
    seen, pools = dict(fakes), dict(pools)
    for name, key in zip(sorted(pools), jax.random.split(rng, max(1, len(pools))), strict=False):
        seen[name], pools[name] = query_pool(pools[name], fakes[name], key)
    return seen, pools


def make_update(generator_loss, discriminator_loss, optim: dict):
    """(init_state, train_step) for two networks that play against each other.

    generator_loss(generators, discriminators, batch) -> (loss, ({name: scalar}, fakes));
    discriminator_loss(discriminators, batch, fakes) -> loss. `fakes` is a dict of images; where `extra`
    has a pool of the same name, they reach the discriminator through it. As in the original, the
    generators move first and the discriminators see the images made before that. optim: keywords of
    `make_optimizer`, for either side, plus `ema_decay`. Averaged parameters: generators' "forward".
    """
    if optim.get("accumulate", 1) > 1:
        reason = "two networks that play against each other move on whole batches"
        raise UserError(
            "config.recipe.optim.accumulate", reason, "Set it to 1 and lower batch_size."
        )
    ema_decay, tx = optim["ema_decay"], optimizer_of(optim)

    def init_state(generators, discriminators, pools) -> TrainState:
        params = {"generators": generators, "discriminators": discriminators}
        params = jax.tree.map(jnp.asarray, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.copy, params["generators"]["forward"]),
            opt_state={side: tx.init(tree) for side, tree in params.items()},
            extra=pools,
            frozen={},
        )

    def move(state, side, grads):
        updates, opt_state = tx.update(grads, state.opt_state[side], state.params[side])
        return optax.apply_updates(state.params[side], updates), opt_state

    def train_step(state: TrainState, batch, rng):
        generators, discriminators = state.params["generators"], state.params["discriminators"]
        grad_fn = jax.value_and_grad(generator_loss, has_aux=True)
        (loss, (metrics, fakes)), grads = grad_fn(generators, discriminators, batch)
        pooled, pools = _through_pools(state.extra, fakes, rng)
        d_loss, d_grads = jax.value_and_grad(discriminator_loss)(discriminators, batch, pooled)
        generators, g_opt = move(state, "generators", grads)
        discriminators, d_opt = move(state, "discriminators", d_grads)
        metrics = {
            **metrics,
            "loss": loss,
            "discriminator_loss": d_loss,
            "grad_norm": optax.tree.norm(grads),
        }
        return state._replace(
            step=state.step + 1,
            params={"generators": generators, "discriminators": discriminators},
            ema_params=update_ema(state.ema_params, generators["forward"], state.step, ema_decay),
            opt_state={"generators": g_opt, "discriminators": d_opt},
            extra=pools,
        ), metrics

    return init_state, train_step
