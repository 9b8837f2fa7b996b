"""Samplers: each takes a denoising function, not a model, and runs as one `lax.scan`.

denoise_fn(xt [B, ...], t [B] int) -> prediction [B, ...] (eps, x0 or v as `target` says).
No clipping: latents have no natural range.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.diffusion.parametrisation import to_x0_eps
from cldm_jax.diffusion.schedule import sampling_timesteps

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]


def ddim(
    denoise_fn: DenoiseFn,
    xT,
    alphas_bar,
    *,
    target: str,
    num_sampling_steps: int,
    eta: float,
    noise_fn: Callable[[int], jax.Array],
    t_start: int | None = None,
    jump_from: float = 0.0,
):
    """DDIM (Song 2020, eq. 12 and 16) from xT at step `t_start` (default T - 1), at the steps of
    `sampling_timesteps`.

    noise_fn(i) -> standard normal like xT for sampling step i; called only where eta > 0.
    Returns x0 [B, ...].
    """
    num_timesteps = alphas_bar.shape[0]
    steps = num_timesteps if t_start is None else t_start + 1
    t_list = sampling_timesteps(steps, num_sampling_steps, jump_from)
    t_next = np.concatenate([t_list[1:], [-1]]).astype(np.int32)  # -1: clean

    def body(xt, inputs):
        i, t, t_prev = inputs
        ab = alphas_bar[t]
        ab_prev = jnp.where(t_prev >= 0, alphas_bar[jnp.maximum(t_prev, 0)], 1.0)
        prediction = denoise_fn(xt, jnp.full(xt.shape[:1], t, jnp.int32))
        x0_hat, eps_hat = to_x0_eps(target, prediction, xt, jnp.sqrt(ab), jnp.sqrt(1 - ab))
        if eta > 0:
            ratio = (1 - ab_prev) / (1 - ab) * (1 - ab / jnp.maximum(ab_prev, 1e-12))
            sigma = eta * jnp.sqrt(jnp.maximum(ratio, 0.0))  # eq. 16
            noise = sigma * noise_fn(i)
        else:
            sigma, noise = 0.0, 0.0
        direction = jnp.sqrt(jnp.maximum(1 - ab_prev - sigma**2, 0.0)) * eps_hat
        return jnp.sqrt(ab_prev) * x0_hat + direction + noise, None  # eq. 12

    indices = np.arange(num_sampling_steps, dtype=np.int32)
    x0, _ = jax.lax.scan(body, xT, (indices, t_list, t_next))
    return x0


def with_guidance(denoise_fn, weak_fn, scale: float):
    """weak + scale * (denoise - weak), away from what a weaker model says: the model without its class
    (classifier-free guidance, Ho & Salimans 2022), or that of an earlier step of its training
    (autoguidance, Karras et al. 2024, eq. 3).

    Linear in the prediction, so the same formula serves eps, x0 and v. scale 1 is the model itself and
    costs no evaluation of the weaker one.
    """
    if scale == 1.0:
        return denoise_fn

    def guided(xt, t):
        weak = weak_fn(xt, t)
        return weak + jnp.float32(scale) * (denoise_fn(xt, t) - weak)

    return guided


def onestep(denoise_fn: DenoiseFn, xt, alphas_bar, *, target: str):
    """The x0 prediction at t = T - 1 of an `xt` without noise: one evaluation, the posterior mean.

    Of a diffusion that is zero, an input the sampler never uses, so a network trained on such rows has a
    regression mode of its own; of a bridge the source. At zero terminal SNR x0_hat = a xt - s v = -v (v
    target) or the prediction itself (x0 target).
    """
    t = jnp.full(xt.shape[:1], alphas_bar.shape[0] - 1, jnp.int32)
    x0, _ = to_x0_eps(target, denoise_fn(xt, t), xt, jnp.float32(0.0), jnp.float32(1.0))
    return x0


def bridge_coefficients(t, num_timesteps: int, variance: float):
    """Brownian bridge between x0 (m = 0) and the source (m = 1): m and delta (BBDM, Li 2023, eq. 4).

    m = (t + 1)/T, delta = 4 * variance * m (1 - m): largest, `variance`, half way.
    """
    m = (t + 1) / num_timesteps
    # Compiled, m - m * m may round to less than 0 at m = 1, and its root would be NaN.
    return m, jnp.maximum(4 * variance * m * (1 - m), 0.0)


def bridge(
    denoise_fn: DenoiseFn,
    source,
    num_timesteps: int,
    *,
    variance: float,
    num_sampling_steps: int,
    noise_fn: Callable[[int], jax.Array],
):
    """Brownian-bridge sampling from the source latent; denoise_fn predicts x0. Deterministic after
    the first step (the noise it carries is reused, the bridge's counterpart of DDIM's eta = 0).

    At t = T - 1 the state is the source itself and carries no noise, so the first step draws it.
    """
    t_list = sampling_timesteps(num_timesteps, num_sampling_steps)
    t_next = np.concatenate([t_list[1:], [-1]]).astype(np.int32)

    def body(xt, inputs):
        i, t, t_prev = inputs
        m, delta = bridge_coefficients(t.astype(jnp.float32), num_timesteps, variance)
        m_prev, delta_prev = bridge_coefficients(
            t_prev.astype(jnp.float32), num_timesteps, variance
        )
        x0_hat = denoise_fn(xt, jnp.full(xt.shape[:1], t, jnp.int32))
        residual = (xt - (1 - m) * x0_hat - m * source) / jnp.sqrt(jnp.maximum(delta, 1e-12))
        noise = jnp.where(i == 0, noise_fn(0), residual)
        mean = (1 - m_prev) * x0_hat + m_prev * source
        return mean + jnp.sqrt(delta_prev) * noise, None

    indices = np.arange(num_sampling_steps, dtype=np.int32)
    x0, _ = jax.lax.scan(body, source, (indices, t_list, t_next))
    return x0
