"""The reader refuses what is not a finite scalar 3D image, by name; the writer is exact and atomic."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from data_heads import affine_of

from cldm_jax.data import nifti, volumes
from cldm_jax.errors import UserError

AFFINE = affine_of((10, 12, 8), (2.0, 2.0, 3.0))


def _array(seed=0, shape=(10, 12, 8)):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


def _file(folder, name="good.nii", array=None, affine=AFFINE, **header):
    """A file by nibabel, then `header` fields overwritten without any check."""
    path = folder / name
    image = nib.Nifti1Image(_array() if array is None else array, affine)
    nib.save(image, path)
    if header:
        data = bytearray(path.read_bytes())
        raw = nib.Nifti1Header(bytes(data[:348]), check=False)
        for key, value in header.items():
            raw[key] = value
        data[:348] = raw.binaryblock
        path.write_bytes(data)
    return path


def _raw(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


def _gz(folder, data, name="bad.nii.gz"):
    return _raw(folder, name, gzip.compress(data))


def _nan(value):
    array = _array()
    array[3, 4, 5] = value
    return array


def _affine(**cells):
    affine = AFFINE.copy()
    for cell, value in cells.items():
        affine[int(cell[1]), int(cell[2])] = value
    return affine


def _flip_bit(folder):
    path = folder / "flipped.nii.gz"
    nifti.write_volume(path, _array(), AFFINE, dtype=np.int16)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # the stored length: the voxels decode, only the trailer disagrees
    path.write_bytes(data)
    return path


def _bomb(folder):
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    return _gz(folder, header.binaryblock + bytes(1 << 22))


def _loop(folder):
    os.symlink(folder / "b.nii", folder / "a.nii")
    os.symlink(folder / "a.nii", folder / "b.nii")
    return folder / "a.nii"


def _folder(folder):
    (folder / "folder.nii.gz").mkdir()
    return folder / "folder.nii.gz"


RGB = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD = {
    "missing": (lambda d: d / "none.nii.gz", "no such file"),
    "empty": (lambda d: _raw(d, "empty.nii.gz", b""), "empty"),
    "folder": (_folder, "not a file"),
    "symlink loop": (_loop, "cannot be read"),
    "nul in name": (lambda d: f"{d}/a\0b.nii", "null"),
    "text as gz": (lambda d: _raw(d, "a.nii.gz", b"hello " * 100), "not a NIfTI"),
    "text in gz": (lambda d: _gz(d, b"hello " * 100), "not a NIfTI"),
    "short": (lambda d: _raw(d, "a.nii", _file(d).read_bytes()[:200]), "not a NIfTI"),
    "truncated": (lambda d: _raw(d, "a.nii", _file(d).read_bytes()[:-10]), "cut short"),
    "truncated inside gz": (lambda d: _gz(d, _file(d).read_bytes()[:-10]), "cut short"),
    "truncated gz": (
        lambda d: _raw(d, "a.nii.gz", gzip.compress(_file(d).read_bytes())[:-99]),
        "cut short",
    ),
    "gzip bit flip": (_flip_bit, "damaged"),
    "junk after": (lambda d: _gz(d, _file(d).read_bytes() + b"more"), "more data"),
    "header and image pair": (lambda d: _file(d, magic=b"ni1"), "pair"),
    "negative dimension": (lambda d: _file(d, dim=[3, -10, 12, 8, 1, 1, 1, 1]), "-10"),
    "zero dimension": (lambda d: _file(d, dim=[3, 0, 12, 8, 1, 1, 1, 1]), "dimension"),
    "dimensions beyond the data": (lambda d: _file(d, dim=[3, 99, 99, 9, 1, 1, 1, 1]), "cut short"),
    "huge": (lambda d: _file(d, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "MiB"),
    "bomb": (_bomb, "MiB"),
    "unknown type": (lambda d: _file(d, datatype=77), "damaged"),
    "voxels inside the header": (lambda d: _file(d, vox_offset=16), "offset"),
    "voxels far away": (lambda d: _file(d, vox_offset=1e9), "voxels at byte"),
    "endless intercept": (lambda d: _file(d, scl_slope=2, scl_inter=np.inf), "scaling"),
    "NaN": (lambda d: _file(d, array=_nan(np.nan)), "1 voxels are NaN"),
    "infinity": (lambda d: _file(d, array=_nan(np.inf)), "NaN or infinite"),
    "overflow": (lambda d: _file(d, array=_nan(0).astype("f8") * 1e300), "NaN or infinite"),
    "constant": (lambda d: _file(d, array=np.full((4, 5, 6), 7.0, "f4")), "every voxel is 7"),
    "2D": (lambda d: _file(d, array=_array(0, (10, 12))), "not a 3D"),
    "one slice": (lambda d: _file(d, array=_array(0, (10, 12, 1))), "not a 3D"),
    "4D": (lambda d: _file(d, array=_array(0, (6, 6, 6, 2))), "frame"),
    "RGB": (lambda d: _file(d, array=RGB), "RGB"),
    "complex": (lambda d: _file(d, array=_array().astype("c8")), "complex"),
    "NaN affine": (lambda d: _file(d, srow_x=[np.nan, 0, 0, 0]), "NaN"),
    "singular affine": (lambda d: _file(d, affine=_affine(a00=0, a10=2.0)), "perpendicular"),
    "zero column": (lambda d: _file(d, srow_x=[0, 0, 0, 1]), "voxels of"),
    "voxels of a nanometre": (lambda d: _file(d, affine=np.diag([1e-6, 2, 2, 1])), "voxels of"),
    "voxels of a metre": (lambda d: _file(d, affine=np.diag([1000, 2, 2, 1])), "voxels of"),
    "sheared": (lambda d: _file(d, affine=_affine(a12=0.6)), "perpendicular"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_volume_is_refused_by_name(tmp_path, kind):
    make, fragment = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        nifti.read_volume(path)
    assert fragment.lower() in caught.value.reason.lower()
    assert str(path).replace("\0", "\\x00") in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_round_trip(tmp_path, suffix, dtype):
    array = np.rint(np.abs(_array()) % 200)
    path = tmp_path / f"a{suffix}"
    nifti.write_volume(path, array, AFFINE, dtype=dtype, description="simulated")
    volume = nifti.read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, (2, 2, 3))
    assert volume.notes == ()
    image = nib.load(path)  # an independent reader agrees
    np.testing.assert_array_equal(image.get_fdata(), array)
    assert image.dataobj.slope == 1 and image.dataobj.inter == 0
    assert image.header["descrip"].item() == b"simulated"


def test_bytes_depend_on_the_data_only(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write_volume(tmp_path / name, _array(), AFFINE, dtype=np.int16)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    nifti.write_volume(tmp_path / "b.nii.gz", _array(1), AFFINE, dtype=np.int16)
    assert (tmp_path / "a.nii.gz").read_bytes() != (tmp_path / "b.nii.gz").read_bytes()


def test_values_that_do_not_fit_are_not_wrapped(tmp_path):
    with pytest.raises(ValueError, match="outside int16"):
        nifti.write_volume(tmp_path / "a.nii", _array() * 1000, AFFINE, dtype=np.int16)
    assert not list(tmp_path.iterdir())


def test_unusual_but_good_files(tmp_path):
    array = np.rint(_array())
    scaled = _file(tmp_path, "scaled.nii", array=array.astype("i2"), scl_slope=0.5, scl_inter=-3.0)
    np.testing.assert_allclose(nifti.read_volume(scaled).array, array * 0.5 - 3)
    frame = _file(tmp_path, "frame.nii.gz", array=array[..., None])
    assert nifti.read_volume(frame).array.shape == (10, 12, 8)
    nib.save(nib.Nifti2Image(array, AFFINE), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(nifti.read_volume(tmp_path / "two.nii.gz").array, array)


def test_max_bytes(tmp_path, monkeypatch):
    path = _file(tmp_path)
    monkeypatch.setattr(nifti, "MAX_BYTES", 10 * 12 * 8 * 4)
    nifti.read_volume(path)
    monkeypatch.setattr(nifti, "MAX_BYTES", 10 * 12 * 8 * 4 - 1)
    with pytest.raises(UserError, match="MiB"):
        nifti.read_volume(path)


def test_canonical(tmp_path):
    array, affine = _array(), np.array([[0, 0, -3, 5], [2, 0, 0, 1], [0, -2, 0, 7], [0, 0, 0, 1.0]])
    nifti.write_volume(tmp_path / "a.nii", array, affine, dtype=np.float32)
    volume = nifti.read_volume(tmp_path / "a.nii")
    ras = nifti.canonical(volume)
    assert nifti.orientation(volume.affine) == "AIL" and nifti.orientation(ras.affine) == "RAS"
    np.testing.assert_allclose(ras.spacing, (3, 2, 2))
    # One voxel keeps its world position and its value.
    index = np.array([3, 7, 2, 1])
    there = np.rint(np.linalg.solve(ras.affine, volume.affine @ index)).astype(int)
    assert ras.array[tuple(there[:3])] == array[3, 7, 2]
    np.testing.assert_array_equal(nifti.to_canonical(array, volume), ras.array)


def test_like_lends_codes_but_no_text(tmp_path):
    image = nib.Nifti1Image(_array(), AFFINE)
    image.header["descrip"], image.header["aux_file"] = b"JANE DOE", b"JANE"
    image.header["db_name"], image.header["intent_name"] = b"DOE", b"DOE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JANE DOE"))
    image.set_sform(AFFINE, code=4)
    image.set_qform(AFFINE, code=2)
    nib.save(image, tmp_path / "in.nii")
    volume = nifti.read_volume(tmp_path / "in.nii")
    nifti.write_volume(tmp_path / "out.nii", _array(2), AFFINE, dtype=np.float32, like=volume)
    data = (tmp_path / "out.nii").read_bytes()
    assert b"JANE" in (tmp_path / "in.nii").read_bytes()
    assert b"JANE" not in data and b"DOE" not in data
    header = nib.load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_like_gives_back_its_geometry_as_it_is(tmp_path, kind):
    """Whether it had a qform only, an sform only, both and different, or neither; one frame stays one."""
    other = AFFINE.copy()
    other[:3, 3] += 2
    for q_code, s_code in ((1, 0), (0, 2), (2, 4), (0, 0)):
        image = kind(_array()[..., None], None)
        image.header.set_zooms((2, 3, 4, 1)) if (q_code, s_code) == (0, 0) else None
        image.set_qform(AFFINE if q_code else None, code=q_code)
        image.set_sform(other if s_code else None, code=s_code)
        nib.save(image, tmp_path / "in.nii")
        volume = nifti.read_volume(tmp_path / "in.nii")
        nifti.write_volume(
            tmp_path / "out.nii", _array(2), volume.affine, dtype=np.int16, like=volume
        )
        made, given = nib.load(tmp_path / "out.nii"), nib.load(tmp_path / "in.nii")
        assert type(made) is kind and made.shape == given.shape
        np.testing.assert_array_equal(made.affine, given.affine)
        for get in ("get_qform", "get_sform"):
            (a, a_code), (b, b_code) = (getattr(i, get)(coded=True) for i in (made, given))
            assert a_code == b_code and (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.asarray(made.dataobj)[..., 0], np.rint(_array(2)))


def test_like_of_other_voxels_is_refused(tmp_path):
    nifti.write_volume(tmp_path / "a.nii", _array(), AFFINE, dtype=np.float32)
    volume = nifti.read_volume(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="voxels"):
        nifti.write_volume(tmp_path / "b.nii", _array()[1:], AFFINE, dtype=np.float32, like=volume)


def _resliced():
    """As SPM leaves it: no data beyond a plane, NaN there; and one voxel of NaN in another corner."""
    array = np.random.default_rng(1).uniform(1, 2, (10, 12, 8)).astype("f4")
    array[7:] = array[0, 0, 0] = np.nan
    return array


def test_no_data_up_to_the_border_is_air_where_a_caller_says_which(tmp_path):
    array = _resliced()
    path = _file(tmp_path, array=array)
    images = [
        nifti.read_volume(path, outside=-1024.0),
        nifti.from_image(nib.load(path), outside=-1024.0),
        nifti.from_array(array, AFFINE, outside=-1024.0),
    ]
    for volume in images:
        np.testing.assert_array_equal(volume.array, np.where(np.isnan(array), -1024, array))
        assert "289 voxels up to its border are NaN: no data, taken as -1024" in volume.notes
    with pytest.raises(UserError, match="289 voxels are NaN"):
        nifti.read_volume(path)
    array[3, 4, 5] = np.nan  # within the image: nobody knows what was there
    with pytest.raises(UserError, match="290 voxels are NaN"):
        nifti.read_volume(_file(tmp_path, array=array), outside=-1024.0)


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_what_a_mask_hides_is_no_data(kind):
    """The numbers below a mask entered the network as if they had been measured."""
    array = np.random.default_rng(1).integers(1, 9, (10, 12, 8)).astype(kind)
    hidden = np.zeros(array.shape, bool)
    hidden[7:] = True
    masked = np.ma.array(np.where(hidden, 999, array).astype(kind), mask=hidden)
    for volume in (
        nifti.from_array(masked, AFFINE, outside=0.0),
        nifti.from_image(nib.Nifti1Image(masked, AFFINE), outside=0.0),
    ):
        np.testing.assert_array_equal(volume.array, np.where(hidden, 0, array))
        assert "288 voxels up to its border are NaN" in volume.notes[-1]
    masked[3, 4, 5] = np.ma.masked
    with pytest.raises(UserError, match="masked voxels as NaN.*289 voxels are NaN"):
        nifti.from_array(masked, AFFINE, outside=0.0)


@pytest.mark.parametrize("name, air", [("ct", -1024), ("ct_reacq", -1024), ("mr", 0), ("pet", 0)])
def test_which_air_a_cohort_says_by_its_name(tmp_path, name, air):
    array = _resliced()
    volume = volumes.read_volume(_file(tmp_path, array=array), name)
    np.testing.assert_array_equal(volume.array, np.where(np.isnan(array), air, array))
