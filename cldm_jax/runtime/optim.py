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
) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero at the last step, global-norm clipping.

    Decay acts on kernels only (rank >= 2), not on biases and norm gains.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=min(warmup_steps, max(1, num_train_steps // 2)),
        decay_steps=num_train_steps,
    )
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
