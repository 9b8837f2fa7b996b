"""summary.json: what was measured, kept after every row; and as Markdown and one plot."""

import pathlib

from benchmarks import proc
from cldm_jax import files

SUMMARY, TABLE, PLOT = "summary.json", "benchmark.md", "benchmark.png"
COLOURS = {"torch_f32": "tab:blue", "torch_bf16": "tab:orange"}
MEANING = (
    "One thread: CPU time per call; two: wall time. Ratio: median over rounds. MFU: operations "
    "of the direct convolution over time and limit; Winograd can pass 1."
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
        new = {"machine": machine, "settings": settings, "limit_gflops": 0, "limits": {}}
        self.data = {**new, "rows": [], "failed": {}, **old}

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

    def has(self, name: str, threads: int) -> bool:
        """Whether there is a row of this name and number of threads."""
        return any((r["name"], r["threads"]) == (name, threads) for r in self.data["rows"])

    def add(self, rows: list[dict]) -> None:
        self.data["rows"] += rows
        self.save()

    def fail(self, what: str, reason: str) -> None:
        """Notes why something is missing."""
        self.data["failed"][what] = reason
        self.save()


def number(value, digits: int = 2) -> str:
    """Fixed digits, three significant ones below 0.1."""
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.{digits}f}"


def milliseconds(seconds) -> str:
    return number(seconds * 1e3, 1)


def verdict(row: dict) -> str:
    """How the row stands to its bound."""
    if row["met"] is None:
        return "reported"
    return f"{'met' if row['met'] else 'not met'} ({number(row['bound'])})"


def ratio_range(row: dict) -> str:
    return " to ".join(map(number, row["ratio_range"]))


def row_line(row: dict) -> str:
    """A row on one line, as it is measured."""
    return (
        f"{row['name']}, {row['threads']} threads: ours {milliseconds(row['ours_s'])} ms, "
        f"{row['peer']} {milliseconds(row['peer_s'])} ms, ratio {number(row['ratio'])} "
        f"[{ratio_range(row)}] {verdict(row)}"
    )


# Head of a column: what a row has there.
COLUMNS = {
    "row": lambda r: r["name"],
    "threads": lambda r: f"{r['threads']} ({r['compared']})",
    "peer": lambda r: f"{r['peer']} {r['peer_variant']}",
    "ours, ms": lambda r: milliseconds(r["ours_s"]),
    "peer, ms": lambda r: milliseconds(r["peer_s"]),
    "ours / peer": lambda r: f"**{number(r['ratio'])}**",
    "range": ratio_range,
    "bound": verdict,
    "MFU": lambda r: number(r["mfu"]),
    "cores": lambda r: f"{number(r['ours_cores'])} / {number(r['peer_cores'])}",
    "peak RSS, MB": lambda r: f"{number(r['ours_rss_mb'], 0)} / {number(r['peer_rss_mb'], 0)}",
}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[make(row) for make in COLUMNS.values()] for row in rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def volume_line(row: dict) -> str:
    """What a row of the volume says beyond the table."""
    line = (
        f"{row['name']}, {row['threads']} threads, {row['peer']}: one step "
        f"{1 / row['ratio']:.0f} times faster; PSNR {row['ours_psnr']:.2f} dB against "
        f"{row['peer_psnr']:.2f} dB"
    )
    if "ours_ddim50_s" in row:
        line += f"; our own DDIM-50: {row['ours_ddim50_s']:.1f} s, {row['ours_ddim50_psnr']:.2f} dB"
    if row["peer_scaled_from_slices"]:
        line += f"; the peer's time is scaled from {row['peer_scaled_from_slices']} slices"
    return line


def markdown(data: dict) -> str:
    """The table, and what it does not say."""
    parts = [f"Machine: {data['machine']['cpu']}"]
    for threads, v in data["limits"].items():
        bf16 = f"{v['bf16_gflops']:.0f} GF/s bf16" if v["bf16_gflops"] else "no bf16"
        parts[0] += f"\nLimit on {threads} threads: {v['f32_gflops']:.0f} GF/s f32, {bf16}"
    if data["rows"]:
        parts += [table(data["rows"]), MEANING]
        parts += [volume_line(row) for row in data["rows"] if "ours_psnr" in row]
    parts += [f"Failed: {what}: {reason}" for what, reason in data["failed"].items()]
    return "\n\n".join(parts) + "\n"


def write(folder, data: dict) -> str:
    """Writes table and plot beside the summary and returns the table."""
    text = markdown(data)
    files.write_text(pathlib.Path(folder) / TABLE, text)
    write_plot(folder, data["rows"][::-1])
    return text


def write_plot(folder, rows: list[dict]) -> None:
    """Ratios to PyTorch, their ranges and bounds on a logarithmic axis; below 1 we are faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not rows:
        return
    figure, axes = plt.subplots(figsize=(8, 1 + 0.28 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        colour = COLOURS[row["peer"]]
        axes.plot(row["ratio_range"], [y, y], color=colour, lw=3, alpha=0.4)
        axes.plot(row["ratio"], y, "o", color=colour)
        if row["bound"] is not None:
            axes.plot(row["bound"], y, "|", color="black", ms=14)
    names = [f"{r['name']}, {r['threads']} thr., {r['peer']}" for r in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_xscale("log")
    axes.margins(y=0.05 if len(rows) > 4 else 0.3)
    axes.axvline(1, color="0.6", lw=0.8)
    axes.set_xlabel("time of ours / time of the peer (bar: all rounds; black line: bound)")
    with files.atomic_path(pathlib.Path(folder) / PLOT) as tmp:
        figure.savefig(tmp, dpi=120)
    plt.close(figure)
