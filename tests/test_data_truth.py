"""The phantom's truth on the grid of a prepared dataset."""

from types import SimpleNamespace

import nibabel
import numpy as np

from cldm_jax.data import truth


def test_labels_fill_the_slices_that_their_outer_voxels_fill(tmp_path):
    """Four slices of 2 mm lie in one of 8 mm; the outer two of them beyond its middle."""
    labels = np.broadcast_to(np.uint8([1, 2]), (6, 5, 2))
    affine = np.diag([2.0, 2.0, 8.0, 1.0])
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    fine = np.diag([2.0, -2.0, 2.0, 1.0])  # rows run against y
    fine[:3, 3] = 0, 8, -3
    person = SimpleNamespace(grid_affine=fine, n_slices=8)
    found = truth._on_grid(path, person, (5, 6))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(
        found, np.broadcast_to(np.repeat([1, 2], 4)[:, None, None], (8, 5, 6))
    )
