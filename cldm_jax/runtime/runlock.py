"""One writer per workdir: an advisory lock that dies with its process."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time

from cldm_jax.errors import UserError


@contextlib.contextmanager
def run_lock(workdir):
    """Holds `<workdir>/.lock`; refuses, naming the holder, where another process holds it."""
    path = pathlib.Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise UserError(
                workdir,
                f"in use by {f.read().strip() or 'another process'}",
                "Wait for it, stop it, or choose another --workdir.",
            ) from None
        f.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        f.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        f.flush()
        yield
