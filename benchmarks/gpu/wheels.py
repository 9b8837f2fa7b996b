"""Wheels for what an interpreter lacks: fetched into a folder, and what is missing installed from it.

    python -m benchmarks.gpu.wheels DIR     downloads them: for Python 3.12 on Linux, x86-64

`run` installs them: into a folder of their own, never over what is there. Standard library only.
"""

import importlib.metadata
import pathlib
import subprocess
import sys

from benchmarks.gpu.part import ROOT

PINS = (ROOT / "requirements.txt", ROOT / "benchmarks" / "requirements.txt")
# What an image with JAX and PyTorch may lack; versions are those of the requirements where they pin one.
NAMES = (
    "grain",
    "array-record",
    "cloudpickle",
    "ml-collections",
    "clu",
    "wrapt",
    "nibabel",
    "tensorboardX",
    "safetensors",
    "jinja2",
    "markupsafe",
    "tqdm",
    "filelock",
    "monai",
    "einops",
)
PYTHON = "3.12"
# pip matches a platform exactly; grain's wheels bear two of these.
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing(folder) -> list[pathlib.Path]:
    """The wheels of `folder` whose distribution this interpreter has in no version."""
    wheels = sorted(pathlib.Path(folder).glob("*.whl"))
    return [path for path in wheels if not is_there(path.name.partition("-")[0])]


def install(folder, target) -> dict:
    """Installs what is missing from `folder` into `target`, without a network; {"installed": names}.

    Raises RuntimeError with pip's last line where it refuses (another Python's wheels, two of one
    distribution, no pip).
    """
    chosen = missing(folder)
    if chosen:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
        command += ["--target", str(target), *map(str, chosen)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"the wheels of {folder} could not be installed: {last}")
    return {"installed": [path.name for path in chosen]}


def download(folder: str) -> int:
    """Fetches NAMES into `folder`; pip's exit status."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "-d", folder]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    command += [f"--constraint={path}" for path in PINS]
    return subprocess.run([*command, *NAMES], check=False).returncode


if __name__ == "__main__":
    sys.exit(download(sys.argv[1]))
