"""Random numbers by name, and what the ranges of mode `randomised` may be. numpy only.

A number depends on (seed, person, PET, its name) alone: with one randomisation switched off or a new
one added, all others keep their values bit for bit.
"""

import zlib

import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.phantom.fields import STREAMS

# Uniform in the logarithm: factors.
LOG = "size tissue_factor grey_to_white foci_sd_mm fwhm_mm slice_mm pixel_mm cov".split()
LOG += ["missing_rays", "gain", "gamma"]
WHOLE = "spots foci views".split()  # whole numbers
COUNTS = {"turn_deg": 2, "shift_mm": 2, "axis_size": 3, "slant": 3, "mu_shift_direction": 3}
COUNTS |= {"tissue_factor": 6, "tissue_absent": 6, "any_uptake": 9}  # see tracer.OUTER, GROUPS


class Dice:
    """The random numbers of one person (number 0) or of one PET of a person (1, 2, ...)."""

    def __init__(self, seed: int, key: tuple[int, ...], number: int):
        self._key = [seed, *key, STREAMS["randomised"], number]

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([*self._key, zlib.crc32(name.encode())])

    def draw(self, ranges: dict) -> dict:
        """{setting: value}: a bool for a share, a word for shares of words, else a number or a list."""
        return {name: self._one(name, value) for name, value in ranges.items()}

    def _one(self, name: str, setting):
        u = self.rng(name).uniform(size=COUNTS.get(name, 1))
        if isinstance(setting, dict):
            edges = np.cumsum(list(setting.values()))
            at = np.searchsorted(edges, u[0] * edges[-1], side="right")
            return list(setting)[min(int(at), len(edges) - 1)]
        if isinstance(setting, tuple | list):
            low, high = map(float, setting)
            if name in WHOLE:
                values = np.minimum(np.floor(low + (high + 1 - low) * u), high).astype(int)
            elif name in LOG:
                values = np.exp(np.log(low) + (np.log(high) - np.log(low)) * u)
                values = np.clip(values, low, high)  # there and back may round beyond
            else:
                values = low + (high - low) * u
        else:
            values = u < setting
        found = values.tolist()
        return found if name in COUNTS else found[0]


def check(ranges: dict) -> None:
    """UserError for ranges that cannot be drawn from, naming the setting."""
    for section, settings in ranges.items():
        for name, value in settings.items():
            field = f"config.randomised.{section}.{name} = {value!r}"
            if isinstance(value, dict):
                if min(value.values()) < 0 or sum(value.values()) <= 0:
                    raise UserError(field, "are no shares", "Give 0 or more, one of them above 0")
            elif isinstance(value, tuple | list):
                if len(value) != 2 or not -np.inf < value[0] <= value[1] < np.inf:
                    raise UserError(field, "is no range", "Give (low, high), both the same to fix")
                if name in LOG and value[0] <= 0:
                    raise UserError(field, "is drawn as a factor", "Give numbers above 0")
            elif not 0 <= value <= 1:
                raise UserError(field, "is no share", "Give a number from 0 to 1")
