"""Predicted images -> score rows per patient."""

import dataclasses

import numpy as np

from cldm_jax.data import intensity
from cldm_jax.data.shards import Prepared
from cldm_jax.data.truth import find_truth, read_truth
from cldm_jax.errors import UserError
from cldm_jax.metrics import aggregate, statistics
from cldm_jax.metrics.protocol import PROTOCOLS, score_volume
from cldm_jax.metrics.scores import Context
from cldm_jax.runs.inputs import TARGETS, data_of, image_source, source_of
from cldm_jax.runs.readouts import Entrant
from cldm_jax.runs.stored import Run
from cldm_jax.scoring import references

HEADLINE = "psnr"  # decides "best mode" and the shown patients


def shared_data(config, runs: list[Run]) -> Prepared:
    """The dataset to score on: that of `config.data.prepared`, else the first run's. UserError where a
    run was trained on another one and `config.other_data` does not allow that.
    """
    prepared = data_of(config, runs[0].config)
    for r in runs:
        if r.manifest.data.fingerprint != prepared.index.fingerprint and not config.other_data:
            raise UserError(
                r.workdir,
                f"was trained on other data than {prepared.folder}",
                "Evaluate runs of one dataset, or say --config.other_data=True (scores are then out of "
                "domain).",
            )
        _check_range(r, prepared)
    return prepared


def _check_range(run: Run, prepared: Prepared) -> None:
    """UserError where model range is of other intensities, or a pixel of other size, than in the training
    of `run`: its images would be read in units that it did not write.
    """
    made, here = run.manifest.data, prepared.index
    pairs = {"grid": tuple(dataclasses.astuple(d.grid) for d in (made, here))}
    for name in made.modalities.keys() & here.modalities.keys():
        specs = (m.modalities[name].normaliser for m in (made, here))
        pairs[name] = tuple((s.rule, s.low, s.high, s.percentile) for s in specs)
    for what, (trained, found) in sorted(pairs.items()):
        if trained != found:
            reason = f"{what} is not as {run.workdir} was trained on: {found}, not {trained}"
            remedy = "Prepare them with --config.split_mode=external --config.normalisers_from="
            raise UserError(prepared.folder, reason, remedy + run.workdir)


def shared_source(runs: list[Run]) -> str:
    """The PET that all runs read: "pet" or "nac". UserError where they differ: people may lack one."""
    reads = {source_of(r.config["data"]): r.workdir for r in runs}
    if len(reads) > 1:
        reason = " and ".join(f"{where} reads {name}" for name, where in reads.items())
        raise UserError("config.runs", reason, "Evaluate runs of one source (config.data.source).")
    return next(iter(reads))


def choose_targets(config, runs: list[Run], prepared: Prepared) -> tuple[str, ...]:
    """What is scored: `config.targets`, else all that the runs make and people of the split have. What
    is left out then is printed. UserError where nobody has one that is named, or nothing is left.
    """
    asked, there = tuple(config.targets), prepared.held(config.split)
    for target in asked:
        if target not in there:
            reason = f"nobody in {config.split} of {prepared.folder} has {target}"
            remedy = "Leave it out, or leave targets empty"
            raise UserError(f"config.targets={asked}", reason, remedy)
    if asked:
        return asked
    made = [t for t in TARGETS if any(t in r.config["data"]["targets"] for r in runs)]
    found = tuple(t for t in made if t in there)
    if not found:
        reason = f"nobody in {config.split} has {' or '.join(made) or 'what the runs make'}"
        raise UserError(prepared.folder, reason, "Give the split and the runs that belong together")
    for target in made:
        if target not in found:
            print(f"{target}: nobody in {config.split} has it, so it is not scored", flush=True)
    return found


class Scorer:
    """Scores images by the protocol and keeps one row per patient, method, target and metric."""

    def __init__(
        self,
        config,
        prepared,
        names: dict[int, str],
        split: str | None = None,
        *,
        reads: str = "pet",
    ):
        """names: {class code: target}. reads: the source of all runs, see `shared_source`."""
        self.config, self.prepared, self.names, self.reads = config, prepared, names, reads
        self.codes = {target: code for code, target in names.items()}
        self.options = dict(batch_size=config.batch_size, seed=config.seed)  # of predictions
        self.split = split or config.split
        self.cohort = find_truth(prepared)
        self.contexts: dict[tuple[int, int], Context] = {}
        self.specs = {t: prepared.index.modalities[t].normaliser for t in names.values()}
        self.protocol = PROTOCOLS[config.protocol]
        if self.protocol.mr and "mr" in self.specs:  # its unit is the data's
            scale = intensity.metric_scale(self.specs["mr"])
            mr = dataclasses.replace(self.protocol.mr, scale=scale)
            self.protocol = dataclasses.replace(self.protocol, mr=mr)
        self.scores: list[dict] = []
        self.rows = self.source(1)
        self.keys = self.rows.keys
        self.real, self.masks = references.targets(self.rows, config.batch_size)

    def source(self, context: int, split: str | None = None):
        """What is scored, with so many PET slices as the source of each row."""
        return image_source(
            self.prepared,
            split or self.split,
            tuple(self.names.values()),
            {"context": context, "source": self.reads},
            slice_stride=self.config.slice_stride,
            slice_run=self.config.slice_run,
            people_per_group=self.config.people_per_group,
        )

    def context(self, subject: int, code: int) -> Context:
        """What scores of a person's volume need beside the images, for its scored slices."""
        if (subject, code) not in self.contexts:
            rows = next(rows for s, c, rows in self.patients() if (s, c) == (subject, code))
            z = self.keys["slice"][rows]
            truth = {}
            if self.cohort is not None:
                truth = read_truth(self.prepared, self.cohort, subject)
            spacing = self.prepared.index.spacing_mm
            truth = {k: v[z] for k, v in truth.items()}
            self.contexts[subject, code] = Context(spacing, z, **truth)
        return self.contexts[subject, code]

    def patients(self):
        """(subject, code, row numbers of its slices) of every scored volume."""
        for subject in dict.fromkeys(self.keys["subject"].tolist()):
            for code in self.names:
                rows = np.flatnonzero(
                    (self.keys["subject"] == subject) & (self.keys["label"] == code)
                )
                if len(rows):
                    yield subject, code, rows

    def units(self, code: int, subject: int, images):
        """Model range -> metric units (HU; fraction of the volume's percentile)."""
        target = self.names[code]
        volume = self.prepared.index.people[subject].volumes[target]
        return intensity.metric_units(self.specs[target], images, volume.scale, volume.origin)

    def add(self, method: str, mode: str, images, targets=None) -> None:
        """images [N, H, W] for the scorer's rows; `targets`: those the method makes (None: all)."""
        for subject, code, rows in self.patients():
            if targets is not None and self.names[code] not in targets:
                continue
            volume_scores = score_volume(
                self.units(code, subject, images[rows]),
                self.units(code, subject, self.real[rows]),
                self.masks[rows],
                self.protocol,
                self.names[code],
                self.context(subject, code),
            )
            person = self.prepared.index.people[subject]
            for metric, values in volume_scores.items():
                self.scores.append(
                    {
                        "patient": person.id,
                        "group": person.group,
                        "split": self.split,
                        "method": method,
                        "mode": mode,
                        "target": self.names[code],
                        "metric": metric,
                        "value": statistics.patient_mean(values),
                        "n_slices": len(rows),
                    }
                )

    def mean(self, method: str, mode: str, target: str, metric: str) -> float:
        values = [
            s["value"]
            for s in self.scores
            if (s["method"], s["mode"], s["target"], s["metric"]) == (method, mode, target, metric)
        ]
        return float(np.mean(values))

    def best_mode(self, entrant: Entrant, modes, target: str) -> str:
        return max(modes, key=lambda mode: self.mean(entrant.name, mode, target, HEADLINE))


def is_cldm(entrant: Entrant) -> bool:
    """Whether this is the model that the comparison is about: a latent diffusion model with samples.

    The same network trained on its one step alone is the latent regression, a rival.
    """
    config = entrant.first.config
    return config["method"] == "ldm" and min(config["recipe"]["diffusion"]["onestep_share"]) < 1


def main_methods(entrants, targets) -> dict[str, str]:
    """{target: base name of what the tests hold against all others: the first CLDM making it}."""
    first = {t: e.name for t in targets for e in reversed(entrants) if is_cldm(e) and t in e.runs}
    return {target: aggregate.base_name(name) for target, name in first.items()}
