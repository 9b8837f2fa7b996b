"""--help: every config, every preset, every setting with its default and what is said beside it."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

from cldm_jax import settings, usage

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
        "low": {"inner": 7},  # kHz
    }
    return dict(word=7)  # the end
'''


def start(*words: str, cwd=ROOT, path=ROOT):
    command = [sys.executable, "-m", "cldm_jax.main", *words]
    env = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def ask(*words: str, **where) -> str:
    done = start(*words, **where)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_comments_beside_and_above():
    found = usage.comments(SOURCE)
    assert found["rate"] == "mm" and found["size"] == "Above, and on two lines."
    assert found["plain"] == "" and found["inner"] == "Hz" and found["other"] == "not inner's"
    assert found["low.inner"] == "kHz"


def test_a_setting_is_told_from_its_namesakes():
    """`nac` is a setting of a cohort, and a share of its randomised corrections."""
    about = ROOT / "configs" / "simulate.py"
    said = usage.settings(about, "tiny", {"nac": False, "randomised.correction.nac": 0.15})
    assert "image of the same counts" in said.split("randomised.correction")[0]
    assert "no attenuation correction at all" in said.split("randomised.correction")[1]
    said = usage.settings(ROOT / "configs" / "ldm.py", "tiny", {"name": "ldm"})
    assert "of the run, as reports call it" in said


def test_comments_name_every_word_that_a_setting_may_be():
    checked = set()
    for path in (ROOT / "configs").glob("*.py"):
        for name, comment in usage.comments(path.read_text()).items():
            setting = {"target": "diffusion.target"}.get(name, name)
            if setting in settings.CHOICES and setting != "dtype" and " | " in comment:
                missing = [w for w in settings.words_of(setting) if w not in comment]
                # The default stands before the comment.
                assert len(missing) <= (comment.startswith("|")), (path.name, name, missing)
                checked.add(name)
    assert {"kind", "on_device", "optimizer", "schedule", "target", "conditioning"} <= checked


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


def test_without_a_config_one_line_says_what_to_give():
    done = start()
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "no such config file" in done.stderr and "--config=configs/ldm.py:quick" in done.stderr


# Installed, away from the repository


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages as a wheel fills it."""
    root = tmp_path_factory.mktemp("site")
    package = root / "cldm_jax"
    package.mkdir()
    for path in (ROOT / "cldm_jax").iterdir():
        if path.name != "main.py":
            (package / path.name).symlink_to(path)
    shutil.copy(ROOT / "cldm_jax" / "main.py", package)  # it looks for configs beside itself
    (package / "configs").symlink_to(ROOT / "configs")
    return root


def test_the_wheel_holds_every_room_and_the_configs():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {p.parent.relative_to(ROOT) for p in (ROOT / "cldm_jax").rglob("*.py")}
    rooms = {".".join(room.parts) for room in rooms}
    assert set(built["packages"]) == rooms | {"cldm_jax.configs"}
    assert built["package-dir"] == {"cldm_jax.configs": "configs"}


@pytest.mark.parametrize("foreign", [False, True])
def test_an_installed_package_brings_its_configs(site, tmp_path, foreign):
    if foreign:  # a folder of that name that somebody else's program has
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "__init__.py").touch()
        own = "from configs import simulate\nget_config = simulate.get_config\n"
        (tmp_path / "configs" / "mine.py").write_text(own)
        done = start("--config=configs/mine.py:tiny", "--config.n=1", cwd=tmp_path, path=site)
        assert "--config.n: no such setting" in done.stderr
    assert "  ldm.py" in ask("--help", cwd=tmp_path, path=site)
    said = ask("--config=configs/ldm.py:tiny", "--help", cwd=tmp_path, path=site)
    assert "--config.train.save_every=10" in said
    done = start("--config", "configs/lmd.py:tiny", cwd=tmp_path, path=site)
    assert done.stderr.endswith("Did you mean --config=configs/ldm.py?\n")
    words = ("--config=configs/simulate.py:tiny", "--config.n_subjects=1")
    done = start(*words, cwd=tmp_path, path=site)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "simulate-tiny" / "sub-0001").is_dir()
