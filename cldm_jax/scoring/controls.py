"""Controls: does the model use the source, does it obey the class code?"""

import numpy as np

from cldm_jax.data.pipeline import SliceSource
from cldm_jax.data.shards import Prepared
from cldm_jax.runs.readouts import Entrant, predict_rows
from cldm_jax.scoring import references
from cldm_jax.scoring.references import depths
from cldm_jax.scoring.scorer import HEADLINE, Scorer

AIR, BINS, RIDGE = -0.95, 16, 1.0  # of the trivial classifier


def measure(scorer: Scorer, entrant: Entrant, source: SliceSource, images, progress) -> list[dict]:
    """Rows of a summary's `controls`: of the entrant's first run, for the targets that this run makes.
    images [N, H, W]: its first read-out, as asked for.
    """
    prepared, run = scorer.prepared, entrant.first
    own = [target for target, other in entrant.runs.items() if other is run]
    names = {code: target for code, target in scorer.names.items() if target in own}
    mode = next(iter(run.method.predict))
    common = dict(**scorer.options, progress=progress)
    who = {"method": run.name, "mode": mode}
    out = []
    shuffled = shuffled_rows(prepared, source)
    if shuffled is not None:
        wrong = predict_rows(run, mode, source, source_rows=shuffled, **common).images
        scorer.add("control", "source_shuffle", wrong, targets=own)
        for target in names.values():
            before = scorer.mean(run.name, mode, target, HEADLINE)
            after = scorer.mean("control", "source_shuffle", target, HEADLINE)
            row = {"psnr": {"mean": after}, "drop_db": before - after}
            out.append({"name": "source_shuffle", **who, "target": target, **row})
        scorer.scores = [s for s in scorer.scores if s["method"] != "control"]
    if len(names) == 2 and references.has_floor(prepared, names):
        codes = np.array(list(names), np.int32)
        asked = source.keys["label"]
        flipped = np.where(asked == codes[0], codes[1], codes[0]).astype(np.int32)
        other = predict_rows(run, mode, source, labels=flipped, **common).images
        train = scorer.source(1, split="train")
        classifier = ModalityClassifier(
            references.targets(train, scorer.config.batch_size)[0], train.keys["label"]
        )
        row = {"accuracy": classifier.accuracy(other, flipped)}
        row["accuracy_real"] = classifier.accuracy(scorer.real, asked)
        out.append({"name": "class_flip", **who, **row})
        scores = both_codes(images, other, scorer.real, scorer.masks, asked)
        for code, target in names.items():
            out.append({"name": "both_codes", **who, "target": target, **scores[code]})
    return out


def shuffled_rows(prepared: Prepared, source: SliceSource) -> np.ndarray | None:
    """For every row, the row of another person (another group) nearest in depth below the vertex.

    None where the split holds one group only.
    """
    keys = source.keys
    subjects = list(dict.fromkeys(keys["subject"].tolist()))
    groups = {s: prepared.index.people[s].group for s in subjects}
    if len(set(groups.values())) < 2:
        return None
    partner = {}
    for i, s in enumerate(subjects):
        others = [o for o in subjects[i + 1 :] + subjects[:i] if groups[o] != groups[s]]
        partner[s] = others[0]
    depth = depths(prepared, keys)
    rows = []
    for s, d in zip(keys["subject"], depth, strict=True):
        candidates = np.flatnonzero(keys["subject"] == partner[int(s)])
        rows.append(candidates[np.abs(depth[candidates] - d).argmin()])
    return np.array(rows)


def histograms(images) -> np.ndarray:
    """[N, H, W] model range -> [N, BINS]: square roots of the shares of non-air pixels per bin."""
    out = []
    for image in images:
        counts, _ = np.histogram(np.clip(image[image > AIR], -1, 1), BINS, (-1, 1))
        out.append(np.sqrt(counts / max(1, counts.sum())))
    return np.stack(out)


class ModalityClassifier:
    """Which modality an image is, from its intensity histogram alone: linear least squares.

    Trivial on purpose. It is fitted on real images of training people and knows no anatomy, so what it
    tells apart is the kind of image, not its quality.
    """

    def __init__(self, images, labels):
        """images [N, H, W] model range with two class codes in labels [N]."""
        self.codes = np.unique(labels)
        x = self._features(images)
        sign = np.where(labels == self.codes[1], 1.0, -1.0)
        self.weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ sign)

    def accuracy(self, images, labels) -> float:
        """Share of images recognised as the modality in labels [N]."""
        found = self.codes[(self._features(images) @ self.weights > 0).astype(int)]
        return float((found == labels).mean())

    def _features(self, images):
        return np.concatenate([histograms(images), np.ones((len(images), 1))], axis=1)


def both_codes(own, other, real, masks, labels) -> dict[int, dict]:
    """The same PET with both class codes against both truths: {code: {"psnr_own", "psnr_other"}}.

    own, other: predictions [N, H, W] in model range for the rows' code and for the other of two codes;
    real: the rows' truth. psnr_own: the code's image against the truth of that code; psnr_other: the
    other code's image against it (data range 2, in the mask, mean over slices). A model that ignores the
    code scores the same.
    """
    out = {}
    for code in np.unique(labels):
        rows = labels == code
        scores = []
        for images in (own, other):
            error = np.square(np.clip(images[rows], -1, 1) - real[rows])
            mse = [e[m].mean() for e, m in zip(error, masks[rows], strict=True) if m.any()]
            scores.append(float(np.mean(10 * np.log10(4 / np.maximum(mse, 1e-10)))))
        out[int(code)] = {"psnr_own": scores[0], "psnr_other": scores[1]}
    return out
