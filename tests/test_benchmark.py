"""The benchmark's own arithmetic and networks; PyTorch is not needed here (benchmarks/check.py is)."""

import io
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    data,
    datasets,
    flops,
    growth,
    proc,
    race,
    report,
    run,
    stats,
    tables,
    tasks,
    tasks_flax,
    volume_case,
    volume_train,
    worker,
)
from benchmarks.stats import Sample
from cldm_jax import files
from cldm_jax.models.init import init_params
from cldm_jax.models.layers import Conv, SelfAttention
from cldm_jax.models.monai import CentredDownsample

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"quick": True}


def sample(seconds, others=0.0):
    return Sample(wall_s=seconds, cpu_s=2 * seconds, cores=2.0, others=others)


# Arithmetic


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_exponent_of_a_power_law_is_its_power(power):
    sizes = [16, 32, 64, 128]
    assert stats.exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power)


def test_fixed_cost_shows_over_the_whole_range_and_less_in_the_upper_half():
    sizes = [1, 10, 100, 1000, 10000]
    found = stats.growth(sizes, [50 + n for n in sizes])
    assert found["exponent"] < found["exponent_upper"] < 1
    assert found["exponent_upper"] == pytest.approx(
        stats.exponent(sizes[2:], [150, 1050, 10050])  # three of five points
    )
    with pytest.raises(ValueError, match="needs two"):
        stats.exponent([1], [1])


def test_growth_is_judged_against_the_arithmetic():
    row = {"exponent_upper": 2.05, "flops_exponent_upper": 2.0}
    assert growth.judge(row)["met"] and growth.judge(row)["excess"] == pytest.approx(0.05)
    assert not growth.judge({**row, "exponent_upper": 2.2})["met"]


def test_disturbed_samples_are_taken_again():
    waiting = [sample(9, 0.9), sample(8, 0.2), sample(1, 0.1), sample(7, 0.0)]
    kept, disturbed = stats.take_clean(lambda: waiting.pop(0), limit=0.15, tries=4)
    assert (kept.wall_s, disturbed, len(waiting)) == (1, 2, 1)


def test_the_least_disturbed_sample_is_kept_where_none_is_clean():
    waiting = [sample(3, 0.9), sample(2, 0.3), sample(1, 0.5)]
    kept, disturbed = stats.take_clean(lambda: waiting.pop(0), limit=0.15, tries=3)
    assert (kept.wall_s, disturbed) == (2, 3)


def test_one_thread_compares_cpu_time_and_two_wall_time():
    assert stats.seconds(sample(3.0), 1) == 6.0
    assert stats.seconds(sample(3.0), 2) == 3.0


# Rows


def make_samples():
    """Ours 2, 3, 4 s; contiguous 4, 4, 16 s; channels_last 8 s; bf16 2, 3, 4 s."""
    times = {
        race.OURS: (2, 3, 4),
        "torch_f32/contiguous": (4, 4, 16),
        "torch_f32/channels_last": (8, 8, 8),
        "torch_bf16/contiguous": (2, 3, 4),
    }
    samples = {name: [sample(s) for s in values] for name, values in times.items()}
    facts = {name: {"peak_mb": 100.0, "disturbed": 1, "compile_s": 1.0} for name in times}
    facts[race.OURS] |= {"flops": 6e9, "params": 7}
    return samples, facts


def test_row_is_the_median_of_ratios_against_the_best_variant_of_the_same_round():
    failed = {"torch_f32/compile": "RuntimeError: no compiler", race.OURS: "never"}
    f32, bf16 = race.make_rows("ldm_train_b8", 2, *make_samples(), failed, limit_gflops=100.0)
    assert (f32["peer"], f32["peer_variant"]) == ("torch_f32", "contiguous")
    assert f32["ratio"] == 0.5 and f32["ratio_range"] == [0.25, 0.75]  # 2/4, 3/4, 4/16
    assert (f32["ours_s"], f32["peer_s"]) == (3, 4)
    assert f32["mfu"] == pytest.approx(6e9 / 3 / 100e9)
    assert f32["bound"] == 0.85 and f32["met"] is True
    assert f32["failed"] == {"torch_f32/compile": "RuntimeError: no compiler"}
    assert (f32["ours_disturbed"], f32["peer_rss_mb"]) == (1, 100.0)
    assert bf16["ratio"] == 1.0 and bf16["bound"] is None and bf16["met"] is None


def test_one_thread_row_is_in_cpu_seconds():
    f32, bf16 = race.make_rows("ddim_b8", 1, *make_samples(), {}, limit_gflops=100.0)
    assert (f32["ours_s"], f32["ours_wall_s"], f32["ours_cpu_s"]) == (6, 3, 6)
    assert f32["met"] is True and bf16["met"] is False  # 0.5 of 0.62, 1.0 of 0.95


def test_bounds_are_those_of_the_table():
    assert tasks.bound("ae_train_b8", 1, "torch_f32") == 0.75
    assert tasks.bound("ddim_b1", 2, "torch_f32") == 0.75
    assert tasks.bound("ae_decode_b8", 1, "torch_bf16") == 1.1
    assert tasks.bound("ddim_b8", 2, "torch_bf16") is None
    assert set(tasks.BOUNDS) == set(tasks.RACES)


def test_reader_row_is_in_seconds_of_a_slice():
    facts = {"slices": 400, "peak_mb": 1.0, "disturbed": 0}
    row = data._row("data_images", 2, [sample(0.4)], facts, needed=0.01)
    assert row["ours_s"] == pytest.approx(0.001) and row["ratio"] == pytest.approx(0.1)
    assert row["met"] and row["ours_slices_per_s"] == pytest.approx(1000)
    assert not data._row("data_images", 2, [sample(4.0)], facts, needed=0.01)["met"]


# Summary


def make_rows():
    return race.make_rows("ddim_b8", 1, *make_samples(), {}, limit_gflops=100.0)


def test_summary_is_kept_and_read_again(tmp_path):
    summary = report.Summary(tmp_path, SETTINGS)
    summary.set_limit(1, {"f32_gflops": 100.0, "bf16_gflops": 0.0, "by_case": {}})
    summary.add("rows", make_rows())
    stored = files.read_json(tmp_path / report.SUMMARY)
    assert {"machine", "limit_gflops", "rows"} <= stored.keys() and stored["limit_gflops"] == 100
    for row in stored["rows"]:
        assert set(report.ROW_KEYS) <= row.keys()
    again = report.Summary(tmp_path, SETTINGS)
    assert again.has("rows", "ddim_b8", 1) and not again.has("rows", "ddim_b8", 2)
    assert again.has_limit(1) and again.limit(1) == 100


def test_other_settings_other_code_and_fresh_start_over(tmp_path, monkeypatch):
    report.Summary(tmp_path, SETTINGS).add("rows", make_rows())
    assert report.Summary(tmp_path, {"quick": False}).data["rows"] == []
    assert report.Summary(tmp_path, SETTINGS, fresh=True).data["rows"] == []
    monkeypatch.setattr(proc, "versions", lambda: {"code_sha256": "another"})
    assert report.Summary(tmp_path, SETTINGS).data["rows"] == []


def test_incomplete_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no threads, ours_s"):
        report.Summary(tmp_path, SETTINGS).add("rows", [{"name": "x"}])


def test_volume_says_how_much_faster_and_how_good():
    row = {"name": "volume_150", "threads": 2, "peer": "torch_f32", "ratio": 1 / 40}
    scores = {"ours_psnr": 25.0, "peer_psnr": 23.5, "peer_scaled_from_slices": 8}
    (line,) = tables.volume_lines([row | scores, {"name": "ddim_b8"}])
    for part in ("40 times faster", "25.00 dB against 23.50 dB", "scaled from 8 slices"):
        assert part in line


def test_table_and_plot_show_every_row(tmp_path):
    summary = report.Summary(tmp_path, SETTINGS)
    summary.add("rows", make_rows())
    point = dict(against="steps", sizes=[1, 2], seconds=[1.0, 2.0], flops=[1, 2], threads=1)
    fitted = {"exponent": 1.0, "exponent_upper": 1.0, "flops_exponent_upper": 1.0}
    summary.add("growth", [growth.judge({"name": "DDIM", **point, **fitted})])
    summary.add("startup", [{"name": "--help", "wall_s": 1.0, "cpu_s": 1.0, "best_s": 0.9}])
    summary.fail("data", "disk full")
    text = tables.write_table(tmp_path, summary.data)
    assert (tmp_path / tables.TABLE).read_text() == text
    for part in ("torch_f32 contiguous", "**0.50**", "met (0.62)", "not met (0.95)", "disk full"):
        assert part in text
    assert "| DDIM |" in text and "| --help |" in text
    tables.write_plot(tmp_path, summary.data)
    assert 1000 < (tmp_path / tables.PLOT).stat().st_size < 300_000


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
    answers = []
    lines = io.StringIO("".join(json.dumps(r) + "\n" for r in requests))
    worker.serve(setup, lines, lambda text: answers.append(json.loads(text)))
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
    args = run.parse(["--only", "ddim_b1,data", "--threads", "1", "--quick"])
    assert args.names == ["ddim_b1", "data"] and args.threads == [1] and args.rounds == 2
    assert run.parse(["--threads", "1"]).names == [*tasks.RACES, *tasks.SECTIONS]
    for wrong in (["--only", "nothing"], ["--threads", "0"], ["--threads", "two"]):
        with pytest.raises(SystemExit) as refused:
            run.parse(wrong)
        assert refused.value.code == 2


# Networks


def autoencoder_shapes():
    net, x = tasks_flax.make_autoencoder(), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    eps = jnp.zeros(tasks_flax.latent_shape(net, x))
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, None, None, eps), x)["params"]


def unet_shapes():
    net, z = tasks_flax.make_unet(), jax.ShapeDtypeStruct((1, 16, 16, 4), jnp.float32)
    code = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(lambda *a: net.init(jax.random.key(0), *a), z, code, code, z)["params"]


@pytest.mark.parametrize(
    "shapes, count", [(autoencoder_shapes, 3_084_705), (unet_shapes, 16_060_932)]
)
def test_networks_have_monais_number_of_parameters(shapes, count):
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(shapes())) == count


def test_flops_of_known_modules():
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert flops.forward_flops(Conv(5), x) == 2 * 2 * 64 * 5 * 9 * 3
    assert flops.forward_flops(Conv(5, stride=2), x) == 2 * 2 * 16 * 5 * 9 * 3
    assert flops.forward_flops(CentredDownsample(), x) == 2 * 2 * 16 * 3 * 9 * 3
    attention = SelfAttention(1, head_channels=3)
    projections, products = 2 * 2 * 64 * 3 * (9 + 3), 4 * 2 * 64**2 * 3
    assert flops.forward_flops(attention, x) == projections + products


def test_flops_are_those_of_the_other_side():
    """What FlopCounterMode plus the attention products gives for MONAI's networks (check.py)."""
    images = jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32)
    net = tasks_flax.make_autoencoder()
    eps = jnp.zeros(tasks_flax.latent_shape(net, images))
    assert flops.forward_flops(net, images, None, None, eps) == 6_637_535_232
    z, code = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32), jnp.zeros(2, jnp.int32)
    assert flops.forward_flops(tasks_flax.make_unet(), z, code, code, z) == 2_246_836_224


# Data


def test_reader_reads_the_synthetic_datasets(tmp_path):
    images = datasets.write_dataset(tmp_path / "images", slices=100, size=16)
    latents = datasets.write_dataset(
        tmp_path / "latents", slices=100, size=4, kind="latents", images=images
    )
    for chosen, source, target in (
        (None, (2, 16, 16, 3), (2, 16, 16, 1)),
        (latents, (2, 4, 4, 4), (2, 4, 4, 4)),
    ):
        with datasets.open_batches(images, chosen, batch_size=2, num_threads=1) as batches:
            batch = next(batches)
        assert batch["source"].shape == source and batch["target"].shape == target


def test_batches_of_a_volume_cover_it_once():
    case = volume_case.Case(*[np.zeros(19)] * len(volume_case.Case._fields))
    rows = volume_case.batches(case, size=8)
    assert [(r.start, r.stop) for r in rows] == [(0, 8), (8, 16), (16, 19)]
    assert volume_case.batches(case, size=8, limit=1) == rows[:1]


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


# The volume's training


@pytest.mark.parametrize("network", ["autoencoder", "unet"])
def test_the_volumes_networks_train(network):
    """Ten steps of each at a tiny size: every loss is finite, and the average has moved."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    images = rng.uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
    z = rng.standard_normal((8, 8, 8, 4)).astype(np.float32)
    code = np.ones(8, np.int32)
    if network == "autoencoder":
        net = tasks_flax.make_autoencoder((16, 16))
        arrays, args = {"images": images}, (images, None, None, z)
        make_loss = lambda steps: volume_train.make_autoencoder_loss(net)  # noqa: E731
    else:
        net = tasks_flax.make_unet((32, 64))
        arrays, args = {"target": z, "source": z, "code": code}, (z, code, code, z)
        make_loss = lambda steps: volume_train.make_ldm_loss(net, steps)  # noqa: E731
    start = init_params(net, key, *args)
    averaged, record = volume_train.train(make_loss, start, arrays, seconds=0.0)
    assert record["steps"] == 2 * volume_train.PROBE_STEPS and math.isfinite(record["loss"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, averaged)
    assert max(jax.tree.leaves(moved)) > 1e-4
