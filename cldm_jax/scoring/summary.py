"""Score rows and what is known of the methods -> the summary of a report, of one split or of folds."""

from collections.abc import Iterable

from cldm_jax.metrics import aggregate
from cldm_jax.scoring.scorer import HEADLINE

REFERENCE = "reference"  # method name of the rows that give scores their meaning
COSTS = (
    *("params", "train_steps", "train_seconds", "train_cpu_seconds"),
    *("network_evaluations", "seconds_per_slice"),
)


def make_summary(
    scores: list[dict],
    costs: dict[tuple, dict],
    chosen: dict[str, dict[str, str]],
    main: Iterable[str],
    *,
    seed: int,
    **facts,
) -> dict:
    """The summary's schema (docs/evaluation.md).

    scores: rows of methods and of `REFERENCE`. costs: {(method, mode, target): COSTS}. chosen: {target:
    {method without its seed: mode}}, what the tests compare. main: the methods that are tested against
    all others. facts: protocol, data, controls, learning (validation PSNR), notes, run; spread and points
    of `coverage.measure` where there are any.
    """
    methods = [s for s in scores if s["method"] != REFERENCE]
    rows = aggregate.summarise_scores(methods, seed=seed)
    for row in rows:
        row.update(costs[row["method"], row["mode"], row["target"]])
    references = []
    for row in aggregate.summarise_scores(
        [s for s in scores if s["method"] == REFERENCE], seed=seed
    ):
        kept = {k: v for k, v in row.items() if k not in ("method", "mode")}
        references.append({"name": row["mode"], **kept})
    return {
        "protocol": facts["protocol"],
        "data": facts["data"],
        "rows": rows,
        "references": references,
        "chosen": chosen,
        "tests": _tests(methods, chosen, set(main), seed),
        "controls": facts["controls"],
        "spread": facts.get("spread", []),  # calibrated models on test people
        "points": facts.get("points", []),  # MAE of every method beside their CRPS
        "learning": facts["learning"],
        "seeds": aggregate.seed_spread(methods, metric=HEADLINE),
        "notes": facts["notes"],
        "run": facts["run"],
    }


def _tests(scores, chosen, main: set[str], seed: int) -> list[dict]:
    """Every main method against every other, each by its chosen read-out; Holm over all of them."""
    pairs = {}
    for target, modes in chosen.items():
        keys = {name: f"{name}:{mode}" for name, mode in modes.items()}
        pairs[target] = [
            (keys[a], keys[b]) for a in keys if a in main for b in keys if b not in main
        ]
    return aggregate.paired_tests(
        aggregate.average_seeds(scores), pairs, metrics=("psnr", "ssim"), seed=seed
    )
