"""Runs the benchmark: python -m benchmarks.run (launch/benchmark.sh installs what it needs first)."""

import argparse
import os
import pathlib
import subprocess
import sys

from benchmarks import data, growth, loop, proc, startup, tables, volume
from benchmarks.limit import SIZES, measure_limit
from benchmarks.race import Settings, WorkerError, make_rows, race
from benchmarks.report import Summary
from benchmarks.tasks import QUICK, RACES, SECTIONS

EXPECTED = (WorkerError, RuntimeError, OSError, subprocess.CalledProcessError)  # noted, not fatal


def parse(argv) -> argparse.Namespace:
    """Flags with the defaults of --quick filled in; exits with status 2 for a name nobody knows."""
    known = (*RACES, *SECTIONS)
    parser = argparse.ArgumentParser(prog="launch/benchmark.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and samples: minutes")
    parser.add_argument("--only", default="", help=f"some of: {','.join(known)}")
    parser.add_argument("--threads", default="1,2", help="thread counts (default 1,2)")
    parser.add_argument("--out", default="runs/benchmark", type=pathlib.Path)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--compile", action="store_true", help="race torch.compile as well")
    parser.add_argument("--rounds", type=int, default=0, help="turns a side (default 5, quick 2)")
    parser.add_argument("--volume-minutes", type=float, default=0, help="default 10, quick 1")
    args = parser.parse_args(argv)
    args.names = [n for n in args.only.split(",") if n] or list(QUICK if args.quick else known)
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; known: {', '.join(known)}")
    processors = len(os.sched_getaffinity(0))
    try:
        args.threads = [int(n) for n in args.threads.split(",")]
    except ValueError:
        parser.error(f"--threads {args.threads!r}: numbers separated by commas")
    if not all(1 <= n <= processors for n in args.threads):
        parser.error(f"--threads: there are 1 to {processors} processors to run on")
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.volume_minutes = args.volume_minutes or (1.0 if args.quick else 10.0)
    return args


class Benchmark:
    """One run: what was asked for, and the summary it goes into."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.settings = Settings(rounds=args.rounds, wall=1.0, tries=4, compiled=args.compile)
        kept = ("quick", "compile", "rounds", "volume_minutes")
        settings = {name: getattr(args, name) for name in kept}
        self.summary = Summary(args.out, settings, fresh=args.fresh)

    def attempt(self, what: str, section: str, make) -> None:
        """Adds the rows that make() returns, or notes why there are none."""
        print(f"benchmark: {what}", flush=True)
        try:
            rows = make()
        except EXPECTED as error:
            reason = str(error).splitlines()[0]
            self.summary.fail(what, reason)
            print(f"benchmark: {what} failed: {reason}", file=sys.stderr)
            return
        self.summary.data["failed"].pop(what, None)
        self.summary.add(section, rows)
        for row in rows if section == "rows" else ():
            print(f"benchmark: {tables.row_line(row)}", flush=True)

    def need_limit(self, threads: int) -> None:
        if not self.summary.has_limit(threads):
            sizes = SIZES[:2] if self.args.quick else SIZES
            settings = self.settings._replace(rounds=2, wall=0.5)
            self.summary.set_limit(threads, measure_limit(threads, settings, sizes))

    def race(self, name: str, threads: int) -> None:
        def make():
            results = race(RACES[name], threads, self.settings)
            return make_rows(name, threads, *results, self.summary.limit(threads))

        if not self.summary.has("rows", name, threads):
            self.need_limit(threads)
            self.attempt(f"{name}, {threads} threads", "rows", make)

    def data(self, threads: int) -> None:
        def make():
            folder = self.args.out / "data"
            return data.data_rows(self.summary, folder, threads, self.settings)

        if not self.summary.has("rows", "data_images", threads):
            self.attempt(f"data, {threads} threads", "rows", make)

    def volume(self, threads: int) -> None:
        folder, quick = self.args.out / "volume", self.args.quick

        def make():
            volume.ensure_trained(folder, self.args.volume_minutes, people=16 if quick else 40)
            return volume.volume_rows(self.summary, folder, threads, self.settings, quick)

        if quick and threads != max(self.args.threads):
            return  # minutes that --quick does not have
        if not self.summary.has("rows", "volume_150", threads):
            self.need_limit(threads)
            self.attempt(f"volume_150, {threads} threads", "rows", make)

    def growth(self, threads: int) -> None:
        settings = self.settings._replace(rounds=min(3, self.settings.rounds), wall=0.5)
        for name in growth.QUICK_SERIES if self.args.quick else growth.SERIES:
            if not self.summary.has("growth", name, threads):

                def make(name=name):
                    return [growth.judge(growth.growth_row(name, threads, settings))]

                self.attempt(f"growth of {name}, {threads} threads", "growth", make)

    def loop(self, threads: int) -> None:
        def make():
            rounds = min(3, self.settings.rounds)
            return loop.loop_rows(self.args.out / "loop", threads, rounds)

        if not self.summary.has("loop", "training loop", threads):
            self.attempt(f"training loop, {threads} threads", "loop", make)

    def cohort_growth(self) -> None:
        def make():
            cohorts = data.COHORTS[:2] if self.args.quick else data.COHORTS
            rows = data.cohort_growth(self.args.out / "data", self.settings, cohorts)
            return [growth.judge(row) for row in rows]

        if not self.summary.has("growth", "reader open", 1):
            self.attempt("growth of the reader", "growth", make)

    def startup(self) -> None:
        def make():
            return startup.startup_rows(self.args.out / "startup")

        if not self.summary.data["startup"]:
            self.attempt("startup", "startup", make)

    def run(self) -> None:
        sections = {
            "data": self.data,
            "volume_150": self.volume,
            "growth": self.growth,
            "loop": self.loop,
        }
        for threads in self.args.threads:
            for name in self.args.names:
                if name in RACES:
                    self.race(name, threads)
                elif name in sections:
                    sections[name](threads)
        if "growth" in self.args.names:
            self.cohort_growth()
        if "startup" in self.args.names:
            self.startup()


def main(argv=None) -> int:
    args = parse(argv)
    check = [sys.executable, "-m", "benchmarks.check"]
    if subprocess.run(check, cwd=proc.ROOT).returncode:
        print("error: the two sides are not the same networks: nothing was timed", file=sys.stderr)
        return 1
    benchmark = Benchmark(args)
    benchmark.run()
    print("\n" + tables.write_table(args.out, benchmark.summary.data))
    tables.write_plot(args.out, benchmark.summary.data)
    print(f"Written: {args.out}/summary.json, {tables.TABLE}, {tables.PLOT}")
    return 1 if benchmark.summary.data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
