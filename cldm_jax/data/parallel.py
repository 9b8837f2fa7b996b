"""One function over many people, in this process or in spawned ones, with the same results."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator

from cldm_jax import console
from cldm_jax.errors import UserError


@contextlib.contextmanager
def mapper(workers: int) -> Iterator[Callable]:
    """`map`, results in the tasks' order. UserError where the system ended a process."""
    if workers == 0:
        yield map
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    options = dict(mp_context=context, initializer=_begin)
    with concurrent.futures.ProcessPoolExecutor(workers, **options) as pool:
        try:
            yield lambda function, tasks: _windowed(pool, 2 * workers, function, tasks)
        except concurrent.futures.BrokenExecutor as error:
            reason = "the system ended it, mostly for lack of memory"
            remedy = "Give fewer (0: none) as --config.workers; the same command goes on"
            raise UserError("a worker process", reason, remedy) from error
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # Ctrl-C: workers would go on with what is queued
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()
            raise


def _begin() -> None:
    """A worker's start. Its queue never ends by itself: it would wait for a killed parent for ever."""
    console.leave_on_interrupt()
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _windowed(pool, window: int, function: Callable, tasks: Iterable) -> Iterator:
    """Few tasks ahead of the reader, so that finished slices do not pile up in memory."""
    waiting = []
    for task in tasks:
        waiting.append(pool.submit(function, task))
        if len(waiting) > window:
            yield waiting.pop(0).result()
    for job in waiting:
        yield job.result()
