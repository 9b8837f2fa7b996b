"""CycleGAN's generator (Zhu 2017; Johnson 2016): two strides down, residual blocks, two steps up."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.layers import Conv, InstanceNorm, upsample


class ReflectConv(nn.Module):
    """Convolution of stride 1 padded by reflection, [B, H, W, C] -> [B, H, W, features]."""

    features: int
    kernel_size: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        p = self.kernel_size // 2
        x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), mode="reflect")
        x = Conv(self.features, self.kernel_size, dtype=self.dtype, name="conv")(x)
        return x[:, p:-p, p:-p]  # what the zeros of "SAME" touched is cut off


class ResnetGenerator(nn.Module):
    """[B, H, W, C] -> [B, H, W, out_channels] in (-1, 1); H, W divisible by 4.

    c7s1-64, d128, d256, `num_blocks` residual blocks, u128, u64, c7s1 with base_channels 64; instance
    norm. The steps up are nearest-neighbour doubling and a 3x3 convolution, with as many parameters as
    the original's transposed convolution and without its checkerboards (Odena 2016).
    """

    out_channels: int
    base_channels: int
    num_blocks: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        c, dtype = self.base_channels, self.dtype

        def activate(h):
            return jax.nn.relu(InstanceNorm()(h))

        h = activate(ReflectConv(c, 7, dtype, name="stem")(x))
        for i, width in enumerate((2 * c, 4 * c)):
            h = activate(Conv(width, stride=2, dtype=dtype, name=f"down{i}")(h))
        for i in range(self.num_blocks):
            r = activate(ReflectConv(4 * c, dtype=dtype, name=f"block{i}_conv1")(h))
            h = h + InstanceNorm()(ReflectConv(4 * c, dtype=dtype, name=f"block{i}_conv2")(r))
        for i, width in enumerate((2 * c, c)):
            h = activate(Conv(width, dtype=dtype, name=f"up{i}")(upsample(h)))
        h = ReflectConv(self.out_channels, 7, dtype, name="head")(h)
        return jnp.tanh(h.astype(jnp.float32))
