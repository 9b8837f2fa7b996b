"""Part "race": the product's own steps against PyTorch and MONAI on the same device, in turns.

    python -m benchmarks.gpu.race --work DIR --seconds S [--rehearse]

Both sides: bfloat16 with float32 parameters, inputs on the device. Theirs: channels_last, fused AdamW,
eager and as CUDA graphs. Ours does more in a training step: gradient clipping, the average of the
weights, the guard. Without PyTorch and MONAI ours is measured alone.
"""

import importlib.util
import os
import sys
import time

from benchmarks.gpu import lines, part, rows, sizes

CORES = len(os.sched_getaffinity(0))
FIRST_ROWS = 3  # compiled as whole CUDA graphs too
GROUP = max(FIRST_ROWS, CORES // 3)  # rows compiled together: each keeps a core busy, or several
COMPILING = 0.5  # of the time that is left, at most, for a group
TURN = 90.0  # seconds in which a worker must answer, beside those it measures
FIRST = 20.0  # of a row, at least, to begin it
TRACE = 15.0
COMPILE_VARIANT = 100.0
GRAPHS = "graphs"
# Convolutions too in the CUDA graphs that XLA makes of a program: they cut them, without.
WHOLE = "--xla_gpu_enable_command_buffer=+CONVOLUTION"
# Dense bfloat16 peak by the vendor's data sheets, TFLOP/s, by a part of the device's name.
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "A6000": 154.8, "L40S": 362.0, "4090": 165.2}


def peak_of(device: str) -> float | None:
    return next((value for name, value in PEAKS.items() if name in device), None)


def has_peer() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "monai"))


class Peers:
    """The PyTorch workers: one that runs eagerly, one for CUDA graphs (a failed capture may break it)."""

    def __init__(self, size: str):
        self.size, self._workers = size, {}

    def get(self, variant: str) -> lines.Worker:
        """Of a variant; started anew where it has died."""
        key = GRAPHS if variant == GRAPHS else "eager"
        if key not in self._workers or not self._workers[key].is_alive:
            self._workers[key] = lines.Worker("benchmarks.gpu.race_torch", self.size)
        return self._workers[key]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


class Race:
    def __init__(self, own: part.Part, chosen: sizes.Sizes, graphs: bool):
        self.own, self.sizes, self.graphs = own, chosen, graphs
        self.rows = rows.rows(chosen)
        self.facts: dict[str, dict] = {}
        self.gemm, self.peak = None, None
        self.ours, self.whole = self.start(), self.start(WHOLE)
        self.peers = Peers(chosen.name) if has_peer() else None

    def start(self, *flags: str) -> lines.Worker:
        env = {"XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()}
        work = str(self.own.work)
        return lines.Worker("benchmarks.gpu.race_jax", self.sizes.name, work, env=env)

    def run(self) -> None:
        try:
            self.meet()
            for i in range(0, len(self.rows), GROUP):
                group = self.rows[i : i + GROUP]
                if self.own.left() < FIRST:
                    break
                self.compile(group)
                for row in group:
                    if row.name in self.facts:
                        self.row(row)
                if i == 0:
                    self.compare()
                    self.in_whole(group)
                    self.trace(next(row.name for row in group if row.peer == "-"))
            self.trace(self.slowest())
            self.compiled()
        finally:
            self.ours.close()
            self.whole.close()
            if self.peers is not None:
                self.peers.close()

    def limit(self, seconds: float = 0.0) -> float:
        """Seconds a worker is given to answer."""
        return min(TURN + seconds, self.own.left())

    def meet(self) -> None:
        """Who races, whether both sides are the same networks, and what the device can do at most."""
        own = self.own
        hello = self.ours.ask("hello", self.limit())
        own.put("device", hello)
        if hello["backend"] != "gpu" and self.graphs:
            raise RuntimeError(f"JAX found no GPU: it would use {hello['backend']}")
        self.peak = peak_of(" ".join(hello["devices"]))
        own.put("datasheet_bf16_tflops", self.peak)
        if self.peers is None:
            own.put("peer", "PyTorch or MONAI is not installed: ours alone")
        else:  # it starts while ours compiles
            self.peers.get("eager").tell("weights", folder=str(own.work))

    def ceilings(self) -> None:
        found = [self.own.attempt("ceilings/ours", lambda: self.ours.ask("ceilings", self.limit()))]
        if self.peers is not None:
            ask = lambda: self.peers.get("eager").ask("ceilings", self.limit())  # noqa: E731
            found.append(self.own.attempt("ceilings/peer", ask))
        self.gemm = max((one["bfloat16_tflops"] for one in found if one), default=None)

    def compare(self) -> None:
        """Equal weights and outputs; else there is no race."""
        if self.peers is None:
            return
        own, folder = self.own, str(self.own.work)
        ours = own.attempt(
            "same networks", lambda: self.ours.ask("check", own.left(), folder=folder)
        )
        is_same = ours is not None and all(row["ok"] for row in ours["rows"])
        own.put("same networks/ok", is_same)
        if not is_same:
            own.failed.append("the networks differ")
            self.peers.close()
            self.peers = None

    def compile(self, group: list[rows.Row]) -> None:
        """Programs side by side, for at most COMPILING of the time."""
        own, seconds, began = self.own, COMPILING * self.own.left(), time.monotonic()
        names = [row.name for row in group]
        try:
            if not self.ours.is_alive:  # what it had compiled lies in the cache
                self.ours = self.start()
            limit = seconds + self.limit()
            if not self.facts:  # beside ours: they compile when the device has nothing to do
                self.whole.tell("prepare", names=names[:FIRST_ROWS], seconds=seconds)
            found = self.ours.ask("prepare", limit, names=names, seconds=seconds)
        except lines.WorkerError as error:
            own.failed.append("compilation")
            own.put(f"compilation/{names[0]}", {"failed": str(error)})
            return
        if not self.facts:
            if self.peers is not None:
                theirs = lambda: self.peers.get("eager").answer(self.limit())  # noqa: E731
                own.attempt("peer", theirs)
            self.ceilings()
        self.facts |= found.pop("ready")
        own.put(f"compilation/{names[0]}", {**found, "waited_s": time.monotonic() - began})
        own.failed += [f"compile {name}" for name in found["failed"]]

    def in_whole(self, group: list[rows.Row]) -> None:
        """The first rows as whole CUDA graphs, beside what they took as XLA does it by itself."""
        own = self.own
        ready = own.attempt("whole graphs", lambda: self.whole.answer(self.limit()))
        for row in group if ready is not None else []:
            if row.name in ready["ready"]:
                where = f"rows/{row.name}/ours, whole graphs"
                own.attempt(where, lambda r=row: self.measure(r, self.whole))
        self.whole.close()

    def row(self, row: rows.Row) -> None:
        """Ours, theirs, ours again: the difference of the two is the noise."""
        own, where = self.own, f"rows/{row.name}"
        if own.left() < FIRST:
            own.put(where, {"skipped": f"{own.left():.0f} s left"})
            return
        ours = own.attempt(f"{where}/ours", lambda: self.measure(row))
        own.put(f"{where}/facts", self.facts[row.name])
        if ours is None:
            return
        for variant in self.variants(row):
            own.attempt(f"{where}/{variant}", lambda v=variant: self.theirs(row, v))
        again = own.attempt(f"{where}/ours again", lambda: self.measure(row))
        best = min(ours["seconds"], (again or ours)["seconds"])
        own.put(f"{where}/summary", self.summary(row, best, own.result["rows"][row.name]))
        print(f"race: {line(row.name, own.result['rows'][row.name]['summary'])}", flush=True)

    def variants(self, row: rows.Row) -> list[str]:
        """What the peer runs for this row itself."""
        if self.peers is None or row.peer:
            return []
        return ["eager", GRAPHS] if self.graphs else ["eager"]

    def measure(self, row: rows.Row, worker: lines.Worker | None = None) -> dict:
        seconds, worker = self.sizes.sample_s, worker or self.ours
        return worker.ask("time", self.limit(seconds), name=row.name, seconds=seconds)

    def theirs(self, row: rows.Row, variant: str) -> dict:
        """Raises WorkerError where it is another network by its number of parameters."""
        seconds, worker = self.sizes.sample_s, self.peers.get(variant)
        asked = {"name": row.name, "variant": variant, "seconds": seconds}
        found = worker.ask("time", self.limit(seconds), **asked)
        if found["params"] != self.facts[row.name]["params"]:
            counts = f"{self.facts[row.name]['params']} and {found['params']}"
            raise lines.WorkerError(f"{row.name}: {counts} parameters on the two sides")
        return found

    def summary(self, row: rows.Row, seconds: float, found: dict) -> dict:
        facts = self.facts[row.name]
        rate = row.calls * facts["flops"] / seconds / 1e12
        out = {
            "ms": 1e3 * seconds,
            "tflops": rate,
            "mfu_of_gemm": rate / self.gemm if self.gemm else None,
            "mfu_of_datasheet": rate / self.peak if self.peak else None,
            "gb_s": row.calls * facts["bytes"] / seconds / 1e9,
        }
        other = self.own.result["rows"].get(row.peer, {}) if row.peer else found
        for variant in ("eager", GRAPHS):
            if "seconds" in (theirs := other.get(variant, {})):
                out[f"{variant}_ms"] = 1e3 * theirs["seconds"]
                out[f"{variant}_over_ours"] = theirs["seconds"] / seconds
        return out

    def slowest(self) -> str | None:
        """The row furthest behind: by the peer's best time where there is one, else by its MFU."""
        done = {
            name: entry["summary"]
            for name, entry in self.own.result.get("rows", {}).items()
            if "summary" in entry
        }
        if not done:
            return None

        def lead(summary: dict):
            ratios = [v for k, v in summary.items() if k.endswith("_over_ours")]
            return (min(ratios), summary["tflops"]) if ratios else (float("inf"), summary["tflops"])

        return min(done, key=lambda name: lead(done[name]))

    def trace(self, name: str | None) -> None:
        if name is None or name in self.own.result.get("trace", {}):
            return
        found = self.own.attempt(
            f"trace/{name}", lambda: self.ours.ask("trace", self.limit(), name=name), TRACE
        )
        took = self.own.result["rows"].get(name, {}).get("summary")
        if found and took:  # under the profiler itself XLA hands over each operation by itself
            idle = 1 - 1e3 * found["busy_s_a_call"] / took["ms"]
            self.own.put(f"trace/{name}/idle_share unprofiled", idle)

    def compiled(self) -> None:
        """torch.compile of the first row, where its minute is there."""
        if self.peers is None or not self.graphs:
            return
        row = self.rows[0]
        self.own.attempt(
            f"rows/{row.name}/compile", lambda: self.theirs(row, "compile"), COMPILE_VARIANT
        )


def line(name: str, summary: dict) -> str:
    """One row of the table that is printed."""
    text = f"{name:28s} {summary['ms']:9.2f} ms {summary['tflops']:7.2f} TF/s"
    if summary["mfu_of_gemm"] is not None:
        text += f"  MFU {summary['mfu_of_gemm']:.0%} of the product"
    if summary["mfu_of_datasheet"] is not None:
        text += f", {summary['mfu_of_datasheet']:.0%} of the data sheet"
    text += f"  {summary['gb_s']:.0f} GB/s"
    for variant in ("eager", GRAPHS):
        if f"{variant}_over_ours" in summary:
            text += f"  {variant} / ours {summary[f'{variant}_over_ours']:.2f}"
    return text


def main(argv=None) -> int:
    args = part.arguments(argv)
    own = part.Part(args.work, args.seconds)
    Race(own, sizes.choose(args.rehearse), graphs=not args.rehearse).run()
    return own.status()


if __name__ == "__main__":
    sys.exit(main())
