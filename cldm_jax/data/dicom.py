"""One DICOM series -> a checked volume: PET in SUV where its tags allow, CT in HU, MR as stored.

The only file that imports pydicom. Only the tags listed here are ever parsed, and what leaves
`_parse` is plain numbers and codes from fixed lists: no text of a file can reach an output. pydicom
may quote a value in an exception, a warning or a log line, so all three are dropped (`_try`).
"""

import collections.abc
import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
import math
import os
import pathlib
import stat
import warnings
import zipfile

import numpy as np

from cldm_jax import console
from cldm_jax.data import nifti, suv
from cldm_jax.errors import UserError

MAX_FILES = 20_000
ZIP_SLACK = 2  # a zip may unpack to this many times `max_bytes`: the CT of a PET/CT study
SPACING_TOLERANCE = 0.01  # of the slice spacing, between neighbours
ROUNDING_MM = 0.02  # positions are often written with two decimals
_FIX_FILE = "Export the series from the archive again"
_DCM2NIIX = "Convert the series to .nii.gz, for example with dcm2niix"
_MARK = slice(128, 132)  # of "DICM"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_PHILIPS = "Philips PET Private Group"

_PIXEL_TAGS = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation NumberOfFrames"
).split()
_TAGS = [
    *_PIXEL_TAGS,
    *(
        "SeriesInstanceUID SeriesNumber Modality InstanceNumber ImageType Manufacturer "
        "ImagePositionPatient ImageOrientationPatient PixelSpacing FrameOfReferenceUID "
        "RescaleSlope RescaleIntercept RescaleType LossyImageCompression NumberOfSlices "
        "BurnedInAnnotation PerFrameFunctionalGroupsSequence SeriesDate SeriesTime "
        "AcquisitionDate AcquisitionTime Units SUVType CorrectedImage DecayCorrection PatientWeight "
        "RadiopharmaceuticalInformationSequence"
    ).split(),
    *((0x7053, element) for element in (0x0010, 0x1000, 0x1009)),
]

# Codes that may be repeated in a message or a fact; anything else becomes "other".
_MODALITIES = "CR CT DX MG MR NM OT PR PT RTDOSE RTIMAGE SC SEG US XA".split()
_UNITS = {"BQML": "Bq/ml", "CNTS": "counts", "PROPCNTS": "proportional counts", "GML": "SUV"}
_SUV_TYPES = "BW BSA IBW LBM LBMJAMES128 LBMJANMA".split()
_DECAY = "START ADMIN NONE".split()
_CORRECTIONS = "ATTN CLN DCAL DECY DTIM MOTN NORM PMOT RADL RAN SCAT".split()
_MAKERS = {
    "siemens": "Siemens", "cti": "Siemens", "ge": "GE", "generalelectric": "GE", "philips": "Philips",
    "canon": "Canon", "toshiba": "Toshiba", "unitedimaging": "United Imaging", "uih": "United Imaging",
    "mediso": "Mediso", "hitachi": "Hitachi", "fujifilm": "Fujifilm", "shimadzu": "Shimadzu",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DicomSeries:
    """A checked series.

    volume  array [x, y, z]: x along the rows, y down the columns, z along the slice normal;
            `volume.sha256` depends on the bytes of the series' files, not on their names or order
    facts   JSON-able and not identifying: modality, manufacturer, slices, units, suv_factor,
            tracer, half_life_s, minutes_after_injection, decay_correction, corrections
    """

    volume: nifti.Volume
    facts: dict


@dataclasses.dataclass(frozen=True)
class _Slice:
    """The header of one file, as numbers and codes. The two UIDs are compared, never shown."""

    index: int  # of the file, sorted by name
    uid: str
    number: int | None
    instance: int | None
    modality: str
    manufacturer: str
    tracer: str | None
    frame_of_reference: str
    shape: tuple[int, int]  # rows, columns
    multiframe: bool
    localizer: bool
    mosaic: bool
    lossy: bool
    burned_in: bool
    syntax: str
    samples: int
    photometric: str
    bits: tuple[int, int, int]  # allocated, stored, high
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    hounsfield: bool
    declared: int | None
    pet: suv.Pet


def is_dicom(path) -> bool:
    """Whether `path` is a folder with a DICOM file anywhere in it, a zip, or one DICOM file (which
    `read_series` refuses by name); decided by content.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            return any(_begins(f, _MARK, b"DICM") for f in _walk(path))
        marks = ((slice(0, 4), b"PK\x03\x04"), (_MARK, b"DICM"))
        return path.is_file() and any(_begins(path, *mark) for mark in marks)
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return False


def read_series(
    path, *, series: int | None = None, suv: str = "auto", max_bytes: int = nifti.MAX_BYTES
) -> DicomSeries:
    """Reads the one image series of a folder (searched recursively) or of a zip (in memory).

    `series` picks by SeriesNumber; without it the only PET among several series is taken.
    `suv`: "auto" gives SUVbw (g/ml) where the tags allow and the stored unit with a note where not;
    "require" refuses the latter. `max_bytes` bounds the decoded float32 volume and each file.
    Raises UserError, naming only `path`, for anything but complete, evenly spaced, parallel,
    uncompressed or RLE greyscale slices of one frame with their geometry.
    """
    if suv not in ("auto", "require"):
        raise ValueError(f"suv={suv!r}: auto or require")
    path = pathlib.Path(path)
    _pydicom()
    with _members(path, max_bytes) as members:
        slices, notes = _choose(path, _headers(path, members, max_bytes), series)
        _check_slices(path, slices, max_bytes)
        slices, affine, spacing = _geometry(path, slices)
        array, sha256 = _voxels(path, members, slices)
    facts, factor, more = _quantify(path, slices, suv == "require")
    if factor != 1:
        with np.errstate(over="ignore", invalid="ignore"):
            array *= factor
    low, high = float(array.min()), float(array.max())  # NaN and infinity show in min or max
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(path, "rescaled voxels are NaN or infinite", _FIX_FILE)
    if low == high:
        raise UserError(path, "every voxel is the same", "Check that the right series was exported")
    header = nifti.make_header(array.shape, np.float32, affine)
    volume = nifti.Volume(array, affine, spacing, header, sha256, (*notes, *more))
    return DicomSeries(volume, facts)


def _pydicom():
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        remedy = console.command("pip", "install", "pydicom")
        raise UserError("DICOM input", "needs the package pydicom", remedy) from None
    return pydicom


# ---- files: a folder or a zip, as a list of (size, opener) ----


def _walk(folder: pathlib.Path):
    """Regular files below `folder`, sorted; links that leave it are not followed."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            file = pathlib.Path(parent, name)
            try:
                inside = not file.is_symlink() or file.resolve().is_relative_to(root)
                if inside and stat.S_ISREG(file.stat().st_mode):  # a pipe would block for ever
                    yield file
            except (OSError, RuntimeError):  # a link in a circle, or a file that just went
                continue


def _begins(file: pathlib.Path, where: slice, what: bytes) -> bool:
    try:
        with open(file, "rb") as f:
            return f.read(where.stop)[where] == what
    except OSError:
        return False


@contextlib.contextmanager
def _members(path: pathlib.Path, max_bytes: int):
    fix = "Give the folder of one series, or a zip of it"
    try:
        if path.is_dir():
            files, archive = list(_walk(path)), None
        elif not path.exists():
            raise UserError(path, "no such folder or file", "Check the path")
        elif _begins(path, _MARK, b"DICM"):
            raise UserError(path, "is one DICOM file, not a series", fix)
        elif not zipfile.is_zipfile(path):
            raise UserError(path, "is neither a folder nor a zip", fix)
        else:
            archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        raise UserError(path, "cannot be read", "Check the permissions, or copy it again") from None
    if archive is None:
        members = [(file.stat().st_size, functools.partial(open, file, "rb")) for file in files]
        _check_members(path, len(members))
        yield members
        return
    with archive:
        infos = sorted(
            (info for info in archive.infolist() if not info.is_dir()), key=lambda i: i.filename
        )
        _check_members(path, len(infos))
        if any(info.flag_bits & 1 for info in infos):
            raise UserError(path, "the zip is encrypted", "Unpack it and give the folder")
        total, limit = sum(info.file_size for info in infos), ZIP_SLACK * max_bytes
        if total > limit:  # zipfile never gives more than the size declared
            reason = f"the zip unpacks to {total / 2**20:.0f} MiB (limit {limit / 2**20:.0f})"
            raise UserError(path, reason, "Zip one series only, or give a folder")
        yield [(info.file_size, functools.partial(archive.open, info)) for info in infos]


def _check_members(path, count: int) -> None:
    if count > MAX_FILES:
        reason = f"holds {count} files (limit {MAX_FILES})"
        raise UserError(path, reason, "Give the folder of one series")


def _read(path, member, count: int = -1) -> bytes:
    """Bytes of one member. Its name, and an error that quotes it, stay here."""
    try:
        with member[1]() as f:
            return f.read(count)
    except Exception:  # zipfile raises a dozen types, most of them with the member's name
        pass
    raise UserError(path, "one of its files is damaged or cannot be read", _FIX_FILE)


# ---- headers ----


def _try(function, *args):
    """`function(*args)`, or None if it fails: pydicom quotes values in whatever it says."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args)
    except Exception:
        return None
    finally:
        logger.setLevel(level)


def _headers(path, members, max_bytes: int) -> list[_Slice]:
    slices, found = [], 0
    for index, member in enumerate(members):
        if member[0] < _MARK.stop or _read(path, member, _MARK.stop)[_MARK] != b"DICM":
            continue
        found += 1
        which = f"file {index + 1} of {len(members)} (sorted by name)"
        if member[0] > max_bytes:
            reason = f"{which} takes {member[0] / 2**20:.0f} MiB"
            raise UserError(path, reason, f"The limit is {max_bytes / 2**20:.0f} MiB")
        data = _read(path, member)
        if _DEFLATED in data:  # pydicom would inflate it without a bound
            raise UserError(path, "transfer syntax Deflated Explicit VR Little Endian", _DCM2NIIX)
        parsed = _try(_parse, index, data)
        if parsed is None:
            raise UserError(path, f"{which} is damaged: its header cannot be parsed", _FIX_FILE)
        slices += parsed
    if not slices:
        reason = f"holds no DICOM image ({found} DICOM files, {len(members)} files)"
        raise UserError(path, reason, "Give the folder of one series; files need the DICM mark")
    return slices


def _parse(index: int, data: bytes) -> list[_Slice]:
    """[the header of an image, as plain numbers and codes]; [] for a report, a plan, a DICOMDIR."""
    pydicom = _pydicom()
    ds = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_TAGS)
    if not (_integer(ds, "Rows") and _integer(ds, "Columns")):
        kind = pydicom.uid.UID_dictionary.get(ds.file_meta.MediaStorageSOPClassUID, [""])[0]
        if "Image Storage" in kind:
            raise ValueError("an image cut short in its header must not pass for a report")
        return []
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    return [
        _Slice(
            index=index,
            uid=_text(ds, "SeriesInstanceUID"),
            number=_integer(ds, "SeriesNumber"),
            instance=_integer(ds, "InstanceNumber"),
            modality=_code(_text(ds, "Modality"), _MODALITIES),
            manufacturer=suv.known_name(_text(ds, "Manufacturer"), _MAKERS) or "other",
            tracer=_tracer(ds),
            frame_of_reference=_text(ds, "FrameOfReferenceUID"),
            shape=(_integer(ds, "Rows") or 0, _integer(ds, "Columns") or 0),
            multiframe=(_integer(ds, "NumberOfFrames") or 1) > 1
            or "PerFrameFunctionalGroupsSequence" in ds,
            localizer="LOCALIZER" in _list(ds, "ImageType"),
            mosaic="MOSAIC" in _list(ds, "ImageType"),
            lossy=_text(ds, "LossyImageCompression") == "01",
            burned_in=_text(ds, "BurnedInAnnotation") not in ("", "NO"),
            syntax=str(ds.file_meta.get("TransferSyntaxUID", "")),
            samples=_integer(ds, "SamplesPerPixel") or 1,
            photometric=_text(ds, "PhotometricInterpretation"),
            bits=tuple(_integer(ds, f) or 0 for f in ("BitsAllocated", "BitsStored", "HighBit")),
            position=_vector(ds, "ImagePositionPatient", 3),
            orientation=_vector(ds, "ImageOrientationPatient", 6),
            spacing=_vector(ds, "PixelSpacing", 2),
            slope=slope,
            intercept=intercept,
            hounsfield=_text(ds, "RescaleType") in ("", "HU"),
            declared=_integer(ds, "NumberOfSlices"),
            pet=_pet(ds),
        )
    ]


def _pet(ds) -> suv.Pet:
    dose = _first(ds, "RadiopharmaceuticalInformationSequence")
    injection = suv.parse_datetime(_text(dose, "RadiopharmaceuticalStartDateTime"))
    acquired = suv.parse_moment(_text(ds, "AcquisitionDate"), _text(ds, "AcquisitionTime"))
    units = _text(ds, "Units")
    return suv.Pet(
        units=_code(units, _UNITS) if units else "",
        suv_type=_code(_text(ds, "SUVType"), ["", *_SUV_TYPES]),
        corrections=frozenset(_list(ds, "CorrectedImage")) & frozenset(_CORRECTIONS),
        decay_correction=_code(_text(ds, "DecayCorrection"), _DECAY),
        weight_kg=_number(ds, "PatientWeight"),
        dose_bq=_number(dose, "RadionuclideTotalDose"),
        half_life_s=_number(dose, "RadionuclideHalfLife"),
        injection=injection or suv.parse_moment("", _text(dose, "RadiopharmaceuticalStartTime")),
        series=suv.parse_moment(_text(ds, "SeriesDate"), _text(ds, "SeriesTime")),
        acquisitions=(acquired,) if acquired else (),
        philips_suv=_philips(ds, 0x00),
        philips_activity=_philips(ds, 0x09),
    )


def _get(ds, tag):
    try:
        return None if ds is None else ds.get(tag)
    except Exception:  # a value that is not of its type counts as absent, and is missed by name
        return None


def _text(ds, tag: str) -> str:
    value = _get(ds, tag)
    return "" if value is None else str(value).strip()


def _list(ds, tag: str) -> list[str]:
    value = _get(ds, tag)
    if value is None:
        return []
    many = isinstance(value, collections.abc.Sequence) and not isinstance(value, str)
    return [str(v) for v in (value if many else [value])]


def _finite(value) -> float | None:
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _number(ds, tag: str) -> float | None:
    return _finite(_get(ds, tag))


def _integer(ds, tag: str) -> int | None:
    value = _number(ds, tag)
    return None if value is None else int(value)


def _vector(ds, tag: str, length: int) -> tuple[float, ...] | None:
    values = tuple(_finite(v) for v in _list(ds, tag))
    usable = all(v is not None and abs(v) < 1e6 for v in values)  # mm: a kilometre is no position
    return values if len(values) == length and usable else None


def _first(ds, tag: str):
    sequence = _get(ds, tag)
    return sequence[0] if sequence else None


def _philips(ds, element: int) -> float | None:
    try:
        return _finite(ds.private_block(0x7053, _PHILIPS)[element].value)
    except Exception:  # no such block or element
        return None


def _code(text: str, allowed) -> str:
    return text if text in allowed else "other"


def _tracer(ds) -> str | None:
    dose = _first(ds, "RadiopharmaceuticalInformationSequence")
    if dose is None:
        return None
    drug = _first(dose, "RadiopharmaceuticalCodeSequence")
    nuclide = _first(dose, "RadionuclideCodeSequence")
    return suv.tracer_name(
        _text(drug, "CodeMeaning"),
        _text(dose, "Radiopharmaceutical"),
        _text(nuclide, "CodeMeaning"),
    )


# ---- which series, and whether it is one volume ----


def _choose(path, slices: list[_Slice], wanted: int | None):
    """(the slices of one series, notes)."""
    groups: dict[str, list[_Slice]] = {}
    for s in slices:
        groups.setdefault(s.uid, []).append(s)
    found = list(groups.values())
    if wanted is not None:
        picked = [group for group in found if group[0].number == wanted]
        if len(picked) == 1:
            return picked[0], ()
        reason = f"{len(picked)} series have number {wanted}: {_list_series(found)}"
        raise UserError(path, reason, "Give one of these numbers, or the folder of one series")
    if len(found) == 1:
        return found[0], ()
    pets = [group for group in found if group[0].modality == "PT"]
    if len(pets) == 1:
        return pets[0], (f"{len(found)} series in the input; the only PET series was taken",)
    reason = f"holds {len(found)} series: {_list_series(found)}"
    raise UserError(path, reason, "Give the folder of one series, or its number (series)")


def _list_series(groups) -> str:
    lines = [
        f"number {'?' if g[0].number is None else g[0].number} {g[0].modality} "
        f"{len(g)} images {g[0].shape[1]} x {g[0].shape[0]}"
        for g in sorted(groups, key=lambda g: (g[0].number is None, g[0].number or 0))
    ]
    return "; ".join(lines[:12]) + ("; ..." if len(lines) > 12 else "")


def _check_slices(path, slices: list[_Slice], max_bytes: int) -> None:
    """Refuses, before a voxel is read, what is not one stack of greyscale slices."""
    first = slices[0]
    if any(s.multiframe for s in slices):
        raise UserError(path, "enhanced (multi-frame) DICOM is not supported", _DCM2NIIX)
    if any(s.localizer for s in slices):
        raise UserError(path, "holds localizer images", "Give the folder of the volume's series")
    if any(s.mosaic for s in slices):
        raise UserError(path, "holds mosaics (many slices tiled in one image)", _DCM2NIIX)
    if any(s.samples != 1 or not s.photometric.startswith("MONOCHROME") for s in slices):
        raise UserError(path, "the images are in colour", "Export the original greyscale series")
    for s in slices:
        if s.syntax not in (*_NATIVE, _RLE):
            remedy = "Decompress it first (gdcmconv --raw, dcmdjpeg), or use dcm2niix"
            raise UserError(path, f"compressed: transfer syntax {_syntax_name(s.syntax)}", remedy)
        allocated, stored, high = s.bits
        if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
            raise UserError(path, "unusual pixel layout (BitsAllocated/Stored, HighBit)", _DCM2NIIX)
    need = 4 * len(slices) * max(s.shape[0] * s.shape[1] for s in slices)
    if need > max_bytes:
        rows, columns = max(s.shape for s in slices)
        reason = f"declares {len(slices)} images of {columns} x {rows}, {need / 2**20:.0f} MiB"
        raise UserError(path, reason, f"The limit is {max_bytes / 2**20:.0f} MiB")
    if len(slices) < 2 or min(first.shape) < 2:
        reason = f"{len(slices)} image of {first.shape[1]} x {first.shape[0]} is not a 3D volume"
        raise UserError(path, reason, "Export all slices of the series")
    for field, what in (
        ("shape", "matrix sizes"),
        ("modality", "modalities"),
        ("frame_of_reference", "frames of reference (several scans)"),
    ):
        _check_same(path, what, [getattr(s, field) for s in slices])
    for field in dataclasses.fields(suv.Pet):
        if field.name not in ("series", "acquisitions"):
            values = [getattr(s.pet, field.name) for s in slices]
            _check_same(path, f"PET values ({field.name.replace('_', ' ')})", values)
    for tag, field in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "spacing"),
        *((("RescaleSlope", "slope"),) if first.modality in ("CT", "PT") else ()),
    ):
        missing = sum(getattr(s, field) is None for s in slices)
        if missing:
            raise UserError(
                path, f"{tag} is missing in {missing} of {len(slices)} images", _FIX_FILE
            )
    if any(s.slope == 0 for s in slices):
        raise UserError(path, "RescaleSlope is 0", _FIX_FILE)


def _check_same(path, what: str, values) -> None:
    if len(set(values)) > 1:
        raise UserError(path, f"mixed {what} in one series", "Give the slices of one scan only")


def _syntax_name(uid: str) -> str:
    names = _pydicom().uid.UID_dictionary
    return names[uid][0] if uid in names else "unknown or missing"


def _geometry(path, slices: list[_Slice]):
    """(slices in the order of z, affine voxel -> RAS+ mm [4, 4], spacing mm [3]).

    DICOM PS3.3 C.7.6.2.1.1: the first cosines point along a row, the second down a column, and
    PixelSpacing gives the distance between rows first. DICOM is LPS+, NIfTI RAS+.
    """
    fix = "Give the slices of one scan only"
    orientations = np.array([s.orientation for s in slices])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise UserError(path, "mixed orientations in one series", fix)
    pixel = np.array([s.spacing for s in slices])
    if np.abs(pixel - pixel[0]).max() > 1e-3:
        raise UserError(path, "mixed pixel spacings in one series", fix)
    if pixel.min() <= 0:
        raise UserError(path, "PixelSpacing is not positive", _FIX_FILE)
    row, column = orientations.mean(0).reshape(2, 3)
    cosines = [row @ row - 1, column @ column - 1, row @ column]
    if np.abs(cosines).max() > 1e-2:
        raise UserError(path, "ImageOrientationPatient is not two unit vectors at 90 degrees", fix)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    along = np.array([s.position for s in slices]) @ normal
    order = np.argsort(along, kind="stable")
    slices, along = [slices[i] for i in order], along[order]
    _check_duplicates(path, slices, along)
    _check_gaps(path, along)
    positions = np.array([s.position for s in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    line = positions[0] + np.arange(len(slices))[:, None] * step
    sideways = (positions - line) @ np.stack([row, column], 1)
    tilt = np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step)
    if tilt > nifti.MAX_SHEAR_COSINE or np.abs(sideways).max() > 0.1:
        reason = "the slices are shifted sideways, not stacked along their normal (gantry tilt?)"
        raise UserError(path, reason, "Resample the volume to perpendicular axes")
    affine = np.eye(4)
    affine[:3] = np.stack([row * pixel[0, 1], column * pixel[0, 0], step, positions[0]], 1)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = nifti.SPACING_MM
    if not ((spacing >= low) & (spacing <= high)).all():
        mm = " x ".join(f"{s:.3g}" for s in spacing)
        raise UserError(path, f"voxels of {mm} mm (allowed: {low} to {high})", _FIX_FILE)
    return slices, affine, spacing


def _check_duplicates(path, slices: list[_Slice], along: np.ndarray) -> None:
    breaks = np.flatnonzero(np.diff(along) > ROUNDING_MM / 2) + 1
    counts = np.diff([0, *breaks, len(along)])
    if len(counts) > 1 and np.median(counts) > 1:
        reason = (
            f"{len(along)} images at {len(counts)} positions: a dynamic, gated or multi-echo series"
        )
        raise UserError(path, reason, "Give one frame, or the average of the frames")
    if counts.max() > 1:
        start = int(np.r_[0, breaks][counts.argmax()])
        pair = " and ".join(
            "?" if s.instance is None else str(s.instance) for s in slices[start : start + 2]
        )
        reason = (
            f"several images at the same position ({along[start]:.2f} mm), InstanceNumber {pair}"
        )
        raise UserError(path, reason, "Remove one of them, or export the series again")


def _check_gaps(path, along: np.ndarray) -> None:
    steps = np.diff(along)
    step = float(np.median(steps))
    tolerance = max(SPACING_TOLERANCE * step, ROUNDING_MM)
    missing = np.rint(steps / step).astype(int) - 1
    where = np.flatnonzero(missing > 0)
    if len(where):
        gaps = ", ".join(f"{along[i]:.1f} and {along[i + 1]:.1f}" for i in where[:5])
        more = " and elsewhere" if len(where) > 5 else ""
        reason = f"missing slices: {missing[where].sum()}, between {gaps} mm{more}"
        raise UserError(path, reason, "Export all slices of the series")
    grid = np.linspace(along[0], along[-1], len(along))
    if np.abs(steps - step).max() > tolerance or np.abs(along - grid).max() > 0.1 * step:
        reason = f"slice spacing varies from {steps.min():.3f} to {steps.max():.3f} mm"
        raise UserError(path, reason, "Reconstruct or resample it to even spacing")


# ---- voxels ----


def _voxels(path, members, slices: list[_Slice]):
    """(float32 [x, y, z] with each slice's own slope and intercept applied, sha256 in z order)."""
    rows, columns = slices[0].shape
    array = np.empty((columns, rows, len(slices)), np.float32, order="F")
    digests = []
    for z, s in enumerate(slices):
        data = _read(path, members[s.index])
        digests.append(hashlib.sha256(data).hexdigest())
        raw = _try(_decode, data, s)
        if raw is None or raw.shape != (rows, columns):
            where = "?" if s.instance is None else s.instance
            reason = (
                f"the pixels of InstanceNumber {where} are missing, cut short or not of its size"
            )
            raise UserError(path, reason, _FIX_FILE)
        slope = 1.0 if s.slope is None else s.slope
        with np.errstate(over="ignore"):  # beyond float32 becomes inf and is refused
            array[:, :, z] = (raw.astype(np.float64) * slope + (s.intercept or 0.0)).T
    return array, hashlib.sha256("".join(digests).encode()).hexdigest()


def _decode(data: bytes, s: _Slice) -> np.ndarray | None:
    """Stored values [rows, columns]; pydicom applies sign and BitsStored, not the rescaling."""
    pydicom = _pydicom()
    ds = pydicom.dcmread(io.BytesIO(data), specific_tags=[*_PIXEL_TAGS, "PixelData"])
    excess = len(ds.PixelData) - s.shape[0] * s.shape[1] * s.bits[0] // 8
    if s.syntax == _RLE and excess > 4096:
        return None  # RLE grows by 1/128 at most: a bomb, each byte of which may decode to 64
    if s.syntax != _RLE and excess > 1:
        return None  # more rows than declared, or a frame too many
    return pydicom.pixels.pixel_array(ds)


# ---- units ----


def _quantify(path, slices: list[_Slice], require: bool):
    """(facts, what the rescaled voxels are multiplied by, notes)."""
    first, notes = slices[0], []
    pet = dataclasses.replace(
        first.pet, acquisitions=tuple(m for s in slices for m in s.pet.acquisitions)
    )
    facts = {
        "modality": first.modality,
        "manufacturer": first.manufacturer,
        "slices": len(slices),
        "units": "HU" if first.modality == "CT" and first.hounsfield else "arbitrary",
        "suv_factor": None,
    }
    if any(s.lossy for s in slices):
        notes.append("the images were compressed with loss before")
    if any(s.burned_in for s in slices):
        notes.append("text may be burned into the images (BurnedInAnnotation): look before sharing")
    if first.modality != "PT":
        if require:
            raise UserError(path, f"modality {first.modality} has no SUV", "Give a PET series")
        return facts, 1.0, notes
    if first.declared is not None and first.declared > len(slices):
        notes.append(f"the header allows {first.declared} slices, {len(slices)} were found")
    facts["units"] = _UNITS.get(pet.units, "unknown")
    if pet.units == "GML":
        facts["units"] = f"SUV ({pet.suv_type})"
    factor = 1.0
    try:
        factor = suv.bw_factor(pet)
        facts.update(units="SUVbw", suv_factor=factor)
    except suv.NoSuv as e:
        reason = str(e)
        if require:
            remedy = "Complete the header, or accept the stored unit (suv=auto)"
            raise UserError(path, f"SUV cannot be computed: {reason}", remedy) from None
        notes.append(f"the stored unit ({facts['units']}) is kept, not SUV: {reason}")
    try:
        minutes = round(suv.seconds_after_injection(pet) / 60)
    except suv.NoSuv:
        minutes = None
    facts.update(
        tracer=first.tracer,
        half_life_s=pet.half_life_s,
        minutes_after_injection=minutes,
        decay_correction=pet.decay_correction,
        corrections=sorted(pet.corrections),
    )
    return facts, factor, notes
