"""Checkpoints written beside the training: from a copy on the host, in a thread, while steps go on."""

import concurrent.futures
from collections.abc import Callable

import jax
import numpy as np

from cldm_jax.runtime import processes
from cldm_jax.runtime.checkpoint import Checkpoints


def pays() -> bool:
    """Whether to save beside the steps: where the processor that writes is not the one that computes, and
    no other process has to save in step. Elsewhere nothing would be gained, and a kill between two saves
    never costs more steps than lie between them.
    """
    return jax.default_backend() != "cpu" and processes.count() == 1


class Saves:
    """One save at a time. written(step) is called, in the thread of the caller, once the step is on disk
    with its manifest: in `begin`, or beside the steps (`pays`) when the caller looks or waits. What went
    wrong is raised there (OSError).
    """

    def __init__(self, checkpoints: Checkpoints, written: Callable[[int], None]):
        self._checkpoints, self._written = checkpoints, written
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._pending: tuple[int, concurrent.futures.Future] | None = None

    def begin(self, step: int, state) -> None:
        """Returns when `state` is saved or copied: its memory may be used again."""
        self.wait()
        if not pays():
            self._checkpoints.save(step, state)
            self._written(step)
            return
        for leaf in jax.tree.leaves(state):
            leaf.copy_to_host_async()
        copy = jax.tree.map(
            np.array, state
        )  # np.asarray would look into the device's memory on a CPU
        self._pending = (step, self._pool.submit(self._checkpoints.save, step, copy))

    def look(self) -> None:
        """Finishes the save that is through, if one is."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        if self._pending is not None:
            (step, done), self._pending = self._pending, None
            done.result()
            self._written(step)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()
