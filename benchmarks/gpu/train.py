"""Part "train": the comparison at 1 mm with equal device seconds, on heads simulated on the spot.

    python -m benchmarks.gpu.train --work DIR --seconds S [--rehearse] [--labels DIR]

While the cores simulate, the device measures a step of each method; what is left is divided into equal
device seconds, of which a latent method pays its autoencoder. Trained by `jobs.train`, scored on
test people.
"""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np

from benchmarks.gpu import outputs, part, sizes, steps, trace
from cldm_jax.data import pipeline
from cldm_jax.data.shards import Prepared
from cldm_jax.jobs import evaluate, make
from cldm_jax.runs import inputs as inputs_lib
from cldm_jax.runs.readouts import open_run, predict_rows
from cldm_jax.runtime import device
from cldm_jax.runtime.checkpoint import newest_sound

METHODS = (
    "ldm",
    "unet",
    "unet-cells",
    "latent_regression",
)  # the first ones first, if it gets late
EXTRA = ("attention_unet",)  # where minutes are left
CURVES = ("method", "target", "step", "device_s", "psnr_val")
SCORES = ("method", "read_out", "person", "target", "slices", "psnr_test")
SIMULATING = 0.3  # of the time; the device measures steps meanwhile
ENDING = 0.12  # of the time, for the picture and the report
AE_SHARE = 0.25  # of a latent method's device seconds
PER_TRAINING = (
    0.3  # of a training's time that is not its steps: compilation, validation, saves, scores
)
SLOW = 2.0  # times its planned seconds, after which a training is stopped (it saves)
COMPILED = 60.0  # seconds beside that, at least, for its compilation
VALIDATIONS = 8
REPORT = 60.0  # seconds that the product's own evaluation needs, about
SPARE_CORES = 4  # that do not simulate: they compile
THREADS = min(8, len(os.sched_getaffinity(0)))  # that compile
MEASURED = 1.0  # seconds of steps
TRACED = 2.0  # seconds under the profiler
CALLS = 20  # steps of a call, where the config has such a setting


def configs(school: sizes.Schooling) -> dict:
    """Every training of this part, and "ae"."""
    from configs import reproduce

    recipe = reproduce.get_config(school.preset)
    found = {"ae": recipe.autoencoder} | {n: recipe.trainings[n] for n in (*METHODS, *EXTRA)}
    for name, config in found.items():
        with config.unlocked():
            for path, value in school.overrides[name].items():
                *sections, field = path.split(".")
                where = config
                for section in sections:
                    where = where[section]
                where[field] = value
            # Cells are the latent network itself, wherever that was changed.
            config.name = name
            config.kernels = "xla"
            if config.data.kind == "latents":
                config.autoencoder.train = recipe.autoencoder
            if "steps_per_call" in config.train:
                config.train.steps_per_call = CALLS
    return found


def start_heads(args, school: sizes.Schooling, seconds: float) -> subprocess.Popen | None:
    """Simulation and preparation, on all cores but a few, as a process; None where `--heads` names a
    folder that another process fills.
    """
    if args.heads is not None:
        return None
    cores = len(os.sched_getaffinity(0))
    workers = max(1, cores - (SPARE_CORES if cores > 2 * SPARE_CORES else 0))
    # Twice as many as should be ready in time: the clock ends it, not the list.
    people = max(8, round(2 * workers * seconds / school.person_s))
    people = min(school.most_people, people)
    command = [sys.executable, "-m", "benchmarks.gpu.heads", str(args.work / "heads")]
    command += [school.preset, str(people), f"{seconds:.0f}", str(workers)]
    if args.labels is not None:
        command.append(str(args.labels))
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=part.ROOT, env=env, stdout=subprocess.PIPE, text=True)


def wait_heads(args, process: subprocess.Popen | None, seconds: float) -> dict:
    """What it says of itself. Raises RuntimeError where it fails or is late."""
    if process is None:
        facts, end = args.heads / "facts.json", time.monotonic() + seconds
        while not facts.is_file():
            if time.monotonic() > end:
                raise RuntimeError(f"{facts} is not there after {seconds:.0f} s")
            time.sleep(0.2)
        return json.loads(facts.read_text())
    try:
        words, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"no heads after {seconds:.0f} s more") from None
    if process.returncode:
        raise RuntimeError(f"heads: status {process.returncode}, see the log")
    return json.loads(words.strip().splitlines()[-1])


def step_seconds(own: part.Part, trainings: dict) -> dict[str, float]:
    """Device seconds of a step of each, on drawn numbers: compiled side by side, measured one by one."""
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)

    def prepare(config):
        with config.unlocked():
            config.train.num_train_steps = 1000  # only the schedule asks for it
        program = steps.training(config)
        began = time.perf_counter()
        return program, program.compile(), time.perf_counter() - began

    jobs = {name: pool.submit(prepare, config) for name, config in trainings.items()}
    found = {}
    for name, job in jobs.items():

        def measure(job=job):
            program, compiled, compile_s = job.result(max(1.0, own.left()))
            took = steps.timed(program.start(compiled), jax.block_until_ready, MEASURED)
            return {**took, "compile_s": compile_s}

        took = own.attempt(f"steps/{name}", measure)
        if took is not None:
            found[name] = took["seconds"]
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def feed_seconds(config, prepared: Prepared) -> float:
    """Seconds in which the reader makes a batch of images; 0 where slices can lie on the device."""
    if jax.default_backend() == "gpu" and config.data.on_device == "auto":
        return 0.0
    targets = inputs_lib.choose_targets(config, prepared)
    source = inputs_lib.image_source(config, prepared, "train", targets, 1)
    options = dict(batch_size=config.train.batch_size, seed=0, start_step=0, num_workers=0)
    batches = pipeline.make_train_iterator(source, num_threads=config.train.num_threads, **options)
    with batches:
        next(batches)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < MEASURED or not count:
            next(batches)
            count += 1
        return (time.perf_counter() - began) / count


class Stopped(Exception):
    """A training was stopped by its time limit; it has saved."""


class Watch:
    """Stops `jobs.train` in this process after `seconds` as a user would (SIGTERM: it saves), and looks
    at it through the profiler once it is under way.
    """

    def __init__(self, workdir: pathlib.Path, seconds: float, folder: pathlib.Path | None):
        self.workdir, self.folder, self.is_late = workdir, folder, False
        self._timer = threading.Timer(seconds, self._stop)
        self._over = threading.Event()
        self._looker = threading.Thread(target=self._look, daemon=True)

    def _stop(self) -> None:
        self.is_late = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _look(self) -> None:
        metrics = self.workdir / "metrics.jsonl"
        while not self._over.wait(0.05):
            if metrics.is_file() and metrics.stat().st_size > 0:
                break
        else:
            return
        trace.begin(self.folder)
        self._over.wait(TRACED)
        trace.end()

    def __enter__(self):
        self._timer.start()
        if self.folder is not None:
            self._looker.start()
        return self

    def __exit__(self, kind, error, where):
        self._timer.cancel()
        self._over.set()
        if self.folder is not None:
            self._looker.join()
        if isinstance(error, SystemExit) and self.is_late:
            raise Stopped from error


class School:
    """The trainings, one after the other, and what is known of them."""

    def __init__(self, own: part.Part, args, school: sizes.Schooling):
        self.own, self.args, self.school = own, args, school
        self.trainings = configs(school)
        self.steps_s: dict[str, float] = {}
        self.curves: list[tuple] = []
        self.scores: list[tuple] = []
        self.made: dict[str, np.ndarray] = {}
        self.weights: dict[str, dict] = {}
        self.done: list[str] = []
        self.ae_s, self.prepared, self.truth = 0.0, None, None

    def run(self) -> None:
        own = self.own
        heads = start_heads(self.args, self.school, SIMULATING * own.left())
        try:
            self.steps_s = step_seconds(own, self.trainings)
            facts = wait_heads(self.args, heads, own.left() / 2)
        finally:
            if heads is not None:
                heads.kill()
        own.put("heads", facts)
        folder = self.args.heads or self.args.work / "heads"
        self.prepared = Prepared(folder.absolute() / "prepared")
        for config in self.trainings.values():
            with config.unlocked():
                config.data.prepared = str(self.prepared.folder)
        names = [name for name in METHODS if name in self.steps_s and "ae" in self.steps_s]
        seconds, names = self.share(names)
        own.put("device_s_each", seconds)
        own.put("not trained", [name for name in METHODS if name not in names])
        for name in names:
            own.attempt(f"trainings/{name}", lambda name=name: self.train(name, seconds))
            self.hand_over()
        for name in EXTRA:
            if name in self.steps_s and own.left() > seconds + self.around(name) + REPORT:
                own.attempt(f"trainings/{name}", lambda name=name: self.train(name, seconds))
                self.hand_over()
        if self.done:
            own.attempt("report", self.report, REPORT)

    def around(self, name: str) -> float:
        """Seconds that a training takes beside its steps: it is compiled again, for its own schedule."""
        return self.own.result["steps"][name]["compile_s"] + self.school.around_s

    def share(self, names: list[str]) -> tuple[float, list[str]]:
        """(device seconds of each, the methods that get them): the last ones are left out where too
        little would be left for each. RuntimeError where no step could be measured.
        """
        if not names:
            raise RuntimeError("no method's step could be measured")
        shared = any(self.trainings[n].data.kind == "latents" for n in names)  # the autoencoder
        around = sum(map(self.around, names)) + shared * self.around("ae")
        seconds = ((1 - ENDING) * self.own.left() - around) / len(names)
        if seconds >= self.school.least_s or len(names) == 1:
            return min(max(seconds, self.school.least_s), self.school.most_s), names
        return self.share(names[:-1])

    def train(self, name: str, seconds: float) -> dict:
        """One method with its share, its autoencoder first where it needs one; scored."""
        config = self.trainings[name]
        before = 0.0
        if config.data.kind == "latents":
            ae = self.args.work / "ae"
            if not ae.is_dir():
                self.own.attempt("trainings/ae", lambda: self.fit("ae", AE_SHARE * seconds, ae))
                self.keep_weights("ae", ae)
            before = self.ae_s
            with config.unlocked():
                config.autoencoder.workdir = str(ae)
        workdir = self.args.work / name
        facts = self.fit(name, max(0.1 * seconds, seconds - before), workdir)
        self.curves += outputs.curve(name, workdir, before, facts["step_s"])
        facts["test_psnr"] = self.score(name, workdir)
        self.done.append(str(workdir))
        return facts

    def fit(self, name: str, seconds: float, workdir: pathlib.Path) -> dict:
        """`jobs.train` for as many steps as `seconds` of the device hold."""
        config, step_s = self.trainings[name], self.steps_s[name]
        feed_s = feed_seconds(config, self.prepared)
        # Whole calls between what is due: a gap shorter than a call would be taken step by step.
        gap = max(1, int(seconds / max(step_s, feed_s)) // VALIDATIONS)
        gap = max(1, gap // CALLS) * CALLS if gap >= CALLS else gap
        count = VALIDATIONS * gap
        with config.unlocked():
            config.train.num_train_steps, config.train.save_every = count, count
            config.train.val_every = config.train.log_every = gap
            config.train.cpu_step_seconds = 0.0
        folder = self.args.work / f"trace-{name}"
        began, stopped = time.monotonic(), False
        limit = SLOW * seconds + max(COMPILED, 3 * self.own.result["steps"][name]["compile_s"])
        try:
            with Watch(workdir, min(limit, self.own.left()), folder):
                make.run(config, str(workdir))
        except Stopped as error:
            stopped = True
            if newest_sound(workdir / "checkpoints") is None:
                raise RuntimeError(f"{name}: nothing was trained in {limit:.0f} s") from error
        if name == "ae":
            self.ae_s = count * step_s
        return {
            "steps": count,
            "step_s": step_s,
            "reader_s_a_batch": feed_s,
            "device_s": count * step_s,
            "wall_s": time.monotonic() - began,
            "stopped by its time limit": stopped,
            "profile": looked_at(folder),
        }

    def score(self, name: str, workdir: pathlib.Path) -> dict:
        """PSNR of every test person by the first read-out and, of the CLDM, by one sample; the mean."""
        run = open_run(str(workdir))
        targets = tuple(run.config["data"]["targets"])
        source = inputs_lib.image_source(
            self.trainings[name], self.prepared, "test", targets, self.school.test_stride
        )
        truth = self.read_truth(source)
        codes = {m["code"]: n for n, m in self.prepared.index["modalities"].items()}
        names = {code: target for code, target in codes.items() if target in targets}
        people = [subject["id"] for subject in self.prepared.index["subjects"]]
        modes = [next(iter(run.method.predict))]
        modes += ["sample"] if "sample" in run.method.predict and "sample" not in modes else []
        batch = self.trainings[name].train.batch_size
        means = {}
        for mode in modes:
            images = predict_rows(run, mode, source, batch_size=batch, seed=0).images
            self.made[f"{name} {mode}"] = images
            rows = outputs.scores(name, mode, images, truth, names, people)
            self.scores += rows
            for target in names.values():
                means[f"{mode} {target}"] = float(np.mean([r[5] for r in rows if r[3] == target]))
        if name == "ldm":
            self.weights = {"ldm": run.state.params or run.state.ema_params, **self.weights}
        return means

    def read_truth(self, source) -> dict:
        """All test rows: middle source slice, target, mask [N, H, W], label, subject, slice [N]."""
        if self.truth is None:
            found = source.read(np.arange(len(source)))
            middle = found["source"].shape[-1] // 2
            self.truth = {k: found[k] for k in ("label", "subject", "slice")}
            self.truth["source"] = found["source"][..., middle]
            self.truth |= {k: found[k][..., 0] for k in ("target", "mask")}
        return self.truth

    def keep_weights(self, name: str, workdir: pathlib.Path) -> None:
        model, variables, _ = inputs_lib.load_autoencoder(str(workdir))
        del model
        self.weights[name] = {k: v for k, v in variables.items() if isinstance(v, dict)}

    def hand_over(self) -> None:
        """The files so far: whatever comes later, they are there."""
        out = self.own.out
        outputs.write_table(out / "curves.csv", CURVES, self.curves)
        outputs.write_table(out / "scores.csv", SCORES, self.scores)
        if self.made:
            outputs.write_picture(out / "samples.png", self.truth, self.made)
            groups = [subject["group"] for subject in self.prepared.index["subjects"]]
            outputs.write_predictions(out / "predictions.npz", self.truth, self.made, groups)
        if self.weights:
            self.own.put("weights", outputs.write_weights(out, self.weights))

    def report(self) -> dict:
        """The product's own evaluation by its protocol, on some slices of the test people."""
        from configs import eval as evaluation

        config = evaluation.get_config(self.school.preset)
        with config.unlocked():
            config.runs, config.data.prepared = ",".join(self.done), str(self.prepared.folder)
            config.kernels = "xla"
        folder = self.args.work / "report"
        evaluate.run(config, str(folder))
        scores = (folder / "scores.csv").read_text()
        (self.own.out / "protocol-scores.csv").write_text(scores)
        return {"rows": scores.count("\n") - 1}


def looked_at(folder: pathlib.Path) -> dict:
    """What the profiler saw of a training, or why there is nothing."""
    try:
        return trace.summarise(folder)
    except (ValueError, FileNotFoundError) as error:
        return {"none": str(error)[:200]}


def main(argv=None) -> int:
    args = part.arguments(argv)
    args.work = args.work.absolute()
    own = part.Part(args.work, args.seconds)
    device.choose_kernels("xla")
    device.enable_compilation_cache()
    part.need_gpu(args.rehearse)
    own.put("device", device.describe())
    School(own, args, sizes.schooling(args.rehearse)).run()
    return own.status()


if __name__ == "__main__":
    sys.exit(main())
