"""Names and numbers as a reader sees them. Imports metrics only."""

import math
import re

from cldm_jax.errors import rounded
from cldm_jax.metrics.scores import METRICS

NOT_MEASURED = "not measured"
_METHODS = {
    "unet": "U-Net",
    "unet-1slice": "U-Net, one slice",
    "unet-cells": "U-Net on latent-size cells",
    "gaussian-cells": "Gaussian likelihood on cells",
    "energy-cells": "Energy score on cells",
    "latent_regression": "Latent regression",
    "attention_unet": "Attention U-Net",
    "cyclegan": "CycleGAN",
    "pix2pix": "pix2pix",
    "ldm": "CLDM",
    "ldm-plain": "CLDM, plain recipe",
    "nac": "CLDM, PET without attenuation correction",
}
_REFERENCES = {
    "floor_mean_image": "Floor: population mean image",
    "source_identity": "Floor: the PET itself as the answer",
    "linear_ceiling": "Ceiling: linear patch code of the latent's size",
    "ae_ceiling": "Ceiling: autoencoder reconstruction",
    "reacquired_ceiling": "Ceiling: same person acquired again",
}
_MODES = {  # read-out -> what follows the method's name
    "(predict)?": "",
    "chosen": ", read-out chosen per fold",
    "mirror": " with mirrored input",
    r"mean(\d+)": r" mean of \1",
    r"recentred(\d+)": r" recentred sample, of \1",
}
FLOORS = ("source_identity", "floor_mean_image")  # the other references are ceilings
# Decimals printed at least and at most, by unit; the median SD of a column decides in between.
_DECIMALS = {"dB": (1, 2), "HU": (0, 1), "fraction": (3, 4), "": (2, 3)}


def method_label(key: str) -> str:
    """Label of "method:mode": "ldm:mean4" is "CLDM mean of 4"; unknown names stay as they are."""
    method, _, mode = key.partition(":")
    method, _, seed = method.partition("-seed")
    name = _METHODS.get(method, method) + (f" (seed {seed})" if seed else "")
    for pattern, words in _MODES.items():
        if found := re.fullmatch(pattern, mode):
            return name + found.expand(words)
    return f"{name} {mode}"


def row_key(row: dict) -> str:
    """The "method:mode" of a row that names both."""
    return f"{row['method']}:{row['mode']}"


def is_latent(method: str) -> bool:
    """True for the latent diffusion model, whatever its run is called."""
    return re.split(r"[_-]", method)[0] == "ldm"


def reference_label(name: str) -> str:
    """Label of a reference row; "ae_ceiling:ldm-plain" is that of a further method's own autoencoder."""
    name, _, owner = name.partition(":")
    label = _REFERENCES.get(name, name.replace("_", " "))
    return f"{label} ({method_label(owner)})" if owner else label


def metric_unit(name: str, units: str) -> str:
    unit = METRICS[name].unit
    return units if unit == "target" else unit


def metric_label(name: str, units: str) -> str:
    metric = METRICS[name]
    return column_head(metric.label, metric_unit(name, units), metric.better)


def column_head(label: str, unit: str, better: str = "") -> str:
    """Name, unit and which way is better, "" where neither is."""
    head = f"{label} ({unit})" if unit else label
    arrows = {"high": "↑", "low": "↓", "one": "→\u00a01", "zero": "→\u00a00"}
    return f"{head}\u00a0{arrows[better]}" if better else head  # the arrow never starts a line


def is_number(value) -> bool:
    return value is not None and math.isfinite(value)


def decimals_for(unit: str, entries) -> int:
    """Decimals of a column: two significant digits of its median SD, within the unit's limits."""
    fewest, most = _DECIMALS.get(unit, (2, 3))
    spreads = sorted(e["sd"] for e in entries if e and is_number(e.get("sd")) and e["sd"] > 0)
    if not spreads:
        return most
    wanted = 1 - math.floor(math.log10(spreads[len(spreads) // 2]))
    return min(most, max(fewest, wanted))


def number(value, decimals: int, *, signed: bool = False) -> str:
    """Fixed-point text; "not measured" for None and "undefined" for NaN or infinity."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "") if float(text) == 0 and not signed else text


def interval(pair, decimals: int, *, signed: bool = False) -> str:
    """ "[low, high]", or "" where there is none."""
    if pair is None or not all(is_number(v) for v in pair):
        return ""
    return "[{}, {}]".format(*(number(v, decimals, signed=signed) for v in pair))


def mean_sd(entry, decimals: int) -> str:
    """ "mean ± SD" of a summary entry, with undefined patients counted beside it."""
    if not entry or entry.get("mean") is None:
        return NOT_MEASURED
    text = number(entry["mean"], decimals)
    if entry.get("sd") is not None:
        text += f" ± {number(entry['sd'], decimals)}"
    if entry.get("n_undefined"):
        text += f" ({entry['n_undefined']} undefined)"
    return text


def median_iqr(entry, decimals: int) -> str:
    if not entry or entry.get("median") is None:
        return NOT_MEASURED
    return f"{number(entry['median'], decimals)} {interval(entry.get('iqr'), decimals)}".strip()


def count(value) -> str:
    """A whole number: 1,272, or 12.3 M from a million up."""
    if value is None:
        return NOT_MEASURED
    return f"{rounded(value / 1e6)} M" if value >= 1e6 else f"{round(value):,}"


def duration(seconds) -> str:
    """A length of time with two units at most."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 1:
        return f"{rounded(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{rounded(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def p_value(p) -> str:
    if not is_number(p):
        return number(p, 0)
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
