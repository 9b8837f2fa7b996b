"""What every single-network method shares: the state it starts from and the update it applies."""

import jax
import jax.numpy as jnp
import optax

from cldm_jax.runtime.optim import make_optimizer, update_ema
from cldm_jax.runtime.train_state import TrainState

OWN = ("ema_decay", "accumulate")  # settings of the update that the optimiser does not take


def optimizer_of(optim: dict) -> optax.GradientTransformation:
    return make_optimizer(**{k: v for k, v in optim.items() if k not in OWN})


def mean_gradient(grad_fn, rows, parts: int):
    """(loss, metrics, gradients) of grad_fn(rows) -> ((loss, metrics), gradients), averaged over `parts`
    of the rows [B, ...], one after the other. A part is every parts-th row: it stays on its device.
    """
    if parts == 1:
        (loss, metrics), grads = grad_fn(rows)
        return loss, metrics, grads

    def split(x):
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        (loss, metrics), grads = grad_fn(part)
        return jax.tree.map(jnp.add, total, (loss, metrics, grads)), None

    rows = jax.tree.map(split, rows)
    (loss, metrics), grads = jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, metrics, grads))
    total, _ = jax.lax.scan(add, zeros, rows)
    return jax.tree.map(lambda x: x / parts, total)


def make_update(loss_fn, optim: dict, draw=lambda rng, batch: {}):
    """(init_state, train_step) for `loss_fn(params, state, batch, noise) -> (loss, {name: scalar})`.

    draw(rng, batch) -> noise, arrays with the batch's leading axis: drawn for the whole batch, so that
    its parts see the same numbers as all of it at once. loss and metrics are means over rows. optim:
    keywords of `make_optimizer`, `ema_decay`, and `accumulate`, the parts of a batch whose gradients are
    averaged before the update (activations of one part are in memory at a time; B divisible by it).
    """
    ema_decay, parts = optim["ema_decay"], optim.get("accumulate", 1)
    tx = optimizer_of(optim)

    def init_state(params, frozen) -> TrainState:
        params = jax.tree.map(jnp.asarray, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema_params=jax.tree.map(jnp.copy, params),  # a copy: both trees are donated
            opt_state=tx.init(params),
            extra=(),
            frozen=jax.tree.map(jnp.asarray, frozen),
        )

    def train_step(state: TrainState, batch, rng):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        loss, metrics, grads = mean_gradient(
            lambda rows: grad_fn(state.params, state, *rows), (batch, draw(rng, batch)), parts
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema_params, params, state.step, ema_decay)
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}
        state = state._replace(
            step=state.step + 1, params=params, ema_params=ema, opt_state=opt_state
        )
        return state, metrics

    return init_state, train_step
