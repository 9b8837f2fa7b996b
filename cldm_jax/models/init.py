"""Parameters made cheaply: shapes from `eval_shape`, values from one normal vector.

Tracing and compiling `module.init` costs half a minute for a 16 M-parameter UNet, because every
parameter brings its own random-number program. Here the module is only traced for shapes; one NumPy
stream is cut into the leaves, which are then scaled by name:

  kernel     normal, variance 1/fan_in (LeCun); zero in a module whose name ends in `_zero`
  embedding  normal, variance 1 / channels
  scale      ones
  bias       zeros
"""

import math

import flax.linen as nn
import jax
import numpy as np


def init_params(module: nn.Module, key, *example_args) -> dict:
    """The module's `params` as a tree of float32 NumPy arrays; the same key gives the same bits.

    key: a typed PRNG key. example_args: arrays or ShapeDtypeStructs with the shapes of a call.
    """
    shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args), *example_args)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes.get("params", {}))
    stream = np.random.Generator(
        np.random.Philox(np.asarray(jax.random.key_data(key)).astype(np.uint64).tolist())
    )
    values = [_leaf([p.key for p in path], leaf.shape, stream) for path, leaf in leaves]
    return jax.tree.unflatten(treedef, values)


def _leaf(path, shape, stream):
    kind = path[-1]
    parent = path[-2] if len(path) > 1 else ""
    if kind == "bias" or (kind == "kernel" and parent.endswith("_zero")):
        return np.zeros(shape, np.float32)
    if kind == "scale":
        return np.ones(shape, np.float32)
    if kind == "kernel":
        std = 1 / math.sqrt(math.prod(shape[:-1]))
    elif kind == "embedding":
        std = 1 / math.sqrt(shape[-1])
    else:
        raise ValueError(f"no rule to initialise parameter {'/'.join(path)}")
    return (stream.standard_normal(shape, dtype=np.float32) * np.float32(std)).astype(np.float32)
