"""The picture of one registered pair: the PET's contours over the target, before and after."""

import numpy as np

from cldm_jax.report import figures

# Share of the PET's 99th percentile, colour, its name: the head's outline and the brain's.
_LEVELS = ((0.15, "#00c8ff", "blue"), (0.5, "#ff9d00", "orange"))
_WINDOWS = {"ct": (-150.0, 350.0)}  # HU: brain against bone, where a shift shows
_VIEWS = ("axial", "coronal", "sagittal")


def save(path, title: str, views: dict, qc: dict, *, kind: str) -> None:
    """Writes a PNG below figures.MAX_BYTES: rows as given and registered, columns the three views.

    views  {"pet", "before", "after": [axial, coronal, sagittal]}, arrays [H, W], NaN where not seen;
           row 0 anterior or superior, column 0 the patient's left (sagittal: anterior)
    qc     of the registration; kind "ct" or "mr" chooses the grey window
    """
    figure = figures.new_figure(8.4, 6.6)
    axes = figure.subplots(2, 3)
    window = _WINDOWS.get(kind) or _limits([*views["before"], *views["after"]])
    bright = _limits(views["pet"])[1]
    given = f"as given: mutual information {qc['mi_before']:.3f}"
    rows = (("before", given), ("after", _after(qc)))
    for row, (name, text) in zip(axes, rows, strict=True):
        for ax, view, pet, target in zip(row, _VIEWS, views["pet"], views[name], strict=True):
            # The colour of what the target does not see: neither air nor tissue.
            ax.set(xticks=[], yticks=[], facecolor="#2b2b40")
            ax.imshow(target, cmap="gray", vmin=window[0], vmax=window[1], interpolation="bilinear")
            ax.contour(
                np.nan_to_num(pet),
                levels=[share * bright for share, _, _ in _LEVELS],
                colors=[colour for _, colour, _ in _LEVELS],
                linewidths=0.9,
            )
            if not np.isfinite(target).any():
                words = "not in the field of view"
                ax.text(0.5, 0.5, words, color="white", ha="center", transform=ax.transAxes)
            if name == "before":
                ax.set_title(view, fontsize=9, color=figures.INK)
        row[0].set_ylabel(name, fontsize=9)
        row[1].set_xlabel(text, fontsize=8, color=figures.INK)
    lines = " and ".join(f"{share:.0%} ({name})" for share, _, name in _LEVELS)
    side = "Axial, coronal: the patient's left is on the left. Sagittal: the face looks left."
    figure.suptitle(
        f"{figures.fold_text(title, 90)}. Lines: PET at {lines} of its 99th percentile\n{side}",
        fontsize=9,
        color=figures.INK,
    )
    figures.save(figure, path, indexed=False)


def _limits(pictures) -> tuple[float, float]:
    values = np.concatenate([p[np.isfinite(p)] for p in pictures])
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _after(qc: dict) -> str:
    if qc["kept"]:
        return f"kept as given: mutual information {qc['mi_after']:.3f}"
    return (
        f"registered: mutual information {qc['mi_after']:.3f}, turned {qc['rotation_deg']:.1f} degrees, "
        f"moved {qc['translation_mm']:.1f} mm; starts {qc['spread_mm']:.1f} mm apart"
    )
