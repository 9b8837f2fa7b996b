"""Presets for a card of 48 GB: some steps inside that much memory, the peak beside the dry run's account.

python -m benchmarks.gpu.memory NAME PRESET STEPS     one of them, in a process of its own: one JSON line
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from benchmarks.gpu import part

TRAININGS = ("ldm", "unet", "ae")  # 24, 32 and 39 GB by the dry run
CARD_GB, RESERVED_GB = (
    48.0,
    1.5,
)  # as in jobs/dry_run.py: what a context and libraries take, assumed
TOGETHER = ((110e9, 3), (64e9, 2))  # bytes of a card, trainings that fit into it at once
STEPS = 10
LATE = 10.0  # seconds at the part's end that are theirs to be read
PLAN = re.compile(r"memory\s+([\d.]+) (GB|MB|kB)")


def preset(rehearse: bool) -> str:
    return "tiny" if rehearse else "a6000"


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


def start_plans(rehearse: bool, work: pathlib.Path) -> dict[str, subprocess.Popen]:
    """`--dry-run` of every training on the CPU, niced; `planned` reads what they print."""
    plans = {}
    for name in TRAININGS:
        command = ["nice", "-n", "15", sys.executable, "-m", "cldm_jax.main", "--dry-run"]
        command += [f"--config=configs/{name}.py:{preset(rehearse)}", "--workdir=unused"]
        with open(work / f"plan-{name}.log", "wb") as log:
            plans[name] = subprocess.Popen(
                command,
                cwd=part.ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    return plans


def stop_plans(plans: dict[str, subprocess.Popen]) -> None:
    for process in plans.values():
        process.kill()
        process.wait()


def planned(
    name: str, work: pathlib.Path, process: subprocess.Popen, seconds: float
) -> float | None:
    """GB by the dry run on the CPU, waiting for it at most `seconds`; None where it is not done."""
    try:
        process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        return None
    match = PLAN.search((work / f"plan-{name}.log").read_text(errors="replace"))
    if match is None:
        return None
    return float(match[1]) / {"GB": 1, "MB": 1e3, "kB": 1e6}[match[2]]


def measure(name: str, args, own: part.Part, plans: dict) -> dict:
    """What a training of the preset takes on this device, in a process limited to the smaller card."""
    env = dict(os.environ)  # memory is taken as it is needed, up to the fraction
    if not args.rehearse:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction(card_bytes()):.4f}"
    command = [sys.executable, "-m", "benchmarks.gpu.memory", name, preset(args.rehearse)]
    found = subprocess.run(
        [*command, str(STEPS)],
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
        raise RuntimeError(f"{name}:{preset(args.rehearse)}: {told[0][:300]}")
    measured = json.loads(found.stdout.strip().splitlines()[-1])
    plan = planned(name, args.work, plans[name], min(20.0, own.left() / 4))
    peak = measured["peak_gb"]
    if plan and peak:
        measured |= {"dry_run_cpu_gb": plan, "peak_over_dry_run": peak / plan}
    return measured


def steps_of(name: str, preset: str, count: int) -> dict:
    """Compiles and runs `count` steps of configs/NAME.py:PRESET."""
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
    for _ in range(count):
        loss = call()
    loss = float(loss)
    account = compiled.memory_analysis()
    own = account.argument_size_in_bytes + account.output_size_in_bytes
    own += account.temp_size_in_bytes - account.alias_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "config": f"configs/{name}.py:{preset}",
        "loss": loss,
        "step_s": (time.perf_counter() - began) / count,
        "compile_s": compile_s,
        "limit_gb": stats.get("bytes_limit", 0) / 1e9 or None,
        "peak_gb": _peak(
            jax
        ),  # of everything: compilation tries algorithms, with memory of their own
        "peak_after_compilation_gb": after_compilation,
        "compilers_account_gb": own / 1e9,
        "backend": jax.default_backend(),
    }


def _peak(jax) -> float | None:
    """None where the device keeps no account, as a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None


if __name__ == "__main__":
    print(json.dumps(steps_of(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
