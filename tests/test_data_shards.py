"""Prepared folders: exact storage, damage found, and batches in an order that depends on step only."""

import contextlib
import json
import pickle
import resource

import numpy as np
import pytest

from cldm_jax import errors
from cldm_jax.data import intensity, pipeline, shards
from cldm_jax.errors import UserError

H, W = 10, 8
SPEC = intensity.fit(intensity.make("ct", "window", low=-1, high=1, percentile=None), [])
DEPTH = (7, 5, 9, 6)  # slices of the four subjects; the last has no MR
ID = ("a", "b", "c", "d")
KEEP = {"a": slice(1, 6), "b": slice(0, 5), "c": slice(2, 9), "d": slice(0, 6)}


def _value(subject, name, z):
    """The known content of a slice, a different constant everywhere, in [-1, 1]."""
    code = {"pet": 0, "ct": 1, "mr": 2, "ct_reacq": 3}[name]
    return -0.9 + (subject * 40 + z * 4 + code) / 100


def _write(folder, kind="images", images_fingerprint=None):
    names = ("pet", "ct", "mr", "ct_reacq", "mask") if kind == "images" else ("pet", "ct", "mr")
    item = (H, W) if kind == "images" else (5, 4, 3)
    dtype = "uint16" if kind == "images" else "float16"
    writers = {n: shards.ShardWriter(folder, n, 13) for n in names}
    subjects = []
    for i, (name, depth) in enumerate(zip(ID, DEPTH, strict=True)):
        volumes = {}
        for m, writer in writers.items():
            if m == "mr" and name == "d":
                continue
            if m == "mask":
                array = np.zeros((depth, *item), np.uint8)
                array[:, 2:-2, 2:-2] = 1
            else:
                array = np.stack([np.full(item, _value(i, m, z), np.float32) for z in range(depth)])
            if kind == "latents":
                array = array + np.arange(3, dtype=np.float32) * 10  # channels differ
            stored = array if m == "mask" else shards.encode(array, dtype)
            shard, offset = writer.add(stored)
            volumes[m] = {"shard": shard, "offset": offset, "scale": 1.0}
        keep = np.zeros(depth, bool)
        keep[KEEP[name]] = True
        entry = {"id": name, "group": name, "grid_affine": np.eye(4).tolist()}
        subjects.append(entry | {"n_slices": depth, "keep": keep.tolist(), "volumes": volumes})
    written = {}
    for writer in writers.values():
        written |= writer.close()
    index = {
        "kind": kind,
        "name": "generated",
        "contrast": "unknown",
        "config": {},
        "grid": {
            "size": [H, W],
            "spacing_mm": [1.0, 1.0],
            "slice_spacing_mm": 1.0,
            "center": "fov",
        },
        "modalities": {
            m: {"code": c, "units": "HU", "normaliser": SPEC.to_json()}
            for c, m in enumerate(("pet", "ct", "mr"))
        },
        "encoding": shards.ENCODINGS[dtype],
        "subjects": subjects,
        "splits": {"hash": "", "train": ["a", "b", "c"], "val": ["d"], "test": ["d"]},
        "shards": written,
    }
    if images_fingerprint:
        index["images_fingerprint"] = images_fingerprint
    shards.write_index(folder, index)
    return shards.Prepared(folder, verify=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def latents(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("latents")
    return _write(folder, "latents", images.index.fingerprint)


def _source(images, **changes):
    settings = dict(split="train", targets=("ct", "mr"), context=3, latents=None)
    return pipeline.make_source(images, **{**settings, "source_kind": "image", **changes})


# Shards


def test_encoding_is_exact_to_half_a_step():
    x = np.random.default_rng(0).uniform(-1, 1, (4, 9, 9)).astype(np.float32)
    x[0, 0, :3] = -1, 1, 0
    e = shards.ENCODINGS["uint16"]
    stored = shards.encode(x, "uint16")
    back = stored * e["scale"] + e["offset"]
    assert np.abs(back - x).max() <= 1.02 / 65535  # half a step and float32 rounding; CT: 0.03 HU
    assert stored[0, 0, 0] == 0 and stored[0, 0, 1] == 65535
    np.testing.assert_array_equal(shards.encode(back.astype(np.float32), "uint16"), stored)


@pytest.mark.parametrize("value,dtype", [(1.01, "uint16"), (np.nan, "uint16"), (7e4, "float16")])
def test_what_does_not_fit_is_refused(value, dtype):
    x = np.zeros((2, 3, 3), np.float32)
    x[1, 1, 1] = value
    with pytest.raises(ValueError):
        shards.encode(x, dtype)
    with pytest.raises(ValueError):
        shards.encode(np.array([np.nan], np.float32), "float16")


def test_volumes_come_back(images):
    for i, depth in enumerate(DEPTH):
        for name in ("pet", "ct", "ct_reacq"):
            volume = images.read(i, name)
            assert volume.shape == (depth, H, W) and volume.dtype == np.float32
            for z in range(depth):
                assert np.allclose(volume[z], _value(i, name, z), atol=2e-5)
                np.testing.assert_array_equal(images.read_slice(i, name, z), volume[z])
    assert set(np.unique(images.read(0, "mask"))) == {0.0, 1.0}
    assert images.has(0, "mr") and not images.has(3, "mr")
    with pytest.raises(KeyError):
        images.read(3, "mr")
    with pytest.raises(IndexError):
        images.read_slice(1, "pet", 5)
    assert images.subjects("train") == [0, 1, 2] and images.subjects("all") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="unknown split"):
        images.subjects("dev")


def test_volumes_are_not_cut_and_shards_are_bounded(images):
    shapes = {k: v.shape[0] for k, v in images.index.shards.items() if k.startswith("pet")}
    assert shapes == {"pet-00000.npy": 12, "pet-00001.npy": 9, "pet-00002.npy": 6}  # limit 13


def test_pickling_drops_the_open_files(images):
    images.read(0, "pet")
    copy = pickle.loads(pickle.dumps(images))
    assert copy._shards == {} and len(pickle.dumps(images)) < 20_000
    np.testing.assert_array_equal(copy.read(0, "pet"), images.read(0, "pet"))


def _damaged(tmp_path, what):
    prepared = _write(tmp_path)
    shard = tmp_path / "ct-00001.npy"
    data = bytearray(shard.read_bytes())
    if what == "flip":
        data[len(data) // 2] ^= 4
        shard.write_bytes(data)
    elif what == "cut":
        shard.write_bytes(data[:-7])
    elif what == "gone":
        shard.unlink()
    elif what == "index":
        index = json.loads((tmp_path / "index.json").read_text())
        index["subjects"][0]["volumes"]["ct"]["offset"] = 7
        (tmp_path / "index.json").write_text(json.dumps(index))
    elif what == "version":
        index = json.loads((tmp_path / "index.json").read_text())
        (tmp_path / "index.json").write_text(json.dumps(index | {"version": 9}))
    elif what == "json":
        (tmp_path / "index.json").write_text("{")
    else:
        (tmp_path / "index.json").unlink()
    return prepared


@pytest.mark.parametrize("what", ["flip", "cut", "gone", "index", "version", "json", "unfinished"])
def test_damage_is_found(tmp_path, what):
    _damaged(tmp_path, what)
    with pytest.raises(UserError) as caught:
        shards.Prepared(tmp_path, verify=True)
    if what in ("flip", "cut", "gone"):
        assert "ct-00001.npy" in caught.value.what
    if what == "flip":  # negative control: only the hash sees it
        shards.Prepared(tmp_path)


# Items


def _item(source, i):
    return {k: v[0] for k, v in source.read(np.array([i])).items()}


def test_a_shard_that_does_not_fit_on_the_disk_is_named_with_the_reason(tmp_path):
    """A limit of file sizes stands for the disk: NumPy alone says "8192 requested and 5 written"."""
    writer = shards.ShardWriter(tmp_path, "ct", 100)
    writer.add(np.zeros((10, 64, 64), np.uint16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = errors.of_system(caught.value, "the folder of the command, on another disk")
    assert (said.what, said.reason) == (str(tmp_path / "ct-00000.npy"), "File too large")
    assert list(tmp_path.iterdir()) == []


def test_items(images):
    source = _source(images)
    assert len(source) == 2 * (5 + 5 + 7)
    item = _item(source, 0)
    assert (int(item["subject"]), int(item["slice"]), int(item["label"])) == (0, 1, 1)
    shapes = {k: v.shape for k, v in item.items()}
    assert shapes == {
        "source": (H, W, 3),
        "target": (H, W, 1),
        "mask": (H, W, 1),
        "label": (),
        "subject": (),
        "slice": (),
    }
    batch = source.read(np.arange(len(source)))
    for i in range(len(source)):
        s, z, label = (int(batch[k][i]) for k in ("subject", "slice", "label"))
        near = [_value(s, "pet", int(np.clip(z + d, 0, DEPTH[s] - 1))) for d in (-1, 0, 1)]
        np.testing.assert_allclose(batch["source"][i, 3, 3], near, atol=2e-5)
        name = ("pet", "ct", "mr")[label]
        np.testing.assert_allclose(batch["target"][i], _value(s, name, z), atol=2e-5)
        assert batch["mask"][i].sum() == (H - 4) * (W - 4)
        assert images.index.people[s].keep[z]
    for key, dtype in (("source", np.float32), ("label", np.int32), ("slice", np.int32)):
        assert batch[key].dtype == dtype


def test_autoencoder_items_and_stride(images):
    source = _source(images, targets=("pet", "ct", "mr"), context=1)
    assert len(source) == 3 * 17
    first = _item(source, 0)
    np.testing.assert_array_equal(first["source"], first["target"])
    assert first["label"] == 0
    strided = _source(images, targets=("pet",), context=5, slice_stride=2)
    assert strided.keys["slice"].tolist() == [1, 3, 5, 0, 2, 4, 2, 4, 6, 8]


def test_a_missing_target_is_fine(images):
    """Subject d has no MR: no MR items, and its CT items and source stay."""
    source = _source(images, split="test", targets=("ct", "mr"))
    assert set(source.keys["label"].tolist()) == {1} and len(source) == 6
    assert len(_source(images, split="test", targets=("pet",))) == 6  # neither target is needed
    with pytest.raises(UserError, match="no test slices with target mr"):
        _source(images, split="test", targets=("mr",))


def test_latent_items(images, latents):
    source = _source(images, latents=latents, source_kind="latent")
    item = _item(source, 4)
    z = int(item["slice"])
    assert item["source"].shape == (5, 4, 9) and item["target"].shape == (5, 4, 3)
    near = [
        _value(0, "pet", int(np.clip(z + d, 0, 6))) + 10 * c for d in (-1, 0, 1) for c in range(3)
    ]
    np.testing.assert_allclose(item["source"][2, 2], near, rtol=2e-3, atol=2e-3)
    assert item["mask"].shape == (H, W, 1)
    mixed = _item(_source(images, latents=latents, source_kind="image"), 4)
    assert mixed["source"].shape == (H, W, 3) and mixed["target"].shape == (5, 4, 3)
    np.testing.assert_array_equal(mixed["target"], item["target"])


def test_latents_of_other_images_are_refused(tmp_path, images):
    other = _write(tmp_path, "latents", "0" * 64)
    with pytest.raises(UserError, match="not encoded from"):
        _source(images, latents=other)


def test_bad_settings(images):
    with pytest.raises(ValueError, match="context"):
        _source(images, context=2)
    with pytest.raises(ValueError, match="source_kind"):
        _source(images, source_kind="latent")


# Order


def _order(source, steps, *, start=0, batch_size=6, seed=3, **kw):
    settings = dict(num_threads=0, num_workers=0) | kw
    batches = pipeline.make_train_iterator(
        source, batch_size=batch_size, seed=seed, start_step=start, **settings
    )
    with contextlib.closing(batches) as it:
        batches = [next(it) for _ in range(steps)]
    keys = [np.stack([b[k] for k in ("subject", "slice", "label")], -1) for b in batches]
    return np.stack(keys), batches


def test_order_resumes_by_step(images):
    source = _source(images)
    whole, batches = _order(source, 20)
    rest, again = _order(source, 8, start=12)
    np.testing.assert_array_equal(rest, whole[12:])
    np.testing.assert_array_equal(again[-1]["source"], batches[-1]["source"])
    threaded, _ = _order(source, 20, num_threads=2)
    np.testing.assert_array_equal(threaded, whole)
    other, _ = _order(source, 20, seed=4)
    assert (other != whole).any()


def test_unpaired_targets_come_from_another_permutation(images):
    """Same sources in the same order; every target of an epoch once, but not beside its own source."""
    source = _source(images, targets=("ct",))
    n = len(source)
    _, paired = _order(source, 1, batch_size=n)
    _, unpaired = _order(source, 1, batch_size=n, paired=False)
    np.testing.assert_array_equal(unpaired[0]["source"], paired[0]["source"])
    own, other = (b[0]["target"].reshape(n, -1) for b in (paired, unpaired))
    assert (own == other).all(1).mean() < 0.5
    np.testing.assert_array_equal(np.sort(own.sum(1)), np.sort(other.sum(1)))
    _, again = _order(source, 3, batch_size=4, start=2, paired=False)
    _, whole = _order(source, 5, batch_size=4, paired=False)
    np.testing.assert_array_equal(again[-1]["target"], whole[-1]["target"])


def test_every_item_once_per_epoch(images):
    """34 items in batches of 6: an epoch ends inside a batch and nothing is dropped."""
    source = _source(images)
    order = _order(source, 17)[0].reshape(-1, 3)
    epochs = [order[i * 34 : (i + 1) * 34] for i in range(3)]
    for epoch in epochs:
        assert len(np.unique(epoch, axis=0)) == 34
    assert (epochs[0] != epochs[1]).any()
    tiny = _source(images, split="test", targets=("ct",))
    assert len(_order(tiny, 2, batch_size=20)[0].reshape(-1, 3)) == 40  # batch larger than the set


def test_processes_share_the_global_batch(images):
    source = _source(images)
    whole, _ = _order(source, 9)
    for count in (2, 3):
        parts = [_order(source, 9, process_index=i, process_count=count)[0] for i in range(count)]
        assert parts[0].shape[1] == 6 // count
        np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    with pytest.raises(UserError, match="not a multiple"):
        _order(source, 1, process_count=4)


def test_order_is_the_same_with_worker_processes(images):
    source = _source(images)
    expected, batches = _order(source, 9, start=2)
    order, spawned = _order(source, 9, start=2, num_workers=2)
    np.testing.assert_array_equal(order, expected)
    for key in batches[0]:
        np.testing.assert_array_equal(spawned[-1][key], batches[-1][key])


def test_eval_batches_pad_and_say_so(images):
    source = _source(images)
    got = list(pipeline.eval_batches(source, 8))
    assert all(b["source"].shape[0] == 8 and b["valid"].dtype == bool for b in got)
    assert [int(b["valid"].sum()) for b in got] == [8, 8, 8, 8, 2]
    slices = np.concatenate([b["slice"][b["valid"]] for b in got])
    np.testing.assert_array_equal(slices, source.keys["slice"])


def test_class_codes_are_the_folder_s_own(tmp_path, monkeypatch):
    """A later table with other codes must not relabel a folder that was written with these."""
    folder = _write(tmp_path)
    before = _source(folder).keys["label"]
    renumbered = {
        name: modality._replace(code=5 - modality.code)
        for name, modality in intensity.MODALITIES.items()
    }
    monkeypatch.setattr(intensity, "MODALITIES", renumbered)
    np.testing.assert_array_equal(_source(folder).keys["label"], before)
    assert set(before.tolist()) == {1, 2}
