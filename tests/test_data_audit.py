"""Cohort reading, the audit's findings (each with a control that passes) and splits by person."""

import dataclasses

import numpy as np
import pytest
from data_heads import SHAPE, affine_of, make_head, write_cohort, write_head

from cldm_jax.data import audit, bids, splits
from cldm_jax.data.bids import Subject
from cldm_jax.data.convert import align
from cldm_jax.data.mutual_information import overlap
from cldm_jax.data.nifti import Volume, write_volume
from cldm_jax.errors import UserError


def _findings(folder, *, allow_misaligned=False, mi_threshold=0.05):
    subject = Subject(
        "sub-1", "sub-1", "", {p.name.split(".")[0]: p for p in folder.glob("*.nii.gz")}
    )
    found = audit.Notes(subject)
    volumes = audit.read_subject(found)
    if "pet" not in volumes:
        return found, {}
    audit.check_geometry(found, volumes, allow_misaligned)
    if any(f.severity == "error" for f in found):
        return found, volumes
    volumes = align(volumes)
    audit.check_overlap(
        found,
        volumes,
        lambda name: np.ones_like(volumes[name].array),
        mi_threshold,
        audit.REGISTER,
    )
    return found, volumes


def _put(folder, name, array, affine=None):
    affine = affine_of() if affine is None else affine
    write_volume(folder / f"{name}.nii.gz", array, affine, dtype=np.float32)


# Subjects


@pytest.mark.parametrize("seed", range(4))
def test_a_good_subject_has_no_findings(tmp_path, seed):
    write_head(tmp_path, seed, ("pet", "ct", "mr", "ct_reacq", "mr_reacq"))
    findings, volumes = _findings(tmp_path)
    assert findings == [] and len(volumes) == 5


def _moved(mm):
    affine = affine_of()
    affine[0, 3] += mm
    return affine


def _mirrored():
    """The header says that the first axis runs to the left; the voxels were not turned."""
    affine = affine_of()
    affine[0] *= -1
    return affine


NAN = make_head(0)["mr"]
NAN[3, 3, 3] = np.nan
WRONG = {  # what is written over a good subject, and what the finding must say
    "shifted affine": (lambda d: _put(d, "ct", make_head(0)["ct"], _moved(2)), "2.00 mm apart"),
    "flipped affine": (lambda d: _put(d, "ct", make_head(0)["ct"], _mirrored()), "mm apart"),
    "other spacing": (
        lambda d: _put(d, "mr", make_head(0)["mr"], affine_of(SHAPE, (5, 5, 7.5))),
        "mm apart",
    ),
    "other shape": (lambda d: _put(d, "mr", make_head(0)["mr"][:-1]), "shape (35, 44, 18)"),
    "mirrored voxels": (lambda d: _put(d, "ct", make_head(0)["ct"][::-1]), "left and right"),
    "front to back": (lambda d: _put(d, "mr", make_head(0)["mr"][:, ::-1]), "front and back"),
    "upside down": (lambda d: _put(d, "ct", make_head(0)["ct"][..., ::-1]), "top and bottom"),
    "unrelated": (
        lambda d: _put(d, "mr", np.random.default_rng(0).uniform(1, 2, SHAPE)),
        "does not match the PET",
    ),
    "NaN": (lambda d: (d / "mr.nii.gz").write_bytes(_nan_file(d)), "1 voxels are NaN"),
    "truncated": (
        lambda d: (d / "ct.nii.gz").write_bytes((d / "ct.nii.gz").read_bytes()[:900]),
        "cut short",
    ),
    "CT is not in HU": (
        lambda d: _put(d, "ct", np.clip(make_head(0)["ct"] + 1024, 0, 255)),
        "not CT in HU",
    ),
    "CT without its intercept, padded by the scanner": (
        lambda d: _put(d, "ct", _padded(make_head(0)["ct"] + 1024, -2000)),
        "1064 HU where the PET shows the head",
    ),
    "CT with its intercept twice": (
        lambda d: _put(d, "ct", make_head(0)["ct"] - 1024),
        "not CT in HU",
    ),
    "CT without bone": (lambda d: _put(d, "ct", np.minimum(make_head(0)["ct"], 100)), "no bone"),
    "MR is a CT": (lambda d: _put(d, "mr", make_head(0)["ct"] + 1), "looks like CT"),
    "PET is a CT": (lambda d: _put(d, "pet", make_head(0)["ct"] + 1), "looks like CT"),
    "PET is not positive": (lambda d: _put(d, "pet", -np.abs(make_head(0)["pet"])), "above zero"),
    "PET of a hot spot": (lambda d: _put(d, "pet", _hot()), "no brain uptake"),
    "no PET": (lambda d: (d / "pet.nii.gz").unlink(), "no PET"),
    "no target": (
        lambda d: [(d / f"{m}.nii.gz").unlink() for m in ("ct", "mr")],
        "neither CT nor MR",
    ),
}


def _padded(ct, value):
    """Outside the circle that a scanner reconstructs."""
    x, y = (np.linspace(-1, 1, n) for n in SHAPE[:2])
    ct[x[:, None] ** 2 + y**2 > 1] = value
    return ct


def test_a_ct_in_hu_may_be_padded_by_the_scanner(tmp_path):
    write_head(tmp_path, 0)
    _put(tmp_path, "ct", _padded(make_head(0)["ct"], -3024))
    assert _findings(tmp_path)[0] == []


@pytest.mark.parametrize("change", [lambda x: 2 * x, lambda x: x / 2, lambda x: -x])
def test_a_ct_of_another_slope_has_no_air(tmp_path, change):
    """Slope applied twice or lost, or inverted: soft tissue stays near 0 HU, so only air tells."""
    write_head(tmp_path, 0)
    _put(tmp_path, "ct", change(make_head(0)["ct"]))
    (finding,) = _findings(tmp_path)[0]
    assert finding.severity == "warning" and "0% of voxels are air about" in finding.reason


def test_an_inverted_mr_is_brighter_around_the_head(tmp_path):
    write_head(tmp_path, 0)
    mr = make_head(0)["mr"]
    _put(tmp_path, "mr", mr.max() - mr)
    (finding,) = _findings(tmp_path)[0]
    assert finding.severity == "warning" and "inverted" in finding.reason


def test_the_fill_of_a_short_mr_is_not_its_head():
    """Half of the head was not measured, and air holds noise."""
    head = make_head(0)
    pet, ct, mr = (
        Volume(head[m].astype(np.float32), affine_of(), None, "") for m in ("pet", "ct", "mr")
    )
    mr.array[:] = np.maximum(mr.array, 0.02 * mr.array.max())
    mr.array[..., :12] = 0
    seen = np.zeros(SHAPE, np.float32)
    seen[..., 12:] = 1
    notes = audit.Notes(Subject("sub-1", "sub-1", "", {}))
    audit.check_overlap(notes, {"pet": pet, "ct": ct, "mr": mr}, lambda _: seen, 0.05, "")
    assert not [f for f in notes if "inverted" in f.reason]


def _nan_file(folder):
    _put(folder, "other", NAN)
    path = folder / "other.nii.gz"
    data = path.read_bytes()
    path.unlink()
    return data


def _hot():
    array = np.full(SHAPE, 0.01)
    array[10:14, 10:14, 8:12] = 50  # 13 ml
    return array


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_found(tmp_path, kind):
    break_it, fragment = WRONG[kind]
    write_head(tmp_path, 0)
    break_it(tmp_path)
    findings, _ = _findings(tmp_path)
    errors = [f for f in findings if f.severity == "error"]
    assert any(fragment in f.reason for f in errors), [f.line() for f in findings]
    assert all(f.remedy and f.what and f.subject == "sub-1" for f in errors)


@pytest.mark.parametrize("mm", [-20, 15])
def test_content_off_by_centimetres_is_a_warning(tmp_path, mm):
    write_head(tmp_path, 0)
    _put(tmp_path, "mr", np.roll(make_head(0)["mr"], mm // 5, 0))
    findings, _ = _findings(tmp_path)
    assert [f.severity for f in findings] == ["warning"] and "right-left" in findings[0].reason


def test_a_remedy_names_the_setting_in_a_command_and_in_python(tmp_path):
    write_head(tmp_path, 0)
    _put(tmp_path, "ct", make_head(0)["ct"], affine_of() @ _shift())
    (finding,) = (f for f in _findings(tmp_path)[0] if f.severity == "error")
    for words in (
        "--config.register=rigid",
        'config.register = "rigid"',
        "config.allow_misaligned",
    ):
        assert words in finding.remedy


def test_misaligned_pairs_can_be_allowed(tmp_path):
    """The same anatomy, stored mirrored with the right affine: an error, or resampled exactly."""
    write_head(tmp_path, 0)
    _put(
        tmp_path, "ct", make_head(0)["ct"][::-1], affine_of() @ np.diag([-1, 1, 1, 1.0]) @ _shift()
    )
    strict, _ = _findings(tmp_path)
    assert any(f.severity == "error" and "mm apart" in f.reason for f in strict)
    findings, volumes = _findings(tmp_path, allow_misaligned=True)
    assert [f.severity for f in findings] == ["warning"]
    np.testing.assert_array_equal(volumes["ct"].array, make_head(0)["ct"])
    # A wrong affine is still caught by the content.
    _put(tmp_path, "ct", make_head(0)["ct"], _mirrored())
    findings, _ = _findings(tmp_path, allow_misaligned=True)
    assert any(f.severity == "error" and "left and right" in f.reason for f in findings)


def _shift():
    shift = np.eye(4)
    shift[0, 3] = -(SHAPE[0] - 1)
    return shift


def test_overlap_orders_aligned_shifted_unrelated():
    head = make_head(5)
    rng = np.random.default_rng(0)
    here = overlap(head["pet"], head["ct"])
    shifted = overlap(head["pet"], np.roll(head["ct"], 6, 0))
    unrelated = overlap(head["pet"], rng.permutation(head["ct"].ravel()).reshape(SHAPE))
    assert here > 0.2 > shifted > 3 * unrelated
    same = rng.uniform(size=20_000)
    assert np.isclose(overlap(same, same), 1)
    assert overlap(same, rng.uniform(size=20_000)) < 0.01


# Cohorts


def _people(*ids, **changes):
    people = [Subject(i, i, "", {"pet": f"{i}/pet", "ct": f"{i}/ct"}) for i in ids]
    return [dataclasses.replace(p, **changes.get(p.id, {})) for p in people]


def test_the_same_image_under_two_ids():
    subjects = _people("a", "b")
    pixels = {"a": {"pet": "1", "ct": "2"}, "b": {"pet": "3", "ct": "2"}}
    (finding,) = audit.audit_cohort(subjects, pixels, "default")
    assert finding.severity == "error" and "a ct" in finding.reason and finding.subject == "b"
    pixels["b"]["ct"] = "4"
    assert audit.audit_cohort(subjects, pixels, "default") == []


def test_a_pair_is_no_pair_of_somebody_else_whoever_came_first():
    """One PET with two targets of its person is two subjects; the second of them twice is a copy."""
    subjects = [dataclasses.replace(s, group="g") for s in _people("a", "b", "c")]
    pixels = {"a": {"pet": "1", "ct": "2"}, "b": {"pet": "1", "ct": "3"}}
    assert audit.audit_cohort(subjects, pixels, "default") == []
    pixels["c"] = pixels["b"]
    (finding,) = audit.audit_cohort(subjects, pixels, "default")
    assert finding.subject == "c" and "b pet" in finding.reason


def test_pixel_digest_ignores_packaging(tmp_path):
    write_head(tmp_path, 0, ("pet", "ct"))
    base = _findings(tmp_path)[1]["pet"]
    array = make_head(0)["pet"]
    write_volume(tmp_path / "pet.nii", array, affine_of(), dtype=np.float64, description="x")
    subject = Subject("b", "b", "", {"pet": tmp_path / "pet.nii", "ct": tmp_path / "ct.nii.gz"})
    copy = align(audit.read_subject(audit.Notes(subject)))["pet"]
    assert copy.sha256 != base.sha256
    assert audit.pixel_digest(copy) == audit.pixel_digest(base)
    other_units = dataclasses.replace(copy, array=copy.array * np.float32(5417.3))
    assert audit.pixel_digest(other_units) == audit.pixel_digest(base)
    changed = copy.array.copy()
    changed[0, 0, 0] += 1
    changed = dataclasses.replace(copy, array=changed)
    assert audit.pixel_digest(changed) != audit.pixel_digest(base)


def test_people_in_two_splits():
    subjects = _people(
        "a", "b", "c", a=dict(group="g", split="train"), b=dict(group="g", split="test")
    )
    findings = audit.audit_cohort(subjects, {}, "manifest")
    assert [f.severity for f in findings] == ["error", "error"]
    assert "train and in test" in findings[0].reason and findings[1].subject == "c"
    (warning,) = audit.audit_cohort(subjects, {}, "default")
    assert warning.severity == "warning" and "not used" in warning.reason


def test_the_page_lists_errors_first():
    one = audit.Finding("warning", "a", "f", "odd", "Look")
    two = audit.Finding("error", "b", "g", "bad", "Repair")
    text = audit.page("cohort", _people("a", "b"), [one, two]).splitlines()
    assert "1 errors, 1 warnings" in text[0] and "bad" in text[1] and "odd" in text[2]


def test_reading_a_manifest(tmp_path):
    path = write_cohort(
        tmp_path, {"p2": dict(group="g", split="Train"), "p1": dict(names=("pet", "mr"))}
    )
    subjects = bids.find_cohort(tmp_path).subjects
    assert [s.id for s in subjects] == ["p1", "p2"] and bids.find_cohort(path).subjects == subjects
    assert subjects[0].group == "p1" and set(subjects[0].files) == {"pet", "mr"}
    assert subjects[1].group == "g" and subjects[1].split == "train"
    assert subjects[1].files["ct"] == tmp_path / "p2" / "ct.nii.gz"


def test_reading_a_bids_tree(tmp_path):
    def touch(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    for name in (
        "sub-1/ses-a/pet/sub-1_ses-a_trc-FDG_pet.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii",
        "sub-1/ses-b/pet/sub-1_ses-b_pet.nii.gz",
        "sub-1/ses-b/ct/sub-1_ses-b_ct.nii.gz",
        "sub-2/pet/sub-2_pet.nii.gz",
        "sub-2/ct/sub-2_ct.nii.gz",
        "sub-3/pet.nii.gz",
        "sub-3/mr.nii.gz",
        "sub-3/mr_reacq.nii.gz",
        "code/sub-9_pet.nii.gz",
    ):
        touch(name)
    subjects = {s.id: s for s in bids.find_cohort(tmp_path).subjects}
    assert sorted(subjects) == ["sub-1_ses-a", "sub-1_ses-b", "sub-2", "sub-3"]
    assert subjects["sub-1_ses-a"].group == subjects["sub-1_ses-b"].group == "sub-1"
    assert set(subjects["sub-1_ses-a"].files) == {"pet", "mr"}
    assert set(subjects["sub-3"].files) == {"pet", "mr", "mr_reacq"}


BAD_ID = [
    "../x",
    "/abs",
    "a/b",
    "a\0b",
    "-rf",
    ".hidden",
    "",
    "a" * 201,
    "a\\b",
    "a:b",
    "a\nb",
    "a.",
    "CON",
    "=1+1",
    "@SUM(A1)",
    "+x",
    "#p1",
]


@pytest.mark.parametrize("value", BAD_ID)
def test_ids_cannot_leave_the_folder(value):
    with pytest.raises(UserError, match="not a usable"):
        bids.check_id(value, "here")


@pytest.mark.parametrize("good", ["sub-01", "A.b_c-9", "a" * 200, "7", "a b", "ü", "C+PIB [18F]"])
def test_good_ids(good):
    assert bids.check_id(good, "here") == good


@pytest.mark.parametrize(
    "text,fragment",
    [
        ("subject|pet|ct\na|b|c\n", "no column"),
        ("subject,ct\na,b\n", "no column 'pet'"),
        ("subject,Pet,ct\na,b,c\n", "'Pet' is not known"),
        ("subject,pet,ct,groups\na,b,c,d\n", "'groups' is not known"),
        ("subject,pet,ct,ct\na,b,c,d\n", "appears twice"),
        ("subject,pet,ct\na,b\n", "more or fewer"),
        ("subject,pet,ct\na,b,c,d\n", "more or fewer"),
        ("subject,pet,ct\na,b,c\nA,d,e\n", "appears twice"),
        ("subject,pet,ct\n../a,b,c\n", "not a usable"),
        ("subject,pet,ct,split\na,b,c,dev\n", "split 'dev'"),
        ("subject,pet,ct\n", "no subjects"),
        ("", "no column"),
    ],
)
def test_bad_manifests(tmp_path, text, fragment):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=fragment):
        bids.find_cohort(tmp_path / "m.csv")


def test_manifest_that_is_not_text(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"subject,pet,ct\n\xff\xfe,a,b\n")
    with pytest.raises(UserError, match="not a readable CSV"):
        bids.find_cohort(tmp_path / "m.csv")
    (tmp_path / "ok.csv").write_text("\ufeffsubject,pet,ct,age\n a , b ,c,61\n,,,\n")
    (subject,) = bids.find_cohort(tmp_path / "ok.csv").subjects
    assert subject.id == "a" and subject.files["pet"] == tmp_path / "b"
    with pytest.raises(UserError, match="no such file"):
        bids.find_cohort(tmp_path / "none")


# Splits


def _cohort(groups=20, per_group=2):
    """Odd groups have CT only, even ones MR only."""
    out = []
    for g in range(groups):
        files = {"pet": "x", ("ct" if g % 2 else "mr"): "y"}
        out += [Subject(f"g{g:02d}v{v}", f"g{g:02d}", "", files) for v in range(per_group)]
    return out


def _make(subjects, mode="default", fractions=(0.7, 0.1, 0.2), seed=0, n=14):
    return splits.make_splits(
        subjects, mode=mode, fractions=fractions, seed=seed, abstract_train_groups=n
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_parted(seed):
    subjects = _cohort()
    made = _make(subjects, seed=seed)
    parts = [{i[:3] for i in made[k]} for k in bids.SPLITS]
    assert [len(p) for p in parts] == [14, 2, 4]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert sorted(sum((made[k] for k in bids.SPLITS), [])) == [s.id for s in subjects]
    odd = sum(int(g[1:]) % 2 for g in parts[2])  # both kinds of people are tested
    assert odd == 2


def test_splits_are_reproducible_and_seeded():
    subjects = _cohort()
    assert _make(subjects) == _make(list(reversed(subjects))) | {
        k: _make(subjects)[k] for k in bids.SPLITS
    }
    assert _make(subjects)["hash"] == _make(list(reversed(subjects)))["hash"]
    assert len({_make(subjects, seed=s)["hash"] for s in range(6)}) == 6


@pytest.mark.parametrize("groups", [3, 4, 5, 8, 50, 64])
def test_everyone_gets_a_split(groups):
    made = _make(_cohort(groups, 1))
    sizes = [len(made[k]) for k in bids.SPLITS]
    assert sum(sizes) == groups and min(sizes) >= 1


def test_abstract_mode_reports_on_the_selection_set():
    made = _make(_cohort(), mode="abstract")
    assert made["val"] == made["test"] and len({i[:3] for i in made["train"]}) == 14
    assert not set(made["train"]) & set(made["val"])
    with pytest.raises(UserError, match="none left"):
        _make(_cohort(14, 1), mode="abstract")


def test_refused_splits():
    with pytest.raises(UserError, match="cannot make"):
        _make(_cohort(2))
    with pytest.raises(UserError, match="add up"):
        _make(_cohort(), fractions=(0.7, 0.2, 0.2))
    with pytest.raises(UserError, match="unknown mode"):
        _make(_cohort(), mode="random")
    with pytest.raises(UserError, match="nobody is in train"):
        _make(_cohort(), mode="manifest")
    assert _make(_cohort(), fractions=(0.8, 0.0, 0.2))["val"] == []


@pytest.mark.parametrize("unit", [1.0, 3000.0])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_in_air_is_no_ct_whatever_the_unit(tmp_path, unit, noise):
    write_head(tmp_path, 0)
    rng = np.random.default_rng(0)
    pet = make_head(0)["pet"] + 8 * noise * rng.standard_normal(SHAPE)
    _put(tmp_path, "pet", unit * pet)
    found = [f for f in _findings(tmp_path)[0] if "uptake" not in f.reason]
    assert [f.severity for f in found] == ["warning"] and "is negative" in found[0].reason


def test_a_whole_body_is_not_prepared_as_a_head(tmp_path):
    """Its bladder would set the scale, and its legs be training slices."""
    write_head(tmp_path, 0)
    body = np.concatenate([make_head(0)["pet"]] * 3, axis=2)
    _put(tmp_path, "pet", body)
    errors = [f for f in _findings(tmp_path)[0] if f.severity == "error" and "pet" in f.what]
    assert "field of view of 43 cm" in errors[0].reason and "to the head" in errors[0].remedy
