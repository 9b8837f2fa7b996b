"""Our side of the race, a worker of `race`: `python -m benchmarks.gpu.race_jax full|tiny WORK`."""

import concurrent.futures
import gc
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flops, tasks_flax
from benchmarks.gpu import lines, part, recipes, rows, sizes, steps, trace
from cldm_jax.diffusion import schedule
from cldm_jax.methods.codec import make_codec
from cldm_jax.models import monai_names
from cldm_jax.models.build import make_autoencoder, make_latent_unet
from cldm_jax.models.init import init_params
from cldm_jax.runtime import device

THREADS = min(8, len(os.sched_getaffinity(0)))  # that compile
TRACED = 3  # calls under the profiler
CHECKED = 2  # slices, when weights are compared
TOLERANCE = 1e-4


class Task(NamedTuple):
    program: steps.Program
    flops: int  # of one call
    params: int


class Ready(NamedTuple):
    task: Task
    compiled: object
    compile_s: float
    attention: str


def config_of(row: rows.Row, chosen: sizes.Sizes, attention: str):
    """The product's config that does what `row` says."""
    if row.kind in ("own_ldm_train", "own_ldm_muon_train"):
        config = recipes.own_ldm(chosen, row.unet, row.batch)
        config.recipe.optim.optimizer = "muon" if "muon" in row.kind else "adamw"  # as the peer's
        config.recipe.model.unet.attention = attention
        return config
    if row.kind == "ae_train":
        config = recipes.monai_autoencoder(chosen)
        config.train.batch_size = row.batch
        config.recipe.model.attention = attention
        return config
    config = recipes.monai_ldm(chosen, row.unet, row.batch)
    config.autoencoder.train.recipe.model.attention = attention
    return config


def make_task(row: rows.Row, chosen: sizes.Sizes, attention: str) -> Task:
    config = config_of(row, chosen, attention)
    if row.kind.endswith("_train"):
        return Task(steps.training(config), 3 * forward(config, row.batch), parameters(config))
    if row.kind in ("sample", "onestep"):
        program = steps.reading(config, row.kind, row.batch)
        evaluations = config.recipe.sampling.num_sampling_steps if row.kind == "sample" else 1
        work = coding(config, row.batch, "encode") + coding(config, row.batch, "decode")
        work += evaluations * forward(config, row.batch)
        return Task(program, work, parameters(config))
    return Task(coded(config, row), coding(config, row.batch, row.kind), parameters(config))


def nets(config):
    """(autoencoder, latent U-Net or None) as Linen modules, and the shapes they are called with."""
    if config.method == "autoencoder":
        model, unet = config.recipe.model.to_dict(), None
    else:
        model = config.autoencoder.train.recipe.model.to_dict()
        unet = make_latent_unet(config.recipe.model.to_dict(), model["latent_channels"])
    return make_autoencoder(model), unet, model


def shapes(config, batch: int):
    """ShapeDtypeStructs of (images, latents, condition, code) of a batch."""
    net, _, model = nets(config)
    h, w = config.data.prepare.size
    cells = (batch, h // net.factor, w // net.factor)

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    condition = model["latent_channels"] * config.data.context
    if config.method == "ldm" and config.recipe.diffusion.source_encoding == "s2d":
        condition = net.factor**2 * config.data.context
    latents = of(*cells, model["latent_channels"])
    return of(batch, h, w, 1), latents, of(*cells, condition), of(batch, dtype=jnp.int32)


def forward(config, batch: int) -> int:
    """FLOPs of what a training step calls once forward."""
    if config.method == "autoencoder":
        return coding(config, batch, "encode") + coding(config, batch, "decode")
    _, latents, condition, code = shapes(config, batch)
    return flops.forward_flops(nets(config)[1], latents, code, code, condition)


def coding(config, batch: int, which: str) -> int:
    net, _, _ = nets(config)
    images, latents, _, code = shapes(config, batch)
    given = images if which == "encode" else latents
    return flops.forward_flops(net, given, code, None, method=which)


def parameters(config) -> int:
    """Of the network that is trained."""
    net, unet, _ = nets(config)
    images, latents, condition, code = shapes(config, 1)
    module, given = (unet, (latents, code, code, condition))
    if unet is None:
        module, given = net, (images, code, None, latents)
    return flops.count_parameters(flops.shapes_of(module, *given))


def coded(config, row: rows.Row) -> steps.Program:
    """The codec alone, with drawn weights."""
    net, _, model = nets(config)
    images, latents, _, code = shapes(config, row.batch)
    params = init_params(net, jax.random.key(0), images, code, None, latents)
    codec, rng = make_codec(model), np.random.default_rng(0)
    given = images if row.kind == "encode" else latents
    x = rng.standard_normal(given.shape).astype(np.float32)
    call = codec.encode if row.kind == "encode" else codec.decode
    variables = {"params": steps.drawn(params)}
    return steps.function(call, variables, x, np.ones(code.shape, np.int32))


def check(weights: dict, reference: dict, chosen: sizes.Sizes) -> list[dict]:
    """Rows of differences between this side and the peer's outputs, on the peer's weights, float32."""
    config = recipes.monai_ldm(chosen, "12M", CHECKED, "float32")
    net, unet, _ = nets(config)
    images, latents, condition, code = shapes(config, CHECKED)
    both = {
        "autoencoder": (net, (images, code, None, latents)),
        "unet": (unet, (latents, code, code, condition)),
    }
    trees = {}
    for name, (module, given) in both.items():
        own = {k.partition("/")[2]: v for k, v in weights.items() if k.startswith(f"{name}/")}
        trees[name] = {"params": monai_names.to_params(own, flops.shapes_of(module, *given))}
    code, t = jnp.asarray(reference["code"]), jnp.asarray(reference["t"])
    start, source = (jnp.asarray(reference[k]) for k in ("start", "source"))
    alphas_bar = schedule.cosine(1000)
    count = int(reference["steps"])
    ae = trees["autoencoder"]
    tasks = {
        "mean": lambda: jax.jit(lambda x: net.apply(ae, x, code, None, method="encode")[0])(
            jnp.asarray(reference["images"])
        ),
        "decoded": lambda: jax.jit(lambda z: net.apply(ae, z, code, None, method="decode"))(start),
        "prediction": lambda: jax.jit(unet.apply)(trees["unet"], start, t, code, source),
        "sample": lambda: jax.jit(
            lambda z, s: tasks_flax.ddim(unet, trees["unet"], z, s, code, alphas_bar, count)
        )(start, source),
    }

    def exactly(task):
        with jax.default_matmul_precision("highest"):  # of this thread
            return np.asarray(task())

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:  # most of it is compilation
        found = dict(zip(tasks, pool.map(exactly, tasks.values()), strict=True))
    result = []
    for name, value in found.items():
        value, other = np.asarray(value, np.float64), np.asarray(reference[name], np.float64)
        gap = float(np.abs(value - other).max() / np.abs(other).max())
        result.append({"what": name, "difference": gap, "ok": gap <= TOLERANCE})
    return result


class Side:
    """The worker's operations."""

    def __init__(self, chosen: sizes.Sizes, work: pathlib.Path):
        self.sizes, self.work = chosen, work
        self.ready: dict[str, Ready] = {}

    def compile(self, name: str) -> Ready:
        """With cuDNN's attention where there is a choice, or XLA's where that is refused."""
        row = rows.find(self.sizes, name)
        for attention in dict.fromkeys((row.attention, "xla")):
            began = time.perf_counter()
            try:
                task = make_task(row, self.sizes, attention)
                compiled = task.program.compile()
            except Exception as error:
                if attention == "xla":
                    raise
                print(f"{name}: {attention}'s attention: {error}", file=sys.stderr)
                continue
            return Ready(task, compiled, time.perf_counter() - began, attention)
        raise AssertionError("one of the two returns or raises")

    def prepare(self, names: list[str], seconds: float) -> dict:
        """Compiles side by side; {"ready": {name: facts}, "failed": {name: why}, "unfinished": [...]}."""
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        todo = [name for name in names if name not in self.ready]
        jobs = {pool.submit(self.compile, name): name for name in todo}
        done, waiting = concurrent.futures.wait(jobs, timeout=seconds)
        # What runs still goes on, and is found in the compilation cache the next time.
        pool.shutdown(wait=False, cancel_futures=True)
        failed = {}
        for job in done:
            if (error := job.exception()) is None:
                self.ready[jobs[job]] = job.result()
            else:
                failed[jobs[job]] = f"{type(error).__name__}: {str(error)[:300]}"
        return {
            "ready": {name: facts(self.ready[name]) for name in names if name in self.ready},
            "failed": failed,
            "unfinished": [jobs[job] for job in waiting],
        }

    def check(self, folder: str) -> dict:
        found = []
        for name in ("weights.npz", "reference.npz"):
            with np.load(pathlib.Path(folder) / name) as stored:
                found.append(dict(stored))
        return {"rows": check(*found, self.sizes)}

    def ceilings(self) -> dict:
        """The largest matrix product and copy that this side gets of the device."""
        n, count = self.sizes.gemm, self.sizes.copy_mb * 2**20 // 4
        rng = np.random.default_rng(0)
        a, b = (jnp.asarray(rng.standard_normal((n, n), np.float32)) for _ in range(2))
        found = {}
        for dtype in (jnp.bfloat16, jnp.float32):
            x, y = a.astype(dtype), b.astype(dtype)
            took = part.timed(lambda x=x, y=y: jnp.dot(x, y), jax.block_until_ready, 0.5)
            found[f"{jnp.dtype(dtype).name}_tflops"] = 2 * n**3 / took["seconds"] / 1e12
        stream = jax.jit(lambda x: x + 1)
        values = jnp.asarray(rng.standard_normal(count, np.float32))
        took = part.timed(lambda: stream(values), jax.block_until_ready, 0.5)
        found["copy_gb_s"] = 2 * values.nbytes / took["seconds"] / 1e9
        return found

    def time(self, name: str, seconds: float) -> dict:
        call = self._call(name)
        took = part.timed(call, jax.block_until_ready, seconds)
        del call
        gc.collect()
        return took

    def trace(self, name: str) -> dict:
        call = self._call(name)
        jax.block_until_ready(call())

        def some():
            for _ in range(TRACED):
                last = call()
            jax.block_until_ready(last)

        found = trace.record(self.work / "trace", some)
        return {**found, "busy_s_a_call": found["busy_s"] / TRACED}

    def _call(self, name: str):
        row, ready = rows.find(self.sizes, name), self.ready[name]
        one = ready.task.program.start(ready.compiled)

        def call():
            for _ in range(row.calls):
                last = one()
            return last

        return call


def facts(ready: Ready) -> dict:
    """What is known of a program before it runs."""
    cost = ready.compiled.cost_analysis() or {}
    account = ready.compiled.memory_analysis()
    return {
        "flops": ready.task.flops,
        "params": ready.task.params,
        "compile_s": ready.compile_s,
        "attention": ready.attention,
        "bytes": float(cost.get("bytes accessed", 0.0)),
        "temporaries_gb": account.temp_size_in_bytes / 1e9,
    }


def main() -> None:
    chosen = sizes.choose(sys.argv[1] == "tiny")
    device.choose_kernels("xla")
    device.enable_compilation_cache()
    side = Side(chosen, pathlib.Path(sys.argv[2]))
    operations = ("prepare", "check", "ceilings", "time", "trace")
    ready = {"hello": lambda: {"backend": jax.default_backend(), **device.describe()}}
    lines.serve(ready | {name: getattr(side, name) for name in operations})


if __name__ == "__main__":
    main()
