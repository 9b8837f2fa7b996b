"""Controls: does the model use the source, does it obey the class code?"""

import numpy as np

from cldm_jax.data.pipeline import SliceSource
from cldm_jax.data.shards import Prepared
from cldm_jax.jobs.references import depth_below_vertex_mm

THUMBNAIL = 8  # pixels: the trivial classifier sees an 8 x 8 image


def shuffled_rows(prepared: Prepared, source: SliceSource) -> np.ndarray | None:
    """For every row, the row of another person (another group) nearest in depth below the vertex.

    None where the split holds one group only.
    """
    keys = source.keys
    subjects = list(dict.fromkeys(keys["subject"].tolist()))
    groups = {s: prepared.index["subjects"][s]["group"] for s in subjects}
    if len(set(groups.values())) < 2:
        return None
    partner = {}
    for i, s in enumerate(subjects):
        others = [o for o in subjects[i + 1 :] + subjects[:i] if groups[o] != groups[s]]
        partner[s] = others[0]
    depth = np.array(
        [
            depth_below_vertex_mm(prepared, int(s), int(z))
            for s, z in zip(keys["subject"], keys["slice"], strict=True)
        ]
    )
    rows = []
    for s, d in zip(keys["subject"], depth, strict=True):
        candidates = np.flatnonzero(keys["subject"] == partner[int(s)])
        rows.append(candidates[np.abs(depth[candidates] - d).argmin()])
    return np.array(rows)


def thumbnails(images) -> np.ndarray:
    """[N, H, W] -> [N, 64]: block means, the whole input of the trivial classifier."""
    n, h, w = images.shape
    cut = images[:, : h // THUMBNAIL * THUMBNAIL, : w // THUMBNAIL * THUMBNAIL]
    blocks = cut.reshape(n, THUMBNAIL, h // THUMBNAIL, THUMBNAIL, w // THUMBNAIL)
    return blocks.mean((2, 4)).reshape(n, -1)


def nearest_centroid_accuracy(real, real_labels, images, labels) -> float:
    """Share of `images` whose modality a nearest-centroid classifier, fitted on real images, names.

    real, images: [N, H, W] model range; labels: the class codes asked for.
    """
    features, codes = thumbnails(real), np.unique(real_labels)
    centroids = np.stack([features[real_labels == c].mean(0) for c in codes])
    distance = np.linalg.norm(thumbnails(images)[:, None] - centroids[None], axis=-1)
    return float((codes[distance.argmin(1)] == labels).mean())
