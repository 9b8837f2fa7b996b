"""A volume of 150 slices: our one-step read-out against fifty DDIM steps of MONAI, same weights.

Both start from the PET's latents and end with decoded images, eight slices at a time.
"""

import pathlib
import statistics
import subprocess
import sys
from typing import NamedTuple

import numpy as np

from benchmarks import proc, stats, volume_case
from benchmarks.race import Settings, Worker, is_met, side_values, take
from benchmarks.stats import Sample
from benchmarks.tasks import VARIANTS, VOLUME_BOUND
from cldm_jax import files
from cldm_jax.metrics.image import psnr

PEERS = ("torch_f32", "torch_bf16")
STEPS = 50
PROBE_STEPS = 5  # of one batch, to choose the peer's memory layout
QUICK_BATCHES = 1  # of nineteen: what the peer runs with --quick, scaled to the volume


class Result(NamedTuple):
    samples: list[Sample]
    facts: dict
    images: np.ndarray  # [N, H, W]


def ensure_trained(folder: pathlib.Path, minutes: float, people: int) -> dict:
    """The record of the training in `folder`, made on first use and kept."""
    path = folder / volume_case.RECORD
    if not path.is_file():
        print(f"benchmark: training the volume's networks for {minutes:g} min", flush=True)
        command = [sys.executable, "-m", "benchmarks.volume_train", str(folder.absolute())]
        subprocess.run([*command, str(minutes), str(people)], cwd=proc.ROOT, check=True)
    return files.read_json(path)


def measure(side: str, threads: int, settings: Settings, samples: int, **request) -> Result:
    """`samples` samples of a read-out and its images."""
    output = pathlib.Path(request["folder"]) / f"{side}-{request['steps']}.npy"
    with Worker(side, threads) as worker:
        facts = worker.ask("setup", volume=request, warm=side == "flax" and request["steps"] == 0)
        taken = [take(worker, settings) for _ in range(samples)]
        worker.ask("save", path=str(output.absolute()))
        facts |= {"disturbed": sum(disturbed for _, disturbed in taken), **worker.ask("rss")}
    images = np.load(output)
    output.unlink()
    return Result([sample for sample, _ in taken], facts, images)


def choose_variant(rows: list[dict], peer: str, folder: str, threads: int, settings) -> str:
    """The peer's faster memory layout: that of its DDIM row, or by a few steps of one batch."""
    for row in rows:
        if row["peer_variant"] == "compile":
            continue
        if (row["name"], row["peer"], row["threads"]) == ("ddim_b8", peer, threads):
            return f"{peer}/{row['peer_variant']}"
    times = {}
    for name, variant in VARIANTS.items():
        if name.startswith(peer) and "compiled" not in variant:
            request = {"folder": folder, "steps": PROBE_STEPS, "limit": 1, **variant}
            result = measure("torch", threads, settings, 2, **request)
            times[name] = [stats.seconds(s, threads) for s in result.samples]
    return stats.best_variant(times)


def scaled(samples: list[Sample], factor: float) -> list[Sample]:
    return [s._replace(wall_s=s.wall_s * factor, cpu_s=s.cpu_s * factor) for s in samples]


def volume_rows(
    summary, folder: pathlib.Path, threads: int, settings: Settings, quick: bool
) -> list[dict]:
    """A row for each peer; with `quick` for f32 alone, its time scaled from one batch."""
    where, single = str(folder.absolute()), settings._replace(tries=1)
    case, record = volume_case.load_case(folder), files.read_json(folder / volume_case.RECORD)
    ours = measure("flax", threads, settings, settings.rounds, folder=where, steps=0)
    fifty = None if quick else measure("flax", threads, single, 1, folder=where, steps=STEPS)
    batches, limit = len(volume_case.batches(case)), QUICK_BATCHES if quick else 0
    rows = []
    for peer in PEERS if proc.has_bf16() and not quick else PEERS[:1]:
        best = choose_variant(summary.data["rows"], peer, where, threads, settings)
        request = {"folder": where, "steps": STEPS, "limit": limit, **VARIANTS[best]}
        result = measure("torch", threads, single, 1, **request)
        factor = batches / limit if limit else 1.0
        result = result._replace(samples=scaled(result.samples, factor))
        row = _row(threads, peer, best, ours, result, case, summary.limit(threads))
        if fifty is not None:
            row["ours_ddim50_s"] = stats.seconds(fifty.samples[0], threads)
            row["ours_ddim50_psnr"] = score(fifty.images, case)
        row["peer_scaled_from_slices"] = len(result.images) if limit else None
        rows.append({**row, "training": record})
    return rows


def score(images: np.ndarray, case: volume_case.Case) -> float:
    """PSNR in the head, dB; data range 2, the model's."""
    n = len(images)
    return psnr(images, case.truth[:n], data_range=2.0, mask=case.mask[:n])


def _row(threads, peer, best, ours: Result, result: Result, case, limit_gflops: float) -> dict:
    ours_times = [stats.seconds(s, threads) for s in ours.samples]
    peer_times = [stats.seconds(s, threads) for s in result.samples]
    ours_s, peer_s = statistics.median(ours_times), statistics.median(peer_times)
    return {
        "name": f"volume_{volume_case.SLICES}",
        "threads": threads,
        "peer": peer,
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": ours_s / peer_s,
        "ratio_range": [min(ours_times) / peer_s, max(ours_times) / peer_s],
        "mfu": ours.facts["flops"] / ours_s / (limit_gflops * 1e9),
        "compared": "cpu" if threads == 1 else "wall",
        "peer_variant": best.split("/")[1],
        "flops": ours.facts["flops"],
        **side_values("ours", ours.samples, ours.facts, ours_times),
        **side_values("peer", result.samples, result.facts, peer_times),
        "ours_psnr": score(ours.images[: len(result.images)], case),
        "peer_psnr": score(result.images, case),
        "bound": VOLUME_BOUND,
        "met": is_met(ours_s / peer_s, VOLUME_BOUND),
    }
