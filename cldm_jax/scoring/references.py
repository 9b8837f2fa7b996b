"""The rows that give a score its meaning: floor, autoencoder ceiling, re-acquired ceiling.

Images [N, H, W] in model range for the rows of a source, scored like a method (`add`).
"""

import jax
import numpy as np

from cldm_jax.data.pipeline import SliceSource, eval_batches
from cldm_jax.data.shards import Prepared
from cldm_jax.runs.steps import is_same

REFERENCE = "reference"  # method name of the rows that give scores their meaning


def add(scorer, runs) -> None:
    """Scores these, as methods named REFERENCE, with the others of `scorer`."""
    prepared, rows, batch_size = scorer.prepared, scorer.rows, scorer.config.batch_size
    images = {"source_identity": sources(rows, batch_size)}
    if has_floor(prepared, scorer.names):
        images["floor_mean_image"] = population_mean(prepared, rows, scorer.names)
    for i, r in enumerate(one_per_autoencoder(runs)):
        whose = f":{r.name}" if i else ""
        linear = linear_patches(scorer.real, rows.keys["label"], r)
        if linear is not None:
            images[f"linear_ceiling{whose}"] = linear
        images[f"ae_ceiling{whose}"] = autoencoded(r, rows, batch_size)
    for name, value in images.items():
        scorer.add(REFERENCE, name, value)
    again, targets = reacquired(prepared, rows, scorer.names)
    if targets:
        scorer.add(REFERENCE, "reacquired_ceiling", again, targets)


def depth_below_vertex_mm(prepared: Prepared, subject: int, z) -> np.ndarray:
    """How far slice z lies below the top-most slice with head in it, mm: aligns people of any size."""
    spacing = prepared.index.people[subject].voxel_mm[0]
    top = np.flatnonzero(prepared.keep(subject, "pet")).max()
    return (top - np.asarray(z)) * spacing


def depths(prepared: Prepared, keys: dict) -> np.ndarray:
    """`depth_below_vertex_mm` of every row of a source with these keys, [N]."""
    places = zip(keys["subject"].tolist(), keys["slice"].tolist(), strict=True)
    return np.array([depth_below_vertex_mm(prepared, subject, z) for subject, z in places])


def has_floor(prepared: Prepared, names: dict[int, str]) -> bool:
    """Whether training people have every target: a folder made of others may hold none."""
    return set(names.values()) <= set(prepared.held("train"))


def population_mean(prepared: Prepared, source: SliceSource, names: dict[int, str]) -> np.ndarray:
    """Floor: the mean training image at the row's depth below the vertex, per target modality.

    It knows nothing of the patient; a method that does not beat it has learnt nothing from the source.
    """
    means = {code: _mean_by_depth(prepared, name) for code, name in names.items()}
    out = []
    for depth, code in zip(depths(prepared, source.keys), source.keys["label"], strict=True):
        known, images = means[int(code)]
        out.append(images[np.abs(known - depth).argmin()])
    return np.stack(out)


def _mean_by_depth(prepared: Prepared, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(depths [D] mm, mean images [D, H, W]) over training people, one bin per slice spacing."""
    sums: dict[int, list] = {}
    spacing = None
    for subject in prepared.subjects("train"):
        if not prepared.has(subject, name):
            continue
        spacing = spacing or prepared.index.people[subject].voxel_mm[0]
        keep = np.flatnonzero(prepared.keep(subject, name))
        volume = prepared.read(subject, name)
        for z in keep:
            bin_number = round(float(depth_below_vertex_mm(prepared, subject, z)) / spacing)
            total = sums.setdefault(bin_number, [0.0, 0])
            total[0] = total[0] + volume[z].astype(np.float64)
            total[1] += 1
    bins = sorted(sums)
    images = np.stack([sums[b][0] / sums[b][1] for b in bins]).astype(np.float32)
    return np.array(bins) * spacing, images


def reacquired(
    prepared: Prepared, source: SliceSource, names: dict[int, str]
) -> tuple[np.ndarray | None, list[str]]:
    """Ceiling: (the same anatomy scanned again, the targets it is there for). A target of which somebody
    has no second acquisition is NaN; None where all are such.
    """
    keys = source.keys
    people, label = keys["subject"], keys["label"]
    held = {
        code: target
        for code, target in names.items()
        if code in label
        and all(prepared.has(int(s), f"{target}_reacq") for s in set(people[label == code]))
    }
    if not held:  # real data: no images of nothing in memory
        return None, []
    out = np.full((len(label), *prepared.index.grid.size), np.nan, np.float32)
    for i in np.flatnonzero(np.isin(label, list(held))):
        name = f"{held[int(label[i])]}_reacq"
        out[i] = prepared.read_slice(int(people[i]), name, int(keys["slice"][i]))
    return out, list(held.values())


def sources(source: SliceSource, batch_size: int) -> np.ndarray:
    """The source image itself as the answer: what copying scores. [N, H, W] model range."""
    stacks = [b["source"] for b in eval_batches(source, batch_size)]
    return np.concatenate([s[..., s.shape[-1] // 2] for s in stacks])[: len(source)]


def linear_patches(real, labels, run) -> np.ndarray | None:
    """Ceiling of a linear code as large as the latent: real images [N, H, W] on the patch basis of a
    latent run's autoencoder and back. None for an autoencoder without one.
    """
    variables = run.state.frozen["autoencoder"]
    if "patch" not in variables:
        return None
    return np.asarray(run.codec.project(variables, real[..., None], labels))[..., 0]


def one_per_autoencoder(runs) -> list:
    """The first of the latent `runs` on each autoencoder; trainings on the same weights share one."""
    out: list = []
    for run in runs:
        if run.codec is None:
            continue
        own = run.state.frozen["autoencoder"]
        if not any(is_same(own, r.state.frozen["autoencoder"]) for r in out):
            out.append(run)
    return out


def autoencoded(run, source: SliceSource, batch_size: int) -> np.ndarray:
    """Ceiling: the real images through the autoencoder of a latent run's checkpoint and back."""
    codec = run.codec

    @jax.jit
    def reconstruct(variables, x, label):
        return codec.decode(variables, codec.encode(variables, x, label), label)

    variables = jax.device_put(run.state.frozen["autoencoder"])
    out = []
    for batch in eval_batches(source, batch_size):
        made = np.asarray(reconstruct(variables, batch["target"], batch["label"]))
        out.append(made[batch["valid"], ..., 0])
    return np.concatenate(out)


def targets(source: SliceSource, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """True images and head masks of all rows, [N, H, W] each."""
    batches = eval_batches(source, batch_size)
    parts = [(b["target"][..., 0], b["mask"][..., 0] > 0) for b in batches]
    return tuple(np.concatenate(part)[: len(source)] for part in zip(*parts, strict=True))
