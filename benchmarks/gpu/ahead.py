"""A training step compiled for a GPU that is not there: seconds, memory, launches, bytes moved.

    python -m benchmarks.gpu.ahead configs/ldm.py:a6000 [--card A6000] [--set KEY=VALUE ...]

Needs jax[cuda13] (or cuda12) beside this project's requirements, in an environment of its own. The
libraries choose no algorithms so: their workspaces are in no figure, and the program cannot run.
"""

import argparse
import ast
import collections
import importlib
import json
import math
import os
import re
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from benchmarks.gpu import run, steps
from cldm_jax.models import layers
from cldm_jax.runs.steps import make_step
from cldm_jax.runtime import device

# (compute capability, multiprocessors, threads of each, its shared memory, memory in GB/s, L2 in MB, GB)
CARDS = {
    "A6000": ((8, 6), 84, 1536, 102_400, 768, 6, 48),
    "H200": ((9, 0), 132, 2048, 233_472, 4800, 60, 141),
}
TARGET = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 fpus_per_core: 128
shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
threads_per_core_limit: {threads} core_count: {cores} registers_per_core_limit: 65536
registers_per_block_limit: 65536 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: {speed}000000000 l2_cache_size: {l2} clock_rate_ghz: 1.8
device_memory_size: {memory}000000000 cuda_compute_capability {{ major: {major} minor: {minor} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
device_description_str: "{name}" """
FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")


def sharding(card: str):
    """Of one such card."""
    (major, minor), cores, threads, shared, speed, l2, memory = CARDS[card]
    fields = dict(major=major, minor=minor, cores=cores, threads=threads, shared=shared, name=card)
    fields |= dict(optin=shared - 1024, speed=speed, l2=l2 * 2**20, memory=memory)
    config = TARGET.format(**fields)
    found = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=config)
    mesh = jax.sharding.Mesh(np.array(found.devices), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def lowered(config, where):
    """The step of `config`'s training, lowered for the devices of the sharding `where`."""
    method, state, batch = steps.example(config)
    batch = steps.rows(batch, config.train.batch_size)
    arguments = jax.tree.map(jnp.asarray, (state, np.int32(0), batch, jax.random.key(0)))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments
    )
    return make_step(method, where).lower(*shapes)


def size(shape: str) -> float:
    """Bytes of an array, or of all of a tuple, as a compiled program's text names them."""
    found = 0.0
    for kind, bits, dims in ARRAY.findall(shape):
        count = math.prod(int(n) for n in dims.split(",") if n)
        found += count * (1 if kind == "pred" else int(bits) / 8)
    return found


def moved(text: str) -> dict[str, tuple[int, float]]:
    """{kind: (launches, bytes read and written)} of a compiled program, each array whole."""
    sizes, found = {}, collections.defaultdict(lambda: (0, 0.0))
    for line in text[text.index("\nENTRY") :].splitlines():
        if (match := INSTRUCTION.match(line)) is None:
            continue
        name, shape, kind, operands, rest = match.groups()
        sizes[name] = size(shape)
        if kind in FREE:
            continue
        target = re.search(r'custom_call_target="(?:__)?([^"]*)"', rest)
        kind = target[1] if target else kind
        read = sum(sizes.get(operand, 0.0) for operand in re.findall(r"%([\w.\-]+)", operands))
        count, total = found[kind]
        found[kind] = (count + 1, total + read + sizes[name])
    return dict(found)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configs/NAME.py:PRESET")
    parser.add_argument("--card", default="A6000", choices=CARDS)
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the config")
    args = parser.parse_args(argv)
    os.environ["XLA_FLAGS"] = " ".join([*run.FLAGS, os.environ.get("XLA_FLAGS", "")])
    device.choose_kernels("xla")
    layers.attention_for = lambda asked, *_: asked  # which looks for a GPU, and finds none here
    module, _, preset = args.config.removesuffix("/").partition(".py:")
    config = importlib.import_module(module.replace("/", ".")).get_config(preset)
    for key, _, value in (word.partition("=") for word in args.set):
        with config.unlocked():
            config.update_from_flattened_dict({key: ast.literal_eval(value)})
    program = lowered(config, sharding(args.card))
    began = time.perf_counter()
    compiled = program.compile()
    seconds = time.perf_counter() - began
    account, kinds = compiled.memory_analysis(), moved(compiled.as_text())
    own = account.argument_size_in_bytes + account.output_size_in_bytes
    own += account.temp_size_in_bytes - account.alias_size_in_bytes
    found = {
        "config": args.config,
        "set": args.set,
        "card": args.card,
        "compile_s": round(seconds, 1),
        "memory_gb": round(own / 1e9, 2),
        "launches": sum(count for count, _ in kinds.values()),
        "moved_gb": round(sum(total for _, total in kinds.values()) / 1e9, 2),
        "kinds": {k: (n, round(b / 1e9, 2)) for k, (n, b) in kinds.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
