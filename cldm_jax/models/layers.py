"""The blocks every network here is made of. NHWC; norms, softmax and outputs in float32.

No BatchNorm anywhere: `params` is the only collection.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cldm_jax.kernels.library import winograd_conv_prepared
from cldm_jax.models.conv import add_bias, conv2d

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Conv(nn.Module):
    """2-D convolution, [B, H, W, C] -> [B, H/stride, W/stride, features].

    A module whose name ends in `_zero` starts as the zero map (see `models.init.init_params`, which
    fills parameters by name); residual branches and heads use it so that a block starts as identity.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    padding: Any = "SAME"  # see conv2d

    @nn.compact
    def __call__(self, x):
        k = self.kernel_size
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        kernel = self.param("kernel", KERNEL_INIT, (k, k, x.shape[-1], self.features))
        # See prepare_params, which knows neither the stride nor the dtype of the computation.
        is_float32 = x.dtype == jnp.float32
        if is_float32 and self.stride == 1 and self.has_variable("params", "winograd"):
            return winograd_conv_prepared(x, self.get_variable("params", "winograd"), bias)
        return conv2d(x, kernel.astype(self.dtype), bias, self.stride, self.padding)


class Dense(nn.Module):
    """Affine map of the last axis, [..., C] -> [..., features]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", KERNEL_INIT, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(x.astype(self.dtype) @ kernel.astype(self.dtype), bias)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), FiLM by `film` (Perez 2018), then SiLU if `activate`.
    [B, H, W, C] -> same; film [B, 2C]: how much more each channel is scaled, and its shift.

    Statistics come from per-channel sums and are applied as one affine pass per channel: on a CPU two
    to three times cheaper than reshaping to groups, and the same numbers to float rounding.
    """

    groups: int
    activate: bool = True

    @nn.compact
    def __call__(self, x, film=None):
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        g = math.gcd(self.groups, c)
        if film is not None:  # in float32 for the reason of `add_bias`
            film = jnp.split(film.astype(jnp.float32), 2, axis=-1)
        if x.dtype.itemsize == 2:
            gain, shift = (jnp.broadcast_to(a, (len(x), c)) for a in (scale, bias))
            if film is not None:
                gain, shift = gain * (1 + film[0]), shift * (1 + film[0]) + film[1]
            return normalise(x, gain, shift, g, self.activate)
        mean, inv = moments(x, g)
        gain = inv * scale[None]
        y = affine(x, gain, bias[None] - mean * gain)
        y = y if film is None else affine(y, 1 + film[0], film[1])
        return (jax.nn.silu(y) if self.activate else y).astype(x.dtype)


def moments(x, groups: int):
    """Mean and inverse deviation of each channel's group, [B, H, W, C] -> two [B, C] float32."""
    b, h, w, c = x.shape
    x = x.astype(jnp.float32).reshape(b, h * w, c)
    count = h * w * (c // groups)
    mean = x.sum(1).reshape(b, groups, -1).sum(-1) / count  # [B, groups]
    square = jnp.square(x).sum(1).reshape(b, groups, -1).sum(-1) / count
    inv = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + 1e-6)
    return tuple(jnp.repeat(a, c // groups, 1) for a in (mean, inv))


def affine(x, gain, shift):
    """x [B, H, W, C] gain + shift [B, C] of every channel, float32."""
    return x.astype(jnp.float32) * gain[:, None, None] + shift[:, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x, gain, shift, groups: int, activate: bool):
    """GroupNorm of numbers of 16 bits. x [B, H, W, C]; gain, shift [B, C] float32, applied after it.

    Its gradient is written out, and what it needs of the activation is computed twice: a GPU waits for
    its memory here, and XLA would write that to it in float32. A CLDM step of 12.5 M parameters at batch
    256 moves 62 GB instead of 70 (compiled for an H200 by benchmarks/gpu/ahead.py, not timed on one).
    """
    return _normalise(x, gain, shift, groups, activate)[0]


def _normalise(x, gain, shift, groups, activate):
    mean, inv = moments(x, groups)
    y = affine(x, inv * gain, shift - mean * inv * gain)
    y = jax.nn.silu(y) if activate else y
    return y.astype(x.dtype), (x, gain, shift, mean, inv)


def _normalise_gradient(groups, activate, saved, dy):
    x, gain, shift, mean, inv = saved
    b, h, w, c = x.shape
    dy, x32 = dy.astype(jnp.float32), x.astype(jnp.float32)

    def before(gain, shift):
        """The gradient of what the activation is given."""
        if not activate:
            return dy
        y = affine(x, inv * gain, shift - mean * inv * gain)
        s = jax.nn.sigmoid(y)
        return dy * s * (1 + y * (1 - s))

    def group_mean(sums):
        sums = (gain * sums).reshape(b, groups, -1).sum(-1) / (h * w * (c // groups))
        return jnp.repeat(sums, c // groups, 1)

    g = before(gain, shift)
    # Two sums as one of complex numbers: before two, XLA would write g out.
    both = jax.lax.complex(g, g * x32).sum((1, 2))
    d_shift = both.real
    d_gain = (both.imag - mean * d_shift) * inv
    # dx = inv (gain g - <gain g> - n <gain g n>) with n = (x - mean) inv and <> over a group
    slope = -inv * inv * group_mean(d_gain)
    offset = -inv * group_mean(d_shift) - slope * mean
    g = before(*jax.lax.optimization_barrier((gain, shift)))  # anew, not kept
    dx = g * (inv * gain)[:, None, None] + affine(x, slope, offset)
    return dx.astype(x.dtype), d_gain, d_shift


normalise.defvjp(_normalise, _normalise_gradient)


class InstanceNorm(nn.Module):
    """Instance normalisation without parameters (Ulyanov 2016), [B, H, W, C] -> same."""

    @nn.compact
    def __call__(self, x):
        xf = x.astype(jnp.float32)
        mean = xf.mean((1, 2), keepdims=True)
        var = jnp.square(xf - mean).mean((1, 2), keepdims=True)
        return ((xf - mean) * jax.lax.rsqrt(var + 1e-5)).astype(x.dtype)


class ResBlock(nn.Module):
    """GN-SiLU-conv, FiLM by the embedding (Perez 2018), GN-SiLU-conv, plus the skip.

    x [B, H, W, C], emb [B, E] or None -> [B, H, W, features].
    """

    features: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb=None):
        h = GroupNorm(self.groups, name="norm1")(x)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        film = None
        if emb is not None:
            film = Dense(2 * self.features, dtype=self.dtype, name="film_zero")(emb)
        h = GroupNorm(self.groups, name="norm2")(h, film)
        h = Conv(self.features, dtype=self.dtype, name="conv2_zero")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="skip")(x)
        return x + h


def attention_for(asked: str, dtype, head_channels: int) -> str:
    """What `jax.nn.dot_product_attention` is told: "cudnn" on an NVIDIA GPU, for numbers of 16 bits and
    heads that its kernel takes on every such GPU, else XLA's: what a GPU trained opens on a CPU.
    """
    fits = jnp.dtype(dtype).itemsize == 2 and head_channels % 8 == 0 and head_channels <= 128
    return asked if fits and jax.default_backend() == "gpu" else "xla"


class SelfAttention(nn.Module):
    """Multi-head self-attention over the H*W positions, residual. [B, H, W, C] -> same.

    attention: "xla", or "cudnn" for its fused kernel, which never holds the [H*W, H*W] weights, where
    there is one (`attention_for`).
    """

    groups: int
    head_channels: int = 32
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        # Not fewer channels a head than asked for, and as many in each.
        heads = next(n for n in range(max(1, c // self.head_channels), 0, -1) if c % n == 0)
        y = GroupNorm(self.groups, activate=False, name="norm")(x).reshape(b, h * w, c)
        qkv = Dense(3 * c, dtype=self.dtype, name="qkv")(y).reshape(b, h * w, 3, heads, c // heads)
        q, k, v = (qkv[:, :, i] for i in range(3))  # [B, N, heads, c/heads]
        implementation = attention_for(self.attention, self.dtype, c // heads)
        y = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        y = y.reshape(b, h, w, c)
        return x + Dense(c, dtype=self.dtype, name="out_zero")(y)


def upsample(x):
    """Nearest-neighbour doubling, [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def space_to_depth(x, block: int):
    """[B, H, W, C] -> [B, H/block, W/block, block*block*C]; lossless."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x, block: int):
    """Inverse of `space_to_depth`: [B, h, w, block*block*C] -> [B, h*block, w*block, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // block**2)


def timestep_embedding(t, channels: int):
    """Sinusoidal embedding of a step index (Vaswani 2017; DDPM). t [B] -> [B, channels]."""
    if channels < 2:
        raise ValueError(f"base_channels {channels}: the embedding of the step needs 2 or more")
    half = channels // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * freqs[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
