"""The machine's limit: the fastest dense matrix product of any library, by number of threads."""

from benchmarks import proc
from benchmarks.race import Settings, Worker, WorkerError, take

SIZES = (1024, 2048, 4096)
CASES = (("torch", "float32"), ("numpy", "float32"), ("flax", "float32"), ("torch", "bfloat16"))


def measure_limit(threads: int, settings: Settings, sizes=SIZES) -> dict:
    """{"f32_gflops", "bf16_gflops", "by_case": {library/dtype/size: GF/s}}, wall time."""
    by_case = {}
    for side, dtype in CASES if proc.has_bf16() else CASES[:-1]:
        with Worker(side, threads) as worker:
            for size in sizes:
                try:
                    worker.ask("setup", gemm=[size, dtype])
                    samples = [take(worker, settings)[0] for _ in range(settings.rounds)]
                except WorkerError:
                    continue  # a library without this type: the others set the limit
                fastest = min(sample.wall_s for sample in samples)
                by_case[f"{side}/{dtype}/{size}"] = round(2 * size**3 / fastest / 1e9, 1)

    def best(dtype):
        return max((v for k, v in by_case.items() if f"/{dtype}/" in k), default=0.0)

    return {"f32_gflops": best("float32"), "bf16_gflops": best("bfloat16"), "by_case": by_case}
