"""PET nuclides and tracers: plain names, half-lives, and how headers spell them."""

import re

# Half-lives in seconds (NUBASE2020, rounded), of those that brains are imaged with.
HALF_LIVES = {
    "C-11": 1221.8, "N-13": 597.9, "O-15": 122.24, "F-18": 6586.2, "Cu-64": 45721, "Ga-68": 4062.6,
    "Br-76": 58320, "Rb-82": 75.4, "Zr-89": 282276, "I-124": 360806,
}  # fmt: skip
TOLERANCE = 0.05  # of a half-life: 110 min is written for 109.77, 20 for 20.36

# The nuclide of a code value: DICOM CID 4020, SRT and SNOMED CT.
CODES = {
    "C-105A1": "C-11", "40565003": "C-11", "C-107A1": "N-13", "21576001": "N-13",
    "C-B1038": "O-15", "129504001": "O-15", "C-111A1": "F-18", "77004003": "F-18",
    "C-127A2": "Cu-64", "3932008": "Cu-64", "C-131A3": "Ga-68", "35337001": "Ga-68",
    "C-113A2": "Br-76", "79523006": "Br-76", "C-159A2": "Rb-82", "79197006": "Rb-82",
    "C-168A4": "Zr-89", "63360001": "Zr-89", "C-114A5": "I-124", "40937006": "I-124",
}  # fmt: skip
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
# Of the tracers that are made with one nuclide only.
_OF_TRACER = {
    **dict.fromkeys("FDG florbetapir florbetaben flutemetamol flortaucipir".split(), "F-18"),
    **dict.fromkeys("fluciclovine FDOPA FET FLT FMISO".split(), "F-18"),
    **dict.fromkeys("PiB raclopride methionine PK11195".split(), "C-11"),
    "ammonia": "N-13",
    "rubidium": "Rb-82",
}
_ELEMENTS = {
    "C": "carbon", "N": "nitrogen", "O": "oxygen", "F": "fluorine", "Cu": "copper", "Ga": "gallium",
    "Br": "bromine", "Rb": "rubidium", "Zr": "zirconium", "I": "iodine",
}  # fmt: skip
_NUCLIDES = {
    key: nuclide
    for nuclide in HALF_LIVES
    for symbol, _, mass in (nuclide.partition("-"),)
    for word in (_ELEMENTS[symbol], symbol.lower())
    for key in (f"{word}{mass}", f"{mass}{word}")
}


def of_text(text: str) -> str | None:
    """The nuclide that a free text names, itself or by a tracer that has only one."""
    return known_name(text, _NUCLIDES) or _OF_TRACER.get(known_name(text, _TRACERS) or "")


def is_half_life(seconds: float, nuclide: str) -> bool:
    return abs(seconds / HALF_LIVES[nuclide] - 1) <= TOLERANCE


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
