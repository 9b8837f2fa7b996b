"""What makes a CLDM's samples an honest ensemble, as it is kept beside its weights: calibration.json."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from cldm_jax import files
from cldm_jax.metrics.ensemble import SCALES_MM, SMOOTH_MM
from cldm_jax.metrics.regions import REGIONS

FILE = "calibration.json"
VERSION = 1
SMOOTH_BEFORE = (4.0,) * len(SCALES_MM)  # of calibrations that do not name it
# Sampling settings that runs and calibrations of earlier versions do not name, at their value then.
SAMPLING_BEFORE = {"noise_slices": 0.0, "autoguidance_scale": 1.0, "jump_from": 0.0}
# Sampling settings that the ensemble has of its own, whatever those of a run's images are.
OWN = ("num_sampling_steps", "autoguidance_scale", "jump_from")


@dataclasses.dataclass(frozen=True)
class TargetCalibration:
    """Of one target. factors: of each band. q90: multiplier of the SD for a 90 % interval, at each of
    SCALES_MM. regions: {name: `regions.fit_rule`}. smooth_mm: of the SD map, at each of SCALES_MM.
    """

    factors: tuple[float, ...]
    q90: tuple[float, ...]
    regions: dict[str, dict[str, Any]]
    smooth_mm: tuple[float, ...] = SMOOTH_MM

    def __post_init__(self):
        for name in ("factors", "q90", "smooth_mm"):
            found = getattr(self, name)
            if len(found) != len(SCALES_MM) or not all(math.isfinite(v) and v >= 0 for v in found):
                raise ValueError(f"{name} {found!r}")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measured on `people` validation people, `slices` slices of each target in all, `slice_mm` apart;
    for one checkpoint, one point read-out, `samples` samples of these sampling settings.
    """

    version: int
    step: int
    config_sha256: str
    point: str
    sampling: dict[str, Any]
    samples: int
    seed: int
    split_hash: str
    people: int
    slices: int
    slice_mm: float
    scales_mm: tuple[float, ...]
    targets: dict[str, TargetCalibration]

    def to_json(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, value: dict) -> "Calibration":
        """ValueError, TypeError or KeyError for anything else than `to_json` gives."""
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']}, this code reads {VERSION}")
        if tuple(value["scales_mm"]) != SCALES_MM:
            raise ValueError(f"scales {value['scales_mm']}, this code has {SCALES_MM}")
        targets = {
            name: TargetCalibration(
                tuple(t["factors"]),
                tuple(t["q90"]),
                t["regions"],
                tuple(t.get("smooth_mm", SMOOTH_BEFORE)),
            )
            for name, t in value["targets"].items()
        }
        for name, target in targets.items():
            if any({"q", "bias", "pooled"} - rule.keys() for rule in target.regions.values()):
                raise ValueError(f"regions of {name}")
            if target.regions.keys() != REGIONS[name].keys():
                raise ValueError(f"regions {', '.join(target.regions)} of {name}")
        scales, sampling = tuple(value["scales_mm"]), {**SAMPLING_BEFORE, **value["sampling"]}
        return cls(**{**value, "targets": targets, "scales_mm": scales, "sampling": sampling})


def sampling_facts(sampling: Mapping[str, Any]) -> dict:
    """What of the sampling settings decides a sample: not how many are drawn."""
    return {k: v for k, v in json.loads(json.dumps(dict(sampling))).items() if k != "num_samples"}


def read(data: bytes | None) -> tuple[Calibration | None, str]:
    """(calibration, "") of a file's bytes, or (None, why not); None: there is no file."""
    if data is None:
        return None, "it was never calibrated"
    try:
        return Calibration.from_json(json.loads(data)), ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return None, f"its {FILE} cannot be read ({type(error).__name__}: {error})"


def misfit(found: Calibration, step: int, config_sha256: str, sampling: Mapping) -> str:
    """Why it is not the opened model's; "" where it is."""
    if (found.step, found.config_sha256) != (step, config_sha256):
        return f"its {FILE} belongs to another training or step ({found.step}, opened {step})"
    own, asked = sampling_facts(found.sampling), sampling_facts(sampling)
    asked |= {k: own[k] for k in OWN if k in own}
    differing = sorted(k for k in own.keys() | asked.keys() if own.get(k) != asked.get(k))
    if differing:
        return f"its {FILE} was made with other sampling settings ({', '.join(differing)})"
    return ""


def read_bytes(workdir) -> bytes | None:
    path = pathlib.Path(workdir) / FILE
    return path.read_bytes() if path.is_file() else None


def write(workdir, calibration: Calibration) -> pathlib.Path:
    path = pathlib.Path(workdir) / FILE
    files.write_json(path, calibration.to_json())
    return path
