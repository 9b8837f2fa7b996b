"""The comparison: every method trained with the same CPU time on the same people, then one report.

A budget of CPU time becomes a number of steps before anything is trained (`jobs/budget.py`), so the
learning rate ends where the budget does and an interrupted comparison resumes exactly. A latent method
pays for its autoencoder and its latents. With folds, everything is trained once per fold, every person
is a test person once, and the folds' reports are pooled.
"""

import pathlib

import jax

from cldm_jax import files
from cldm_jax.data.shards import INDEX
from cldm_jax.errors import UserError
from cldm_jax.jobs import budget, encode, evaluate, prepare, simulate, train
from cldm_jax.runs.inputs import TARGETS, open_prepared, settled
from cldm_jax.runtime.runlock import run_lock
from cldm_jax.scoring import pool

COSTS, BUDGET = "costs.json", "budget.json"


def run(config, workdir: str) -> None:
    """Trains `config.trainings` for their seeds with `config.budget_minutes` of process CPU time each,
    below `workdir`, and writes <workdir>/report. The same command resumes.

    UserError: unknown methods, a fold that is not there, a budget that buys too little; and in the end
    where somebody of `config.cohort` was left out.
    """
    names = _chosen(config)
    if any(config.trainings[name].data.kind == "latents" for name in names):
        train.warn_if_gpu_preset(config.autoencoder)  # its steps are given, the others' bought
    root = pathlib.Path(workdir)
    if not config.folds:
        folder = _prepared(config, root, None)
        _compare(config, root, root, folder, names)
        _tell_left_out(config, folder)
        return
    if config.prepared:
        reason = "is split already, and folds need their own splits"
        raise UserError("config.prepared", reason, "Give config.cohort, or folds=0.")
    if config.fold >= config.folds:
        raise UserError(f"config.fold={config.fold}", "no such fold", f"0 to {config.folds - 1}.")
    for k in range(config.folds) if config.fold < 0 else (config.fold,):
        folder = root / f"fold-{k}"
        print(f"fold {k} of {config.folds}: {folder}", flush=True)
        prepared = _prepared(config, root, k)
        _compare(config, root, folder, prepared, names)
    reports = [root / f"fold-{k}" / "report" for k in range(config.folds)]
    missing = [r for r in reports if not (r / "summary.json").is_file()]
    if missing:
        print(f"not pooled yet: {len(missing)} folds have no report", flush=True)
        return
    pool.run_folders(reports, str(root / "report"), seed=config.seed, title=config.eval.title)
    _tell_left_out(config, prepared)


def _tell_left_out(config, prepared: str) -> None:
    """An exit status for it, once everything else is done. Not of a folder that was given finished."""
    if config.prepared:
        return
    rows = files.read_json(pathlib.Path(prepared, INDEX)).get("left_out", [])
    out = [f"{row['id']} ({row['why']})" for row in rows]
    # What never became somebody of the cohort, such as a folder that cannot be read.
    found = files.read_json(pathlib.Path(prepared, "audit.json"))["findings"]
    refused = [f for f in found if f["severity"] == "error" and not f["subject"]]
    out += [f"{pathlib.Path(f['what']).name} ({f['reason']})" for f in refused]
    if out:
        reason = f"left out, wholly or some images, of {len(out)} subjects: {'; '.join(out)}"
        remedy = f"The comparison of the others is done. See {prepared}/audit.json"
        raise UserError(config.cohort, reason, remedy)


def _chosen(config) -> list[str]:
    names = evaluate.words(config.methods) or list(config.trainings)
    unknown = [n for n in names if n not in config.trainings]
    if unknown:
        known = ", ".join(config.trainings)
        raise UserError(f"config.methods: {unknown[0]!r}", "not known", f"Choose from: {known}.")
    return names


def _prepared(config, root: pathlib.Path, fold: int | None) -> str:
    """Folder of the prepared data: of `config.cohort`, of label volumes, or of the embedded phantom."""
    if config.prepared:
        return config.prepared
    folder = (root if fold is None else root / f"fold-{fold}") / "prepared"
    cohort = config.cohort or str(root / "cohort")
    if not config.cohort:
        with run_lock(root, waits=True):  # a fold that runs beside this one needs the same
            simulate.run(config.simulate, cohort)
    recipe = config.prepare.copy_and_resolve_references()
    recipe.cohort = cohort
    if fold is not None:
        recipe.split_mode, recipe.fold = "fold", (fold, config.folds)
    prepare.make(recipe, str(folder))  # which refuses a folder of other people or other folds
    return str(folder)


def _compare(config, root, folder: pathlib.Path, prepared: str, names: list[str]) -> None:
    """Trains and reports below `folder`; the costs of steps are measured once for all folds."""
    autoencoder = _on(config.autoencoder, prepared)
    data = open_prepared(autoencoder.data)
    names = _trainable(config, names, data)
    recipes = {}
    for name in names:
        recipe = _on(config.trainings[name], prepared)
        recipe.data.targets = _held(recipe.data.targets, data)
        recipes[name] = settled(recipe)[0]
    costs = _costs(config, root / COSTS, recipes, autoencoder)
    made = len(set(TARGETS) & set(data.held("train")))
    shares = {k: min(n, made) for k, n in config.shares.items()}
    minutes, ae_steps = config.budget_minutes, autoencoder.train.num_train_steps
    plans = {
        name: budget.plan(r, name, costs, minutes, shares.get(r.name, 1), data, ae_steps)
        for name, r in recipes.items()
    }
    files.write_json(folder / BUDGET, {"minutes": minutes, **costs, "plans": plans})
    latent = [name for name, recipe in recipes.items() if recipe.data.kind == "latents"]
    autoencoders = {name: _autoencoder(config, name, prepared) for name in latent}
    for name, ae in autoencoders.items():  # all of them before the first is trained
        for begun in folder.glob(f"{name}-seed*"):
            train.check_autoencoder(begun, folder / ae.name)
    for name, ae in autoencoders.items():
        ae_workdir = str(folder / ae.name)
        train.run(ae, ae_workdir)  # at once where it is trained already
        recipes[name].autoencoder.workdir = ae_workdir
        encode.run(recipes[name])
    seeds = {name: max(1, config.seeds if name in config.headline else 1) for name in names}
    workdirs = []
    for seed in range(max(seeds.values())):
        for name in (n for n in names if seed < seeds[n]):
            workdirs.append(str(folder / f"{name}-seed{seed}"))
            steps = plans[name]["num_train_steps"]
            _train(recipes[name], seed, steps, config.validations, workdirs[-1])
    report = config.eval.copy_and_resolve_references()
    report.runs = ",".join(workdirs)
    report.data.prepared = prepared
    report.notes = (*report.notes, *_notes(config, recipes, costs, plans, shares))
    evaluate.run(report, str(folder / "report"))


def _trainable(config, names: list[str], data) -> list[str]:
    """The trainings of which training people have a target; the others are printed."""
    left = []
    for name in names:
        targets = config.trainings[name].data.targets
        if targets and not set(_held(targets, data)) & set(TARGETS):
            missing = next(t for t in targets if t in TARGETS)
            print(f"{name}: left out, no training person has {missing}", flush=True)
        else:
            left.append(name)
    if not left:
        reason = f"none of {', '.join(names)} has a target that training people of it have"
        raise UserError(data.folder, reason, "Name others with config.methods")
    return left


def _held(targets, data) -> tuple[str, ...]:
    """Those that a training names and training people have; none named = all that are there."""
    return tuple(t for t in targets if t in data.held("train"))


def _autoencoder(config, name: str, prepared: str):
    """The training of the autoencoder that latent method `name` uses, the shared one or its own; the
    folder is its name. Its steps are as many, and priced, as the shared one's.
    """
    autoencoder = _on(config.autoencoder, prepared)
    if name in config.own_autoencoder:
        autoencoder.name = f"{autoencoder.name}-{name}"
        with autoencoder.unlocked():  # another network has other settings
            autoencoder.recipe.update(config.own_autoencoder[name])
    return autoencoder


def _on(training, prepared: str):
    """A copy of a training config that reads `prepared`."""
    training = training.copy_and_resolve_references()
    training.data.prepared = prepared
    return training


def _costs(config, path: pathlib.Path, recipes: dict, autoencoder) -> dict:
    """The measured costs in `path`, measured now where a method has none."""
    with run_lock(path.parent, waits=True):  # a fold beside this one would replace them
        known = files.read_json(path) if path.is_file() else None
        missing = {n: r for n, r in recipes.items() if known is None or n not in known["ratios"]}
        if not missing:
            return known
        unit = _on(config.trainings[config.reference], autoencoder.data.prepared)
        measured = {config.reference: unit, **missing}
        seconds = config.measured_seconds
        costs = budget.measure(measured, autoencoder, config.encode_batch_size, seconds)
        if known is not None:  # methods added later: beside the same step, whose seconds stay
            costs = {**known, "ratios": {**costs["ratios"], **known["ratios"]}}
        files.write_json(path, costs)
    return costs


def _train(recipe, seed: int, steps: int, validations: int, workdir: str) -> None:
    recipe = recipe.copy_and_resolve_references()
    recipe.seed = seed
    if seed:
        recipe.name = f"{recipe.name}-seed{seed}"
    recipe.train.num_train_steps = steps
    recipe.train.val_every = max(1, -(-steps // validations))
    print(f"{workdir}: {steps} steps", flush=True)
    train.run(recipe, workdir)


def _notes(config, recipes: dict, costs: dict, plans: dict, shares: dict) -> list[str]:
    reference, cost = costs["reference"], costs["cpu_seconds"]
    note = (
        f"Every method had {config.budget_minutes:g} minutes of process CPU time per seed on "
        f"{jax.default_backend()}, counted as {60 * config.budget_minutes / cost:.0f} steps of "
        f"{reference} at {cost:.3g} CPU s: costs were measured as ratios to that step before any "
        "training; compilation and validation are left out."
    )
    shared = {recipe.name for recipe in recipes.values()}
    for name, parts in shares.items():
        if name in shared and parts > 1:
            note += f" {name}: divided between its {parts} models."
    paid = max(plan["paid"] for plan in plans.values())
    if paid:
        note += f" Latent methods paid {paid * cost / 60:.1f} minutes for autoencoder and latents."
    steps = ", ".join(f"{name} {plan['num_train_steps']}" for name, plan in plans.items())
    return [
        note,
        f"Steps bought: {steps}.",
        "Of each training the last checkpoint within 0.1 dB of the best PSNR on validation people is "
        "scored.",
    ]
