"""Simulated people by all cores until the time is over, then prepared: for the part "train". No JAX.

    python -m benchmarks.gpu.heads FOLDER PRESET PEOPLE SECONDS WORKERS [LABELS]

Whoever is finished in time is in FOLDER/cohort and FOLDER/prepared; heads take turns, so that a cut
cohort has some variants of each. FOLDER/facts.json comes last.
"""

import concurrent.futures
import csv
import importlib
import multiprocessing
import pathlib
import sys
import time

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from cldm_jax.phantom.cohort import plan_cohort
from cldm_jax.phantom.labels import find_heads
from cldm_jax.phantom.subject import Plan, write_person

COLUMNS = ("pet", "ct", "mr")
LEAST = 6  # people that can be split three ways


def plans(preset: str, people: int, labels: str) -> list[Plan]:
    """Of the product's cohort, without the second scans, which training does not read."""
    config = importlib.import_module("configs.simulate").get_config(preset)
    with config.unlocked():
        config.reacquire, config.labels = False, labels
        config.n_subjects = people
        if labels:
            config.variants_per_head = max(1, people // len(find_heads(labels)))
    return in_turns(plan_cohort(config))


def in_turns(found: list[Plan]) -> list[Plan]:
    """The first person of every group, then the second of every group, and so on."""
    seen: dict[str, int] = {}
    order = []
    for plan in found:
        seen[plan.group] = seen.get(plan.group, 0) + 1
        order.append((seen[plan.group], len(order), plan))
    return [plan for _, _, plan in sorted(order, key=lambda item: item[:2])]


def simulate(todo: list[Plan], folder: pathlib.Path, seconds: float, workers: int) -> list[Plan]:
    """Those that were written within `seconds`. Processes that are not done then are killed."""
    context = multiprocessing.get_context("spawn")
    end, done = time.monotonic() + seconds, []
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    jobs = {pool.submit(write_person, plan, str(folder)): plan for plan in todo}
    try:
        for job in concurrent.futures.as_completed(jobs, seconds):
            job.result()
            done.append(jobs[job])
    except TimeoutError:
        print(f"heads: {len(done)} of {len(todo)} people after {seconds:.0f} s", file=sys.stderr)
    processes = list(pool._processes.values())
    pool.shutdown(wait=time.monotonic() < end, cancel_futures=True)
    for process in processes:
        process.kill()
    return done


def write_manifest(done: list[Plan], folder: pathlib.Path) -> None:
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("subject", "group", "split", *COLUMNS))
        for plan in sorted(done, key=lambda plan: plan.id):
            paths = [f"{plan.id}/{name}.nii.gz" for name in COLUMNS]
            writer.writerow((plan.id, plan.group, "", *paths))


def main(folder: pathlib.Path, preset: str, people: int, seconds: float, workers: int, labels=""):
    """Raises UserError where fewer than LEAST people were ready, or a volume is refused."""
    cohort = folder / "cohort"
    cohort.mkdir(parents=True)
    began = time.monotonic()
    done = simulate(plans(preset, people, labels), cohort, seconds, workers)
    simulated = time.monotonic()
    if len(done) < LEAST:
        reason = f"{len(done)} people simulated in {seconds:.0f} s"
        raise UserError(cohort, reason, "Give more minutes or more cores.")
    write_manifest(done, cohort)
    config = importlib.import_module("configs.prepare").get_config(preset)
    with config.unlocked():
        config.cohort, config.workers = str(cohort), workers
    prepare.run(config, str(folder / "prepared"))
    size = sum(path.stat().st_size for path in (folder / "prepared").glob("*.npy"))
    return {
        "people": len(done),
        "heads": len({plan.group for plan in done}),
        "labels": pathlib.Path(labels).name if labels else "embedded phantom",
        "simulate_s": simulated - began,
        "prepare_s": time.monotonic() - simulated,
        "cpu_s_a_person": workers * (simulated - began) / len(done),
        "slices_mb": size / 1e6,
    }


if __name__ == "__main__":
    where, preset, people, seconds, workers, *labels = sys.argv[1:]
    try:
        facts = main(
            pathlib.Path(where), preset, int(people), float(seconds), int(workers), *labels
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    files.write_json(pathlib.Path(where) / "facts.json", facts)
