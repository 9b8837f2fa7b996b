"""A cohort's files: a CSV manifest, a BIDS tree, or one flat folder per subject."""

import csv
import dataclasses
import difflib
import pathlib
import re

from cldm_jax import files
from cldm_jax.errors import UserError

VOLUMES = ("pet", "ct", "mr", "ct_reacq", "mr_reacq")
GAIN = "pet_gain"
COLUMNS = ("subject", "group", "split", *VOLUMES, GAIN)
SPLITS = ("train", "val", "test")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # safe as a file name anywhere
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # not a file on Windows
_LAYOUT = (  # BIDS: modality, folder, end of the file name
    ("pet", "pet", "_pet"),
    ("ct", "ct", "_ct"),
    ("mr", "anat", "_T1w"),
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One PET with its targets. `group`: people who must share a split; `split` "" = undecided.

    pet_gain: how much brighter the PET is to be shown than its own scale makes it (simulated people).
    """

    id: str
    group: str
    split: str
    files: dict[str, pathlib.Path]  # modality or "ct_reacq", "mr_reacq" -> file, given ones only
    pet_gain: float = 1.0


def read_cohort(path) -> list[Subject]:
    """Subjects sorted by id, from `path`: a CSV, a folder with manifest.csv, or a BIDS tree.

    BIDS: `sub-*/[ses-*/]{pet,ct,anat}/*_{pet,ct,T1w}.nii[.gz]`; a person's sessions become subjects
    of one group. Flat: `sub-*/{pet,ct,mr,ct_reacq,mr_reacq}.nii[.gz]`. Files are not opened here.
    Raises UserError for anything ambiguous: unsafe or repeated ids, two candidates for one image,
    misspelt columns.
    """
    path = pathlib.Path(path)
    try:
        is_file = path.is_file()
    except OSError as e:  # a name that is too long, a folder that may not be entered
        raise UserError(path, f"cannot be read ({e.strerror})", "Check the path") from e
    if is_file:
        subjects = _read_csv(path)
    elif (path / "manifest.csv").is_file():
        subjects = _read_csv(path / "manifest.csv")
    elif path.is_dir():
        subjects = _read_tree(path)
    else:
        raise UserError(path, "no such file or folder", "Give a cohort folder or a manifest .csv")
    if not subjects:
        raise UserError(path, "no subjects found", "Expected a manifest.csv or sub-* folders")
    seen = set()
    for s in subjects:
        if s.id.lower() in seen:  # ids become file names, and some disks ignore case
            raise UserError(path, f"subject {s.id} appears twice", "Give every subject its own id")
        seen.add(s.id.lower())
    return sorted(subjects, key=lambda s: s.id)


def check_id(value: str, where) -> str:
    if not _ID.fullmatch(value) or ".." in value or _DEVICE.fullmatch(value):
        reason = f"{value[:80]!r} is not a usable subject or group id"
        raise UserError(where, reason, "Use 1 to 64 of A-Z a-z 0-9 . _ - (no leading . or -)")
    return value


def provenance(path) -> tuple[str, str]:
    """(name, contrast) from what lies beside the data; a cohort that says nothing is "unknown"."""
    folder = pathlib.Path(path)
    folder = folder if folder.is_dir() else folder.parent
    for file in ("manifest.json", "dataset_description.json"):
        if (folder / file).is_file():
            try:
                found = files.read_json(folder / file)
                name, contrast = (
                    found.get("name") or found["Name"],
                    found.get("contrast", "unknown"),
                )
            except (OSError, ValueError, KeyError, AttributeError, RecursionError) as e:
                raise UserError(
                    folder / file, f"not readable ({e!r})", "Repair or remove it"
                ) from e
            return str(name), str(contrast)
    return folder.resolve().name, "unknown"


def _read_csv(path: pathlib.Path) -> list[Subject]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f, strict=True)
            columns = [c.strip() for c in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as e:
        raise UserError(path, f"not a readable CSV file ({e})", "Save it as CSV, UTF-8") from e
    except OSError as e:
        raise UserError(path, f"cannot be read ({e.strerror})", "Check the permissions") from e
    _check_columns(path, columns)
    subjects = []
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        if None in row or None in row.values():
            raise UserError(where, "has more or fewer fields than the header", "Check the commas")
        row = {k: (row[k] or "").strip() if k in row else "" for k in COLUMNS}
        if not any(row.values()):
            continue
        split = row["split"].lower()
        if split and split not in SPLITS:
            raise UserError(
                where, f"split {row['split']!r}", "Use train, val, test or leave it empty"
            )
        name = check_id(row["subject"], where)
        group = check_id(row["group"] or name, where)
        files = {m: path.parent / row[m] for m in VOLUMES if row[m]}
        subjects.append(Subject(name, group, split, files, _gain(row[GAIN], where)))
    return subjects


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


def _read_tree(root: pathlib.Path) -> list[Subject]:
    subjects = []
    for folder in sorted(p for p in root.glob("sub-*") if p.is_dir()):
        person = check_id(folder.name, folder)
        flat = {m: f for m in VOLUMES if (f := _only(folder, m)) is not None}
        if flat:
            subjects.append(Subject(person, person, "", flat))
            continue
        sessions = sorted(p for p in folder.glob("ses-*") if p.is_dir())
        for session in sessions or [folder]:
            found = {m: _only(session / sub, f"*{end}") for m, sub, end in _LAYOUT}
            files = {m: f for m, f in found.items() if f is not None}
            if files:
                name = f"{person}_{session.name}" if sessions else person
                subjects.append(Subject(check_id(name, session), person, "", files))
    return subjects


def _only(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
    """The single NIfTI of `folder` that matches; None if there is none."""
    found = sorted(p for end in (".nii", ".nii.gz") for p in folder.glob(pattern + end))
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise UserError(folder, f"several candidates: {names}", "Choose one in a manifest.csv")
    return found[0] if found else None
