"""One DICOM series -> a checked volume: PET in SUV where its tags allow, CT in HU, MR as stored.

No text of a file reaches an output: see `dicom_header`, which alone speaks to pydicom.
"""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from cldm_jax.data import dicom_files, dicom_header, dicom_stack, dicom_units, intensity, nifti
from cldm_jax.data.dicom_files import FIX_FILE
from cldm_jax.data.dicom_header import Slice, attempt
from cldm_jax.errors import UserError


class DicomSeries(NamedTuple):
    """A checked series.

    volume  array [x, y, z]: x along the rows, y down the columns, z along the slice normal;
            `volume.sha256` depends on the bytes of the series' files, not on their names or order
    facts   JSON-able and not identifying: modality, manufacturer, slices, units, suv_factor,
            tracer, half_life_s, minutes_after_injection (begin of this image),
            minutes_to_decay_reference (ADMIN: 0), decay_correction, corrections
    """

    volume: nifti.Volume
    facts: dict


def is_dicom(path) -> bool:
    """Whether `path` is a folder with a DICOM file anywhere in it, a zip, or one DICOM file (which
    `read_series` refuses by name); decided by content.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return any(dicom_files.looks_dicom(dicom_files.head_of(f)) for f in dicom_files.walk(path))
    head = dicom_files.head_of(path) if path.is_file() else b""
    return head[:4] == b"PK\x03\x04" or dicom_files.looks_dicom(head)


def read_series(path, *, series: str = "") -> DicomSeries:
    """Reads the one image series of a folder (searched recursively), of a zip (in memory), or beside a
    DICOMDIR. Images that are there more than once, in whatever series, count once.

    `series` picks by number, as the error that lists several series gives it; without it the only PET
    among them is taken. A PET is in SUVbw (g/ml) where the tags allow, and with a note in the stored unit
    where not. Raises UserError, naming only `path`, for anything but complete, evenly spaced, parallel,
    uncompressed or RLE greyscale slices of one frame with their geometry, and where a file or the decoded
    volume takes more than `nifti.MAX_BYTES`.
    """
    path = pathlib.Path(path)
    if path.name.upper() == "DICOMDIR" and path.is_file():
        path = path.parent  # what it lists lies there
    dicom_header.pydicom()
    with dicom_files.members(path) as members:
        slices, strays = _headers(path, members)
        slices, repeats = _once(path, members, slices)
        slices, taken = _choose(path, slices, series)
        dicom_stack.check_slices(path, slices)
        slices, affine = dicom_stack.geometry(path, slices)
        array, sha256, padding = _voxels(path, members, slices)
    nifti.check_values(path, array)
    header = nifti.make_header(array.shape, np.float32, affine)
    notes = (*strays, *repeats, *taken, *padding)
    volume = nifti.Volume(array, affine, header, sha256, notes)
    facts, factor, more = dicom_units.quantify(slices, volume)
    if factor != 1:
        array *= factor
        nifti.check_values(path, array)
    return DicomSeries(dataclasses.replace(volume, notes=(*notes, *more)), facts)


def _headers(path, members) -> tuple[list[Slice], list[str]]:
    """(the images among the members, notes)."""
    slices, found = [], 0
    for index, member in enumerate(members):
        head = dicom_files.read(path, member, dicom_files.HEAD_BYTES)
        if not dicom_files.looks_dicom(head):
            continue
        found += 1
        which = f"file {index + 1} of {len(members)} (sorted by name)"
        if member[0] > nifti.MAX_BYTES:
            reason = f"{which} takes {member[0] / 2**20:.0f} MiB"
            raise UserError(path, reason, f"The limit is {nifti.MAX_BYTES / 2**20:.0f} MiB")
        data = dicom_files.read(path, member)
        if dicom_header.DEFLATED in data:  # pydicom would inflate it without a bound
            first = dicom_files.without_data_set(data)
            if attempt(dicom_header.parse, index, first) == []:  # a report, as below
                continue
            reason = "transfer syntax Deflated Explicit VR Little Endian"
            raise UserError(path, reason, dicom_stack.DCM2NIIX)
        parsed = attempt(dicom_header.parse, index, data)
        if parsed is None:
            raise UserError(path, f"{which} is damaged: its header cannot be parsed", FIX_FILE)
        slices += parsed
    if not slices:
        reason = f"holds no DICOM image ({found} DICOM files, {len(members)} files)"
        raise UserError(path, reason, "Give the folder of one series")
    others = len(members) - found
    return slices, [f"files that are not DICOM, left aside: {others}"] if others else []


# ---- which images ----


def _once(path, members, slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """(the slices without those that another one repeats, notes): the same header but for UIDs and
    numbering, which a second export may have made anew, and the same stored pixels. Of another series
    only if all of it is repeated: two reconstructions may share empty slices at their ends.
    """
    groups: dict[Slice, list[Slice]] = {}
    for s in slices:
        renamed = dict(uid="", instance=None, frame_of_reference="", syntax="")
        groups.setdefault(dataclasses.replace(s, index=0, **renamed), []).append(s)
    repeats: dict[int, str] = {}  # index of a slice -> series of the one that it repeats
    for group in groups.values():
        seen: dict[str, str] = {}
        for s in sorted(group, key=lambda s: (s.uid, s.index)) if len(group) > 1 else ():
            data = dicom_files.read(path, members[s.index])
            digest = attempt(dicom_header.pixels_digest, data)
            if digest in seen:
                repeats[s.index] = seen[digest]
            elif digest is not None:
                seen[digest] = s.uid
    own = {s.uid for s in slices if s.index not in repeats}
    repeated = {s.index for s in slices if repeats.get(s.index) == s.uid or s.uid not in own}
    if not repeated:
        return slices, []
    note = f"{len(repeated)} of {len(slices)} images repeat others and were counted once"
    return [s for s in slices if s.index not in repeated], [note]


def _choose(path, slices: list[Slice], wanted: str) -> tuple[list[Slice], list[str]]:
    """(the slices of one series, notes)."""
    groups: dict[str, list[Slice]] = {}
    for s in slices:
        groups.setdefault(s.uid, []).append(s)
    found = _numbered(groups)
    if wanted:
        if wanted in found:
            return found[wanted], []
        reason = f"no series has number {wanted}: {_list_series(found)}"
        raise UserError(path, reason, "Give one of these numbers, or the folder of one series")
    if len(found) == 1:
        return slices, []
    pets = [group for group in found.values() if group[0].modality == "PT"]
    if len(pets) == 1:
        return pets[0], [f"{len(found)} series in the input; the only PET series was taken"]
    if len(found) > 2 and all(len(group) == 1 for group in found.values()):
        reason = f"each of its {len(found)} images has a SeriesInstanceUID of its own"
        raise UserError(path, reason, "Export it again with one to the series")
    reason = f"holds {len(found)} series: {_list_series(found)}"
    remedy = "Give the folder of one series, or in prediction --series NUMBER"
    if any(_is_corrected(group) for group in pets):
        remedy += ", of one that is attenuation-corrected"
    raise UserError(path, reason, remedy)


def _numbered(groups: dict[str, list[Slice]]) -> dict[str, list[Slice]]:
    """{what a person calls a series: its slices}, by number: "3", or "3.1" and "3.2" where two have it,
    in the order of their UIDs; "0.1" where the header gives none.
    """
    by_number: dict[int | None, list[str]] = {}
    for uid in sorted(groups):
        by_number.setdefault(groups[uid][0].number, []).append(uid)
    named = {}
    for number in sorted(by_number, key=lambda n: (n is None, n or 0)):
        uids = by_number[number]
        for k, uid in enumerate(uids, 1):
            alone = len(uids) == 1 and number is not None
            named[str(number) if alone else f"{number or 0}.{k}"] = groups[uid]
    return named


def _is_corrected(group: list[Slice]) -> bool:
    return all("ATTN" in s.pet.corrections for s in group)


def _list_series(found: dict[str, list[Slice]]) -> str:
    lines = []
    for name, group in found.items():
        first = group[0]
        rows, columns = first.shape
        line = f"number {name} {first.modality} {len(group)} images {columns} x {rows}"
        if first.modality == "PT":
            line += f" ({'' if _is_corrected(group) else 'not '}attenuation-corrected)"
        lines.append(line)
    return "; ".join(lines[:12]) + ("; ..." if len(lines) > 12 else "")


# ---- voxels ----


def _voxels(path, members, slices: list[Slice]):
    """(float32 [x, y, z] with each slice's own slope and intercept applied, sha256 in z order, notes)."""
    rows, columns = slices[0].shape
    array = np.empty((columns, rows, len(slices)), np.float32, order="F")
    digests, filled = [], 0
    is_ct = slices[0].modality == "CT"
    air = intensity.MODALITIES["ct" if is_ct else "pet"].fill
    for z, s in enumerate(slices):
        data = dicom_files.read(path, members[s.index])
        digests.append(hashlib.sha256(data).hexdigest())
        raw = attempt(dicom_header.decode, data, s)
        if raw is None or raw.shape != (rows, columns):
            where = "?" if s.instance is None else s.instance
            reason = (
                f"the pixels of InstanceNumber {where} are missing, cut short or not of its size"
            )
            raise UserError(path, reason, FIX_FILE)
        slope = 1.0 if s.slope is None else s.slope
        with np.errstate(over="ignore"):  # beyond float32 becomes inf and is refused
            array[:, :, z] = (raw.astype(np.float64) * slope + (s.intercept or 0.0)).T
        padding = _padded(raw, s).T
        found = array[padding, z]
        filled += int(np.count_nonzero(found > air if is_ct else found != air))  # below is air, too
        array[padding, z] = air
    note = f"{filled} voxels are padding (PixelPaddingValue), read as air"
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return array, digest, [note] if filled else []


def _padded(raw: np.ndarray, s: Slice) -> np.ndarray:
    """bool: which stored values of a slice are padding, outside of what was reconstructed: not where
    its corners are measured, as where the tag is a leftover that some tissue happens to have.
    """
    bits = 8 * raw.dtype.itemsize
    nothing = np.zeros(raw.shape, bool)
    if not s.padding or not all(-(1 << bits - 1) <= v < 1 << bits for v in s.padding):
        return nothing
    # Writers give the tag the sign that the pixels do not have, and the other way round.
    low, high = sorted(np.array(s.padding).astype(raw.dtype))
    found = (raw >= low) & (raw <= high)
    return found if found[[0, 0, -1, -1], [0, -1, 0, -1]].any() else nothing
