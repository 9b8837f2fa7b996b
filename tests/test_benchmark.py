"""The benchmark: its arithmetic, and every part of it once at a tiny size.

PyTorch and MONAI are no requirement of the suite: where they are missing a stand-in with the same
interface takes their turns, and what compares with the real ones (benchmarks/check.py) is skipped.
"""

import importlib.util
import json
import math
import os
import queue
import shutil
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    cases,
    flops,
    proc,
    race,
    report,
    run,
    tasks,
    tasks_flax,
    volume,
    volume_case,
    worker,
)
from benchmarks.gpu import lines
from benchmarks.tasks import Spec
from benchmarks.worker import Sample
from cldm_jax import files
from cldm_jax.jobs import budget, make
from cldm_jax.models import monai_names
from cldm_jax.models.layers import Conv, SelfAttention
from cldm_jax.models.monai import CENTRED
from cldm_jax.runtime import device, weights

HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "monai", "diffusers"))
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"quick": True}


def sample(seconds, others=0.0):
    return Sample(wall_s=seconds, cpu_s=2 * seconds, cores=2.0, others=others)


# Arithmetic


def test_disturbed_samples_are_taken_again():
    waiting = [sample(9, 0.9), sample(8, 0.2), sample(1, 0.1), sample(7, 0.0)]
    kept, disturbed = race.take_clean(lambda: waiting.pop(0), limit=0.15, tries=4)
    assert (kept.wall_s, disturbed, len(waiting)) == (1, 2, 1)


def test_the_least_disturbed_sample_is_kept_where_none_is_clean():
    waiting = [sample(3, 0.9), sample(2, 0.3), sample(1, 0.5)]
    kept, disturbed = race.take_clean(lambda: waiting.pop(0), limit=0.15, tries=3)
    assert (kept.wall_s, disturbed) == (2, 3)


# Rows


def make_samples():
    """Ours 2, 3, 4 s; contiguous 4, 4, 16 s; channels_last 8 s; bf16 2, 3, 4 s."""
    times = {
        race.OURS: (2, 3, 4),
        "torch_f32/contiguous": (4, 4, 16),
        "torch_f32/channels_last": (8, 8, 8),
        "torch_bf16/contiguous": (2, 3, 4),
    }
    facts = {"peak_mb": 100.0, "disturbed": 1, "compile_s": 1.0, "flops": 6e9, "params": 7}
    return {n: race.Taken([sample(s) for s in values], facts) for n, values in times.items()}


def test_row_is_the_median_of_ratios_against_the_best_variant_of_the_same_round():
    failed = {"torch_f32/channels_last": "RuntimeError: no memory", race.OURS: "never"}
    f32, bf16 = race.race_rows("ldm_train_b8", 2, make_samples(), failed, limit=100.0)
    assert (f32["peer"], f32["peer_variant"]) == ("torch_f32", "contiguous")
    assert f32["ratio"] == 0.5 and f32["ratio_range"] == [0.25, 0.75]  # 2/4, 3/4, 4/16
    assert (f32["ours_s"], f32["peer_s"]) == (3, 4)
    assert f32["mfu"] == pytest.approx(6e9 / 3 / 100e9)
    assert f32["bound"] == 0.85 and f32["met"] is True
    assert f32["failed"] == {"torch_f32/channels_last": "RuntimeError: no memory"}
    assert (f32["ours_disturbed"], f32["peer_rss_mb"]) == (1, 100.0)
    assert bf16["ratio"] == 1.0 and bf16["bound"] is None and bf16["met"] is None


def test_one_thread_row_is_in_cpu_seconds():
    f32, bf16 = race.race_rows("ddim_b8", 1, make_samples(), {}, limit=100.0)
    assert (f32["ours_s"], f32["ours_wall_s"], f32["ours_cpu_s"]) == (6, 3, 6)
    assert f32["met"] is True and bf16["met"] is False  # 0.5 of 0.62, 1.0 of 0.95


# Summary


def make_rows():
    return race.race_rows("ddim_b8", 1, make_samples(), {}, limit=100.0)


def test_summary_is_kept_and_read_again(tmp_path):
    summary = report.Summary(tmp_path, SETTINGS)
    summary.set_limit(1, {"f32_gflops": 100.0, "bf16_gflops": 0.0, "by_case": {}})
    summary.add(make_rows())
    stored = files.read_json(tmp_path / report.SUMMARY)
    assert {"machine", "limit_gflops", "rows"} <= stored.keys() and stored["limit_gflops"] == 100
    again = report.Summary(tmp_path, SETTINGS)
    assert again.has("ddim_b8", 1) and not again.has("ddim_b8", 2)
    assert again.has_limit(1) and again.limit(1) == 100


def test_other_settings_other_code_and_fresh_start_over(tmp_path, monkeypatch):
    report.Summary(tmp_path, SETTINGS).add(make_rows())
    assert report.Summary(tmp_path, {"quick": False}).data["rows"] == []
    assert report.Summary(tmp_path, SETTINGS, fresh=True).data["rows"] == []
    monkeypatch.setattr(proc, "versions", lambda: {"code_sha256": "another"})
    assert report.Summary(tmp_path, SETTINGS).data["rows"] == []


def test_volume_says_how_much_faster_and_how_good():
    row = {"name": "volume_150", "threads": 2, "peer": "torch_f32", "ratio": 1 / 40}
    scores = {"ours_psnr": 25.0, "peer_psnr": 23.5, "peer_scaled_from_slices": 8}
    line = report.volume_line(row | scores)
    for part in ("40 times faster", "25.00 dB against 23.50 dB", "scaled from 8 slices"):
        assert part in line


def test_table_and_plot_show_every_row(tmp_path):
    summary = report.Summary(tmp_path, SETTINGS)
    summary.add(make_rows())
    summary.fail("volume", "disk full")
    text = report.write(tmp_path, summary.data)
    assert (tmp_path / report.TABLE).read_text() == text
    for part in ("torch_f32 contiguous", "**0.50**", "met (0.62)", "not met (0.95)", "disk full"):
        assert part in text
    assert 1000 < (tmp_path / report.PLOT).stat().st_size < 300_000


# Processes


def test_busy_seconds_counts_only_the_named_processors(tmp_path):
    tick = os.sysconf("SC_CLK_TCK")
    one = f"{10 * tick} {1 * tick} {2 * tick} {500 * tick} {50 * tick} 0 {3 * tick} {4 * tick} 0 0"
    path = tmp_path / "stat"
    path.write_text(f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 {one}\ncpu1 {one}\ncpu10 {one}\nintr 1\n")
    assert proc.busy_seconds([1], path) == pytest.approx(20)  # idle and waiting left out
    assert proc.busy_seconds([0, 1], path) == pytest.approx(40)


def test_too_many_threads_are_refused():
    with pytest.raises(ValueError, match="processors"):
        proc.pick_cpus(10_000)
    assert proc.pick_cpus(1) == [max(os.sched_getaffinity(0))]


def test_worker_answers_lines_and_goes_on_after_an_error(tmp_path):
    calls = []

    def setup(value):
        return lambda: calls.append(value) or np.float32([value]), {"got": value}

    path = tmp_path / "x.npy"
    requests = [
        {"op": "setup", "value": 3},
        {"op": "time", "wall": 0.0},
        {"op": "save", "path": str(path)},
        {"op": "setup", "wrong": 1},
        {"op": "setup", "value": 4, "warm": False},
        {"op": "rss"},
    ]
    operations = worker.operations(setup)
    answers = [json.loads(lines.reply(operations, json.dumps(each))) for each in requests]
    assert answers[0] == {"got": 3} and answers[1].keys() == set(Sample._fields)
    assert np.load(path) == 3 and calls == [3] * (
        worker.WARM_CALLS + 2
    )  # the first of a sample does not count
    assert "TypeError" in answers[3]["error"] and answers[4] == {"got": 4}
    assert answers[5]["peak_mb"] > 1


def test_a_first_call_counts_only_if_it_is_long(monkeypatch):
    calls = []
    worker.measure(lambda: calls.append(1), wall=0.0)
    assert len(calls) == 2
    monkeypatch.setattr(worker, "LONG", -1.0)
    taken = worker.measure(lambda: calls.append(1), wall=0.0)
    assert len(calls) == 3 and taken.wall_s >= 0


def test_names_on_the_command_line():
    args = run.parse(["--only", "ddim_b1,ae_encode_b8", "--threads", "1", "--quick"])
    assert args.names == ["ddim_b1", "ae_encode_b8"] and args.threads == [1] and args.rounds == 2
    assert run.parse(["--threads", "1"]).names == [*tasks.RACES, tasks.VOLUME]
    for wrong in (["--only", "nothing"], ["--threads", "0"], ["--threads", "two"]):
        with pytest.raises(SystemExit) as refused:
            run.parse(wrong)
        assert refused.value.code == 2


# Networks


def example(network):
    """(net, arguments): as in benchmarks/check.py."""
    if network == "autoencoder":
        net, x = tasks_flax.make_autoencoder(), jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32)
        return net, (x, None, None, jnp.zeros(tasks_flax.latent_shape(net, x)))
    z, code = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32), jnp.zeros(2, jnp.int32)
    return tasks_flax.make_unet(), (z, code, code, z)


def shapes_of(network):
    net, args = example(network)
    return flops.shapes_of(net, *args)


@pytest.mark.parametrize(
    "network, parameters, operations",
    [("autoencoder", 3_084_705, 6_637_535_232), ("unet", 16_060_932, 2_246_836_224)],
)
def test_networks_have_monais_parameters_and_operations(network, parameters, operations):
    """What benchmarks/check.py finds for MONAI's."""
    net, args = example(network)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(shapes_of(network))) == parameters
    assert flops.forward_flops(net, *args) == operations


def test_flops_of_known_modules():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert flops.forward_flops(Conv(5), x) == 2 * 2 * 64 * 5 * 9 * 3
    assert flops.forward_flops(Conv(5, stride=2), x) == 2 * 2 * 16 * 5 * 9 * 3
    assert flops.forward_flops(Conv(3, stride=2, padding=CENTRED), x) == 2 * 2 * 16 * 3 * 9 * 3
    attention = SelfAttention(1, head_channels=3)
    projections, products = 2 * 2 * 64 * 3 * (9 + 3), 4 * 2 * 64**2 * 3
    assert flops.forward_flops(attention, x) == projections + products


@pytest.mark.parametrize("case", [[*cases.AUTOENCODERS][1], [*cases.UNETS][1]])
def test_compared_networks_are_ours_too(case):
    """Those of benchmarks/parity.py."""
    if case in cases.AUTOENCODERS:
        net = cases.autoencoder(cases.AUTOENCODERS[case])
        x, side = jnp.zeros((1, 32, 32, 1)), 32 // net.factor
        args = (x, None, None, jnp.zeros((1, side, side, cases.LATENTS)))
    else:
        keywords, condition = cases.UNETS[case]
        net, z, t = cases.unet(keywords), jnp.zeros((1, 16, 16, cases.LATENTS)), jnp.array([3])
        args = (z, t, t * 0 + 1, jnp.zeros((1, 16, 16, condition)) if condition else None)
    names = monai_names.expected_shapes(flops.shapes_of(net, *args))
    assert sum("attn" in name or "attention" in name for name in names) > 5


def test_batches_of_a_volume_cover_it_once():
    case = volume_case.Case(*[np.zeros(19)] * len(volume_case.Case._fields))
    rows = volume_case.batches(case)
    assert [(r.start, r.stop) for r in rows] == [(0, 8), (8, 16), (16, 19)]
    assert volume_case.batches(case, limit=1) == rows[:1]


# The script


@pytest.fixture
def script(tmp_path):
    """Runs a copy of the script whose environment is a folder with a fake python that logs its call."""
    clone, venv = tmp_path / "a clone", tmp_path / "venv"
    shutil.copytree(ROOT / "launch", clone / "launch")
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text('#!/bin/bash\n[ "$1" = -c ] || echo "called $*"\n')
    python.chmod(0o755)

    def run_it(*flags, **settings):
        env = {**os.environ, "CLDM_BENCHMARK_VENV": str(venv), **settings}
        command = ["bash", str(clone / "launch" / "benchmark.sh"), *flags]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)

    return run_it


def test_script_hands_its_flags_over(script):
    done = script("--quick", "--out", "a folder")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "called -m benchmarks.run --quick --out a folder\n"


def test_dry_run_of_the_script_starts_nothing(script):
    done = script("--dry-run", "--quick")
    assert done.returncode == 0 and "called" not in done.stdout
    assert "benchmarks.run --quick" in done.stdout


def test_script_refuses_a_folder_that_is_no_environment(script):
    done = script(CLDM_BENCHMARK_VENV="/nonexistent")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "CLDM_BENCHMARK_VENV=/nonexistent" in done.stderr


# Every part, once


@pytest.fixture
def tiny(monkeypatch):
    """The smallest networks and sizes that have every kind of layer, no waiting, little optimisation, and
    workers within this process: the JAX side is the real one.
    """
    ae = dict(channels=(4, 8), num_res_blocks=(1, 1), attention_levels=(False, False))
    unet = dict(
        channels=(8,), num_res_blocks=(1,), attention_levels=(True,), num_head_channels=(8,)
    )
    for name, small in (("AUTOENCODER", ae), ("UNET", unet)):
        small = {**getattr(tasks, name), **small, "norm_num_groups": 4}
        monkeypatch.setattr(tasks, name, small)
    for name, spec in tasks.RACES.items():
        size = 16 if spec.kind.startswith("ae") else 8
        monkeypatch.setitem(tasks.RACES, name, spec._replace(batch=2, size=size, steps=2))
    for module, name, value in (
        (proc, "has_bf16", lambda: False),
        (race, "GEMM_SIZES", (8, 16)),
        (race, "Worker", InProcess),
        (race, "wait_quiet", lambda cpus: None),
        (device, "compile_step", compile_quickly),
        (worker, "WARM_CALLS", 1),
        (worker, "MIN_CALLS", 1),
        (volume, "STEPS", 2),
        (volume, "PROBE_STEPS", 1),
        (volume_case, "SLICES", 3),
        (volume_case, "BATCH", 2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def compile_quickly(step, *args):
    return step.lower(*args).compile({"xla_backend_optimization_level": 0})


class InProcess(race.Worker):
    """A worker without a process of its own."""

    def __init__(self, side: str, threads: int):
        self.cpus, self._replies = proc.pick_cpus(threads), queue.Queue()
        sides = worker.SIDES if HAS_TORCH else {**worker.SIDES, "torch": stand_in}
        self._operations = worker.operations(sides[side])

    def tell(self, op: str, **request) -> None:
        self._replies.put(lines.reply(self._operations, json.dumps({"op": op, **request})))

    def close(self) -> None:
        del self._operations


def stand_in(spec=None, gemm=None, volume=None, bf16=False, channels_last=False):
    """What `worker.torch_side` takes and gives, without PyTorch."""
    if volume is None:
        assert gemm or Spec(*spec).kind in {s.kind for s in tasks.RACES.values()}
        return lambda: None, {"params": 1}
    assert volume["steps"]
    case = volume_case.load_case(volume["folder"])
    rows = volume_case.batches(case, limit=volume.get("limit", 0))
    return lambda: np.concatenate([case.truth[r] for r in rows]) + 0.1, {}


def lay_out_random_case(folder) -> None:
    """What `volume_case.main` leaves behind, untrained."""
    rng, n = np.random.default_rng(0), volume_case.SLICES
    for name in ("autoencoder", "unet"):
        params = jax.tree.map(
            lambda s: rng.normal(0, 0.1, s.shape).astype(np.float32), shapes_of(name)
        )
        path = folder / f"{name}.safetensors"
        weights.write_tensors(path, monai_names.to_state_dict(params))
    z = rng.standard_normal((2, n, 8, 8, 4)).astype(np.float32)
    code, ones = np.ones(n, np.int32), np.ones(4, np.float32)
    truth = rng.uniform(-1, 1, (n, 16, 16)).astype(np.float32)
    case = volume_case.Case(*z, code, 0 * ones, ones, truth, truth > 0)
    np.savez(folder / volume_case.CASE, **case._asdict())
    files.write_json(folder / volume_case.RECORD, {"minutes": 0})


def test_every_race_and_section_runs(tiny, tmp_path, monkeypatch):
    """The whole command but for its check: nothing fails, every row is there."""
    args = run.parse(["--threads", "1", "--out", str(tmp_path), "--rounds", "1"])
    (tmp_path / "volume").mkdir()
    lay_out_random_case(tmp_path / "volume")
    benchmark = run.Benchmark(args)
    benchmark.settings = benchmark.brief = benchmark.settings._replace(wall=0.0, tries=1)
    benchmark.run()
    found = benchmark.summary.data
    assert found["failed"] == {}
    rows = [r["name"] for r in found["rows"]]
    assert rows == [*tasks.RACES, tasks.VOLUME]
    assert all(r["ours_s"] > 0 and (r["mfu"] or 1) > 0 for r in found["rows"])
    assert found["limits"]["1"]["f32_gflops"] > 0 and not found["limits"]["1"]["bf16_gflops"]
    assert found["rows"][-1]["ours_ddim50_psnr"] != found["rows"][-1]["ours_psnr"]
    if not HAS_TORCH:  # its answer is the truth and a tenth
        assert found["rows"][-1]["peer_psnr"] == pytest.approx(10 * math.log10(4 / 0.01))
    assert tasks.VOLUME in report.write(tmp_path, found)
    again = run.Benchmark(args)  # the same command goes on: nothing is measured twice
    monkeypatch.setattr(race, "Worker", None)
    again.run()
    assert again.summary.data == found


def test_a_part_that_fails_is_noted_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    args = run.parse(["--only", "ddim_b1,ae_encode_b8", "--threads", "1", "--out", str(tmp_path)])
    benchmark = run.Benchmark(args)
    monkeypatch.setattr(benchmark, "limit", lambda threads: 1.0)
    monkeypatch.setitem(tasks.RACES, "ddim_b1", Spec("nonsense", 1, 8))
    benchmark.settings = benchmark.settings._replace(rounds=1, wall=0.0, tries=1)
    benchmark.run()
    assert benchmark.summary.data["failed"] == {"ddim_b1, 1 threads": "KeyError: 'nonsense'"}
    assert [r["name"] for r in benchmark.summary.data["rows"]] == ["ae_encode_b8"]


def test_the_volumes_networks_are_the_products(tiny, study, tmp_path, monkeypatch):
    """From the product's run folders to files that both sides load, and a case of test people. Weights
    are imported where the benchmark trains them.
    """
    monkeypatch.setattr(volume_case, "PRESET", "tiny")
    lay_out_random_case(tmp_path)
    config = volume_case.make_config(tmp_path, people=2)
    config.data.root = str(study.data_root)

    def imported(config, seconds):
        name = "unet" if config.method == "ldm" else "autoencoder"
        config.init.weights = str(tmp_path / f"{name}.safetensors")
        config.train.num_train_steps = 0

    monkeypatch.setattr(volume_case, "set_steps", imported)
    volume_case.train(config, tmp_path / "ldm", minutes=0.0)
    volume_case.lay_out(tmp_path, tmp_path / "ldm", make.prepared(config.data))
    settings, request = race.Settings(1, 0.0, 1), {"folder": str(tmp_path), "steps": 0}
    taken, images = volume.measure("flax", 1, settings, **request)
    case = volume_case.load_case(tmp_path)
    assert images.shape == case.truth.shape == case.mask.shape and np.isfinite(images).all()
    assert case.source.shape == case.start.shape == (3, 20, 16, 4) and set(case.code) == {1}
    assert abs(case.source).mean() < 10 and taken.facts["flops"] > 0


def test_steps_fill_the_time(monkeypatch):
    monkeypatch.setattr(make, "needs", lambda config: None)
    monkeypatch.setattr(budget, "open_step", lambda config: lambda: time.sleep(0.01))
    config = volume_case.make_config(Path("nowhere"), people=2)
    volume_case.set_steps(config, 1.0)
    assert 30 < config.train.num_train_steps <= 100
    volume_case.set_steps(config, 0.0)
    assert config.train.num_train_steps == 2 * volume_case.PROBE_STEPS


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch, MONAI, diffusers: benchmarks/requirements.txt")
def test_both_sides_are_the_same_networks(tmp_path):
    from benchmarks import check

    assert check.main(["--out", str(tmp_path / "parity.json")]) == 0
    rows = files.read_json(tmp_path / "parity.json")["rows"]
    assert len(rows) == 60 and all(row["ok"] for row in rows)
