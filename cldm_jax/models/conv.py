"""Convolution, in one place: every 3x3 and 1x1 of every network goes through `conv2d`.

On a GPU or TPU, and for whatever the CPU kernels are not made for, this is XLA's convolution (cuDNN on a
GPU). On a CPU, 3x3 convolutions of stride 1 take the compiled Winograd kernels: the same numbers to 1e-4
and better (see tests/test_conv.py), 1.7 to 4 times faster in the shapes of docs/performance.md.
"""

import jax
import jax.numpy as jnp

from cldm_jax.kernels import library

MIN_CHANNELS = 8  # of input and output: below, transforms cost more than they save
MIN_TILES = 8  # 4x4 tiles of the batch: below, transforming weights costs more than the products


def conv2d(x, kernel, bias, stride: int = 1, padding="SAME"):
    """Convolution plus bias. x [B, H, W, C], kernel [k, k, C, K] of its type, bias [K] float32
    -> [B, H/s, W/s, K]. padding: of XLA's convolution; other than "SAME" with a stride alone.
    """
    size = kernel.shape[0]
    if size == 1 and stride == 1:  # a matrix product: XLA's CPU convolution is slower
        return add_bias(x @ kernel[0, 0], bias)
    tiles = x.shape[0] * -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
    if size == 3 and stride == 1 and tiles >= MIN_TILES and _is_native(kernel.shape, x.dtype):
        return _winograd(x, kernel, bias)
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return add_bias(y, bias)


@jax.custom_vjp
def add_bias(y, bias):
    """y [..., K] + bias [K] float32, in the type of y. In float32 meanwhile: the gradient of what is
    broadcast is a sum over all pixels, and one in bfloat16 stops growing at 256 times its terms.
    """
    bias = bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


def _add_bias_gradient(_, g):
    if g.dtype.itemsize == 2:  # or XLA writes it in float32 for the sum and once more as it is
        g = jax.lax.optimization_barrier(g)
    return g, g.astype(jnp.float32).sum(range(g.ndim - 1))


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _add_bias_gradient)


def prepare_params(params):
    """Parameters for inference: kernels that `conv2d` would transform in every call, transformed once.

    Where the kernels are in use, each `kernel` [3, 3, C, K] gets a `winograd` beside it, which `Conv`
    prefers (a strided or bfloat16 one ignores it); everywhere else the tree comes back as it was. Call it
    once per checkpoint, outside `jit`. Transformed weights take 4 times the memory.
    """
    if not isinstance(params, dict):
        return params
    kernel = params.get("kernel")
    if kernel is None or kernel.ndim != 4 or kernel.shape[:2] != (3, 3):
        return {name: prepare_params(value) for name, value in params.items()}
    if not _is_native(kernel.shape, kernel.dtype):
        return params
    return {**params, "winograd": jax.jit(library.winograd_weights)(kernel)}


def _is_native(kernel_shape, dtype) -> bool:
    return dtype == jnp.float32 and min(kernel_shape[2:]) >= MIN_CHANNELS and library.is_enabled()


@jax.custom_vjp
def _winograd(x, kernel, bias):
    return library.winograd_conv(x, kernel, bias)


def _winograd_fwd(x, kernel, bias):
    return _winograd(x, kernel, bias), (x, kernel)


def _winograd_bwd(saved, g):
    x, kernel = saved
    dx = library.winograd_conv(g, kernel, flip=True)
    return dx, library.winograd_weight_gradient(x, g), g.sum((0, 1, 2))


_winograd.defvjp(_winograd_fwd, _winograd_bwd)
