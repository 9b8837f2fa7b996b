"""What every single-network method shares: the state it starts from and the update it applies."""

import jax
import jax.numpy as jnp
import optax

from cldm_jax.runtime.optim import make_optimizer, update_ema
from cldm_jax.runtime.train_state import TrainState


def make_update(loss_fn, optim: dict):
    """(init_state, train_step) for `loss_fn(params, state, batch, rng) -> (loss, {name: scalar})`.

    optim: keywords of `make_optimizer` plus `ema_decay`.
    """
    ema_decay = optim["ema_decay"]
    tx = make_optimizer(**{k: v for k, v in optim.items() if k != "ema_decay"})

    def init_state(params, frozen, extra=()) -> TrainState:
        params = jax.tree.map(jnp.asarray, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.copy, params),  # a copy: both trees are donated
            opt_state=tx.init(params),
            extra=extra,
            frozen=jax.tree.map(jnp.asarray, frozen),
        )

    def train_step(state: TrainState, batch, rng):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = grad_fn(state.params, state, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema_params, params, state.step, ema_decay)
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}
        state = state._replace(
            step=state.step + 1, params=params, ema_params=ema, opt_state=opt_state
        )
        return state, metrics

    return init_state, train_step
