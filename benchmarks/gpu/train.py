"""Part "train": the comparison at 1 mm with equal device seconds, by the product's own commands.

    python -m benchmarks.gpu.train --work DIR --seconds S [--rehearse] [--labels DIR | --heads DIR]

People are simulated by all cores, the autoencoder is trained and its latents are made. Then all
trainings are started at once and compile side by side; one that has taken its first steps is stopped
(SIGSTOP) until it has the device for itself. What comes back are the exported models, to be scored by the
product's own evaluation where there is time for it, and curves of the validation people.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks.gpu import part, sizes
from cldm_jax.runtime import writers

CURVES = ("method", "target", "step", "device_s", "psnr_val")
SIMULATING = 0.4  # of the time, at most
AROUND = 25.0  # seconds that an export and what follows need
POLL = 0.1  # seconds


def command(config: str, preset: str, workdir, *flags: str) -> list[str]:
    """Of the product."""
    found = [sys.executable, "-m", "cldm_jax.main", f"--config=configs/{config}.py:{preset}"]
    return [*found, f"--workdir={workdir}", "--config.kernels=xla", *flags]


def simulate(args, school: sizes.Schooling, seconds: float) -> tuple[pathlib.Path, dict]:
    """(folder, facts) of the people, simulated here or by another process (`--heads`). Raises
    RuntimeError where they fail or are late.
    """
    folder = (args.heads or args.work / "heads").absolute()
    if args.heads is None:
        workers = len(os.sched_getaffinity(0))
        asked = [sys.executable, "-m", "benchmarks.gpu.heads", str(folder), school.preset]
        asked += [str(school.people), f"{seconds / 2:.0f}", str(workers)]
        asked += [str(args.labels)] if args.labels is not None else []
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(asked, cwd=part.ROOT, env=env)
    facts, end = folder / "facts.json", time.monotonic() + seconds
    while not facts.is_file():
        if time.monotonic() > end or (args.heads is None and process.poll()):
            raise RuntimeError(f"{facts} is not there, see the log")
        time.sleep(POLL)
    return folder / "prepared", json.loads(facts.read_text())


class Training:
    """A training of the product as a process: compiling, ready (stopped), running, done or failed."""

    def __init__(self, name: str, workdir: pathlib.Path, asked: list[str]):
        self.name, self.workdir = name, workdir
        self.began, self.compile_s, self.device_s = time.monotonic(), None, 0.0
        self._log = workdir.parent / f"{name}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                asked, cwd=part.ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        self.state = "compiling"

    def look(self) -> None:
        """Stops it after its first steps; notes its end."""
        metrics = self.workdir / "metrics.jsonl"
        if self.state == "compiling" and metrics.is_file() and metrics.stat().st_size:
            self.compile_s = time.monotonic() - self.began
            self.process.send_signal(signal.SIGSTOP)
            self.state = "ready"
        elif self.process.poll() is not None:
            if self.state == "running":
                self.device_s = time.monotonic() - self._since
            self.state = "done" if self.process.returncode == 0 else "failed"

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.state, self._since = "running", time.monotonic()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def facts(self) -> dict:
        found = {
            "state": self.state,
            "device_s": self.device_s,
            "until_first_steps_s": self.compile_s,
        }
        if self.state != "done":
            found["last words"] = self._log.read_text(errors="replace").strip()[-300:]
        return found


class School:
    """The trainings and what is known of them."""

    def __init__(self, own: part.Part, args, school: sizes.Schooling):
        self.own, self.args, self.school = own, args, school
        self.preset, self.prepared, self.ae = school.preset, None, args.work / "ae"
        self.curves: list[tuple] = []

    def run(self) -> None:
        own = self.own
        limit = SIMULATING * own.left()
        self.prepared, facts = simulate(self.args, self.school, limit)
        own.put("heads", facts)
        own.attempt("autoencoder", self.autoencoder)
        trainings = [self.begin(name) for name in self.school.trainings]
        try:
            self.in_turns(trainings)
        finally:
            for training in trainings:
                training.close()

    def autoencoder(self) -> dict:
        """Trained, and the latents of the training people."""
        flags = self.flags("ae")
        self.call(command("ae", self.preset, self.ae, *flags))
        trained = self.own.elapsed()
        flags = (
            f"--config.autoencoder.workdir={self.ae}",
            f"--config.data.prepared={self.prepared}",
        )
        self.call(command("ldm", self.preset, "unused", "--config.job=encode", *flags))
        return {"trained_at_s": trained, "encoded_at_s": self.own.elapsed()}

    def call(self, asked: list[str]) -> None:
        """Raises CalledProcessError, TimeoutExpired."""
        subprocess.run(asked, cwd=part.ROOT, check=True, timeout=max(1.0, self.own.left()))

    def flags(self, name: str) -> list[str]:
        """Settings of a training: the school's, and as few programs as can be."""
        lesson = self.school.trainings.get(name, self.school.autoencoder)
        steps = {"num_train_steps": lesson.steps, "save_every": lesson.steps}
        steps |= {"log_every": max(1, lesson.steps // 20), "calibrate_samples": 0}
        steps["val_every"] = max(1, lesson.steps // 4)
        settings = {f"train.{k}": v for k, v in steps.items()} | lesson.settings
        settings["data.prepared"] = self.prepared
        return [f"--config.{key}={value}" for key, value in settings.items()]

    def begin(self, name: str) -> Training:
        lesson, workdir = self.school.trainings[name], self.args.work / name
        flags = [f"--config.name={name}", *self.flags(name)]
        if lesson.config == "ldm":
            flags.append(f"--config.autoencoder.workdir={self.ae}")
        return Training(name, workdir, command(lesson.config, self.preset, workdir, *flags))

    def in_turns(self, trainings: list[Training]) -> None:
        """Lets one at a time go on, the first ones first, and hands each over when it is done."""
        open_ = list(trainings)
        while open_ and self.own.left() > 0:
            for training in list(open_):
                before = training.state
                training.look()
                if training.state in ("done", "failed"):
                    open_.remove(training)
                if training.state == "failed":
                    self.own.failed.append(training.name)
                if training.state != before:
                    self.own.put(f"trainings/{training.name}", training.facts())
                    print(f"train: {training.name} {training.state}", flush=True)
                    if training.state == "done":
                        self.own.attempt(
                            f"models/{training.name}", lambda t=training: self.hand_over(t)
                        )
            ready = [t for t in open_ if t.state == "ready"]
            if ready and not any(t.state == "running" for t in open_):
                ready[0].go_on()
            time.sleep(POLL)
        for training in open_:
            self.own.failed.append(training.name)
            self.own.put(f"trainings/{training.name}", training.facts())

    def hand_over(self, training: Training) -> dict:
        """The exported model in float16, its card, and the curve of its validations."""
        folder, out = self.args.work / f"{training.name}-model", self.own.out
        asked = command("export", self.preset, folder, f"--config.run={training.workdir}")
        asked = [word for word in asked if "kernels" not in word] + ["--config.dtype=float16"]
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        subprocess.run(asked, cwd=part.ROOT, env=env, check=True, timeout=AROUND)
        archive = out / f"{training.name}.tgz"
        subprocess.run(["tar", "czf", archive, "-C", folder.parent, folder.name], check=True)
        self.curves += curve(training)
        lines = [",".join(map(str, row)) for row in (CURVES, *self.curves)]
        (out / "curves.csv").write_text("\n".join(lines) + "\n")
        return {"bytes": archive.stat().st_size}


def curve(training: Training) -> list[tuple]:
    """(method, target, step, device seconds, PSNR on validation people) of a training's validations."""
    rows = list(writers.read_rows(training.workdir))
    last = max(row["step"] for row in rows)
    found = []
    for row in rows:
        for key, value in row.items():
            if key.startswith("val/psnr_") and value is not None:
                seconds = round(training.device_s * row["step"] / last, 2)
                found.append(
                    (training.name, key.removeprefix("val/psnr_"), row["step"], seconds, value)
                )
    return found


def main(argv=None) -> int:
    args = part.arguments(argv)
    args.work = args.work.absolute()
    own = part.Part(args.work, args.seconds)
    School(own, args, sizes.schooling(args.rehearse)).run()
    return own.status()


if __name__ == "__main__":
    sys.exit(main())
