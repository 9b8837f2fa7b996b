"""The summary as Markdown and as one plot."""

import pathlib

from cldm_jax import files

TABLE, PLOT = "benchmark.md", "benchmark.png"
COLOURS = {"torch_f32": "tab:blue", "torch_bf16": "tab:orange"}


def number(value, digits: int = 2) -> str:
    """Fixed digits, three significant ones below 0.1, "-" for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.{digits}f}"


def milliseconds(seconds) -> str:
    return "-" if seconds is None else number(seconds * 1e3, 1)


def verdict(row: dict) -> str:
    """How the row stands to its bound."""
    if row["met"] is None:
        return "reported"
    return f"{'met' if row['met'] else 'not met'} ({number(row['bound'])})"


def row_line(row: dict) -> str:
    """A row on one line, as it is measured."""
    low, high = map(number, row["ratio_range"])
    return (
        f"{row['name']}, {row['threads']} threads: ours {milliseconds(row['ours_s'])} ms, "
        f"{row['peer']} {milliseconds(row['peer_s'])} ms, ratio {number(row['ratio'])} "
        f"[{low}, {high}] {verdict(row)}"
    )


def table(heads: str, rows: list[tuple]) -> str:
    """Markdown; heads separated by '|'."""
    columns = heads.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def race_table(rows: list[dict]) -> str:
    return table(
        "row|threads|peer|ours, ms|peer, ms|ours / peer|range|bound|MFU|cores|peak RSS, MB",
        [
            (
                row["name"],
                f"{row['threads']} ({row['compared']})",
                " ".join([row["peer"], row["peer_variant"]]).strip(),
                milliseconds(row["ours_s"]),
                milliseconds(row["peer_s"]),
                f"**{number(row['ratio'])}**",
                " to ".join(map(number, row["ratio_range"])),
                verdict(row),
                number(row["mfu"]),
                f"{number(row['ours_cores'])} / {number(row['peer_cores'])}",
                f"{number(row['ours_rss_mb'], 0)} / {number(row['peer_rss_mb'], 0)}",
            )
            for row in rows
        ],
    )


def volume_lines(rows: list[dict]) -> list[str]:
    """What a row of the volume says beyond the table."""
    lines = []
    for row in rows:
        if "ours_psnr" not in row:
            continue
        line = (
            f"{row['name']}, {row['threads']} threads, {row['peer']}: one step "
            f"{1 / row['ratio']:.0f} times faster; PSNR {row['ours_psnr']:.2f} dB against "
            f"{row['peer_psnr']:.2f} dB"
        )
        if "ours_ddim50_s" in row:
            line += (
                f"; our own DDIM-50: {row['ours_ddim50_s']:.1f} s, {row['ours_ddim50_psnr']:.2f} dB"
            )
        if row["peer_scaled_from_slices"]:
            line += f"; the peer's time is scaled from {row['peer_scaled_from_slices']} slices"
        lines.append(line)
    return lines


def growth_table(rows: list[dict]) -> str:
    return table(
        "cost of|threads|against|sizes|ms|exponent|upper half|of its arithmetic|no faster",
        [
            (
                row["name"],
                row["threads"],
                row["against"],
                ", ".join(map(str, row["sizes"])),
                ", ".join(map(milliseconds, row["seconds"])),
                number(row["exponent"]),
                number(row["exponent_upper"]),
                number(row["flops_exponent_upper"]),
                "yes" if row["met"] else "NO",
            )
            for row in rows
        ],
    )


def loop_table(rows: list[dict]) -> str:
    return table(
        "training|threads|a step of the loop, ms|bare step, ms|loop / bare|range|bound",
        [
            (
                row["name"],
                row["threads"],
                milliseconds(row["loop_s"]),
                milliseconds(row["bare_s"]),
                f"**{number(row['ratio'])}**",
                " to ".join(map(number, row["ratio_range"])),
                verdict(row),
            )
            for row in rows
        ],
    )


def startup_table(rows: list[dict]) -> str:
    return table(
        "start-up|wall, s|CPU, s|best wall, s",
        [(r["name"], number(r["wall_s"]), number(r["cpu_s"]), number(r["best_s"])) for r in rows],
    )


def markdown(data: dict) -> str:
    """Every section that has something in it."""
    limits = [
        f"Limit on {threads} threads: {v['f32_gflops']:.0f} GF/s f32, "
        + (f"{v['bf16_gflops']:.0f} GF/s bf16" if v["bf16_gflops"] else "no bf16 in this processor")
        for threads, v in data["limits"].items()
    ]
    parts = ["\n".join([f"Machine: {data['machine']['cpu']}", *limits])]
    if data["rows"]:
        parts.append(race_table(data["rows"]))
        parts.append(
            "One thread: CPU time per call; two: wall time. Ratio: median over rounds. MFU: operations "
            "of the direct convolution over time and limit; Winograd can pass 1."
        )
        parts += volume_lines(data["rows"])
    if data["growth"]:
        parts.append(growth_table(data["growth"]))
    if data["loop"]:
        parts.append(loop_table(data["loop"]))
    if data["startup"]:
        parts.append(startup_table(data["startup"]))
    parts += [f"Failed: {what}: {reason}" for what, reason in data["failed"].items()]
    return "\n\n".join(parts) + "\n"


def write_table(folder, data: dict) -> str:
    """Writes the Markdown beside the summary and returns it."""
    text = markdown(data)
    files.write_text(pathlib.Path(folder) / TABLE, text)
    return text


def write_plot(folder, data: dict) -> None:
    """Ratios to PyTorch, their ranges and bounds on a logarithmic axis; below 1 we are faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in data["rows"][::-1] if row["peer"] in COLOURS]
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
