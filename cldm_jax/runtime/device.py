"""What must be set before and right after JAX starts: heap, compilation cache, mesh."""

import ctypes
import os
import platform
import shlex
import sys

from cldm_jax.errors import UserError

HEAP_ENV = "CLDM_KEEP_HEAP"  # "0" leaves malloc as it is


def keep_heap() -> None:
    """Makes glibc keep freed memory instead of returning it to the kernel after every step.

    XLA's CPU client allocates its temporaries afresh each step; giving gigabytes back and faulting
    them in again made autoencoder training 1.7 times slower where it was measured. Linux with glibc
    only; call before importing jax.
    """
    if os.environ.get(HEAP_ENV) == "0" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_arena_max, 1)


def enable_compilation_cache() -> None:
    """Persistent compilation cache in the user's cache folder, at most 2 GB; CLDM_CACHE_DIR="": none."""
    import jax

    from cldm_jax.kernels import library

    folder = library.cache_folder()
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 2 * 1024**3)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def choose_kernels(mode: str) -> None:
    """config.kernels: "native" (compiled CPU kernels where they can be had) or "xla"."""
    from cldm_jax.kernels import library

    if mode not in library.MODES:
        known = ", ".join(library.MODES)
        raise UserError(f"config.kernels={mode!r}", "not known", f"Choose one of: {known}.")
    library.choose(mode)


def command_line() -> str:
    """The command as a user would type it again."""
    return shlex.join(["python", "-m", "cldm_jax.main", *sys.argv[1:]])


def describe() -> dict:
    """Hardware and versions for the run manifest."""
    import jax

    from cldm_jax.kernels import library

    return {
        "backend": jax.default_backend(),
        "kernels": library.describe(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
