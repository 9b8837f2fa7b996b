"""What more devices, more processes and more slices change (launch/scale_check.sh).

Simulated devices and real processes on this machine's CPU, preset tiny of the latent model: every
comparison is with one device in one process. Writes <out>/scale.json and prints it as one table.
"""

import argparse
import concurrent.futures
import csv
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from benchmarks import data, reader
from benchmarks.proc import ROOT
from cldm_jax import console, files
from cldm_jax.runtime.progress import Progress

STEPS = 100
SAVE_EVERY = 50
LOSS_LIMIT = 1e-5  # relative, over STEPS
SHARES = ((2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (1, 4))  # (devices of a process, processes)
# Those that train; what (2, 2) adds is the order of rows, and a probe shows that in seconds. The longest
# first: two run side by side.
TRAINED = ((1, 4), (8, 1), (1, 2), (4, 1), (2, 1))
SAVED = (1, 2, 4)  # devices that save, devices that restore
PROBED = 8  # batches whose order and noise are looked at
LAUNCH_SECONDS = 240
GONE_SECONDS = 60  # that the others may live on when one is killed
COUNTS = (1_000, 10_000, 100_000, 1_000_000)  # slices
JUDGED = {"open_s": 1.0, "open_mb": 200, "source_s": None, "source_mb": None}  # limits of the last
THROUGHPUT, COMPARED = 0.8, 10_000  # at least, of the rate with so many slices
READER_ROUNDS = 3


class Row(NamedTuple):
    """One equality or bound, as scale.json keeps it."""

    check: str
    case: str
    measured: float | None
    limit: float | None
    unit: str
    ok: bool

    def line(self) -> str:
        measured = "-" if self.measured is None else f"{self.measured:.3g}"
        limit = "" if self.limit is None else f"{self.limit:g}"
        verdict = "ok" if self.ok else "FAIL"
        return f"{self.check:24} {self.case:38} {measured:>9} {limit:>8} {self.unit:28} {verdict}"


def bounded(check: str, case: str, measured: float, limit: float | None, unit: str) -> Row:
    ok = limit is None or measured <= limit
    return Row(
        check, case, float(measured), None if limit is None else float(limit), unit, bool(ok)
    )


class Group(NamedTuple):
    """The processes of one run."""

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(module: str, words: list[str], devices: int, processes: int, log: pathlib.Path) -> Group:
    """`python -m module words` in so many processes of so many devices each; what they say goes to
    `log`.0, `log`.1, ...
    """
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag, "CLDM_HUGE_PAGES": "0"}
    address = f"--coordinator=localhost:{free_port()}"
    started, logs = [], [log.with_name(f"{log.name}.{i}") for i in range(processes)]
    for i, path in enumerate(logs):
        joined = [address, f"--processes={processes}", f"--process={i}"] if processes > 1 else []
        command = [sys.executable, "-m", module, *words, *joined]
        with open(path, "w") as f:
            options = dict(cwd=ROOT, env=environment, stdout=f, stderr=subprocess.STDOUT)
            started.append(subprocess.Popen(command, **options))
    return Group(started, logs)


def finish(group: Group, seconds: float = LAUNCH_SECONDS) -> list[int]:
    """Exit statuses; those that do not end in time are killed and have None."""
    end, statuses = time.monotonic() + seconds, []
    for process in group.processes:
        try:
            statuses.append(process.wait(max(0.1, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            statuses.append(None)
    return statuses


def run(module: str, words: list[str], devices: int, processes: int, log: pathlib.Path) -> str:
    """What process 0 said. RuntimeError where one of them failed."""
    group = start(module, words, devices, processes, log)
    statuses = finish(group)
    if any(statuses):
        said = "\n".join(path.read_text()[-2000:] for path in group.logs)
        raise RuntimeError(f"{shlex.join(words)}: exit {statuses}\n{said}")
    return group.logs[0].read_text()


class Study:
    """Data, autoencoder and latents that all runs share, and the run they are compared with."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.alone = self.train("alone", 1, 1)

    def words(self, workdir: pathlib.Path, **train) -> list[str]:
        given = dict(num_train_steps=STEPS, save_every=SAVE_EVERY, val_every=SAVE_EVERY) | train
        return [
            "--config=configs/ldm.py:tiny",
            f"--workdir={workdir}",
            f"--config.data.root={self.folder / 'data'}",
            f"--config.autoencoder.workdir={self.folder / 'ae'}",
            # Every device of every share has a row, and the class code and steps of all are drawn.
            "--config.train.batch_size=8",
            *(f"--config.train.{key}={value}" for key, value in given.items()),
        ]

    def train(self, name: str, devices: int, processes: int, **train) -> pathlib.Path:
        workdir = self.folder / name
        words = self.words(workdir, **train)
        run("cldm_jax.main", words, devices, processes, self.folder / f"{name}.log")
        return workdir

    def shared(self, devices: int, processes: int) -> pathlib.Path:
        """The run on so many devices and processes, trained when it is first asked for."""
        if (devices, processes) == (1, 1):
            return self.alone
        name = f"train-{devices}-{processes}"
        known = (self.folder / name).exists()
        return self.folder / name if known else self.train(name, devices, processes)

    def difference(self, workdir: pathlib.Path) -> float:
        """Largest relative difference of a step's loss to the run on one device."""
        mine, theirs = losses(workdir), losses(self.alone)
        if mine.keys() != theirs.keys() or len(mine) != STEPS:
            raise RuntimeError(f"{workdir}: {len(mine)} steps were logged, not {STEPS}")
        return max(abs(mine[k] - theirs[k]) / abs(theirs[k]) for k in mine)

    def row(self, check: str, case: str, workdir: pathlib.Path) -> Row:
        return bounded(check, case, self.difference(workdir), LOSS_LIMIT, "relative")

    def at_half(self, source: pathlib.Path, name: str) -> pathlib.Path:
        """A copy of a finished run as it was after SAVE_EVERY steps."""
        workdir = self.folder / name
        shutil.copytree(source, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
        (workdir / "checkpoints" / f"sha256-{STEPS}.json").unlink()
        return workdir


def losses(workdir: pathlib.Path) -> dict[int, float]:
    from cldm_jax.runtime import writers

    return {r["step"]: r["train/loss"] for r in writers.read_rows(workdir) if "train/loss" in r}


def side_by_side(call, items) -> list:
    """[call(item) for each item], two at a time: a launch alone leaves the second core half idle."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, items))


def named(devices: int, processes: int) -> str:
    if processes == 1:
        return f"{devices} devices" if devices > 1 else "1 device"
    return f"{processes} processes x {devices}"


# ---- equalities ----


def order_and_noise(study: Study) -> list[Row]:
    """Batches and noise of the first PROBED steps, by hash: rows in the order of the processes."""

    def probe(devices: int, processes: int) -> tuple[list, list]:
        log = study.folder / f"probe-{devices}-{processes}.log"
        run("benchmarks.scale_probe", study.words(study.folder / "probe"), devices, processes, log)
        found = [
            json.loads(log.with_name(f"{log.name}.{i}").read_text().splitlines()[-1])
            for i in range(processes)
        ]
        batches = [sum((part["rows"][k] for part in found), []) for k in range(PROBED)]
        return batches, found[0]["noise"]

    alone, *probed = side_by_side(lambda share: probe(*share), [(1, 1), *SHARES])
    rows = []
    for share, found in zip(SHARES, probed, strict=True):
        for what, a, b in zip(("data order", "noise"), alone, found, strict=True):
            differing = sum(x != y for x, y in zip(a, b, strict=True))
            rows.append(Row(what, named(*share), differing, 0, "of 8 steps differ", not differing))
    return rows


def same_losses(study: Study) -> list[Row]:
    def trained(share: tuple[int, int]) -> Row:
        return study.row(f"loss, {STEPS} steps", named(*share), study.shared(*share))

    return side_by_side(trained, TRAINED)


def restored_elsewhere(study: Study) -> list[Row]:
    """Saved on N devices, gone on with on M."""
    sources = {n: study.shared(n, 1) for n in SAVED}

    def go_on(pair: tuple[int, int]) -> Row:
        n, m = pair
        workdir = study.at_half(sources[n], f"saved-{n}-restored-{m}")
        study.train(workdir.name, m, 1)
        return study.row("restored, loss", f"saved on {n}, restored on {m}", workdir)

    return side_by_side(go_on, [(n, m) for n in SAVED for m in SAVED])


def stop_at(study: Study, workdir: pathlib.Path, processes: int, step: int) -> list[int]:
    """Asks the last process of a run to stop when `step` is logged; their exit statuses."""
    group = begin(study, workdir, processes, step)
    group.processes[-1].send_signal(signal.SIGTERM)
    return finish(group)


def begin(study: Study, workdir: pathlib.Path, processes: int, step: int) -> Group:
    """The run, at `step` or a little later."""
    words, log = study.words(workdir, save_every=10), workdir.with_name(workdir.name + ".stopped")
    group = start("cldm_jax.main", words, 1, processes, log)
    end, path = time.monotonic() + LAUNCH_SECONDS, workdir / "metrics.jsonl"
    while not path.is_file() or max(losses(workdir), default=0) < step:
        if time.monotonic() > end or group.processes[0].poll() is not None:
            finish(group, 1)
            said = group.logs[0].read_text()[-2000:]
            raise RuntimeError(f"{workdir} never came to step {step}: {said}")
        time.sleep(0.02)
    return group


def stopped_together(study: Study) -> list[Row]:
    """SIGTERM to one of two: both save the same step. The run goes on in one process, is stopped again,
    ends in two, and is as if nothing had been.
    """
    workdir = study.folder / "terminated"
    statuses = stop_at(study, workdir, 2, STEPS // 3)
    both = statuses == [128 + signal.SIGTERM] * 2
    stop_at(study, workdir, 1, STEPS * 2 // 3)
    study.train(workdir.name, 1, 2)
    left = Row("SIGTERM to one of 2", "both save and leave", float(not both), 0, "failed", both)
    return [left, study.row("restored, loss", "2 processes, then 1, then 2", workdir)]


def killed_together(study: Study) -> list[Row]:
    """SIGKILL to one of two: the other ends soon and says why; so again with the other one, after the run
    went on from its last save; and it ends as if nothing had been.
    """
    rows, workdir = [], study.folder / "killed"
    for victim, step in ((1, STEPS // 3), (0, STEPS * 2 // 3)):
        group = begin(study, workdir, 2, step)
        group.processes[victim].kill()
        began = time.monotonic()
        statuses = finish(group, GONE_SECONDS)
        seconds = time.monotonic() - began
        said = group.logs[1 - victim].read_text()
        told = "another process of this run is gone" in said or "another task died" in said
        ok = statuses[1 - victim] not in (0, None) and told
        case = f"the other of 2 ends (process {victim} killed)"
        rows.append(Row("SIGKILL to one of 2", case, seconds, GONE_SECONDS, "s", ok))
    study.train(workdir.name, 1, 2)
    return [*rows, study.row("SIGKILL to one of 2", "resumed after both", workdir)]


def same_read_outs(study: Study) -> list[Row]:
    """Latents, scores and volumes of one model, computed by several devices and processes."""
    bids = study.folder / "bids"
    for pet in (study.folder / "data" / "cohort").glob("sub-*/pet.nii.gz"):
        path = bids / pet.parent.name / "pet" / f"{pet.parent.name}_pet.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copy(pet, path)

    def read_out(share: tuple[int, int]):
        name = "{}-{}".format(*share)
        ae = study.folder / f"ae-{name}"
        shutil.copytree(study.folder / "ae", ae, ignore=shutil.ignore_patterns("latents"))
        words = study.words(study.folder / f"encode-{name}", num_train_steps=2)
        words += [f"--config.autoencoder.workdir={ae}"]
        run("cldm_jax.main", words, *share, study.folder / f"encode-{name}.log")
        latents = [np.load(p).astype(np.float64) for p in sorted((ae / "latents").rglob("*.npy"))]
        report = study.folder / f"report-{name}"
        words = ["--config=configs/eval.py:tiny", f"--workdir={report}"]
        words += [f"--config.runs={study.alone}"]
        run("cldm_jax.main", words, *share, study.folder / f"report-{name}.log")
        out = study.folder / f"volumes-{name}"
        words = ["--config=configs/predict.py:tiny", f"--workdir={out}", "--config.mode=sample"]
        words += [f"--config.input={bids}", f"--config.checkpoint={study.alone}"]
        run("cldm_jax.main", words, *share, study.folder / f"volumes-{name}.log")
        return latents, scores(report), volumes(out)

    shares, rows = ((2, 1), (1, 2)), []
    *spread, alone = side_by_side(read_out, (*shares, (1, 1)))
    for share, (latents, scored, written) in zip(shares, spread, strict=True):
        case = named(*share)
        most = max(np.abs(a - b).max() for a, b in zip(latents, alone[0], strict=True))
        rows.append(bounded("latents", case, most, 2e-3, "absolute, stored as float16"))
        psnr = max(abs(scored[k] - alone[1][k]) for k in alone[1])
        rows.append(bounded("PSNR of a test person", case, psnr, 1e-3, "dB"))
        if written.keys() != alone[2].keys():
            raise RuntimeError(f"{case}: {len(written)} of {len(alone[2])} CT volumes were written")
        most = max(np.abs(written[k] - alone[2][k]).max() for k in alone[2])
        rows.append(bounded("CT volumes, sampled", case, most, 1, "HU"))
    return rows


def scores(report: pathlib.Path) -> dict:
    with open(report / "scores.csv", newline="") as f:
        return {
            (r["mode"], r["target"], r["patient"]): float(r["value"])
            for r in csv.DictReader(f)
            if r["metric"] == "psnr" and r["method"] == "ldm"
        }


def volumes(out: pathlib.Path) -> dict:
    from cldm_jax.data import nifti

    return {
        str(p.relative_to(out)): nifti.read_volume(p).array.astype(np.float64)
        for p in sorted(out.rglob("*.nii.gz"))
        if p.name.endswith("_ct.nii.gz")
    }


# ---- a million slices ----


def million(study: Study) -> list[Row]:
    """Start-up, memory and reader throughput against the number of slices (`data.cohort_facts`)."""
    found, rows = data.cohort_facts(study.folder / "slices", COUNTS, READER_ROUNDS), []
    for count, facts in found.items():
        case, is_judged = f"{count:,} slices", count == COUNTS[-1]
        for name, limit in JUDGED.items():
            limit = limit if is_judged else None
            rows.append(bounded(f"index: {name}", case, facts[name], limit, reader.FACTS[name]))
        rows.append(bounded("reader", case, facts["slices_per_s"], None, "slices/s"))
    share = found[COUNTS[-1]]["slices_per_s"] / found[COMPARED]["slices_per_s"]
    ok = share >= THROUGHPUT
    rows.append(Row("reader", f"against {COMPARED:,} slices", share, THROUGHPUT, "at least", ok))
    return rows


# ---- the table ----

CHECKS = (order_and_noise, same_losses, restored_elsewhere, stopped_together, killed_together)
CHECKS += (same_read_outs, million)


def measure(out: pathlib.Path, argv: list[str], only: set[str]) -> int:
    from cldm_jax.runs import record
    from cldm_jax.runtime import device

    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        study = Study(pathlib.Path(folder))
        chosen = [c for c in CHECKS if not only or c.__name__ in only]
        with Progress(len(chosen), "scale check", "check") as progress:
            for check in chosen:
                try:
                    rows += check(study)
                except RuntimeError as error:
                    print(f"{check.__name__}: {error}", file=sys.stderr, flush=True)
                    why = "ended early: see above"
                    rows.append(Row(check.__name__, why, None, None, "", False))
                progress.update(check=check.__name__)
    report = {
        "command": console.command("benchmarks.scale", *argv),
        "git": record.git_revision(),
        "hardware": {**device.describe(), "devices": "simulated, on the CPU cores above"},
        "seconds": round(time.monotonic() - began),
        "rows": [row._asdict() for row in rows],
    }
    files.write_json(out / "scale.json", report)
    print("\n".join(row.line() for row in rows))
    failed = sum(not row.ok for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} in {report['seconds']} s: {out / 'scale.json'}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog=console.command("benchmarks.scale"), description=__doc__)
    out = dict(default="runs/scale", type=pathlib.Path, help="folder of scale.json")
    parser.add_argument("--out", **out)
    parser.add_argument("--only", default="", help=", ".join(c.__name__ for c in CHECKS))
    given = parser.parse_args(argv)
    only = set(filter(None, given.only.split(",")))
    unknown = only - {c.__name__ for c in CHECKS}
    if unknown:
        parser.error(f"--only: no check {', '.join(sorted(unknown))}")
    return measure(given.out, argv, only)


if __name__ == "__main__":
    sys.exit(main())
