"""One KL autoencoder for PET, CT and MR, with a linear patch transform as its skip path.

    z mean = V_c^T (to_cells(x) - m_c) + Enc(x, c)
    x_hat  = from_cells(V_c z + m_c)   + Dec(z, c)

V_c, m_c: principal components and mean of the training cells of modality c (Karhunen-Loeve: the best
linear code of that size). A cell's numbers are its pixels, or with `lapped` its wavelet coefficients, of
waves that overlap (`models/wavelet.py`). Enc and Dec end in zero-initialised convolutions, so training
starts at the linear ceiling and only goes up. `patch = None` gives the plain autoencoder of Rombach 2022.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cldm_jax.models import wavelet
from cldm_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    ResBlock,
    SelfAttention,
    depth_to_space,
    space_to_depth,
    upsample,
)

TIE_BREAK = 1e-9  # of the total variance


def _tie_break(factor: int) -> np.ndarray:
    """A covariance [factor^2, factor^2] whose eigenvectors are the cosine basis, coarse waves first.

    Patches that span fewer dimensions than they have pixels leave the rest of the basis to LAPACK,
    which answers differently on every kind of processor; a trace of this decides instead.
    """
    place, wave = np.arange(factor) + 0.5, np.arange(factor)[:, None]
    basis = np.cos(np.pi * wave * place / factor)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    waves = np.kron(basis, basis)  # [factor^2 waves, factor^2 pixels]
    order = np.add.outer(wave[:, 0], 1.1 * wave[:, 0]).ravel()  # no two waves alike
    return waves.T @ np.diag(1 - order / (order.max() + 1)) @ waves


def to_cells(x, factor: int, lapped: bool):
    """Images [B, H, W, C] -> [B, H/factor, W/factor, factor^2 * C], invertible."""
    return space_to_depth(wavelet.analysis(x, factor) if lapped else x, factor)


def from_cells(cells, factor: int, lapped: bool):
    """The inverse of `to_cells`."""
    x = depth_to_space(cells, factor)
    return wavelet.synthesis(x, factor) if lapped else x


def fit_patch_basis(
    images, labels, num_classes: int, factor: int, channels: int, lapped: bool
) -> dict:
    """Eigenvectors of the cells' covariance, per class. images [N, H, W, 1], labels [N] int.

    Returns {"components": [classes, factor*factor, channels] with orthonormal columns, "mean":
    [classes, factor*factor]}, to be kept frozen beside the parameters. A class without images gets the
    basis of all images together (it is never asked for in training).
    """
    patches, labels = np.asarray(to_cells(images, factor, lapped)), np.asarray(labels)
    components, means = [], []
    for code in range(num_classes):
        rows = patches[labels == code] if (labels == code).any() else patches
        rows = rows.reshape(-1, factor**2).astype(np.float64)
        covariance = np.cov(rows, rowvar=False)
        covariance += TIE_BREAK * max(np.trace(covariance), 1e-6) * _tie_break(factor)
        _, vectors = np.linalg.eigh(covariance)
        vectors = vectors[:, ::-1][:, :channels]  # eigh sorts ascending
        generic = 1 + np.cos(np.arange(1, factor**2 + 1) ** 2)  # orthogonal to no wave
        components.append(vectors * np.sign(generic @ vectors))  # LAPACK leaves the sign free
        means.append(rows.mean(0))
    return {
        "components": np.stack(components).astype(np.float32),
        "mean": np.stack(means).astype(np.float32),
    }


class _Half(nn.Module):
    """What encoder and decoder share; their modules are named by the half that calls these."""

    stem_block: int
    base_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    middle_attention: bool
    groups: int
    attention: str
    remat: bool
    dtype: Any

    def conv(self, features: int, name: str, stride: int = 1):
        return Conv(features, stride=stride, dtype=self.dtype, name=name)

    def blocks(self, h, emb, width: int, name: str):
        res = nn.remat(ResBlock) if self.remat else ResBlock
        for j in range(self.num_res_blocks):
            h = res(width, self.groups, self.dtype, name=f"{name}_{j}")(h, emb)
        return h

    def middle(self, h):
        if not self.middle_attention:
            return h
        options = dict(attention=self.attention, dtype=self.dtype, name="middle_attn")
        return SelfAttention(self.groups, **options)(h)

    def out(self, h, channels: int):
        return self.conv(channels, "out_zero")(GroupNorm(self.groups, name="norm_out")(h))


class Encoder(_Half):
    """x [B, H, W, 1], emb [B, E] -> [B, H/f, W/f, 2*latent_channels] (mean, log-variance)."""

    latent_channels: int

    @nn.compact
    def __call__(self, x, emb):
        widths = [self.base_channels * m for m in self.channel_mult]
        h = self.conv(widths[0], "stem")(space_to_depth(x, self.stem_block))
        for i, width in enumerate(widths):
            h = self.blocks(h, emb, width, f"down{i}")
            if i < len(widths) - 1:
                h = self.conv(widths[i + 1], f"down{i}_pool", stride=2)(h)
        return self.out(self.middle(h), 2 * self.latent_channels)


class Decoder(_Half):
    """z [B, h, w, latent_channels], emb [B, E] -> [B, h*f, w*f, 1]."""

    @nn.compact
    def __call__(self, z, emb):
        widths = [self.base_channels * m for m in self.channel_mult]
        h = self.middle(self.conv(widths[-1], "stem")(z))
        for i in range(len(widths) - 1, -1, -1):
            if i < len(widths) - 1:
                h = self.conv(widths[i], f"up{i}_conv")(upsample(h))
            h = self.blocks(h, emb, widths[i], f"up{i}")
        return depth_to_space(self.out(h, self.stem_block**2), self.stem_block)


class Autoencoder(nn.Module):
    """KL autoencoder with the modality's class code. `factor` = stem_block * 2^(levels-1).

    linear: the patch transform alone, Enc = Dec = 0, without parameters. lapped: see `to_cells`.
    """

    latent_channels: int
    num_classes: int
    stem_block: int  # space-to-depth of the stem, pixels
    base_channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    middle_attention: bool
    init_logvar: float  # log-variance of the posterior before training
    groups: int = 8
    attention: str = "xla"  # see SelfAttention
    remat: bool = False  # recompute the blocks' activations in the backward pass
    dtype: Any = jnp.float32
    linear: bool = False
    lapped: bool = False

    @property
    def factor(self) -> int:
        return self.stem_block * 2 ** (len(self.channel_mult) - 1)

    def setup(self):
        if self.linear:
            return
        width = 4 * self.base_channels
        self.class_embed = nn.Embed(self.num_classes, width)
        self.emb = Dense(width)
        shared = dict(
            stem_block=self.stem_block,
            base_channels=self.base_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            middle_attention=self.middle_attention,
            groups=self.groups,
            attention=self.attention,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.encoder = Encoder(latent_channels=self.latent_channels, **shared)
        self.decoder = Decoder(**shared)

    def _embed(self, label):
        return jax.nn.silu(self.emb(self.class_embed(label)))

    def encode(self, x, label, patch: dict | None):
        """x [B, H, W, 1] in [-1, 1], label [B] -> posterior mean, log-variance [B, h, w, C]."""
        mean = logvar = 0.0
        if not self.linear:
            h = self.encoder(x, self._embed(label)).astype(jnp.float32)
            mean, logvar = jnp.split(h, 2, axis=-1)
        if patch is not None:
            cells = to_cells(x, self.factor, self.lapped)
            centred = cells - patch["mean"][label][:, None, None]
            mean = mean + jnp.einsum("bhwp,bpc->bhwc", centred, patch["components"][label])
            logvar = jnp.broadcast_to(logvar, mean.shape)
        return mean, jnp.clip(logvar + self.init_logvar, -30.0, 10.0)

    def decode(self, z, label, patch: dict | None):
        """z [B, h, w, C], label [B] -> image [B, H, W, 1]."""
        x = 0.0
        if not self.linear:
            x = self.decoder(z, self._embed(label)).astype(jnp.float32)
        if patch is not None:
            linear = jnp.einsum("bhwc,bpc->bhwp", z, patch["components"][label])
            cells = linear + patch["mean"][label][:, None, None]
            x = x + from_cells(cells, self.factor, self.lapped)
        return x

    def __call__(self, x, label, patch: dict | None, eps):
        """Reconstruction from z = mean + std * eps (eps [B, h, w, C]), mean and log-variance."""
        mean, logvar = self.encode(x, label, patch)
        z = mean + jnp.exp(0.5 * logvar) * eps
        return self.decode(z, label, patch), mean, logvar
