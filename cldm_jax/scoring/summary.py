"""Score rows and what is known of the methods -> the summary of a report, of one split or of folds."""

from cldm_jax.metrics import aggregate
from cldm_jax.report.record import Reference, Row, Summary, Test
from cldm_jax.scoring.references import REFERENCE
from cldm_jax.scoring.scorer import HEADLINE

COSTS = (
    *("params", "train_steps", "train_seconds", "train_cpu_seconds"),
    *("network_evaluations", "seconds_per_slice"),
)


def make_summary(
    scores: list[dict],
    costs: dict[tuple, dict],
    chosen: dict[str, dict[str, str]],
    main: dict[str, str],
    *,
    seed: int,
    **facts,
) -> Summary:
    """scores: rows of methods and of `REFERENCE`. costs: {(method, mode, target): COSTS}. chosen, without
    seeds: what the tests compare. main: {target: the method that is tested against all others}. facts:
    the other fields of the summary.
    """
    methods = [s for s in scores if s["method"] != REFERENCE]
    rows = aggregate.summarise_scores(methods, seed=seed)
    others = aggregate.summarise_scores([s for s in scores if s["method"] == REFERENCE], seed=seed)
    return Summary(
        rows=tuple(Row.from_json(r | costs[r["method"], r["mode"], r["target"]]) for r in rows),
        references=tuple(Reference.from_json({"name": r["mode"], **r}) for r in others),
        chosen=chosen,
        tests=_tests(methods, chosen, main, seed),
        seeds=aggregate.seed_spread(methods, metric=HEADLINE),
        **facts,
    )


def _tests(scores, chosen, main: dict[str, str], seed: int) -> tuple[Test, ...]:
    """A target's main method against every other, each by its chosen read-out; Holm over all of them."""
    pairs = {}
    for target, modes in chosen.items():
        keys = {name: f"{name}:{mode}" for name, mode in modes.items()}
        pairs[target] = [
            (keys[a], keys[b]) for a in keys if a == main.get(target) for b in keys if b != a
        ]
    averaged = aggregate.average_seeds(scores)
    found = aggregate.paired_tests(averaged, pairs, metrics=("psnr", "ssim"), seed=seed)
    return tuple(Test(**test) for test in found)
