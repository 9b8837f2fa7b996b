"""PET without attenuation correction: its physics, its way through the data, what its CT is worth."""

import types

import numpy as np
import pytest

from cldm_jax import files
from cldm_jax.data import bids, intensity, nifti, pet_inputs
from cldm_jax.data.shards import Prepared
from cldm_jax.data.warp import NoMatch
from cldm_jax.errors import UserError
from cldm_jax.jobs import export, prepare, simulate, train
from cldm_jax.phantom import cohort, osem, pet, tissue
from cldm_jax.phantom.fields import Grid
from cldm_jax.runs import inputs, record, stored
from cldm_jax.scoring import scorer
from cldm_jax.uses import attenuation
from cldm_jax.volumes import opened, synthesis
from configs import ae, nac, unet
from configs import export as export_config
from configs import prepare as prepare_config
from configs import simulate as simulate_config

PLANE = Grid((64, 64, 2), (2.5, 2.5, 4.0), (-78.75, -78.75, 0.0))
RADIUS = 60.0


def radius(grid: Grid) -> np.ndarray:
    return np.hypot(grid.axis(0)[:, None, None], grid.axis(1)[None, :, None]) + 0 * grid.axis(2)


def abel_of_disc(r: float) -> float:
    """What a water disc of activity 1 shows at r without correction: its projections L exp(-mu L), with
    chord L, are those of their inverse Abel transform (s^2 = r^2 + (R^2 - r^2) sin^2 t).
    """
    t = (np.arange(2000) + 0.5) * np.pi / 4000
    chord = 2 * np.sqrt(RADIUS**2 - r**2) * np.cos(t)
    return float(np.mean((1 - osem.MU_WATER * chord) * np.exp(-osem.MU_WATER * chord)))


def test_a_cylinder_is_cupped_as_its_abel_transform_says_and_flat_when_corrected(monkeypatch):
    r = radius(PLANE)
    hu, true = np.where(r < RADIUS, 0.0, -1000.0), (r < RADIUS).astype(np.float32)
    scan, rng = pet.PetScan("any", 4.5, 0.0), np.random.default_rng(0)
    scattered = osem.acquire(rng, true, hu, PLANE, scan, nac=True)
    monkeypatch.setattr(osem, "BACKGROUND", 0.0)
    found = osem.acquire(rng, true, hu, PLANE, scan, nac=True)
    shown, flat = found["nac"][..., 0], found["pet"][..., 0]

    def level(image, at):
        return float(image[np.abs(r[..., 0] - at) < 2.5].mean())

    for at in (0.0, 15.0, 30.0, 45.0):
        assert level(shown, at) == pytest.approx(abel_of_disc(at), rel=0.04)
        assert level(flat, at) == pytest.approx(1.0, rel=0.03)
    assert abel_of_disc(0.0) < 0.6 * abel_of_disc(45.0)  # and so the agreement means something
    air = np.abs(r[..., 0] - RADIUS - 14) < 4
    levels = [made[air, 0].mean() for made in (scattered["pet"], scattered["nac"])]
    assert levels[0] < 0.005 < 0.02 < levels[1]
    near = osem.acquire(rng, true, hu, PLANE, scan)["pet"]
    np.testing.assert_allclose(near[..., 0], flat, atol=0.05)


@pytest.fixture(scope="module")
def head():
    """(hu, activity, regions, spacing): a disc of brain in a skull, in a scalp, with a sinus."""
    r = np.moveaxis(radius(PLANE), 2, 0)
    shells = (("SKIN", 71), ("SKULL", 67), ("GM", 62), ("WM", 40))
    codes = np.zeros(r.shape, np.uint8)
    for name, outer in shells:
        codes[r < outer] = getattr(tissue, name)
    codes[:, 30:34, 6:9] = tissue.AIR
    regions = {"rim": (r > 52) & (r < 60), "white": r < 38, "tiny": r < 2, "air": r > 80}
    return tissue.HU[codes], tissue.UPTAKE[codes], regions, PLANE.spacing[-1:] + PLANE.spacing[:2]


def test_the_real_ct_has_no_error_and_water_has_most_near_bone(head):
    hu, true, regions, mm = head
    found = attenuation.score(hu, hu, true, mm, regions)
    assert found["regions"] == {"rim": 0, "white": 0}  # "tiny" and "air" cannot be scored
    assert found["bone_dice"] == 1 and found["mae_hu"] == 0 and found["air_dice"] == 1
    others = attenuation.water(hu), np.minimum(hu, 600.0)
    water, atlas = (attenuation.score(h, hu, true, mm, regions)["regions"] for h in others)
    assert water["rim"] < water["white"] < -2 and water["rim"] < atlas["rim"] < -1
    # an error of mu is an error of uptake: soft tissue at bone's density lifts it
    wrong = np.where((hu > 0) & (hu < 100), 500.0, hu)
    found = attenuation.score(wrong, hu, true, mm, regions)
    assert np.mean(list(found["regions"].values())) > 10 and found["bone_dice"] < 0.5
    assert found["mae_hu"] > 200


def test_a_holder_changes_nothing(head):
    hu, true, regions, mm = head
    rough = hu + 30 * np.sin(np.arange(64))[:, None]
    held = rough.copy()
    held[:, 0, 10:50] = 200.0  # a plate behind the head
    first, again = (attenuation.score(h, hu, true, mm, regions) for h in (rough, held))
    assert again["regions"] == pytest.approx(first["regions"], rel=1e-3, abs=1e-4)
    with pytest.raises(NoMatch, match="no region"):
        attenuation.score(hu, hu, true, mm, {"tiny": regions["tiny"]})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(cohort folder, prepared folder) of simulated people with NAC; the last one has lost his."""
    folder = tmp_path_factory.mktemp("nac")
    config = simulate_config.get_config("tiny")
    config.update(n_subjects=4, pet_model="osem", nac=True, reacquire=False)
    simulate.run(config, str(folder / "cohort"))
    table = (folder / "cohort" / "manifest.csv").read_text()
    (folder / "cohort" / "manifest.csv").write_text(table.replace("sub-0004/nac.nii.gz", ""))
    config = prepare_config.get_config("tiny")
    config.update(cohort=str(folder / "cohort"), center="fov", split_fractions=(0.75, 0.0, 0.25))
    prepare.run(config, str(folder / "prepared"))
    return folder / "cohort", folder / "prepared"


def test_codes_are_what_they_were_and_nac_takes_the_pets():
    codes = {name: m.code for name, m in intensity.MODALITIES.items()}
    assert codes == {"pet": 0, "ct": 1, "mr": 2, "nac": 0} and ae.NUM_CLASSES == 4


def test_nac_is_simulated_and_prepared_beside_the_pet(data):
    folder, prepared = data[0], Prepared(data[1])
    truth = files.read_json(folder / "sub-0001" / "truth" / "truth.json")["acquisition"]
    assert truth["nac"]["corrections"] == {"attenuation": False, "scatter": False, "randoms": False}
    assert truth["nac"]["cov"] == truth["pet"]["cov"]
    index = prepared.json
    assert list(index["modalities"]) == ["pet", "ct", "mr", "nac"]
    assert index["modalities"]["nac"]["normaliser"]["percentile"] == 99.0
    assert [("nac" in s["volumes"]) for s in index["subjects"]] == [True, True, True, False]
    images = [nifti.read_volume(folder / "sub-0001" / f"{n}.nii.gz").array for n in ("pet", "nac")]
    scales = [index["subjects"][0]["volumes"][n]["scale"] for n in ("pet", "nac")]
    assert scales[1] < 0.5 * scales[0] and images[1].max() < 0.5 * images[0].max()
    assert np.corrcoef(*(prepared.read(0, n).ravel() for n in ("pet", "nac")))[0, 1] > 0.8


def test_a_training_reads_it_and_prediction_takes_it(data, tmp_path):
    folder, prepared = data[0], Prepared(data[1])
    config = unet.get_config("tiny")
    config.data.update(prepared=str(data[1]), source="nac", targets=("ct",), context=1)
    config.recipe.model.unet.update(channel_mult=(1,), base_channels=2, groups=1)
    config.train.update(num_train_steps=1, batch_size=2)
    source = inputs.train_source(config, inputs.open_inputs(config))
    item = source.read(np.array([0]))
    subject, z = int(item["subject"][0]), int(item["slice"][0])
    np.testing.assert_array_equal(item["source"][0, ..., 0], prepared.read_slice(subject, "nac", z))
    assert 3 not in source.keys["subject"]  # another image is not read in the missing one's place
    train.run(config, str(tmp_path / "run"))
    model = opened.open_model(opened.Request("", "", checkpoint=str(tmp_path / "run")))
    assert model.source == "nac"
    image = nifti.read_volume(folder / "sub-0001" / "nac.nii.gz")
    np.testing.assert_allclose(
        synthesis.make_source(image, model.run).slices, prepared.read(0, "nac"), atol=1e-4
    )
    exporting = export_config.get_config("tiny")
    exporting.run = str(tmp_path / "run")
    export.run(exporting, str(tmp_path / "exported"))
    handed_on = opened.open_model(opened.Request("", "", checkpoint=str(tmp_path / "exported")))
    assert handed_on.source == "nac"
    config.data.source = "pet"
    with pytest.raises(UserError, match="data.source: 'nac' -> 'pet'"):
        record.check_same_config(tmp_path / "run", record.comparable(config))
    runs = [stored.open_run(str(tmp_path / "run"))]
    assert scorer.shared_source(runs) == "nac"
    older = runs[0]._replace(config={"data": {}}, workdir="older")
    with pytest.raises(UserError, match="older reads pet"):
        scorer.shared_source([*runs, older])


def test_older_runs_and_data_stay_what_they_were(data, tmp_path):
    config = record.comparable(nac.get_config("tiny"))
    config["data"]["source"], config["data"]["simulate"]["nac"] = "pet", False
    old = record.comparable(nac.get_config("tiny"))
    del old["data"]["source"], old["data"]["simulate"]["nac"]
    files.write_json(tmp_path / "config.json", old)
    record.check_same_config(tmp_path, config)
    assert inputs.source_of(old["data"]) == "pet"
    config = unet.get_config("tiny")
    nobody = types.SimpleNamespace(folder="old", held=lambda _: (), subjects=lambda _: [0])
    nobody.has = lambda subject, name: name == "pet"
    config.data.source = "nac"
    with pytest.raises(UserError, match="no training person of old has nac"):
        inputs.choose_targets(config, nobody)
    config.data.update(prepared=str(data[1]), context=1, source="pet")
    assert set(inputs.train_source(config, inputs.open_inputs(config)).keys["label"]) == {1, 2}


def test_what_cannot_be_simulated_is_refused():
    config = simulate_config.get_config("tiny")
    config.nac = True
    with pytest.raises(UserError, match="without counts"):
        cohort.plan_cohort(config)
    config.update(pet_model="osem", mode="randomised")
    with pytest.raises(UserError, match="draws its own NAC"):
        cohort.plan_cohort(config)


def test_bids_names_it_by_its_reconstruction(tmp_path):
    for name in ("pet/sub-1_rec-acstat_pet", "pet/sub-1_rec-nacstat_pet", "ct/sub-1_ct"):
        (tmp_path / "sub-1" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sub-1" / f"{name}.nii.gz").write_bytes(b"x")
    (subject,) = bids.find_cohort(tmp_path).subjects
    assert {k: p.name.split("_")[1] for k, p in subject.files.items()} == {
        "pet": "rec-acstat", "nac": "rec-nacstat", "ct": "ct.nii.gz",
    }  # fmt: skip
    for source, other in (("pet", "nac"), ("nac", "pet")):
        found = pet_inputs.find_all(tmp_path, source)
        assert [i.path for i in found.found] == [subject.files[source]]
        assert [i.path for i in found.left if "the model takes" in i.reason] == [
            subject.files[other]
        ]
    subject.files["pet"].unlink()
    with pytest.raises(UserError, match="list it in a manifest.csv as pet"):
        bids.find_cohort(tmp_path)
