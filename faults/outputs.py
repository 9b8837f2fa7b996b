"""Promises 12 to 14: settings that cannot be meant are refused, nothing leaks, outputs are whole.

`python -m faults.outputs JOB FOLDER EVENT SECONDS` is the process that is killed: see `_killed`.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np

from cldm_jax import files
from cldm_jax.data import audit, nifti, shards
from cldm_jax.errors import UserError
from cldm_jax.jobs import prepare
from configs import prepare as prepare_config
from faults import corpus, inputs, security
from faults.common import Outcome, Promise

# ---- 12: settings ----

LDM, PREPARE = "--config=configs/ldm.py:tiny", "--config=configs/prepare.py:tiny"
TYPOS = [  # flags of main, and what the line must say
    ("--config=configs/ldm.py:tny", "preset tiny?"),
    ("--config=configs/prepare.py:quik", "preset quick?"),
    ("--config=configs/ldn.py:tiny", "configs/ldm.py"),
    ("--config=", "--config=configs/"),
    ("--confg=configs/ldm.py:tiny", "--config=configs/"),
    (f"{LDM} --confg.seed=1", "--config.seed"),
    (f"{LDM} --workdr=x", "--workdir"),
    (f"{LDM} seed=1", "--config.seed=1"),
    (f"{LDM} --config.train.batch_sise=3", "--config.train.batch_size"),
    (f"{LDM} --config.batch_size=3", "--config.train.batch_size"),
    (f"{LDM} --config.recipe.optim.learnig_rate=1e-3", "learning_rate"),
    (f"{LDM} --config.train.batch_size=four", "whole number"),
    (f"{LDM} --config.train.batch_size=1.5", "whole number"),
    (f"{LDM} --config.data.paired=maybe", "true or false"),
    (f"{LDM} --config.train=3", "batch_size"),
    (f"{LDM} --config.train.batch_size=-4", "1 or more"),
    (f"{LDM} --config.train.save_every=0", "1 or more"),
    (f"{LDM} --config.train.num_train_steps=-1", "0 or more"),
    (f"{LDM} --config.recipe.optim.learning_rate=-1", "above 0"),
    (f"{LDM} --config.recipe.optim.learning_rate=nan", "above 0"),
    (f"{LDM} --config.recipe.optim.ema_decay=1.5", "from 0 to 1"),
    (f"{LDM} --config.recipe.sampling.num_sampling_steps=2000", "at most 1000"),
    (f"{LDM} --config.recipe.diffusion.schedule=cosin", "cosine"),
    (f"{LDM} --config.recipe.diffusion.target=noise", "v, x0, eps"),
    (f"{LDM} --config.data.targets=ct,flair", "pet, ct, mr"),
    (f"{LDM} --config.method=lmd", "ldm"),
    (f"{LDM} --config.job=trian", "train"),
    (f"{PREPARE} --config.spacing_mm=(-1.0,2.0)", "above 0"),
    (f"{PREPARE} --config.size=40", "2 values"),
    (f"{PREPARE} --config.split_fractions=(0.5,0.5)", "3 values"),
    (f"{PREPARE} --config.size=40,wide", "2 values"),
    (f"{PREPARE} --config.split_mode=manifst", "manifest"),
]
OPTIONS = [  # of cldm_jax.predict
    ("-i x -o y --mode mena", "mean"),
    ("-i x -o y --target flair", "'ct', 'mr'"),
    ("-i x -o y --smaples 4", "--samples"),
    ("-i x -o y --samples four", "int value"),
    ("-i x -o y --samples -3", ""),
]


def refused_settings(folder: pathlib.Path, quick: bool) -> Outcome:
    """Every mutant through the real commands: status 2, one line with the nearest valid name or range."""
    wrong, cases = [], TYPOS[::8] if quick else TYPOS
    cohort = corpus.cohort(folder / "cohort", people=1)
    for words, fragment in cases:
        more = [f"--workdir={folder / 'work'}"]
        more += [f"--config.cohort={cohort}"] if PREPARE in words else []
        done = inputs.command("cldm_jax.main", *words.split(), *more)
        if not inputs._is_one_line(done, fragment) or (folder / "work").exists():
            wrong.append(f"{words}: {done.returncode}: {done.stderr.strip()[-200:]}")
    options = OPTIONS[:1] if quick else OPTIONS
    for words, fragment in options:
        done = inputs.command("cldm_jax.predict", *words.split())
        line = done.stderr.strip().splitlines()[-1]
        if done.returncode != 2 or fragment not in line or "Traceback" in done.stderr:
            wrong.append(f"{words}: {done.returncode}: {line}")
    code = (
        "import sys; from absl import flags; from cldm_jax import main; "
        "flags.FLAGS(sys.argv); print('taken')"
    )
    plain = subprocess.run(
        [sys.executable, "-c", code, LDM, "--config.train.batch_size=-4"],
        cwd=inputs.ROOT,
        env=inputs._environment(),
        capture_output=True,
        text=True,
    )
    count = len(cases) + len(options)
    return Outcome(count, count - len(wrong), 0, "taken" in plain.stdout, wrong)


# ---- 13: leakage ----


def _prepare(cohort, work, **changes) -> str:
    config = prepare_config.get_config("tiny")
    config.cohort = str(cohort)
    for name, value in changes.items():
        config[name] = value
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        prepare.run(config, str(work))
    return text.getvalue()


def _refuses(fragment: str, cohort, work, **changes) -> str:
    """ "" where prepare says no for this reason and writes no index."""
    try:
        _prepare(cohort, work, **changes)
    except UserError as error:
        ok = fragment in str(error) and not (work / shards.INDEX).exists()
        return "" if ok else f"another reason: {error}"
    return "prepared"


def _rows(folder, *rows: str):
    (folder / "manifest.csv").write_text("subject,group,split,pet,ct,mr\n" + "\n".join(rows) + "\n")
    return folder


def _row(name: str, number: int, split: str = "", group: str = "") -> str:
    return f"{name},{group},{split}," + ",".join(
        f"p{number}/{m}.nii.gz" for m in ("pet", "ct", "mr")
    )


def _person_in_two_splits(folder) -> str:
    cohort = corpus.cohort(folder / "c")
    rows = [_row("a", 0, "train", "g"), _row("b", 1, "test", "g"), _row("c", 2, "val")]
    rows.append(_row("d", 3, "train"))
    return _refuses("group g is in", _rows(cohort, *rows), folder / "w", split_mode="manifest")


def _file_under_two_ids(folder) -> str:
    cohort = corpus.cohort(folder / "c")
    rows = [_row("a", 0), _row("b", 1), _row("c", 0), _row("d", 2)]
    return _refuses("the same image", _rows(cohort, *rows), folder / "w")


def _copy(folder) -> pathlib.Path:
    """Person 3 is person 0: turned to other axes, other type, other compression, other name."""
    cohort = corpus.cohort(folder / "c")
    for name in ("pet", "ct", "mr"):
        image = nib.load(cohort / "p0" / f"{name}.nii.gz")
        turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        again = nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine)
        nib.save(again, cohort / "p3" / f"{name}.nii.gz")
    return cohort


def _pixels_under_two_ids(folder) -> str:
    return _refuses("the same image", _copy(folder), folder / "w")


def _external_overlap(folder) -> str:
    home = corpus.cohort(folder / "home")
    _prepare(home, folder / "prepared")
    away = corpus.cohort(folder / "away", first=20)
    for name in ("pet", "ct", "mr"):
        shutil.copy(home / "p0" / f"{name}.nii.gz", away / "p2" / f"{name}.nii.gz")
    options = dict(split_mode="external", normalisers_from=str(folder / "prepared"))
    return _refuses("the same file as p0", away, folder / "w", **options)


def _external_overlap_recompressed(folder) -> str:
    home = corpus.cohort(folder / "home")
    _prepare(home, folder / "prepared")
    away = folder / "away"
    corpus.cohort(away, people=2)
    for number in range(2):  # both are people of home, saved again
        for name in ("pet", "ct", "mr"):
            image = nib.load(home / f"p{number}" / f"{name}.nii.gz")
            image.header["descrip"] = b"again"
            nib.save(image, away / f"p{number}" / f"{name}.nii.gz")
    options = dict(split_mode="external", normalisers_from=str(folder / "prepared"))
    return _refuses("same", away, folder / "w", **options)


def _edited_index(folder) -> str:
    """A prepared folder in which somebody moved a test person into training as well."""
    _prepare(corpus.cohort(folder / "c"), folder / "w")
    index = files.read_json(folder / "w" / shards.INDEX)
    index["splits"]["train"] += index["splits"]["test"][:1]
    shards.write_index(folder / "w", index)
    try:
        shards.Prepared(folder / "w")
    except UserError as error:
        return "" if "in another split" in str(error) else str(error)
    return "opened"


def _constants_of_training_people(folder) -> str:
    """Test people's intensities do not reach the normalisers."""
    splits = ("train", "train", "val", "test")
    found = []
    for name, gain in (("a", 1), ("b", 40)):

        def louder(v, gain=gain):
            return v | {
                "mr": (v["mr"][0] * gain, v["mr"][1]),
                "pet": (v["pet"][0] * gain, v["pet"][1]),
            }

        cohort = corpus.cohort(folder / name, louder)
        _rows(cohort, *(_row(f"p{i}", i, s) for i, s in enumerate(splits)))
        _prepare(cohort, folder / f"w{name}", split_mode="manifest")
        found.append(shards.Prepared(folder / f"w{name}").index["modalities"])
    return "" if found[0] == found[1] else "the constants moved"


def _no_target_at_inference(folder) -> str:
    """A dataset with CT and MR beside the PET gives the same bytes as one without."""
    made = []
    for name in ("with", "without"):
        own = folder / name / "sub-1"
        (own / "pet").mkdir(parents=True)
        corpus.save(own / "pet" / "sub-1_pet.nii.gz")
        if name == "with":
            for target, sub, end in (("ct", "ct", "ct"), ("mr", "anat", "T1w")):
                (own / sub).mkdir()
                corpus.save(own / sub / f"sub-1_{end}.nii.gz", corpus.head()[target])
        with corpus.identity_model(), contextlib.redirect_stdout(io.StringIO()):
            paths = inputs._predict(folder / name, folder / f"out-{name}")
        made.append([p.read_bytes() for p in paths])
    return "" if made[0] == made[1] else "other bytes"


def _read_outs_ignore_the_target(folder) -> str:
    """Every read-out of every method can be traced from a batch that has no target and no mask."""
    import jax

    from cldm_jax.methods.registry import make_method
    from configs import attention_unet, cyclegan, ldm, pix2pix, unet

    for config in (m.get_config("tiny") for m in (ldm, unet, attention_unet, pix2pix, cyclegan)):
        recipe, batch, frozen = _recipe(config), _batch(config.data.context), {}
        if config.method == "ldm":
            recipe, batch, frozen = _latent_parts(recipe, batch)
        method = make_method(config.method, **recipe)
        state = method.init(jax.random.key(0), batch, frozen)
        unseen = {k: v for k, v in batch.items() if k not in ("target", "mask")}
        for mode, read_out in method.predict.items():
            try:
                jax.eval_shape(read_out, state, unseen, jax.random.key(0))
            except KeyError as error:
                return f"{config.method} {mode} looks at {error}"
    return ""


def _recipe(config) -> dict:
    recipe = config.recipe.to_dict()
    return {**recipe, "optim": {**recipe["optim"], "num_train_steps": 10}}


def _batch(context: int) -> dict:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
    codes = {k: np.ones(2, np.int32) for k in ("label", "subject", "slice")}
    return {
        "source": image.repeat(context, -1),
        "target": image,
        "mask": np.ones_like(image),
        **codes,
    }


def _latent_parts(recipe: dict, batch: dict) -> tuple[dict, dict, dict]:
    """(recipe, batch of latents, constants) of the latent method on an untrained autoencoder."""
    import jax

    from cldm_jax.methods.codec import make_codec
    from cldm_jax.methods.registry import make_method
    from configs import ae

    config = ae.get_config("tiny")
    state = make_method("autoencoder", **_recipe(config)).init(jax.random.key(0), batch, {})
    model = config.recipe.model.to_dict()
    variables = {"params": state.ema_params, **state.frozen}
    z = np.asarray(make_codec(model).encode(variables, batch["target"], batch["label"]))
    shape = (model["num_classes"], z.shape[-1])
    statistics = {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)}
    frozen = {"autoencoder": variables, "statistics": statistics}
    return {**recipe, "autoencoder": model}, {**batch, "target": z}, frozen


LEAKS = {
    "a person in two splits": _person_in_two_splits,
    "a file under two ids": _file_under_two_ids,
    "pixels under two ids": _pixels_under_two_ids,
    "an external set with a training file": _external_overlap,
    "an external set with a training image saved again": _external_overlap_recompressed,
    "an edited index": _edited_index,
    "constants from training people only": _constants_of_training_people,
    "targets beside the PET": _no_target_at_inference,
    "read-outs ignore the target": _read_outs_ignore_the_target,
}


def no_leakage(folder: pathlib.Path, quick: bool) -> Outcome:
    leaked = []
    for number, (name, attempt) in enumerate(LEAKS.items()):
        own = folder / str(number)
        own.mkdir()
        why = attempt(own)
        if why:
            leaked.append(f"{name}: {why}")
    (folder / "control").mkdir()
    check, audit.audit_cohort = audit.audit_cohort, lambda *arguments: []
    try:
        control = _pixels_under_two_ids(folder / "control") == "prepared"
    finally:
        audit.audit_cohort = check
    return Outcome(len(LEAKS), len(LEAKS) - len(leaked), len(leaked), control, leaked)


# ---- 14: whole or absent ----


def _job(job: str, folder: pathlib.Path) -> None:
    if job == "predict":
        with corpus.identity_model():
            inputs._predict(folder / "bids", folder / "out")
    elif job == "prepare":
        _prepare(folder / "cohort", folder / "out")
    else:
        from cldm_jax.jobs import export
        from configs import export as export_config

        config = export_config.get_config("tiny")
        config.run, config.overwrite = str(folder / "run"), True
        export.run(config, str(folder / "out"))


def _killed(job: str, folder: pathlib.Path, event: int, seconds: float) -> None:
    """Runs the job and kills itself, as `kill -9` does, at the event-th thing done to a file below
    `out` (opened to write, renamed, removed), or `seconds` after the first.
    """
    out, done = str(folder / "out"), 0

    def watch(name, arguments):
        nonlocal done
        if name not in ("open", "os.rename", "os.remove"):
            return
        if not str(arguments[0]).startswith(out) or (name == "open" and arguments[1] == "r"):
            return
        done += 1
        if done == 1 and seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        if done == event:
            os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    sys.addaudithook(watch)
    _job(job, folder)
    print(done)


def _run_child(job: str, folder: pathlib.Path, event: int, seconds: float = 0.0):
    return subprocess.run(
        [sys.executable, "-m", "faults.outputs", job, str(folder), str(event), str(seconds)],
        cwd=inputs.ROOT,
        env=inputs._environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def _finals(out: pathlib.Path) -> dict[str, bytes]:
    """What lies under its final name."""
    paths = (p for p in sorted(out.rglob("*")) if p.is_file() and ".tmp-" not in p.name)
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


def _broken(found: dict[str, bytes], truth: dict[str, bytes]) -> list[str]:
    """Names of files that are neither whole nor marked as unfinished."""
    wrong = []
    for name, data in found.items():
        if name.endswith((".nii.gz", ".npy", ".safetensors", ".stablehlo")):
            wrong += [name] if data != truth.get(name) else []
        elif name.endswith(".json"):
            try:
                value = json.loads(data)
            except ValueError:
                wrong.append(name)
                continue
            image = name.removesuffix(".json") + ".nii.gz"
            if "SHA256" in value and image not in found:
                wrong.append(f"{name} without its image")
    return wrong


def _attempt(job: str, folder: pathlib.Path, truth: dict, event: int, seconds: float) -> str:
    """ "" where the kill left whole files only, and the same command finished the work."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    done = _run_child(job, folder, event, seconds)
    if done.returncode not in (-signal.SIGKILL, -signal.SIGALRM, 0):  # the last two: done before
        return f"ended with {done.returncode}: {done.stderr[-200:]}"
    left = _finals(out)
    if wrong := _broken(left, truth):
        return f"broken after the kill: {wrong}"
    whole = [n for n in left if n.endswith(".nii.gz") and f"{n[:-7]}.json" in left]
    people = {pathlib.Path(n).parts[0] for n in left if "unfinished" in n}
    whole = [n for n in whole if pathlib.Path(n).parts[0] not in people]
    before = {n: (out / n).stat().st_mtime_ns for n in whole}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        _job(job, folder)
    made = _finals(out)
    if made.keys() != truth.keys() or _broken(made, truth):
        return f"the rerun made {sorted(made)}"
    if any((out / n).stat().st_mtime_ns != time_ns for n, time_ns in before.items()):
        return "the rerun made whole files again"
    litter = [p.name for p in out.rglob(".tmp-*")]
    return f"left over: {litter}" if litter else ""


def _set_up(job: str, folder: pathlib.Path) -> None:
    if job == "predict":
        for number in range(3):
            own = folder / "bids" / f"sub-{number}" / "pet"
            own.mkdir(parents=True)
            corpus.save(own / f"sub-{number}_pet.nii.gz", corpus.head(seed=number)["pet"])
    elif job == "prepare":
        corpus.cohort(folder / "cohort")
    else:
        (folder / "run").symlink_to(security.train_tiny(folder / "model"))


def whole_or_absent(folder: pathlib.Path, quick: bool) -> Outcome:
    counts = {"predict": 2, "prepare": 1} if quick else {"predict": 20, "prepare": 6, "export": 4}
    rng, torn, notes, total = np.random.default_rng(14), [], [], 0
    for job, count in counts.items():
        own = folder / job
        own.mkdir()
        _set_up(job, own)
        began = time.monotonic()
        done = _run_child(job, own, 0)
        assert done.returncode == 0, done.stderr
        truth, events = _finals(own / "out"), int(done.stdout.split()[-1])
        for number in range(count):
            event, seconds = int(rng.integers(1, events + 1)), 0.0
            if number % 4 == 3:  # between two events, wherever the clock says
                event, seconds = 0, float(rng.uniform(0.002, 0.3))
            why = _attempt(job, own, truth, event, seconds)
            if why:
                torn.append(f"{job}, event {event} of {events}, {seconds:.3f} s: {why}")
        total += count
        notes.append(f"{job}: {count} kills, {events} events, {time.monotonic() - began:.0f} s")
    return Outcome(
        total, total - len(torn), len(torn), _torn_without(folder / "control"), notes + torn
    )


def _torn_without(folder: pathlib.Path) -> bool:
    """Negative control: a file written under its final name and cut in the middle is seen as broken."""
    whole = corpus.save(folder.parent / "whole.nii.gz").read_bytes()
    name = "sub-0/ct/sub-0_desc-synth_ct.nii.gz"
    seen = bool(_broken({name: whole[:-100]}, {name: whole}))
    with contextlib.suppress(UserError):
        nifti.read_volume(corpus.raw(folder.parent / "torn.nii.gz", whole[:-100]))
        return False
    return seen


PROMISES = [
    Promise(12, "settings that cannot be meant are refused", refused_settings),
    Promise(13, "nothing leaks from test people or targets", no_leakage),
    Promise(14, "outputs are whole or absent", whole_or_absent),
]

if __name__ == "__main__":
    _killed(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
