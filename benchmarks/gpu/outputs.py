"""What the part "train" hands over beside its JSON: tables, a picture, predictions, weights."""

import csv
import io
import pathlib

import ml_dtypes
import numpy as np

from cldm_jax import files
from cldm_jax.metrics.image import psnr
from cldm_jax.runtime import weights, writers

PIECE = 15 * 2**20  # bytes of a file of weights, at most
SHOWN = 4  # slices of the picture
KEPT = 2  # people of a test head whose pictures are handed over


def write_table(path: pathlib.Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    files.write_text(path, text.getvalue())


def curve(name: str, workdir, before_s: float, step_s: float) -> list[tuple]:
    """(method, target, step, device seconds, PSNR on validation people) of a training's validations.
    before_s: what it paid before its first step (the autoencoder's).
    """
    found = []
    for row in writers.read_rows(workdir):
        for key, value in row.items():
            if key.startswith("val/psnr_") and value is not None:
                seconds = round(before_s + row["step"] * step_s, 3)
                found.append((name, key.removeprefix("val/psnr_"), row["step"], seconds, value))
    return found


def scores(method: str, mode: str, images, truth: dict, names: dict, people: list) -> list[tuple]:
    """(method, read-out, person, target, slices, PSNR in dB): model range, in the head, a person's slices
    together. images [N, H, W]; truth: target, mask [N, H, W], label and subject [N].
    """
    found = []
    for subject in np.unique(truth["subject"]):
        for code, target in names.items():
            rows = np.flatnonzero((truth["subject"] == subject) & (truth["label"] == code))
            if len(rows):
                value = psnr(
                    np.clip(images[rows], -1, 1),
                    truth["target"][rows],
                    data_range=2.0,
                    mask=truth["mask"][rows] > 0,
                )
                person = people[int(subject)]
                found.append((method, mode, person, target, len(rows), round(value, 3)))
    return found


def chosen_rows(truth: dict) -> np.ndarray:
    """SHOWN rows of different people and both targets, where there are any."""
    order = np.lexsort((truth["slice"], truth["label"], truth["subject"]))
    picks = np.linspace(0, len(order) - 1, 2 * SHOWN + 1).round().astype(int)[1::2]
    return order[picks]


def write_picture(path: pathlib.Path, truth: dict, made: dict[str, np.ndarray]) -> None:
    """A row for each of some slices: PET, the true image, and what each method made of it."""
    from matplotlib.figure import Figure

    rows = chosen_rows(truth)
    columns = {"PET": truth["source"], "true": truth["target"], **made}
    figure = Figure((1.6 * len(columns), 1.9 * len(rows)), dpi=110)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for place, (name, images) in zip(line, columns.items(), strict=True):
            place.imshow(images[row], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            place.set_axis_off()
            if line is axes[0]:
                place.set_title(name, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(path)


def write_predictions(path: pathlib.Path, truth: dict, made: dict[str, np.ndarray], groups) -> None:
    """What was made of the first KEPT people of every head, with the truth: [-1, 1] as 0 to 255, to be
    scored by whatever score later. groups: the head of every subject.
    """
    people = np.unique(truth["subject"])
    heads = [groups[int(p)] for p in people]
    kept = [p for i, p in enumerate(people) if heads[:i].count(heads[i]) < KEPT]
    rows = np.flatnonzero(np.isin(truth["subject"], kept))
    images = {"source": truth["source"], "target": truth["target"], **made}
    grey = {
        k: np.round(127.5 * (np.clip(v[rows], -1, 1) + 1)).astype(np.uint8)
        for k, v in images.items()
    }
    facts = {k: truth[k][rows] for k in ("label", "subject", "slice")}
    np.savez_compressed(path, mask=truth["mask"][rows] > 0, **facts, **grey)


def write_weights(out: pathlib.Path, trees: dict[str, dict], most: int = 2) -> dict:
    """Averaged parameters as bfloat16 (its bits, uint16) in at most `most` files ema-N.npz that a run may
    keep; the first trees first. {"files", "left_out"}.
    """
    pieces, sizes, left_out = [{}], [0], []
    for name, tree in trees.items():
        for key, value in weights.flatten(tree).items():
            bits = np.asarray(value, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
            if sizes[-1] + bits.nbytes > PIECE and len(pieces) < most:
                pieces.append({})
                sizes.append(0)
            if sizes[-1] + bits.nbytes > PIECE:
                left_out.append(f"{name}/{key}")
                continue
            pieces[-1][f"{name}/{key}"] = bits
            sizes[-1] += bits.nbytes
    for number, piece in enumerate(pieces):
        np.savez(out / f"ema-{number}.npz", **piece)
    return {"files": len(pieces), "left_out": left_out}


def read_weights(paths) -> dict[str, dict]:
    """The trees of `write_weights`, float32."""
    flat = {}
    for path in paths:
        with np.load(path) as stored:
            flat |= {k: stored[k].view(ml_dtypes.bfloat16).astype(np.float32) for k in stored.files}
    return weights.unflatten(flat)
