"""What `jobs/tasks` said of cross-validation folds, as one: every person was a test person once."""

import pathlib

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.metrics import aggregate
from cldm_jax.report.page import read_scores
from cldm_jax.runtime import device
from cldm_jax.scoring.pool import pool_notes


def pool_folders(folders: list[pathlib.Path], *, seed: int) -> tuple[list[dict], dict]:
    """(score rows, summary as of tasks.json) of all people: means, intervals and tests anew.

    UserError where a folder has none, or they are not folds of one comparison: other uses, rows or
    templates, a person scored twice.
    """
    for folder in folders:
        if not (folder / "tasks.json").is_file():
            raise UserError(folder / "tasks.json", "is not there", "Finish that fold's job first.")
    summaries = [files.read_json(f / "tasks.json") for f in folders]
    _check(folders, summaries)
    rows = [row for f in folders for row in read_scores(f / "tasks.csv")]
    first = summaries[0]
    data = [s["data"] for s in summaries]
    fingerprint = files.sha256_json([d["fingerprint"] for d in data])
    by_use = zip(*(s["uses"] for s in summaries), strict=True)
    summary = {
        "uses": [_pool_use(folds, rows, seed) for folds in by_use],
        "people": [person for s in summaries for person in s["people"]],
        "notes": pool_notes([s.get("notes", []) for s in summaries]),  # older folds have none
        "data": {**data[0], "fingerprint": fingerprint, "folds": len(data)},
        "run": {**first["run"], "command": device.command_line(), "seed": seed},
    }
    return rows, summary


def _pool_use(folds: tuple[dict, ...], rows: list[dict], seed: int) -> dict:
    own = [r for r in rows if r["use"] == folds[0]["name"]]
    tested = folds[0]["tests"]
    pairs = list(dict.fromkeys((t["a"], t["b"]) for t in tested))
    metrics = tuple(dict.fromkeys(t["metric"] for t in tested))
    one_each = aggregate.average_seeds(own)
    return {
        **folds[0],
        "rows": aggregate.summarise_scores(own, seed=seed),
        "tests": aggregate.paired_tests(one_each, pairs, metrics=metrics, seed=seed),
        "failures": [failure for fold in folds for failure in fold["failures"]],
    }


def _check(folders, summaries) -> None:
    def facts(s):
        shared = [s["data"][k] for k in ("name", "split", "template", "template_pet")]
        uses = [
            (u["name"], u["measures"], {(r["method"], r["mode"]) for r in u["rows"]})
            for u in s["uses"]
        ]
        return shared, uses

    seen: dict[str, pathlib.Path] = {}
    for folder, summary in zip(folders, summaries, strict=True):
        if facts(summary) != facts(summaries[0]):
            reason = f"has other uses, methods, read-outs or templates than {folders[0]}"
            raise UserError(folder, reason, "Score every fold with the same settings.")
        for person in summary["people"]:
            if person in seen:
                reason = f"{person} was scored in {seen[person]} too"
                raise UserError(folder, reason, "Name folds that share no test person.")
            seen[person] = folder
