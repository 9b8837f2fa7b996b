"""Noise schedules: one array of cumulative products, `alphas_bar` [num_timesteps].

zt = sqrt(alphas_bar[t]) z0 + sqrt(1 - alphas_bar[t]) eps      (DDPM, Ho 2020, eq. 4)

Those of ZERO_SNR end at zero signal (zero terminal SNR, Lin et al. 2305.08891): the last step is pure
noise, so sampling may start there and a one-step answer at t = T - 1 is defined for v and x0 targets.
"scaled_linear_plain" leaves a little signal; it is for networks that were trained with it elsewhere.
"""

import jax.numpy as jnp
import numpy as np


def cosine(num_timesteps: int):
    """alpha = cos(pi/2 * (t+1)/T) (Nichol & Dhariwal 2021 without the offset): zero at t = T - 1."""
    u = np.arange(1, num_timesteps + 1, dtype=np.float64) / num_timesteps
    alphas_bar = np.cos(0.5 * np.pi * u) ** 2
    alphas_bar[-1] = 0.0  # cos(pi/2) is 6e-17 in floating point
    return jnp.asarray(alphas_bar, jnp.float32)


def scaled_linear(num_timesteps: int):
    """CompVis' latent-diffusion betas, rescaled to zero terminal SNR (Lin et al., algorithm 1)."""
    root = np.sqrt(_scaled_linear(num_timesteps))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return jnp.asarray(root**2, jnp.float32)


def scaled_linear_plain(num_timesteps: int):
    """CompVis' latent-diffusion betas as they are: sqrt(alphas_bar[T - 1]) is 0.012 at 1000 steps."""
    return jnp.asarray(_scaled_linear(num_timesteps), jnp.float32)


def _scaled_linear(num_timesteps: int) -> np.ndarray:
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, num_timesteps, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


SCHEDULES = {
    "cosine": cosine,
    "scaled_linear": scaled_linear,
    "scaled_linear_plain": scaled_linear_plain,
}
ZERO_SNR = ("cosine", "scaled_linear")  # their last step is pure noise


def sampling_timesteps(
    num_timesteps: int, num_sampling_steps: int, jump_from: float = 0.0
) -> np.ndarray:
    """Sampling steps from T - 1 downwards, [num_sampling_steps], evenly spaced.

    The last is at max(jump_from, 1 / num_sampling_steps) of T, from where the sampler jumps to the clean
    image. Up to 1 / num_sampling_steps that is "trailing" (Lin et al. table 2).
    """
    last = max(jump_from * num_timesteps, num_timesteps / num_sampling_steps)
    steps = np.linspace(num_timesteps, last, num_sampling_steps)
    return np.round(steps).astype(np.int32) - 1
