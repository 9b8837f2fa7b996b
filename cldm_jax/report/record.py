"""summary.json as a record: what an evaluation found, and what its tables, charts and words look up."""

import dataclasses
from typing import Any

from cldm_jax import files
from cldm_jax.errors import UserError
from cldm_jax.metrics.protocol import Protocol
from cldm_jax.report import labels


def mean_of(scores: dict[str, dict], metric: str) -> float | None:
    """The mean of a metric in {metric: entry}; None where it was not scored or is not defined."""
    mean = scores.get(metric, {}).get("mean")
    return mean if labels.is_number(mean) else None


class _Scored:
    """In the file, scores stand among the fields of who was scored: all dicts are."""

    @classmethod
    def from_json(cls, value: dict):
        own = {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name != "scores"}
        return cls(**own, scores={k: v for k, v in value.items() if isinstance(v, dict)})

    def to_json(self) -> dict:
        kept = {}
        for name, value in vars(self).items():
            kept |= value if name == "scores" else {name: value}
        return kept

    def mean(self, metric: str) -> float | None:
        return mean_of(self.scores, metric)


@dataclasses.dataclass(frozen=True)
class Row(_Scored):
    """A read-out of a method on a target. scores: {metric: entry of `statistics.summarise`}."""

    method: str
    mode: str
    target: str
    n_patients: int
    n_independent: int
    scores: dict[str, dict]
    params: float | None
    train_steps: float | None
    train_seconds: float | None
    train_cpu_seconds: float | None
    network_evaluations: float | None
    seconds_per_slice: float | None

    @property
    def key(self) -> str:
        return f"{self.method}:{self.mode}"

    @property
    def label(self) -> str:
        return labels.method_label(self.key)


@dataclasses.dataclass(frozen=True)
class Reference(_Scored):
    """A floor or ceiling, scored like a method."""

    name: str
    target: str
    n_patients: int
    n_independent: int
    scores: dict[str, dict]

    @property
    def label(self) -> str:
        return labels.reference_label(self.name)


@dataclasses.dataclass(frozen=True)
class Test:
    """Of a minus b, both "method:mode": `statistics.PairedTest`, and p after Holm over the report."""

    a: str
    b: str
    target: str
    metric: str
    n: int
    mean_diff: float | None
    ci95: list[float | None]
    p_wilcoxon: float | None
    rank_biserial: float | None
    n_undefined: int
    p_equivalent: float | None
    p_holm: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """chosen: {target: {method: read-out}}, what the tests compare. spread: of calibrated models on test
    people; points: MAE of every method beside their CRPS (both of `scoring/coverage.py`). learning:
    {method: {target: [(share of the training, validation PSNR)]}}. seeds: of `aggregate.seed_spread`.
    """

    protocol: Protocol
    data: dict[str, Any]
    rows: tuple[Row, ...]
    references: tuple[Reference, ...]
    chosen: dict[str, dict[str, str]]
    tests: tuple[Test, ...]
    controls: list[dict]
    spread: list[dict]
    points: list[dict]
    learning: dict[str, dict[str, list]]
    seeds: list[dict]
    notes: list[str]
    run: dict[str, Any]

    @classmethod
    def from_json(cls, value: dict) -> "Summary":
        """Of a summary.json; what reports of before a section lack is empty."""
        lacking = {"chosen": {}, "spread": [], "points": [], "learning": {}, "seeds": []}
        records = {
            "protocol": Protocol.from_json(value["protocol"]),
            "rows": tuple(map(Row.from_json, value["rows"])),
            "references": tuple(map(Reference.from_json, value["references"])),
            "tests": tuple(Test(**{"p_equivalent": None, **test}) for test in value["tests"]),
        }
        return cls(**{**lacking, **value, **records})

    def to_json(self) -> dict:
        kept = {**vars(self), "protocol": self.protocol.to_json()}
        kept["tests"] = [dataclasses.asdict(test) for test in self.tests]
        return kept | {k: [r.to_json() for r in kept[k]] for k in ("rows", "references")}

    @property
    def targets(self) -> list[str]:
        """In the order of the rows, then of the references."""
        return list(dict.fromkeys(r.target for r in self.rows + self.references))

    def rows_of(self, target: str) -> list[Row]:
        return [row for row in self.rows if row.target == target]

    def references_of(self, target: str) -> list[Reference]:
        return [row for row in self.references if row.target == target]

    def units(self, target: str) -> str:
        """Short, for column heads."""
        return self.protocol.target(target).units


def read_summary(path) -> Summary:
    """UserError for a file that was cut short, or lacks what every report has had since."""
    try:
        return Summary.from_json(files.read_json(path))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        reason = f"damaged, or of an early version ({type(e).__name__}: {e})"
        raise UserError(path, reason, "Delete that report and evaluate again") from e
