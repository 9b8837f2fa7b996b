"""Positions survive: world coordinates of planted markers, exact crops, documented axes."""

import numpy as np
import pytest
from data_heads import affine_of
from scipy.spatial.transform import Rotation

from cldm_jax.data import grid, nifti
from cldm_jax.data.grid import ModelGrid

TILT = Rotation.from_euler("xyz", [14, -9, 21], degrees=True).as_matrix()


def _volume(affine, array):
    return nifti.Volume(np.asarray(array, np.float32), affine, None, "")


def _center_of_mass(image):
    index = np.nonzero(image)
    return np.array([(i * image[index]).sum() / image[index].sum() for i in index])


def test_axes_are_as_documented():
    """Left, anterior and superior markers in a RAS volume land at column 0, row 0 and the last slice."""
    array = np.zeros((16, 20, 12), np.float32)
    array[0, 10, 6], array[8, 19, 6], array[8, 10, 11] = 1, 2, 3
    slices, affine = grid.to_grid(
        array, affine_of(array.shape, (2, 2, 2)), ModelGrid((20, 16), (2, 2), None), fill=0
    )
    assert slices.shape == (12, 20, 16) and slices.dtype == np.float32
    z, row, col = (int(i[0]) for i in np.nonzero(slices == 1))
    assert (col, row, z) == (0, 9, 6)
    z, row, col = (int(i[0]) for i in np.nonzero(slices == 2))
    assert (col, row, z) == (8, 0, 6)
    assert int(np.nonzero(slices == 3)[0][0]) == 11
    # Column steps to the right (+x), row to posterior (-y), slice upwards (+z).
    np.testing.assert_allclose(affine[:3, :3], np.diag([2, -2, 2]))


@pytest.mark.parametrize("order", ["RAS", "LPS", "ASL", "PIR"])
@pytest.mark.parametrize("rotation", [None, TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    "model", [ModelGrid((48, 40), (2.5, 2.0), None), ModelGrid((30, 26), (3, 3), 2.0)]
)
def test_marker_keeps_its_world_position(order, rotation, model):
    """Any stored orientation, oblique, anisotropic: the marker's world position is within 0.1 mm."""
    shape, spacing = (30, 34, 22), (2.5, 2.5, 4.0)
    ras = affine_of(shape, spacing, rotation)
    ras[:3, 3] += (11, -7, 23)
    at = np.meshgrid(
        *(np.arange(n) * d for n, d in zip(shape, spacing, strict=True)), indexing="ij"
    )
    middle = np.array([17.5, 20.5, 9.5]) * spacing
    array = np.exp(-sum((a - m) ** 2 for a, m in zip(at, middle, strict=True)) / (2 * 6.0**2))
    array[array < 1e-4] = 0
    world = (ras @ [17.5, 20.5, 9.5, 1])[:3]
    # Store the same image in another voxel order.
    turned = _reorder(_volume(ras, array), order)
    assert nifti.orientation(turned.affine) == order
    back = nifti.canonical(turned)
    slices, affine = grid.to_grid(back.array, back.affine, model, fill=0)
    z, row, col = _center_of_mass(slices)
    assert np.abs((affine @ [col, row, z, 1])[:3] - world).max() < 0.1
    # And home again, onto the voxels it was stored in.
    home = grid.from_grid(slices, affine, turned.array.shape, turned.affine, fill=0)
    at = (turned.affine @ [*_center_of_mass(home), 1])[:3]
    assert home.shape == turned.array.shape
    assert np.abs(at - world).max() < 0.1


def _reorder(volume, order):
    """The same image with its voxels stored in `order`; written out, not through the code under test."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    step = np.zeros((4, 4))
    step[3, 3] = 1
    array = volume.array.transpose([axes[c][0] for c in order])
    for new, code in enumerate(order):
        old, sign = axes[code]
        step[old, new] = sign
        if sign < 0:
            step[old, 3] = volume.array.shape[old] - 1
            array = np.flip(array, new)
    return _volume(volume.affine @ step, array)


@pytest.mark.parametrize("rotation", [None, TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize("size", [(60, 52), (20, 24), (31, 41)])
@pytest.mark.parametrize("center", [None, (3.2, -4.1, 8.0)])
def test_equal_spacing_is_an_exact_crop_or_pad(rotation, size, center):
    shape = (41, 38, 17)
    affine = affine_of(shape, (2, 2, 3.3), rotation)
    array = np.random.default_rng(0).normal(0, 400, shape).astype(np.float32)
    model = ModelGrid(size, (2.001, 1.9995), None)  # within 1e-3 of the scan's own
    slices, at = grid.to_grid(array, affine, model, center_mm=center, fill=-1024)
    assert set(np.unique(slices)) <= set(np.unique(array)) | {-1024}  # no value is made up
    home = grid.from_grid(slices, at, shape, affine, fill=-7)
    inside = home != -7
    np.testing.assert_array_equal(home[inside], array[inside])
    expected = min(size[0], 38) * min(size[1], 41) * 17
    if center is None:
        assert inside.sum() == expected
    again, at2 = grid.to_grid(home, affine, model, center_mm=center, fill=-1024)
    np.testing.assert_array_equal(again[slices != -1024], slices[slices != -1024])
    np.testing.assert_array_equal(at, at2)


def test_centre_is_in_the_middle():
    shape = (40, 44, 10)
    affine = affine_of(shape, (2, 2, 3), TILT)
    point = (affine @ [28, 12, 4.5, 1])[:3]
    for model, tolerance in (
        (ModelGrid((21, 21), (2, 2), None), 1e-6),
        (ModelGrid((20, 18), (3, 4), 2), 1e-6),
    ):
        array = np.ones(shape, np.float32)
        slices, at = grid.to_grid(array, affine, model, center_mm=point, fill=0)
        index = np.linalg.solve(at, [*point, 1])
        middle = ((model.size[1] - 1) / 2, (model.size[0] - 1) / 2)
        assert np.abs(index[:2] - middle).max() < tolerance


def test_slice_spacing():
    array = np.ones((8, 8, 20), np.float32)
    affine = affine_of(array.shape, (2, 2, 1.5))
    slices, at = grid.to_grid(array, affine, ModelGrid((8, 8), (2, 2), 3.0), fill=-1)
    assert slices.shape == (10, 8, 8) and np.isclose(at[2, 2], 3)
    assert (slices == 1).all()  # the half voxel beyond the outermost centres is still the volume
    middle = (at @ [3.5, 3.5, 4.5, 1])[:3]
    np.testing.assert_allclose(middle, 0, atol=1e-9)


def test_linear_ramp_is_reproduced_and_air_is_fill():
    shape = (30, 34, 22)
    affine = affine_of(shape, (2, 2, 2))
    ramp = np.fromfunction(lambda i, j, k: i + 2 * j - 3 * k, shape).astype(np.float32)
    slices, at = grid.to_grid(ramp, affine, ModelGrid((60, 64), (1.3, 1.1), 1.7), fill=-999)
    col, row, z = 30, 25, 11
    world = at @ [col, row, z, 1]
    i, j, k, _ = np.linalg.solve(affine, world)
    assert np.isclose(slices[z, row, col], i + 2 * j - 3 * k, atol=1e-3)
    assert (slices[:, :, 0] == -999).all()  # 64 * 1.1 mm is wider than the 60 mm scan


def test_shrinking_does_not_alias():
    """A pattern finer than the grid goes to its mean; bare sampling (order 0) keeps it."""
    array = np.zeros((48, 48, 8), np.float32)
    array[::2] = 1
    affine = affine_of(array.shape, (1, 1, 1))
    model = ModelGrid((12, 12), (4, 4), None)
    smooth, _ = grid.to_grid(array, affine, model, fill=0)
    assert np.abs(smooth[:, 3:-3, 3:-3] - 0.5).max() < 0.02
    bare, _ = grid.to_grid(array, affine, model, fill=0, order=0)
    assert set(np.unique(bare)) <= {0.0, 1.0}


def test_any_rotation_goes_to_the_grid_and_back():
    """Where a head lies between two axes, the nearest to each differ from how the volume is ordered."""
    array = np.random.default_rng(0).random((6, 7, 5)).astype(np.float32)
    turns = Rotation.from_euler("xyz", [[45, 20, 0], [35, -35, 20], [48, 9, -9]], degrees=True)
    for rotation in [*turns, *Rotation.random(50, random_state=1)]:
        volume = _volume(affine_of(array.shape, (2.0, 2.0, 3.0), rotation.as_matrix()), array)
        ras = nifti.canonical(volume)
        model = ModelGrid((16, 16), tuple(map(float, ras.spacing[1::-1])), None)
        slices, affine = grid.to_grid(ras.array, ras.affine, model, fill=-1.0)
        back = grid.from_grid(slices, affine, array.shape, volume.affine, fill=-1.0)
        np.testing.assert_allclose(back, array, atol=1e-4)


def test_needs_ras():
    with pytest.raises(ValueError, match="RAS"):
        grid.to_grid(
            np.ones((4, 4, 4)), np.diag([-1.0, 1, 1, 1]), ModelGrid((8, 8), (1, 1), None), fill=0
        )


def test_resample_between_scanners():
    """A flipped and shifted copy comes back through the affines."""
    shape = (20, 22, 14)
    affine = affine_of(shape, (3, 3, 4))
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    other = _reorder(_volume(affine, array), "LPS")
    back = grid.resample(other.array, other.affine, shape, affine, fill=0)
    np.testing.assert_array_equal(back, array)
    moved = affine.copy()
    moved[0, 3] += 3  # one voxel to the right
    seen = grid.resample(array, moved, shape, affine, fill=-5)
    np.testing.assert_array_equal(seen[1:], array[:-1])
    assert (seen[0] == -5).all()


def test_from_index():
    value = {"size": [112, 96], "spacing_mm": [2.0, 2.0], "slice_spacing_mm": None, "center": "pet"}
    assert ModelGrid.from_index(value) == ModelGrid((112, 96), (2.0, 2.0), None)


def test_whole_voxels_are_copied_one_by_one():
    """Crop, pad, flip and permute against the definition, fields of view that miss the image included."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        array = rng.normal(size=rng.integers(1, 6, 3)).astype(np.float32)
        index_map = np.zeros((4, 4))
        index_map[rng.permutation(3), range(3)] = rng.choice([-1, 1], 3)
        index_map[:, 3] = *rng.integers(-7, 8, 3), 1
        shape = tuple(rng.integers(1, 7, 3))
        out = grid.resample(array, np.eye(4), shape, index_map, fill=-9.0)
        for index in np.ndindex(shape):
            at = (index_map @ (*index, 1))[:3].astype(int)
            inside = (at >= 0).all() and (at < array.shape).all()
            assert out[index] == (array[tuple(at)] if inside else -9.0)
