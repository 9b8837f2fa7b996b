"""Floating-point operations of a Flax forward pass, counted from its modules.

Two per multiply-add of convolutions, dense layers and attention; norms and activations are left out, as
PyTorch's counter leaves them out. Counting modules and not the compiled program keeps the number that
of the *direct* convolution, however `Conv` computes it.
"""

import math

import flax.linen as nn
import jax

from cldm_jax.models.layers import Conv, Dense, SelfAttention
from cldm_jax.models.monai import CentredDownsample

TRAINING_FACTOR = 3  # forward, and twice that backward: the usual convention


def module_flops(module, x, y) -> int:
    """Of one call of `module` that took x and gave y (arrays or shapes); 0 for other modules."""
    if isinstance(module, Conv):
        return 2 * math.prod(y.shape) * module.kernel_size**2 * x.shape[-1]
    if isinstance(module, CentredDownsample):
        return 2 * math.prod(y.shape) * 9 * x.shape[-1]
    if isinstance(module, Dense):
        return 2 * math.prod(y.shape) * x.shape[-1]
    if isinstance(module, SelfAttention):  # the two products with N x N; its Dense count themselves
        return 4 * attention_size(x.shape)
    return 0


def attention_size(shape) -> int:
    """B * N^2 * C of self-attention over an NHWC shape, N = H * W positions."""
    b, h, w, c = shape
    return b * (h * w) ** 2 * c


def forward_flops(module: nn.Module, *args, method=None) -> int:
    """Of module.apply on arguments with these shapes; nothing is computed."""
    total = 0

    def interceptor(call, call_args, call_kwargs, context):
        nonlocal total
        y = call(*call_args, **call_kwargs)
        if context.method_name == "__call__":
            total += module_flops(context.module, call_args[0] if call_args else None, y)
        return y

    def run(*values):
        with nn.intercept_methods(interceptor):
            return module.init_with_output(jax.random.key(0), *values, method=method)

    jax.eval_shape(run, *args)
    return total
