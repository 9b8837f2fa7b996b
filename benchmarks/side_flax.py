"""The JAX worker."""

import jax
import jax.numpy as jnp

from benchmarks import tasks_flax, volume_flax
from benchmarks.tasks import Spec


def setup(spec=None, gemm=None, volume=None):
    """A task of `tasks_flax` (`spec`: its fields), a matrix product (`gemm`: size, dtype) or a read-out
    of the volume (`volume`: keywords of `volume_flax.setup`).
    """
    if gemm is not None:
        return _gemm(*gemm), {}
    if volume is not None:
        return volume_flax.setup(**volume)
    task = tasks_flax.make_task(Spec(*spec))
    return task.call, {"params": task.params, "flops": task.flops, "compile_s": task.compile_s}


def _gemm(size: int, dtype: str):
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return lambda: product(a, a).block_until_ready()
