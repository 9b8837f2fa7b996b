"""What one DICOM file says, as plain numbers and codes.

The only file that imports pydicom. Only the tags listed here are ever parsed, and what leaves
`parse` is plain numbers and codes from fixed lists: no text of a file can reach an output. pydicom
may quote a value in an exception, a warning or a log line, so all three are dropped (`attempt`).
"""

import collections.abc
import dataclasses
import hashlib
import io
import logging
import math
import warnings

import numpy as np

from cldm_jax import console
from cldm_jax.data import nuclides, suv
from cldm_jax.data.dicom_files import is_marked
from cldm_jax.errors import UserError

DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
READABLE = (_IMPLICIT, _EXPLICIT, _BIG_ENDIAN, _RLE)
_PHILIPS = "Philips PET Private Group"

_PIXEL_TAGS = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation NumberOfFrames"
).split()
_TAGS = [
    *_PIXEL_TAGS,
    *(
        "SOPClassUID SeriesInstanceUID SeriesNumber Modality InstanceNumber ImageType Manufacturer "
        "ImagePositionPatient ImageOrientationPatient PixelSpacing FrameOfReferenceUID "
        "RescaleSlope RescaleIntercept RescaleType LossyImageCompression NumberOfSlices "
        "PixelPaddingValue PixelPaddingRangeLimit "
        "BurnedInAnnotation PerFrameFunctionalGroupsSequence SeriesDate SeriesTime "
        "AcquisitionDate AcquisitionTime AcquisitionDateTime FrameReferenceTime ActualFrameDuration "
        "Units SUVType CorrectedImage DecayCorrection PatientWeight "
        "RadiopharmaceuticalInformationSequence"
    ).split(),
    # A private block is where its creator's name says, often but not always the first.
    *((0x7053, element) for n in range(0x10, 0x20) for element in (n, n << 8, n << 8 | 9)),
]

# Codes that may be repeated in a message or a fact; anything else becomes "other".
_MODALITIES = "CR CT DX MG MR NM OT PR PT RTDOSE RTIMAGE SC SEG US XA".split()
UNITS = {"BQML": "Bq/ml", "CNTS": "counts", "PROPCNTS": "proportional counts", "GML": "SUV"}
_SUV_TYPES = "BW BSA IBW LBM LBMJAMES128 LBMJANMA".split()
_DECAY = "START ADMIN NONE".split()
_CORRECTIONS = "ATTN CLN DCAL DECY DTIM MOTN NORM PMOT RADL RAN SCAT".split()
_MAKERS = {
    "siemens": "Siemens", "cti": "Siemens", "ge": "GE", "generalelectric": "GE", "philips": "Philips",
    "canon": "Canon", "toshiba": "Toshiba", "unitedimaging": "United Imaging", "uih": "United Imaging",
    "mediso": "Mediso", "hitachi": "Hitachi", "fujifilm": "Fujifilm", "shimadzu": "Shimadzu",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
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
    padding: tuple[int, ...]  # the ends of the stored values that are no measurement; () = none
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    hounsfield: bool
    declared: int | None
    pet: suv.Pet


def pydicom():
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        remedy = console.command("pip", "install", "pydicom")
        raise UserError("DICOM input", "needs the package pydicom", remedy) from None
    return pydicom


def attempt(function, *args):
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


def _dataset(data: bytes, **options):
    """Without preamble and mark the data set alone is read."""
    return pydicom().dcmread(io.BytesIO(data), force=not is_marked(data), **options)


def parse(index: int, data: bytes) -> list[Slice]:
    """[the header of an image, as plain numbers and codes]; [] for a report, a plan, a DICOMDIR."""
    ds = _dataset(data, stop_before_pixels=True, specific_tags=_TAGS)
    if not (_integer(ds, "Rows") and _integer(ds, "Columns")):
        uid = _text(ds.file_meta, "MediaStorageSOPClassUID") or _text(ds, "SOPClassUID")
        kind = pydicom().uid.UID_dictionary.get(uid, [""])[0]
        if not uid or "Image Storage" in kind:
            raise ValueError("an image cut short in its header must not pass for a report")
        return []
    tracer, named = _drug(ds)
    return [
        Slice(
            index=index,
            uid=_text(ds, "SeriesInstanceUID"),
            number=_integer(ds, "SeriesNumber"),
            instance=_integer(ds, "InstanceNumber"),
            modality=_code(_text(ds, "Modality"), _MODALITIES),
            manufacturer=nuclides.known_name(_text(ds, "Manufacturer"), _MAKERS) or "other",
            tracer=tracer,
            frame_of_reference=_text(ds, "FrameOfReferenceUID"),
            shape=(_integer(ds, "Rows") or 0, _integer(ds, "Columns") or 0),
            multiframe=(_integer(ds, "NumberOfFrames") or 1) > 1
            or "PerFrameFunctionalGroupsSequence" in ds,
            localizer="LOCALIZER" in _list(ds, "ImageType"),
            mosaic="MOSAIC" in _list(ds, "ImageType"),
            lossy=_text(ds, "LossyImageCompression") == "01",
            burned_in=_text(ds, "BurnedInAnnotation") not in ("", "NO"),
            syntax=_syntax(ds),
            samples=_integer(ds, "SamplesPerPixel") or 1,
            photometric=_text(ds, "PhotometricInterpretation"),
            bits=tuple(_integer(ds, f) or 0 for f in ("BitsAllocated", "BitsStored", "HighBit")),
            padding=_padding(ds),
            position=_vector(ds, "ImagePositionPatient", 3),
            orientation=_vector(ds, "ImageOrientationPatient", 6),
            spacing=_vector(ds, "PixelSpacing", 2),
            slope=_number(ds, "RescaleSlope"),
            intercept=_number(ds, "RescaleIntercept"),
            hounsfield=_text(ds, "RescaleType") in ("", "HU"),
            declared=_integer(ds, "NumberOfSlices"),
            pet=_pet(ds, named),
        )
    ]


def _syntax(ds) -> str:
    """The transfer syntax; without one, that in which the header could be read."""
    named = _text(ds.file_meta, "TransferSyntaxUID")
    implicit, little = ds.original_encoding
    return named or (_IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN)


def _padding(ds) -> tuple[int, ...]:
    tags = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    values = [_get(ds, tag) for tag in tags]
    # Of implicit syntaxes, which do not say whether it has a sign, pydicom gives the bytes.
    values = [int.from_bytes(v[:2], "little") if isinstance(v, bytes) else v for v in values]
    first, last = (None if v is None else _finite(v) for v in values)
    return () if first is None else (int(first), int(first if last is None else last))


def syntax_name(uid: str) -> str:
    names = pydicom().uid.UID_dictionary
    return names[uid][0] if uid in names else "unknown or missing"


def decode(data: bytes, s: Slice) -> np.ndarray | None:
    """Stored values [rows, columns]; pydicom applies sign and BitsStored, not the rescaling."""
    ds = _dataset(data, specific_tags=[*_PIXEL_TAGS, "PixelData"])
    excess = len(ds.PixelData) - s.shape[0] * s.shape[1] * s.bits[0] // 8
    if s.syntax == _RLE and excess > 4096:
        return None  # RLE grows by 1/128 at most: a bomb, each byte of which may decode to 64
    if s.syntax != _RLE and excess > 1:
        return None  # more rows than declared, or a frame too many
    if not ds.file_meta.get("TransferSyntaxUID"):
        ds.file_meta.TransferSyntaxUID = s.syntax
    return pydicom().pixels.pixel_array(ds)


def pixels_digest(data: bytes) -> str:
    """SHA-256 of the pixels as they are stored, whatever the header around them."""
    return hashlib.sha256(_dataset(data, specific_tags=["PixelData"]).PixelData).hexdigest()


def _pet(ds, named: frozenset[tuple[str, str]]) -> suv.Pet:
    dose = _first(ds, "RadiopharmaceuticalInformationSequence")
    injection = suv.parse_datetime(_text(dose, "RadiopharmaceuticalStartDateTime"))
    timed = suv.parse_moment("", _text(dose, "RadiopharmaceuticalStartTime"))
    acquired = suv.parse_moment(_text(ds, "AcquisitionDate"), _text(ds, "AcquisitionTime"))
    acquired = acquired or suv.parse_datetime(_text(ds, "AcquisitionDateTime"))
    middle, lasts = (_number(ds, f) for f in ("FrameReferenceTime", "ActualFrameDuration"))
    begins = None if middle is None else max(0.0, (middle - (lasts or 0) / 2) / 1000)
    units = _text(ds, "Units")
    return suv.Pet(
        units=_code(units, UNITS) if units else "",
        suv_type=_code(_text(ds, "SUVType"), ["", *_SUV_TYPES]),
        corrections=frozenset(_list(ds, "CorrectedImage")) & frozenset(_CORRECTIONS),
        decay_correction=_code(_text(ds, "DecayCorrection"), _DECAY),
        weight_kg=_number(ds, "PatientWeight"),
        dose_bq=_number(dose, "RadionuclideTotalDose"),
        injections=len(_get(ds, "RadiopharmaceuticalInformationSequence") or ()),
        half_life_s=_number(dose, "RadionuclideHalfLife"),
        nuclides=named,
        injection=injection or timed,
        injection_too=timed if injection else None,
        series=suv.parse_moment(_text(ds, "SeriesDate"), _text(ds, "SeriesTime")),
        acquisitions=(acquired,) if acquired else (),
        frames=() if begins is None else (begins,),
        philips_suv=_philips(ds, 0x00),
        philips_activity=_philips(ds, 0x09),
    )


def _drug(ds) -> tuple[str | None, frozenset[tuple[str, str]]]:
    """(tracer, {(tag, nuclide)} of every tag that names one, by its code or in words)."""
    dose = _first(ds, "RadiopharmaceuticalInformationSequence")
    if dose is None:
        return None, frozenset()
    drug, nuclide = (
        _first(dose, f"{x}CodeSequence") for x in ("Radiopharmaceutical", "Radionuclide")
    )
    texts = {
        "RadiopharmaceuticalCodeSequence": _text(drug, "CodeMeaning"),
        "Radiopharmaceutical": _text(dose, "Radiopharmaceutical"),
        "RadionuclideCodeSequence": _text(nuclide, "CodeMeaning"),
    }
    found = [(tag, nuclides.of_text(text)) for tag, text in texts.items()]
    found.append(("RadionuclideCodeSequence", nuclides.CODES.get(_text(nuclide, "CodeValue"))))
    return nuclides.tracer_name(*texts.values()), frozenset((t, n) for t, n in found if n)


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
    return [str(v).strip() for v in (value if many else [value])]


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
