"""All promises, one table: `python -m faults` (launch/faults.sh).

Everything is made in a temporary folder and removed; what is kept is <out>/summary.json, written again
after each promise. Exit status 1 where a promise fell short.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts; children are given the same

from cldm_jax import console, files
from cldm_jax.errors import UserError
from cldm_jax.runs import record
from cldm_jax.runtime import device
from faults import checkpoints, devices, inputs, outputs, security, soak, training
from faults.common import Outcome, Promise

MODULES = (training, checkpoints, devices, inputs, security, outputs, soak)
PROMISES = sorted((p for module in MODULES for p in module.PROMISES), key=lambda p: p.id)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=console.command("faults"), description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="low counts: minutes")
    parser.add_argument("--only", default="", help="numbers of promises, like 1,3")
    parser.add_argument("--out", default="runs/faults", help="folder for summary.json")
    parsed = parser.parse_args(argv)
    known = {str(p.id) for p in PROMISES}
    parsed.only = set(filter(None, parsed.only.split(",")))
    if parsed.only - known:
        parser.error(f"--only: no promise {', '.join(sorted(parsed.only - known))}")
    return parsed


def is_kept(row: dict) -> bool:
    """All survived, nothing lost, and the control (where there is one) saw the fault."""
    whole = row["survived"] == row["injected"] > 0 and row["lost"] == 0
    return whole and row["negative_control"] is not False


def measure(promise: Promise, work: pathlib.Path, quick: bool) -> dict:
    """One row of the summary. A harness that fails itself is a promise that was not kept."""
    folder, began = work / str(promise.id), time.monotonic()
    folder.mkdir()
    try:
        outcome = promise.run(folder, quick)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(0, 0, 0, None, [f"NOT MEASURED: {type(error).__name__}: {error}"])
    seconds = round(time.monotonic() - began, 1)
    shutil.rmtree(folder)
    return {"id": promise.id, "name": promise.name, **outcome._asdict(), "seconds": seconds}


def facts(argv: list[str]) -> dict:
    """What a reader needs to make the numbers again."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "nibabel", "pydicom")
    return {
        "command": console.command("faults", *argv),
        "git": record.git_revision(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "hardware": device.describe(),
    }


def table(rows: list[dict]) -> str:
    lines = [f"{'#':>2}  {'promise':<45} {'survived':>9} {'lost':>4}  {'control':<7} {'time':>7}"]
    for row in rows:
        control = {True: "saw it", False: "BLIND", None: "-"}[row["negative_control"]]
        count = f"{row['survived']}/{row['injected']}"
        lines.append(
            f"{row['id']:>2}  {row['name']:<45} {count:>9} {row['lost']:>4}  {control:<7} "
            f"{row['seconds']:>5.0f} s{'' if is_kept(row) else '  FELL SHORT'}"
        )
        if not is_kept(row):
            lines += [f"      {note[:300]}" for note in row["notes"]]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    wanted = parse(argv)
    out = pathlib.Path(wanted.out)
    chosen = [p for p in PROMISES if not wanted.only or str(p.id) in wanted.only]
    device.enable_compilation_cache()
    summary = {"promises": [], "quick": wanted.quick, **facts(argv), "overhead": {}}
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        work = pathlib.Path(work)
        for number, promise in enumerate(chosen, 1):
            say(f"faults: {number}/{len(chosen)}  {promise.name}")
            row = measure(promise, work, wanted.quick)
            summary["promises"].append(row)
            files.write_json(out / "summary.json", summary)
            say(f"  {row['survived']}/{row['injected']} survived, {row['seconds']:.0f} s")
        if not wanted.only:
            say("faults: what the protections cost")
            summary["overhead"] = soak.overhead(work, wanted.quick)
            files.write_json(out / "summary.json", summary)
    print(table(summary["promises"]))
    if summary["overhead"]:
        print(json.dumps(summary["overhead"]))
    print(f"{out / 'summary.json'}")
    return 0 if all(map(is_kept, summary["promises"])) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
