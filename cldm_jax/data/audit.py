"""What is wrong with a cohort before anything is made of it, as a list of findings.

An "error" condemns an image, a person or the cohort (`left_out` says what then goes on); a "warning" is
shown and passed. Nothing here repairs data.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from cldm_jax.data import bids, intensity, layout, mask, mutual_information, nifti, whole_body
from cldm_jax.data.volumes import read_volume
from cldm_jax.errors import UserError, rounded

AFFINE_TOLERANCE_MM = 0.1  # at the corners of the volume
_HU_BONE = 200.0
_CT_AIR = 0.05  # share of a CT's voxels within 100 HU of air, at the least
_HU_HEAD = (-300.0, 500.0)  # median where the PET shows the head; a wrong intercept is 1000 off
_MIN_HEAD_ML = 50.0  # of PET foreground; a brain has over 1000
_BARE = 0.6  # of the largest MR head, each over its PET: a brain is half of a head
_GAIN = 1.05  # a turned or moved target that fits this much better: as given, it is wrong
_MI_SPACING_MM = 4.0
REGISTER = (
    "To have it registered to the PET, add --config.register=rigid "
    '(in Python: config.register = "rigid")'
)


@dataclasses.dataclass(frozen=True)
class Finding:
    severity: str  # "error" or "warning"
    subject: str  # id, or "" for the cohort
    what: str  # the file
    reason: str
    remedy: str
    volume: str = ""  # name of the image that an error is about; "": the person, or the cohort
    is_choice: bool = False  # a setting is to be chosen where many share it

    def line(self) -> str:
        return f"{self.severity:7s} {self.subject}: {self.what}: {self.reason}. {self.remedy}"


class Notes(list):
    """Findings of one subject, to which each check adds."""

    def __init__(self, subject: bids.Subject):
        super().__init__()
        self.subject = subject

    def add(self, severity: str, name: str, reason: str, remedy: str, is_choice=False) -> None:
        what = str(self.subject.files.get(name, name))
        volume = name if name in self.subject.files else ""
        self.append(Finding(severity, self.subject.id, what, reason, remedy, volume, is_choice))


def read_subject(notes: Notes) -> dict[str, nifti.Volume]:
    """Volumes as given: every file that can be read. Notes what each by itself gives to say."""
    subject, volumes = notes.subject, {}
    for name, path in subject.files.items():
        try:
            volumes[name] = read_volume(path, name)
        except UserError as e:
            notes.append(Finding("error", subject.id, e.what, e.reason, e.remedy, name))
            continue
        for note in volumes[name].notes:
            notes.add("warning", name, note, "Check the image in a viewer")
    if "pet" not in subject.files:
        notes.add("error", "pet", "no PET image", "Every subject needs one: it is the source")
    if not {"ct", "mr"} & set(subject.files):
        notes.add("error", "ct, mr", "neither CT nor MR", "Give at least one of them")
    for name, volume in volumes.items():
        _check_content(notes, name, volume)
    return volumes


def usable(found: Iterable[Finding], volumes: dict[str, nifti.Volume]) -> dict[str, nifti.Volume]:
    """The volumes that no error is about, nor the first acquisition of; none without PET and target."""
    errors = [f for f in found if f.severity == "error"]
    bad = {f.volume for f in errors}
    kept = {n: v for n, v in volumes.items() if not {n, intensity.base_modality(n)} & bad}
    return kept if "" not in bad and "pet" in kept and {"ct", "mr"} & set(kept) else {}


def check_geometry(notes: Notes, volumes, allow_misaligned: bool) -> None:
    """Are the targets on the PET's voxels, or why not?"""
    pet = volumes["pet"]
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in pet.array.shape], [1])).reshape(4, -1)
    for name, volume in volumes.items():
        gap = np.sqrt((((pet.affine - volume.affine) @ corners)[:3] ** 2).sum(0)).max()
        if pet.array.shape != volume.array.shape:
            why = f"shape {volume.array.shape}, PET {pet.array.shape}"
        elif gap > AFFINE_TOLERANCE_MM:
            why = f"the affines put the same voxel up to {gap:.2f} mm apart"
        else:
            continue
        reason = f"not on the PET's voxels: {why}"
        severity, remedy = "warning", "It is resampled through the affines, as was allowed"
        if not allow_misaligned:
            remedy = f"{REGISTER}, or set config.allow_misaligned if both affines are right"
            severity = "error"
        notes.add(severity, name, reason, remedy, is_choice=not allow_misaligned)


def check_overlap(
    notes: Notes,
    volumes: dict[str, nifti.Volume],
    measured: Callable[[str], np.ndarray],
    mi_threshold: float,
    advice: str,
) -> None:
    """Do PET and targets, on the PET's voxels, show one head in one place and the same way round?
    `measured`: array of a volume's voxels, 1 where it was measured, else 0. `advice`: if they do not.
    """
    spacing = volumes["pet"].spacing
    stride = np.maximum(1, np.rint(_MI_SPACING_MM / spacing)).astype(int)
    thin = tuple(slice(None, None, s) for s in stride)
    uptake = volumes["pet"].array[thin]
    pet = mutual_information.bins(uptake)
    head = mask.largest(intensity.foreground(uptake, intensity.BRAIN_FRACTION))
    for name in (n for n in volumes if n != "pet"):
        target = mutual_information.bins(volumes[name].array[thin])
        here = mutual_information.of_bins(pet, target)
        if here < mi_threshold:
            low = f"mutual information {here:.3f} < {mi_threshold:g}"
            reason = f"its content does not match the PET ({low})"
            notes.add("error", name, reason, f"Check that both are of one person. {advice}")
            continue
        if intensity.base_modality(name) == "ct":
            ct = volumes[name].array[thin]
            hu = float(np.median(ct[head]))
            if not _HU_HEAD[0] <= hu <= _HU_HEAD[1]:  # of a short CT, its fill
                shown = head & (measured(name)[thin] > 0.5)
                hu = float(np.median(ct[shown])) if shown.any() else 0.0
            # Air alone does not tell HU: a fill passes for it.
            if not _HU_HEAD[0] <= hu <= _HU_HEAD[1]:
                reason = f"a median of {hu:.0f} HU where the PET shows the head: not CT in HU"
                remedy = "Apply the DICOM rescale slope and intercept, once; is it the CT?"
                notes.add("error", name, reason, remedy)
                continue
        elif intensity.base_modality(name) == "mr":
            mr, seen = volumes[name].array[thin], measured(name)[thin] > 0.5
            around, inside = mr[seen & ~head], mr[seen & head]  # of a short MR, no fill
            if around.size and inside.size and np.median(around) > np.median(inside):
                reason = "brighter around the head that the PET shows than in it: is it inverted?"
                notes.add("warning", name, reason, "Check it in a viewer: air is dark in MR")
        flips, moves = _flips_and_moves(pet, target, spacing * stride)
        # One explanation, the best: a displaced head may also fit better mirrored.
        fits = flips | moves
        best = max(fits, key=fits.get)
        if fits[best] > _GAIN * here:
            reason = f"fits the PET better {best} ({fits[best]:.3f} against {here:.3f})"
            if best in flips:
                notes.add("error", name, reason, "Check its affine against the PET's in a viewer")
            else:
                notes.add("warning", name, reason, f"Check it in a viewer. {advice}")


def _flips_and_moves(pet, target, spacing) -> tuple[dict[str, float], dict[str, float]]:
    """Mutual information of binned images where the target is flipped, and where it is moved."""
    flips = {
        f"with {word} exchanged": mutual_information.of_bins(pet, np.flip(target, axis))
        for axis, word in enumerate(("left and right", "front and back", "top and bottom"))
    }
    moves: dict[str, float] = {}
    for axis, side in enumerate(("right-left", "front-back", "up-down")):
        for mm in (-20, -10, 10, 20):
            fit = mutual_information.of_bins(pet, np.roll(target, round(mm / spacing[axis]), axis))
            words = f"moved about {abs(mm)} mm {side}"
            moves[words] = max(fit, moves.get(words, 0.0))
    return flips, moves


def check_field_of_view(
    notes: Notes, pet: nifti.Volume, grid_affine: np.ndarray, size: tuple[int, int]
) -> None:
    """A warning when more than 1 % of the PET foreground lies outside the grid's rows and columns."""
    index = np.nonzero(intensity.foreground(pet.array))
    weight = pet.array[index]
    to_grid = np.linalg.inv(grid_affine) @ pet.affine  # diagonal: both follow the same axes
    inside = np.ones(len(weight), bool)
    for axis, n in enumerate((size[1], size[0])):
        at = to_grid[axis, axis] * index[axis] + to_grid[axis, 3]
        inside &= (at > -0.5) & (at < n - 0.5)
    lost = 1 - float(weight[inside].sum() / weight.sum())
    if lost > 0.01:
        reason = f"{lost:.0%} of the PET uptake lies outside the {size[0]} x {size[1]} grid"
        notes.add("warning", "pet", reason, "Enlarge size or spacing_mm, or set center")


def _may_share(subject, owner, name: str, pixels) -> bool:
    """Whether two people of a manifest may have one image `name`: of one group, and of a PET
    without a target that both have.
    """
    if subject is owner or subject.group != owner.group:
        return False
    if name not in intensity.SOURCES:
        return True
    a, b = (
        {digest for n, digest in pixels[s.id].items() if n not in intensity.SOURCES}
        for s in (subject, owner)
    )
    return bool(a and b) and not a & b


def audit_cohort(
    subjects: list[bids.Subject], pixels: dict[str, dict[str, str]], split_mode: str
) -> list[Finding]:
    """Findings between subjects. `pixels[subject id][volume]` are `pixel_digest`s.

    The same image twice, whatever the file is called or how it was compressed, but for several PETs of
    one person (group) with the same target, and several targets with the same PET; and, where splits are
    given, people in two of them and people in none.
    """
    findings: list[Finding] = []
    seen: dict[str, list[tuple[bids.Subject, str]]] = {}
    for subject in subjects:
        for name, digest in pixels.get(subject.id, {}).items():
            for owner, own in seen.setdefault(digest, []):
                if name == own and _may_share(subject, owner, name, pixels):
                    continue
                reason = f"the same image as {owner.id} {own}"
                remedy = "Remove one; the same scan in two splits would leak"
                what = str(subject.files[name])
                findings.append(Finding("error", subject.id, what, reason, remedy))
                break
            seen[digest].append((subject, name))
    if split_mode != "manifest":
        if any(s.split for s in subjects):
            reason = f"the manifest's split column is not used by split_mode {split_mode}"
            findings.append(Finding("warning", "", "split", reason, "Use manifest to have it used"))
        return findings
    home: dict[str, str] = {}
    for subject in subjects:
        if not subject.split:
            remedy = "Fill the column, or use split_mode default"
            findings.append(Finding("error", subject.id, "split", "is empty", remedy))
        elif home.setdefault(subject.group, subject.split) != subject.split:
            reason = f"group {subject.group} is in {home[subject.group]} and in {subject.split}"
            remedy = "One person (group) belongs to one split"
            findings.append(Finding("error", subject.id, "split", reason, remedy))
    return findings


def check_skulls(shown: dict[str, tuple[bool, float]]) -> list[Finding]:
    """A warning where some people's MR shows the brain alone. shown[id]: (seen to be so, size of the MR's
    head over what the PET shows: `coverage.Heads.mr_size`).
    """
    largest = max((size for _, size in shown.values()), default=0.0)
    bare = [k for k, (stripped, size) in shown.items() if stripped or size < _BARE * largest]
    if not bare or len(bare) == len(shown):
        return []
    reason = (
        f"{len(bare)} of {len(shown)} subjects seem to be without skull and scalp ({', '.join(bare)}): "
        "a model learns both kinds"
    )
    return [Finding("warning", "", "mr", reason, "Give all with the head, or all without")]


def pixel_digest(volume: nifti.Volume) -> str:
    """Of the RAS voxels' means over 8 x 8 x 8 blocks, by their mean and SD: equal for copies that were
    renamed, recompressed, reoriented or given in other units. To 1e-4 SD: two scans differ by more.
    """
    sums = volume.array
    for axis, n in enumerate(sums.shape):
        starts = np.linspace(0, n, min(n, 8), endpoint=False, dtype=int)
        sums = np.add.reduceat(sums, starts, axis, np.float64)
    coarse = np.round((sums - sums.mean()) / (sums.std() or 1.0), 4) + 0.0  # no -0
    key = str(volume.array.shape).encode()
    return hashlib.blake2b(coarse.tobytes(), digest_size=16, key=key).hexdigest()


def of_layout(left: Iterable[layout.Left]) -> list[Finding]:
    """Of what was left aside: warnings where it may have been meant to be used, errors where it was."""
    remedy = "Rename or move it to have it used, or leave it"
    told = [x for x in left if x.severity]
    return [Finding(x.severity, "", str(x.path), f"not used: {x.reason}", remedy) for x in told]


def holdings(subjects: Iterable[bids.Subject]) -> str:
    """ "5 subjects: 5 with CT, 0 with MR"."""
    subjects = list(subjects)
    said = ("ct", "mr", *(["nac"] if any("nac" in s.files for s in subjects) else ()))
    counts = ", ".join(f"{sum(m in s.files for s in subjects)} with {m.upper()}" for m in said)
    return f"{len(subjects)} subjects: {counts}"


def page(
    cohort,
    subjects: Iterable[bids.Subject],
    findings: Iterable[Finding],
    left: Iterable[layout.Left] = (),
) -> str:
    """The list a person reads: errors first, and how much was left aside."""
    ordered = sorted(findings, key=lambda f: (f.severity != "error", f.subject))
    errors = sum(f.severity == "error" for f in ordered)
    head = f"Audit of {cohort}: {holdings(subjects)}; {errors} errors, {len(ordered) - errors} warnings"
    lines = [head, *("  " + f.line() for f in ordered)]
    if left := list(left):
        lines.append(f"  left aside: {layout.counted(left)} (each is listed in audit.json)")
    return "\n".join(lines)


def _check_content(notes: Notes, name: str, volume: nifti.Volume) -> None:
    """Is it the kind of image its name says?"""
    array, kind = volume.array, intensity.base_modality(name)
    if nifti.SYNTHETIC in nifti.description(volume):
        reason = "made by this program (desc-synth), not measured"
        notes.add("error", name, reason, "Leave it out: what is predicted is no truth")
        return
    if kind == "ct":
        if array.min() > intensity.HU_AIR:
            reason = (
                f"no voxel below {intensity.HU_AIR:g} HU (minimum {array.min():g}): not CT in HU"
            )
            remedy = "Apply the DICOM rescale slope and intercept; check that it is the CT"
            notes.add("error", name, reason, remedy)
        elif array.max() < _HU_BONE:
            reason = f"no bone: no voxel above {_HU_BONE:g} HU"
            notes.add("error", name, reason, "Check that it is a CT of a head, in HU")
        elif (air := float((np.abs(array + 1000) < 100).mean())) < _CT_AIR:
            reason = (
                f"{air:.0%} of voxels are air about -1000 HU: is it inverted, clipped or scaled?"
            )
            remedy = "Apply the DICOM rescale slope and intercept, once; check it in a viewer"
            notes.add("warning", name, reason, remedy)
        return
    air = intensity.share_of_air(array)
    if air > 0.05:
        reason = f"{air:.0%} of voxels are below {intensity.HU_AIR:g}: it looks like CT in HU"
        notes.add("error", name, reason, f"Check that {name} and ct are not swapped")
        return
    if array.max() <= 0:
        remedy = "Check that the right series was exported"
        notes.add("error", name, "no voxel is above zero", remedy)
        return
    total, negative = float(np.abs(array).sum()), float(-array[array < 0].sum())
    if negative > 0.02 * total:
        reason = f"{negative / total:.0%} of its intensity is negative (set to 0)"
        notes.add("warning", name, reason, "Expected for some reconstructions; check the scaling")
    if kind not in intensity.SOURCES:
        return
    length = whole_body.length_mm(volume)
    if length > whole_body.LONG_MM:
        reason = f"a field of view of {length / 10:.0f} cm from below to above, not of a head"
        notes.add("error", name, reason, "Crop the PET to the head (predict does it by itself)")
        return
    front = intensity.foreground(array)
    ml = float(front.sum() * np.prod(volume.spacing) / 1000)
    if ml < _MIN_HEAD_ML:
        reason = f"only {ml:.1f} ml stand out from the background: no brain uptake"
        notes.add("error", name, reason, "Check the series, or the single hot voxels")
    elif kind == "pet" and (typical := float(np.median(array[front]))) > 100:
        reason = f"a typical uptake of {rounded(typical)} is not SUV (Bq/ml or counts?)"
        remedy = "Training is not affected (each PET is scaled by itself); the units shown are"
        notes.add("warning", name, reason, remedy)
