"""What the network predicts: eps, x0 or v, and how each gives back x0 and eps.

a = sqrt(alphas_bar), s = sqrt(1 - alphas_bar);  zt = a x0 + s eps
v = a eps - s x0                                              (Salimans & Ho 2022, section 4)
"""

import jax.numpy as jnp

TARGETS = ("eps", "x0", "v")


def coefficients(alphas_bar, t, ndim: int):
    """sqrt(alphas_bar[t]) and sqrt(1 - alphas_bar[t]) shaped [B, 1, ..., 1] to scale ndim arrays."""
    ab = alphas_bar[t].reshape(t.shape + (1,) * (ndim - t.ndim))
    return jnp.sqrt(ab), jnp.sqrt(1 - ab)


def add_noise(x0, eps, a, s):
    """DDPM eq. 4."""
    return a * x0 + s * eps


def make_target(target: str, x0, eps, a, s):
    if target == "eps":
        return eps
    if target == "x0":
        return x0
    if target == "v":
        return a * eps - s * x0
    raise ValueError(f"unknown target {target!r}; known: {TARGETS}")


def to_x0_eps(target: str, prediction, xt, a, s):
    """The clean sample and the noise that the prediction implies at this noise level.

    `eps` divides by a, which is 0 at the last step of a zero-terminal-SNR schedule: there x0 is not
    identifiable from eps; a tiny floor keeps the arithmetic finite and the answer useless, which is why
    one-step read-out asks for v or x0 (checked where the method is made).
    """
    if target == "eps":
        return (xt - s * prediction) / jnp.maximum(a, 1e-4), prediction
    if target == "x0":
        return prediction, (xt - a * prediction) / jnp.maximum(s, 1e-4)
    return a * xt - s * prediction, s * xt + a * prediction


def gaussian_x0(mean, variance, xt, a, s):
    """E[x0 | xt] of x0 ~ N(mean, variance): the linear (Wiener) denoiser. At a = 0 it is the mean."""
    return mean + a * variance / (a**2 * variance + s**2) * (xt - a * mean)


def min_snr_weight(target: str, alphas_bar, t, gamma: float):
    """Min-SNR-gamma loss weight (Hang 2023, 2303.09556), [B]."""
    ab = alphas_bar[t]
    ratio = ab / jnp.maximum(1 - ab, 1e-8)  # of signal to noise
    clipped = jnp.minimum(ratio, gamma)
    if target == "x0":
        return clipped
    if target == "eps":
        return clipped / jnp.maximum(ratio, 1e-8)
    return clipped / (ratio + 1)
