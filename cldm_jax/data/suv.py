"""Body-weight SUV from the numbers of a PET header: arithmetic only, no DICOM library.

The rules are QIBA's vendor-neutral SUV calculation (RSNA, FDG-PET/CT profile): Bq/ml times body
weight over the dose that is left at the time the voxels were decay-corrected to.
"""

import dataclasses
import datetime
import math
import re

DAY_S = 86400.0
WEIGHT_KG = (0.5, 400.0)
DOSE_BQ = (1e5, 1e11)  # a dose given in MBq, a common mistake, is far below
HALF_LIFE_S = (30.0, 1e7)
MAX_HALF_LIVES = 10  # beyond, the clocks are wrong: 0.1 % of the dose would be left

_TRACERS = {
    "fluorodeoxyglucose": "FDG", "fludeoxyglucose": "FDG", "fdg": "FDG", "florbetapir": "florbetapir",
    "florbetaben": "florbetaben", "flutemetamol": "flutemetamol", "flortaucipir": "flortaucipir",
    "psma": "PSMA", "piflufolastat": "PSMA", "dotatate": "DOTATATE", "dotatoc": "DOTATOC",
    "edotreotide": "DOTATOC", "dotanoc": "DOTANOC", "fluciclovine": "fluciclovine",
    "fluorodopa": "FDOPA", "fdopa": "FDOPA", "fluoroldopa": "FDOPA", "fluorethyltyrosin": "FET",
    "fluoroethyltyrosine": "FET", "fet": "FET", "methionine": "methionine", "choline": "choline",
    "fluorocholine": "choline", "fluorothymidine": "FLT", "flt": "FLT", "thymidine": "FLT",
    "fluoromisonidazole": "FMISO", "fmiso": "FMISO", "pittsburgh": "PiB", "pib": "PiB",
    "raclopride": "raclopride", "flumazenil": "flumazenil", "ucbj": "UCB-J", "ammonia": "ammonia",
    "acetate": "acetate", "rubidium": "rubidium", "fapi": "FAPI", "pk11195": "PK11195",
}  # fmt: skip
_NUCLIDES = {
    key: f"{symbol}-{mass}"
    for element, symbol, mass in (
        ("fluorine", "F", 18), ("carbon", "C", 11), ("gallium", "Ga", 68), ("nitrogen", "N", 13),
        ("oxygen", "O", 15), ("rubidium", "Rb", 82), ("copper", "Cu", 64), ("zirconium", "Zr", 89),
    )
    for name in (element, symbol.lower())
    for key in (f"{name}{mass}", f"{mass}{name}")
}  # fmt: skip


class NoSuv(Exception):
    """Why no SUV can be computed, in words that hold no value of a header."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """A time of day in seconds, and its date as a day number where the header gives one."""

    day: int | None
    second: float


@dataclasses.dataclass(frozen=True)
class Pet:
    """What the SUV depends on; codes as DICOM spells them, None or "" where a tag is absent."""

    units: str = ""
    suv_type: str = ""
    corrections: frozenset = frozenset()
    decay_correction: str = ""
    weight_kg: float | None = None
    dose_bq: float | None = None
    half_life_s: float | None = None
    injection: Moment | None = None
    series: Moment | None = None
    acquisitions: tuple[Moment, ...] = ()
    philips_suv: float | None = None  # (7053,1000): rescaled counts -> SUVbw
    philips_activity: float | None = None  # (7053,1009): rescaled counts -> Bq/ml


def bw_factor(pet: Pet) -> float:
    """What rescaled voxel values are multiplied by to become SUVbw (g/ml). Raises NoSuv."""
    if pet.units == "GML":
        if pet.suv_type not in ("", "BW"):
            raise NoSuv("the SUV is not by body weight (SUVType)")
        return 1.0
    if pet.units not in ("BQML", "CNTS"):
        raise NoSuv("Units must be BQML, GML or CNTS")
    for code in ("ATTN", "DECY"):
        if code not in pet.corrections:
            raise NoSuv(f"CorrectedImage lacks {code}")
    to_bq = 1.0
    if pet.units == "CNTS":
        if pet.philips_suv is not None and pet.philips_suv > 0:
            return pet.philips_suv
        if pet.philips_activity is None or not pet.philips_activity > 0:
            raise NoSuv(
                "Units are counts and the Philips scale factors (7053,1000/1009) are absent"
            )
        to_bq = pet.philips_activity
    weight_g = 1000 * _within("PatientWeight", pet.weight_kg, WEIGHT_KG, "kg")
    dose = _within("RadionuclideTotalDose", pet.dose_bq, DOSE_BQ, "Bq")
    if pet.decay_correction == "START":
        half_life = _within("RadionuclideHalfLife", pet.half_life_s, HALF_LIFE_S, "s")
        dose *= 2.0 ** (-seconds_after_injection(pet) / half_life)
    elif pet.decay_correction != "ADMIN":  # ADMIN: the voxels are corrected to the injection
        raise NoSuv("DecayCorrection must be START or ADMIN")
    return to_bq * weight_g / dose


def seconds_after_injection(pet: Pet) -> float:
    """From injection to the start of the scan, across midnight if need be. Raises NoSuv.

    Without dates the scan is taken to follow within 24 hours. That is safe only where a clock that
    runs a minute early, read as 23 h 59 min, would exceed `MAX_HALF_LIVES`.
    """
    half_life = _within("RadionuclideHalfLife", pet.half_life_s, HALF_LIFE_S, "s")
    if pet.injection is None:
        raise NoSuv("RadiopharmaceuticalStartTime is missing")
    start = scan_start(pet)
    if start is None:
        raise NoSuv("SeriesTime and AcquisitionTime are missing")
    elapsed = start.second - pet.injection.second
    if start.day is not None and pet.injection.day is not None:
        elapsed += (start.day - pet.injection.day) * DAY_S
    elif half_life * MAX_HALF_LIVES < DAY_S:
        elapsed %= DAY_S
    else:
        raise NoSuv("for so long a half-life RadiopharmaceuticalStartDateTime is needed")
    if not 0 <= elapsed <= MAX_HALF_LIVES * half_life:
        raise NoSuv("the times of injection and scan contradict each other")
    return elapsed


def scan_start(pet: Pet) -> Moment | None:
    """The series time, or the earliest acquisition if the series time is later.

    A later series time belongs to a reconstruction or post-processing, not to the scan.
    """
    given = [m for m in (pet.series, *pet.acquisitions) if m is not None]
    if not given:
        return None
    return min(given, key=lambda moment: _difference(moment, given[0]))


def parse_moment(date: str, time: str) -> Moment | None:
    """From DICOM DA and TM; None without a valid time."""
    match = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", time.strip())
    if not match:
        return None
    hour, minute, second = (float(part or 0) for part in match.groups())
    if hour >= 24 or minute >= 60 or second >= 61:
        return None
    return Moment(_day(date), 3600 * hour + 60 * minute + second)


def parse_datetime(text: str) -> Moment | None:
    """From DICOM DT; None with a UTC offset, which the scan's local times cannot be compared to."""
    text = text.strip()
    moment = parse_moment(text[:8], text[8:])
    return moment if moment is not None and moment.day is not None else None


def tracer_name(*texts: str) -> str:
    """The plain name of the tracer, else of the nuclide, found in `texts`; "other" if unknown."""
    found = (known_name(text, names) for names in (_TRACERS, _NUCLIDES) for text in texts)
    return next((name for name in found if name), "other")


def known_name(text: str, names: dict[str, str]) -> str | None:
    """What `names` calls a word of a free text, or two or three in a row ("18", "F"), if anything.

    The text itself goes no further: people write names of patients into any field.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    runs = ["".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)]
    return next((names[run] for run in runs if run in names), None)


def _day(date: str) -> int | None:
    digits = date.strip().replace(".", "")
    try:
        return datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal()
    except ValueError:
        return None


def _difference(a: Moment, b: Moment) -> float:
    """a - b in seconds; without dates the shorter way round the clock."""
    seconds = a.second - b.second
    if a.day is not None and b.day is not None:
        return seconds + (a.day - b.day) * DAY_S
    return (seconds + DAY_S / 2) % DAY_S - DAY_S / 2


def _within(tag: str, value: float | None, bounds: tuple[float, float], unit: str) -> float:
    if value is None:
        raise NoSuv(f"{tag} is missing")
    low, high = bounds
    if not (math.isfinite(value) and low <= value <= high):
        raise NoSuv(f"{tag} is not between {low:g} and {high:g} {unit}")
    return value
