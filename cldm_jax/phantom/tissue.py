"""Tissue codes and their physical constants (docs/phantom.md lists the sources). numpy only.

Codes 0-11 are BrainWeb's, so that a user's BrainWeb label volume needs no translation; 12 and 13
exist only in the embedded anatomy and where a tumour was put in.
"""

import dataclasses

import numpy as np

AIR, CSF, GM, WM, FAT, MUSCLE, SKIN, SKULL, VESSEL, CONNECTIVE, DURA, MARROW, DEEP, TUMOUR = range(
    14
)
N_CODES = 14
N_BRAINWEB = 12
GREY = (GM, DEEP)
BRAIN = (GM, WM, DEEP, TUMOUR)
NAMES = (
    "air (outside or inside the head)",
    "cerebrospinal fluid",
    "grey matter",
    "white matter",
    "fat",
    "muscle",
    "skin",
    "skull, cortical bone",
    "vessels",
    "connective tissue",
    "dura",
    "bone marrow, diploe",
    "deep grey nuclei",
    "tumour",
)

# FDG uptake relative to cortical grey matter at about 60 minutes.
UPTAKE = np.array(
    [0, 0.02, 1, 0.25, 0.05, 0.10, 0.12, 0.06, 0.20, 0.08, 0.12, 0.18, 1.1, 0.5], np.float32
)
# CT number in HU, and the SD of the texture inside a tissue.
HU = np.array([-1000, 8, 37, 28, -95, 55, 45, 1150, 42, -20, 60, 350, 38, 32], np.float32)
HU_TEXTURE = np.array([0, 2, 2, 2, 8, 6, 8, 180, 3, 10, 5, 120, 2, 4], np.float32)
# Relaxation at 3 T in ms and proton density relative to water.
T1 = np.array(
    [1, 4000, 1450, 838, 370, 1400, 1100, 300, 1650, 700, 1100, 365, 1200, 1550], np.float64
)
T2_STAR = np.array([1, 800, 55, 48, 40, 30, 25, 0.6, 40, 30, 20, 15, 45, 70], np.float64)
PROTON_DENSITY = np.array(
    [0, 1, 0.84, 0.70, 0.90, 0.80, 0.65, 0.10, 0.72, 0.70, 0.60, 0.70, 0.80, 0.86], np.float64
)


@dataclasses.dataclass(frozen=True)
class Person:
    """What belongs to a person and not to a scan: drawn once from the function stream.

    uptake [14] relative activity per code; hu [14] CT number per code; suv: true SUV of grey matter (the
    thin cortex shows about two thirds of it: 6 to 10); age in [0, 1] (0 young, 1 old).
    """

    uptake: np.ndarray
    hu: np.ndarray
    suv: float
    age: float


def draw_person(rng: np.random.Generator, age: float, vary: bool) -> Person:
    """Inter-personal variation of uptake (8-12 %) and bone density (6 %); vary=False gives the table."""
    spread = rng.normal(size=4) * vary
    uptake, hu = UPTAKE.copy(), HU.copy()
    uptake[list(GREY)] *= 1 + 0.08 * spread[0]
    uptake[WM] *= 1 + 0.12 * spread[1]
    uptake[[FAT, MUSCLE, SKIN, CONNECTIVE, MARROW]] *= np.exp(0.2 * spread[2])
    hu[[SKULL, MARROW]] *= 1 + 0.06 * spread[3]
    suv = rng.uniform(9, 15) if vary else 12.0
    return Person(uptake, hu, float(suv), float(age))
