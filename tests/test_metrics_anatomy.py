"""Scores of what an image is for, against closed forms."""

import numpy as np
import pytest

from cldm_jax.metrics import anatomy

NAN = float("nan")


def disc(radius, size=200):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(x, y) <= radius


def head(shift=0, bone=1000.0, skull=8):
    """[3, 96, 96] HU: a ball of 40 HU in a ring of bone in air."""
    y, x = np.mgrid[:96, :96] - 47.5
    r = np.hypot(x - shift, y)
    image = np.where(r < 40, bone, -1000.0)
    image[r < 40 - skull] = 40.0
    return np.stack([image] * 3)


def test_attenuation_coefficients():
    np.testing.assert_allclose(
        anatomy.mu_511([-2000, -1000, -500, 0, 1000]), [0, 0, 0.048, 0.096, 0.147]
    )


def test_attenuation_error_of_a_disc_is_the_mean_chord():
    """mu wrong by e in a disc: the factor along a ray is exp(e chord) - 1, averaged over all rays."""
    inside = disc(80)
    target = np.where(inside, 0.0, -1000.0)
    pred = np.where(inside, 20.0, -1000.0)  # bone slope: 20 HU are 0.00102 per cm
    error = float(anatomy.mu_511(20) - anatomy.mu_511(0))
    y, x = np.nonzero(inside)
    points = np.stack([x, y], -1)[::97] - 99.5
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    distance = points @ np.stack([np.cos(angles), np.sin(angles)])
    chord = 2 * np.sqrt(np.maximum(80.0**2 - distance**2, 0)) / 10  # cm
    want = 100 * np.expm1(error * chord).mean()
    found = anatomy.attenuation_error(pred[None], target[None], inside[None], (1.0, 1.0))
    assert found == pytest.approx(want, rel=0.03)
    wide = anatomy.attenuation_error(pred[None], target[None], inside[None], (2.0, 2.0))
    assert wide == pytest.approx(2 * want, rel=0.04)


def test_attenuation_error_of_nothing():
    image = head()
    everywhere = np.ones(image.shape, bool)
    assert anatomy.attenuation_error(image, image, everywhere, (1.0, 1.0)) == 0
    assert np.isnan(anatomy.attenuation_error(image, image, ~everywhere, (1.0, 1.0)))


def test_bone_edge_counts_only_bone_surfaces():
    real, everywhere = head(), np.ones((3, 96, 96), bool)
    assert anatomy.bone_edge(real, real, everywhere, 300, (1.0, 1.0)) == 1
    assert anatomy.bone_edge(head(shift=3), real, everywhere, 300, (1.0, 1.0)) == pytest.approx(
        1, abs=0.02
    )
    assert anatomy.bone_edge(head(bone=500.0), real, everywhere, 300, (1.0, 1.0)) < 0.8
    assert anatomy.bone_edge(head(bone=40.0), real, everywhere, 300, (1.0, 1.0)) == 0
    assert np.isnan(anatomy.bone_edge(real, head(bone=40.0), everywhere, 300, (1.0, 1.0)))
    noise = np.where(real == 40, np.random.default_rng(0).normal(0, 20, real.shape), 0)
    assert anatomy.bone_edge(real + noise, real, everywhere, 300, (1.0, 1.0)) == pytest.approx(
        1, abs=0.02
    )


def test_consistency_looks_at_neighbours_only():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(4, 16, 16))
    mask = np.ones(real.shape, bool)
    assert anatomy.consistency(real, real, mask, np.arange(4)) == 1
    assert anatomy.consistency(3 * real, real, mask, np.arange(4)) == pytest.approx(3)
    pred = real.copy()
    pred[2:] += 100  # a jump between slices 1 and 10: they are no neighbours
    assert anatomy.consistency(pred, real, mask, np.array([0, 1, 10, 11])) == pytest.approx(1)
    assert np.isnan(anatomy.consistency(real, real, mask, np.array([0, 5, 10, 15])))


def test_three_classes_find_three_clusters_in_any_order():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 600)
    values = np.array([0.1, 0.5, 0.8])[true] + rng.normal(0, 0.02, 600)
    np.testing.assert_array_equal(anatomy.three_classes(values), true)
    order = rng.permutation(600)
    np.testing.assert_array_equal(anatomy.three_classes(values[order]), true[order])


def brain(size=96):
    """Labels [1, H, W]: CSF rim, grey ring, white core; and an MR of them."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r = np.hypot(x, y)
    labels = np.select([r < 22, r < 34, r < 40], [3, 2, 1], 0)[None]
    return labels, np.choose(labels, [0.0, 0.2, 0.5, 0.8])


def test_tissues_of_a_perfect_image():
    labels, mr = brain()
    for tissue in (anatomy.CSF, anatomy.GREY, anatomy.WHITE):
        assert anatomy.tissue_dice(mr, labels, tissue) == 1
        assert anatomy.tissue_dice(2 * mr + 5, labels, tissue) == 1  # segmented by its own scale
    assert anatomy.tissue_dice(mr[:, ::-1, ::-1] * 0 + labels, labels, anatomy.WHITE) == 1
    assert np.isnan(anatomy.tissue_dice(mr, 0 * labels, anatomy.GREY))


def test_sulci_filled_in():
    labels, mr = brain()
    filled = mr.copy()
    y, x = np.nonzero((labels[0] == 1) & (np.arange(96)[:, None] < 48))
    filled[0, y, x] = 0.5  # half of the CSF rim
    assert anatomy.sulcal_csf(mr, mr, labels, (1.0, 1.0)) == 1
    assert anatomy.sulcal_csf(filled, mr, labels, (1.0, 1.0)) == pytest.approx(0.5, abs=0.02)


def with_lesion(kind, contrast, size=6):
    labels, mr = brain()
    lesions = np.zeros_like(labels)
    lesions[0, 44 : 44 + size, 44 : 44 + size] = kind
    return labels, lesions, mr, np.where(lesions > 0, mr + contrast, mr)


@pytest.mark.parametrize("kind", [anatomy.TUMOUR, anatomy.WHITE_MATTER_LESION])
def test_lesions_missed(kind):
    labels, lesions, healthy, real = with_lesion(kind, -0.2)
    weak = healthy + 0.4 * (real - healthy)
    strong = healthy + 0.6 * (real - healthy)
    values = [
        anatomy.lesions_missed(p, real, lesions, labels) for p in (real, strong, weak, healthy)
    ]
    assert values == [0, 0, 1, 1]
    assert anatomy.lesions_missed(2 * healthy - real, real, lesions, labels) == 1  # other sign
    assert np.isnan(anatomy.lesions_missed(healthy, healthy, lesions, labels))  # invisible
    assert np.isnan(anatomy.lesions_invented(real, real, lesions, labels))


def test_lesions_invented():
    labels, lesions, healthy, copied = with_lesion(anatomy.HYPOMETABOLIC, -0.2)
    assert anatomy.lesions_invented(healthy, healthy, lesions, labels) == 0
    assert anatomy.lesions_invented(copied, healthy, lesions, labels) == 1
    assert anatomy.lesions_invented(healthy, copied, lesions, labels) == 0  # there in the real MR
    assert np.isnan(anatomy.lesions_missed(copied, healthy, lesions, labels))


def test_tiny_sections_are_not_lesions():
    labels, lesions, healthy, real = with_lesion(anatomy.TUMOUR, -0.2, size=3)
    assert np.isnan(anatomy.lesions_missed(healthy, real, lesions, labels))


def test_texture_of_marrow_is_no_surface():
    real = head(skull=12)
    y, x = np.mgrid[:96, :96] - 47.5
    r = np.hypot(x, y)
    marrow = (r > 32) & (r < 36)  # between two tables of 4 pixels
    rng = np.random.default_rng(0)
    real[:, marrow] = rng.normal(350, 120, (3, marrow.sum()))
    smooth = real.copy()
    smooth[:, marrow] = 350.0
    everywhere = np.ones(real.shape, bool)
    assert anatomy.bone_edge(smooth, real, everywhere, 300, (1.0, 1.0)) == pytest.approx(
        1, abs=0.01
    )


def test_attenuation_error_does_not_depend_on_the_grid():
    """The same disc on pixels of 1 x 1 and of 3 x 1 mm."""
    found = []
    for high in (1, 3):
        inside = disc(80)[::high][None]
        pred, target = (np.where(inside, hu, -1000.0) for hu in (20.0, 0.0))
        found.append(anatomy.attenuation_error(pred, target, inside, (float(high), 1.0)))
    assert found[1] == pytest.approx(found[0], rel=0.03)


def test_three_classes_where_one_is_more_than_half():
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], [120, 360, 520])
    values = np.array([0.1, 0.5, 0.8])[true] + rng.normal(0, 0.02, 1000)
    np.testing.assert_array_equal(anatomy.three_classes(values), true)


def test_flat_images_have_no_sulci():
    labels, mr = brain()
    assert anatomy.sulcal_csf(np.full_like(mr, 0.5), mr, labels, (1.0, 1.0)) == 0


def test_more_contrast_everywhere_invents_no_lesion():
    labels, mr = brain()
    lesions = np.zeros_like(labels)
    lesions[0, 40:56, 66:80] = anatomy.HYPOMETABOLIC  # across white and grey matter
    strong = np.choose(labels, [0.0, 0.15, 0.45, 0.85])
    assert anatomy.lesions_invented(strong, mr, lesions, labels) == 0
    flipped = np.where(lesions > 0, mr + 0.1, mr)
    healthy = np.where(lesions > 0, mr - 0.1, mr)
    assert anatomy.lesions_invented(flipped, healthy, lesions, labels) == 1
