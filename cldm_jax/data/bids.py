"""A cohort's files: a CSV manifest, a BIDS tree, or one flat folder per subject."""

import codecs
import csv
import dataclasses
import difflib
import io
import os
import pathlib
import re
import unicodedata
from typing import NamedTuple

from cldm_jax import files
from cldm_jax.data import layout
from cldm_jax.errors import UserError

VOLUMES = layout.FLAT
GAIN = "pet_gain"
COLUMNS = ("subject", "group", "split", *VOLUMES, GAIN)
SPLITS = ("train", "val", "test")
SIMULATED = "simulate.json"  # in a simulated cohort from the start; its manifest.json comes last
MAX_ID = 200  # bytes of an id as a file name, to which outputs add an ending; a disk takes 255
_NO_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')  # not in a file's name, here or on Windows
# Not a file on Windows.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# How BIDS, R and pandas write that there is nothing: in any column but the subject's.
_NOTHING = ("n/a", "na", "nan", "none", "null", "-")
_IMAGE = re.compile(r"\.(nii(\.gz)?|zip|dcm|mgz|nrrd|mha|img)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One PET with its targets. `group`: people who must share a split; `split` "" = undecided.

    pet_gain: how much brighter the PET is to be shown than its own scale makes it (simulated people).
    """

    id: str
    group: str
    split: str
    files: dict[str, pathlib.Path]  # one of VOLUMES -> file, given ones only
    pet_gain: float = 1.0


class Cohort(NamedTuple):
    """subjects: sorted by id. left: what the folder or the manifest holds besides, with the reason."""

    subjects: list[Subject]
    left: list[layout.Left]


def find_cohort(path) -> Cohort:
    """The cohort at `path`: a CSV, a folder with manifest.csv, or a BIDS tree.

    BIDS: `sub-*/[ses-*/]{pet,ct,anat}/*_{pet,ct,T1w}.nii[.gz]` in letters of either case, a PET without
    attenuation correction as `*_rec-nac*_pet`; a person's own folder and each session become subjects of
    one group. Flat: `sub-*/{pet,ct,mr,ct_reacq,mr_reacq,nac}.nii`, zipped or not. A folder without a PET,
    or whose PET has no target, or whose name no file can have, is left. Files are not opened here. Raises
    UserError for anything ambiguous: repeated ids, ids of a manifest that no file can have, several
    candidates for one image (all of them are listed), misspelt columns; and for a simulation that is not
    finished, whose people would be taken for patients, each of a group of their own.
    """
    path = layout.existing(path)
    folder = path.parent if path.is_file() else path
    if (folder / SIMULATED).is_file() and not (folder / "manifest.json").is_file():
        reason = "a simulated cohort that is not finished"
        raise UserError(folder, reason, "Run the command that began it again: it goes on")
    table = path if path.is_file() else path / "manifest.csv"
    cohort = _read_csv(table) if table.is_file() else _read_tree(path)
    if not cohort.subjects:
        reason = "no subjects found" + layout.hints(path, cohort.left)
        raise UserError(path, reason, "Expected a manifest.csv or sub-* folders")
    seen = set()
    for s in cohort.subjects:
        name = unicodedata.normalize("NFC", s.id).casefold()
        if name in seen:  # ids become file names, and some disks ignore case
            raise UserError(path, f"subject {s.id} appears twice", "Give every subject its own id")
        seen.add(name)
    return Cohort(sorted(cohort.subjects, key=lambda s: s.id), cohort.left)


def check_id(value: str, where) -> str:
    """`value`, which files may be called after. UserError where no file can be, on any system."""
    try:
        length = len(value.encode())
    except UnicodeEncodeError:  # bytes of a file name that are no UTF-8
        length = 0
    # "=1+1" and its like are formulas where a table with the id in it is opened; "#p1" is somebody whom
    # the user has commented out, and no CSV has comments.
    bad = _NO_NAME.search(value) or value[:1] in ".-=+@#" or value[-1:] in ". "
    if bad or not 0 < length <= MAX_ID or _DEVICE.fullmatch(value):
        reason = f"{ascii(value[:80])} is not a usable subject or group id"
        remedy = (
            f"Use up to {MAX_ID} bytes that can be a file's name anywhere: no / \\ : * ? \" < > |, "
            "and none of . - = + @ # first"
        )
        raise UserError(where, reason, remedy)
    return value


def provenance(path) -> tuple[str, str]:
    """(name, contrast) from what lies beside the data; a cohort that says nothing is "unknown"."""
    folder = pathlib.Path(os.path.expanduser(path))
    folder = folder if folder.is_dir() else folder.parent
    for file in ("manifest.json", "dataset_description.json"):
        if (folder / file).is_file():
            try:
                found = files.read_json(folder / file)
                name = found.get("name") or found.get("Name") or folder.resolve().name
                return str(name), str(found.get("contrast", "unknown"))
            except (OSError, ValueError, AttributeError, RecursionError) as e:
                reason = f"not readable ({type(e).__name__}: {e})"
                raise UserError(folder / file, reason, "Repair or remove it") from e
    return folder.resolve().name, "unknown"


def _read_csv(path: pathlib.Path) -> Cohort:
    try:
        text = _decoded(path.read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_comma(text), strict=True)
        columns = [c.strip() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as e:
        raise UserError(path, f"not a readable CSV file ({e})", "Save it as CSV, UTF-8") from e
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror})", "Check the permissions") from e
    _check_columns(path, columns)
    subjects, images = [], {c: 0 for c in columns if c not in COLUMNS}
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        if None in row or None in row.values():
            raise UserError(where, "has more or fewer fields than the header", "Check the commas")
        for column in images:
            images[column] += _is_image(path.parent, row[column].strip())
        row = {k: (row[k] or "").strip() if k in row else "" for k in COLUMNS}
        row |= {k: "" for k in COLUMNS[1:] if row[k].lower() in _NOTHING}
        if not any(row.values()):
            continue
        split = row["split"].lower()
        if split and split not in SPLITS:
            raise UserError(
                where, f"split {row['split']!r}", "Use train, val, test or leave it empty"
            )
        name = check_id(row["subject"], where)
        group = check_id(row["group"] or name, where)
        given = {m: path.parent / os.path.expanduser(row[m]) for m in VOLUMES if row[m]}
        subjects.append(Subject(name, group, split, given, _gain(row[GAIN], where)))
    read = ", ".join(VOLUMES)
    left = [
        layout.Left(path, f"column {c!r} holds images ({n}) and is not read: only {read} are")
        for c, n in images.items()
        if n
    ]
    return Cohort(subjects, left)


def _decoded(data: bytes) -> str:
    """Spreadsheets write UTF-8 with and without a mark, and UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def _comma(text: str) -> str:
    """What parts the header's fields: a comma, or what spreadsheets put in its place."""
    header = text.lstrip().partition("\n")[0]
    return max(",;\t", key=header.count)


def _is_image(folder: pathlib.Path, cell: str) -> bool:
    """Whether a cell is the path of an image: called like one, or a folder that is there."""
    if _IMAGE.search(cell):
        return True
    try:
        return ("/" in cell or "\\" in cell) and (folder / cell).is_dir()
    except (OSError, ValueError):
        return False


def _gain(text: str, where) -> float:
    try:
        value = float(text or 1)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise UserError(where, f"{GAIN} {text!r}", "Give a number from 0.01 to 100, or nothing")
    return value


def _check_columns(path, columns: list[str]) -> None:
    """Other columns are the user's own; one that looks like ours is a mistake worth stopping for."""
    repeated = {c for c in columns if columns.count(c) > 1 and c in COLUMNS}
    if repeated:
        raise UserError(path, f"column {min(repeated)!r} appears twice", "Keep one")
    for column in columns:
        close = difflib.get_close_matches(column.lower(), COLUMNS, 1, 0.8)
        if column not in COLUMNS and close and close[0] not in columns:
            reason = f"column {column!r} is not known"
            raise UserError(path, reason, f"Rename it to {close[0]!r}, or to something less alike")
    for need in ("subject", "pet"):
        if need not in columns:
            reason = f"no column {need!r} (found: {', '.join(columns)[:80]})"
            raise UserError(path, reason, f"The header is {','.join(COLUMNS)}, comma-separated")


def _read_tree(root: pathlib.Path) -> Cohort:
    tree = layout.scan(root)
    subjects, left, several = [], list(tree.left), []
    for level in tree.levels:
        name = "_".join(filter(None, (level.person, level.session)))
        images = level.images
        if "pet" not in images:
            kinds = " and ".join(sorted(images)).upper()
            hint = "pairs over sessions: list them in a manifest.csv"
            if "nac" in images:
                hint = "to train on it alone, list it in a manifest.csv as pet"
            reason = f"{kinds} without a PET beside it ({hint})"
            left.append(layout.Left(level.folder, reason))
        elif not {"ct", "mr"} & set(images):
            left.append(layout.Left(level.folder, "PET with neither CT nor MR beside it"))
        else:
            try:
                check_id(level.person, level.folder)
                check_id(name, level.folder)
            except UserError as e:
                left.append(layout.Left(level.folder, e.reason, "error"))
                continue
            several += [found for found in images.values() if len(found) > 1]
            given = {m: images[m][0] for m in VOLUMES if m in images}
            subjects.append(Subject(name, level.person, "", given))
    if several:
        names = "; ".join(", ".join(str(p.relative_to(root)) for p in found) for found in several)
        reason = f"several candidates for one image, {len(several)} times: {names}"
        remedy = "List the one to use for each person in a manifest.csv, or move the others away"
        raise UserError(root, reason, remedy)
    return Cohort(subjects, left)
