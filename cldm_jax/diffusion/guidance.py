"""Guidance as a transform of the denoising function: away from what a weaker model says.

The weaker one is the model without its class (classifier-free guidance, Ho & Salimans 2022), or the model
of an earlier step of its training (autoguidance, Karras et al. 2024, "Guiding a Diffusion Model with a
Bad Version of Itself", eq. 3).
"""

import jax.numpy as jnp


def with_guidance(denoise_fn, weak_fn, scale: float):
    """weak + scale * (denoise - weak), on whatever the networks predict.

    Linear in the prediction, so the same formula serves eps, x0 and v. scale 1 is the model itself and
    costs no evaluation of the weaker one.
    """
    if scale == 1.0:
        return denoise_fn

    def guided(xt, t):
        weak = weak_fn(xt, t)
        return weak + jnp.float32(scale) * (denoise_fn(xt, t) - weak)

    return guided
