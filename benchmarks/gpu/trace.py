"""What a device did while a profiler looked: the kernels that took longest, and the share it was idle."""

import pathlib
import shutil

import jax

TOP = 40  # kernels that are named
# Line of a GPU's plane that holds its kernels; planes and lines are named by XLA's profiler.
STREAM, DEVICE = "stream", "/device:gpu"
CARRYING = ("MemcpyH2D", "MemcpyD2H")  # a device that only carries to and fro computes nothing


def record(folder: pathlib.Path, function) -> dict:
    """`summarise` of what happens while function() runs. It must wait for the device itself. Of a GPU
    the profiler sees the kernels alone: following the host slows it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 0 if jax.default_backend() == "gpu" else 2
    with jax.profiler.trace(str(folder), profiler_options=options):
        function()
    return summarise(folder)


def summarise(folder: pathlib.Path) -> dict:
    """{"device", "window_s", "busy_s", "idle_share", "kernels": [{"name", "share", "calls"}]}.

    The window is from the first kernel's start to the last one's end: a call that waits for its first
    launch does not count. Without a GPU: of XLA's threads on the CPU, which rehearses the reading.
    Raises ValueError where nothing was recorded.
    """
    kernels, host, device = [], [], ""
    for path in sorted(folder.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if is_gpu := plane.name.lower().startswith(DEVICE):
                device = plane.name
            for line in plane.lines:
                name = line.name.lower()
                is_stream = is_gpu and STREAM in name
                if not is_stream and "xla" not in name and "eigen" not in name:
                    continue
                found = [(e.start_ns, e.end_ns, e.name) for e in line.events]
                if is_stream:
                    kernels += [event for event in found if not event[2].startswith(CARRYING)]
                else:
                    host += [event for event in found if event[1] > event[0]]
    if not kernels and not host:
        raise ValueError(f"{folder}: the profiler recorded no kernel")
    return {"device": device if kernels else "host", **account(kernels or host)}


def account(events: list[tuple[float, float, str]]) -> dict:
    """Of (start, end, name) in ns, several at a time perhaps."""
    busy = covered([(start, end) for start, end, _ in events])
    window = max(end for _, end, _ in events) - min(start for start, _, _ in events)
    spent: dict[str, list] = {}
    for start, end, name in events:
        own = spent.setdefault(name, [0.0, 0])
        own[0] += end - start
        own[1] += 1
    total = sum(own[0] for own in spent.values())
    top = sorted(spent.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "window_s": window / 1e9,
        "busy_s": busy / 1e9,
        "idle_share": 1 - busy / window if window else 0.0,
        "events": len(events),
        "kernels": [
            {"name": name[:120], "share": ns / total if total else 0.0, "calls": calls}
            for name, (ns, calls) in top
        ],
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    length, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return length
