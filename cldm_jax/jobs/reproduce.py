"""The comparison: every method trained with the same CPU time on the same people, then one report.

A method's budget buys steps: the CPU seconds of a step are measured once, before its training, and kept
in budget.json with the number of steps that follows. So an interrupted comparison resumes exactly, and
the learning rate ends where the budget does. A latent method pays for its autoencoder and its latents.
"""

import pathlib
import time

import jax

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import evaluate, inputs, prepare, simulate, train
from cldm_jax.jobs.encode import ensure_latents

MIN_STEPS = 20  # a budget that buys fewer is refused


def run(config, workdir: str) -> None:
    """Trains `config.trainings` for `config.seeds` seeds with `config.budget_minutes` of process CPU time
    each, below `workdir`, and writes <workdir>/report. The same command resumes.
    """
    names = _chosen(config)
    root = pathlib.Path(workdir)
    prepared = _prepared(config, root)
    shared = {}
    if any(config.trainings[name].data.kind == "latents" for name in names):
        shared = _autoencoder(config, root, prepared)
    workdirs = []
    for seed in range(config.seeds):
        for name in names:
            workdirs.append(_train(config, root, prepared, shared, name, seed))
    report = config.eval.copy_and_resolve_references()
    with report.unlocked():
        report.runs = ",".join(workdirs)
        report.data.prepared = prepared
        report.title = f"{report.title}: equal CPU time"
        report.notes = tuple(report.notes) + (_budget_note(config, names, shared),)
    evaluate.run(report, str(root / "report"))


def _chosen(config) -> list[str]:
    names = [n for n in config.methods.replace(" ", "").split(",") if n] or list(config.trainings)
    unknown = [n for n in names if n not in config.trainings]
    if unknown:
        known = ", ".join(config.trainings)
        raise UserError(f"config.methods: {unknown[0]!r}", "not known", f"Choose from: {known}.")
    return names


def _prepared(config, root: pathlib.Path) -> str:
    """Folder of the prepared data: of `config.cohort`, of label volumes, or of the embedded phantom."""
    if config.prepared:
        return config.prepared
    folder, cohort = root / "prepared", config.cohort
    if not (folder / "index.json").is_file():
        if not cohort:
            cohort = str(root / "cohort")
            simulate.run(config.simulate, cohort)
        recipe = config.prepare.copy_and_resolve_references()
        with recipe.unlocked():
            recipe.cohort = cohort
        prepare.run(recipe, str(folder))
    return str(folder)


def _autoencoder(config, root: pathlib.Path, prepared: str) -> dict:
    """{"workdir", "cpu_seconds"} of the latent methods' autoencoder, encoding the latents included."""
    workdir, path = str(root / "ae"), root / "ae-cost.json"
    recipe = config.autoencoder.copy_and_resolve_references()
    with recipe.unlocked():
        recipe.data.prepared = prepared
    train.run(recipe, workdir)
    if not path.is_file():
        began = time.process_time()
        ensure_latents(inputs.ensure_prepared(recipe.data), workdir, config.encode_batch_size)
        encoding = time.process_time() - began
        training = files.read_json(root / "ae" / "run.json")["train_cpu_seconds"]
        files.write_json(path, {"training": training, "encoding": encoding})
    return {"workdir": workdir, "cpu_seconds": sum(files.read_json(path).values())}


def _train(config, root, prepared: str, shared: dict, name: str, seed: int) -> str:
    """Trains one method with its budget; returns its workdir."""
    workdir = root / f"{name}-seed{seed}"
    recipe = config.trainings[name].copy_and_resolve_references()
    with recipe.unlocked():
        recipe.seed = seed
        recipe.data.prepared = prepared
        if seed:
            recipe.name = f"{recipe.name}-seed{seed}"
        if recipe.data.kind == "latents":
            recipe.autoencoder.workdir = shared["workdir"]
        steps = _steps(config, recipe, workdir, shared)
        recipe.train.num_train_steps = steps
        recipe.train.val_every = recipe.train.log_every * max(
            1, steps // 5 // recipe.train.log_every
        )
    print(f"{workdir}: {steps} steps for {config.budget_minutes:g} CPU-minutes", flush=True)
    train.run(recipe, str(workdir))
    return str(workdir)


def _steps(config, recipe, workdir: pathlib.Path, shared: dict) -> int:
    """Steps that the budget buys, from budget.json or measured now."""
    path = workdir / "budget.json"
    budget = 60 * config.budget_minutes / config.shares.get(recipe.name.split("-seed")[0], 1)
    if recipe.data.kind == "latents":
        budget -= shared["cpu_seconds"]
    if path.is_file() and files.read_json(path)["budget_cpu_seconds"] == budget:
        return files.read_json(path)["num_train_steps"]
    cost = _step_cpu_seconds(recipe, config.measured_seconds)
    steps = int(budget / cost)
    if steps < MIN_STEPS:
        raise UserError(
            f"config.budget_minutes={config.budget_minutes:g}",
            f"buys {recipe.name} {max(0, steps)} steps of {cost:.2f} CPU s",
            "Give more minutes, or leave the method out with config.methods.",
        )
    record = {"budget_cpu_seconds": budget, "step_cpu_seconds": cost, "num_train_steps": steps}
    files.write_json(path, record)
    return steps


def _step_cpu_seconds(recipe, measured_seconds: float) -> float:
    with recipe.unlocked():
        recipe.train.num_train_steps = 1000  # only the schedule asks for it
    step = train.open_step(recipe)
    step()
    began, count = time.process_time(), 0
    while time.process_time() - began < measured_seconds or count < 3:
        step()
        count += 1
    return (time.process_time() - began) / count


def _budget_note(config, names: list[str], shared: dict) -> str:
    note = (
        f"Every method had {config.budget_minutes:g} minutes of process CPU time per seed on "
        f"{jax.default_backend()}, compilation and validation left out; a step's cost was measured "
        "before its training."
    )
    chosen = {config.trainings[name].name for name in names}
    for name, parts in config.shares.items():
        if name not in chosen:
            continue
        note += f" {name}: divided between its {parts} models."
    if shared:
        spent = shared["cpu_seconds"] / 60
        note += f" Latent methods paid {spent:.1f} of them for the autoencoder and the latents."
    return note + " The last checkpoint is scored; nothing was chosen on test people."
