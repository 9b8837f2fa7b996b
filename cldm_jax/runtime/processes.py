"""Several processes as one run, by JAX's own distributed runtime.

Every process runs the same program and reads the same folders, which all must see; each computes its
share on its own devices. Process 0 alone decides what depends on the disk or on time, and alone writes;
only checkpoints are written by all, through Orbax.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from cldm_jax.errors import UserError
from cldm_jax.runtime.progress import Progress

# A process that hangs without dying is given up after this; one that dies is noticed at once.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300  # that the first waits for the last
_LOSS = re.compile("Gloo|NCCL|coordination service|UNAVAILABLE|DEADLINE_EXCEEDED", re.IGNORECASE)
_REMEDY = "Start all of them again with the same command: they resume"


def start(address: str = "", count: int | None = None, index: int | None = None) -> None:
    """Joins the other processes of this run, before anything else has asked JAX for its devices.

    address: host:port of process 0; count, index: of the processes. What is not given is found by JAX,
    from Slurm, Open MPI, Kubernetes or Cloud TPU. UserError where it cannot be, or where one never comes.
    """
    # SIGTERM is ours (runtime/signals.py): JAX's notifier would swallow it until a run asks for it.
    jax.config.update("jax_enable_preemption_service", False)
    given = {"coordinator_address": address or None, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"the processes of this run cannot be joined ({str(error).splitlines()[0]})"
        remedy = "Start it with srun or mpirun, or give --coordinator, --processes and --process"
        raise UserError("--distributed", reason, remedy) from error
    if not is_main():
        Progress.is_shown = False
        sys.stdout = open(os.devnull, "w")  # process 0 says it


def count() -> int:
    return jax.process_count()


def is_main() -> bool:
    """Whether this is the process that writes: process 0, or the only one."""
    return jax.process_index() == 0


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        multihost_utils.broadcast_one_to_all(np.int32(0))


@contextlib.contextmanager
def main_first():
    """The body in process 0, and then, when that is through, in the others: they find what it made."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def decided(decide: Callable[[], int]) -> int:
    """What process 0 makes of `decide`, on every process; the others do not call it."""
    if count() == 1:
        return decide()
    return int(multihost_utils.broadcast_one_to_all(np.int32(decide() if is_main() else 0)))


def shared(values: dict[str, float]) -> dict[str, float]:
    """Process 0's values of these names: hosts of different make round differently."""
    if count() == 1:
        return values
    names = sorted(values)
    bits = np.array([values[n] for n in names], np.float64).view(np.uint32)  # JAX would halve them
    found = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
    return dict(zip(names, found.tolist(), strict=True))


class Vote:
    """A number every process gives, and the highest of all as every process learns it.

    With several processes the answer is that of the call before, so that nobody waits for a device:
    `vote(0)` is 0 at first.
    """

    def __init__(self):
        self._asked = None
        if count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("data",))
            spec = jax.sharding.PartitionSpec
            self._rows = jax.sharding.NamedSharding(mesh, spec("data"))
            whole = jax.sharding.NamedSharding(mesh, spec())
            self._highest = jax.jit(lambda x: x.max(), out_shardings=whole)

    def __call__(self, value: int) -> int:
        if count() == 1:
            return value
        own = np.full(jax.local_device_count(), value, np.int32)
        asked, self._asked = (
            self._asked,
            self._highest(jax.make_array_from_process_local_data(self._rows, own)),
        )
        return 0 if asked is None else int(asked)


@contextlib.contextmanager
def losses_named():
    """The loss of another process is the system's doing, not a traceback of ours."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, OSError) as error:
        # ValueError when a step is handed over; OSError is what JAX makes of a connection that broke.
        if count() == 1 or not _LOSS.search(str(error)):
            raise
        reason = f"another process of this run is gone ({str(error).splitlines()[0][:120]})"
        who = f"process {jax.process_index()} of {count()}"
        raise UserError(who, f"{reason}; its own last line says why", _REMEDY) from error


def leave(status: int) -> None:
    """Ends this process now where it is one of several: they would wait for it in vain, and it for them
    at its exit. Does nothing where it is alone.
    """
    if "jax" in sys.modules and jax.distributed.is_initialized() and count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
