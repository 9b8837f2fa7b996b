"""A volume of 150 slices: our one-step read-out against fifty DDIM steps of MONAI, same weights.

Both start from the PET's latents and end with decoded images, eight slices at a time.
"""

import pathlib
import statistics
import subprocess
import sys

import numpy as np

from benchmarks import proc, volume_case
from benchmarks.race import Settings, Taken, alone, judged, versus
from benchmarks.tasks import VARIANTS, VOLUME, VOLUME_BOUND
from cldm_jax import files
from cldm_jax.metrics.image import psnr

PEERS = ("torch_f32", "torch_bf16")
STEPS = 50
PROBE_STEPS = 5  # of one batch, to choose the peer's memory layout
QUICK_BATCHES = 1  # of nineteen: what the peer runs with --quick, scaled to the volume


def ensure_trained(folder: pathlib.Path, minutes: float, people: int) -> None:
    """Networks and case in `folder`, made on first use and kept."""
    if not (folder / volume_case.RECORD).is_file():
        print(f"benchmark: training the volume's networks for {minutes:g} min", flush=True)
        command = [sys.executable, "-m", "benchmarks.volume_case", str(folder.absolute())]
        subprocess.run([*command, str(minutes), str(people)], cwd=proc.ROOT, check=True)


def measure(side: str, threads: int, settings: Settings, **request) -> tuple[Taken, np.ndarray]:
    """A read-out's samples and its images."""
    path = pathlib.Path(request["folder"]) / f"{side}-{request['steps']}.npy"
    warm = side == "flax" and request["steps"] == 0
    taken = alone(side, threads, settings, str(path), volume=request, warm=warm)
    images = np.load(path)
    path.unlink()
    return taken, images


def choose_variant(rows: list[dict], peer: str, folder: str, threads: int, settings) -> str:
    """The peer's faster memory layout: that of its DDIM row, or by a few steps of one batch."""
    for row in rows:
        if (row["name"], row["peer"], row["threads"]) == ("ddim_b8", peer, threads):
            return f"{peer}/{row['peer_variant']}"
    times = {}
    for key, variant in VARIANTS.items():
        if key.startswith(peer):
            request = {"folder": folder, "steps": PROBE_STEPS, "limit": 1, **variant}
            taken, _ = measure("torch", threads, settings._replace(rounds=2), **request)
            times[key] = statistics.median(taken.times(threads))
    return min(times, key=times.get)


def volume_rows(
    summary, folder: pathlib.Path, threads: int, settings: Settings, quick: bool
) -> list[dict]:
    """A row for each peer; with `quick` for f32 alone, its time scaled from one batch."""
    where, once = str(folder.absolute()), settings._replace(rounds=1, tries=1)
    case, record = volume_case.load_case(folder), files.read_json(folder / volume_case.RECORD)
    ours, images = measure("flax", threads, settings, folder=where, steps=0)
    fifty = None if quick else measure("flax", threads, once, folder=where, steps=STEPS)
    limit, rows = QUICK_BATCHES if quick else 0, []
    for peer in PEERS if proc.has_bf16() and not quick else PEERS[:1]:
        best = choose_variant(summary.data["rows"], peer, where, threads, settings)
        request = {"folder": where, "steps": STEPS, "limit": limit, **VARIANTS[best]}
        theirs, made = measure("torch", threads, once, **request)
        factor = len(volume_case.batches(case)) / limit if limit else 1.0
        theirs = theirs._replace(samples=[s.scaled(factor) for s in theirs.samples])
        ratios = [t / theirs.times(threads)[0] for t in ours.times(threads)]
        gflops = summary.limit(threads)
        row = versus(VOLUME, threads, best, ours, theirs, ratios, gflops)
        row |= {"ours_psnr": score(images[: len(made)], case), "peer_psnr": score(made, case)}
        if fifty is not None:
            row["ours_ddim50_s"] = fifty[0].times(threads)[0]
            row["ours_ddim50_psnr"] = score(fifty[1], case)
        row |= {"peer_scaled_from_slices": len(made) if limit else None, "training": record}
        rows.append(judged(row, VOLUME_BOUND))
    return rows


def score(images: np.ndarray, case: volume_case.Case) -> float:
    """PSNR in the head, dB; data range 2, the model's."""
    n = len(images)
    return psnr(images, case.truth[:n], data_range=2.0, mask=case.mask[:n])
