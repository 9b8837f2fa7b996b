"""Randomised PET scanners: resolution, voxels, noise, field of view. numpy and scipy only.

The image is made on the scanner's own voxels and comes to the files' grid by linear interpolation, as
`prepare` brings a real PET to the grid of a model.
"""

import dataclasses

import numpy as np
from scipy import fft, ndimage, sparse

from cldm_jax.phantom.draws import Dice
from cldm_jax.phantom.fields import FWHM, Grid, smooth_field, wide_blur
from cldm_jax.phantom.pet import point_spread

SCATTER_MM = 28.0  # SD of what scatter leaves behind
NOISE_MM = 30.0  # of the field that makes noise uneven
FLOOR = 1e-4


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the scanner's voxels: their size (mm) and number, and the sparse matrices [n, work] to
    them (averages) and [out, n] from them (linear, 0 outside the scanner's view).
    """

    voxel: float
    n: int
    to: sparse.csr_matrix
    back: sparse.csr_matrix


def sampling(
    work: np.ndarray, out: np.ndarray, voxel: float, phase: float, view: tuple[float, float]
) -> Axis:
    """work, out: voxel centres along the axis, mm. phase: of the scanner's voxels, 0..1. view: the shares
    of the axis that are cut off at its ends.
    """
    step = float(work[1] - work[0])
    low, high = work[0] - step / 2, work[-1] + step / 2
    count = int(np.ceil((high - low) / voxel + phase - 1e-6))
    keep = np.arange(int(np.floor(view[0] * count)), count - int(np.floor(view[1] * count)))
    centres = low + (0.5 - phase + keep) * voxel
    overlap = np.minimum(centres[:, None] + voxel / 2, work + step / 2)
    overlap -= np.maximum(centres[:, None] - voxel / 2, work - step / 2)
    overlap = np.where(overlap > 1e-4 * step, overlap, 0)
    to = overlap / np.maximum(overlap.sum(1, keepdims=True), 1e-6)
    at = (out - centres[0]) / voxel
    inside = (at > -0.5 - 1e-6) & (at < len(keep) - 0.5 + 1e-6)
    at = np.clip(at, 0, len(keep) - 1)
    back = np.clip(1 - np.abs(at[:, None] - np.arange(len(keep))), 0, 1) * inside[:, None]
    return Axis(voxel, len(keep), *(sparse.csr_matrix(m.astype(np.float32)) for m in (to, back)))


def along(matrix: sparse.csr_matrix, values: np.ndarray, axis: int) -> np.ndarray:
    """matrix @ values along one axis. Sparse, so that no BLAS thread count can change a bit."""
    moved = np.moveaxis(values, axis, 0)
    result = matrix @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    return np.moveaxis(result.reshape(-1, *moved.shape[1:]), 0, axis)


def image(
    dice: Dice, drawn: dict, activity: np.ndarray, work: Grid, out: Grid
) -> tuple[np.ndarray, dict]:
    """(PET float32 [out.shape] in the activity's units, record), from the sections scanner, noise and
    view of `drawn`; activity [work.shape].
    """
    scanner, noise, view = drawn["scanner"], drawn["noise"], drawn["view"]
    mean = _blurred(activity, work, scanner)
    axes = _axes(scanner, view, work, out)
    for i, axis in enumerate(axes):
        mean = along(axis.to, mean, i)
    mean = np.ascontiguousarray(mean, np.float32)
    reference = max(float(np.percentile(mean, 97)), FLOOR)  # about the cortex of a brain scan
    pet = mean + _noise(dice, noise, scanner, axes, mean / np.float32(reference)) * reference
    if noise["law"] == "em" or noise["negatives"] == "clipped":
        np.maximum(pet, 0, out=pet)
    elif noise["negatives"] == "absolute":
        np.abs(pet, out=pet)
    if view["gamma"] != 1:
        pet = np.sign(pet) * reference * (np.abs(pet) / reference) ** np.float32(view["gamma"])
    _cut_sides(pet, axes, view)
    for i, axis in enumerate(axes):
        pet = along(axis.back, pet, i)
    record = {"voxel_mm": [a.voxel for a in axes], "voxels": [a.n for a in axes]}
    return np.ascontiguousarray(pet, np.float32), record


def _blurred(activity: np.ndarray, work: Grid, scanner: dict) -> np.ndarray:
    """Total resolution (the working voxel's average counts towards it), and residual scatter."""
    mean = point_spread(activity, work, scanner["fwhm_mm"], scanner["axial_ratio"])
    if scanner["has_scatter"]:
        wide = wide_blur(mean, work, np.sqrt(6) * SCATTER_MM, "constant")
        mean += np.float32(scanner["scatter"]) * wide
    return mean


def _axes(scanner: dict, view: dict, work: Grid, out: Grid) -> list[Axis]:
    voxels, phases = list(work.spacing), [0.0, 0.0, 0.0]
    if scanner["resampled"]:
        own = (scanner["pixel_mm"], scanner["pixel_mm"], scanner["slice_mm"])
        voxels = [max(v, s) for v, s in zip(own, work.spacing, strict=True)]
        phases = [scanner[f"phase_{a}"] for a in "xyz"]
    cut = view["cut_ends"] if view["has_cut_ends"] else 0.0
    ends = (cut * view["cut_at_bottom"], cut * (1 - view["cut_at_bottom"]))
    views = ((0, 0), (0, 0), ends)
    return [sampling(work.axis(i), out.axis(i), voxels[i], phases[i], views[i]) for i in range(3)]


def _noise(dice: Dice, noise: dict, scanner: dict, axes: list[Axis], mean: np.ndarray):
    """Noise in units of the reference, by its law; its SD over the mean in bright voxels is cov."""
    fwhm, shape = scanner["fwhm_mm"], mean.shape
    sd = noise["correlation"] * fwhm / FWHM
    sigma = [sd / a.voxel for a in axes]
    sigma[2] *= scanner["axial_ratio"]
    rng = dice.rng("noise")
    if noise["law"] == "fbp":
        field = _ramp_noise(rng, noise, axes, mean)
        field = ndimage.gaussian_filter1d(field, sigma[2], axis=2, truncate=3)
    else:
        field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), sigma, truncate=3)
    if noise["has_uneven"]:
        voxels = Grid(shape, tuple(a.voxel for a in axes), (0.0, 0.0, 0.0))
        field *= np.exp(np.float32(noise["uneven"]) * smooth_field(rng, voxels, NOISE_MM))
    bright = mean > 0.3
    field *= np.float32(noise["cov"] * 0.8 / max(float(field[bright].std()), 1e-6))
    if noise["law"] == "em":  # variance proportional to the mean, and some in air
        field *= np.sqrt(np.maximum(mean, FLOOR) + np.float32(noise["air"]))
    return field


def _ramp_noise(
    rng: np.random.Generator, noise: dict, axes: list[Axis], mean: np.ndarray
) -> np.ndarray:
    """Filtered back-projection of noise whose rays differ in strength: streaks. float32 [x, y, z].

    Ramp and Hann window up to `cutoff` (1/mm). The logarithm of a view's strength has SD `streaks`; rays
    that miss the head have `missing_rays` of the noise of those through it, which attenuation correction
    has multiplied: so streaks run outwards from the head.
    """
    (x, y, z), views = axes, noise["views"]
    px, py = ((np.arange(a.n, dtype=np.float32) - (a.n - 1) / 2) * a.voxel for a in (x, y))
    width = min(x.voxel, y.voxel)
    bins = fft.next_fast_len(2 * int(np.ceil(np.hypot(px[-1], py[-1]) / width)) + 4, real=True)
    strength = np.exp(noise["streaks"] * rng.standard_normal((views, 1, z.n), np.float32))
    rays = rng.standard_normal((views, bins, z.n), np.float32) * strength
    angle = np.pi * (np.arange(views) + rng.uniform(0, 0.3, views)) / views
    rays *= _through_head(mean, (px, py), angle, bins, width, noise["missing_rays"])
    frequency = np.fft.rfftfreq(bins, width)
    window = 0.5 + 0.5 * np.cos(np.pi * np.minimum(frequency / noise["cutoff"], 1))
    spectrum = fft.rfft(rays, axis=1) * (frequency * window).astype(np.float32)[None, :, None]
    rays = fft.irfft(spectrum, bins, axis=1).astype(np.float32)
    at = px[:, None, None] * np.cos(angle) + py[None, :, None] * np.sin(angle)
    at = (at / width + (bins - 1) / 2).reshape(-1, views)
    low = np.floor(at).astype(np.int32)
    weight = (at - low).astype(np.float32)
    columns = low + np.arange(views, dtype=np.int32) * bins
    pairs = np.stack([columns, columns + 1], -1).ravel()
    weights = np.stack([1 - weight, weight], -1).ravel()
    rows = np.arange(0, pairs.size + 1, 2 * views)
    matrix = sparse.csr_matrix((weights, pairs, rows), (at.shape[0], views * bins))
    return (matrix @ rays.reshape(views * bins, z.n)).reshape(x.n, y.n, z.n)


def _through_head(mean, pixels, angle, bins: int, width: float, missing: float) -> np.ndarray:
    """[views, bins, 1]: 1 for rays through the ellipse about the bright pixels, `missing` outside it."""
    outline = (mean > 0.1).any(axis=2)
    ends = [p[outline.any(axis=1 - i)][[0, -1]] for i, p in enumerate(pixels)]
    (cx, cy), (a, b) = (np.array(ends) @ [[0.5, -0.5], [0.5, 0.5]]).T  # centre, half extent
    offset = (np.arange(bins) - (bins - 1) / 2) * width
    distance = np.abs(offset - (cx * np.cos(angle) + cy * np.sin(angle))[:, None])
    half = np.hypot(a * np.cos(angle), b * np.sin(angle))[:, None]
    weight = missing + (1 - missing) * np.clip((half - distance) / 10 + 0.5, 0, 1)
    return weight.astype(np.float32)[..., None]


def _cut_sides(pet: np.ndarray, axes: list[Axis], view: dict) -> None:
    """Zero outside a round field of view, and beyond a plane at one side. In place."""
    x, y = ((np.arange(a.n) - (a.n - 1) / 2) * a.voxel for a in axes[:2])
    if view["round"]:
        pet[np.hypot(x[:, None], y[None, :]) > view["round_mm"]] = 0
    if view["has_cut_side"]:
        axis = 0 if view["side"] in ("left", "right") else 1
        n, depth = axes[axis].n, int(view["cut_side_mm"] / axes[axis].voxel)
        low = view["side"] in ("left", "back")
        at = [slice(None)] * 3
        at[axis] = slice(0, depth) if low else slice(n - depth, n)
        pet[tuple(at)] = 0
