"""The launch scripts decide rightly: which Python, which device, whether there is anything to do.

Nothing is installed: the interpreters are small shell scripts, in a PATH that holds only them and
the system's basic tools, and they log what they are asked to do.
"""

import contextlib
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "awk bash basename cat chmod cp cut df dirname env flock grep head mkdir rm sed sha256sum"

# Answers the probe (as a venv too: with the base's path), makes a venv that holds a copy of itself,
# and logs every pip, uv and job call; a call that contains CLDM_TEST_FAIL_ON fails.
FAKE_PYTHON = """#!/bin/bash
case "$1 ${{2:-}}" in
  "-c "*) echo "{version} {can_venv} {path}" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip" | "-m uv" | "-m cldm_jax.main") echo "$2 ${{*:3}}" >>"$CLDM_TEST_LOG"
    [[ "$*" != *"${{CLDM_TEST_FAIL_ON:-nothing}}"* ]] || exit "${{CLDM_TEST_STATUS:-1}}" ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""
SHIM = "#!/bin/bash\necho 'pyenv: command not found' >&2\nexit 127\n"


class Clone:
    """A copy of launch/ and the requirements in a folder of its own, with a PATH of fakes."""

    def __init__(self, folder: Path):
        self.root, self.path, self.log = folder / "a clone", folder / "bin", folder / "log"
        self.path.mkdir()
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ROOT.glob("requirements*.txt"):
            shutil.copy(name, self.root)
        for tool in TOOLS.split():
            if where := shutil.which(tool):
                (self.path / tool).symlink_to(where)

    def add(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)
        return self.path / name

    def add_python(self, name: str, version: str, can_venv: str = "yes") -> Path:
        path = self.path / name
        return self.add(name, FAKE_PYTHON.format(version=version, can_venv=can_venv, path=path))

    def setup(self, *flags: str, **settings: str) -> subprocess.CompletedProcess:
        env = {"PATH": str(self.path), "CLDM_TEST_LOG": str(self.log), **settings}
        command = ["bash", str(self.root / "launch" / "setup.sh"), *flags]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)

    def launch(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        """A script of the clone, in the environment that it set up; what was logged before is gone."""
        if not (self.root / ".venv").exists():
            self.add_python("python3.12", "3.12.1")
            assert self.setup(CLDM_MIN_FREE_GB="0").returncode == 0
        self.log.unlink(missing_ok=True)
        env = {"PATH": str(self.path), "CLDM_TEST_LOG": str(self.log), **settings}
        command = ["bash", str(self.root / "launch" / script), *words]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def clone(tmp_path) -> Clone:
    return Clone(tmp_path)


def assert_one_line_error(result, *words: str) -> None:
    lines = result.stderr.splitlines()
    assert result.returncode == 1
    assert len(lines) == 1 and lines[0].startswith("launch/setup.sh: "), result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("script", [p.name for p in (ROOT / "launch").glob("*.sh")])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", str(ROOT / "launch" / script)]).returncode == 0


@pytest.mark.parametrize(
    "pythons, chosen",
    [
        ({"python3.13": "3.13.0", "python3.12": "3.12.1", "python3": "3.11.7"}, "3.13.0"),
        ({"python3.13": None, "python3.12": "3.12.1", "python3": "3.11.7"}, "3.12.1"),
        ({"python3.13": None, "python3.12": None, "python3.11": "3.11.2"}, "3.11.2"),
        ({"python3.12": None, "python3": "3.14.2"}, "3.14.2"),
    ],
)
def test_newest_python_that_runs_is_taken(clone, pythons, chosen):
    for name, version in pythons.items():
        clone.add_python(name, version) if version else clone.add(name, SHIM)
    result = clone.setup("--dry-run")
    assert result.returncode == 0, result.stderr
    assert f"with Python {chosen} (" in result.stdout
    assert not (clone.root / ".venv").exists()


def test_python_without_venv_gives_way_to_the_next(clone):
    clone.add_python("python3.12", "3.12.1", can_venv="no")
    clone.add_python("python3.11", "3.11.7")
    assert "with Python 3.11.7 (" in clone.setup("--dry-run").stdout


def test_named_python_wins(clone):
    clone.add_python("python3.13", "3.13.0")
    named = clone.add_python("my python", "3.11.4")
    assert "with Python 3.11.4 (" in clone.setup("--dry-run", PYTHON=str(named)).stdout


def test_unfit_python_is_one_line(clone):
    assert_one_line_error(clone.setup(), "no working Python", "3.11")
    old = clone.add_python("python3", "3.9.18")
    assert_one_line_error(clone.setup(), "3.9.18", "too old", "3.11")
    clone.add_python("python3.12", "3.12.1")
    assert_one_line_error(clone.setup(PYTHON=str(old)), "3.9.18", "too old")
    assert_one_line_error(clone.setup(PYTHON="/no/such/python"), "does not run")
    bare = clone.add_python("bare", "3.12.1", can_venv="no")
    assert_one_line_error(clone.setup(PYTHON=str(bare)), "no venv module", "python3-venv")


def test_full_disk_is_one_line_and_touches_nothing(clone):
    clone.add_python("python3.12", "3.12.1")
    result = clone.setup(CLDM_MIN_FREE_GB="999999999")
    assert_one_line_error(result, "too little free disk", "999999999 GB")
    assert not (clone.root / ".venv").exists() and not clone.calls()


def test_cuda_asks_for_more_disk(clone):
    clone.add_python("python3.12", "3.12.1")
    (clone.path / "df").unlink()
    clone.add("df", "#!/bin/bash\necho header\necho /dev/x 9 9 $((5 * 1024 * 1024)) 9% /\n")
    assert clone.setup("--dry-run", CLDM_DEVICE="cpu").returncode == 0
    assert_one_line_error(clone.setup("--dry-run", CLDM_DEVICE="cuda12"), "5 GB, 8 GB needed")


def test_device(clone):
    clone.add_python("python3.12", "3.12.1")
    dry = {"CLDM_MIN_FREE_GB": "0"}
    assert clone.setup("--dry-run", **dry).stdout.endswith("for cpu\n")
    assert clone.setup("--dry-run", CLDM_DEVICE="cuda12", **dry).stdout.endswith("for cuda12\n")
    assert_one_line_error(clone.setup(CLDM_DEVICE="tpu"), "tpu", "auto, cpu or cuda12")
    clone.add("nvidia-smi", SHIM)  # installed, but finds no GPU
    assert clone.setup("--dry-run", **dry).stdout.endswith("for cpu\n")
    clone.add("nvidia-smi", '#!/bin/bash\n[ "$1" = -L ]\n')
    assert clone.setup("--dry-run", **dry).stdout.endswith("for cuda12\n")
    assert clone.setup("--dry-run", CLDM_DEVICE="cpu", **dry).stdout.endswith("for cpu\n")


def test_second_run_does_nothing(clone):
    clone.add_python("python3.12", "3.12.1")
    first = clone.setup(CLDM_MIN_FREE_GB="0")
    assert first.returncode == 0, first.stderr
    assert [c.split()[0] for c in clone.calls()] == [
        "pip",
        "pip",
        "uv",
    ]  # get uv, settings, install
    assert clone.calls()[-1].endswith("-r requirements-dev.txt")
    clone.log.unlink()
    second = clone.setup(CLDM_MIN_FREE_GB="999999999")  # and asks for no disk
    assert second.returncode == 0 and "in place" in second.stdout and not clone.calls()
    clone.add_python("python3.13", "3.13.0")  # a newer Python appears: the environment stays
    assert "in place" in clone.setup("--dry-run").stdout
    other = str(clone.path / "python3.13")
    assert "PYTHON asks for 3.13.0" in clone.setup("--dry-run", PYTHON=other).stdout


@pytest.mark.parametrize("changed", ["requirements", "requirements-dev", "requirements-cuda"])
def test_changed_requirements_are_installed_with_the_same_python(clone, changed):
    named = clone.add_python("named", "3.12.1")
    clone.add_python("python3.13", "3.13.0")
    assert clone.setup(PYTHON=str(named), CLDM_MIN_FREE_GB="0").returncode == 0
    with open(clone.root / f"{changed}.txt", "a") as requirements:
        requirements.write("another==1.0\n")
    dry = clone.setup("--dry-run", CLDM_MIN_FREE_GB="0").stdout
    assert "requirements" in dry and "with Python 3.12.1 (" in dry


def test_cuda_environment_is_shared_with_a_machine_without_gpu(clone):
    clone.add_python("python3.12", "3.12.1")
    assert clone.setup(CLDM_DEVICE="cuda12", CLDM_MIN_FREE_GB="0").returncode == 0
    assert clone.calls()[-1].endswith("-r requirements-dev.txt -r requirements-cuda.txt")
    assert "in place" in clone.setup("--dry-run").stdout
    assert "for cpu" in clone.setup("--dry-run", CLDM_DEVICE="cpu", CLDM_MIN_FREE_GB="0").stdout


def test_failed_install_is_done_again(clone):
    clone.add_python("python3.12", "3.12.1")
    failed = clone.setup(CLDM_MIN_FREE_GB="0", CLDM_TEST_FAIL_ON="requirements-dev.txt")
    assert_one_line_error(failed, "installation failed")
    again = clone.setup(CLDM_MIN_FREE_GB="0")
    assert again.returncode == 0 and "not finished" in again.stdout


@pytest.mark.parametrize("fails", ["uv pip", "pip install -q"])
def test_pip_takes_over_where_uv_fails(clone, fails):
    clone.add_python("python3.12", "3.12.1")
    result = clone.setup(CLDM_MIN_FREE_GB="0", CLDM_TEST_FAIL_ON=fails)
    assert result.returncode == 0, result.stderr
    assert clone.calls()[-1] == "pip install -r requirements-dev.txt"


def test_broken_interpreter_is_replaced(clone):
    clone.add_python("python3.12", "3.12.1")
    assert clone.setup(CLDM_MIN_FREE_GB="0").returncode == 0
    (clone.root / ".venv" / "bin" / "python").write_text(SHIM)
    result = clone.setup(CLDM_MIN_FREE_GB="0")
    assert result.returncode == 0 and "interpreter does not run" in result.stdout


def test_quickstart_runs_four_jobs_and_stops_at_a_failing_one(clone):
    done = clone.launch("quickstart.sh")
    assert done.returncode == 0, done.stderr
    assert [c.split()[1] for c in clone.calls()] == [
        f"--config=configs/{name}.py:quick" for name in ("ae", "ldm", "unet", "eval")
    ]
    assert f"{clone.root}/runs/quickstart/report/index.html" in done.stdout
    failed = clone.launch("quickstart.sh", "tiny", CLDM_TEST_FAIL_ON="ldm.py")
    assert failed.returncode == 1 and "step 2 of 4" in failed.stderr
    assert "ldm.py:tiny --workdir=runs/quickstart-tiny/ldm " in clone.calls()[-1]


@pytest.mark.parametrize("script", ["quickstart.sh", "reproduce.sh", "shipped.sh"])
def test_what_a_job_refused_is_not_said_to_go_on(clone, script):
    words = [str(ROOT)] if script == "shipped.sh" else []
    failing = dict(CLDM_TEST_FAIL_ON="--workdir")
    crashed = clone.launch(script, *words, **failing)
    assert crashed.returncode == 1 and "The same command goes on" in crashed.stderr
    refused = clone.launch(script, *words, **failing, CLDM_TEST_STATUS="2")
    assert (refused.returncode, refused.stderr) == (2, "")


def test_a_training_that_crashes_is_started_again_so_often(clone):
    done = clone.launch("train.sh", "--config=configs/ldm.py:tiny", "--workdir=runs/a")
    assert done.returncode == 0, done.stderr
    assert clone.calls() == ["cldm_jax.main --config=configs/ldm.py:tiny --workdir=runs/a"]
    failed = clone.launch("train.sh", "--tries", "3", "--config=x", CLDM_TEST_FAIL_ON="--config=x")
    assert failed.returncode == 1 and len(clone.calls()) == 3
    assert "status 1 after 3 tries" in failed.stderr and "try 3 of 3 resumes" in failed.stdout
    assert clone.launch("train.sh", "--tries", "often").returncode == 1 and not clone.calls()


@pytest.mark.parametrize("key, status", [("\x03", 130), ("", 143)])
def test_one_signal_reaches_the_training_once(clone, key, status):
    """Ctrl-C goes to all that the terminal runs: the training must not hear of it twice, as a second
    signal ends it unsaved. Without a key: SIGTERM to the script.
    """
    clone.add_python("python3.12", "3.12.1")
    assert clone.setup(CLDM_MIN_FREE_GB="0").returncode == 0
    counts = (
        f"#!{sys.executable}\nimport signal, sys, time\nheard = []\n"
        "for s in (2, 15): signal.signal(s, lambda n, _: heard.append(n))\n"
        "print('training', flush=True)\n"
        "for _ in range(600): heard or time.sleep(0.1)\n"
        "time.sleep(1); print('heard', heard, flush=True); sys.exit(128 + heard[0])\n"
    )
    (clone.root / ".venv" / "bin" / "python").write_text(counts)
    (clone.root / "launch" / "setup.sh").write_text("exit 0\n")
    terminal, its = pty.openpty()
    # What is ignored where the tests were started (in the background) cannot be trapped by a shell.
    words = [shutil.which("env"), "--default-signal=INT"]
    words += [shutil.which("setsid"), "--ctty", shutil.which("bash")]
    words += [str(clone.root / "launch" / "train.sh"), "--config=x"]
    streams = dict(stdin=its, stdout=its, stderr=its, env={"PATH": str(clone.path)})
    process, said = subprocess.Popen(words, **streams), b""
    os.close(its)
    with contextlib.suppress(OSError):  # the end of the terminal
        while chunk := os.read(terminal, 4096):
            said += chunk
            if b"training" in chunk:
                os.write(terminal, key.encode()) if key else process.terminate()
    assert process.wait() == status, said
    assert f"heard [{status - 128}]".encode() in said


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="not run by several workers")
def test_a_worker_is_given_whole_files(request):
    """Else each makes every fixture, and the suite takes twice as long."""
    assert request.node.nodeid.endswith("@test_launch.py")
