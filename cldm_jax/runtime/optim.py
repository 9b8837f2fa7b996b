"""Optimiser and parameter averaging, one recipe for every method."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    warmup_steps: int,
    num_train_steps: int,
    weight_decay: float,
    clip_norm: float,
    decay: str = "cosine",  # that of the runs made before there was a choice
) -> optax.GradientTransformation:
    """AdamW with linear warm-up, decay to zero at the last step, global-norm clipping.

    decay: "cosine", or "second_half" (constant, then linear: CycleGAN's and pix2pix's). Weight decay
    acts on kernels only (rank >= 2), not on biases and norm gains. Raises ValueError.
    """
    warmup = min(warmup_steps, num_train_steps // 2)  # of one step: none
    if decay == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, num_train_steps)
    elif decay == "second_half":
        half = num_train_steps // 2
        schedule = optax.join_schedules(
            [
                optax.linear_schedule(0.0, learning_rate, warmup),
                optax.linear_schedule(learning_rate, 0.0, num_train_steps - half, half - warmup),
            ],
            [warmup],
        )
    else:
        raise ValueError(f"unknown decay {decay!r}; known: cosine, second_half")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            b1=b1,
            b2=b2,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )


def update_ema(ema, params, step, decay: float):
    """Exponential moving average with the decay ramped as min(decay, (1 + n)/(10 + n)), n = step."""
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
