"""Embedded 3-D head: analytic shapes and smooth random fields -> tissue labels. numpy and scipy only.

Head frame, mm: x to the patient's right, y anterior, z superior; the origin lies between the basal
ganglia. The vertex is near z = 86, the skull base between -22 (front) and -58 (back).
"""

import dataclasses

import numpy as np
from scipy import ndimage

from cldm_jax.phantom import tissue
from cldm_jax.phantom.fields import Grid, smooth_field

ROUNDNESS = 2.25  # exponent of the superellipsoid: a vault is a little flatter than an ellipsoid


@dataclasses.dataclass(frozen=True)
class Shape:
    """Random measures of one head, mm unless said. age in [0, 1] widens sulci and ventricles."""

    age: float
    length: float  # semi-axis along y, to the skin
    width: float
    height: float
    scalp: float
    skull: float
    gap: float  # subarachnoid space
    ribbon: float  # cortical thickness
    sulcus: float  # half width of a sulcus, in SD of the folding field
    depth: float  # usual depth of a sulcus
    fissure: float  # half width of the interhemispheric fissure
    ventricle: float  # size relative to a young adult's
    tilt: tuple[float, float]  # left and right ventricle, relative size
    sinus: tuple[float, float, float] | None  # frontal sinus semi-axes


def draw_shape(rng: np.random.Generator, age: float) -> Shape:
    """Measures of a head; age in [0, 1] widens what atrophy widens and changes no other draw."""
    has_sinus = rng.uniform() < 0.7
    sinus = tuple(float(v) for v in rng.uniform((10, 3, 8), (24, 5, 16)))
    return Shape(
        age=float(age),
        length=float(np.clip(rng.normal(96, 3), 89, 102)),
        width=float(np.clip(rng.normal(77, 2.5), 71, 83)),
        height=float(np.clip(rng.normal(87, 2), 82, 90)),
        scalp=float(rng.uniform(3.8, 6.3)),
        skull=float(rng.uniform(4.6, 7.6)),
        gap=float(rng.uniform(0.8, 1.6) + 1.5 * age),
        ribbon=float(rng.normal(3.0, 0.2)),
        sulcus=float(0.08 + 0.12 * age),
        depth=float(rng.uniform(13, 17)),
        fissure=float(0.8 + 1.2 * age),
        ventricle=float(np.clip(1 + 0.8 * age + rng.normal(0, 0.12), 0.8, 2.1)),
        tilt=tuple(float(v) for v in rng.uniform(0.88, 1.12, 2)),
        sinus=sinus if has_sinus else None,
    )


def build(
    rng: np.random.Generator, shape: Shape, grid: Grid, position: list[np.ndarray]
) -> np.ndarray:
    """Tissue labels uint8 [grid.shape]; position = head-frame coordinates of the voxels of `grid`."""
    x, y, z = position
    skin_depth = _depth_below_skin(shape, x, y, z)
    floor = _skull_base(x, y)
    thickness = shape.skull + 1.2 * smooth_field(rng, grid, 14) - 0.02 * y  # more at the back
    skull = np.clip(thickness, 3, 12)
    if shape.sinus is not None:
        front = (x / 26) ** 2 + ((y - shape.length) / 20) ** 2 + ((z + 8) / 20) ** 2
        skull = skull + 5 * np.exp(-front)
    lab, bone_depth = _outer(rng, shape, grid, position, skin_depth, floor, skull)
    inside = np.minimum(bone_depth - skull, z - floor)
    lab[(inside > 0) & (bone_depth > 0)] = tissue.CSF
    _brain(rng, shape, grid, position, inside, lab)
    return lab


def _depth_below_skin(shape: Shape, x, y, z) -> np.ndarray:
    """Radial distance (mm) from the skin, positive inside. Below z = 0 the head hardly tapers."""
    width = shape.width * (1 - 0.0007 * y)  # wider at the back (parietal) than at the forehead
    height = np.where(z > 0, np.float32(shape.height), np.float32(150))
    p = ROUNDNESS
    power = np.abs(x / width) ** p + np.abs(y / shape.length) ** p + np.abs(z / height) ** p
    r = np.maximum(power ** (1 / p), 1e-3)
    return np.sqrt(x * x + y * y + z * z) * (1 / r - 1)


def _skull_base(x, y) -> np.ndarray:
    """Height of the floor of the cranial cavity: anterior, middle and posterior fossa, each a bowl."""
    front = 1 / (1 + np.exp(-(y - 30) / 4))
    back = 1 / (1 + np.exp((y + 25) / 5))
    return -40 + 16 * front - 18 * back + 9 * ((np.abs(x) - 30) / 30) ** 2


def _outer(rng, shape: Shape, grid: Grid, position, skin_depth, floor, skull):
    """Skin, scalp fat, muscle, skull with diploe, face and neck; returns labels and depth in bone."""
    x, y, z = position
    lab = np.zeros(grid.shape, np.uint8)
    lab[skin_depth > 0] = tissue.SKIN
    scalp = shape.scalp * (1 + 0.15 * smooth_field(rng, grid, 20))
    temporal = np.clip(1 - ((y - 12) / 34) ** 2 - ((z + 10) / 48) ** 2, 0, 1)
    side = np.clip((np.abs(x) / shape.width - 0.55) / 0.25, 0, 1)
    muscle = 6 * np.sqrt(temporal) * side  # temporalis: thickest in the temple
    bone_depth = skin_depth - np.maximum(scalp, 3.5) - muscle
    lab[skin_depth > 1.8] = tissue.FAT
    lab[(bone_depth > -muscle) & (bone_depth <= 0)] = tissue.MUSCLE
    lab[(skin_depth > 1.8) & (bone_depth > -0.8) & (muscle < 0.5)] = tissue.CONNECTIVE  # galea

    above = z > floor - 6
    bone = (bone_depth >= 0) & (bone_depth < skull) & above
    base = (bone_depth >= 0) & above & (z <= floor)
    lab[bone | base] = tissue.SKULL
    spongy = smooth_field(rng, grid, 3)
    lab[base & (z < floor - 1.5) & (spongy > -0.2)] = tissue.MARROW
    lab[base & (np.abs(x) > 30) & (y < 10) & (spongy > 0.9)] = tissue.AIR  # mastoid cells
    diploe = bone & (bone_depth > 0.30 * skull) & (bone_depth < 0.70 * skull) & (skull > 4.2)
    lab[diploe] = tissue.MARROW
    if float(z.min()) < -20:
        _face(rng, shape, grid, position, (skin_depth > 6) & ~above, lab)
    if shape.sinus is not None:
        a, b, c = shape.sinus
        centre = shape.length - shape.scalp - shape.skull / 2 - 2
        cavity = (x / a) ** 2 + ((y - centre) / b) ** 2 + ((z + 10) / c) ** 2 < 1
        lab[cavity & (bone | base)] = tissue.AIR
    return lab, bone_depth


def _face(rng, shape: Shape, grid: Grid, position, below, lab) -> None:
    """Under the skull base: muscle and fat, orbits with eyes, nasal air, bone islands. In place."""
    x, y, z = position
    mix = smooth_field(rng, grid, 7)
    lab[below] = tissue.MUSCLE
    lab[below & (mix > 0.8)] = tissue.FAT
    lab[below & (np.abs(mix + 0.9) < 0.14) & (y > -20)] = tissue.SKULL
    front = shape.length
    cone = ((np.abs(x) - 31) / 17) ** 2 + ((y - front + 30) / 26) ** 2 + ((z + 38) / 15) ** 2
    lab[below & (cone < 1)] = tissue.FAT
    eye = (np.abs(x) - 31) ** 2 + (y - front + 22) ** 2 + (z + 38) ** 2
    lab[below & (eye < 12.5**2)] = tissue.CONNECTIVE
    lab[below & (eye < 11**2)] = tissue.CSF
    nose = (x / 12) ** 2 + ((y - front + 34) / 26) ** 2 < 1
    lab[below & nose & (np.abs(np.abs(x) % 8 - 4) > 0.8)] = tissue.AIR
    canal = (x / 11) ** 2 + ((y + 26) / 10) ** 2 < 1
    lab[below & canal] = tissue.CSF


def _brain(rng, shape: Shape, grid: Grid, position, inside, lab) -> None:
    """Cortex, white matter, ventricles, nuclei, cerebellum and stem, written into lab in place.

    Works on the box around the brain, for speed.
    """
    box = ndimage.find_objects((inside > shape.gap).view(np.uint8))[0]
    x, y, z = (p[box] for p in position)
    cort, lab = inside[box] - np.float32(shape.gap), lab[box]
    within = cort > 0
    lab[within] = tissue.WM
    arch = (y / 37) ** 2 + ((z - 2) / 27) ** 2  # < 1 under the corpus callosum
    tent = -3 - 0.4 * np.abs(x) + 0.45 * (y + 30)  # the tentorium: a roof that falls backwards
    hind = (y < -24 + 0.4 * (z + 12)) & (z < tent)
    fissure = (np.abs(x) < shape.fissure) & (arch > 1) & ~hind & within
    fluid = fissure | (within & _sulci(rng, shape, (x, y, z), cort, arch, hind))
    fluid |= within & ~hind & _sylvian(shape, x, y, z)
    fluid |= within & (y < -24) & (np.abs(z - tent) < 1 + 0.8 * shape.age)
    lab[fluid] = tissue.CSF
    distance = ndimage.distance_transform_edt(within & ~fluid, sampling=grid.spacing)
    grey = within & ~fluid & (distance < shape.ribbon)
    callosum = (np.abs(x) < 12) & (arch < 1.06)
    lab[grey & ~(callosum & ~hind & (cort > 20))] = tissue.GM
    _stem(shape, (x, y, z), within, lab)
    _deep(shape, (x, y, z), lab)


def _sulci(rng, shape: Shape, position, cort, arch, hind) -> np.ndarray:
    """Sheets perpendicular to the pial surface: zero level set of a field that hardly changes inwards.

    A point is looked up where its radius, shrunk to r^0.15, meets the surface, so sheets run radially as
    real sulci do; near the midline the lookup is perpendicular to the fissure instead.
    """
    x, y, z = position
    box = Grid((126, 126, 126), (1.6, 1.6, 1.6), (-100, -100, -100))
    main, minor = (
        smooth_field(rng, box, mm) + 0.3 * smooth_field(rng, box, 2.0) for mm in (3.4, 4)
    )
    reach_field = smooth_field(rng, box, 9)
    axes = (shape.width - 14, shape.length - 14, shape.height - 14)
    radius = np.sqrt(sum((p / a) ** 2 for p, a in zip((x, y, z), axes, strict=True)))
    stretch = np.maximum(radius, 0.2) ** -0.8
    medial = (np.abs(x) < cort) & (arch > 1) & ~hind
    look = [p * np.where(medial, np.float32(0.92), stretch) for p in (x, y, z)]
    look[0] = np.where(medial, np.sign(x) * (9 + 0.15 * np.abs(x)), look[0])
    near = (cort > 0) & (np.where(medial, np.abs(x), cort) < 1.6 * shape.depth)
    at = [(p[near] - o) / s for p, o, s in zip(look, box.origin, box.spacing, strict=True)]
    main, minor, reach_field = (
        ndimage.map_coordinates(f, at, order=1, mode="nearest") for f in (main, minor, reach_field)
    )
    deep = np.where(medial, np.abs(x) + 3, cort)[near]
    sheets = np.zeros(deep.shape, bool)
    for field, depth in ((main, shape.depth), (minor, 0.65 * shape.depth)):
        reach = depth * (1 + 0.3 * reach_field)
        taper = np.clip(1.4 - deep / reach, 0, 1)  # sulci narrow towards the fundus
        sheets |= (np.abs(field) < shape.sulcus * (0.5 + taper)) & (deep < reach)
    result = np.zeros(x.shape, bool)
    result[near] = sheets
    folia = np.abs(np.sin(np.pi * (z + 0.6 * np.abs(y + 55)) / 5.5)) < 0.12 + 0.1 * shape.age
    return np.where(hind, folia & (cort < 12), result)


def _sylvian(shape: Shape, x, y, z) -> np.ndarray:
    """Lateral fissure rising backwards, with the cistern over the insula."""
    side = np.abs(x)
    line = z - (2 - 0.35 * (y - 8))
    half = 0.9 + 1.3 * shape.age
    sheet = (np.abs(line) < half) & (side > 36) & (y > -42) & (y < 34)
    cistern = (np.abs(side - 37 - 0.03 * line**2) < half) & (np.abs(line) < 13)
    return sheet | (cistern & (y > -18) & (y < 26))


def _stem(shape: Shape, position, within, lab) -> None:
    """Brain stem in its cistern, and the fourth ventricle. In place."""
    x, y, z = position
    if float(z.min()) > -8:
        return
    ring = (x / 15) ** 2 + ((y + 16) / 12) ** 2
    low = within & (z < -8)
    lab[low & (ring < 1.45) & (y > -24)] = tissue.CSF
    lab[low & (ring < 1)] = tissue.WM
    fourth = (x / 6) ** 2 + ((y + 28) / 4) ** 2 + ((z + 28) / 9) ** 2
    lab[within & (fourth < shape.ventricle)] = tissue.CSF
    vermis = within & (np.abs(x) < 5) & (y < -34) & (z < -16)
    lab[vermis & (lab == tissue.WM)] = tissue.GM


# Lateral ventricle: (y, z, |x|, radius) along the frontal horn, body, atrium and occipital horn.
VENTRICLE = np.float32([
    (31, 0, 9, 2.4), (24, 11, 6.5, 3.8), (9, 20, 6, 4.2), (-10, 22, 7, 4.2), (-26, 17, 14, 4.6),
    (-36, 7, 22, 4.6), (-56, 4, 22, 2.0),
])  # fmt: skip


def _tube(y, z, side, path: np.ndarray) -> np.ndarray:
    """Smallest (distance / radius) to the polyline `path` [n, 4] = (y, z, x, radius)."""
    best = np.full(y.shape, np.inf, np.float32)
    for start, end in zip(path[:-1], path[1:], strict=True):
        d = end[:3] - start[:3]
        t = ((y - start[0]) * d[0] + (z - start[1]) * d[1] + (side - start[2]) * d[2]) / (d @ d)
        t = np.clip(t, 0, 1)
        gap = (y - start[0] - t * d[0]) ** 2 + (z - start[1] - t * d[1]) ** 2
        gap += (side - start[2] - t * d[2]) ** 2
        best = np.minimum(best, np.sqrt(gap) / (start[3] + t * (end[3] - start[3])))
    return best


def _ellipsoid(position, centre, axes) -> np.ndarray:
    return sum(((p - c) / a) ** 2 for p, c, a in zip(position, centre, axes, strict=True)) < 1


def _deep(shape: Shape, position, lab) -> None:
    """Caudate, putamen, pallidum, thalamus, lateral and third ventricles. In place."""
    core = (np.abs(position[0]) < 48) & (np.abs(position[1]) < 62)
    core &= (position[2] > -16) & (position[2] < 38) & (lab != tissue.CSF)
    x, y, z = (p[core] for p in position)
    side, part, v = np.abs(x), lab[core], shape.ventricle
    size = np.where(x < 0, np.float32(shape.tilt[0]), np.float32(shape.tilt[1])) * v**0.55
    path = VENTRICLE + np.float32([0, 0, 2.2 * (v - 1), 0])
    inner = part == tissue.WM
    caudate = path[:5] + np.float32([0, -1, 5.0 + 2.0 * (v - 1), 0])
    caudate[:, 3] = (5.5, 5.0, 3.4, 2.6, 1.6)
    deep = _tube(y, z, side, caudate) < 1
    here = (side, y, z)
    deep |= _ellipsoid(here, (26 + v, 3, 1), (5.5, 16, 10)) & ~(side < 21 + v)
    deep |= _ellipsoid(here, (11 + 0.8 * v, -15, 5), (8.5, 14, 9))
    part[inner & deep] = tissue.DEEP
    pallidum = _ellipsoid(here, (19 + v, 1, -1), (3.5, 9, 6)) & ~deep
    part[inner & pallidum & (z < 6)] = tissue.DEEP
    part[_tube(y, z, side, path) < size] = tissue.CSF
    third = (side < 0.8 + 1.6 * (v - 1)) & (((y + 8) / 16) ** 2 + ((z + 1) / 9) ** 2 < 1)
    part[third] = tissue.CSF
    lab[core] = part
