"""Parameters of a Flax module and floating-point operations of its forward pass; nothing is computed.

Operations: two per multiply-add of convolutions, dense layers and attention; norms and activations are
left out, as PyTorch's counter leaves them out. Counting modules and not the compiled program keeps the
number that of the *direct* convolution, however `Conv` computes it.
"""

import math

import flax.linen as nn
import jax

from cldm_jax.models.layers import Conv, Dense, SelfAttention

TRAINING_FACTOR = 3  # forward, and twice that backward: the usual convention


def module_flops(module, x, y) -> int:
    """Of one call of `module` that took x and gave y (arrays or shapes); 0 for other modules."""
    if isinstance(module, Conv):
        return 2 * math.prod(y.shape) * module.kernel_size**2 * x.shape[-1]
    if isinstance(module, Dense):
        return 2 * math.prod(y.shape) * x.shape[-1]
    if isinstance(module, SelfAttention):  # the two products with N x N; its Dense count themselves
        return 4 * attention_size(x.shape)
    return 0


def attention_size(shape) -> int:
    """B * N^2 * C of self-attention over an NHWC shape, N = H * W positions."""
    b, h, w, c = shape
    return b * (h * w) ** 2 * c


def shapes_of(module: nn.Module, *args) -> dict:
    """The parameters of a module called with such arguments, as shapes."""
    return jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a), *args)["params"]


def count_parameters(tree) -> int:
    return sum(p.size for p in jax.tree.leaves(tree))


def forward_flops(module: nn.Module, *args, method=None) -> int:
    """Of module.apply on arguments with these shapes."""
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
