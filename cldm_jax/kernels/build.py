"""Compiles the C++ sources of this folder into one library, once per machine and version."""

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

from cldm_jax import console

SOURCES = pathlib.Path(__file__).parent
FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-ffp-contract=fast",  # fused multiply-add in vector expressions
    "-fno-math-errno",
    "-w",  # warnings of XLA's headers are not the user's
)
NATIVE = ("-march=native", "-mcpu=native")  # the first that the compiler takes
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT = 300  # seconds


class BuildError(Exception):
    """Why there is no library: one line."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: CXX, one on PATH, or the one of the `ziglang` package."""
    if os.environ.get("CXX"):
        return os.environ["CXX"].split()
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    zig = [sys.executable, "-m", "ziglang", "c++"]
    if subprocess.run([*zig, "--version"], capture_output=True, check=False).returncode == 0:
        return zig
    anywhere = console.command("pip", "install", "ziglang")
    raise BuildError(f"no C++ compiler (Debian, Ubuntu: apt-get install g++; anywhere: {anywhere})")


def cpu_identity() -> str:
    """What code for this very CPU depends on: a cache may be shared by the machines of a cluster."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "Features", "model", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in wanted}))


def fingerprint(compiler: list[str], include: str) -> str:
    """SHA-256 over all that the compiled code depends on."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.glob("*.cc")), *sorted(SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    digest.update(pathlib.Path(include, "xla/ffi/api/c_api.h").read_bytes())
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=False)
    for part in (*compiler, *FLAGS, version.stdout.decode(errors="replace"), cpu_identity()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def build(include: str, folder: pathlib.Path) -> pathlib.Path:
    """The library's path, compiled into `folder` unless it is there. Raises BuildError.

    include: folder of XLA's FFI headers (`jax.ffi.include_dir()`).
    """
    compiler = find_compiler()
    target = folder / f"kernels-{fingerprint(compiler, include)[:20]}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".so")
        os.close(handle)
    except OSError as error:
        raise BuildError(f"cannot write to {folder}: {error.strerror}") from error
    print("compiling the CPU kernels (once, a few seconds) ...", file=sys.stderr, flush=True)
    try:
        for native in NATIVE:
            command = [*compiler, *FLAGS, native, f"-I{include}", f"-I{SOURCES}", "-o", partial]
            command += map(str, sorted(SOURCES.glob("*.cc")))
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
            if done.returncode == 0:
                os.replace(partial, target)  # another process may have been faster: same content
                return target
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]}: {error}") from error
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    reason = next((line for line in lines if "error" in line), lines[-1])
    raise BuildError(f"{' '.join(compiler)} failed: {reason}")
