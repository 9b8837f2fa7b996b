"""MONAI's autoencoder and diffusion U-Net, built from this project's blocks. NHWC.

Same architecture, parameters and arithmetic as `nets_torch`: `python -m benchmarks.check` compares the
outputs on carried weights. Submodules bear MONAI's names, so that `carry` only has to rename leaves.
"""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.models.conv import prepare_params
from cldm_jax.models.layers import (
    KERNEL_INIT,
    Conv,
    Dense,
    GroupNorm,
    ResBlock,
    SelfAttention,
    timestep_embedding,
    upsample,
)

HEAD_CHANNELS = 64  # of the U-Net's attention; the autoencoder's has a single head
AE_GROUPS, UNET_GROUPS = 16, 32
RES_BLOCKS = 2  # per level


def prepare_variables(variables):
    """What inference takes instead of `variables`: computed once per checkpoint, outside jit."""
    return {**variables, "params": prepare_params(variables["params"])}


class CentredDownsample(nn.Module):
    """3x3 convolution of stride 2 padded by one on every side, [B, H, W, C] -> [B, H/2, W/2, C].

    `Conv` pads even sizes on the right only, as MONAI's autoencoder does; its U-Net pads both sides.
    """

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        kernel = self.param("kernel", KERNEL_INIT, (3, 3, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias[None, None, None]


class TimeResBlock(nn.Module):
    """GN-SiLU-conv, plus the projected embedding, GN-SiLU-conv, plus the skip.

    x [B, H, W, C], emb [B, E] after its SiLU -> [B, H, W, features].
    """

    features: int

    @nn.compact
    def __call__(self, x, emb):
        h = Conv(self.features, name="conv1")(GroupNorm(UNET_GROUPS, name="norm1")(x))
        h = h + Dense(self.features, name="time_emb_proj")(emb)[:, None, None]
        h = Conv(self.features, name="conv2_zero")(GroupNorm(UNET_GROUPS, name="norm2")(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="skip_connection")(x)
        return x + h


def _block_names():
    """Names of MONAI's flat block list, in its order."""
    return (f"blocks.{i}" for i in itertools.count())


def _middle(h, names):
    """Residual block, single-head attention, residual block at constant width."""
    width = h.shape[-1]
    h = ResBlock(width, AE_GROUPS, name=next(names))(h)
    h = SelfAttention(AE_GROUPS, head_channels=width, name=next(names))(h)
    return ResBlock(width, AE_GROUPS, name=next(names))(h)


class Encoder(nn.Module):
    """[B, H, W, 1] -> [B, H/f, W/f, latent_channels]."""

    channels: Sequence[int]
    latent_channels: int

    @nn.compact
    def __call__(self, x):
        names = _block_names()
        h = Conv(self.channels[0], name=next(names))(x)
        for level, width in enumerate(self.channels):
            for _ in range(RES_BLOCKS):
                h = ResBlock(width, AE_GROUPS, name=next(names))(h)
            if level < len(self.channels) - 1:
                h = Conv(width, stride=2, name=f"{next(names)}.conv")(h)
        h = _middle(h, names)
        h = GroupNorm(AE_GROUPS, activate=False, name=next(names))(h)
        return Conv(self.latent_channels, name=next(names))(h)


class Decoder(nn.Module):
    """[B, h, w, latent_channels] -> [B, h*f, w*f, 1]."""

    channels: Sequence[int]

    @nn.compact
    def __call__(self, z):
        names = _block_names()
        h = _middle(Conv(self.channels[-1], name=next(names))(z), names)
        for level, width in reversed(list(enumerate(self.channels))):
            for _ in range(RES_BLOCKS):
                h = ResBlock(width, AE_GROUPS, name=next(names))(h)
            if level > 0:
                h = Conv(width, name=f"{next(names)}.postconv")(upsample(h))
        h = GroupNorm(AE_GROUPS, activate=False, name=next(names))(h)
        return Conv(1, name=next(names))(h)


class Autoencoder(nn.Module):
    """MONAI's AutoencoderKL; factor f = 2^(levels - 1)."""

    channels: Sequence[int] = (32, 64, 128)
    latent_channels: int = 4

    def setup(self):
        self.encoder = Encoder(self.channels, self.latent_channels)
        self.decoder = Decoder(self.channels)
        self.quant_conv_mu = Conv(self.latent_channels, 1)
        self.quant_conv_log_sigma = Conv(self.latent_channels, 1)
        self.post_quant_conv = Conv(self.latent_channels, 1)

    def encode(self, x):
        """[B, H, W, 1] -> mean, log-variance [B, h, w, C]."""
        h = self.encoder(x)
        return self.quant_conv_mu(h), jnp.clip(self.quant_conv_log_sigma(h), -30.0, 20.0)

    def decode(self, z):
        """[B, h, w, C] -> [B, H, W, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x, key):
        """Reconstruction of a posterior sample, mean, log-variance."""
        mean, logvar = self.encode(x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return self.decode(z), mean, logvar


class UNet(nn.Module):
    """MONAI's DiffusionModelUNet with attention on every level but the first.

    x [B, h, w, 2C] (noisy latent, source latent), t [B], code [B] -> [B, h, w, C].
    """

    channels: Sequence[int] = (64, 128, 256)
    latent_channels: int = 4
    num_classes: int = 4

    @nn.compact
    def __call__(self, x, t, code):
        width, last = self.channels[0], len(self.channels) - 1
        emb = Dense(4 * width, name="time_embed.0")(timestep_embedding(t, width))
        emb = Dense(4 * width, name="time_embed.2")(jax.nn.silu(emb))
        emb = emb + nn.Embed(self.num_classes, 4 * width, name="class_embedding")(code)
        emb = jax.nn.silu(emb)

        def block(h, level, where, index):
            h = TimeResBlock(self.channels[level], name=f"{where}.resnets.{index}")(h, emb)
            return attend(h, f"{where}.attentions.{index}") if level > 0 else h

        def attend(h, name):
            return SelfAttention(UNET_GROUPS, head_channels=HEAD_CHANNELS, name=name)(h)

        h = Conv(width, name="conv_in")(x)
        skips = [h]
        for level in range(last + 1):
            where = f"down_blocks.{level}"
            for index in range(RES_BLOCKS):
                h = block(h, level, where, index)
                skips.append(h)
            if level < last:
                h = CentredDownsample(name=f"{where}.downsampler.op")(h)
                skips.append(h)
        h = TimeResBlock(self.channels[-1], name="middle_block.resnet_1")(h, emb)
        h = attend(h, "middle_block.attention")
        h = TimeResBlock(self.channels[-1], name="middle_block.resnet_2")(h, emb)
        for level in range(last, -1, -1):
            where = f"up_blocks.{last - level}"
            for index in range(RES_BLOCKS + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), level, where, index)
            if level > 0:
                name = f"{where}.upsampler.postconv"
                h = Conv(self.channels[level], name=name)(upsample(h))
        h = GroupNorm(UNET_GROUPS, name="out.0")(h)
        return Conv(self.latent_channels, name="out.2_zero")(h)
