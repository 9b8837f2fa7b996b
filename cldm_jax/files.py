"""Whole files or none: atomic writes and fingerprints. Standard library only."""

import contextlib
import glob
import hashlib
import json
import os
import pathlib
import socket
import zlib

# Of this machine, in the names of temporary files: on a shared disk others write too.
HOST = f"{zlib.crc32(socket.gethostname().encode()):x}"


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary sibling of `path`; renames it over `path` when the block succeeds.

    The temporary name keeps the suffixes (`x.nii.gz` -> `.tmp-<host>-<pid>-x.nii.gz`) because writers
    choose their format by them. The data and the folder are fsynced: after a crash the file is old or
    new. What a killed process of this machine left of this file is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    tmp = path.with_name(f".tmp-{HOST}-{os.getpid()}-{path.name}")
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # A write that fails names no file, an open or a rename the one that nobody will find.
        if error.errno and error.filename in (None, str(tmp)):
            error.filename = str(path)
        raise
    finally:
        tmp.unlink(missing_ok=True)


def _sweep(path: pathlib.Path) -> None:
    for left in path.parent.glob(f".tmp-{HOST}-*-{glob.escape(path.name)}"):
        number = left.name.removeprefix(f".tmp-{HOST}-").removesuffix(f"-{path.name}")
        if number.isdecimal() and not _is_running(int(number)):
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path, text: str) -> None:
    with atomic_path(path) as tmp:
        # What is no text: bytes of a file name in another encoding, as the console shows them.
        tmp.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path, value) -> None:
    """JSON with sorted keys off (order is meaning) and NaN refused (it is not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path):
    """Of UTF-8, with a byte order mark or without, or UTF-16."""
    return json.loads(pathlib.Path(path).read_bytes())


def sha256_file(path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
