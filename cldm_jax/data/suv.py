"""Body-weight SUV from the numbers of a PET header: arithmetic only, no DICOM library.

The rules are QIBA's vendor-neutral SUV calculation (RSNA, FDG-PET/CT profile): Bq/ml times body
weight over the dose that is left at the time the voxels were decay-corrected to.
"""

import dataclasses
import datetime
import math
import re

from cldm_jax.data import nuclides

DAY_S = 86400.0
WEIGHT_KG = (0.5, 400.0)
DOSE_BQ = (1e6, 1e10)  # of a person; one given in MBq or kBq, a common mistake, is far below
HALF_LIFE_S = (30.0, 1e7)
MAX_HALF_LIVES = 10  # beyond, the clocks are wrong: 0.1 % of the dose would be left
ODD_HALF_LIVES = 4  # possible, and worth a look
MAX_WRAPPED = 3  # half-lives across a midnight that no date confirms
SAME_TIME = 0.05  # half-lives between two tags of one time: 3.5 % of the dose
MAX_LATE_S = 60  # a frame that begins later after the scan's start is another than its first
SAME_FACTOR = 1.5  # between the maker's own factor and that of the dose: another rounding is less
SEVERAL = "RadiopharmaceuticalInformationSequence lists several injections"
BEFORE = "the times of injection and scan contradict each other: the scan begins first"


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
    injections: int = 1  # that the header lists; the values are of the first
    half_life_s: float | None = None
    nuclides: frozenset[tuple[str, str]] = frozenset()  # (tag that names it, "F-18")
    injection: Moment | None = None
    injection_too: Moment | None = None  # where a second tag gives it
    series: Moment | None = None
    acquisitions: tuple[Moment, ...] = ()
    frames: tuple[float, ...] = ()  # begin of the image, seconds after the series time
    philips_suv: float | None = None  # (7053,1000): rescaled counts -> SUVbw
    philips_activity: float | None = None  # (7053,1009): rescaled counts -> Bq/ml


def bw_factor(pet: Pet) -> float:
    """What rescaled voxel values are multiplied by to become SUVbw (g/ml). Raises NoSuv."""
    if pet.units == "GML":
        if pet.suv_type not in ("", "BW"):
            raise NoSuv("the SUV is not by body weight (SUVType)")
        if pet.corrections and "ATTN" not in pet.corrections:  # none named: derived, and not told
            raise NoSuv("CorrectedImage lacks ATTN")
        return 1.0
    if pet.units not in ("BQML", "CNTS"):
        raise NoSuv("Units must be BQML, GML or CNTS")
    for code in ("ATTN", "DECY"):
        if code not in pet.corrections:
            raise NoSuv(f"CorrectedImage lacks {code}")
    to_bq = 1.0
    if pet.units == "CNTS":
        if pet.philips_suv is not None and pet.philips_suv > 0:
            _check_philips(pet)
            return pet.philips_suv
        if pet.philips_activity is None or not pet.philips_activity > 0:
            raise NoSuv(
                "Units are counts and the Philips scale factors (7053,1000/1009) are absent"
            )
        to_bq = pet.philips_activity
    return to_bq * _grams_per_bq(pet)


def _grams_per_bq(pet: Pet) -> float:
    """Body weight over the dose that is left at the time of the decay correction."""
    if pet.injections > 1:
        raise NoSuv(SEVERAL)
    weight_g = 1000 * _within("PatientWeight", pet.weight_kg, WEIGHT_KG, "kg")
    dose = _within("RadionuclideTotalDose", pet.dose_bq, DOSE_BQ, "Bq")
    if pet.decay_correction == "START":
        half_life = _within("RadionuclideHalfLife", pet.half_life_s, HALF_LIFE_S, "s")
        _check_nuclide(pet)
        dose *= 2.0 ** (-seconds_after_injection(pet) / half_life)
    elif pet.decay_correction != "ADMIN":  # ADMIN: the voxels are corrected to the injection
        raise NoSuv("DecayCorrection must be START or ADMIN")
    return weight_g / dose


def _check_nuclide(pet: Pet) -> None:
    """The half-life is that of the nuclide, by whatever tag names it; of some nuclide, without one."""
    for tag, nuclide in sorted(pet.nuclides):
        if not nuclides.is_half_life(pet.half_life_s, nuclide):
            raise NoSuv(f"RadionuclideHalfLife is not that of {nuclide}, which {tag} names")
    if not pet.nuclides and not any(
        nuclides.is_half_life(pet.half_life_s, nuclide) for nuclide in nuclides.HALF_LIVES
    ):
        raise NoSuv("RadionuclideHalfLife is that of no PET nuclide (in seconds)")


def _check_philips(pet: Pet) -> None:
    """Where dose and times give a factor as well, the maker's own one is like it."""
    if pet.philips_activity is None or not pet.philips_activity > 0:
        return
    try:
        other = pet.philips_activity * _grams_per_bq(pet)
    except NoSuv:  # nothing to compare it with
        return
    if not 1 / SAME_FACTOR <= pet.philips_suv / other <= SAME_FACTOR:
        raise NoSuv(
            "the Philips scale factors (7053,1000/1009), dose and times contradict each other"
        )


def seconds_after_injection(pet: Pet) -> float:
    """From injection to the time of the decay correction, across midnight if need be. Raises NoSuv.

    Without dates the scan may follow after midnight, within `MAX_WRAPPED` half-lives. That is safe
    only where a clock that runs a minute early, read as 23 h 59 min, is far beyond them. Midnight
    itself is what is left of a time that was taken out.
    """
    named = {nuclide for _, nuclide in pet.nuclides}
    half_life = (
        nuclides.HALF_LIVES[named.pop()]
        if len(named) == 1
        else _within("RadionuclideHalfLife", pet.half_life_s, HALF_LIFE_S, "s")
    )
    if pet.injections > 1:
        raise NoSuv(SEVERAL)
    if pet.injection is None:
        raise NoSuv("RadiopharmaceuticalStartTime is missing")
    start = scan_start(pet)
    if start is None:
        raise NoSuv("SeriesTime and AcquisitionTime are missing")
    if start != pet.series and min(pet.frames, default=0.0) > MAX_LATE_S:
        # The decay correction refers to a start of the scan that no tag tells.
        raise NoSuv("SeriesTime is not the scan's start, and FrameReferenceTime names a late frame")
    if pet.injection_too is not None:
        apart = abs(_difference(pet.injection, pet.injection_too))
        if apart > SAME_TIME * half_life:
            tags = "RadiopharmaceuticalStartTime and RadiopharmaceuticalStartDateTime"
            raise NoSuv(f"{tags} contradict each other")
    if pet.injection.second == 0 or start.second == 0:
        raise NoSuv("a time of injection or scan is midnight to the second, as if it was taken out")
    elapsed = start.second - pet.injection.second
    if start.day is not None and pet.injection.day is not None:
        elapsed += (start.day - pet.injection.day) * DAY_S
    elif half_life * MAX_HALF_LIVES < DAY_S:
        if elapsed < 0:
            elapsed += DAY_S
            if elapsed > MAX_WRAPPED * half_life:
                raise NoSuv(BEFORE)
    else:
        raise NoSuv("for so long a half-life RadiopharmaceuticalStartDateTime is needed")
    if elapsed < 0:
        raise NoSuv(BEFORE)
    if elapsed > MAX_HALF_LIVES * half_life:
        raise NoSuv("the times of injection and scan contradict each other")
    return elapsed


def reference_seconds(pet: Pet) -> float:
    """From injection to the time that the voxels are decay-corrected to. Raises NoSuv."""
    if pet.decay_correction == "ADMIN":
        return 0.0
    if pet.decay_correction != "START":
        raise NoSuv("the voxels are corrected to no time that is known")
    return seconds_after_injection(pet)


def image_seconds(pet: Pet) -> float:
    """From injection to the begin of this image, which may be a late frame of the scan. Raises NoSuv."""
    elapsed, start = seconds_after_injection(pet), scan_start(pet)
    first = min(pet.acquisitions, key=lambda m: _difference(m, start), default=None)
    later = 0.0 if first is None else _difference(first, start)
    if later <= 1 and pet.frames and start == pet.series:  # no time of its own: its frame's
        later = min(pet.frames)
    return elapsed + later


def remarks(pet: Pet) -> list[str]:
    """What is possible in the times of a factor that could be computed, and odd."""
    if pet.units == "GML" or pet.decay_correction != "START":
        return []
    try:
        count = seconds_after_injection(pet) / pet.half_life_s
    except NoSuv:
        return []
    odd = f"the scan begins {count:.1f} half-lives after the injection: check the times"
    return [odd] if count > ODD_HALF_LIVES else []


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
