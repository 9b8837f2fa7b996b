"""What synthetic images are used for: known warps and tissues, negative controls, the job on a study."""

import csv
import errno
import importlib.util
import types

import numpy as np
import pytest
from data_heads import affine_of, make_head
from scipy import ndimage

from cldm_jax import files
from cldm_jax.data import mask, nifti, warp
from cldm_jax.errors import UserError
from cldm_jax.jobs import tasks
from cldm_jax.report import page, uses_page
from cldm_jax.runtime import runlock
from cldm_jax.scoring import pool_uses
from cldm_jax.uses import attenuation, base, normalisation, tissue
from configs import tasks as tasks_config

needs_itk = pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None, reason="SimpleITK is an optional extra"
)
SPACING = (8.0, 7.0, 7.0)


def head(seed) -> dict[str, np.ndarray]:
    """{"pet", "mr", "ct"} [Z, H, W] on SPACING."""
    made = make_head(seed, (29, 34, 20), SPACING[::-1])
    volumes = {k: np.ascontiguousarray(v.transpose(2, 1, 0)[:, ::-1]) for k, v in made.items()}
    return {k: v if k == "ct" else v / np.percentile(v, 99.5) for k, v in volumes.items()}


def case(volumes, target="mr", labels=None, lesions=None) -> base.Case:
    pet = volumes["pet"]
    brain = mask.brain_mask_pet(pet, SPACING[1:])
    return base.Case(SPACING, pet, volumes[target], pet > 0.05, brain, labels, lesions)


def apart(a, b, where) -> float:
    return float(np.linalg.norm(a - b, axis=-1)[where].mean())


@needs_itk
def test_a_known_affine_and_a_known_warp_are_found_again():
    fixed = normalisation.mr_scan(head(0)["mr"], SPACING)
    turn = np.array([[1.03, 0.06, 0.0], [-0.06, 0.97, 0.03], [0.0, -0.03, 1.02]])
    middle = warp.centre(fixed)
    true = np.eye(4)
    true[:3, :3], true[:3, 3] = turn, middle - turn @ middle + [6.0, -5.0, 4.0]
    back = warp.moved(np.linalg.inv(true), fixed)
    moving = normalisation.mr_scan(np.nan_to_num(warp.sample(fixed.values, back, SPACING)), SPACING)
    found = warp.affine(fixed, moving, same_kind=True)
    goal = warp.moved(true, fixed)
    assert apart(warp.moved(np.eye(4), fixed), goal, fixed.head) > 8
    assert apart(warp.moved(found, fixed), goal, fixed.head) < 1

    # Where an image is even, nothing tells how it moved: texture, so that the whole warp can be seen.
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=fixed.head.shape), 1.5)
    fixed = fixed._replace(values=np.where(fixed.head, 0.5 + 0.2 * texture / texture.std(), 0.0))
    place = warp.points(fixed.values.shape, SPACING)
    bend = np.zeros_like(place)
    bend[..., 0] = 8 * np.exp(-np.square((place - middle - [20, 10, 0]) / 35).sum(-1))
    bent = np.nan_to_num(warp.sample(fixed.values, place + bend, SPACING))
    answer = warp.warp(normalisation.mr_scan(bent, SPACING), fixed, np.eye(4))
    strong = np.linalg.norm(bend, axis=-1) > 3
    assert apart(answer, place + bend, strong) < 0.5 * np.linalg.norm(bend[strong], axis=-1).mean()


@needs_itk
def test_the_true_mr_normalises_perfectly_and_another_persons_does_not(monkeypatch):
    monkeypatch.setattr(normalisation, "CUBE_MM", 7.0)
    monkeypatch.setattr(normalisation, "MIN_VOXELS", 5)
    volumes = [head(seed) for seed in range(3)]
    pairs = [
        normalisation._Pair(
            normalisation.mr_scan(v["mr"], SPACING), normalisation.pet_scan(v["pet"], SPACING)
        )
        for v in volumes[1:]
    ]
    steps = []
    frame = normalisation._mean_of_centres(pairs)
    template = normalisation.make_template(pairs, frame, False, lambda: steps.append(1))
    assert len(steps) == 2 * normalisation.ROUNDS and len(template.regions) == 24
    judge = normalisation.make_judge(case(volumes[0]), template)
    perfect, picture = judge.score(volumes[0]["mr"])
    assert perfect == {k: 0.0 for k in normalisation.USE.measures}
    assert picture.shape == template.mr.values.shape[1:]
    wrong = np.roll(volumes[1]["mr"], 3, axis=2)  # another person, lying elsewhere
    for name, value in judge.score(wrong)[0].items():
        assert value > 1, name
    assert judge.own["centres"][0]["displacement"] > 1
    with pytest.raises(warp.NoMatch):
        judge.score(np.zeros_like(wrong))


def test_a_template_of_two_files(tmp_path, monkeypatch):
    """T1 and PET of one space on other voxels, the PET turned over; nobody of training is needed."""
    made = make_head(0)
    nifti.write_volume(tmp_path / "t1.nii", made["mr"], affine_of(), dtype=np.float32)
    turned = affine_of() @ np.diag([-1, 1, 1, 1])
    turned[:3, 3] += (made["pet"].shape[0] - 1) * affine_of()[:3, 0]
    pet = np.ascontiguousarray(made["pet"][::-1])
    nifti.write_volume(tmp_path / "pet.nii", pet, turned, dtype=np.float32)
    monkeypatch.setattr(normalisation, "CUBE_MM", 7.0)
    monkeypatch.setattr(normalisation, "MIN_VOXELS", 5)
    cohort = base.Cohort(None, str(tmp_path / "t1.nii"), str(tmp_path / "pet.nii"), 0, lambda: None)
    template = normalisation._open_template(cohort)
    straight = nifti.canonical(nifti.read_volume(tmp_path / "pet.nii"))
    same = normalisation._cubes(straight, straight.array)
    np.testing.assert_allclose(template.pet.values, np.maximum(same, 0), atol=1e-5)
    assert template.mr.values.shape == same.shape and len(template.regions) == 24
    far = affine_of()
    far[:3, 3] += 1000
    nifti.write_volume(tmp_path / "far.nii", made["pet"], far, dtype=np.float32)
    for wrong, reason in (
        (cohort._replace(template_pet=str(tmp_path / "far.nii")), "another space"),
        (cohort._replace(template=""), "belongs to the T1"),
    ):
        with pytest.raises(UserError, match=reason):
            normalisation._open_template(wrong)


def test_regional_errors_are_percent_and_empty_regions_are_left_out():
    true = np.full((4, 8, 8), 2.0)
    pet = true * 1.1
    pet[0, 0, 0] = np.nan
    regions = {"all": true > 0, "few": np.indices(true.shape).sum(0) < 2}
    np.testing.assert_allclose(normalisation.region_errors(pet, true, regions), [10.0])


def test_boxes_part_the_brain():
    brain = head(0)["pet"] > 0.3
    found = base.boxes(brain)
    assert len(found) == 12
    assert (sum(b.astype(int) for b in found.values()) == brain).all()
    columns = [np.nonzero(found[f"{side} front upper"])[2].mean() for side in ("left", "right")]
    assert columns[0] < columns[1]
    assert base.boxes(np.zeros_like(brain)) == {}


def test_three_levels_are_segmented_without_error_and_a_shifted_image_is_not():
    labels = np.zeros((6, 40, 40), np.uint8)
    labels[:, 4:36, 4:36], labels[:, 10:30, 10:30], labels[:, 15:25, 15:25] = 1, 2, 3
    mr = np.array([0.0, 0.2, 0.5, 0.9])[labels]
    for known in (labels, None):  # without labels the real MR's own segmentation is the truth
        own = base.Case((4.0, 2.0, 2.0), mr, mr, mr > 0, labels > 0, known, None)
        judge = tissue.TISSUE.start(None)(own)
        good, _ = judge.score(mr)
        assert [good[f"dice_{k}"] for k in tissue.TISSUES] == [1.0] * 3
        assert [good[f"error_{k}"] for k in tissue.TISSUES] == [0.0] * 3
        assert good["volume_white"] == pytest.approx(6 * 100 * 16 / 1000)
        assert judge.score(np.roll(mr, 5, axis=2))[0]["dice_grey"] < 0.8


def test_bone_has_its_limit():
    hu = np.where(np.arange(20) < 5, 400.0, 40.0) * np.ones((4, 20, 1))
    own = base.Case((4.0, 2.0, 2.0), hu, hu, hu > -500, hu > 0, None, None)
    judge = tissue.BONE.start(None)(own)
    assert judge.score(hu)[0] == {"dice_bone": 1.0, "error_bone": 0.0}
    half = np.where(np.arange(4)[:, None, None] < 2, hu, 200.0)
    found = judge.score(half)[0]
    assert found == {"dice_bone": pytest.approx(2 / 3), "error_bone": pytest.approx(50.0)}


def test_the_real_ct_corrects_perfectly_and_water_does_not():
    own = case(head(0), "ct")
    judge = attenuation.USE.start(None)(own)
    perfect, picture = judge.score(own.real)
    assert (perfect["pet_error"], perfect["bone_dice"], perfect["mae_hu"]) == (0, 1, 0)
    assert perfect.keys() == attenuation.USE.measures.keys() and picture.shape == own.pet.shape[1:]
    water, _ = judge.own["water"]
    assert water["pet_error"] > 1 and water["pet_worst"] > water["pet_error"]
    assert np.isnan(water["bone_dice"])
    with pytest.raises(warp.NoMatch, match="no region"):
        attenuation.USE.start(None)(own._replace(pet=np.zeros_like(own.pet)))


@pytest.fixture
def config(study):
    made = tasks_config.get_config("tiny")
    made.runs = f"{study.unet},{study.ldm}"
    made.modes = "predict,onestep"
    return made


def test_the_job_scores_the_study(study, config, tmp_path, capsys):
    config.uses = "tissue,bone,attenuation"
    tasks.run(config, str(tmp_path))
    summary = files.read_json(tmp_path / "tasks.json")
    found = {u["name"]: u for u in summary["uses"]}
    keys = [(r["method"], r["mode"]) for r in found["tissue"]["rows"]]
    methods, rows = [("unet", "predict"), ("ldm", "onestep")], ("floor_mean_image", "real_image")
    assert keys == [*methods, *[("reference", r) for r in (*rows, "reacquired_ceiling")]]
    assert all(r["n_patients"] == 2 for u in summary["uses"] for r in u["rows"])
    dice = {
        k[1]: r["dice_grey"]["mean"] for k, r in zip(keys, found["tissue"]["rows"], strict=True)
    }
    assert dice["real_image"] > dice["floor_mean_image"]
    assert {t["b"] for t in found["bone"]["tests"]} == {
        "reference:floor_mean_image",
        "unet:predict",
    }
    rows = {r["mode"]: r["pet_error"]["mean"] for r in found["attenuation"]["rows"]}
    assert rows["reacquired_ceiling"] < rows["onestep"] and "water" in rows
    with open(tmp_path / "tasks.csv", newline="") as file:
        people = {row["patient"] for row in csv.DictReader(file)}
    assert people == set(summary["people"]) and len(people) == 2
    page = (tmp_path / "index.html").read_text()
    assert "data:image/png" in page and "Dice grey matter" in page and "simulated" in page
    assert "Tissue segmentation" in capsys.readouterr().out


def test_people_that_models_were_chosen_on_are_told_apart(tmp_path, monkeypatch):
    """As in evaluate's report; and once for all folds, or with the fold's number."""
    config = tasks_config.get_config("tiny")
    config.notes = ("As asked.",)
    index = types.SimpleNamespace(name="n", contrast="", fingerprint="f")
    index.splits = types.SimpleNamespace(train=(), val=("v",))
    prepared = types.SimpleNamespace(index=index)
    scorer = types.SimpleNamespace(config=config, prepared=prepared, split="val", specs={})
    opened = tasks.Opened(scorer, [types.SimpleNamespace(first=None)], {}, {}, {})
    facts = {"command": "", "preset": "", "hardware": {}, "seed": 0, "git": ""}
    monkeypatch.setattr(tasks, "run_facts", lambda *_: facts)
    for people in (["v"], ["t"]):
        (tmp_path / people[0]).mkdir()
        summary = tasks._summary(opened, [], [], [], people)
        files.write_json(tmp_path / people[0] / "tasks.json", summary)
        (tmp_path / people[0] / "tasks.csv").write_text(page.scores_csv([], tasks.COLUMNS))
    rows, summary = pool_uses.pool_folders([tmp_path / "v", tmp_path / "t"], seed=0)
    said, asked = summary["notes"]
    assert said.startswith("Fold 0: NO TEST PEOPLE: 1 of the 1 people") and asked == "As asked."
    assert "<li>Fold 0: NO TEST PEOPLE: 1 of" in uses_page.make_page(summary, {}, title="t")


def test_folds_are_pooled(study, config, tmp_path, capsys):
    config.uses, one, other = "bone", tmp_path / "one", tmp_path / "other"
    tasks.run(config, str(one))
    config.pool = f"{one}, {other}"
    with pytest.raises(UserError, match="tasks.json: is not there"):
        tasks.run(config, str(tmp_path / "all"))
    config.pool = f"{one}, {one}"
    with pytest.raises(UserError, match="was scored in .*share no test person"):
        tasks.run(config, str(tmp_path / "all"))
    other.mkdir()
    found = files.read_json(one / "tasks.json")
    rows = page.read_scores(one / "tasks.csv")
    rows = [{**r, **{k: f"{r[k]} of fold 2" for k in ("patient", "group")}} for r in rows]
    (other / "tasks.csv").write_text(page.scores_csv(rows, tasks.COLUMNS))
    people = [f"{p} of fold 2" for p in found["people"]]
    files.write_json(other / "tasks.json", {**found, "people": people})
    config.pool = f"{one}, {other}"
    tasks.run(config, str(tmp_path / "all"))
    pooled = files.read_json(tmp_path / "all" / "tasks.json")
    before, after = found["uses"][0], pooled["uses"][0]
    for a, b in zip(before["rows"], after["rows"], strict=True):
        assert b["n_patients"] == 2 * a["n_patients"]
        assert b["dice_bone"]["mean"] == pytest.approx(a["dice_bone"]["mean"])
    assert [(t["a"], t["b"]) for t in after["tests"]] == [(t["a"], t["b"]) for t in before["tests"]]
    assert after["tests"][0]["n"] == 2 * before["tests"][0]["n"]
    assert "of 2 folds" in (tmp_path / "all" / "index.html").read_text()

    before["rows"].pop()
    files.write_json(other / "tasks.json", {**found, "people": people, "uses": [before]})
    with pytest.raises(UserError, match="other uses, methods, read-outs"):
        tasks.run(config, str(tmp_path / "all"))


def test_who_fails_is_named_left_out_and_counted(study, config, tmp_path, monkeypatch):
    """One person's truth, and one method's image of the other person."""
    seen = []

    def start(cohort):
        def judge(own):
            seen.append(own)
            if len(seen) == 1:
                raise warp.NoMatch("upside down")
            calls = []

            def score(image):
                calls.append(image)
                if len(calls) == 1:
                    raise warp.NoMatch("speckle")
                return {"dice_bone": 0.5}, None

            return base.Judge(score, {})

        return judge

    monkeypatch.setitem(tasks.USES, "bone", tissue.BONE._replace(start=start))
    config.uses = "bone"
    with pytest.raises(UserError, match="2 of the scores.*upside down"):
        tasks.run(config, str(tmp_path))
    (use,) = files.read_json(tmp_path / "tasks.json")["uses"]
    assert [f["why"] for f in use["failures"]] == ["upside down", "speckle"]
    rows = {(r["method"], r["mode"]): r["dice_bone"] for r in use["rows"]}
    assert (rows["unet", "predict"]["n"], rows["unet", "predict"]["n_undefined"]) == (0, 1)
    assert (rows["ldm", "onestep"]["n"], rows["ldm", "onestep"]["n_undefined"]) == (1, 0)
    page = (tmp_path / "index.html").read_text()
    assert f"{use['failures'][1]['patient']}, U-Net: speckle" in page


@pytest.mark.parametrize(
    "setting, value",
    [
        *[("uses", "tissues"), ("modes", "best"), ("modes", "recentred9")],
        *[("slice_stride", 2), ("runs", "")],
    ],
)
def test_refusals(config, tmp_path, setting, value):
    config[setting] = value
    with pytest.raises(UserError, match=f"config.{setting}"):
        tasks.run(config, str(tmp_path))
    assert not (tmp_path / "tasks.json").exists()


@pytest.fixture
def scored(monkeypatch):
    """The job without its work; what it scored."""
    calls = []

    def score(*_):
        calls.append(1)
        return [], {}, [], []

    monkeypatch.setattr(tasks, "open_runs", lambda config: [])
    monkeypatch.setattr(tasks, "_open", lambda config, runs, uses: (None, uses))
    monkeypatch.setattr(tasks, "_score", score)
    monkeypatch.setattr(tasks, "_summary", lambda *_: {"uses": []})
    return calls


def test_a_folder_that_cannot_be_written_is_told_before_the_hours(tmp_path, scored):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        tasks.run(tasks_config.get_config("tiny"), str(tmp_path / "file" / "uses"))
    with runlock.run_lock(tmp_path), pytest.raises(UserError, match="in use by"):
        tasks.run(tasks_config.get_config("tiny"), str(tmp_path))
    assert not scored


def test_a_scoring_that_is_cut_off_leaves_no_summary_of_another(tmp_path, scored, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uses_page, "make_page", full)
    files.write_json(tmp_path / "tasks.json", {"uses": "before"})
    with pytest.raises(OSError, match="No space left"):
        tasks.run(tasks_config.get_config("tiny"), str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["tasks.csv"]


def test_who_is_not_scored_is_named(config, capsys):
    def trained(name, made, *modes):
        facts = {
            "method": name,
            "data": {"targets": made},
            "recipe": {"diffusion": {"onestep_share": [0.5]}},
        }
        method = types.SimpleNamespace(predict=dict.fromkeys(modes))
        return types.SimpleNamespace(name=name, workdir=name, config=facts, method=method)

    runs = [
        trained("ldm", ("ct", "mr"), "onestep", "sample", "mean4"),
        trained("unet", ("ct", "mr"), "predict"),
        trained("cyclegan", ("ct",), "predict"),
    ]
    config.modes = "recentred4"
    (entrant,) = tasks._entrants(config, runs, ("mr",))
    assert entrant.name == "ldm"
    said = capsys.readouterr().out
    assert "cyclegan: makes no mr" in said and "unet: has no recentred4" in said


def test_a_use_is_corrected_for_its_own_tests():
    """Nine people carry nine tests of each of three uses."""
    use = {"title": "t", "tests": [{"n": 9}] * 9, "rows": [{"n_independent": 9}]}
    assert uses_page._caveat(use) is None
    untested = {**use, "tests": [], "rows": [{"n_independent": 4}]}
    assert uses_page._caveat(untested).startswith("t: Only 4")
    # Whom a row could not be made for is in none of its tests.
    one_fewer = {**use, "tests": [{"n": 9}] * 8 + [{"n": 5}]}
    assert uses_page._caveat(one_fewer).startswith("t: Only 5")
