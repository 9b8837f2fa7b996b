"""The U-Net body shared by the image baseline and the latent denoiser, and the image U-Net itself.

One family on purpose: the baseline and the latent network differ in the grid they work on and in the
time code, not in the quality of their blocks. After Ronneberger 2015, with GroupNorm residual blocks
(Ho 2020) in place of BatchNorm.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.layers import Conv, Dense, GroupNorm, ResBlock, SelfAttention, upsample


class UNet(nn.Module):
    """x [B, H, W, C], emb [B, E] -> [B, H, W, out_channels]; H, W divisible by 2^(levels-1)."""

    out_channels: int
    base_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attn_levels: Sequence[int]
    groups: int = 8
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        res = nn.remat(ResBlock) if self.remat else ResBlock
        widths = [self.base_channels * m for m in self.channel_mult]
        last = len(widths) - 1

        def block(h, width, level, name):
            h = res(width, self.groups, self.dtype, name=name)(h, emb)
            if level in self.attn_levels:
                h = SelfAttention(self.groups, dtype=self.dtype, name=f"{name}_attn")(h)
            return h

        h = Conv(widths[0], dtype=self.dtype, name="stem")(x)
        skips = [h]
        for i, width in enumerate(widths):
            for j in range(self.num_res_blocks):
                h = block(h, width, i, f"down{i}_{j}")
                skips.append(h)
            if i < last:
                h = Conv(widths[i + 1], stride=2, dtype=self.dtype, name=f"down{i}_pool")(h)
        h = block(h, widths[-1], last, "middle")
        for i in range(last, -1, -1):
            if i < last:
                h = Conv(widths[i], dtype=self.dtype, name=f"up{i}_conv")(upsample(h))
            for j in range(self.num_res_blocks):
                h = block(jnp.concatenate([h, skips.pop()], -1), widths[i], i, f"up{i}_{j}")
        h = jnp.concatenate([h, skips.pop()], -1)
        h = GroupNorm(self.groups, name="norm_out")(h)
        return Conv(self.out_channels, dtype=self.dtype, name="out_zero")(h).astype(jnp.float32)


class ClassUNet(nn.Module):
    """U-Net regression of the target image from source slices and the target's class code.

    source [B, H, W, S], label [B] int -> [B, H, W, 1].
    """

    num_classes: int
    unet: Any  # keywords of UNet without out_channels

    @nn.compact
    def __call__(self, source, label):
        width = 4 * self.unet["base_channels"]
        emb = nn.Embed(self.num_classes, width, name="class_embed")(label)
        emb = jax.nn.silu(Dense(width, name="emb")(emb))
        return UNet(out_channels=1, **self.unet, name="unet")(source, emb)
