"""Image figures of a report, drawn without global state and saved below a size limit.

Images are [H, W] in metric units (CT: HU, MR: fraction), row 0 anterior; the source PET is in model
range [-1, 1]. A case is {"role", "patient", "slice", "source", "real", "mask", "predictions": {key:
[H, W]}, "sd": {key: [H, W]}}; predictions and sd may miss any method.
"""

import base64
import io
import textwrap

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cldm_jax.files import atomic_path
from cldm_jax.metrics import image
from cldm_jax.report import labels

MAX_BYTES = 300_000
INK = "#222222"
# Together the maps have 256 colours, so a figure of images is an indexed PNG without any loss.
# RdBu, viridis and inferno are readable with colour-blindness; the middle of RdBu is its own colour.
IMAGE_MAP, SOURCE_MAP, ERROR_MAP, SD_MAP = _MAPS = [
    matplotlib.colormaps[name].resampled(n)
    for name, n in (("gray", 96), ("inferno", 48), ("RdBu_r", 65), ("viridis", 47))
]
_PANEL = 1.5  # inches
_TITLE = 23  # characters above a panel
_ABREAST = 7  # predictions of a case beside each other
_DPIS = (130, 110, 90, 75, 60, 50)  # tried in turn


def as_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def data_url(figure: Figure, dpi: int) -> str:
    """The figure as a PNG in a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return as_url(buffer.getvalue())


def save(figure: Figure, path, *, indexed: bool) -> bytes:
    """Writes the figure as PNG at the highest resolution of _DPIS below MAX_BYTES, and returns it.

    indexed: only the colours of the maps above (figures of images); else true colour (charts).
    """
    for dpi in _DPIS:
        figure.set_dpi(dpi)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # settled by the first drawing; solving it again is slow
        if indexed:
            data = _indexed_png(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        else:
            buffer = io.BytesIO()
            figure.canvas.print_png(buffer)
            data = buffer.getvalue()
        if len(data) < MAX_BYTES:
            break
    with atomic_path(path) as tmp:
        tmp.write_bytes(data)
    return data


def _indexed_png(rgb: np.ndarray) -> bytes:
    """[H, W, 3] uint8 -> PNG with the maps' palette, every pixel its nearest colour of it."""
    palette = np.concatenate([m(np.arange(m.N), bytes=True)[:, :3] for m in _MAPS])
    height, width, _ = rgb.shape
    codes = rgb.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    colours = rgb.reshape(-1, 3)[first].astype(int)  # few: letters' edges besides the maps
    distance = np.sum((colours[:, None] - palette[None].astype(int)) ** 2, axis=-1)
    index = np.argmin(distance, axis=1).astype(np.uint8)[inverse].reshape(height, width)
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "png", compress_level=9)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def fold_text(text: str, width: int = 38) -> str:
    """A name for a figure, in lines of at most `width` characters: however long a user made it, it takes
    no room from the picture or its neighbours, and no character of it starts a formula.
    """
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")


def label_text(key: str, width: int = 38) -> str:
    """`fold_text` of the label of a method."""
    return fold_text(labels.method_label(key), width)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The part of the image shown: the mask's bounding box and a few pixels around it."""
    if not mask.any():
        return slice(None), slice(None)
    margin = 4
    return tuple(
        slice(max(0, int(i.min()) - margin), int(i.max()) + 1 + margin) for i in np.nonzero(mask)
    )


def bare(axes) -> None:
    """No ticks, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _show(axes, picture, box, limits, colour_map, title: str, size=8):
    bare(axes)
    axes.set_title(title, fontsize=size, color=INK)
    return axes.imshow(
        np.asarray(picture)[box],
        cmap=colour_map,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="auto",
        interpolation_stage="data",  # every pixel keeps a colour of the map
    )


def _show_all(figure, row, panels, box, limits, colour_map, bar: str, *, size=8, middle=None):
    """Panels (title, picture or None) beside the first axes of a row, and one bar for them."""
    for axes, (title, picture) in zip(row[1:], panels, strict=False):
        if picture is not None:
            shown = _show(axes, picture, box, limits, colour_map, title, size)
    add_bar(figure, shown, row.tolist(), limits, bar, middle=middle)


def add_bar(figure, shown, axes, limits, label, *, middle=None) -> None:
    """A colour bar with the window's ends printed on it, taking its space from `axes`."""
    low, high = limits
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.01, aspect=12)
    ticks = [low, high] if middle is None else [low, middle, high]
    bar.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.set_label(label, fontsize=7, color=INK)
    bar.outline.set_visible(False)


def _error(case, mask, prediction, target: dict) -> tuple[str, np.ndarray]:
    """(MAE in words, signed error) of a slice; the MAE clipped as the protocol clips where the target
    names its clip.
    """
    real, is_hu = case["real"], target["units"] == "HU"
    signed = np.where(mask, np.asarray(prediction, float) - real, 0.0)
    if target.get("clip") is not None:
        prediction, real = np.clip(prediction, *target["clip"]), np.clip(real, *target["clip"])
    mae = labels.number(image.mae(prediction, real, mask=mask), 0 if is_hu else 3)
    return f"MAE {mae} {'HU' if is_hu else ''}", signed


def case_figure(target: dict, case: dict) -> Figure:
    """One case: images, signed errors, SD over samples (left out where no method of a row has one).

    target: {"units", "window", "error_window", and optionally "clip"}. Columns: PET, predictions, real;
    more than `_ABREAST` predictions go on below, PET and real beside them again.
    """
    keys, units, limit = list(case["predictions"]), target["units"], target["error_window"]
    found = (case.get("sd") or {}).items()
    deviations = {k: sd for k, sd in found if k in case["predictions"] and sd is not None}
    mask = _mask(case)
    box = _box(mask)
    lines = max(1, -(-len(keys) // _ABREAST))
    width = -(-len(keys) // lines)
    blocks = [keys[i * width : (i + 1) * width] for i in range(lines)]
    heights = [3 if any(k in deviations for k in block) else 2 for block in blocks]
    cut = mask[box].shape
    height = _PANEL * min(1.6, max(0.6, cut[0] / cut[1]))
    tall = (height + 0.26) * sum(heights) + 0.1
    folds = [[label_text(k, _TITLE).count("\n") for k in block] for block in blocks]
    tall += 0.13 * sum(max(counts, default=0) for counts in folds)
    figure = new_figure(_PANEL * (width + 2) + 0.9, tall)
    grid = figure.subplots(sum(heights), width + 2, squeeze=False)
    for axes in grid.ravel():
        bare(axes)
    for number, block in enumerate(blocks):
        rows, grid = grid[: heights[number]], grid[heights[number] :]
        source = _show_images(figure, rows[0], case, block, box, target, "Real", 8)
        _row_name(rows[1][0], "prediction\nminus real")
        errors = [_error(case, mask, case["predictions"][k], target) for k in block]
        if errors:
            look = (-limit, limit), ERROR_MAP, f"error, {units}"
            _show_all(figure, rows[1], errors, box, *look, size=7, middle=0)
        if len(rows) > 2:
            _row_name(rows[2][0], "SD over\nsamples")
            inside = np.concatenate([np.asarray(sd)[mask] for sd in deviations.values()])
            top = float(np.quantile(inside, 0.99)) if mask.any() else 1.0
            sds = (deviations.get(k) for k in block)
            panels = [("", None if sd is None else np.where(mask, sd, 0.0)) for sd in sds]
            look = (0.0, float(f"{top:.2g}") or 1.0), SD_MAP, f"SD, {units}"
            _show_all(figure, rows[2], panels, box, *look)
        if number == 0:
            inset = rows[1][0].inset_axes([0.1, 0.12, 0.8, 0.06])
            bar = figure.colorbar(source, cax=inset, orientation="horizontal", ticks=[-1, 1])
            bar.ax.tick_params(labelsize=6, length=0, colors=INK)
            bar.outline.set_visible(False)
            bar.ax.set_title("PET, model range", fontsize=6, color=INK, pad=2)
    return figure


def _mask(case: dict) -> np.ndarray:
    return np.asarray(case["mask"], bool).reshape(np.shape(case["real"]))


def _show_images(figure, row, case, keys, box, target, real: str, size: int, gap: int = 0):
    """PET, predictions, and `gap` columns after them the real image. Returns the PET's panel."""
    panels = [(label_text(k, _TITLE), case["predictions"][k]) for k in keys]
    panels += [("", None)] * gap + [(real, case["real"])]
    look = target["window"], IMAGE_MAP, target["units"]
    _show_all(figure, row, panels, box, *look, size=size)
    return _show(row[0], case["source"], box, (-1, 1), SOURCE_MAP, "PET (input)", size)


def _row_name(axes, text: str) -> None:
    axes.text(0.5, 0.6, text, ha="center", va="center", fontsize=8, transform=axes.transAxes)


def overview_figure(gallery: dict) -> Figure:
    """One row per target, its median case: PET, U-Net, CLDM onestep, CLDM mean, real."""
    picked = {}
    for name, target in gallery.items():
        if cases := target["cases"]:
            picked[name] = next((case for case in cases if case["role"] == "median"), cases[0])
    columns = max(len(_overview_keys(case)) for case in picked.values()) + 2
    figure = new_figure(1.9 * columns + 0.9, 2.35 * len(picked))
    grid = figure.subplots(len(picked), columns, squeeze=False)
    for row, (name, case) in zip(grid, picked.items(), strict=False):
        for axes in row:
            bare(axes)
        keys, real = _overview_keys(case), f"Real {name.upper()}"
        look = _box(_mask(case)), gallery[name], real, 10
        _show_images(figure, row, case, keys, *look, gap=columns - 2 - len(keys))
    return figure


def _overview_keys(case: dict) -> list[str]:
    """U-Net, CLDM onestep and CLDM mean where there; the first three predictions otherwise."""
    keys = list(case["predictions"])
    wanted = [k for k in keys if k.split(":")[0] == "unet"][:1]
    wanted += [k for k in keys if k == "ldm:onestep"]
    wanted += [k for k in keys if k.startswith("ldm:mean")][:1]
    return wanted or keys[:3]
