"""What must be set before and right after JAX starts: memory pages, compilation cache, kernels."""

import concurrent.futures
import contextlib
import ctypes
import os
import pathlib
import platform
import sys

from cldm_jax import console
from cldm_jax.errors import UserError

HUGE_PAGES_ENV = "CLDM_HUGE_PAGES"  # "0" leaves malloc as it is
HUGE_PAGES = "glibc.malloc.hugetlb=1"
COMPILE_THREADS = 4


def use_huge_pages() -> None:
    """Starts this process again with glibc told to ask for huge pages (`glibc.malloc.hugetlb=1`).

    XLA's CPU client allocates its temporaries afresh in every step, and faulting a gigabyte in by pages
    of 4 KB cost a fifth to a quarter of an autoencoder step where it was measured (docs/performance.md).
    glibc reads the setting when a process starts and at no other time. Does nothing where it would not
    help: not Linux, huge pages always or never on, or JAX loaded (the process is somebody else's).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if (
        os.environ.get(HUGE_PAGES_ENV) == "0"
        or "glibc.malloc.hugetlb" in tunables
        or "jax" in sys.modules
    ):
        return
    try:
        policy = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return
    if "[madvise]" not in policy:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def limit_arenas() -> None:
    """One arena for malloc, where there is glibc: with one per thread, what the threads of a save leave
    free is spread over all of them and is never given back (0.3 MB a save of preset tiny, 0.1 with one).
    """
    _libc("mallopt", -8, 1)  # M_ARENA_MAX


def _libc(name: str, *arguments: int) -> None:
    """Calls a function of glibc, where that is the C library."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no CDLL(None)
        return
    function(*arguments)


def enable_compilation_cache(keep: bool = True) -> None:
    """Keeps compiled programs in the user's cache folder (CLDM_CACHE_DIR names another), at most 2 GB.

    keep=False, or an empty CLDM_CACHE_DIR: nothing is kept, compiled kernels included.
    """
    import jax

    from cldm_jax.kernels import library

    if not keep:
        os.environ[library.CACHE_ENV] = ""
    folder = library.cache_folder()
    if folder is None:
        return
    _sweep(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 2 * 1024**3)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _sweep(folder: pathlib.Path) -> None:
    """Removes the programs that a full disk or a kill cut short: JAX writes `-atime` after `-cache`. It
    never writes such a one again, and JAX 0.10 keeps no other program in a folder that holds one.
    """
    with contextlib.suppress(OSError):  # read-only, or another process's sweep
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()


def keep_compiled() -> None:
    """`enable_compilation_cache` in somebody else's process: not where a cache folder is set already."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        enable_compilation_cache()


def compile_step(step, *args):
    """`step` (of `jax.jit`) compiled for these arguments, to be called with the like of them.

    What the compiler leaves in malloc's free lists, half a gigabyte for the latent U-Net, goes back to
    the system before the first step takes memory of its own.
    """
    compiled = step.lower(*args).compile()
    trim_heap()
    return compiled


def side_by_side(jobs) -> list:
    """What each of the functions returns, called at once in a few threads: the compiler frees the GIL.

    A signal's SystemExit ends the process as it stands: Python would wait for the threads, and a compiler
    cannot be told to stop.
    """
    with concurrent.futures.ThreadPoolExecutor(COMPILE_THREADS) as pool:
        try:
            return [done.result() for done in [pool.submit(job) for job in jobs]]
        except SystemExit as stopped:
            sys.stdout.flush()
            os._exit(stopped.code)


def free_bytes() -> int | None:
    """Free memory of the fullest device of this process; None where it is the host's (a CPU)."""
    import jax

    stats = [d.memory_stats() for d in jax.local_devices()]
    if not all(stats) or jax.default_backend() == "cpu":
        return None
    return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)


def trim_heap() -> None:
    """Gives free memory back to the system, where the C library can (glibc)."""
    _libc("malloc_trim", 0)


def check() -> None:
    """UserError where the platform that JAX_PLATFORMS asks for is not there; JAX starts here."""
    import jax

    wanted = os.environ.get("JAX_PLATFORMS", "")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # the latter where jaxlib was built without it
        raise UserError(
            f"device {wanted!r}",
            "not found by JAX",
            "JAX_PLATFORMS asks for it: set it to cpu (cldm_jax.predict: --device cpu), or run "
            "CLDM_DEVICE=cuda12 bash launch/setup.sh and check nvidia-smi",
        ) from e


def choose_kernels(mode: str) -> None:
    """config.kernels: "native" (compiled CPU kernels where they can be had) or "xla"."""
    from cldm_jax.kernels import library

    library.choose(mode)


def plan_for(config, devices: int):
    """`config` for a dry run, and as many devices as asked for where there is no GPU: before JAX starts.

    Compiled kernels are left out: the plan is for a GPU, and the compiler cannot look into them.
    """
    count = devices or (4 if config.preset == "multi" else 1)
    forced = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
    with config.unlocked():
        config.kernels = "xla"
    return config


def command_line() -> str:
    """The command as a user would type it again."""
    return console.command("cldm_jax.main", *sys.argv[1:])


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
