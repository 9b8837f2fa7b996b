"""Promises 9 to 11: data are not run, paths do not escape, nobody is named in what is written."""

import contextlib
import functools
import io
import json
import pathlib
import pickle
import struct

import nibabel as nib
import numpy as np
import pytest
import test_export
from test_faults_volumes import cases, read_mutant, seeds

from cldm_jax import files
from cldm_jax.data import bids, dicom, nifti, shards
from cldm_jax.errors import UserError
from cldm_jax.runtime import weights
from cldm_jax.volumes import names
from faults import corpus, inputs, security


@pytest.fixture(scope="module", autouse=True)
def identity():
    with corpus.identity_model():
        yield


# ---- 9: no code from data ----


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def payloads(canary: pathlib.Path) -> dict[str, bytes]:
    """What makes a file where it is run."""
    payload, array = pickle.dumps(Canary(canary)), np.array([[[Canary(canary)]]], dtype=object)
    call = {"py/reduce": [{"py/function": "builtins.open"}, [str(canary), "w"]]}
    return {
        "pickle": payload,
        "pickle as header": struct.pack("<Q", len(payload)) + payload,
        "yaml": f"!!python/object/apply:builtins.open ['{canary}', 'w']\n".encode(),
        "jsonpickle": json.dumps(call).encode(),
        "objects": _saved(np.save, array),
        "npz": _saved(np.savez, array),
    }


def _saved(save, array) -> bytes:
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def _read_config(data: bytes, folder) -> None:
    from cldm_jax.runs.inputs import read_run_config

    corpus.raw(folder / "config.json", data)
    read_run_config(folder)


def _read_shard(data: bytes, folder) -> None:
    """With hashes that fit, and long enough: whoever writes a shard can write its index."""
    path = corpus.raw(folder / "prepared" / "pet-00000.npy", data + bytes(300))
    index = files.read_json(folder / "prepared" / "index.json")
    index["shards"][path.name]["sha256"] = files.sha256_file(path)
    shards.write_index(folder / "prepared", index)
    shards.Prepared(folder / "prepared", verify=True).read(0, "pet")


def _read_weights(data: bytes, folder) -> None:
    exported = folder / "exported"
    corpus.raw(exported / weights.WEIGHTS, data)
    card = files.read_json(exported / weights.CARD)
    for key in ("card_sha256", "files", "sha256"):
        card.pop(key)
    weights.write_card(exported, card, [weights.WEIGHTS])
    weights.load(exported, weights.read_card(exported))


def _read_extension(data: bytes, folder) -> None:
    image = nib.Nifti1Image(corpus.head()["pet"], corpus.affine_of())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", data))
    nib.save(image, folder / "pet.nii.gz")
    nifti.read_volume(folder / "pet.nii.gz")


def _read_private(data: bytes, folder) -> None:
    def edit(ds, z):
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0, "OB", data + bytes(len(data) % 2))

    dicom.read_series(corpus.series(folder / "s", edit))


IN_CHECKPOINT = 9  # files of a step


def _read_checkpoint(data: bytes, folder, number: int) -> None:
    """One file of a checkpoint replaced, the manifest made to fit."""
    from cldm_jax.runtime.checkpoint import Checkpoints, restore_for_inference

    saved = Checkpoints(folder / "checkpoints")
    saved.save(1, {"ema_params": {"kernel": np.ones((2, 3), np.float32)}, "frozen": {}})
    saved.close()
    root = folder / "checkpoints" / "1"
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    assert len(paths) == IN_CHECKPOINT
    corpus.raw(paths[number], data)
    hashes = {str(p.relative_to(root)): files.sha256_file(p) for p in paths}
    files.write_json(folder / "checkpoints" / "sha256-1.json", hashes)
    restore_for_inference(folder / "checkpoints")


TEXTS = ("pickle", "yaml", "jsonpickle")
READ = ("index", "card", "manifest", "nifti", "dicom")
PLACES = {  # what: (read(data, folder), which payloads it is given)
    **{kind: (functools.partial(read_mutant, kind), TEXTS) for kind in READ},
    "config.json": (_read_config, TEXTS),
    "shard": (_read_shard, ("pickle", "npz", "objects")),
    "weights": (_read_weights, ("pickle", "npz", "pickle as header")),
    "NIfTI extension": (_read_extension, ("pickle",)),
    "DICOM private tags": (_read_private, ("pickle",)),
    **{
        f"checkpoint, file {n}": (functools.partial(_read_checkpoint, number=n), (*TEXTS, "npz"))
        for n in range(IN_CHECKPOINT)
    },
}


@pytest.mark.parametrize(
    "place, payload",
    cases(
        [(place, name) for place, (_, names) in PLACES.items() for name in names],
        lambda case: case[0].startswith("checkpoint"),
        ": ".join,
    ),
)
def test_data_are_never_run(tmp_path, place, payload):
    seeds(tmp_path)
    read, canary = PLACES[place][0], tmp_path / "touched"
    with contextlib.suppress(Exception):  # what is refused, and how, is promise 8's
        read(payloads(canary)[payload], tmp_path)
    assert not canary.exists()


def test_a_loader_that_unpickles_runs_them(tmp_path):
    data = payloads(tmp_path / "touched")["objects"]
    with contextlib.suppress(Exception):
        np.load(io.BytesIO(data), allow_pickle=True)
    assert (tmp_path / "touched").exists()


# ---- 10: no path out ----


def listing(folder: pathlib.Path, own: pathlib.Path) -> list:
    """Everything below `folder` but what is in `own`, with its content's hash; and what is beside it."""
    paths = sorted(p for p in folder.rglob("*") if not p.is_relative_to(own) or p == own)
    listed = [(str(p), files.sha256_file(p) if p.is_file() else "") for p in paths]
    return [*listed, sorted(p.name for p in folder.parent.iterdir())]


def _bad_group(folder, outside) -> bool:
    manifest = corpus.raw(folder / "m.csv", b"subject,group,pet\nok,../x,pet.nii.gz\n")
    return bool(bids.find_cohort(manifest).subjects)


def linked_out(folder, outside, where: str) -> None:
    link = folder / "out" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    inputs.predicted(corpus.bids(folder / "bids"), folder / "out")


def _linked_file(folder, outside) -> None:
    """The link is replaced, what it points to is left as it was."""
    (folder / "out").mkdir()
    for name in ("pet_desc-synth_ct.nii.gz", "pet_desc-synth_unfinished-ct.json"):
        (folder / "out" / name).symlink_to(outside / "precious")
    inputs.predicted(corpus.save(folder / "pet.nii.gz"), folder / "out")


def _zip_member(folder, name: str) -> None:
    corpus.series(folder / "s")
    inputs.predicted(corpus.zipped(folder / "s", folder / "pet.zip", name), folder / "out")


def _linked_bids(folder, outside) -> None:
    """Inputs may be links (git-annex has them); outputs lie where the link's own name says."""
    real = corpus.bids(folder / "real")
    (folder / "linked").mkdir()
    (folder / "linked" / "sub-0").symlink_to(real / "sub-0")
    inputs.predicted(folder / "linked", folder / "out")
    assert (folder / "out" / "sub-0" / "ct").is_dir() and not (real / "sub-0" / "ct").exists()


def _card_names(folder, name: str) -> bool:
    seeds(folder)
    facts = {"sha256": "0" * 64, "bytes": 4}
    test_export.reseal(folder / "exported", lambda card: card["files"].update({name: facts}))
    return bool(weights.read_card(folder / "exported"))


def _index_names(folder, name: str) -> bool:
    seeds(folder)
    (folder / "pet-00000.npy").write_bytes((folder / "prepared" / "pet-00000.npy").read_bytes())
    index = files.read_json(folder / "prepared" / "index.json")
    index["shards"][name] = index["shards"].pop("pet-00000.npy")
    index["subjects"][0]["volumes"]["pet"]["shard"] = name
    shards.write_index(folder / "prepared", index)
    return bool(shards.Prepared(folder / "prepared"))


def _named(folder, name: str) -> None:
    inputs.predicted(corpus.save(folder / "pet.nii.gz").rename(folder / name), folder / "out")
    for path in (folder / "out").iterdir():
        bids.check_id(path.name.removesuffix(".nii.gz").replace("+", "")[:64], "output")


def _manifest_path(folder, outside) -> None:
    """Inputs may lie anywhere; what is made of them lies in the workdir."""
    corpus.cohort(folder / "far")
    (folder / "near").mkdir()
    manifest = (folder / "far" / "manifest.csv").read_text().replace(",p", ",../far/p")
    (folder / "near" / "manifest.csv").write_text(manifest)
    inputs.prepared(folder / "near", folder / "work")


ESCAPES = {  # what: attempt(own folder, outside): whether what should be refused was taken
    "group ../x": _bad_group,
    "output subfolder is a link": lambda d, outside: linked_out(d, outside, "sub-0/ct"),
    "output of a session is a link": lambda d, outside: linked_out(d, outside, "sub-0"),
    "output file is a link": _linked_file,
    "zip member ../": lambda d, _: _zip_member(d, "../../outside/{}"),
    "zip member /abs": lambda d, outside: _zip_member(d, f"{outside}/{{}}"),
    "BIDS folder is a link": _linked_bids,
    "card names ../file": lambda d, _: _card_names(d, "../outside/precious"),
    "card names /file": lambda d, outside: _card_names(d, str(outside / "precious")),
    "index names ../shard": lambda d, _: _index_names(d, "../pet-00000.npy"),
    "file called ..nii.gz": lambda d, _: _named(d, "..nii.gz"),
    "file called -rf.nii.gz": lambda d, _: _named(d, "-rf.nii.gz"),
    "manifest path ../": _manifest_path,
}


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("mine")
    return tmp_path / "outside"


@pytest.mark.parametrize("name", ESCAPES)
def test_no_path_leads_out(tmp_path, outside, name):
    """Whatever names and links data hold, files are written below the output folder only."""
    own = tmp_path / "own"
    own.mkdir()
    before, taken = listing(tmp_path, own), False
    with contextlib.suppress(UserError):
        taken = ESCAPES[name](own, outside)
    assert not taken and listing(tmp_path, own) == before


def test_without_the_check_a_link_is_followed(tmp_path, outside, monkeypatch):
    monkeypatch.setattr(names.Names, "_check_inside", lambda self: None)
    linked_out(tmp_path, outside, "sub-0/ct")
    assert len(list(outside.iterdir())) > 1


# ---- 11: nobody is named ----


def test_nobody_is_named(tmp_path):
    with contextlib.redirect_stderr(io.StringIO()):
        (tmp_path / "own").mkdir()
        outcome = security.nobody_named(tmp_path / "own", True)
    assert outcome.survived == outcome.injected and outcome.negative_control, outcome.notes
