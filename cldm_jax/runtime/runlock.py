"""One writer per workdir or folder of data: an advisory lock that dies with its process."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time

from cldm_jax.errors import UserError

POLL = 0.5  # seconds between two looks of who waits
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # Lustre and NFS, mounted without


@contextlib.contextmanager
def run_lock(workdir, waits: bool = False):
    """Holds `<workdir>/.lock`; where another process holds it refuses, naming the holder, or waits. In
    the end the file is removed. Where the file system has no locks it says so and goes on.
    """
    path = pathlib.Path(workdir) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = ""
    with contextlib.ExitStack() as stack:
        while not _is_locked(f := stack.enter_context(open(path, "a+", encoding="utf-8"))):
            f.seek(0)
            reason = f"in use by {f.read().strip() or 'another process'}"
            stack.close()
            if not waits:
                remedy = "Wait for it, stop it, or choose another --workdir."
                raise UserError(workdir, reason, remedy)
            if reason != told:
                print(f"{workdir}: {reason}: waiting for it", flush=True)
            told = reason
            time.sleep(POLL)
        f.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        f.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        f.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_locked(f) -> bool:
    """Whether this process holds the lock of the open file now, or nobody can."""
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        words = f"{f.name}: its file system has no locks ({error.strerror}): start one process here"
        print(f"warning: {words}", file=sys.stderr, flush=True)
    return os.fstat(f.fileno()).st_nlink > 0  # 0: its holder left, and removed it, just now
