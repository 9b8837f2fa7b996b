"""Where a randomised tracer goes: every tissue's uptake drawn on its own. numpy and scipy only."""

import numpy as np

from cldm_jax.phantom import tissue
from cldm_jax.phantom.draws import Dice
from cldm_jax.phantom.fields import Grid, smooth_field
from cldm_jax.phantom.scene import GROUPS, Scene

OUTER = ("fat", "muscle", "skin", "bone", "marrow", "vessels")
SCALP = ("fat", "muscle", "skin")
WITH_FOCI = ("tau", "flat")  # tracers that are looked at for their foci
FIELD_LIMITS = (0.2, 2.0)


def levels(drawn: dict) -> dict[str, float]:
    """Uptake of each tissue group, from the drawn section `uptake`; the brain is about 1."""
    kind = drawn["tracer"]
    grey, white = {
        "fdg": (1.0, 1 / drawn["grey_to_white"]),
        "amyloid_negative": (drawn["amyloid_negative"], 1.0),
        "amyloid_positive": (drawn["amyloid_positive"], 1.0),
        "tau": (1.0, drawn["tau_white"]),
        "flat": (1.0, drawn["flat_white"]),
        "any": drawn["any_uptake"][:2],
    }[kind]
    found = {"grey": grey, "white": white, "fluid": drawn["fluid"]}
    if kind == "any":
        found["fluid"] = drawn["any_uptake"][2]
        found |= dict(zip(OUTER, drawn["any_uptake"][3:], strict=True))
    else:
        for name, factor, absent in zip(
            OUTER, drawn["tissue_factor"], drawn["tissue_absent"], strict=True
        ):
            # Of usual FDG uptake, of grey matter's.
            found[name] = 0.0 if absent else float(tissue.UPTAKE[GROUPS[name][0]]) * factor
    if drawn["scalp_absent"]:
        found |= dict.fromkeys(SCALP, 0.0)
    found["tumour"] = drawn["tumour"] * grey
    return found


def activity(dice: Dice, drawn: dict, scene: Scene) -> tuple[np.ndarray, dict]:
    """(activity float32 [scene.grid.shape], what is needed to make it again beside `drawn`).

    Each tissue has its own smooth field of inhomogeneity; hot spots lie in the soft tissue outside the
    skull, hot and cold foci in the brain.
    """
    uptake = levels(drawn)
    total = np.zeros(scene.grid.shape, np.float32)
    for name, share in scene.shares.items():
        if uptake[name] == 0:
            continue
        part = np.float32(uptake[name]) * share
        brain = name in ("grey", "white", "fluid", "tumour")
        wide = drawn["field_mm"] if brain else 20.0
        part_of = "grey" if name == "grey" else "brain" if brain else "outer"
        spread = drawn[f"{part_of}_field"]
        field = smooth_field(dice.rng(f"field {name}"), scene.grid, wide)
        part *= np.clip(1 + np.float32(spread) * field, *FIELD_LIMITS)
        if name == "grey" and scene.hypo is not None:
            part *= scene.hypo
        total += part
    record = {"levels": {k: float(v) for k, v in uptake.items()}, "spots": [], "foci": []}
    if drawn["has_spots"]:
        soft = scene.shares["fat"] + scene.shares["muscle"] + scene.shares["skin"]
        heights, sizes = (drawn["spot_height_low"], drawn["spot_height_high"]), (1.5, 4.5)
        bumps, record["spots"] = _bumps(
            dice.rng("where spots"), scene.grid, soft > 0.5, drawn["spots"], heights, sizes
        )
        total += bumps * soft
    if drawn["has_foci"] or drawn["tracer"] in WITH_FOCI:
        brain = scene.shares["grey"] + scene.shares["white"] > 0.5
        heights, sizes = (-drawn["foci_cold"], drawn["foci_hot"]), (drawn["foci_sd_mm"],) * 2
        bumps, record["foci"] = _bumps(
            dice.rng("where foci"), scene.grid, brain, drawn["foci"], heights, sizes
        )
        total *= np.clip(1 + bumps, 0.1, 3)
    return total, record


def _bumps(rng, grid: Grid, where, number: int, heights, sizes) -> tuple[np.ndarray, list[dict]]:
    """(sum of Gaussian bumps centred in `where`, their record); sizes: range of the SD in mm."""
    total = np.zeros(grid.shape, np.float32)
    voxels = np.flatnonzero(where)
    record: list[dict] = []
    for _ in range(number if voxels.size else 0):
        index = np.unravel_index(voxels[int(rng.uniform() * voxels.size)], grid.shape)
        height, sd = float(rng.uniform(*heights)), float(rng.uniform(*sizes))
        box, profile = [], []
        for i, k in enumerate(index):
            reach = int(np.ceil(3.5 * sd / grid.spacing[i]))
            box.append(slice(max(k - reach, 0), k + reach + 1))
            mm = grid.spacing[i] * (np.arange(grid.shape[i], dtype=np.float32)[box[-1]] - k)
            profile.append(np.exp(-0.5 * (mm / np.float32(sd)) ** 2))
        x, y, z = profile
        total[tuple(box)] += np.float32(height) * x[:, None, None] * y[:, None] * z
        centre = [round(float(grid.axis(i)[k]), 1) for i, k in enumerate(index)]
        record.append({"centre_mm": centre, "sd_mm": sd, "height": height})
    return total, record
