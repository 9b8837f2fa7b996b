"""launch/scale_check.sh and the real cases: every check runs, on processes that only pretend.

What real processes do: tests/test_processes.py. Their commands are read by the product's own parser here.
"""

import csv
import json
import re
import shlex
import signal
import threading

import nibabel as nib
import numpy as np
import pytest
from test_docs import refusal

from benchmarks import cases, data, reader, real_cases, scale, scale_probe
from cldm_jax import files
from cldm_jax.models import monai_names
from faults import determinism


class Pretended:
    """A process of a group that trained, or would go on for ever, in no time."""

    def __init__(self, group: list, log, is_stuck: bool):
        self.group, self.log, self.is_stuck, self.status = group, log, is_stuck, None

    def poll(self):
        return self.status

    def wait(self, timeout=None) -> int:
        return self.status or 0

    def send_signal(self, number) -> None:
        for process in self.group:
            process.status = 128 + number

    def kill(self) -> None:
        self.status = -signal.SIGKILL
        for other in self.group:
            if other is not self and not self.is_stuck:
                other.status = 1
                other.log.write_text("error: another process of this run is gone")


@pytest.fixture(params=[True, False], ids=["kept", "broken"])
def pretended(request, monkeypatch):
    """Whether runs on many devices are like those on one; `scale.start` runs nothing."""
    is_kept, lock = request.param, threading.Lock()
    monkeypatch.setattr(scale, "STEPS", 4)
    monkeypatch.setattr(scale, "SAVE_EVERY", 2)
    monkeypatch.setattr(scale, "GONE_SECONDS", 5 if is_kept else -1)

    def start(module, words, devices, processes, log):
        if module == "cldm_jax.main" and is_kept:
            with lock:
                assert refusal(f"python -m {module} {shlex.join(words)}") == ""
        given = dict(re.findall(r"--([\w.]+)=(.*)", "\n".join(words)))
        drift = 0 if is_kept else 1e-2 * (devices * processes - 1)
        group, logs = [], [log.with_name(f"{log.name}.{i}") for i in range(processes)]
        for i, path in enumerate(logs):
            mine = range(8 * i // processes, 8 * (i + 1) // processes)
            hashes = [[f"{step} {row} {drift}" for row in mine] for step in range(scale.PROBED)]
            path.write_text(json.dumps({"rows": hashes, "noise": [str(drift)] * scale.PROBED}))
            group.append(Pretended(group, path, is_stuck=not is_kept))
        leave_behind(given, scale.pathlib.Path(given["workdir"]), drift)
        return scale.Group(group, logs)

    monkeypatch.setattr(scale, "start", start)
    return is_kept


def leave_behind(given: dict, workdir, drift: float) -> None:
    """What the command of these flags would have written."""
    workdir.mkdir(exist_ok=True)
    if given["config"].startswith("configs/ldm"):
        for k in (2, 4):
            (workdir / "checkpoints" / str(k)).mkdir(parents=True, exist_ok=True)
            (workdir / "checkpoints" / f"sha256-{k}.json").touch()
        rows = [{"step": k, "train/loss": 1 / k + drift} for k in (1, 2, 3, 4)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        person = scale.pathlib.Path(given["config.data.root"]) / "cohort" / "sub-0001"
        person.mkdir(parents=True, exist_ok=True)
        (person / "pet.nii.gz").touch()
        latents = scale.pathlib.Path(given["config.autoencoder.workdir"]) / "latents"
        latents.mkdir(parents=True, exist_ok=True)
        np.save(latents / "ct.npy", np.float16([1 + drift]))
    elif given["config"].startswith("configs/eval"):
        with open(workdir / "scores.csv", "w", newline="") as f:
            names = ("mode", "target", "patient", "metric", "method", "value")
            csv.writer(f).writerows([names, ("onestep", "ct", "a", "psnr", "ldm", 20 + drift)])
    else:
        assert given["config"].startswith("configs/predict")
        ct = np.arange(8, dtype=np.float32).reshape(2, 2, 2) + 1000 * drift
        image = nib.Nifti1Image(ct.astype(np.float32), np.eye(4))
        nib.save(image, workdir / "sub-0001_ct.nii.gz")


def test_every_check_judges(pretended, tmp_path, monkeypatch, capsys):
    """All rows of the table hold where nothing differs; where devices differ, all that compare fail."""
    monkeypatch.setattr(scale, "COUNTS", (100, 400))
    monkeypatch.setattr(scale, "COMPARED", 100)
    monkeypatch.setattr(scale, "JUDGED", {**scale.JUDGED, "open_s": 9.0 if pretended else 0.0})
    monkeypatch.setattr(scale, "THROUGHPUT", 0.0 if pretended else 1e9)
    monkeypatch.setattr(data, "WIDTH", 8)
    monkeypatch.setattr(data, "measured", lambda folder: reader.measure(folder, batch=2))
    monkeypatch.setattr(reader, "SECONDS", 0.01)
    status = scale.main(["--out", str(tmp_path)])
    found = files.read_json(tmp_path / "scale.json")["rows"]
    assert len(found) == 2 * 6 + 5 + 9 + 2 + 3 + 6 + 11
    wrong = {r["check"] for r in found if not r["ok"]}
    if pretended:
        assert status == 0 and wrong == set(), capsys.readouterr()
        return
    assert status == 1 and wrong == {
        *("data order", "noise", f"loss, {scale.STEPS} steps", "restored, loss"),
        *("SIGKILL to one of 2", "latents", "PSNR of a test person", "CT volumes, sampled"),
        *("index: open_s", "reader"),
    }
    assert "FAIL" in capsys.readouterr().out


def test_the_seventh_promise_judges_by_these_checks(pretended, tmp_path, monkeypatch):
    """`faults` 7: rows of devices, and each method once more (here: no process at all)."""
    monkeypatch.setattr(determinism, "_again", lambda study, config, seed=0: {config: seed})
    (tmp_path / "own").mkdir()
    outcome = determinism._trained(determinism._study(tmp_path / "own"), True)
    assert outcome.injected == 2 * 6 + 5 + 9 + 3 and outcome.negative_control
    kept = 3 + 3  # the methods, and what one device goes on with
    assert outcome.survived == (outcome.injected if pretended else kept), outcome.notes


def test_a_run_that_ends_early_is_a_failed_row(pretended, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "losses", lambda workdir: {1: 1.0})
    assert scale.main(["--out", str(tmp_path), "--only", "same_losses"]) == 1
    (row,) = files.read_json(tmp_path / "scale.json")["rows"]
    assert not row["ok"] and "1 steps were logged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scale.main(["--only", "nothing"])


def test_order_and_noise_are_probed(study):
    config = study.config("ldm", batch_size=8)
    found = scale_probe.probe(config)
    assert [len(rows) for rows in found["rows"]] == [8] * scale.PROBED
    assert len(set(found["noise"])) == scale.PROBED  # every step has its own
    assert len({h for rows in found["rows"] for h in rows}) > 8


# Networks of benchmarks/parity.py; MONAI's side needs PyTorch


@pytest.mark.parametrize("case", [[*cases.AUTOENCODERS][1], [*cases.UNETS][1]])
def test_compared_networks_are_ours_too(case):
    import jax
    import jax.numpy as jnp

    if case in cases.AUTOENCODERS:
        net = cases.autoencoder(cases.AUTOENCODERS[case])
        x, side = jnp.zeros((1, 32, 32, 1)), 32 // net.factor
        args = (x, None, None, jnp.zeros((1, side, side, cases.LATENTS)))
    else:
        keywords, condition = cases.UNETS[case]
        net, z, t = cases.unet(keywords), jnp.zeros((1, 16, 16, cases.LATENTS)), jnp.array([3])
        args = (z, t, t * 0 + 1, jnp.zeros((1, 16, 16, condition)) if condition else None)
    params = jax.eval_shape(lambda *a: net.init(jax.random.key(0), *a), *args)["params"]
    names = monai_names.expected_shapes(params)
    assert sum("attn" in name or "attention" in name for name in names) > 5


# Real cases


def ball(shape, centre, radius: float):
    at = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)) <= radius**2


@pytest.fixture
def head_files(tmp_path, monkeypatch):
    """A head with a brain in it as every file that the cases read; `predict` answers with the truth."""
    shape, rng = (24, 28, 24), np.random.default_rng(0)
    head, brain = ball(shape, (12, 14, 12), 10), ball(shape, (12, 14, 12), 7)
    texture = rng.uniform(0.5, 1.5, shape)
    t1 = 100 * head + 400 * brain * texture
    ct = np.where(head, 40.0, -1000) + 960 * (head & ~ball(shape, (12, 14, 12), 8))
    images = {"t1": t1, "ct": ct, "pet": 5.0 * head + 50 * brain * rng.uniform(0.5, 1.5, shape)}
    kinds = dict(zip(real_cases.RIRE, ("pet", "t1"), strict=True))
    kinds |= dict(zip(real_cases.TEMPLATE, ("pet", "t1", "ct"), strict=True))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    for path, kind in kinds.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(images[kind].astype(np.float32), affine), tmp_path / path)

    def run(command, **options):
        assert refusal(shlex.join(command[1:])) == ""
        out = scale.pathlib.Path(command[command.index("-o") + 1])
        for kind, suffix in (("t1", "T1w"), ("ct", "ct")):
            image = nib.Nifti1Image(images[kind].astype(np.float32), affine)
            nib.save(image, out / f"x_desc-synth_{suffix}.nii.gz")

    monkeypatch.setattr(real_cases.subprocess, "run", run)
    return tmp_path


def test_real_cases_score_the_truth_as_itself(head_files, tmp_path, capsys):
    real_cases.main(["--data", str(head_files), "--out", str(tmp_path / "out")])
    found = files.read_json(tmp_path / "out" / "scores.json")
    for case in found.values():
        assert case["head_dice"] > 0.97 and case["r_brain"] > 0.97 and case["r_detail"] > 0.97
        assert case["spikes"] == 0 and abs(case["r_detail_of_pet"]) < 0.5
    assert found["template"]["scale"] == pytest.approx(1, abs=0.03)
    assert found["template"]["mu_ratio"] == pytest.approx(1, abs=0.03)
    assert found["template"]["bone_dice"] > 0.9
    assert (tmp_path / "out" / "rire.png").stat().st_size > 1000


def test_real_cases_see_what_is_wrong():
    """A shifted head, another brain, and signal far outside: each costs its own score."""
    shape, rng = (24, 28, 24), np.random.default_rng(0)
    head, brain = ball(shape, (12, 14, 12), 8), ball(shape, (12, 14, 12), 6)
    pet, real = 9.0 * brain, 100 * head + 400 * brain * rng.uniform(0.5, 1.5, shape)
    spiky, shifted = real.copy(), np.roll(real, 3, 0)
    spiky[:2, :2] = 900
    other = 100 * head + 400 * brain * rng.uniform(0.5, 1.5, shape)
    good, spikes, moved, wrong = (
        real_cases.scores(pet, m, real, [4, 4, 4]) for m in (real, spiky, shifted, other)
    )
    assert good["head_dice"] == 1 and good["r_brain"] == pytest.approx(1) and good["spikes"] == 0
    assert spikes["spikes"] > 0 and moved["head_dice"] < 0.8
    assert wrong["r_detail"] < 0.3 and wrong["head_dice"] > 0.95
