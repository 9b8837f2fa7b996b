"""Three readings of the abstract: what each noises, what its network sees, how it samples.

  concat  denoise the target latent given the source and the target's class code (the default)
  sdedit  denoise any modality's latent given only its class; sample by noising the source latent part
          of the way and denoising towards the target class (the literal "noise, then denoise")
  bridge  a Brownian bridge from the source latent to the target latent, with the class code

`d` are the diffusion's settings and `s` the sampling's (`latent_diffusion.make`); `zs` is the middle
source slice's standardised latent, [B, h, w, C] like the target's `z0`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cldm_jax.diffusion import parametrisation, samplers
from cldm_jax.diffusion.schedule import SCHEDULES, ZERO_SNR


class Reading(NamedTuple):
    """What tells one reading from another."""

    sees_source: bool  # beside the noisy latent, and so at every step
    from_source: bool  # begins at zs; elsewhere zs is None
    check: Callable  # (d) -> None; ValueError for settings that cannot work
    add_noise: Callable  # (d, z0, zs, t [B], eps) -> (zt, regression target)
    # (zs, like) -> the latent at t = T - 1 without noise, like `like` [B, h, w, C], from which one
    # evaluation gives the mean; None: there is none
    blank: Callable | None
    # (d, s, denoise_fn, zs, start, noise_fn) -> z0; start: standard normal [B, h, w, C]; noise_fn(i): of
    # step i
    sample: Callable


def alphas_bar(d):
    """Of the steps 0 .. T - 1, float32 [T]."""
    return SCHEDULES[d["schedule"]](d["num_timesteps"])


def _check_concat(d) -> None:
    if max(d["onestep_share"]) > 0 and d["target"] == "eps":
        raise ValueError("onestep rows need a v or x0 target")
    if max(d["onestep_share"]) > 0 and d["schedule"] not in ZERO_SNR:
        raise ValueError(f"onestep rows need zero terminal SNR: schedule {' or '.join(ZERO_SNR)}")


def _check_sdedit(d) -> None:
    if d["source_encoding"] != "latent":
        raise ValueError("conditioning 'sdedit' needs source_encoding 'latent'")
    if max(d["onestep_share"]) > 0:
        raise ValueError(
            "conditioning 'sdedit' has no onestep rows: set onestep_share to (0.0, 0.0)"
        )


def _check_bridge(d) -> None:
    if d["target"] != "x0":
        raise ValueError("conditioning 'bridge' predicts x0: set target to 'x0'")
    off_settings = {"min_snr_gamma": 0.0, "gaussian_denoiser": False, "noise_weight_power": 0.0}
    for name, off in off_settings.items():
        if d[name]:
            raise ValueError(f"conditioning 'bridge' has no noise to weigh: set {name} to {off}")


def _diffused(d, z0, zs, t, eps):
    a, sigma = parametrisation.coefficients(alphas_bar(d), t, z0.ndim)
    zt = parametrisation.add_noise(z0, eps, a, sigma)
    return zt, parametrisation.make_target(d["target"], z0, eps, a, sigma)


def _bridged(d, z0, zs, t, eps):
    m, delta = samplers.bridge_coefficients(t, d["num_timesteps"], d["bridge_variance"])
    m, delta = (v[:, None, None, None] for v in (m, delta))
    return (1 - m) * z0 + m * zs + jnp.sqrt(delta) * eps, z0


def _zero(zs, like):
    return jnp.zeros_like(like)


def _source(zs, like):
    return zs


def _sample_concat(d, s, denoise_fn, zs, start, noise_fn, t_start=None):
    return samplers.ddim(
        denoise_fn,
        start,
        alphas_bar(d),
        target=d["target"],
        num_sampling_steps=s["num_sampling_steps"],
        eta=s["eta"],
        noise_fn=noise_fn,
        t_start=t_start,
        jump_from=s["jump_from"],
    )


def sdedit_steps(d, s) -> int:
    """Of the diffusion, those that the source is noised by."""
    return max(round(s["sdedit_strength"] * d["num_timesteps"]), 1)


def _sample_sdedit(d, s, denoise_fn, zs, start, noise_fn):
    t_start = sdedit_steps(d, s) - 1
    ab = alphas_bar(d)[t_start]
    start = jnp.sqrt(ab) * zs + jnp.sqrt(1 - ab) * start
    return _sample_concat(d, s, denoise_fn, zs, start, noise_fn, t_start)


def _sample_bridge(d, s, denoise_fn, zs, start, noise_fn):
    return samplers.bridge(
        denoise_fn,
        zs,
        d["num_timesteps"],
        variance=d["bridge_variance"],
        num_sampling_steps=s["num_sampling_steps"],
        noise_fn=lambda i: start,
    )


READINGS = {
    "concat": Reading(True, False, _check_concat, _diffused, _zero, _sample_concat),
    "sdedit": Reading(False, True, _check_sdedit, _diffused, None, _sample_sdedit),
    "bridge": Reading(True, True, _check_bridge, _bridged, _source, _sample_bridge),
}
