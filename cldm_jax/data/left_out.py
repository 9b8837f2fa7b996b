"""Who of a cohort goes on after the audit, and what stops all of it.

An error is about one image, one person or the cohort. One image is left out, and the person where no
PET with a target remains: the others go on. What many share is no accident of theirs but a choice that
somebody has to make, and nothing is prepared before it is made.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cldm_jax.data.audit import Finding
from cldm_jax.data.bids import Subject
from cldm_jax.data.layout import Left

_SHOWN = 10  # in one line


class LeftOut(NamedTuple):
    """Images of one person, and why. is_person: all of them, although some may have no error."""

    subject: Subject
    volumes: tuple[str, ...]
    is_person: bool
    why: str

    def name(self) -> str:
        return self.subject.id + ("" if self.is_person else f" {' and '.join(self.volumes)}")

    def rows(self) -> list[dict[str, str]]:
        """For the list of what was left aside."""
        owner = (
            "the subject is left out" if self.is_person else "the subject's other images are used"
        )
        paths = [str(self.subject.files[n]) for n in self.volumes] or [""]
        reason = f"{self.why} ({owner})"
        return [{"path": p, "reason": reason, "subject": self.subject.id} for p in paths]


def find(
    subjects: Iterable[Subject], kept: Mapping[str, set[str]], errors: Iterable[Finding]
) -> list[LeftOut]:
    """What of each person is not among kept[id], the names of images that go on."""
    why: dict[str, list[Finding]] = {}
    for f in errors:
        why.setdefault(f.subject, []).append(f)
    out = []
    for s in subjects:
        names = tuple(n for n in s.files if n not in kept.get(s.id, ()))
        if names or s.id not in kept:
            reasons = [f"{f.volume or f.what}: {f.reason}" for f in why.get(s.id, ())]
            out.append(LeftOut(s, names, s.id not in kept, "; ".join(reasons)))
    return out


def remaining(subjects: Iterable[Subject], out: Iterable[LeftOut]) -> list[Subject]:
    """The subjects, with the images, that are not left out."""
    gone = {item.subject.id: item for item in out}
    kept = []
    for s in subjects:
        item = gone.get(s.id)
        if item is None:
            kept.append(s)
        elif not item.is_person:
            files = {n: p for n, p in s.files.items() if n not in item.volumes}
            kept.append(dataclasses.replace(s, files=files))
    return kept


def stopping(
    subjects: list[Subject], out: list[LeftOut], errors: Iterable[Finding]
) -> list[Finding]:
    """The errors about images that concern the cohort: where nobody is left; where half of those who have
    a target, two at least, have it on other voxels than the PET's, which a setting allows for; and where
    no image of a target is left that half of the people, two at least, were to have.
    """
    errors = [f for f in errors if f.subject]
    kept = remaining(subjects, out)
    if not kept:
        return errors
    stops = []
    for name in ("ct", "mr"):
        having = {s.id for s in subjects if name in s.files}
        own = [f for f in errors if f.volume == name]
        shared = [f for f in own if f.is_choice]
        if len(shared) >= max(2, len(having) / 2):
            stops += shared
        elif not any(name in s.files for s in kept) and len(having) >= max(2, len(subjects) / 2):
            stops += own
    return stops


def counted(out: list[LeftOut], total: int, aside: Iterable[Left] = ()) -> str:
    """ "left out: 1 of 6 subjects and images of 2 others: p1 (pet: the file is empty); ..."; "" for none.

    aside: what a folder holds besides, of which the errors are counted.
    """
    refused = [item for item in aside if item.severity == "error"]
    unknown = sum(not item.of_known for item in refused)
    people = sum(item.is_person for item in out) + unknown
    parts = [f"{people} of {total + unknown} subjects"] * bool(people)
    if others := len(out) + len(refused) - people:
        whose = f" other{'s' * (others > 1)}" if people else f" of {total} subjects"
        parts.append(f"images of {others}{whose}")
    names = [f"{item.name()} ({item.why})" for item in out]
    names += [f"{item.path.name} ({item.reason})" for item in refused]
    listed = names[:_SHOWN] + [f"and {len(names) - _SHOWN} more"] * (len(names) > _SHOWN)
    return f"left out: {' and '.join(parts)}: {'; '.join(listed)}" if names else ""
