"""The volumes of a page for its viewer (templates/viewer.js): cut, rounded, differenced and gzipped.

A layer is every n-th voxel as it is, none averaged, in whole steps of its `quantum`: int16 [z, y, x],
of which the differences along x, y and z in turn (modulo 2^16) are zigzag-coded; all low bytes come
first, then all high ones. Residuals have hardly any repeats, so gzip codes runs and frequencies only:
on smooth volumes smaller than a search for repeats, and eight times as fast.
"""

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

CT_WINDOWS = (("brain", 0.0, 80.0), ("bone", -800.0, 2000.0))  # HU
_COARSEST = 32  # every n-th voxel, at most
_INT16 = 32767


class View(NamedTuple):
    """One image of the page. The first of several is the source."""

    title: str
    array: np.ndarray  # [x, y, z] in RAS order
    units: str
    window: tuple[float, float]
    colour_map: object

    @property
    def is_sd(self) -> bool:
        return self.title.endswith("SD")


def pack(views: Sequence[View], box, centre, affine, file_affine, max_bytes: float) -> dict:
    """The views within `box`, a layer each, of as many voxels as fit into max_bytes of base64: {"meta":
    as viewer.js reads it, "data": base64 of each layer}.

    box: slices of the RAS array; centre: the voxel of it where the cross-hair starts; affine: its voxels
    -> world mm; file_affine: voxels of the file -> world mm. ValueError if nothing fits.
    """
    affine, start = np.asarray(affine, float), np.array([b.start for b in box])
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    quanta = [_quantum(view) for view in views]
    views = [view._replace(array=view.array[box]) for view in views]
    for step, sd_step in _steps(spacing):
        steps = [sd_step if view.is_sd else step for view in views]
        data, size = [], 0
        for view, quantum, own in zip(views, quanta, steps, strict=True):
            data.append(_encode(view.array, quantum, own))
            size += len(data[-1])
            if size > max_bytes:
                break
        else:
            break
    else:
        raise ValueError(f"volumes do not fit into {max_bytes:.0f} bytes")
    grid = np.eye(4)  # voxels of the page -> of the RAS array
    grid[:3, :3], grid[:3, 3] = np.diag(step), start
    shape = _shape(views[0].array.shape, step)
    begin = np.clip(np.rint((np.asarray(centre) - start) / step), 0, np.array(shape) - 1)
    upright = np.abs(affine[:3, :3] / spacing).max(0).min()
    meta = {
        "shape": shape,
        "spacing": (spacing * step).tolist(),
        "step": list(step),
        "affine": (affine @ grid).tolist(),
        "file": np.rint(np.linalg.solve(file_affine, affine @ grid)).astype(int).tolist(),
        "centre": begin.astype(int).tolist(),
        "oblique": math.degrees(math.acos(min(1.0, float(upright)))),
        "layers": [
            _describe(view, quantum, own, step, is_source=i == 0)
            for i, (view, quantum, own) in enumerate(zip(views, quanta, steps, strict=True))
        ],
    }
    return {"meta": meta, "data": data}


def _steps(spacing) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(every n-th voxel of x, y and z of the images, of the SDs), from all on; thick slices stay."""

    def per_axis(*wanted):
        fine = np.min(spacing) / np.asarray(spacing)
        return tuple(max(1, round(n * f)) for n, f in zip(wanted, fine, strict=True))

    every = per_axis(2, 2, 2)
    yield (1, 1, 1), (1, 1, 1)
    yield (1, 1, 1), every
    yield per_axis(1, 1, 2), every
    for n in range(2, _COARSEST + 1):
        yield per_axis(n, n, n), per_axis(n, n, n)


def _shape(shape, step) -> list[int]:
    return [-(-n // s) for n, s in zip(shape, step, strict=True)]


def _encode(array: np.ndarray, quantum: float, step) -> str:
    picked = array[tuple(slice(None, None, s) for s in step)].transpose(2, 1, 0)
    coded = np.rint(picked / quantum).astype(np.int16)
    for axis in (2, 1, 0):
        coded = np.diff(coded, axis=axis, prepend=np.int16(0))
    coded = ((coded << 1) ^ (coded >> 15)).astype(np.uint16)
    planes = (coded & 255).astype(np.uint8).tobytes() + (coded >> 8).astype(np.uint8).tobytes()
    gzip = zlib.compressobj(6, zlib.DEFLATED, 31, 9, zlib.Z_RLE)
    return base64.b64encode(gzip.compress(planes) + gzip.flush()).decode()


def _is_ct(view: View) -> bool:
    return view.units == "HU" and not view.is_sd


def _quantum(view: View) -> float:
    """What values are rounded to: 1 HU for a CT, else 1, 2 or 5 x 10^n and at most 1/400 of the view's
    window (SD: 1/200).
    """
    low, high = view.window
    quantum = 1.0 if _is_ct(view) else _round_down((high - low) / (200 if view.is_sd else 400))
    largest = float(np.abs(view.array).max())
    while largest / quantum > _INT16:
        quantum = _round_down(quantum * 2.5)
    return quantum


def _describe(view: View, quantum: float, step, grid_step, *, is_source: bool) -> dict:
    """Of one layer, which says that it is synthetic where it is not the source."""
    low, high = view.window
    windows = (("head" if _is_ct(view) else "full", low, high),)  # the first is shown first
    windows += CT_WINDOWS * _is_ct(view) + (("faint", low, high / 4),) * is_source
    colours = view.colour_map(np.linspace(0, 1, 256), bytes=True)[:, :3]
    return {
        "title": view.title if is_source else f"synthetic {view.title}",
        "units": view.units,
        "quantum": quantum,
        "isSd": view.is_sd,
        "shape": _shape(view.array.shape, step),
        "step": [own / grid for own, grid in zip(step, grid_step, strict=True)],
        "windows": [{"name": n, "low": low, "high": high} for n, low, high in windows],
        "colours": base64.b64encode(colours.tobytes()).decode(),
    }


def _round_down(value: float) -> float:
    """1, 2 or 5 x 10^n, at most `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{max(m for m in (1, 2, 5) if m * power <= value * (1 + 1e-9)) * power:.0e}")
