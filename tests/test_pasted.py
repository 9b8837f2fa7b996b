"""README's commands pasted into a fresh shell that entered nothing, in a clone that was set up: slow.

Shortened by documented means only: preset tiny for every other (and its runs), `-k` for the tests,
`--dry-run` for the training on several GPUs, a --workdir where presets had kept runs apart. Names that
stand for a reader's files are given some: a simulated cohort.
"""

import os
import pathlib
import shutil
import subprocess

import pytest
from test_docs import ROOT, pasted

COHORT = "runs/simulate-tiny"
PRESETS = ("quick", "cpu1mm", "cpu", "a6000", "multi")


def shortened(line: str) -> str:
    for preset in PRESETS:
        line = line.replace(f".py:{preset}", ".py:tiny").replace(
            f"--preset {preset}", "--preset tiny"
        )
        for run in ("ldm", "unet"):
            line = line.replace(f"runs/{run}-{preset}", f"runs/{run}-tiny")
    line = line.replace("quickstart.sh ", "quickstart.sh tiny ")
    line = line.replace("launch/test.sh", "launch/test.sh -k test_guidance").partition("   ")[0]
    line = line.replace("BIDS_FOLDER_OR_CSV", COHORT)
    if "launch/train.sh" in line:
        line += " --dry-run"
    if line.endswith("prepared=runs/mine"):
        line += " --workdir=runs/ldm-mine"
    return line.strip()


def paste(line: str, where: pathlib.Path) -> subprocess.CompletedProcess:
    env = {"HOME": os.environ["HOME"], "PATH": "/usr/bin:/bin", **proxies()}
    return subprocess.run(
        ["bash", "-c", line], cwd=where, env=env, capture_output=True, text=True, timeout=3600
    )


def proxies() -> dict[str, str]:
    """How pip gets its packages here, and the Python that makes the environment."""
    names = [k for k in os.environ if k.startswith("PIP_") or k == "PYTHON"]
    return {k: os.environ[k] for k in names}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("a b") / "ä ö"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    return root


@pytest.mark.slow
def test_readme_runs_as_it_is_pasted(clone):
    first, *lines = map(shortened, pasted(ROOT / "README.md"))
    assert first == "bash launch/setup.sh"
    simulate = ".venv/bin/python -m cldm_jax.main --config=configs/simulate.py:tiny"
    failed = []
    for line in [first, simulate, *lines]:
        done = paste(line, clone)
        print(f"exit {done.returncode}: {line}", flush=True)
        if done.returncode:
            failed.append((line, done.stderr[-400:]))
        if line == simulate:  # a reader's own file, which README names
            pet = next((clone / COHORT).glob("*/pet.nii.gz"))
            shutil.copy(pet, clone / "pet.nii.gz")
    assert failed == []
