"""Optimiser and parameter averaging, one recipe for every method."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

OPTIMIZERS, DECAYS = ("adamw", "muon"), ("cosine", "second_half")
MUON_MOMENTUM = 0.95  # Jordan's
MUON_ITERATIONS = 5  # of Newton and Schulz
MUON_RMS = 0.2  # of an update before the learning rate, as Adam's is in practice (Liu 2502.16982)
MUON_CHANNELS = 16  # outputs of a kernel, at least: a head of few is no matrix worth turning


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
    optimizer: str = "adamw",  # likewise
) -> optax.GradientTransformation:
    """Linear warm-up, decay to zero at the last step, global-norm clipping.

    optimizer: "adamw", or "muon" (Jordan 2024): the momentum of every kernel, as a matrix [fan-in,
    fan-out], is orthogonalised and scaled to the RMS of Adam's updates (Liu 2502.16982, eq. 4), so that
    one learning rate serves both; biases, gains, embeddings and heads of few channels stay with NAdamW.
    decay: "cosine", or "second_half" (constant, then linear: CycleGAN's and pix2pix's). Weight decay acts
    on kernels only (rank >= 2), not on biases and norm gains; with "muon" on those too. ValueError for
    names that are not known.
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
        raise ValueError(f"unknown decay {decay!r}; known: {', '.join(DECAYS)}")

    def is_kernel(params):
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    if optimizer == "adamw":
        update = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=is_kernel)
    elif optimizer == "muon":
        update = _looped(
            optax.contrib.muon(
                schedule,
                ns_steps=MUON_ITERATIONS,
                beta=MUON_MOMENTUM,
                weight_decay=weight_decay,
                weight_decay_mask=is_kernel,
                adam_b1=b1,
                adam_b2=b2,
                adam_weight_decay=weight_decay,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=MUON_RMS,
            )
        )
    else:
        raise ValueError(f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)


def _looped(muon: optax.GradientTransformation) -> optax.GradientTransformation:
    """`muon` with its iterations as a loop of the program, not written out: the same bits from a program
    a quarter shorter (a CLDM's step of 24 channels: 51,068 lines of HLO become 37,854). Optax loops where
    each iteration has coefficients of its own; the state keeps the one row that it has without.
    """

    def with_coefficients(state, change):
        is_muon = lambda s: isinstance(s, optax.contrib.MuonState)  # noqa: E731
        return jax.tree.map(
            lambda s: s._replace(ns_coeffs=change(s.ns_coeffs)) if is_muon(s) else s,
            state,
            is_leaf=is_muon,
        )

    def update(updates, state, params=None):
        state = with_coefficients(state, lambda row: jnp.tile(row, (MUON_ITERATIONS, 1)))
        updates, state = muon.update(updates, state, params)
        return updates, with_coefficients(state, lambda rows: rows[0])

    return optax.GradientTransformation(muon.init, update)


def _muon_axes(params):
    """Which leaves Muon takes, and which of their axes are the matrix's: None is left to AdamW."""

    def axes(path, p):
        if path[-1].key != "kernel" or p.shape[-1] < MUON_CHANNELS:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def update_ema(ema, params, step, decay: float):
    """Exponential moving average with the decay ramped as min(decay, (1 + n)/(10 + n)), n = step."""
    n = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
