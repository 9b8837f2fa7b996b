"""The worked example of CONTRIBUTING.md adds a baseline that trains; its import table is the one held."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from test_layers import RULES, violations

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"^## A baseline in under 60 lines\n(.*?)^## ", TEXT, re.M | re.S)[1]
BLOCK = re.compile(r"^`([\w/]+\.py)`:[^\n]*\n\n```(python|diff)\n(.*?)^```", re.M | re.S)
BLOCKS = {name: (kind, body) for name, kind, body in BLOCK.findall(EXAMPLE)}


def patched(text: str, diff: str) -> str:
    """`text` with each hunk of `diff` applied where its old lines are, once."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"not there once: {old!r}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    """The package and its configs, with the example applied."""
    root = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "cldm_jax", root / "cldm_jax", ignore=ignore)
    shutil.copytree(ROOT / "configs", root / "configs", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, (kind, body) in BLOCKS.items():
        path = root / name
        assert path.exists() == (kind == "diff"), name
        path.write_text(patched(path.read_text(), body) if kind == "diff" else body)
    return root


def test_example_is_whole_and_short():
    assert list(BLOCKS) == [
        "cldm_jax/methods/resnet.py",
        "configs/resnet.py",
        "cldm_jax/methods/registry.py",
    ]
    added = []
    for kind, body in BLOCKS.values():
        lines = body.splitlines()
        added += [line[1:] for line in lines if line[0] == "+"] if kind == "diff" else lines
    assert 0 < sum(bool(line.strip()) for line in added) < 60


def test_example_follows_the_rules(clone):
    source = BLOCKS["cldm_jax/methods/resnet.py"][1]
    assert violations(source, "methods.resnet") == []
    for command in (["check"], ["format", "--check"]):
        words = [sys.executable, "-m", "ruff", *command, *BLOCKS]
        done = subprocess.run(words, cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_example_trains(clone, tmp_path):
    words = [
        "--config=configs/resnet.py:tiny",
        f"--config.data.root={tmp_path / 'data'}",
        "--config.train.num_train_steps=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "CLDM_HUGE_PAGES": "0"}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "cldm_jax.main", *words]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["finished"] and run["step"] == 2 and run["method"] == "resnet"
    rows = [json.loads(line) for line in open(tmp_path / "run" / "metrics.jsonl")]
    assert any("train/loss" in row for row in rows) and any("val/psnr_ct" in row for row in rows)


def test_import_table_is_the_one_that_is_held():
    part = re.search(r"^## Import graph\n(.*?)^## ", TEXT, re.M | re.S)[1]
    rows = re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|([^|]*)\|$", part, re.M)
    table = {name: (ours.split(), outside.split()) for name, ours, outside in rows}
    assert table == {k: tuple(v.split() for v in rule) for k, rule in RULES.items()}
