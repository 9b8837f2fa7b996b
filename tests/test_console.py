"""What a person meets in the terminal: interpreter, missing letters, Ctrl-C, closed pipes, `~`."""

import functools
import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from absl.testing import flagsaver

from cldm_jax import console, main
from cldm_jax.data import parallel
from cldm_jax.errors import UserError
from cldm_jax.jobs import predict
from cldm_jax.runtime import device

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(code: str, start_new_session=False, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pipes["start_new_session"] = start_new_session
    # A job in the background ignores Ctrl-C, and hands that on.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-c", code], env=env, preexec_fn=listen, **pipes)


def parse(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["main", *words])  # where ml_collections looks for overrides
    main._parse(["main", *words])


# ---- which interpreter ----


def environment(folder: pathlib.Path) -> pathlib.Path:
    (folder / "bin").mkdir(parents=True)
    shutil.copy("/bin/sh", folder / "bin" / "python")
    return folder


def test_the_interpreter_is_named_as_the_shell_can_start_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = environment(tmp_path / "somewhere else")
    monkeypatch.setattr(sys, "prefix", str(own))
    monkeypatch.setattr(sys, "executable", str(own / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert console.interpreter() == str(own / "bin" / "python")
    assert shlex.split(console.command("cldm_jax.main", "a b")) == [
        str(own / "bin" / "python"), "-m", "cldm_jax.main", "a b"]  # fmt: skip
    monkeypatch.setenv("PATH", str(environment(tmp_path / "other") / "bin"))
    assert console.interpreter() == str(own / "bin" / "python")  # `python` is another one
    monkeypatch.setenv("PATH", str(own / "bin"))
    assert console.command("cldm_jax.predict") == "python -m cldm_jax.predict"
    monkeypatch.setattr(sys, "prefix", str(environment(tmp_path / ".venv")))
    assert console.command("cldm_jax.predict") == ".venv/bin/python -m cldm_jax.predict"


def test_what_is_required_is_what_the_requirements_say():
    names = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    wanted = {name.lower().replace("_", "-") for name in names}
    providers = importlib.metadata.packages_distributions()
    provided = {
        dist.lower().replace("_", "-") for name in console.REQUIRED for dist in providers[name]
    }
    assert wanted <= provided and len(console.REQUIRED) == len(wanted)


@pytest.mark.parametrize("has_venv", [False, True])
@pytest.mark.parametrize("module", ["main", "predict"])
def test_an_interpreter_without_the_requirements_is_one_line(tmp_path, module, has_venv):
    root = tmp_path / "a b ä"
    package = root / "cldm_jax"
    package.mkdir(parents=True)
    for path in (ROOT / "cldm_jax").glob("*.py"):
        shutil.copy(path, package)
    if has_venv:
        environment(root / ".venv")
    words = ["-S", "-m", f"cldm_jax.{module}", "--config=x", "--workdir=c d"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1
    assert sys.executable in done.stderr and "lacks the requirements (absl" in done.stderr
    pasted = f".venv/bin/python -m cldm_jax.{module} --config=x '--workdir=c d'"
    assert done.stderr.endswith(f"Use: {pasted}\n" if has_venv else "bash launch/setup.sh\n")


# ---- letters, pipes, Ctrl-C ----

SAYS = "from cldm_jax import console; console.start('x'); print('out \\u8133\\u00e4 \\udce4')"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_path_that_the_console_cannot_print_is_printed_in_codes(encoding):
    said, error = start(SAYS, PYTHONIOENCODING=encoding).communicate()
    expected = "out \u8133\u00e4 \udce4".encode(encoding, "backslashreplace")
    assert said.strip() == expected and not error
    plain = start(SAYS.replace("console.start('x'); ", ""), PYTHONIOENCODING=encoding)
    assert b"UnicodeEncodeError" in plain.communicate()[1]  # control: without it


@pytest.mark.parametrize("starts", ["console.start('x'); ", ""])
def test_closed_streams_do_not_end_it(tmp_path, starts):
    says = f"print('x'); sys.stdout.flush(); open({str(tmp_path / 'done')!r}, 'w').write('whole')"
    words = shlex.join(
        [sys.executable, "-c", f"import sys; from cldm_jax import console; {starts}{says}"]
    )
    done = subprocess.run(f"{words} <&- >&- 2>&-", shell=True, cwd=ROOT)
    assert (done.returncode == 0) == (tmp_path / "done").is_file() == bool(starts)


def test_a_closed_pipe_ends_it_quietly():
    talk = "def talk():\n    while True: print('line')\n"
    code = f"from cldm_jax import console\n{talk}"
    for call, quiet in (("console.run(talk)", True), ("talk()", False)):
        process = start(f"{code}{call}")
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        assert process.wait() == (console.PIPE_CLOSED if quiet else 1)
        assert bool(error) != quiet


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("starts", ["console.start('x'); ", ""])
def test_a_full_log_does_not_end_the_work(tmp_path, starts):
    work = "def work():\n    print('line', flush=True); print('line'); open('done', 'w').close()\n"
    code = f"from cldm_jax import console; {starts}\n{work}console.run(work)"
    words, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=env)
    assert (tmp_path / "done").exists() == bool(starts)
    if starts:
        assert ended.returncode == 2
        assert ended.stderr.count(b"\n") == 1 and b"standard output: cannot be" in ended.stderr
    else:
        assert b"Traceback" in ended.stderr


def test_ctrl_c_ends_it_quietly():
    # Short sleeps: CPython loses a signal that comes just before a sleep until that sleep is over.
    wait = "import time\nprint('here', flush=True)\nfor _ in range(6000): time.sleep(0.01)"
    code = f"from cldm_jax import console; console.start('x')\n{wait}"
    for program, status in ((code, console.INTERRUPTED), (wait, -signal.SIGINT)):
        process = start(program)
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == status
        assert (b"Traceback" in error) == (program is wait)


# ---- a device that is not there ----


WORKERS = """
from cldm_jax import console; console.leave_on_interrupt()
from cldm_jax.data import parallel
import multiprocessing, time
with parallel.mapper(1) as mapped:
    for _ in mapped(time.sleep, [0] + [60] * 5):
        print(multiprocessing.active_children()[0].pid, flush=True)
"""


def test_ctrl_c_ends_the_workers_too():
    """What waits in their queue is not made first."""
    process = start(WORKERS, start_new_session=True)
    assert process.stdout.readline()
    time.sleep(0.3)  # it waits for its workers: before that wait a signal may be lost
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=20) == console.INTERRUPTED
    assert b"Traceback" not in process.communicate()[1]


def test_a_worker_that_the_system_ends_is_one_line():
    """As it does for lack of memory."""
    with pytest.raises(UserError, match=r"a worker process: .* memory.*--config.workers"):
        with parallel.mapper(1) as mapped:
            list(mapped(os._exit, [9]))


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="no /proc")
def test_workers_do_not_outlive_a_process_that_is_killed():
    process = start(WORKERS)
    worker = pathlib.Path("/proc", process.stdout.readline().decode().strip(), "cmdline")
    assert b"spawn" in worker.read_bytes()
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while worker.exists() and worker.read_bytes() and time.monotonic() < end:  # empty: a zombie
        time.sleep(0.02)
    assert not worker.exists() or not worker.read_bytes()


@pytest.mark.parametrize("platform", ["cuda", "gpu"])
def test_a_missing_platform_is_one_line_and_names_the_variable(platform):
    command = [sys.executable, "-m", "cldm_jax.main", "--config=configs/ae.py:tiny"]
    env = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [*command, "--workdir=/nowhere"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode == 0:
        pytest.skip("there is one")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: device '{platform}': not found by JAX. JAX_PLATFORMS")


@pytest.mark.parametrize("job", main.JOBS)
def test_every_job_that_uses_jax_looks_for_the_device_first(job, monkeypatch):
    called = []

    def absent():
        called.append("check")
        raise UserError("device 'cuda'", "not found", "")

    monkeypatch.setattr(device, "limit_arenas", lambda: None)
    monkeypatch.setattr(device, "check", absent)
    fake = types.SimpleNamespace(run=lambda config, workdir: called.append("run"))
    monkeypatch.setattr(main.importlib, "import_module", lambda name: fake)
    monkeypatch.chdir(ROOT)
    with flagsaver.flagsaver():
        config = {"train": "ae", "encode": "ldm", "evaluate": "eval"}.get(job, job)
        parse(monkeypatch, f"--config=configs/{config}.py:tiny", f"--config.job={job}")
        if main.JOBS[job]:
            with pytest.raises(SystemExit):
                main.main([])
        else:
            main.main([])
    assert called == (["check"] if main.JOBS[job] else ["run"])


FIRST = """
import sys
from cldm_jax import main
from cldm_jax.runtime import device
device.use_huge_pages = lambda: sys.exit(f"before JAX: {'jax' not in sys.modules}")
main.parse_flags(["main", "--config=configs/" + sys.argv[1]])
"""


@pytest.mark.parametrize("config, asks", [("ldm.py:tiny", True), ("prepare.py:tiny", False)])
def test_huge_pages_are_asked_for_before_a_check_of_settings_loads_jax(config, asks):
    """glibc reads the setting at the start, and with JAX loaded the process is somebody else's."""
    command = [sys.executable, "-c", FIRST, config]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1:] == ["before JAX: True"] * asks, done.stderr


# ---- a disk that takes nothing ----


@pytest.mark.parametrize("config", ["simulate", "prepare", "unet"])
def test_what_the_system_refuses_is_one_line(config, monkeypatch, capsys):
    def run(*_):
        raise OSError(30, "Read-only file system", "/mnt/w")

    fake = types.SimpleNamespace(run=run)
    monkeypatch.setattr(device, "check", lambda: None)
    monkeypatch.setattr(main.importlib, "import_module", lambda name: fake)
    monkeypatch.chdir(ROOT)
    with flagsaver.flagsaver():
        parse(monkeypatch, f"--config=configs/{config}.py:tiny")
        with pytest.raises(SystemExit) as end:
            main.main([])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: /mnt/w: Read-only file system. Mend the disk")


# ---- a config by its name alone ----


@pytest.mark.parametrize(
    "given", ["ldm", "ldm:tiny", "ldm.py:tiny", "configs/ldm", "configs/ldn.py"]
)
def test_a_config_that_is_named_otherwise_is_answered_with_its_file(given, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"Did you mean --config=configs/ldm\.py\?"):
        parse(monkeypatch, f"--config={given}")


# ---- words that have one line for an answer ----


@pytest.mark.parametrize(
    "words, answer",
    [
        ("--config=configs/ldm.py:tiny --config.method=unet", "configs/ldm.py is made for ldm"),
        ("--config=configs/unet.py:tiny --config.data.kind=latents", "made for images"),
        ("--config=configs/prepare.py:tiny --config.job=simulate", "made for prepare"),
        ("--config=configs/ae.py:tiny --config.job=encode", "made for train"),
        ("--config=configs/ldm.py:tiny --config.data.prepare.size[0]=48", "not a valid index"),
        ("--config=configs/ldm.py:tiny --config=configs/ldm.py:quick", "given twice"),
        ("--flagfile=none.txt", "No such file"),
    ],
)
def test_what_would_end_in_a_traceback_or_in_other_words_is_one_line(words, answer, monkeypatch):
    monkeypatch.chdir(ROOT)
    with flagsaver.flagsaver(), pytest.raises(UserError, match=re.escape(answer)):
        parse(monkeypatch, *words.split())


def test_a_flagfile_may_name_the_config_and_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "mine.txt"
    file.write_text("# of last week\n--config=configs/ldm.py:tiny\n--config.seed=3\n")
    with flagsaver.flagsaver():
        parse(monkeypatch, f"--flagfile={file}", "--dry-run", "--dry_run_devices=2")
        assert main._CONFIG.value.seed == 3 and main._DRY_RUN_DEVICES.value == 2
    file.write_text("--config=configs/ldm.py:tiny\n--config.sed=3\n")
    with flagsaver.flagsaver(), pytest.raises(UserError, match="Did you mean --config.seed"):
        parse(monkeypatch, f"--flagfile={file}")


# ---- the home ----


def test_home_is_expanded_in_flags_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    seen = []
    fake = types.SimpleNamespace(run=lambda config, workdir: seen.append((config, workdir)))
    monkeypatch.setattr(main.importlib, "import_module", lambda name: fake)
    shutil.copy(ROOT / "configs" / "prepare.py", tmp_path / "mine.py")
    words = ["--config=~/mine.py:tiny", "--config.cohort=~/a,b~,~/c", "--workdir=~/w"]
    with flagsaver.flagsaver():
        parse(monkeypatch, *words)
        main.main([])
    assert seen[0][0].cohort == f"{tmp_path}/a,b~,{tmp_path}/c"
    assert seen[0][1] == f"{tmp_path}/w"
    with flagsaver.flagsaver():
        words = ["--config=configs/ldm.py:tiny", "--config.data.prepared=~/p"]
        parse(monkeypatch, *words, "--config.autoencoder.workdir=~/a")
        config = main._CONFIG.value
        assert config.data.prepared == f"{tmp_path}/p"
        assert config.autoencoder.workdir == f"{tmp_path}/a"


def test_home_is_expanded_in_a_request(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as refused:
        predict.predict(predict.Request("~/none.nii", "~/out", checkpoint="~/run"))
    assert refused.value.what == str(tmp_path / "none.nii")
    (tmp_path / "pet.nii").touch()
    with pytest.raises(UserError) as refused:
        predict.predict(predict.Request("~/pet.nii", "~/out", checkpoint="~/run"))
    assert refused.value.what == str(tmp_path / "run")
