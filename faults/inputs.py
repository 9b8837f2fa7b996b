"""Promise 8: bad volumes are refused by name, unusual ones handled right; and readers that never fall.

The corpus runs in a child process (`python -m faults.inputs FOLDER`) that measures its own memory for
each kind and is killed when one hangs; a few kinds go through the real commands.
"""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np

from cldm_jax import files
from cldm_jax.data import bids, nifti, pet_inputs, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from cldm_jax.runtime import device, weights
from configs import prepare as prepare_config
from faults import corpus
from faults.common import Outcome, Promise

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 20  # for a kind, on a loaded machine; most take well under one
SLACK = 24 << 20  # bytes of memory that are not the volume's: buffers, imports on first use
FUZZ_SECONDS = 5


class Result(dict):
    """name, where, ok, seconds, and what happened ("why") or how much memory it took."""


def check(kind: corpus.Kind, folder: pathlib.Path, seconds: int = 0) -> Result:
    """Reads one single-volume kind and, where it is fine, predicts from it. `seconds`: after which a
    hang ends this process; 0 for none.
    """
    path = kind.make(folder)
    signal.alarm(seconds)
    began, before = time.monotonic(), _reset_peak()
    text, allowed, growth = io.StringIO(), 0, 0
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            (found,) = pet_inputs.find_inputs(path)
            volume, facts = pet_inputs.read_input(found)
            growth = _peak() - before
            allowed = 2 * volume.array.size * max(4, _item_size(found.path))
            written = _predict(path, folder / "out")
        why = _unlike(kind, volume, facts, written, text.getvalue())
    except UserError as error:
        growth = growth or _peak() - before
        why = _wrong_refusal(kind, error, path)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    if not why and growth > allowed + SLACK:
        why = f"took {growth >> 20} MiB"
    took = time.monotonic() - began
    return Result(name=kind.name, ok=not why, why=why, seconds=took, growth=growth)


def _predict(path, out) -> list[pathlib.Path]:
    from cldm_jax.jobs import predict

    request = predict.Request(str(path), str(out), checkpoint=str(ROOT), mode="onestep")
    return predict.predict(request)


def _wrong_refusal(kind: corpus.Kind, error: UserError, path) -> str:
    """Why this is not the refusal that was expected: "" where it is."""
    if kind.expect != "refused":
        return f"refused: {error}"
    if kind.reason.lower() not in str(error).lower():
        return f"another reason: {error}"
    named = repr(str(path))[1:-1] in str(error) or repr(str(path)) in str(error)
    if not named or not error.remedy or "\n" in str(error):
        return f"not one line with file and remedy: {error}"
    return ""


def _unlike(kind: corpus.Kind, volume, facts, written, text: str) -> str:
    if kind.expect != "handled":
        return "accepted"
    if kind.check and not kind.check(volume, facts):
        return "the voxels are not the head's"
    if kind.reason and kind.reason not in text:
        return f"no word of {kind.reason!r} in {text!r}"
    for path in written:
        made = nifti.read_volume(path, allow_constant=True)
        if made.array.shape != volume.array.shape or not np.allclose(
            made.affine, volume.affine, atol=1e-4
        ):
            return f"{path.name} is not on the input's grid"
    if (
        kind.check is not corpus.anything
    ):  # nothing is odd about it: the identity model gives the PET back
        pet = np.minimum(volume.array, 1.5 * np.percentile(volume.array[volume.array > 0], 99))
        fit = np.corrcoef(nifti.read_volume(written[0]).array.ravel(), pet.ravel())[0, 1]
        if fit < 0.9:
            return f"{written[0].name} does not show the PET (correlation {fit:.2f})"
    return ""


def check_pair(kind: corpus.Kind, folder: pathlib.Path, seconds: int = 0) -> Result:
    """Prepares a cohort of which one person is wrong: only the others are prepared."""
    cohort = kind.make(folder / "cohort")
    signal.alarm(seconds)
    config = prepare_config.get_config("tiny")
    config.cohort, config.split_mode = str(cohort), "default"
    text, began, before = io.StringIO(), time.monotonic(), _reset_peak()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            prepare.run(config, str(folder / "work"))
        why = "" if kind.expect == "handled" else "accepted"
        if kind.reason not in text.getvalue():
            why = why or f"no word of {kind.reason!r}"
        shards.Prepared(folder / "work", verify=True)
    except UserError as error:
        why = "" if kind.expect == "refused" else f"refused: {error}"
        if kind.reason.lower() not in str(error).lower() + text.getvalue().lower():
            why = f"another reason: {error}"
        if (folder / "work" / shards.INDEX).exists():
            why = why or _unlike_the_others(cohort, folder / "work")
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    took = time.monotonic() - began
    return Result(name=kind.name, ok=not why, why=why, seconds=took, growth=_peak() - before)


def _unlike_the_others(cohort, work) -> str:
    """Why a folder from which something was left out is not whole: "" where it is."""
    prepared = shards.Prepared(work, verify=True)
    given = {s.id: set(s.files) for s in bids.read_cohort(cohort)}
    made = {
        s["id"]: {n for n in given[s["id"]] if n in s["volumes"]}
        for s in prepared.index["subjects"]
    }
    wrong = [k for k in given if made.get(k) != given[k]]
    return "" if len(wrong) == 1 and len(made) >= len(given) - 1 else f"left out of {wrong}: {made}"


def _item_size(path) -> int:
    if not pathlib.Path(path).is_file() or str(path).endswith(".zip"):
        return 4
    with contextlib.suppress(Exception):
        return nib.load(path).get_data_dtype().itemsize
    return 4


def _reset_peak() -> int:
    """Bytes of memory held now; the peak counts from here (Linux)."""
    device.trim_heap()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    return 0


def kinds(quick: bool) -> list[tuple[str, corpus.Kind]]:
    every = [("nifti", k) for k in corpus.NIFTI] + [("dicom", k) for k in corpus.DICOM]
    every += [("pair", k) for k in corpus.PAIRS]
    return [k for k in every if not quick or not k[1].name.startswith(("large", "bomb behind"))]


def _child(folder: pathlib.Path, quick: bool) -> None:
    """Every kind in this process, one JSON line each on the real stdout."""
    _warm_up(folder / "warm")
    with corpus.identity_model():
        for number, (where, kind) in enumerate(kinds(quick)):
            own = folder / f"{number:03d}"
            own.mkdir()
            result = (check_pair if where == "pair" else check)(kind, own, SECONDS)
            signal.alarm(0)
            print(json.dumps({**result, "where": where}), flush=True)


def _warm_up(folder: pathlib.Path) -> None:
    """What is imported and compiled once is no kind's memory."""
    folder.mkdir(parents=True)
    with corpus.identity_model():
        check(corpus.Kind("warm", "handled", lambda d: corpus.series(d / "s")), folder)


def run_corpus(folder: pathlib.Path, quick: bool) -> list[Result]:
    """Results of all kinds; one that hung, and ended its process so, is one that failed."""
    command = [sys.executable, "-m", "faults.inputs", str(folder), str(int(quick))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=_environment(), timeout=1800
    )
    results = [Result(json.loads(line)) for line in done.stdout.splitlines()]
    for where, kind in kinds(quick)[len(results) :]:
        why = f"not reached: the process ended with {done.returncode}: {done.stderr[-300:]}"
        results.append(Result(name=kind.name, where=where, ok=False, why=why, seconds=0, growth=0))
    return results


def _environment() -> dict:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


# ---- the real commands ----


def command(*words: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=120,
    )


def _is_one_line(done: subprocess.CompletedProcess, fragment: str) -> bool:
    err = done.stderr.strip().splitlines()
    return (
        done.returncode == 2
        and bool(err)
        and err[-1].startswith("error: ")
        and fragment in err[-1]
        and "Traceback" not in done.stderr + done.stdout
    )


def run_commands(folder: pathlib.Path, quick: bool) -> list[Result]:
    """Kinds through `python -m`: exit status 2, one line, no traceback; with --debug there is one."""
    names = ("0 bytes", "bit flip in the voxels", "bomb that says so", "missing slice", "JPEG 2000")
    chosen = [k for k in (*corpus.NIFTI, *corpus.DICOM) if k.name in names]
    results = []

    def add(name, ok, done):
        why = "" if ok else f"{done.returncode}: {done.stderr[-300:]}"
        results.append(Result(where="command", name=name, ok=ok, why=why, seconds=0, growth=0))

    for number, kind in enumerate(chosen[:1] if quick else chosen):
        own = folder / f"c{number}"
        own.mkdir()
        arguments = ("cldm_jax.predict", "-i", str(kind.make(own)), "-o", str(own / "out"))
        done = command(*arguments)  # with the model that is shipped
        add(f"predict: {kind.name}", _is_one_line(done, kind.reason), done)
    if not quick:
        done = command(*arguments, "--debug")
        add(
            "predict --debug: a traceback",
            "Traceback" in done.stderr and done.returncode != 0,
            done,
        )
    for number, kind in enumerate(corpus.PAIRS[:1] if quick else corpus.PAIRS[1:24:8]):
        own = folder / f"p{number}"
        cohort = kind.make(own / "cohort")
        done = command(
            "cldm_jax.main",
            "--config=configs/prepare.py:tiny",
            f"--config.cohort={cohort}",
            f"--workdir={own / 'work'}",
        )
        add(f"prepare: {kind.name}", _is_one_line(done, kind.reason), done)
    return results


def run_batch(folder: pathlib.Path) -> Result:
    """A BIDS dataset with two bad images of five: the good ones are written, the bad ones listed."""
    for number in range(5):
        own = folder / "bids" / f"sub-{number}" / "pet"
        own.mkdir(parents=True)
        path = own / f"sub-{number}_pet.nii.gz"
        corpus.save(path, corpus.head(seed=number)["pet"])
        if number == 1:
            corpus.raw(path, b"")
        if number == 3:
            corpus.flipped(path, 4000, 3)
    text, why = io.StringIO(), "nothing was raised"
    with (
        corpus.identity_model(),
        contextlib.redirect_stderr(text),
        contextlib.redirect_stdout(text),
    ):
        try:
            _predict(folder / "bids", folder / "out")
        except UserError as error:
            listed = "2 of 5 images failed: sub-1, sub-3" in str(error)
            why = "" if listed else str(error)
    made = sorted(p.parent.parent.name for p in (folder / "out").rglob("*_ct.nii.gz"))
    if made != ["sub-0", "sub-2", "sub-4"]:
        why = f"written: {made}"
    return Result(where="batch", name="dataset", ok=not why, why=why, seconds=0, growth=0)


def silently_wrong(folder: pathlib.Path, count: int) -> tuple[int, int]:
    """Bits flipped in a .nii.gz, by `count`: (accepted with other voxels by nibabel, by us)."""
    good = corpus.save(folder / "good.nii.gz", np.rint(corpus.head()["ct"]).astype("i2"))
    data, truth = good.read_bytes(), nib.load(good).get_fdata(dtype=np.float32)
    rng, theirs, ours = np.random.default_rng(0), 0, 0
    for at in rng.integers(10, len(data), count):
        bad = bytearray(data)
        bad[at] ^= 1 << rng.integers(8)
        path = corpus.raw(folder / "bad.nii.gz", bytes(bad))
        with contextlib.suppress(Exception):
            theirs += bool((nib.load(path).get_fdata(dtype=np.float32) != truth).any())
        with contextlib.suppress(UserError):
            ours += bool((nifti.read_volume(path).array != truth).any())
    return theirs, ours


# ---- mutated bytes ----


def mutate(data: bytes, edits) -> bytes:
    """edits: [(operation, place 0..1, byte)]: what a damaged disk or a hostile hand does to a file."""
    data = bytearray(data)
    for operation, place, byte in edits:
        at = int(place * max(len(data) - 1, 0))
        if operation == "set" and data:
            data[at] = byte
        elif operation == "flip" and data:
            data[at] ^= 1 << (byte % 8)
        elif operation == "cut":
            del data[at:]
        elif operation == "drop":
            del data[at : at + 1 + byte]
        elif operation == "insert":
            data[at:at] = bytes([byte]) * (1 + byte % 9)
    return bytes(data)


def seeds(folder: pathlib.Path) -> dict[str, bytes]:
    """Small valid files of everything that is read from others."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, affine = (6, 7, 5), corpus.affine_of((6, 7, 5), (3.0, 3.0, 4.0))
    array = np.random.default_rng(0).normal(5, 2, shape).astype(np.float32)
    nifti.write_volume(folder / "a.nii", array, affine, dtype=np.float32)
    plain = (folder / "a.nii").read_bytes()
    nifti.write_volume(folder / "a.nii.gz", array, affine, dtype=np.int16)
    stored = np.abs(array * 100).astype(np.uint16)
    for z in range(shape[2]):
        slice_ = corpus.dicom_slice(z, stored, affine, 0.5)
        slice_.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    header = "subject,group,split,pet,ct,mr\n"
    prepared = {"subjects": [], "shards": {}, "modalities": {}, "encoding": {}, "splits": {}}
    prepared["encoding"] = shards.ENCODINGS["uint16"]
    (folder / "prepared").mkdir(exist_ok=True)
    writer = shards.ShardWriter(folder / "prepared", "pet", "uint16", (4, 4), 8)
    where = writer.add(np.zeros((3, 4, 4), np.float32))
    volume = {"pet": {"shard": where[0], "offset": 0}}
    prepared["subjects"] = [{"id": "a", "group": "a", "n_slices": 3, "volumes": volume}]
    prepared["splits"] = {"train": ["a"], "val": [], "test": []}
    prepared["shards"] = writer.close()
    shards.write_index(folder / "prepared", prepared)
    exported = folder / "exported"
    exported.mkdir(exist_ok=True)
    facts = weights.save(exported, {"params": {"kernel": np.ones((2, 3), np.float32)}}, "float32")
    card = {"config": {}, "training": {}, "weights": facts, "step": 1}
    weights.write_card(exported, card, [weights.WEIGHTS])
    return {
        "nifti": plain,
        "nifti.gz": (folder / "a.nii.gz").read_bytes(),
        "dicom": (folder / "2.dcm").read_bytes(),
        "manifest": (
            header + "a,g,train,a/pet.nii,a/ct.nii,\nb,,val,b/pet.nii,,b/mr.nii\n"
        ).encode(),
        "index": (folder / "prepared" / "index.json").read_bytes(),
        "shard": (folder / "prepared" / "pet-00000.npy").read_bytes(),
        "card": (exported / "model.json").read_bytes(),
        "weights": (exported / "model.safetensors").read_bytes(),
    }


def read_mutant(kind: str, data: bytes, folder: pathlib.Path) -> None:
    """Reads `data` as what it claims to be. Raises UserError for bad ones; anything else is a fault."""
    if kind in ("nifti", "nifti.gz"):
        volume = nifti.read_volume(corpus.raw(folder / "m.nii.gz", data), max_bytes=1 << 24)
        assert np.isfinite(volume.array).all() and volume.array.ndim == 3
    elif kind == "dicom":
        from cldm_jax.data import dicom

        corpus.raw(folder / "2.dcm", data)
        series = dicom.read_series(folder, max_bytes=1 << 24)
        assert np.isfinite(series.volume.array).all()
        json.dumps(series.facts, allow_nan=False)
    elif kind == "manifest":
        for subject in bids.read_cohort(corpus.raw(folder / "m.csv", data)):
            bids.check_id(subject.id, "fuzz")
    elif kind in ("index", "shard"):
        name = "index.json" if kind == "index" else "pet-00000.npy"
        corpus.raw(folder / "prepared" / name, data)
        prepared = shards.Prepared(folder / "prepared", verify=True)
        for split in ("train", "all"):
            for subject in prepared.subjects(split):
                if prepared.has(subject, "pet"):
                    prepared.read(subject, "pet")
    else:
        name = weights.CARD if kind == "card" else weights.WEIGHTS
        corpus.raw(folder / "exported" / name, data)
        weights.load(folder / "exported", weights.read_card(folder / "exported"))


def with_own_hashes(kind: str, data: bytes) -> bytes:
    """A mutant of a hostile hand: where it is still JSON, its hashes are made to fit again."""
    try:
        value = json.loads(data)
        if kind == "index":
            value["fingerprint"] = shards.fingerprint(value)
        elif kind == "card":
            value.pop("card_sha256", None)
            value["card_sha256"] = files.sha256_json(value)
        return json.dumps(value).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return data


def fuzz(folder: pathlib.Path, kind: str, examples: int, seed: int = 0) -> list[str]:
    """Faults of `examples` mutants: an exception that is no UserError, or more than 5 seconds."""
    good = seeds(folder)
    rng, found = np.random.default_rng([seed, len(kind), *kind.encode()]), []
    operations = ("set", "flip", "cut", "drop", "insert")
    interesting = (0, 1, 255, 127, 128, 34, 45, 47, 48, 57, 91, 92, 123)
    for number in range(examples):
        edits = [
            (operations[rng.choice(5, p=(0.4, 0.3, 0.05, 0.1, 0.15))], _place(rng, good[kind]),
             int(rng.choice(interesting)) if rng.random() < 0.5 else int(rng.integers(256)))
            for _ in range(rng.integers(1, 6))
        ]  # fmt: skip
        data = mutate(good[kind], edits)
        if kind in ("index", "card") and number % 2:
            data = with_own_hashes(kind, data)
        began = time.monotonic()
        try:
            read_mutant(kind, data, folder)
        except UserError:
            pass
        except Exception as error:
            found.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:120]}")
        if time.monotonic() - began > FUZZ_SECONDS:
            found.append(f"{kind} {number}: {time.monotonic() - began:.0f} s")
    return found


def _place(rng, data: bytes) -> float:
    """Headers decide more than voxels do: half of the edits fall into the first 400 bytes."""
    share = min(400 / len(data), 1.0)
    return float(rng.random() * (share if rng.random() < 0.5 else 1.0))


def fuzz_json(folder: pathlib.Path, kind: str) -> list[str]:
    """Every value of index.json or model.json replaced by one of another kind, hashes made to fit."""
    good = json.loads(seeds(folder)[kind])
    strange = (None, True, -1, 1 << 70, 1e308, "", "../../x", "a" * 5000, [], [[1]], {}, {"a": {}})
    found = []
    for where in list(_paths(good)):
        for value in (*strange, KeyError):  # KeyError: the value is taken out
            bad = json.loads(json.dumps(good))
            node = bad
            for key in where[:-1]:
                node = node[key]
            if value is KeyError:
                del node[where[-1]]
            else:
                node[where[-1]] = value
            try:
                read_mutant(kind, with_own_hashes(kind, json.dumps(bad).encode()), folder)
            except UserError:
                pass
            except Exception as error:
                found.append(f"{kind} {where}={value!r:.20}: {type(error).__name__}: {error}")
    return found


def _paths(node, path=()):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*path, key))


FUZZED = ("nifti", "nifti.gz", "dicom", "manifest", "index", "shard", "card", "weights")


def run(folder: pathlib.Path, quick: bool) -> Outcome:
    for name in ("corpus", "commands", "batch", "bits", "fuzz"):
        (folder / name).mkdir()
    results = run_corpus(folder / "corpus", quick)
    results += run_commands(folder / "commands", quick)
    results.append(run_batch(folder / "batch"))
    theirs, ours = silently_wrong(folder / "bits", 20 if quick else 200)
    examples, faults = (20 if quick else 3000), []
    for kind in FUZZED:
        faults += fuzz(folder / "fuzz" / kind, kind, examples)
    for kind in ("index", "card"):
        faults += fuzz_json(folder / "fuzz" / f"{kind}-json", kind)
    failed = [r for r in results if not r["ok"]]
    slowest = max(results, key=lambda r: r["seconds"])
    largest = max(results, key=lambda r: r["growth"])
    notes = [f"{r['where']}: {r['name']}: {r['why']}" for r in failed] + faults[:20]
    notes += [
        f"{sum(r['where'] == w for r in results)} of {w}"
        for w in ("nifti", "dicom", "pair", "command", "batch")
    ]
    notes += [
        f"slowest: {slowest['name']}, {slowest['seconds']:.1f} s; "
        f"most memory: {largest['name']}, {largest['growth'] >> 20} MiB",
        f"bits flipped in a .nii.gz and accepted with other voxels: {theirs} by nibabel, {ours} here",
        f"{examples} mutants of each of {', '.join(FUZZED)}: {len(faults)} faults",
    ]
    lost = ours + sum(r["why"] == "accepted" for r in results)
    survived = len(results) - len(failed) + (not faults)
    return Outcome(len(results) + 1, survived, lost, theirs > 0, notes)


PROMISES = [Promise(8, "bad volumes are refused by name, unusual ones handled", run)]

if __name__ == "__main__":
    _child(pathlib.Path(sys.argv[1]), bool(int(sys.argv[2])))
