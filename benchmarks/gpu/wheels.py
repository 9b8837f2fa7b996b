"""Wheels for what an interpreter lacks: fetched into a folder, and what is missing installed from it.

    python -m benchmarks.gpu.wheels DIR     downloads them: for Python 3.12 on Linux, x86-64

`run` installs them: into a folder of their own, never over what is there. Standard library only.
"""

import importlib.metadata
import pathlib
import re
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


def normal(name: str) -> str:
    """A distribution's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """{name: version} of the lines `name==version` that hold for Python 3.12."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"([\w.-]+)(?:\[.*\])?==([\w.+!]+)\s*(?:;\s*([^#]*))?", line.strip())
        if match and "<" not in (match[3] or ""):
            found[normal(match[1])] = match[2]
    return found


def wanted() -> list[str]:
    """Requirements to download, pinned where this project pins them."""
    known = pins("\n".join(path.read_text() for path in PINS))
    return [f"{n}=={known[normal(n)]}" if normal(n) in known else n for n in NAMES]


def is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def choose(folder, has=is_there) -> list[pathlib.Path]:
    """The wheels of `folder` to install: of distributions that are not there, one wheel each.

    Raises ValueError where a distribution has two wheels: pip would refuse them all.
    """
    chosen: dict[str, pathlib.Path] = {}
    for path in sorted(pathlib.Path(folder).glob("*.whl")):
        name = normal(path.name.split("-")[0])
        if name in chosen:
            raise ValueError(f"{folder}: two wheels of {name}; keep one of them")
        if not has(name):
            chosen[name] = path
    return list(chosen.values())


def install(folder, target) -> dict:
    """Installs what is missing from `folder` into `target`, without a network; {"installed": names}.

    Raises RuntimeError with pip's last line where it refuses (another Python's wheels, no pip).
    """
    chosen = choose(folder)
    if chosen:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
        command += ["--target", str(target), *map(str, chosen)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"the wheels of {folder} could not be installed: {last}")
    return {"installed": [path.name for path in chosen]}


def download(folder) -> None:
    """Fetches `wanted` into `folder`. Raises CalledProcessError where pip could not."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "-d", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *wanted()], check=True)


def main(folder: str) -> int:
    try:
        download(folder)
    except subprocess.CalledProcessError:
        print("error: pip could not download them all (see above)", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.whl"))
    print(f"{folder}: {size / 2**20:.1f} MiB of wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
