"""Who is in a simulated cohort: from the settings to one Plan per person. Never imports jax."""

import zlib

import numpy as np

from cldm_jax.errors import UserError
from cldm_jax.phantom import draws
from cldm_jax.phantom.labels import find_heads
from cldm_jax.phantom.subject import Plan

MODES = ("paired3", "abstract", "easy", "adversarial", "randomised")
TARGETS = ("acquired", "canonical")
PET_MODELS = ("fast", "osem")
MR_SHARE = 0.24  # of people in mode `abstract`; the rest have CT
ABSTRACT_STREAM = 9


def check(config) -> None:
    """UserError for settings that do not work together, naming the field. Those that never work
    `settings.py` has refused on the command line; here, what would pass in silence from a notebook.
    """

    def require(good: bool, field: str, reason: str, remedy: str):
        if not good:
            raise UserError(f"config.{field} = {config[field]!r}", reason, remedy)

    require(config.mode in MODES, "mode", "is unknown", f"Use one of {', '.join(MODES)}")
    require(config.pet_model in PET_MODELS, "pet_model", "is unknown", f"Use one of {PET_MODELS}")
    if config.nac:
        osem = "pet_model", "makes none without counts, and nac is asked for", "Use osem"
        require(config.pet_model == "osem", *osem)
        require(config.mode != "randomised", "mode", "draws its own NAC", "Leave nac out")
    for field in ("mr_target", "ct_target"):  # any other word would count as acquired
        require(config[field] in TARGETS, field, "is unknown", f"Use one of {', '.join(TARGETS)}")
    draws.check(config.randomised.to_dict())
    is_moved = config.mode == "randomised" and not config.vary_first
    require(not is_moved, "vary_first", "is for modes that do not move everybody", "Leave it True")
    require(
        config.pets_per_person == 1 or config.mode == "randomised",
        "pets_per_person", f"is for mode randomised, and mode is {config.mode}", "Use 1",
    )  # fmt: skip
    spacing, shape = tuple(config.spacing_mm), tuple(config.shape)
    fine = all(0.5 <= s <= 12 for s in spacing)
    require(fine, "spacing_mm", "must be from 0.5 to 12 mm", "Correct it")
    if config.labels:
        return
    require(min(shape) >= 4, "shape", "must be at least 4 voxels", "Correct it")
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    require(
        extent[0] >= 170 and extent[1] >= 210 and 24 <= extent[2] <= 150,
        "shape", f"times spacing_mm covers {extent} mm",
        "The embedded head needs at least 170 x 210 mm in the plane, and 24 to 150 mm along z",
    )  # fmt: skip
    if config.mode == "adversarial":
        require(config.n_subjects % 2 == 0, "n_subjects", "is odd", "Twins need an even number")


def _people(config) -> list[tuple[str, tuple[int, ...], str, bool]]:
    """(group, stream key, source, vary) of each independent person; twins are made of these later."""
    if not config.labels:
        twins = 2 if config.mode == "adversarial" else 1
        return [("", (i,), "", False) for i in range(config.n_subjects // twins)]
    people = []
    for head, path in find_heads(config.labels).items():
        # keyed by name, so that adding a head to the folder leaves the others as they are
        key = zlib.crc32(head.encode())
        for variant in range(config.variants_per_head):
            vary = variant > 0 or bool(config.vary_first)
            people.append((head, (key, variant), str(path), vary))
    return people


def _has_mr(config, n: int) -> np.ndarray:
    """bool [n]: who has MR in mode `abstract`; at least one person of each kind."""
    if n < 2:
        reason = "needs a person with CT and one with MR, and there is one person"
        raise UserError("config.mode = 'abstract'", reason, "Ask for more people or variants")
    count = int(np.clip(round(MR_SHARE * n), 1, n - 1))
    has = np.zeros(n, bool)
    has[np.random.default_rng([config.seed, ABSTRACT_STREAM]).permutation(n)[:count]] = True
    return has


def plan_cohort(config) -> list[Plan]:
    """One Plan per person, in order of id (sub-0001, ...). Checks the settings first."""
    check(config)
    people = _people(config)
    n_twins = 2 if config.mode == "adversarial" else 1
    has_mr = _has_mr(config, len(people)) if config.mode == "abstract" else None
    canonical = tuple(m for m in ("ct", "mr") if config[f"{m}_target"] == "canonical")
    ranges = config.randomised.to_dict() if config.mode == "randomised" else None
    plans = []
    for i, (group, key, source, vary) in enumerate(people):
        modalities, profile = ("pet", "ct", "mr"), "any"
        if has_mr is not None:
            modalities, profile = (
                (("pet", "mr"), "pet_mr") if has_mr[i] else (("pet", "ct"), "pet_ct")
            )
        if config.nac:
            modalities = ("pet", "nac", *modalities[1:])
        if config.reacquire and config.mode != "easy":  # without noise it would be the same image
            again = (m for m in modalities if m in ("ct", "mr") and m not in canonical)
            modalities += tuple(f"{m}_reacq" for m in again)
        for twin in range(n_twins):
            number = i * n_twins + twin + 1
            subject = f"sub-{number:04d}"
            family = f"twins-{i + 1:04d}" if n_twins == 2 else subject
            plans.append(
                Plan(
                    id=subject,
                    group=group or family,
                    seed=int(config.seed),
                    key=key,
                    source=source,
                    vary=vary,
                    twin=twin,
                    easy=config.mode == "easy",
                    modalities=modalities,
                    profile=profile,
                    pet_model=config.pet_model,
                    shape=tuple(int(n) for n in config.shape),
                    spacing=tuple(float(s) for s in config.spacing_mm),
                    canonical=canonical,
                    pets=int(config.pets_per_person),
                    ranges=ranges,
                    randomised_share=float(config.randomised_share),
                )
            )
    return plans
