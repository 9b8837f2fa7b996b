"""People and PET scanners of mode `randomised`: pose, and one PET from a person. numpy and scipy only."""

import numpy as np

from cldm_jax.phantom import attenuation, camera, tracer, warp
from cldm_jax.phantom.draws import Dice
from cldm_jax.phantom.fields import Grid
from cldm_jax.phantom.scene import Scene

PET_SECTIONS = ("uptake", "correction", "scanner", "noise", "view")


def pose(dice: Dice, drawn: dict, grid: Grid, centre: tuple[float, float, float]) -> warp.Warp:
    """Pose, size and deformation of a person, from the drawn section `person`; grid: the fine one."""
    field = warp.diffeomorphism(dice.rng("warp"), grid, drawn["warp_mm"])
    angle = np.deg2rad([drawn["pitch_deg"], *drawn["turn_deg"]])
    sizes = drawn["size"] * np.array(drawn["axis_size"])
    matrix = warp.pose_matrix(angle, np.array(drawn["slant"]), sizes)
    if drawn["mirrored"]:  # the undeformed head, about its own middle
        matrix[0] = -matrix[0]
    return warp.Warp(matrix, np.zeros(3), np.asarray(centre, float), *field)


def moved_view(drawn: dict, grid: Grid) -> Grid:
    """The field of view moved over the person, who is thus off its centre."""
    shift = (*drawn["shift_mm"], drawn["height_mm"])
    return Grid.of(grid.shape, grid.spacing, np.add(grid.origin, shift))


def is_ordinary(dice: Dice, share: float) -> bool:
    """Whether a PET is one of the ordinary mode; `share`: of the randomised ones."""
    return bool(dice.rng("ordinary").uniform() >= share)


def gain(dice: Dice, share: float, ranges: dict) -> float:
    """How bright the PET is shown, over what `prepare` makes of it (the manifest's column pet_gain)."""
    return 1.0 if is_ordinary(dice, share) else dice.draw(ranges["view"])["gain"]


def pet(dice: Dice, ranges: dict, scene: Scene) -> tuple[np.ndarray, dict]:
    """(PET float32 [scene.out.shape], grey matter about 1, and every drawn number)."""
    drawn = {section: dice.draw(ranges[section]) for section in PET_SECTIONS}
    activity, where = tracer.activity(dice, drawn["uptake"], scene)
    correction = drawn["correction"]
    cup = attenuation.holder(correction, scene)
    activity = attenuation.corrected(correction, activity, scene, cup)
    if correction["has_holder"]:
        ghost = correction["holder_uptake"] * np.percentile(activity, 97)
        activity += np.float32(ghost) * cup[..., None]
    image, record = camera.image(dice, drawn, activity, scene.grid, scene.out)
    return image, {"model": "randomised", **drawn, **where, **record}
