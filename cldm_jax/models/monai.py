"""MONAI's AutoencoderKL and DiffusionModelUNet in 2-D, built from this package's blocks. NHWC.

The same architecture, parameters and arithmetic, for weights trained there: keywords and submodules bear
MONAI's names, so that `monai_names` only has to rename leaves. Called like `Autoencoder` and
`LatentUNet`: methods do not tell them apart. Not here: cross-attention (with_conditioning),
resblock_updown, use_convtranspose, attention without its last projection (include_fc), other norm_eps.
"""

import itertools
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
    timestep_embedding,
    upsample,
)


def per_level(value, levels: int, name: str) -> tuple:
    """One value for each level, from one for all or a sequence. Raises ValueError for another length."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} values for {levels} levels (channels)")
    return values


def check_groups(channels: Sequence[int], groups: int) -> None:
    """ValueError where MONAI would refuse the network: GroupNorm here would take fewer groups."""
    if any(c % groups for c in channels):
        raise ValueError(
            f"channels {tuple(channels)}: not all multiples of norm_num_groups {groups}"
        )


# Of stride 2 in MONAI's U-Net: one on every side. "SAME" pads even sizes on the right only, as MONAI's
# autoencoder does.
CENTRED = ((1, 1), (1, 1))


class TimeResBlock(nn.Module):
    """GN-SiLU-conv, plus the projected embedding, GN-SiLU-conv, plus the skip.

    x [B, H, W, C], emb [B, E] after its SiLU -> [B, H, W, features].
    """

    features: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        h = GroupNorm(self.groups, name="norm1")(x)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(emb)
        shifted = h.astype(jnp.float32) + shift[:, None, None].astype(jnp.float32)  # see `add_bias`
        h = GroupNorm(self.groups, name="norm2")(shifted.astype(h.dtype))
        h = Conv(self.features, dtype=self.dtype, name="conv2_zero")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="skip_connection")(x)
        return x + h


class _Blocks(nn.Module):
    """What encoder and decoder share: the settings, and blocks named by their place in MONAI's list."""

    channels: Sequence[int]
    num_res_blocks: Sequence[int]
    attention_levels: Sequence[bool]
    groups: int
    middle: bool
    attention: str
    remat: bool
    dtype: Any

    def res(self, h, width, name):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        return block(width, self.groups, self.dtype, name=name)(h)

    def attend(self, h, name):
        """One head, whatever the width."""
        width = h.shape[-1]
        return SelfAttention(self.groups, width, self.attention, self.dtype, name=name)(h)

    def level(self, h, level: int, names):
        for _ in range(self.num_res_blocks[level]):
            h = self.res(h, self.channels[level], next(names))
            if self.attention_levels[level]:
                h = self.attend(h, next(names))
        return h

    def lowest(self, h, names):
        """Non-local attention between two residual blocks, at the lowest level."""
        if not self.middle:
            return h
        h = self.attend(self.res(h, h.shape[-1], next(names)), next(names))
        return self.res(h, h.shape[-1], next(names))

    def head(self, h, features: int, names):
        h = GroupNorm(self.groups, activate=False, name=next(names))(h)
        return Conv(features, dtype=self.dtype, name=next(names))(h).astype(jnp.float32)


def _block_names():
    """Names of MONAI's flat block list, in its order."""
    return (f"blocks.{i}" for i in itertools.count())


class Encoder(_Blocks):
    """[B, H, W, 1] -> [B, H/f, W/f, latent_channels]."""

    latent_channels: int

    @nn.compact
    def __call__(self, x):
        names = _block_names()
        h = Conv(self.channels[0], dtype=self.dtype, name=next(names))(x)
        for level, width in enumerate(self.channels):
            h = self.level(h, level, names)
            if level < len(self.channels) - 1:
                h = Conv(width, stride=2, dtype=self.dtype, name=f"{next(names)}.conv")(h)
        return self.head(self.lowest(h, names), self.latent_channels, names)


class Decoder(_Blocks):
    """[B, h, w, latent_channels] -> [B, h*f, w*f, 1]."""

    @nn.compact
    def __call__(self, z):
        names = _block_names()
        h = Conv(self.channels[-1], dtype=self.dtype, name=next(names))(z)
        h = self.lowest(h, names)
        for level in range(len(self.channels) - 1, -1, -1):
            h = self.level(h, level, names)
            if level > 0:
                name = f"{next(names)}.postconv"
                h = Conv(self.channels[level], dtype=self.dtype, name=name)(upsample(h))
        return self.head(h, 1, names)


class AutoencoderKL(nn.Module):
    """MONAI's AutoencoderKL of one image channel; factor f = 2^(levels - 1).

    num_res_blocks: of every level, or one for each. It knows nothing of modalities (num_classes is what
    others ask a model for) and has no linear skip: `label` is ignored and `patch` must be None. Raises
    ValueError for settings that MONAI refuses.
    """

    channels: Sequence[int]
    latent_channels: int
    num_classes: int
    num_res_blocks: int | Sequence[int]
    attention_levels: Sequence[bool]
    norm_num_groups: int
    with_encoder_nonlocal_attn: bool = True
    with_decoder_nonlocal_attn: bool = True
    attention: str = "xla"  # see SelfAttention
    remat: bool = False  # recompute the blocks' activations in the backward pass
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def setup(self):
        levels = len(self.channels)
        check_groups(self.channels, self.norm_num_groups)
        shared = dict(
            channels=self.channels,
            num_res_blocks=per_level(self.num_res_blocks, levels, "num_res_blocks"),
            attention_levels=per_level(self.attention_levels, levels, "attention_levels"),
            groups=self.norm_num_groups,
            attention=self.attention,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.encoder = Encoder(
            middle=self.with_encoder_nonlocal_attn, latent_channels=self.latent_channels, **shared
        )
        self.decoder = Decoder(middle=self.with_decoder_nonlocal_attn, **shared)
        self.quant_conv_mu = Conv(self.latent_channels, 1)
        self.quant_conv_log_sigma = Conv(self.latent_channels, 1)
        self.post_quant_conv = Conv(self.latent_channels, 1)

    def encode(self, x, label, patch):
        """x [B, H, W, 1] -> posterior mean, log-variance [B, h, w, C]."""
        if patch is not None:
            raise ValueError("MONAI's autoencoder has no linear skip: set patch_skip to False")
        h = self.encoder(x)
        return self.quant_conv_mu(h), jnp.clip(self.quant_conv_log_sigma(h), -30.0, 20.0)

    def decode(self, z, label, patch):
        """z [B, h, w, C] -> image [B, H, W, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def __call__(self, x, label, patch, eps):
        """Reconstruction from z = mean + std * eps (eps [B, h, w, C]), mean and log-variance."""
        mean, logvar = self.encode(x, label, patch)
        z = mean + jnp.exp(0.5 * logvar) * eps
        return self.decode(z, label, patch), mean, logvar


class DiffusionModelUNet(nn.Module):
    """(zt [B, h, w, C], t [B] int, label [B] int, condition [B, h, w, S] or None) -> [B, h, w, C].

    MONAI's DiffusionModelUNet with in_channels C + S: the condition is concatenated after zt.
    num_res_blocks and num_head_channels: of every level, or one for each (without attention: ignored; the
    last is also the middle's). num_class_embeds: rows of the class embedding; 0: MONAI's None, the label
    is ignored. Raises ValueError for settings that MONAI refuses.
    """

    latent_channels: int
    channels: Sequence[int]
    num_res_blocks: int | Sequence[int]
    attention_levels: Sequence[bool]
    norm_num_groups: int
    num_head_channels: int | Sequence[int]
    num_class_embeds: int
    attention: str = "xla"  # see SelfAttention
    remat: bool = False  # recompute the blocks' activations in the backward pass
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, zt, t, label, condition=None):
        levels, width = len(self.channels), self.channels[0]
        last, groups, dtype = levels - 1, self.norm_num_groups, self.dtype
        check_groups(self.channels, groups)
        if width % 2:
            raise ValueError(f"channels[0] = {width}: an odd time embedding is not supported")
        res_blocks = per_level(self.num_res_blocks, levels, "num_res_blocks")
        has_attention = per_level(self.attention_levels, levels, "attention_levels")
        heads = per_level(self.num_head_channels, levels, "num_head_channels")
        res = nn.remat(TimeResBlock) if self.remat else TimeResBlock

        emb = Dense(4 * width, name="time_embed.0")(timestep_embedding(t, width))
        emb = Dense(4 * width, name="time_embed.2")(jax.nn.silu(emb))
        if self.num_class_embeds:
            embedding = nn.Embed(self.num_class_embeds, 4 * width, name="class_embedding")
            emb = emb + embedding(label)
        emb = jax.nn.silu(emb)

        def attend(h, level, name):
            if not heads[level] or h.shape[-1] % heads[level]:
                raise ValueError(f"num_head_channels {heads[level]} do not divide {h.shape[-1]}")
            return SelfAttention(groups, heads[level], self.attention, dtype, name=name)(h)

        def block(h, level, where, index):
            name = f"{where}.resnets.{index}"
            h = res(self.channels[level], groups, dtype, name=name)(h, emb)
            if has_attention[level]:
                h = attend(h, level, f"{where}.attentions.{index}")
            return h

        x = zt if condition is None else jnp.concatenate([zt, condition], -1)
        h = Conv(width, dtype=dtype, name="conv_in")(x)
        skips = [h]
        for level in range(levels):
            where = f"down_blocks.{level}"
            for index in range(res_blocks[level]):
                h = block(h, level, where, index)
                skips.append(h)
            if level < last:
                options = dict(stride=2, padding=CENTRED, dtype=dtype)
                h = Conv(h.shape[-1], **options, name=f"{where}.downsampler.op")(h)
                skips.append(h)
        h = res(self.channels[-1], groups, dtype, name="middle_block.resnet_1")(h, emb)
        h = attend(h, last, "middle_block.attention")
        h = res(self.channels[-1], groups, dtype, name="middle_block.resnet_2")(h, emb)
        for level in range(last, -1, -1):
            where = f"up_blocks.{last - level}"
            for index in range(res_blocks[level] + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), level, where, index)
            if level > 0:
                name = f"{where}.upsampler.postconv"
                h = Conv(self.channels[level], dtype=dtype, name=name)(upsample(h))
        h = GroupNorm(groups, name="out.0")(h)
        return Conv(self.latent_channels, dtype=dtype, name="out.2_zero")(h).astype(jnp.float32)
