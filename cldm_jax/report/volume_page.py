"""One self-contained page about one predicted volume: views, input checks, provenance."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cldm_jax import files
from cldm_jax.report import figures, page, viewer
from cldm_jax.report.viewer import View

AS_GIVEN = "as given"  # the unit that a file does not tell
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # axes across and up
_WIDTH = 2.3  # inches of a panel
_MARGIN_MM = 35.0  # around the brain: skull and scalp
_BRAIN_MM = 100.0  # no brain is smaller: what is, is a tumour or a gland
_MAX_BYTES = 9_500_000  # of a page; what its figure and words leave is the viewer's
_WORDS = 200_000  # bytes: style, script, checks, facts


def make_views(pet: np.ndarray, synthetic: dict, pet_units: str = AS_GIVEN) -> list[View]:
    """The PET, and of each target {"image", "sd" (or None)} in units, as views with fixed windows.

    CT -200 to 1300 HU; PET and MR to their own 99.5th percentile, which the bar says.
    """
    views = [View("PET", pet, pet_units, (0.0, _top(pet)), figures.SOURCE_MAP)]
    for target, made in synthetic.items():
        image, units = made["image"], "HU" if target == "ct" else "a.u."
        window = (-200.0, 1300.0) if target == "ct" else (0.0, _top(image))
        views.append(View(target.upper(), image, units, window, figures.IMAGE_MAP))
        if made["sd"] is not None:
            limits = (0.0, _top(made["sd"]))
            views.append(View(f"{target.upper()} SD", made["sd"], units, limits, figures.SD_MAP))
    return views


def views_figure(views: Sequence[View], spacing, centre) -> Figure:
    """Rows: views; columns: planes through voxel `centre`, cut to the head. spacing: mm per voxel."""
    box = _box(views[0], spacing)
    views = [view._replace(array=view.array[box]) for view in views]
    centre = [
        int(np.clip(c - b.start, 0, b.stop - b.start - 1)) for c, b in zip(centre, box, strict=True)
    ]
    shape = np.array(views[0].array.shape)
    sizes = [tuple((shape * spacing)[list(axes)].tolist()) for axes in PLANES.values()]  # mm
    widths = [w for w, _ in sizes]
    height = _WIDTH * max(h for _, h in sizes) / max(widths)
    total = _WIDTH * sum(widths) / max(widths)
    figure = figures.new_figure(total + 1.0, (height + 0.1) * len(views) + 0.3)
    grid = figure.subplots(len(views), 3, squeeze=False, width_ratios=widths)
    for row, view in zip(grid, views, strict=True):
        for axes, plane, (width, tall) in zip(row, PLANES, sizes, strict=True):
            cut = _cut(view.array, plane, centre)
            shown = axes.imshow(
                np.clip(cut, *view.window),
                cmap=view.colour_map,
                vmin=view.window[0],
                vmax=view.window[1],
                extent=(0, width, 0, tall),
                interpolation="nearest",
                interpolation_stage="data",
            )
            figures.bare(axes)
        row[0].set_ylabel(view.title, fontsize=10, color=figures.INK)
        figures.add_bar(figure, shown, row.tolist(), view.window, view.units)
    for axes, plane in zip(grid[0], PLANES, strict=True):
        axes.set_title(plane, fontsize=9, color=figures.INK)
    return figure


def write(
    path,
    name: str,
    views,
    affines,
    centre,
    checks,
    facts: dict,
    *,
    simulated: bool,
    calibrated: int = 0,
) -> None:
    """Writes the page. affines: voxels of the views -> world mm, and voxels of the file -> world mm;
    checks: records with name, value, warning ("" = fine); facts: {words: value};
    calibrated: people that the SD was fitted to, 0 = it was not.
    """
    spacing = np.sqrt((np.asarray(affines[0])[:3, :3] ** 2).sum(0))
    image = figures.data_url(views_figure(views, spacing, centre), 120)
    room = _MAX_BYTES - len(image) - _WORDS
    packed = viewer.pack(views, _box(views[0], spacing), centre, *affines, room)
    checks = [c._replace(warning=c.warning[:1].upper() + c.warning[1:]) for c in checks]
    context = {
        "name": name,
        "titles": [f"synthetic {v.title}" for v in views[1:] if not v.is_sd],
        "has_sd": any(v.is_sd for v in views),
        "simulated": simulated,
        "calibrated": calibrated,
        "checks": checks,
        "figure": image,
        "facts": list(facts.items()),
        "viewer": packed,
    }
    files.write_text(path, page.render("volume.html", context))


def _box(pet: View, spacing) -> tuple[slice, ...]:
    """The brain, which is bright in the PET unless something outshines it, and _MARGIN_MM around it."""
    least = np.minimum(_BRAIN_MM, 0.5 * np.multiply(pet.array.shape, spacing))
    for share in (0.3, 0.1, 0.03):
        bright = np.argwhere(pet.array > share * pet.window[1])
        if ((np.ptp(bright, axis=0) + 1) * spacing >= least).all():
            break
    margin = _MARGIN_MM / np.asarray(spacing)
    low = np.maximum(np.floor(bright.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(bright.max(0) + margin) + 1, pet.array.shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _top(array) -> float:
    positive = array[array > 0]
    return float(f"{np.percentile(positive, 99.5):.2g}") if positive.size else 1.0


def _cut(array, plane: str, centre) -> np.ndarray:
    """[rows, columns]: up is anterior or superior, left is the patient's left or anterior."""
    across, up = PLANES[plane]
    through = 3 - across - up
    cut = np.take(array, centre[through], through)[:, ::-1]
    return (cut[::-1] if plane == "sagittal" else cut).T
