"""A process and its terminal: which interpreter a command names, and leaving without a traceback.

Imports nothing from outside and keeps to words that older Pythons understand: it also runs in an
interpreter that lacks everything, to say so.
"""

import contextlib
import importlib.util
import os
import pathlib
import shlex
import shutil
import signal
import sys
from typing import NoReturn

VENV_PYTHON = ".venv/bin/python"  # what launch/setup.sh makes
# Top-level modules of requirements.txt.
REQUIRED = (
    "absl clu filelock flax grain jax jinja2 matplotlib ml_collections nibabel numpy optax orbax "
    "safetensors scipy tensorboardX tqdm"
).split()
_ROOT = pathlib.Path(__file__).resolve().parent.parent
INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 and the signal, as shells have it


def interpreter() -> str:
    """The running interpreter as a command names it here: `.venv/bin/python` from the folder that has
    it, `python` where that is this one, else its path.
    """
    if _is_prefix(".venv"):
        return VENV_PYTHON
    found = shutil.which("python")
    if found and _is_prefix(os.path.dirname(os.path.dirname(found))):
        return "python"
    return sys.executable


def command(*words: str) -> str:
    """`python -m WORDS` as it can be pasted into the shell that this process was started from."""
    return shlex.join([interpreter(), "-m", *words])


def _is_prefix(folder: str) -> bool:
    try:
        return os.path.samefile(folder, sys.prefix)
    except OSError:
        return False


def start(module: str) -> None:
    """The first thing a command does: refuses an interpreter without the requirements (one line, exit
    status 1), prints letters that the terminal lacks as \\uXXXX, and takes Ctrl-C without a traceback.
    """
    _open_closed_streams()
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {_refusal(module, missing)}", file=sys.stderr)
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Log(sys.stdout), _Log(sys.stderr)
    leave_on_interrupt()


class _Log:
    """A stream whose device may fill up (a log on a full disk): that loses what is said, never the work.

    lost: the reason, once something could not be written.
    """

    def __init__(self, stream):
        self._stream = stream
        self.lost = None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self):
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error):
        if isinstance(error, BrokenPipeError):
            raise error
        self.lost = error.strerror or str(error)
        _discard(self._stream)


def _discard(stream) -> None:
    """Whatever is still to be flushed goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _open_closed_streams() -> None:
    """`>&-` in a shell leaves None, and the number of the stream to whatever file is opened next."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _refusal(module: str, missing) -> str:
    few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    reason = f"{sys.executable} lacks the requirements ({few})"
    if not (_ROOT / VENV_PYTHON).is_file() or _is_prefix(str(_ROOT / ".venv")):
        return f"{reason}. Install them into .venv: bash launch/setup.sh"
    is_here = os.path.realpath(os.curdir) == str(_ROOT)
    python = VENV_PYTHON if is_here else str(_ROOT / VENV_PYTHON)
    return f"{reason}. Use: {shlex.join([python, '-m', module, *sys.argv[1:]])}"


def refuse(error: Exception) -> NoReturn:
    """What a user did that cannot be done: one line, exit status 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def leave_on_interrupt() -> None:
    """From here on Ctrl-C is `SystemExit(130)`; where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(signum, frame):
    raise SystemExit(INTERRUPTED)


def run(program) -> None:
    """`program()`; whoever reads its output may stop doing so (`| head -1`), which ends it quietly.
    Output that could not be written is told in the end, with exit status 2.
    """
    try:
        try:
            program()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _discard(stream)
        sys.exit(PIPE_CLOSED)
    except SystemExit as end:
        if end.code:
            raise
    if lost := getattr(sys.stdout, "lost", None):
        done = "Part of it is lost, the work itself went on. Redirect it to where there is room"
        print(f"error: standard output: cannot be written ({lost}). {done}", file=sys.stderr)
        sys.exit(2)
