"""What the numbers of a summary let a reader say: headline sentences and checks with verdicts."""

import math
from typing import NamedTuple

from cldm_jax.metrics.aggregate import base_name
from cldm_jax.report import labels, tables
from cldm_jax.report.record import Row, Summary

SHUFFLE_DROP_DB = 1.0  # another person's PET must cost at least this much PSNR
FLIP_ACCURACY = 0.95  # outputs recognised as the modality asked for, over recognised real images
KNOWS_REAL = 0.75  # share of real images to recognise before there is a verdict; chance is 0.5
HEADROOM_DB = 10.0  # ceiling above the best CLDM; independent errors then cost <= 0.46 dB


class Check(NamedTuple):
    name: str
    target: str
    measured: str
    verdict: str
    good: bool | None  # None: not known

    @property
    def status(self) -> str:
        return {True: "pass", False: "fail", None: "unknown"}[self.good]


def _scored(summary: Summary, target: str) -> list[Row]:
    return [row for row in summary.rows_of(target) if row.mean("psnr") is not None]


def _reference_psnr(summary: Summary, target: str, name: str) -> float | None:
    return next((r.mean("psnr") for r in summary.references_of(target) if r.name == name), None)


def headlines(summary: Summary) -> list[str]:
    """One or two sentences per target: who leads in PSNR, by how much, and whether it is shown."""
    sentences = []
    for target in summary.targets:
        scored = _scored(summary, target)
        if not scored:
            sentences.append(f"{target.upper()}: no PSNR measured.")
            continue
        best = max(scored, key=lambda row: row.mean("psnr"))
        text = f"{target.upper()}: {best.label} has the highest mean PSNR, "
        text += f"{best.mean('psnr'):.1f} dB"
        scale = [
            f"{words} {mean:.1f}"
            for name, words in (("floor_mean_image", "floor"), ("reacquired_ceiling", "ceiling"))
            if (mean := _reference_psnr(summary, target, name)) is not None
        ]
        text += f" ({', '.join(scale)} dB)." if scale else "."
        sentences.append(text + _against_rival(summary, target, scored, best))
    return sentences


def seed_lines(summary: Summary) -> list[str]:
    """One sentence per target on how much the trainings of one method differ, where there are several."""
    lines = []
    for target in summary.targets:
        parts = [
            f"{labels.method_label(labels.row_key(s))} {s['mean']:.2f} ± {s['sd']:.2f} dB over "
            f"{s['n_seeds']} trainings"
            for s in summary.seeds
            if s["target"] == target
        ]
        words = f"{target.upper()}, mean PSNR ± SD between trainings"
        lines += [f"{words}: {'; '.join(parts)}."] if parts else []
    return lines


def _against_rival(summary: Summary, target: str, scored: list[Row], best: Row) -> str:
    """The test of the leader against the best row of another method, as a sentence. Trainings of one
    method are tested as one.
    """
    rivals = [row for row in scored if base_name(row.method) != base_name(best.method)]
    if not rivals:
        return ""
    rival = max(rivals, key=lambda row: row.mean("psnr"))
    own, other = (f"{base_name(row.method)}:{row.mode}" for row in (best, rival))
    for test in summary.tests:
        if {test.a, test.b} != {own, other} or (test.target, test.metric) != (target, "psnr"):
            continue
        sign, ci95 = 1 if test.a == own else -1, test.ci95
        if all(map(labels.is_number, ci95)):
            ci95 = sorted(sign * v for v in ci95)
        difference = labels.number(sign * test.mean_diff, 2, signed=True)
        words = f"{difference} dB {labels.interval(ci95, 2, signed=True)}".strip()
        p = labels.p_value(test.p_holm)
        shown = tables.verdict(test)
        if shown.endswith(" better"):
            shown = "a difference between people is shown"
        return f" Against {labels.method_label(other)}: {words}, Holm p {p}: {shown}."
    return f" The best other method is {rival.label}; their difference was not tested."


def checks(summary: Summary) -> list[Check]:
    """Controls as given, then what the table itself must satisfy."""
    found = [_control(control) for control in summary.controls]
    for target in summary.targets:
        rows = _scored(summary, target)
        if rows:
            found += _above_floor(summary, target, rows)
            found += _autoencoder_room(summary, target, rows)
    return found


def _control(control: dict) -> Check:
    target = control["target"].upper() if "target" in control else "all"
    name, drop = control["name"], control.get("drop_db")
    own, other = control.get("psnr_own"), control.get("psnr_other")
    if name == "source_shuffle" and labels.is_number(drop):
        title, good = "Source shuffle: another person's PET", drop >= SHUFFLE_DROP_DB
        measured = f"PSNR falls by {drop:.2f} dB to {control['psnr']['mean']:.2f} dB"
        verdict = "the output follows the PET" if good else "the output hardly depends on the PET"
    elif name == "class_flip":
        title, real = "Class flip: same PET, both codes", control["accuracy_real"]
        measured = f"{100 * control['accuracy']:.0f} % of outputs recognised"
        measured += f" (real images: {100 * real:.0f} %)"
        if real < KNOWS_REAL:
            verdict = "no verdict: the classifier cannot tell real images apart"
            return Check(title, target, measured, verdict, None)
        good = control["accuracy"] >= FLIP_ACCURACY * real
        verdict = "the class code selects the modality" if good else "the class code is not obeyed"
    elif name == "both_codes" and labels.is_number(own) and labels.is_number(other):
        title, good = "Same PET, both codes, one truth", own - other >= SHUFFLE_DROP_DB
        measured = f"own code {own:.1f} dB, other code {other:.1f} dB against the real {target}"
        verdict = "each code makes its own modality" if good else "the code hardly matters"
    else:
        words = labels.reference_label(name)
        return Check(words, target, labels.NOT_MEASURED, "no verdict", None)
    return Check(title, target, measured, verdict, good)


def _above_floor(summary, target, rows) -> list[Check]:
    floor = _reference_psnr(summary, target, "floor_mean_image")
    if floor is None:
        return []
    below = [r.label for r in rows if r.mean("psnr") <= floor]
    worst = min(r.mean("psnr") for r in rows)
    measured = f"lowest {worst:.1f} dB, floor {floor:.1f} dB"
    verdict = f"not better than the population mean: {', '.join(below)}" if below else "all above"
    name = "Every method above the floor"
    return [Check(name, target.upper(), measured, verdict, not below)]


def _autoencoder_room(summary, target, rows) -> list[Check]:
    """One check for each autoencoder: the shared one, "", and those of methods (with all seeds) that have
    their own.
    """
    ceilings, best = {}, {}
    for reference in summary.references_of(target):
        kind, _, owner = reference.name.partition(":")
        if kind == "ae_ceiling":
            ceilings[owner] = reference.mean("psnr")
    for row in (r for r in rows if labels.is_latent(r.method)):
        owner = next((n for n in (row.method, base_name(row.method)) if n in ceilings), "")
        best[owner] = max(row.mean("psnr"), best.get(owner, -math.inf))
    measured = {owner: ceiling for owner, ceiling in ceilings.items() if ceiling is not None}
    return [_room(target, o, ceiling, best[o]) for o, ceiling in measured.items() if o in best]


def _room(target: str, owner: str, ceiling: float, best: float) -> Check:
    room = ceiling - best
    if room < 0:
        verdict = "above its own autoencoder's ceiling: look for a mistake"
    elif room < HEADROOM_DB:
        verdict = f"under {HEADROOM_DB:g} dB: the autoencoder may cap the result"
    else:
        verdict = "the autoencoder costs less than about 0.5 dB"
    measured = f"ceiling {ceiling:.1f} dB, best CLDM {best:.1f} dB"
    name = f"Autoencoder {HEADROOM_DB:g} dB above the best CLDM"
    if owner:
        name += f" ({labels.method_label(owner)})"
    return Check(name, target.upper(), measured, verdict, room >= HEADROOM_DB)
