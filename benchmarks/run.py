"""Runs the benchmark: python -m benchmarks.run (launch/benchmark.sh installs what it needs first)."""

import argparse
import os
import pathlib
import subprocess
import sys

from benchmarks import proc, race, report, volume
from benchmarks.report import Summary
from benchmarks.tasks import QUICK, RACES, VOLUME

EXPECTED = (race.WorkerError, RuntimeError, OSError, subprocess.CalledProcessError)  # noted


def parse(argv) -> argparse.Namespace:
    """Flags with the defaults of --quick filled in; exits with status 2 for a name nobody knows."""
    known = (*RACES, VOLUME)
    parser = argparse.ArgumentParser(prog="launch/benchmark.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and samples: minutes")
    parser.add_argument("--only", default="", help=f"some of: {','.join(known)}")
    parser.add_argument("--threads", default="1,2", help="thread counts (default 1,2)")
    parser.add_argument("--out", default="runs/benchmark", type=pathlib.Path)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
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
        self.args, self.out = args, args.out
        self.settings = race.Settings(args.rounds, wall=1.0, tries=4)
        self.brief = self.settings._replace(rounds=2, wall=0.5)  # for the machine's limit
        kept = ("quick", "rounds", "volume_minutes")
        settings = {name: getattr(args, name) for name in kept}
        self.summary = Summary(args.out, settings, fresh=args.fresh)

    def attempt(self, first: str, threads: int, make, *args) -> None:
        """Adds the rows of make(*args), or notes why there are none; not where `first` is there."""
        if self.summary.has(first, threads):
            return
        what = f"{first}, {threads} threads"
        print(f"benchmark: {what}", flush=True)
        try:
            rows = make(*args)
        except EXPECTED as error:
            reason = str(error).splitlines()[0]
            self.summary.fail(what, reason)
            print(f"benchmark: {what} failed: {reason}", file=sys.stderr)
            return
        self.summary.data["failed"].pop(what, None)
        self.summary.add(rows)
        for row in rows:
            print(f"benchmark: {report.row_line(row)}", flush=True)

    def limit(self, threads: int) -> float:
        if not self.summary.has_limit(threads):
            sizes = race.GEMM_SIZES[:2] if self.args.quick else race.GEMM_SIZES
            self.summary.set_limit(threads, race.measure_limit(threads, self.brief, sizes))
        return self.summary.limit(threads)

    def race(self, name: str, threads: int) -> list[dict]:
        limit, found = self.limit(threads), race.race(RACES[name], threads, self.settings)
        return race.race_rows(name, threads, *found, limit)

    def volume(self, threads: int) -> list[dict]:
        folder, quick = self.out / "volume", self.args.quick
        self.limit(threads)
        volume.ensure_trained(folder, self.args.volume_minutes, people=16 if quick else 40)
        return volume.volume_rows(self.summary, folder, threads, self.settings, quick)

    def run_threads(self, threads: int) -> None:
        quick, asked = self.args.quick, self.args.names
        for name in filter(asked.__contains__, RACES):
            self.attempt(name, threads, self.race, name, threads)
        # --quick has no minutes for the volume on every number of threads
        if VOLUME in asked and not (quick and threads != max(self.args.threads)):
            self.attempt(VOLUME, threads, self.volume, threads)

    def run(self) -> None:
        for threads in self.args.threads:
            self.run_threads(threads)


def main(argv=None) -> int:
    args = parse(argv)
    check = [sys.executable, "-m", "benchmarks.check"]
    if subprocess.run(check, cwd=proc.ROOT).returncode:
        print("error: the two sides are not the same networks: nothing was timed", file=sys.stderr)
        return 1
    benchmark = Benchmark(args)
    benchmark.run()
    print("\n" + report.write(args.out, benchmark.summary.data))
    print(f"Written: {args.out}/{report.SUMMARY}, {report.TABLE}, {report.PLOT}")
    return 1 if benchmark.summary.data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
