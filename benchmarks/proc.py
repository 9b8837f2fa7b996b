"""What Linux tells about the machine: CPU time by processor, model, memory, library versions."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "monai")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def busy_seconds(cpus, path: str = "/proc/stat") -> float:
    """CPU seconds used so far on these processors by everyone, time stolen by other guests included."""
    names, ticks = {f"cpu{i}" for i in cpus}, 0
    for line in pathlib.Path(path).read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def pick_cpus(threads: int) -> list[int]:
    """The last `threads` processors this process may use; ValueError where there are fewer."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise ValueError(f"{threads} threads asked for, {len(allowed)} processors to run on")
    return allowed[-threads:]


def cpu_info() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16. Elsewhere PyTorch emulates it, 6 to 66 times slower
    than f32 where it was tried: nobody's choice, so no peer.
    """
    info = cpu_info()
    flags = {*info.get("flags", "").split(), *info.get("Features", "").split()}  # x86, Arm
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def describe() -> dict:
    """Processor, memory and operating system."""
    info = cpu_info()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    vectors = [v for v in ("avx512f", "avx2") if v in info.get("flags", "").split()]
    return {
        "cpu": info.get("model name", "unknown"),
        "family_model": f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        "vectors": [*vectors, "128 bit"][0],
        "bf16": has_bf16(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed libraries, and a hash over this project's own code: what a result depends on."""
    digest = hashlib.sha256()
    for folder in ("cldm_jax", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".cc", ".h"}:
                digest.update(path.read_bytes())
    there = [name for name in PACKAGES if importlib.util.find_spec(name)]
    return {n: importlib.metadata.version(n) for n in there} | {"code_sha256": digest.hexdigest()}
