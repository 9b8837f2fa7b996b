"""benchmarks/real_cases.py: its scores tell a true answer from a wrong one. `predict` only pretends."""

import pathlib
import shlex

import nibabel as nib
import numpy as np
import pytest
from test_docs import refusal

from benchmarks import real_cases
from cldm_jax import files


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
        out = pathlib.Path(command[command.index("-o") + 1])
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
