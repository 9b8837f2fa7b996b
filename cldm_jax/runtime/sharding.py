"""One mesh axis, `data`: batches are split over it, the state is replicated.

This is what pmap and pjit are in today's JAX: `jax.jit` with NamedSharding. One device is the mesh
(1,), the same code. Axis type Auto: with explicit axes Linen's Embed cannot be sharded.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cldm_jax.errors import UserError


def make_shardings(devices=None):
    """(batch sharding, replicated sharding) over `devices`, default all of all processes."""
    devices = jax.devices() if devices is None else devices
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def stacked(rows):
    """The sharding of several batches [K, B, ...] in one array, from that of one."""
    return NamedSharding(rows.mesh, PartitionSpec(None, *rows.spec))


def put_batch(batch: dict, sharding) -> dict:
    """This process's rows of a batch (or of stacked ones) as global arrays."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def check_batch_size(batch_size: int, parts: int) -> None:
    """UserError where a batch in `parts` (optim.accumulate) cannot be split over the devices."""
    n = jax.device_count()
    if batch_size % (n * parts):
        each = f" in {parts} parts (recipe.optim.accumulate)" if parts > 1 else ""
        raise UserError(
            f"config.train.batch_size={batch_size}",
            f"not divisible by the {n} devices of this run{each}",
            f"Use a multiple of {n * parts}.",
        )


class Divided:
    """`function(constants, batch, ...)` jitted, with the rows of `batch` divided over the devices.

    devices: default all of all processes, which must then make the same calls with the same arguments.
    batch: a tree of host arrays [B, ...]; where B cannot be divided, the last row fills it up. The other
    arguments are the same everywhere; put them in place once with `replicate`. What comes back is whole
    on every process, [B, ...].
    """

    def __init__(self, function: Callable, devices=None):
        self._rows, replicated = make_shardings(devices)
        self._call = jax.jit(function, out_shardings=replicated)

    def compile(self, constants, batch, *rest) -> None:
        """Ahead of the first call, for arguments of these shapes and no others."""
        self._call = self._call.lower(constants, self._put(batch), *rest).compile()

    def __call__(self, constants, batch, *rest):
        size = len(jax.tree.leaves(batch)[0])
        out = self._call(constants, self._put(batch), *rest)
        return jax.tree.map(lambda x: x[:size], out) if size % self._rows.mesh.size else out

    def _put(self, batch):
        def put(x):
            missing = -len(x) % self._rows.mesh.size
            if missing:
                x = np.concatenate([x, np.repeat(x[-1:], missing, 0)])
            return jax.make_array_from_callback(x.shape, self._rows, lambda part: x[part])

        return jax.tree.map(put, batch)


def replicate(tree, devices=None):
    """`tree`, the same on every process, on each of the devices (default all of all processes)."""
    where = make_shardings(devices)[1]
    if where.is_fully_addressable:
        return jax.device_put(tree, where)

    def put(x):
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)))
        return jax.make_array_from_process_local_data(where, np.asarray(x))

    return jax.tree.map(put, tree)
