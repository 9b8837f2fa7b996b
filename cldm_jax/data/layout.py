"""What lies in a dataset folder: people's images by kind, and what is left aside, with the reason.

`sub-*/[ses-*/]`, images in the folder itself or in `pet`, `ct`, `anat`; letters of either case. No image
is opened here, and nothing is chosen: a folder may hold several candidates for one image.
"""

import collections
import os
import pathlib
import re
from typing import NamedTuple

from cldm_jax.data import nifti
from cldm_jax.errors import UserError

NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
FLAT = ("pet", "ct", "mr", "ct_reacq", "mr_reacq", "nac")  # files of one flat folder per person
_ENDS = {"pet": "pet", "ct": "ct", "t1w": "mr"}  # BIDS suffix -> modality
_PLACES = ("", "pet", "ct", "anat", "mr", "mri")  # folders of a person or session that are read
_OTHERS = set(
    "t2w flair pdw t2star inplanet2 bold sbref dwi epi asl m0scan mask dseg probseg seg label "
    "lesions petref phase magnitude t1map t2map mt swi angio defacemask".split()
)
_LIKE = {"pet": "PET", "fdg": "PET", "suv": "PET", "ct": "CT"}
_LIKE |= dict.fromkeys(("t1", "t1w", "mprage", "mp2rage", "spgr", "bravo", "mr", "mri"), "MR")
_NO_PEOPLE = set("derivatives sourcedata rawdata code stimuli phenotype logs tmp truth".split())
_SIDE = re.compile(r"\.|~\$|(thumbs\.db|desktop\.ini)$", re.IGNORECASE)  # at the start of a name
_FOREIGN = re.compile(
    r"\.(dcm|ima|img|hdr|mgz|mgh|nrrd|nhdr|mha|mnc|zip|bz2|xz|zst|7z|tar|tgz|rar)(\.gz)?$",
    re.IGNORECASE,
)
# BIDS calls reconstructions of PET acstat, acdyn, nacstat and nacdyn: without attenuation correction.
_NAC = re.compile(r"_rec-nac[a-z0-9]*_", re.IGNORECASE)
# Of a complex image these are not the magnitude (BIDS, entity part).
_PART = re.compile(r"_part-(phase|real|imag)(_|$)", re.IGNORECASE)
SYNTHETIC = re.compile(r"_desc-synth(sd)?(_|$)", re.IGNORECASE)
_DEPTH = 3  # folders below a person's or session's that are looked into


class Left(NamedTuple):
    """What is not used. severity: "warning" where it may have been meant to be, "error" where it surely
    was, "" else. of_known: part of what somebody has, of whom other images are used.
    """

    path: pathlib.Path
    reason: str
    severity: str = "warning"
    of_known: bool = False


class Level(NamedTuple):
    """A person's folder, or one of the person's sessions, that holds images."""

    person: str
    session: str  # "" where it is the person's own folder
    folder: pathlib.Path
    images: dict[str, list[pathlib.Path]]  # by modality (or another name of FLAT), sorted


class Tree(NamedTuple):
    levels: list[Level]
    left: list[Left]
    people: list[str]  # folders `sub-*`, whatever they hold


def existing(path) -> pathlib.Path:
    """The path, home expanded. UserError where nothing is there."""
    path = pathlib.Path(os.path.expanduser(path))
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            nifti.check_file(path)
        raise UserError(path, "no such file or folder", "Check the path") from None
    except (OSError, ValueError) as e:  # too long, links in a circle, no permission; a NUL byte
        reason = f"cannot be read ({getattr(e, 'strerror', None) or e})"
        raise UserError(repr(str(path))[1:-1], reason, "Check the path") from e
    return path


def hints(root: pathlib.Path, left: list[Left]) -> str:
    """ "; ..." where nobody was found: a folder of people further down, and what may have been meant."""
    inside = (p.parent.name for p in root.glob("*/sub-*") if p.is_dir())
    name = min(inside, default="")
    said = [f"{name}/ holds people (sub-*): give that"] if name else []
    said += [f"{item.path.name}: {item.reason}" for item in left if item.severity][:3]
    return "".join(f"; {words}" for words in said)


def scan(root) -> Tree:
    """Every level of every `sub-*` folder of `root`, in the order of names."""
    root = pathlib.Path(root)
    tree = Tree([], [], [])
    for entry in _entries(root, tree.left):
        is_person = entry.name.lower().startswith("sub-")
        if is_person and entry.is_dir():
            tree.people.append(entry.name)
            _scan_person(entry, tree)
        elif is_person and entry.is_symlink() and not entry.exists():
            tree.people.append(entry.name)
            tree.left.append(Left(entry, "a link to nothing", "error"))
        elif not entry.is_dir():
            if NIFTI.search(entry.name) and not _SIDE.match(entry.name):
                tree.left.append(Left(entry, "lies beside the folders of people (sub-*)"))
            elif is_person and _FOREIGN.search(entry.name):
                tree.left.append(Left(entry, "is a file, and people are folders: unpack it"))
        elif entry.name.lower() not in _NO_PEOPLE and not _SIDE.match(entry.name):
            left: list[Left] = []  # of what may be nobody's, as lost+found is
            if any(NIFTI.search(p.name) for p in _files_below(entry, 2, left)):
                left.append(Left(entry, "holds images and is not called sub-*"))
            tree.left.extend(item._replace(severity="warning") for item in left)
    return tree


def counted(left: list[Left]) -> str:
    """ "3 T2w images, 2 side files ...": how many were left aside for which reason."""
    counts = collections.Counter(item.reason for item in left)
    return "; ".join(f"{n} x {reason}" for reason, n in counts.most_common())


def _scan_person(folder: pathlib.Path, tree: Tree) -> None:
    sessions = [p for p in _entries(folder, []) if _is_session(p)]
    found, known = False, len(tree.left)
    for level, session in [(folder, ""), *((p, p.name) for p in sessions)]:
        images: dict[str, list[pathlib.Path]] = {}
        foreign: collections.Counter = collections.Counter()
        for path in _files_below(level, _DEPTH, tree.left, skip_sessions=not session):
            kind, left = _classify(path, path.parent.relative_to(level))
            if kind and (other := _other_owner(path.name, folder.name, session)):
                reason = f"is called after {other} and lies in {level.relative_to(folder.parent)}"
                tree.left.append(Left(path, reason, "error"))
            elif kind:
                images.setdefault(kind, []).append(path)
            elif left is not None:
                tree.left.append(left)
            elif _FOREIGN.search(path.name):
                foreign[path.parent] += 1
        for where, count in sorted(foreign.items()):
            tree.left.append(Left(where, f"holds images that are not NIfTI ({count} files)", ""))
        if images:
            tree.levels.append(Level(folder.name, session, level, images))
            found = True
    if not found:
        reason = "no PET, CT or T1w image in it (a dataset that was not fetched?)"
        tree.left.append(Left(folder, reason))
    else:
        tree.left[known:] = [item._replace(of_known=True) for item in tree.left[known:]]


def _other_owner(name: str, person: str, session: str) -> str:
    """The person or session that a file is called after, where that is not whose folder it lies in."""
    for label, own in (("sub", person), ("ses", session)):
        named = re.search(rf"(?:^|_)({label}-[^_.]+)", name, re.IGNORECASE)
        # Of a folder that is no label of BIDS ("sub-1_b") the whole name is in the file's.
        if own and named and not re.search(rf"(?:^|_){re.escape(own)}[_.]", name, re.IGNORECASE):
            return named[1]
    return ""


def _is_session(path: pathlib.Path) -> bool:
    return path.name.lower().startswith("ses-") and path.is_dir() and not NIFTI.search(path.name)


def _classify(path: pathlib.Path, below: pathlib.Path) -> tuple[str, Left | None]:
    """(modality or "", why not). (("", None)): no image."""
    if _SIDE.match(path.name):
        return "", Left(path, "side files of an operating system", "")
    if not NIFTI.search(path.name):
        return "", None
    stem = NIFTI.sub("", path.name)
    words = [w for w in re.split(r"[^a-z0-9]+", stem.lower()) if w]
    end = stem.lower().rpartition("_")[2]
    if SYNTHETIC.search(stem):
        return "", Left(path, "images that this program made (desc-synth), not measured", "")
    kind = stem.lower() if stem.lower() in FLAT else _ENDS.get(end, "")
    if kind and (part := _PART.search(stem)):
        reason = f"part-{part[1].lower()} of an image, and its magnitude is what is read"
        return "", Left(path, reason)
    if kind == "pet" and _NAC.search(stem):
        kind = "nac"
    if kind and str(below).lower().strip(".") in _PLACES:
        return kind, None
    if kind:
        return "", Left(path, f"lies in {below}, where no {kind} is looked for")
    if words and words[-1] in _OTHERS:
        return "", Left(path, f"images of another kind ({words[-1]})", "")
    like = next((_LIKE[w] for w in reversed(words) if w in _LIKE), "")
    like = like or ("PET" if any(w.endswith("pet") for w in words) else "")
    if like:
        name = {"PET": "*_pet", "CT": "*_ct", "MR": "*_T1w"}[like]
        return "", Left(path, f"looks like {like} and is not called {name}.nii.gz")
    return "", Left(path, "images of another kind", "")


def _files_below(folder, depth: int, left: list[Left], *, skip_sessions: bool = False):
    """Files, and folders that are called like images, down to `depth` folders below `folder`."""
    for entry in _entries(folder, left):
        if not entry.is_dir() or NIFTI.search(entry.name):
            yield entry
        elif entry.is_symlink() and pathlib.Path(folder).resolve().is_relative_to(entry.resolve()):
            left.append(Left(entry, "a link to a folder that it lies in"))
        elif depth and not _SIDE.match(entry.name) and not (skip_sessions and _is_session(entry)):
            yield from _files_below(entry, depth - 1, left)


def _entries(folder, left: list[Left]) -> list[pathlib.Path]:
    try:
        return sorted(pathlib.Path(folder, name) for name in os.listdir(folder))
    except OSError as e:
        left.append(Left(pathlib.Path(folder), f"cannot be read ({e.strerror})", "error"))
        return []
