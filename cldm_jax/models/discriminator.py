"""PatchGAN discriminator (Isola 2017): a score for every overlapping patch, 70 x 70 at three layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.layers import Conv, InstanceNorm

SLOPE = 0.2  # of the leaky ReLU


class PatchDiscriminator(nn.Module):
    """[B, H, W, C] -> scores [B, H/2^n, W/2^n, 1] with n = num_layers; no sigmoid.

    4x4 convolutions; the last two have stride 1 and keep the size (the original loses a pixel each).
    """

    base_channels: int
    num_layers: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = x
        for i in range(self.num_layers + 1):
            width = self.base_channels * min(2**i, 8)
            stride = 2 if i < self.num_layers else 1
            h = Conv(width, 4, stride, dtype=self.dtype, name=f"conv{i}")(h)
            h = jax.nn.leaky_relu(h if i == 0 else InstanceNorm()(h), SLOPE)
        return Conv(1, 4, dtype=self.dtype, name="head")(h).astype(jnp.float32)
