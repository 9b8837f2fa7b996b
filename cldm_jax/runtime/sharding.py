"""One mesh axis, `data`: batches are split over it, the state is replicated.

This is what pmap and pjit are in today's JAX: `jax.jit` with NamedSharding. One device is the mesh
(1,), the same code. Axis type Auto: with explicit axes Linen's Embed cannot be sharded.
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cldm_jax.errors import UserError


def make_shardings():
    """(batch sharding, replicated sharding) over all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def put_batch(batch: dict, sharding) -> dict:
    """This process's rows of a batch as global arrays."""
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """UserError where a batch in `parts` (optim.accumulate) cannot be split over the devices."""
    n = jax.device_count()
    if batch_size % (n * parts):
        each = f" in {parts} parts (recipe.optim.accumulate)" if parts > 1 else ""
        raise UserError(
            f"config.train.batch_size={batch_size}",
            f"not divisible by the {n} devices of this run{each}",
            f"Use a multiple of {n * parts}.",
        )
