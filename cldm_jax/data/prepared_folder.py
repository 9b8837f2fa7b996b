"""The folder of prepare's result: is it finished, of the same request, and whose files lie in it?"""

import json
import pathlib
from collections.abc import Iterable

from cldm_jax import files
from cldm_jax.data import bids, left_out, shards
from cldm_jax.data import volumes as volume_files
from cldm_jax.errors import UserError

REGISTRATION, OVERLAYS = "registration.json", "overlays"
FREE = ("job", "preset", "cohort", "workers")  # settings that do not change the data
# Settings that older folders do not name, and what those did.
YOUNGER = {"register": "", "train_min_head_fraction": 0.08}
_ANOTHER = "Give another workdir, or delete this folder"


def inputs_hash(subjects: Iterable[bids.Subject], sha256: dict[str, dict[str, str]]) -> str:
    """Of who is in the cohort, in which group and split, with which files' content and PET gain."""
    rows = []
    for s in subjects:
        gain = () if s.pet_gain == 1 else (s.pet_gain,)  # older folders know of none
        rows.append([s.id, s.group, s.split, sha256[s.id], *gain])
    return files.sha256_json(rows)


def recorded(item: left_out.LeftOut) -> dict:
    """For the index: with hashes, so that a repaired image is noticed."""
    sha256 = {name: _sha256(item.subject.files[name]) for name in item.volumes}
    return {"id": item.subject.id, "person": item.is_person, "why": item.why, "sha256": sha256}


def _sha256(path) -> str:
    """Of what may be unreadable: "" then."""
    try:
        return volume_files.sha256(path)
    except (UserError, OSError):
        return ""


def check_reuse(root: pathlib.Path, config, cohort: bids.Cohort):
    """(the subjects that are in the finished folder, who is not). UserError naming what differs between
    it and this request.
    """
    old, subjects = shards.Prepared(root).json, cohort.subjects
    asked = json.loads(json.dumps(config.to_dict()))  # tuples become lists, as in the index
    # A setting that the folder's version did not know yet has no say: its default changes nothing.
    # One that is asked for by name, in vain, is another matter.
    known = YOUNGER | old["config"]
    differing = sorted(k for k, v in known.items() if v != asked.get(k) and k not in FREE)
    if differing:
        reason = f"was prepared with other settings: {', '.join(differing)}"
        raise UserError(root, reason, _ANOTHER)
    out = _still_out(root, old.get("left_out", ()), subjects)
    kept = left_out.remaining(subjects, out)
    sha256 = {s.id: {m: volume_files.sha256(p) for m, p in s.files.items()} for s in kept}
    if inputs_hash(kept, sha256) != old["inputs"]:
        reason = f"was prepared from other files or people than {config.cohort} holds now"
        raise UserError(root, reason, _ANOTHER)
    return kept, left_out.counted(out, len(subjects), cohort.left)


def _still_out(root: pathlib.Path, rows, subjects) -> list[left_out.LeftOut]:
    """What the finished folder was made without and the cohort still has. UserError if it has changed."""
    out, known = [], {s.id: s for s in subjects}
    for row in rows:
        s = known.get(row["id"])
        if s is None:
            continue
        names = tuple(n for n in s.files if row["person"] or n in row["sha256"])
        item = left_out.LeftOut(s, names, row["person"], row["why"])
        if any(_sha256(s.files[n]) != row["sha256"].get(n) for n in names):
            reason = f"was prepared without {item.name()}, whose files are others now"
            raise UserError(root, reason, _ANOTHER)
        out += [item] * bool(names)
    return out


def leftovers(root: pathlib.Path) -> list[pathlib.Path]:
    """Files of an unfinished attempt; anything else in the folder is somebody's: UserError."""
    if root.exists() and not root.is_dir():
        raise UserError(root, "is a file", "Give a folder as the workdir")
    left = [*root.glob("*-[0-9][0-9][0-9][0-9][0-9].npy"), *root.glob("audit.json")]
    left += [*root.glob(".tmp-*"), *root.glob(REGISTRATION)]
    folder = root / OVERLAYS
    pictures = [p for name in bids.VOLUMES for p in folder.glob(f"*_{name}.png")]
    ours = {*left, *pictures, root / ".lock"}
    if folder.is_dir() and set(folder.iterdir()) <= ours:
        ours.add(folder)
    if root.exists() and set(root.iterdir()) - ours:
        raise UserError(root, "holds other files", "Give a new or empty folder as the workdir")
    return [*left, *pictures]


def sweep(root: pathlib.Path) -> None:
    """Removes what an unfinished attempt left: for the one process that holds the folder's lock."""
    for path in leftovers(root):
        path.unlink()
