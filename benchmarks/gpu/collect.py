"""What a run leaves: at most 8 files of 16 MiB each. Standard library only."""

import pathlib
import re
import shutil

MAX_FILES, MAX_BYTES = 8, 16 * 2**20
LOG_BYTES = 4 * 2**20  # of the log, its end
NAME = re.compile(r"[A-Za-z0-9._-]+")


def take(sources: list[pathlib.Path], out: pathlib.Path, room: int = MAX_FILES) -> dict[str, str]:
    """Copies `sources` into `out`, the first ones first, while there is room for more.

    Returns {name: reason} of those left out: over the size, over the number, or oddly named.
    """
    left_out = {}
    for path in sources:
        size = path.stat().st_size
        if not NAME.fullmatch(path.name):
            left_out[ascii(path.name)] = "a name with other signs than letters, digits, . _ -"
        elif size > MAX_BYTES:
            left_out[path.name] = f"{size / 2**20:.1f} MiB, over {MAX_BYTES // 2**20}"
        elif room <= 0:
            left_out[path.name] = f"more than {MAX_FILES} files"
        else:
            shutil.copyfile(path, out / path.name)
            room -= 1
    return left_out


def take_log(path: pathlib.Path, out: pathlib.Path) -> None:
    """The end of a log, from the beginning of a line on."""
    size = path.stat().st_size
    with open(path, "rb") as log, open(out / path.name, "wb") as kept:
        if size > LOG_BYTES:
            log.seek(size - LOG_BYTES)
            log.readline()
        shutil.copyfileobj(log, kept)
