"""How our cost grows with size, batch, steps and slices, beside how its arithmetic grows."""

import statistics

from benchmarks import stats
from benchmarks.race import Settings, Worker, take
from benchmarks.tasks import Spec

TOLERANCE = 0.1  # of an exponent: what counts as growing no faster than the arithmetic
SERIES = {  # name: (against, sizes, task of a size)
    "AE encode": ("image side", (64, 128, 256), lambda n: Spec("ae_encode", 1, n)),
    "U-Net forward": ("latent side", (16, 32, 64), lambda n: Spec("unet", 1, n)),
    "U-Net batch": ("batch", (1, 2, 4, 8, 16), lambda n: Spec("unet", n, 32)),
    "DDIM": ("steps", (1, 2, 5, 10, 20), lambda n: Spec("ddim", 1, 32, steps=n)),
    "volume, one step": ("slices", (8, 16, 32, 64), lambda n: Spec("volume", 8, 32, slices=n)),
}
QUICK_SERIES = ("U-Net forward", "DDIM")


def growth_row(name: str, threads: int, settings: Settings) -> dict:
    """Seconds and FLOPs of every size of a series, with fitted exponents."""
    against, sizes, make_spec = SERIES[name]
    seconds, flops = [], []
    with Worker("flax", threads) as worker:
        for size in sizes:
            facts = worker.ask("setup", spec=list(make_spec(size)))
            samples = [take(worker, settings)[0] for _ in range(settings.rounds)]
            seconds.append(statistics.median(stats.seconds(s, threads) for s in samples))
            flops.append(facts["flops"])
    arithmetic = stats.growth(sizes, flops)
    return {
        "name": name,
        "threads": threads,
        "against": against,
        "sizes": list(sizes),
        "seconds": seconds,
        "flops": flops,
        "flops_exponent": arithmetic["exponent"],
        "flops_exponent_upper": arithmetic["exponent_upper"],
        **stats.growth(sizes, seconds),
    }


def judge(row: dict) -> dict:
    """The row with `excess`, by how much its time's exponent passes its arithmetic's, and `met`."""
    excess = row["exponent_upper"] - row["flops_exponent_upper"]
    return {**row, "excess": excess, "met": excess <= TOLERANCE}
