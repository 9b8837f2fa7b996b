"""Classifier-free guidance (Ho & Salimans 2022) as a transform of the denoising function."""

import jax.numpy as jnp


def with_guidance(denoise_fn, denoise_null_fn, guidance_scale: float):
    """eps_hat = null + scale * (conditional - null), on whatever the network predicts.

    Linear in the prediction, so the same formula serves eps, x0 and v. scale 1 is the conditional
    model itself and costs one evaluation; any other scale costs two.
    """
    if guidance_scale == 1.0:
        return denoise_fn

    def guided(xt, t):
        null = denoise_null_fn(xt, t)
        return null + jnp.float32(guidance_scale) * (denoise_fn(xt, t) - null)

    return guided
