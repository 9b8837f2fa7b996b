"""The U-Net body shared by the image baseline and the latent denoiser, and these two themselves.

One family on purpose: the baseline and the latent network differ in the grid they work on and in the
time code, not in the quality of their blocks. After Ronneberger 2015, with GroupNorm residual blocks
(Ho 2020) in place of BatchNorm.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    ResBlock,
    SelfAttention,
    depth_to_space,
    space_to_depth,
    timestep_embedding,
    upsample,
)


class AttentionGate(nn.Module):
    """Additive gate on a skip connection (Oktay 2018, eq. 1 and 2), [B, H, W, C] -> same.

    alpha = sigmoid(psi(relu(theta(skip) + phi(gate)))), one number per position; skip * alpha. The
    gating signal here has the skip's resolution already, so nothing is resampled.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, skip, gate):
        inner = max(1, skip.shape[-1] // 2)
        theta = Conv(inner, 1, dtype=self.dtype, name="theta")(skip)
        phi = Conv(inner, 1, dtype=self.dtype, name="phi")(gate)
        psi = Conv(1, 1, dtype=self.dtype, name="psi")(jax.nn.relu(theta + phi))
        return skip * jax.nn.sigmoid(psi.astype(jnp.float32)).astype(skip.dtype)


class UNet(nn.Module):
    """x [B, H, W, C], emb [B, E] -> [B, H, W, out_channels]; H, W divisible by 2^(levels-1).

    attention_gates: gates on all skips but those of the finest level, as in the Attention U-Net.
    attention: see SelfAttention. remat: recompute the blocks' activations in the backward pass.
    """

    out_channels: int
    base_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attn_levels: Sequence[int]
    groups: int = 8
    attention_gates: bool = False
    attention: str = "xla"
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
                attend = SelfAttention(
                    self.groups, attention=self.attention, dtype=self.dtype, name=f"{name}_attn"
                )
                h = attend(h)
            return h

        def join(h, skip, level, name):
            if self.attention_gates and level > 0:
                skip = AttentionGate(self.dtype, name=f"{name}_gate")(skip, h)
            return jnp.concatenate([h, skip], -1)

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
                name = f"up{i}_{j}"
                h = block(join(h, skips.pop(), i, name), widths[i], i, name)
        h = jnp.concatenate([h, skips.pop()], -1)
        h = GroupNorm(self.groups, name="norm_out")(h)
        return Conv(self.out_channels, dtype=self.dtype, name="out_zero")(h).astype(jnp.float32)


class ClassUNet(nn.Module):
    """U-Net regression of the target image from source slices and the target's class code.

    source [B, H, W, S], label [B] int -> [B, H, W, outputs]. stem_block: pixels of a cell each way; above
    1 the U-Net works on space-to-depth cells, the grid of the latent network, and loses nothing.
    """

    num_classes: int
    unet: Any  # keywords of UNet without out_channels
    stem_block: int = 1
    outputs: int = 1  # numbers a pixel

    @nn.compact
    def __call__(self, source, label):
        width = 4 * self.unet["base_channels"]
        emb = nn.Embed(self.num_classes, width, name="class_embed")(label)
        emb = jax.nn.silu(Dense(width, name="emb")(emb))
        x = space_to_depth(source, self.stem_block)
        out_channels = self.outputs * self.stem_block**2
        x = UNet(out_channels=out_channels, **self.unet, name="unet")(x, emb)
        return depth_to_space(x, self.stem_block)


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
