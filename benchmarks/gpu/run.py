"""Plans the minutes, runs each part as a process with a deadline and keeps what each has found.

    bash launch/gpu.sh [--minutes M] [--parts check,race,train,memory] [--out DIR]
                       [--wheels DIR] [--labels DIR] [--heads DIR] [--rehearse]

Standard library only: it must end in time whatever the parts do. results.json is written whenever a part
has something new; beside it come the log and what parts hand over.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from benchmarks.gpu import plan, wheels
from benchmarks.gpu.part import ROOT
from cldm_jax import files

RESULTS, LOG = "results.json", "log.txt"
POLL = 0.2  # seconds
# Without its search for the fastest kernels XLA should compile in a part of the time: with it, a step of
# a 12.5 M parameter CLDM took 221 s for an H200 (five programs at once, 16 slow cores).
FLAGS = (
    "--xla_gpu_experimental_enable_fusion_autotuner=false",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_autotune_level=2",
)
LAST = 3.0  # seconds between SIGTERM and SIGKILL


def parse(argv) -> argparse.Namespace:
    """Exits with status 2 for what cannot be."""
    parser = argparse.ArgumentParser(prog="launch/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="for everything (default 15)")
    parser.add_argument("--parts", default=",".join(plan.WEIGHTS), help="default: all")
    parser.add_argument("--out", type=pathlib.Path, default="runs/gpu", help="a new folder")
    parser.add_argument("--wheels", type=pathlib.Path, help="wheels of launch/gpu_wheels.sh")
    parser.add_argument("--labels", type=pathlib.Path, help="label volumes to simulate heads from")
    text = "people that benchmarks.gpu.heads simulates or has simulated there, in another process"
    parser.add_argument("--heads", type=pathlib.Path, help=text)
    parser.add_argument("--rehearse", action="store_true", help="preset tiny, on the CPU")
    args = parser.parse_args(argv)
    try:
        args.plan = plan.Plan(args.minutes, [p for p in args.parts.split(",") if p])
    except ValueError as error:
        parser.error(str(error))
    for flag in ("wheels", "labels", "heads"):
        folder = getattr(args, flag)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{flag} {folder}: no such folder")
    if (args.out / RESULTS).exists():
        parser.error(f"--out {args.out}: holds an earlier run's {RESULTS}; give another folder")
    return args


class Results:
    """results.json: what is known so far."""

    def __init__(self, args, work: pathlib.Path):
        self.out, self.work, self._seen = args.out, work, {}
        self.data = {
            "command": " ".join(["bash", "launch/gpu.sh", *sys.argv[1:]]),
            "rehearsal": args.rehearse,
            "minutes": args.minutes,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _words("git", "describe", "--always", "--dirty", "--abbrev=12"),
            "hardware": hardware(),
            "parts": {},
        }

    def write(self) -> None:
        """In one piece: a kill leaves the last one whole."""
        files.write_json(self.out / RESULTS, self.data)

    def look(self, part: str) -> None:
        """Takes over what `part` has written since the last look."""
        path = self.work / part / "result.json"
        with contextlib.suppress(FileNotFoundError):
            stamp = path.stat().st_mtime_ns
            if self._seen.get(part) != stamp:
                self.data["parts"][part]["result"] = json.loads(path.read_text())
                self._seen[part] = stamp
                self.write()


def hardware() -> dict:
    """Of this machine, as far as it says."""
    query = "--query-gpu=name,memory.total,driver_version"
    return {
        "gpu": _words("nvidia-smi", query, "--format=csv,noheader"),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _words(*command: str) -> str:
    """What a command prints; "" where it cannot."""
    try:
        found = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def environment(args, site: pathlib.Path, work: pathlib.Path) -> dict[str, str]:
    """Of the parts: one compilation cache for all, the installed wheels, no memory taken in advance."""
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    env.setdefault("CLDM_CACHE_DIR", str(work / "cache"))
    env["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()
    # "cpu" as well: the check compares with it.
    env["JAX_PLATFORMS"] = "cpu" if args.rehearse else "cuda,cpu"
    return env


def supervise(command: list[str], seconds: float, env: dict, log, look) -> tuple[str, float]:
    """(status, seconds taken) of a process that is killed, with all it started, after `seconds`.

    look() is called while it runs. What it prints goes to stdout and to `log`.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def tee():
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            log.write(line)
            log.flush()

    reader = threading.Thread(target=tee, daemon=True)
    reader.start()
    status = "interrupted"
    try:
        while process.poll() is None and time.monotonic() - began < seconds:
            look()
            time.sleep(POLL)
        status = "killed at its time"
        if process.poll() is not None:
            status = "done" if process.returncode == 0 else f"failed, status {process.returncode}"
    finally:
        end(process)
        reader.join(1.0)
        look()
    return status, time.monotonic() - began


def end(process: subprocess.Popen) -> None:
    """Ends a process's whole session: first asked, then killed."""
    for number, wait in ((signal.SIGTERM, LAST), (signal.SIGKILL, LAST)):
        with contextlib.suppress(ProcessLookupError):  # nobody is left in it
            os.killpg(process.pid, number)
        if number == signal.SIGTERM and process.poll() is not None:
            continue  # its children may still be there
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)


def part_command(part: str, args, work: pathlib.Path, seconds: float) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.gpu.{part}", "--work", str(work / part)]
    command += ["--seconds", f"{plan.told(seconds):.1f}"]
    if args.rehearse:
        command.append("--rehearse")
    for flag in ("labels", "heads"):
        if getattr(args, flag) is not None and part == "train":
            command += [f"--{flag}", str(getattr(args, flag).absolute())]
    return command


def run_parts(args, results: Results, work: pathlib.Path, log) -> None:
    site = work / "site"
    if args.wheels is not None:
        began = time.monotonic()
        results.data["wheels"] = wheels.install(args.wheels, site)
        results.data["wheels"]["seconds"] = round(time.monotonic() - began, 1)
    env = environment(args, site, work)
    for part in args.plan.parts:
        seconds = args.plan.seconds(part, time.monotonic())
        (work / part).mkdir()
        entry = results.data["parts"][part] = {"status": "running", "planned_s": round(seconds, 1)}
        results.write()
        print(f"gpu: {part}, at most {seconds:.0f} s", flush=True)
        command = part_command(part, args, work, seconds)
        try:
            entry["status"], taken = supervise(
                command, seconds, env, log, lambda part=part: results.look(part)
            )
        except SystemExit:
            entry["status"] = "interrupted"
            raise
        entry["seconds"] = round(taken, 1)
        print(f"gpu: {part}: {entry['status']} after {taken:.0f} s", flush=True)
        results.write()


def finish(args, results: Results, work: pathlib.Path) -> None:
    """The files that parts hand over, and the log."""
    handed = [p for part in args.plan.parts for p in sorted((work / part / "out").glob("*"))]
    for path in (*handed, work / LOG):
        shutil.copyfile(path, args.out / path.name)
    results.write()


def main(argv=None) -> int:
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    # A signal ends parts and keeps their results, like the end of the time.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="cldm-gpu-") as folder:
        work = pathlib.Path(folder)
        results = Results(args, work)
        results.write()
        try:
            with open(work / LOG, "wb") as log:
                run_parts(args, results, work, log)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            results.data["error"] = str(error)
        finally:
            finish(args, results, work)
    states = {part: entry["status"] for part, entry in results.data["parts"].items()}
    print(f"gpu: {args.out / RESULTS}: " + ", ".join(f"{k} {v}" for k, v in states.items()))
    is_done = set(states.values()) == {"done"} and "error" not in results.data
    return 0 if is_done else 1


if __name__ == "__main__":
    sys.exit(main())
