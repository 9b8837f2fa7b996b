"""The denoiser of the latent diffusion model: noisy latent, condition, time and class code in."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.layers import Dense, timestep_embedding
from cldm_jax.models.unet import UNet


class LatentUNet(nn.Module):
    """(zt [B, h, w, C], t [B] int, label [B] int, condition [B, h, w, S] or None) -> [B, h, w, C].

    Time and class embeddings are added and steer every block by FiLM; the condition is concatenated
    to the noisy latent (SR3/Palette-style concat conditioning). The output is whatever the
    parametrisation says (eps, x0 or v); this network knows nothing of noise levels.
    """

    latent_channels: int
    num_classes: int
    unet: Any  # keywords of UNet without out_channels

    @nn.compact
    def __call__(self, zt, t, label, condition=None):
        base = self.unet["base_channels"]
        emb = Dense(4 * base, name="time1")(timestep_embedding(t, base))
        emb = Dense(4 * base, name="time2")(jax.nn.silu(emb))
        emb = emb + nn.Embed(self.num_classes, 4 * base, name="class_embed")(label)
        x = zt if condition is None else jnp.concatenate([zt, condition], axis=-1)
        unet = UNet(out_channels=self.latent_channels, **self.unet, name="unet")
        return unet(x, jax.nn.silu(emb))
