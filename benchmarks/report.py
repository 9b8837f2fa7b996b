"""summary.json: what was measured, kept after every row."""

import pathlib

from benchmarks import proc
from cldm_jax import files

SUMMARY = "summary.json"
ROW_KEYS = (  # what readers of a row rely on; more are allowed. null: not applicable
    "name",
    "threads",
    "ours_s",
    "peer",
    "peer_s",
    "ratio",
    "mfu",
    "ours_rss_mb",
    "peer_rss_mb",
)


class Summary:
    """summary.json, rewritten whole after every change: an interrupted run keeps what it has."""

    def __init__(self, folder, settings: dict, fresh: bool = False):
        """Goes on with what the folder holds if machine, versions and `settings` are the same.

        `fresh` starts over in any case.
        """
        self.path = pathlib.Path(folder) / SUMMARY
        machine = {**proc.describe(), "versions": proc.versions()}
        old = files.read_json(self.path) if self.path.is_file() and not fresh else {}
        if (old.get("machine"), old.get("settings")) != (machine, settings):
            old = {}
        new = {"machine": machine, "settings": settings, "limit_gflops": 0, "rows": []}
        self.data = {
            **new,
            "limits": {},
            "growth": [],
            "loop": [],
            "startup": [],
            "failed": {},
            **old,
        }

    def save(self) -> None:
        files.write_json(self.path, self.data)

    def has_limit(self, threads: int) -> bool:
        return str(threads) in self.data["limits"]

    def limit(self, threads: int) -> float:
        """GF/s of the fastest f32 matrix product on this many threads."""
        return self.data["limits"][str(threads)]["f32_gflops"]

    def set_limit(self, threads: int, values: dict) -> None:
        self.data["limits"][str(threads)] = values
        self.data["limit_gflops"] = max(v["f32_gflops"] for v in self.data["limits"].values())
        self.save()

    def has(self, section: str, name: str, threads: int | None) -> bool:
        """Whether `section` (rows, growth) has a row of this name and number of threads."""
        rows = self.data[section]
        return any(r["name"] == name and r.get("threads") == threads for r in rows)

    def add(self, section: str, rows: list[dict]) -> None:
        """Appends rows; those of "rows" must have every key of ROW_KEYS."""
        if section == "rows":
            for row in rows:
                missing = [key for key in ROW_KEYS if key not in row]
                if missing:
                    raise ValueError(f"row {row.get('name')}: no {', '.join(missing)}")
        self.data[section] += rows
        self.save()

    def fail(self, what: str, reason: str) -> None:
        """Notes why something is missing."""
        self.data["failed"][what] = reason
        self.save()
