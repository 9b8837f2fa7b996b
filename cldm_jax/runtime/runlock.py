"""One writer per workdir or folder of data: an advisory lock that dies with its process."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time

from cldm_jax.errors import UserError


@contextlib.contextmanager
def run_lock(workdir):
    """Holds `<workdir>/.lock`; refuses, naming the holder, where another process holds it. In the end
    the file is removed.
    """
    path = pathlib.Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = (
                os.fstat(f.fileno()).st_nlink > 0
            )  # 0: its holder left, and removed it, just now
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            f.seek(0)
            raise UserError(
                workdir,
                f"in use by {f.read().strip() or 'another process'}",
                "Wait for it, stop it, or choose another --workdir.",
            )
        f.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        f.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        f.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
