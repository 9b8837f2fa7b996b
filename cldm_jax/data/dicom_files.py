"""The files of a DICOM export: a folder or a zip, as a list of (size, opener). No DICOM library."""

import contextlib
import functools
import os
import pathlib
import stat
import struct
import zipfile

from cldm_jax.data import nifti
from cldm_jax.errors import UserError

MAX_FILES = 20_000
ZIP_SLACK = 2  # a zip may unpack to this many times the limit: the CT of a PET/CT study
FIX_FILE = "Export the series from the archive again"
HEAD_BYTES = 132  # preamble and mark
_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US "
    b"UT UV".split()
)


def is_marked(head: bytes) -> bool:
    """Whether a file that begins with `head` has the preamble and the mark that PS3.10 asks for."""
    return head[128:132] == b"DICM"


def is_bare(head: bytes) -> bool:
    """Whether `head` is the first element of a data set without preamble, as older consoles write it:
    of group 0002 or 0008, with its value representation or (implicit) a short length.
    """
    if len(head) < HEAD_BYTES:
        return False
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        if group in (2, 8) and element <= 0x60:
            return head[4:6] in _VRS or (order == "<" and length <= 256)
    return False


def looks_dicom(head: bytes) -> bool:
    return is_marked(head) or is_bare(head)


def without_data_set(data: bytes) -> bytes:
    """The preamble and the first group alone, which is never compressed and says what the file is; at
    most 4 kB, so that of a length that lies little could be inflated.
    """
    start = HEAD_BYTES if is_marked(data) else 0
    length = int.from_bytes(data[start + 8 : start + 12], "little")
    return data[: min(start + 12 + length, 4096)]


def head_of(file: pathlib.Path) -> bytes:
    """The first bytes of a file; none of one that cannot be read."""
    try:
        with open(file, "rb") as f:
            return f.read(HEAD_BYTES)
    except OSError:
        return b""


def walk(folder: pathlib.Path, *, leaving: bool = False):
    """Regular files below `folder`, sorted, but links that leave it; with `leaving` only these."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            file = pathlib.Path(parent, name)
            try:
                leaves = file.is_symlink() and not file.resolve().is_relative_to(root)
                # A pipe would block for ever.
                if leaves == leaving and stat.S_ISREG(file.stat().st_mode):
                    yield file
            except (OSError, RuntimeError):  # a link in a circle, or a file that just went
                continue


@contextlib.contextmanager
def members(path: pathlib.Path):
    """[(size, opener)] of the files below a folder or in a zip, sorted by name. UserError."""
    fix = "Give the folder of one series, or a zip of it"
    with contextlib.ExitStack() as opened:
        try:
            if path.is_dir():
                found = [(f.stat().st_size, functools.partial(open, f, "rb")) for f in walk(path)]
            elif not path.exists():
                raise UserError(path, "no such folder or file", "Check the path")
            elif looks_dicom(head_of(path)):
                raise UserError(path, "is one DICOM file, not a series", fix)
            elif not zipfile.is_zipfile(path):
                raise UserError(path, "is neither a folder nor a zip", fix)
            else:
                found = _in_zip(path, opened.enter_context(zipfile.ZipFile(path)))
        except (OSError, zipfile.BadZipFile, NotImplementedError):
            remedy = "Check the permissions, or copy it again"
            raise UserError(path, "cannot be read", remedy) from None
        if len(found) > MAX_FILES:
            raise UserError(path, f"holds {len(found)} files (limit {MAX_FILES})", fix)
        yield found


def _in_zip(path, archive: zipfile.ZipFile) -> list:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in infos):
        raise UserError(path, "the zip is encrypted", "Unpack it and give the folder")
    total, limit = sum(info.file_size for info in infos), ZIP_SLACK * nifti.MAX_BYTES
    if total > limit:  # zipfile never gives more than the size declared
        reason = f"the zip unpacks to {total / 2**20:.0f} MiB (limit {limit / 2**20:.0f})"
        raise UserError(path, reason, "Zip one series only, or give a folder")
    infos.sort(key=lambda info: info.filename)
    return [(info.file_size, functools.partial(archive.open, info)) for info in infos]


def read(path, member, count: int = -1) -> bytes:
    """Bytes of one member. Its name, and an error that quotes it, stay here."""
    try:
        with member[1]() as f:
            return f.read(count)
    except Exception:  # zipfile raises a dozen types, most of them with the member's name
        pass
    raise UserError(path, "one of its files is damaged or cannot be read", FIX_FILE)
