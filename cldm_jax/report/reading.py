"""What the numbers of a summary let a reader say: headline sentences and checks with verdicts."""

from typing import NamedTuple

from cldm_jax.metrics.aggregate import base_name
from cldm_jax.report import labels, tables

SHUFFLE_DROP_DB = 1.0  # another person's PET must cost at least this much PSNR
FLIP_ACCURACY = 0.95  # outputs recognised as the modality asked for, over recognised real images
KNOWS_REAL = 0.75  # share of real images to recognise before there is a verdict; chance is 0.5
HEADROOM_DB = 10.0  # ceiling above the best CLDM; independent errors then cost <= 0.46 dB


class Check(NamedTuple):
    name: str
    target: str
    measured: str
    verdict: str
    status: str  # "pass", "fail" or "unknown"


def _reference_psnr(summary: dict, target: str, name: str):
    for row in tables.references_of(summary, target):
        if row["name"] == name:
            return tables.mean_of(row, "psnr")
    return None


def _name(row: dict) -> str:
    return labels.method_label(labels.row_key(row))


def headlines(summary: dict) -> list[str]:
    """One or two sentences per target: who leads in PSNR, by how much, and whether it is shown."""
    sentences = []
    for target in tables.targets_of(summary):
        rows = tables.rows_of(summary, target)
        scored = [row for row in rows if tables.mean_of(row, "psnr") is not None]
        if not scored:
            sentences.append(f"{labels.target_label(target)}: no PSNR measured.")
            continue
        best = max(scored, key=lambda row: tables.mean_of(row, "psnr"))
        text = f"{labels.target_label(target)}: {_name(best)} has the highest mean PSNR, "
        text += f"{tables.mean_of(best, 'psnr'):.1f} dB"
        scale = []
        for name, words in (("floor_mean_image", "floor"), ("reacquired_ceiling", "ceiling")):
            mean = _reference_psnr(summary, target, name)
            if mean is not None:
                scale.append(f"{words} {mean:.1f}")
        text += f" ({', '.join(scale)} dB)." if scale else "."
        sentences.append(text + _against_rival(summary, target, scored, best))
    return sentences


def seed_lines(summary: dict) -> list[str]:
    """One sentence per target on how much the trainings of one method differ, where there are several."""
    lines = []
    for target in tables.targets_of(summary):
        spreads = [s for s in summary.get("seeds") or [] if s["target"] == target]
        if not spreads:
            continue
        parts = [
            f"{_name(s)} {s['mean']:.2f} ± {s['sd']:.2f} dB over {s['n_seeds']} trainings"
            for s in spreads
        ]
        lines.append(
            f"{labels.target_label(target)}, mean PSNR ± SD between trainings: {'; '.join(parts)}."
        )
    return lines


def _against_rival(summary, target, scored, best) -> str:
    """The test of the leader against the best row of another method, as a sentence."""
    rivals = [row for row in scored if row["method"] != best["method"]]
    if not rivals:
        return ""
    rival = max(rivals, key=lambda row: tables.mean_of(row, "psnr"))
    keys = labels.row_key(best), labels.row_key(rival)
    for test in summary.get("tests") or []:
        if test["target"] != target or test["metric"] != "psnr":
            continue
        if (test["a"], test["b"]) not in (keys, keys[::-1]):
            continue
        sign = 1 if test["a"] == keys[0] else -1
        ci95 = test.get("ci95")
        if ci95 is not None and all(map(labels.is_number, ci95)):
            ci95 = sorted(sign * v for v in ci95)
        difference = labels.number(sign * test["mean_diff"], 2, signed=True)
        words = f"{difference} dB {labels.interval(ci95, 2, signed=True)}".strip()
        p = labels.p_value(test.get("p_holm"))
        shown = tables.verdict(test)
        if shown.endswith(" better"):
            shown = "a difference between people is shown"
        return f" Against {_name(rival)}: {words}, Holm p {p}: {shown}."
    return f" The best other method is {_name(rival)}; their difference was not tested."


def checks(summary: dict) -> list[Check]:
    """Controls as given, then what the table itself must satisfy."""
    found = [_control(control) for control in summary.get("controls") or []]
    for target in tables.targets_of(summary):
        rows = [r for r in tables.rows_of(summary, target) if tables.mean_of(r, "psnr") is not None]
        if rows:
            found += _above_floor(summary, target, rows)
            found += _autoencoder_room(summary, target, rows)
    return found


def _control(control: dict) -> Check:
    target = labels.target_label(control["target"]) if control.get("target") else "all"
    name = control["name"]
    drop, accuracy = control.get("drop_db"), control.get("accuracy")
    if name == "source_shuffle" and labels.is_number(drop):
        mean = (control.get("psnr") or {}).get("mean")
        measured = f"PSNR falls by {drop:.2f} dB" + (
            f" to {mean:.2f} dB" if labels.is_number(mean) else ""
        )
        good = drop >= SHUFFLE_DROP_DB
        verdict = "the output follows the PET" if good else "the output hardly depends on the PET"
        return _check("Source shuffle: another person's PET", target, measured, verdict, good)
    if name == "class_flip" and labels.is_number(accuracy):
        return _class_flip(target, accuracy, control.get("accuracy_real"))
    own, other = control.get("psnr_own"), control.get("psnr_other")
    if name == "both_codes" and labels.is_number(own) and labels.is_number(other):
        measured = f"own code {own:.1f} dB, other code {other:.1f} dB against the real {target}"
        good = own - other >= SHUFFLE_DROP_DB
        verdict = "each code makes its own modality" if good else "the code hardly matters"
        return _check("Same PET, both codes, one truth", target, measured, verdict, good)
    words = labels.reference_label(name)
    return Check(words, target, labels.NOT_MEASURED, "no verdict", "unknown")


def _class_flip(target: str, accuracy: float, real) -> Check:
    """real: the share of real images that the classifier recognises; None, in reports of before that was
    measured, counts as all of them.
    """
    name = "Class flip: same PET, both codes"
    measured = f"{100 * accuracy:.0f} % of outputs recognised"
    if labels.is_number(real):
        measured += f" (real images: {100 * real:.0f} %)"
        if real < KNOWS_REAL:
            verdict = "no verdict: the classifier cannot tell real images apart"
            return Check(name, target, measured, verdict, "unknown")
    good = accuracy >= FLIP_ACCURACY * (real if labels.is_number(real) else 1)
    verdict = "the class code selects the modality" if good else "the class code is not obeyed"
    return _check(name, target, measured, verdict, good)


def _check(name, target, measured, verdict, good: bool) -> Check:
    return Check(name, target, measured, verdict, "pass" if good else "fail")


def _above_floor(summary, target, rows) -> list[Check]:
    floor = _reference_psnr(summary, target, "floor_mean_image")
    if floor is None:
        return []
    below = [_name(r) for r in rows if tables.mean_of(r, "psnr") <= floor]
    worst = min(tables.mean_of(r, "psnr") for r in rows)
    return [
        _check(
            "Every method above the floor",
            labels.target_label(target),
            f"lowest {worst:.1f} dB, floor {floor:.1f} dB",
            "all above"
            if not below
            else "not better than the population mean: " + ", ".join(below),
            not below,
        )
    ]


def _autoencoder_room(summary, target, rows) -> list[Check]:
    """One check for each autoencoder: the shared one, and those of methods with one of their own."""
    references = (r["name"] for r in tables.references_of(summary, target))
    names = [name for name in references if name.partition(":")[0] == "ae_ceiling"]
    owners = [name.partition(":")[2] for name in names]
    latent = [(_owner(r["method"], owners), r) for r in rows if labels.is_latent(r)]
    checks = []
    for name, owner in zip(names, owners, strict=True):
        own = [r for whose, r in latent if whose == owner]
        ceiling = _reference_psnr(summary, target, name)
        if ceiling is not None and own:
            checks.append(_room(target, owner, ceiling, own))
    return checks


def _owner(method: str, owners: list[str]) -> str:
    """Whose autoencoder a method uses: its own, that of all its seeds, or the shared one, ""."""
    return next((name for name in (method, base_name(method)) if name in owners), "")


def _room(target: str, owner: str, ceiling: float, latent: list[dict]) -> Check:
    best = max(tables.mean_of(r, "psnr") for r in latent)
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
    return _check(name, labels.target_label(target), measured, verdict, room >= HEADROOM_DB)
