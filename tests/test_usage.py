"""--help: every config, every preset, every setting with its default and what is said beside it."""

import pathlib
import subprocess
import sys

import pytest

from cldm_jax import usage

ROOT = pathlib.Path(__file__).resolve().parent.parent

SOURCE = '''
def get_config(preset):
    """Nothing."""
    c.rate = 3  # mm
    # Above, and on
    # two lines.
    c.size = pick(
        a=1, b=2
    )
    c.plain = 4

    c.block = {
        "inner": 5,  # Hz
        "other": dict(deep=6),  # not inner's
    }
    return dict(word=7)  # the end
'''


def ask(*words: str) -> str:
    command = [sys.executable, "-m", "cldm_jax.main", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_comments_beside_and_above():
    found = usage.comments(SOURCE)
    assert found["rate"] == "mm" and found["size"] == "Above, and on two lines."
    assert found["plain"] == "" and found["inner"] == "Hz" and found["other"] == "not inner's"


def test_overview_names_every_config_and_preset():
    said = ask("--help")
    from configs import common

    names = {p.name for p in (ROOT / "configs").glob("*.py")} - {"common.py", "__init__.py"}
    lines = [line.split()[0] for line in said.splitlines() if line.strip()]
    assert names <= set(lines) and set(common.PRESETS) <= set(lines)
    assert {"--workdir", "--dry_run", "--distributed"} <= set(lines)
    assert max(map(len, said.splitlines())) <= usage.WIDTH


def test_settings_of_one_config():
    said = ask("--config=configs/unet.py:tiny", "--help")
    assert "Settings at preset tiny:" in said and "L2 regression" in said
    assert "--config.train.save_every=10" in said and "--config.recipe.model.unet.groups" in said
    after = said.partition("--config.train.save_every=10")[2].splitlines()[1]
    assert after.strip() == "steps"
    assert said.count("settings of configs/prepare.py") == 1 and "mi_threshold" not in said
    assert "mi_threshold=" in ask("--config=configs/prepare.py:tiny", "--help")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_says_what_it_is(path):
    first = usage._docstring(path).splitlines()[0]
    assert first.endswith((".", ":")) and len(first) < 110
