"""Part "memory": presets for a card of 48 GB, some steps of each inside that much memory.

    python -m benchmarks.gpu.memory --work DIR --seconds S [--rehearse]
    python -m benchmarks.gpu.memory NAME PRESET     one, in a process of its own: one JSON line

To be read beside the dry run's account on a CPU (docs/performance.md).
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

from benchmarks.gpu import part

TRAININGS = ("ldm", "unet", "ae")  # 24, 32 and 39 GB by the dry run
CARD_GB = 48.0
RESERVED_GB = 1.5  # as in jobs/dry_run.py: what a context and libraries take, assumed
TOGETHER = ((110e9, 3), (64e9, 2))  # bytes of a card, trainings that fit into it at once
STEPS = 10


def fraction(total_bytes: float) -> float:
    """XLA_PYTHON_CLIENT_MEM_FRACTION that leaves a card of `total_bytes` what one of 48 GB would have."""
    return min(1.0, (CARD_GB - RESERVED_GB) * 1e9 / total_bytes)


def at_once(rehearse: bool) -> int:
    """How many of TRAININGS may run beside each other."""
    if rehearse:
        return 1
    return next((n for size, n in TOGETHER if card_bytes() >= size), 1)


def card_bytes() -> float:
    """The first card's memory, by nvidia-smi. RuntimeError where it does not say."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if found.returncode or not found.stdout.strip():
        raise RuntimeError("nvidia-smi does not say how much memory the card has")
    return float(found.stdout.split()[0]) * 2**20


def measure(name: str, args, own: part.Part) -> dict:
    """What a training of the preset takes on this device, in a process limited to the smaller card."""
    env = dict(os.environ)  # memory is taken as it is needed, up to the fraction
    if not args.rehearse:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction(card_bytes()):.4f}"
    preset = "tiny" if args.rehearse else "a6000"
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.memory", name, preset],
        cwd=part.ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=max(1.0, own.left()),
        check=False,
    )
    if found.returncode:
        tail = found.stderr.strip().splitlines() or ["no reason given"]
        told = [line for line in tail if "RESOURCE_EXHAUSTED" in line] or tail[-1:]
        raise RuntimeError(f"{name}:{preset}: {told[0][:300]}")
    return json.loads(found.stdout.strip().splitlines()[-1])


def steps_of(name: str, preset: str) -> dict:
    """Compiles and runs STEPS steps of configs/NAME.py:PRESET."""
    import importlib

    import jax

    from benchmarks.gpu import steps
    from cldm_jax.runtime import device

    device.choose_kernels("xla")
    device.enable_compilation_cache()
    config = importlib.import_module(f"configs.{name}").get_config(preset)
    program = steps.training(config)
    began = time.perf_counter()
    compiled = program.compile()
    compile_s = time.perf_counter() - began
    after_compilation = _peak(jax)
    call = program.start(compiled)
    jax.block_until_ready(call())
    began = time.perf_counter()
    for _ in range(STEPS):
        loss = call()
    loss = float(loss)
    account = compiled.memory_analysis()
    own = account.argument_size_in_bytes + account.output_size_in_bytes
    own += account.temp_size_in_bytes - account.alias_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "config": f"configs/{name}.py:{preset}",
        "loss": loss,
        "step_s": (time.perf_counter() - began) / STEPS,
        "compile_s": compile_s,
        "limit_gb": stats.get("bytes_limit", 0) / 1e9 or None,
        "peak_gb": _peak(jax),  # of compilation too, which tries algorithms in memory of their own
        "peak_after_compilation_gb": after_compilation,
        "compilers_account_gb": own / 1e9,
        "backend": jax.default_backend(),
    }


def _peak(jax) -> float | None:
    """None where the device keeps no account, as a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


def main(argv=None) -> int:
    args = part.arguments(argv)
    own = part.Part(args.work, args.seconds)
    pool = concurrent.futures.ThreadPoolExecutor(at_once(args.rehearse))
    jobs = {name: pool.submit(measure, name, args, own) for name in TRAININGS}
    for name, job in jobs.items():
        own.attempt(name, job.result)
    return own.status()


if __name__ == "__main__":
    if sys.argv[1].startswith("-"):
        sys.exit(main())
    print(json.dumps(steps_of(*sys.argv[1:])))
