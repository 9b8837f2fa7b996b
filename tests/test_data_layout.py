"""What lies in a lab's folder: everything that looks like an image is found, or left aside and named."""

import codecs
import json
import os
import pathlib

import pytest

from cldm_jax import files
from cldm_jax.data import audit, bids, layout, left_out, nifti, pet_inputs
from cldm_jax.errors import UserError


def lay(root: pathlib.Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"x")


def whole(root, *people: str) -> None:
    for s in people:
        lay(root, f"{s}/pet/{s}_pet.nii.gz", f"{s}/ct/{s}_ct.nii.gz", f"{s}/anat/{s}_T1w.nii.gz")


def warned(left) -> str:
    return "\n".join(f"{item.path}: {item.reason}" for item in left if item.severity)


def held(cohort) -> dict:
    return {s.id: sorted(s.files) for s in cohort.subjects}


def test_a_clean_tree_leaves_nothing_aside(tmp_path):
    whole(tmp_path, "sub-1", "sub-2")
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == dict.fromkeys(("sub-1", "sub-2"), ["ct", "mr", "pet"])
    assert cohort.left == [] and pet_inputs.find_all(tmp_path).left == []


@pytest.mark.parametrize(
    "names",
    [
        ("pet/sub-1_PET.nii.gz", "ct/sub-1_CT.nii.gz", "anat/sub-1_t1w.nii.gz"),
        ("pet/sub-1_pet.NII.GZ", "ct/sub-1_ct.NII", "anat/sub-1_T1W.Nii.gz"),
        ("PET/sub-1_pet.nii.gz", "anat/sub-1_ct.nii.gz", "anat/sub-1_T1w.nii.gz"),
        ("sub-1_pet.nii.gz", "sub-1_ct.nii.gz", "sub-1_T1w.nii.gz"),
        ("PET.nii.gz", "ct.nii.gz", "mr.nii.gz"),
    ],
)
def test_letters_of_either_case_and_usual_places(tmp_path, names):
    lay(tmp_path, *(f"sub-1/{n}" for n in names))
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == {"sub-1": ["ct", "mr", "pet"]} and not warned(cohort.left)
    assert len(pet_inputs.find_all(tmp_path).found) == 1


LOOKS = {  # a file beside a whole person, and what the warning says of it
    "anat/sub-1_T1.nii.gz": "looks like MR",
    "anat/sub-1_mprage.nii.gz": "looks like MR",
    "anat/sub-1_acq-MPRAGE.nii": "looks like MR",
    "pet/sub-1_pet_smoothed.nii.gz": "looks like PET",
    "pet/sub-1_FDGPET.nii.gz": "looks like PET",
    "ct/sub-1_ct (1).nii.gz": "looks like CT",
    "old/sub-1_ct.nii.gz": "lies in old",
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_like_an_image_of_ours_is_named(tmp_path, name):
    whole(tmp_path, "sub-1")
    lay(tmp_path, f"sub-1/{name}")
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == {"sub-1": ["ct", "mr", "pet"]}
    assert LOOKS[name] in warned(cohort.left) and pathlib.Path(name).name in warned(cohort.left)


QUIET = {  # counted and listed, without a warning
    "anat/sub-1_T2w.nii.gz": "another kind (t2w)",
    "anat/sub-1_FLAIR.nii": "another kind (flair)",
    "func/sub-1_task-rest_part-phase_bold.nii.gz": "another kind (bold)",
    "anat/sub-1_label-brain_mask.nii.gz": "another kind (mask)",
    "pet/._sub-1_pet.nii.gz": "side files",
    "pet/.DS_Store": "side files",
    "ct/Thumbs.db": "side files",
    "ct/sub-1_desc-synth_ct.nii.gz": "this program made",
    "pet/dicom/1.dcm": "not NIfTI",
}


@pytest.mark.parametrize("name", QUIET)
def test_other_files_are_counted(tmp_path, name):
    whole(tmp_path, "sub-1")
    lay(tmp_path, f"sub-1/{name}")
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == {"sub-1": ["ct", "mr", "pet"]} and not warned(cohort.left)
    assert QUIET[name] in layout.counted(cohort.left)


def test_synthetic_images_are_never_somebodys_truth(tmp_path):
    lay(tmp_path, "sub-1/pet/sub-1_pet.nii.gz", "sub-1/ct/sub-1_desc-synth_ct.nii.gz")
    with pytest.raises(UserError, match="neither CT nor MR"):
        bids.find_cohort(tmp_path)


def test_people_without_images_or_pairs_are_named_and_the_others_go_on(tmp_path):
    whole(tmp_path, "sub-1")
    lay(tmp_path, "sub-2/", "sub-3/pet/sub-3_pet.nii.gz", "sub-4/ct/sub-4_ct.nii.gz")
    lay(tmp_path, "patient5/pet.nii.gz", "sub-6_pet.nii.gz", "derivatives/x/sub-1_pet.nii.gz")
    (tmp_path / "sub-7").symlink_to("nowhere")
    cohort = bids.find_cohort(tmp_path)
    assert list(held(cohort)) == ["sub-1"]
    words = warned(cohort.left)
    for name in ("sub-2", "sub-3", "sub-4", "patient5", "sub-6_pet", "sub-7"):
        assert f"{tmp_path / name}" in words, name
    assert "derivatives" not in words
    inputs = pet_inputs.find_all(tmp_path)
    assert [p.name for p in inputs.found] == ["sub-1", "sub-3"]
    assert "sub-2" in warned(inputs.left) and "sub-4: no PET" in warned(inputs.left)
    assert inputs.without == ("sub-2", "sub-4", "sub-7")


def test_an_image_of_another_person_or_session_is_nobodys_pair(tmp_path):
    whole(tmp_path, "sub-1", "SUB-2", "sub-3_b.c", "sub-4")
    lay(tmp_path, "sub-5/ses-a/pet/sub-5_ses-a_pet.nii.gz", "sub-5/ses-a/ct/sub-5_ses-b_ct.nii.gz")
    (tmp_path / "sub-4/ct/sub-4_ct.nii.gz").rename(tmp_path / "sub-4/ct/sub-40_ct.nii.gz")
    (tmp_path / "sub-1/ct/sub-1_ct.nii.gz").rename(tmp_path / "sub-1/ct/Sub-1_CT.nii.gz")
    cohort = bids.find_cohort(tmp_path)
    full = ["ct", "mr", "pet"]
    assert held(cohort) == {"sub-1": full, "SUB-2": full, "sub-3_b.c": full, "sub-4": ["mr", "pet"]}
    words = warned([item for item in cohort.left if item.severity == "error"]).replace(os.sep, "/")
    assert "called after sub-40 and lies in sub-4" in words
    assert "called after ses-b and lies in sub-5/ses-a" in words and words.count("\n") == 1
    (tmp_path / "sub-1/pet/sub-1_pet.nii.gz").rename(tmp_path / "sub-1/pet/sub-9_pet.nii.gz")
    inputs = pet_inputs.find_all(tmp_path)
    assert "called after sub-9" in warned(inputs.left) and inputs.without == ("sub-1",)


def test_a_phase_is_no_mr(tmp_path):
    whole(tmp_path, "sub-1")
    mr = tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    mr.rename(mr.with_name("sub-1_part-phase_T1w.nii.gz"))
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == {"sub-1": ["ct", "pet"]} and "part-phase" in warned(cohort.left)
    lay(tmp_path, "sub-1/anat/sub-1_part-mag_T1w.nii.gz")
    assert held(bids.find_cohort(tmp_path)) == {"sub-1": ["ct", "mr", "pet"]}


@pytest.mark.parametrize("name", ["sub-2.zip", "sub-2.tar.gz", "sub-2.TAR"])
def test_people_who_are_not_unpacked_are_named(tmp_path, name):
    whole(tmp_path, "sub-1")
    lay(tmp_path, name, "code.zip", "sub-1.json")
    for left in (bids.find_cohort(tmp_path).left, pet_inputs.find_all(tmp_path).left):
        (item,) = left
        assert item.path.name == name and "unpack it" in item.reason and item.severity


def test_a_dataset_one_folder_further_down_is_pointed_at(tmp_path):
    whole(tmp_path / "rawdata", "sub-1")
    lay(tmp_path, "derivatives/readme.txt")
    for find in (bids.find_cohort, pet_inputs.find_all):
        with pytest.raises(UserError, match=r"; rawdata/ holds people \(sub-\*\): give that\."):
            find(tmp_path)


def test_a_name_that_no_file_can_have_does_not_stop_the_others(tmp_path):
    whole(tmp_path, "sub-1", "sub-2 ")
    cohort = bids.find_cohort(tmp_path)
    assert list(held(cohort)) == ["sub-1"]
    (left,) = cohort.left
    assert left.severity == "error" and "'sub-2 ' is not a usable subject" in left.reason
    said = left_out.counted([], len(cohort.subjects), cohort.left)
    assert said.startswith("left out: 1 of 2 subjects: sub-2 ")
    assert left_out.counted([], 1, [left._replace(severity="warning")]) == ""


def test_a_folder_that_cannot_be_read_is_an_error_where_it_is_a_persons(tmp_path, monkeypatch):
    """`lost+found` at the root of a disk is nobody's: said, and no exit status for it. What lies below a
    person of whom other images are used is nobody more.
    """
    whole(tmp_path, "sub-1")
    (tmp_path / "sub-1" / "mri").mkdir()
    (tmp_path / "sub-2").mkdir()
    (tmp_path / "lost+found").mkdir()
    listed = os.listdir

    def refusing(folder):
        if pathlib.Path(folder).name in ("sub-2", "lost+found", "mri"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(layout.os, "listdir", refusing)
    cohort = bids.find_cohort(tmp_path)
    assert list(held(cohort)) == ["sub-1"]
    found = {x.path.name: x.severity for x in cohort.left if "cannot be read" in x.reason}
    assert found == {"sub-2": "error", "lost+found": "warning", "mri": "error"}
    assert all(x.severity for x in cohort.left)
    said = left_out.counted([], len(cohort.subjects), cohort.left)
    assert said.startswith("left out: 1 of 2 subjects and images of 1 other: mri (cannot be read")


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tmp_path):
    whole(tmp_path, "sub-1", "sub-2")
    (tmp_path / "sub-1" / "all").symlink_to("..")
    cohort = bids.find_cohort(tmp_path)
    assert list(held(cohort)) == ["sub-1", "sub-2"]
    assert [(x.path.name, x.reason) for x in cohort.left] == [
        ("all", "a link to a folder that it lies in")
    ]


def test_images_at_both_levels_are_found(tmp_path):
    whole(tmp_path, "sub-1")
    lay(tmp_path, "sub-1/ses-2/pet/sub-1_ses-2_pet.nii.gz", "sub-1/ses-2/ct/sub-1_ses-2_ct.nii.gz")
    lay(tmp_path, "sub-1/ses-mr/anat/sub-1_ses-mr_T1w.nii.gz")
    cohort = bids.find_cohort(tmp_path)
    assert held(cohort) == {"sub-1": ["ct", "mr", "pet"], "sub-1_ses-2": ["ct", "pet"]}
    assert {s.group for s in cohort.subjects} == {"sub-1"}  # one person is in one split
    assert "ses-mr: MR without a PET beside it" in warned(cohort.left)
    assert len(pet_inputs.find_all(tmp_path).found) == 2


def test_all_candidates_are_listed_at_once(tmp_path):
    whole(tmp_path, "sub-1", "sub-2", "sub-3")
    lay(tmp_path, "sub-1/ct/sub-1_CT.nii.gz", "sub-3/pet/sub-3_run-2_pet.nii.gz")
    with pytest.raises(UserError, match="several candidates") as refused:
        bids.find_cohort(tmp_path)
    for name in ("sub-1_CT.nii.gz", "sub-1_ct.nii.gz", "sub-3_run-2_pet", "manifest.csv"):
        assert name in str(refused.value)
    assert len(pet_inputs.find_all(tmp_path).found) == 4  # each PET is predicted


def test_names_of_a_dataset_are_made_safe_and_stay_apart(tmp_path):
    names = (
        "sub-1_" + "x" * 200,
        "sub-1_trc-[18F]",
        "sub-1_trc-(18F)",
        "sub-1_trc-C+PIB",
        "sub-1_ü",
    )
    lay(tmp_path, *(f"sub-1/pet/{n}_pet.nii.gz" for n in names), "sub-1/pet/sub-1_ü_pet.nii")
    found = pet_inputs.find_all(tmp_path).found
    assert len({p.name.lower() for p in found}) == len(found) == 6
    assert all(len(p.name) < 180 and p.name.isascii() for p in found)
    assert "sub-1_trc-C+PIB" in {p.name for p in found}


# One file


POINTERS = {
    "a link to nothing": lambda p: p.symlink_to("../.git/annex/objects/x/y.nii.gz"),
    "not fetched": lambda p: p.write_text("../../.git/annex/objects/fW/24/MD5E-s2--0.nii.gz"),
    "a pointer": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"),
    "empty": lambda p: p.write_bytes(b""),
    "not a file but a folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("reason", POINTERS)
def test_what_stands_in_for_a_file_is_told_apart(tmp_path, reason):
    path = tmp_path / "sub-1_pet.nii.gz"
    POINTERS[reason](path)
    with pytest.raises(UserError, match=reason):
        nifti.read_volume(path)
    with pytest.raises(UserError, match=reason):
        nifti.sha256(path)


# Manifests and side files


def test_a_column_of_images_that_is_not_read_is_named(tmp_path):
    text = "subject,pet,ct,t1w,flair,age,note\na,a.nii,b.nii,c.nii.gz,d.NII,61,see/later\n"
    (tmp_path / "m.csv").write_text(text)
    words = warned(bids.find_cohort(tmp_path / "m.csv").left)
    assert "'t1w' holds images (1)" in words and "'flair'" in words
    assert "'age'" not in words and "'note'" not in words


@pytest.mark.parametrize("comma", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write(tmp_path, comma, encoding):
    rows = [
        ["subject", "pet", "ct"],
        ["Müller+1", "~/a.nii", "b, c.nii" if comma != "," else "b.nii"],
    ]
    text = "\r\n".join(comma.join(row) for row in rows)
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    (subject,) = bids.find_cohort(tmp_path / "m.csv").subjects
    assert subject.id == "Müller+1" and subject.files["pet"] == pathlib.Path.home() / "a.nii"
    assert subject.files["ct"] == tmp_path / rows[1][2]


@pytest.mark.parametrize("nothing", ["n/a", "NA", "nan", "None"])
def test_what_stands_for_nothing_is_no_path_and_no_group(tmp_path, nothing):
    row = f"{{}},{nothing},{nothing},pet.nii,ct.nii,{nothing},{nothing}\n"
    text = "subject,group,split,pet,ct,mr,pet_gain\n" + row.format("NA") + row.format("b")
    (tmp_path / "m.csv").write_text(text)
    for subject, name in zip(
        bids.find_cohort(tmp_path / "m.csv").subjects, ("NA", "b"), strict=True
    ):
        assert (subject.id, subject.group, subject.split) == (name, name, "")
        assert sorted(subject.files) == ["ct", "pet"] and subject.pet_gain == 1


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_description_with_a_byte_order_mark(tmp_path, mark):
    path = tmp_path / "dataset_description.json"
    path.write_bytes(mark + json.dumps({"Name": "ours"}).encode())
    assert bids.provenance(tmp_path) == ("ours", "unknown")
    path.write_bytes('{"Name": "zwei"}'.encode("utf-16"))
    assert files.read_json(path) == {"Name": "zwei"}
    path.write_text("{}")
    assert bids.provenance(tmp_path)[0] == tmp_path.name
    path.write_text("{")
    with pytest.raises(UserError, match="not readable"):
        bids.provenance(tmp_path)


def test_people_in_other_letters_keep_names_of_their_own(tmp_path):
    people = ("sub-张三", "sub-李四", "sub-王五", "sub-A B", "sub-A&B", "sub-A,B", "sub-1")
    lay(tmp_path, *(f"{s}/pet.nii.gz" for s in people))
    lay(tmp_path, *(f"sub-2/ses-{s}/pet/sub-2_ses-{s}_pet.nii.gz" for s in ("vor", "später")))
    lay(tmp_path, *(f"sub-3/pet/sub-3_{n}" for n in ("pet.nii", "pet.nii.gz", "PET.nii")))
    found = pet_inputs.find_all(tmp_path).found
    assert len({(p.folder, p.name.lower()) for p in found}) == len(people) + 5
    assert len({p.folder for p in found}) == len(people) + 3
    alone = tmp_path / "alone"
    lay(alone, "sub-王五/pet.nii.gz", "sub-1/pet.nii.gz")
    names = {p.path.parent.name: (p.folder, p.name) for p in found}
    for p in pet_inputs.find_all(alone).found:  # whoever else is there
        assert (p.folder, p.name) == names[p.path.parent.name]
    assert names["sub-1"] == ("sub-1", "sub-1_pet")


def test_a_home_of_nobody_is_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        pet_inputs.find_all("~nobody-of-this-name/pet.nii.gz")
    (tmp_path / "m.csv").write_text("subject,pet,ct\na,~nobody-of-this-name/p.nii,c.nii\n")
    (subject,) = bids.find_cohort(tmp_path / "m.csv").subjects
    assert subject.files["pet"].name == "p.nii"


def test_a_folder_of_links_that_lead_out_of_it_says_so(tmp_path):
    lay(tmp_path, *(f"store/{i}.dcm" for i in range(3)), "linked/notes.txt")
    for i in range(3):
        (tmp_path / "linked" / f"{i}.dcm").symlink_to(tmp_path / "store" / f"{i}.dcm")
    with pytest.raises(UserError, match="no DICOM files; 3 links that lead out of it"):
        pet_inputs.find_all(tmp_path / "linked")
    with pytest.raises(UserError, match="no DICOM files$|no DICOM files[.]"):
        pet_inputs.find_all(tmp_path / "store")


def test_a_session_that_is_left_out_is_no_person():
    """Its person goes on with the other one."""
    files = {n: pathlib.Path(f"{n}.nii") for n in ("pet", "ct")}
    subjects = [bids.Subject(f"sub-1_ses-{k}", "sub-1", "", files) for k in (1, 2)]
    bad = audit.Finding("error", "sub-1_ses-2", "ct.nii", "empty", "Mend it", "ct")
    out = left_out.find(subjects, {"sub-1_ses-1": {"pet", "ct"}}, [bad])
    assert left_out.counted(out, 2) == "left out: 1 of 2 subjects: sub-1_ses-2 (ct: empty)"
    assert out[0].rows()[0]["reason"] == "ct: empty (the subject is left out)"
