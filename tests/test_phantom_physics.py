"""Closed forms and negative controls of the phantom's parts."""

import numpy as np
import pytest

from cldm_jax.phantom import ct, fields, labels, mr, osem, pathology, pet, subject, tissue, warp
from cldm_jax.phantom.fields import Grid

GRID = Grid((24, 28, 10), (4.0, 4.0, 6.0), (-46.0, -54.0, -27.0))


def ball(grid: Grid, radius: float) -> np.ndarray:
    axes = [grid.axis(i) for i in range(3)]
    return sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) < radius**2


def head(grid: Grid) -> np.ndarray:
    """Concentric balls: skin, fat, skull, fluid, grey, white."""
    result = np.zeros(grid.shape, np.uint8)
    shells = (("SKIN", 46), ("FAT", 44), ("SKULL", 38), ("CSF", 34), ("GM", 30), ("WM", 22))
    for name, radius in shells:
        result[ball(grid, radius)] = getattr(tissue, name)
    return result


def test_refined_grid_keeps_the_field_of_view():
    fine = GRID.refine((2, 1, 3))
    assert fine.shape == (48, 28, 30)
    coarse = fields.block_mean(np.broadcast_to(fine.axis(2), fine.shape).copy(), (2, 1, 3))
    np.testing.assert_allclose(coarse[0, 0], GRID.axis(2), atol=1e-4)


def test_block_mean_and_majority_known_values():
    values = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    np.testing.assert_allclose(fields.block_mean(values, (2, 2, 2)).ravel(), [5.5, 9.5])
    codes = np.array([3, 3, 3, 7, 7, 7, 7, 3], np.uint8).reshape(2, 2, 2)
    assert fields.majority(codes, (2, 2, 2), tissue.N_CODES).item() == 3  # a tie: the lower code
    codes[0, 0, 0] = 7
    assert fields.majority(codes, (2, 2, 2), tissue.N_CODES).item() == 7


def test_upsampling_is_exact_for_linear_functions():
    lattice = GRID.lattice(12.0)
    x, y, z = np.meshgrid(*(lattice.axis(i) for i in range(3)), indexing="ij")
    result = fields.upsample((x - 2 * y + 3 * z).astype(np.float32), lattice, GRID)
    x, y, z = np.meshgrid(*(GRID.axis(i) for i in range(3)), indexing="ij")
    np.testing.assert_allclose(result, x - 2 * y + 3 * z, atol=1e-3)


def test_smooth_field_has_unit_variance_and_the_asked_smoothness():
    grid = Grid((96, 96, 40), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    field = fields.smooth_field(np.random.default_rng(0), grid, 6.0)
    assert abs(field.mean()) < 0.1 and abs(field.std() - 1) < 0.1
    # white noise filtered by a Gaussian of sigma s is correlated as exp(-d^2 / 4 s^2)
    lag = (field[3:] * field[:-3]).mean() / field.var()
    assert lag == pytest.approx(np.exp(-(6.0**2) / (4 * 6.0**2)), abs=0.06)


def test_streams_are_independent_and_repeatable():
    draws = {
        (key, name, acq): fields.stream(3, key, name, acq).standard_normal()
        for key in ((1,), (2,), (1, 0))
        for name in fields.STREAMS
        for acq in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[(1,), "anatomy", 0] == fields.stream(3, (1,), "anatomy", 0).standard_normal()


def test_jacobian_of_a_uniform_scaling_is_its_cube():
    x, y, z = np.meshgrid(*(GRID.axis(i) for i in range(3)), indexing="ij")
    determinant = warp.jacobian(0.1 * np.stack([x, y, z]), GRID)
    np.testing.assert_allclose(determinant, 1.1**3, rtol=1e-5)


def test_exponential_of_a_constant_velocity_is_a_shift():
    velocity = np.ones((3, *GRID.shape), np.float32) * np.float32(2.5)
    np.testing.assert_allclose(warp.exponentiate(velocity, GRID), 2.5, rtol=1e-5)


@pytest.mark.parametrize("sd_mm", [3.0, 60.0])
def test_warps_never_fold(sd_mm):
    rng = np.random.default_rng(1)
    lattice, displacement, smallest = warp.diffeomorphism(rng, GRID, sd_mm)
    assert smallest > warp.MIN_JACOBIAN
    assert warp.jacobian(displacement, lattice).min() == pytest.approx(smallest)


def test_a_rough_velocity_would_fold_without_the_check():
    rng = np.random.default_rng(1)
    velocity = 60 * np.stack([fields.smooth_field(rng, GRID, warp.SMOOTH_MM) for _ in range(3)])
    folded = warp.jacobian(warp.exponentiate(velocity.astype(np.float32), GRID), GRID)
    assert folded.min() < warp.MIN_JACOBIAN


def test_sampling_labels_on_their_own_grid_copies_them():
    codes = np.random.default_rng(0).integers(0, 12, GRID.shape).astype(np.uint8)
    volume = labels.LabelVolume(codes, GRID, "")
    position = warp.pull_back(warp.identity(GRID), GRID)
    np.testing.assert_array_equal(labels.sample(volume, position), codes)
    shifted = labels.sample(volume, [position[0] + 4.0, *position[1:]])
    np.testing.assert_array_equal(shifted[:-1], codes[1:])
    assert (shifted[-1] == tissue.AIR).all()


def test_spoiled_gre_limits():
    # TR >> T1: fully relaxed, PD sin(a) exp(-TE/T2*)
    full = mr.spoiled_gre(0.8, 10.0, 50.0, 1e4, 5.0, 30.0)
    assert full == pytest.approx(0.8 * 0.5 * np.exp(-0.1))
    # at the Ernst angle cos(a) = E1 the signal is largest
    e1 = np.exp(-20.0 / 1000.0)
    ernst = np.rad2deg(np.arccos(e1))
    best = mr.spoiled_gre(1.0, 1000.0, 50.0, 20.0, 0.0, ernst)
    assert best == pytest.approx(np.sqrt((1 - e1) / (1 + e1)))
    for angle in (ernst - 2, ernst + 2):
        assert mr.spoiled_gre(1.0, 1000.0, 50.0, 20.0, 0.0, angle) < best


def test_rician_noise_in_air_has_the_rayleigh_mean():
    scan = mr.MrScan(20, 3.5, 23, 0.0, 0.03, 1.0, np.ones((2, tissue.N_CODES)))
    codes = np.zeros(GRID.shape, np.uint8)
    image = mr.image(
        np.random.default_rng(0), pathology.healthy(codes), codes, GRID, (1, 1, 1), scan
    )
    assert image.mean() == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=0.02)


def test_pet_noise_variance_is_proportional_to_the_mean():
    true = np.full(GRID.shape, 0.2, np.float32)
    true[12:] = 0.8
    scan = pet.PetScan("any", 5.0, 0.10)
    repeats = np.stack([pet.fast(np.random.default_rng(k), true, GRID, scan) for k in range(40)])
    variance = repeats.var(axis=0, ddof=1)
    low, high = variance[:9].mean(), variance[15:].mean()
    assert high / low == pytest.approx(4.0, rel=0.15)
    assert np.sqrt(high) / 0.8 == pytest.approx(0.10 * np.sqrt(pet.CORTEX / 0.8), rel=0.1)
    assert repeats.mean() == pytest.approx(true.mean(), rel=0.01)


def test_point_spread_has_the_asked_fwhm_including_the_voxel():
    grid = Grid((41, 41, 41), (1.0, 1.0, 2.0), (-20.0, -20.0, -40.0))
    point = np.zeros(grid.shape, np.float32)
    point[20, 20, 20] = 1
    image = pet.point_spread(point, grid, 6.0)
    for axis in range(3):
        profile = image.sum(axis=tuple(i for i in range(3) if i != axis))
        variance = (profile * grid.axis(axis) ** 2).sum() / profile.sum()
        total = variance + grid.spacing[axis] ** 2 / 12
        assert np.sqrt(total) * fields.FWHM == pytest.approx(6.0, rel=0.02)


def test_projector_conserves_counts_and_sees_a_disc_as_its_chord():
    grid = Grid((64, 64, 1), (2.0, 2.0, 4.0), (-63.0, -63.0, 0.0))
    disc = ball(grid, 50.0)[..., 0]
    matrix = osem.system_matrix(grid, np.ones(disc.shape, bool))
    views = (matrix @ disc.ravel().astype(np.float32)).reshape(osem.ANGLES, -1)
    np.testing.assert_allclose(views.sum(axis=1) * 2.0, disc.sum() * 4.0, rtol=1e-4)
    assert views[:, views.shape[1] // 2].mean() == pytest.approx(100.0, rel=0.03)


def test_attenuation_at_511_kev():
    expected = [0.0, 0.0096, 0.0096 + 5.1e-6 * 1000]
    np.testing.assert_allclose(osem.attenuation(np.array([-1000.0, 0.0, 1000.0])), expected)


def test_noise_free_osem_recovers_activity_through_attenuation():
    codes = head(GRID)
    hu, true = tissue.HU[codes], tissue.UPTAKE[codes]
    scan = pet.PetScan("any", 6.0, 0.0)
    image = osem.acquire(np.random.default_rng(0), true, hu, GRID, scan)["pet"]
    mean = pet.fast(np.random.default_rng(0), true, GRID, scan)
    inside = ball(GRID, 30.0)
    assert image[inside].sum() == pytest.approx(mean[inside].sum(), rel=0.06)
    assert np.corrcoef(image[inside], mean[inside])[0, 1] > 0.95
    # negative control: the attenuation is strong, so a wrong map must show
    wrong = osem.attenuation(hu) * 0.5
    assert np.exp(-wrong[:, 14, 5].sum() * 4.0) > 1.3 * np.exp(
        -osem.attenuation(hu)[:, 14, 5].sum() * 4.0
    )


def test_ct_noise_is_high_pass_and_values_stay_in_range():
    codes = np.full((64, 64, 4), tissue.WM, np.uint8)
    codes[:8] = tissue.SKULL
    grid = Grid(codes.shape, (2.0, 2.0, 4.0), (0.0, 0.0, 0.0))
    scan = ct.CtScan(6.0, 0.0, 0.0)
    hu = tissue.HU.copy()
    hu[tissue.SKULL] = 9000
    image = ct.image(np.random.default_rng(0), codes, hu, grid, (1, 1, 1), scan)
    assert image.dtype == np.int16 and image.max() == ct.HU_RANGE[1]
    noise = image[24:, :, 0] - 28.0
    power = np.abs(np.fft.fft2(noise)) ** 2
    low = power[:3, :3].ravel()[1:].mean()
    assert noise.std() == pytest.approx(6.0, rel=0.1) and low < 0.35 * power.mean()  # white: 1


@pytest.fixture(scope="module")
def scans():
    """Images of one head with a given disease, all with the same random draws."""
    codes = head(GRID)
    person = tissue.draw_person(np.random.default_rng(0), 0.8, vary=True)

    def make(disease):
        rng = [np.random.default_rng(k) for k in range(4)]
        activity = pet.activity(rng[0], disease, person, GRID, (1, 1, 1), regional=True)
        mr_scan = mr.draw_scan(np.random.default_rng(5), noise=True)
        ct_scan = ct.draw_scan(np.random.default_rng(6), noise=True)
        return {
            "pet": pet.fast(rng[1], activity, GRID, pet.PetScan("any", 5.0, 0.0)),
            "ct": ct.image(rng[2], disease.labels, person.hu, GRID, (1, 1, 1), ct_scan),
            "mr": mr.image(rng[3], disease, disease.labels, GRID, (1, 1, 1), mr_scan),
        }

    return codes, make


def test_each_disease_shows_only_where_it_should(scans):
    codes, make = scans
    plain = make(pathology.healthy(codes))
    spot = ball(GRID, 12.0)
    cases = {
        "white": (pathology.Disease(codes, spot, None, 0.5, []), {"mr"}),
        "hypo": (
            pathology.Disease(codes, None, np.full(GRID.shape, 0.7, np.float32), 0.5, []),
            {"pet"},
        ),
        "tumour": (
            pathology.Disease(np.where(spot, tissue.TUMOUR, codes), None, None, 1.5, []),
            {"pet", "ct", "mr"},
        ),
    }
    for name, (disease, shown) in cases.items():
        changed = {k for k, v in make(disease).items() if not np.array_equal(v, plain[k])}
        assert changed == shown, name


def test_lesion_sizes_and_signs(scans):
    codes, make = scans
    plain = make(pathology.healthy(codes))
    spot = ball(GRID, 12.0)
    white = make(pathology.Disease(codes, spot, None, 0.5, []))
    centre = tuple(n // 2 for n in GRID.shape)
    assert white["mr"][centre] / plain["mr"][centre] == pytest.approx(0.82, abs=0.03)
    hot = make(pathology.Disease(np.where(spot, tissue.TUMOUR, codes), None, None, 1.5, []))
    assert hot["pet"][centre] > 2 * plain["pet"][centre]


def test_drawn_diseases_are_recorded_and_mapped():
    codes = head(GRID)
    kinds = set()
    for k in range(40):
        disease = pathology.draw(np.random.default_rng(k), codes, GRID, GRID, age=0.9)
        lesions = pathology.lesion_map(disease, (1, 1, 1))
        kinds |= {r["kind"] for r in disease.record}
        assert set(np.unique(lesions)) - {0} <= {r["code"] for r in disease.record}
        tumours = [r for r in disease.record if r["kind"] == "tumour"]
        assert bool(tumours) == bool((disease.labels == tissue.TUMOUR).any())
    assert kinds == {"hypometabolism", "tumour", "white_matter_lesions"}
    young = pathology.draw(np.random.default_rng(0), codes, GRID, GRID, age=0.2)
    assert young.white is None


def test_thicker_skull_takes_scalp_only():
    codes = head(GRID)
    thick = subject.thicken_skull(codes, GRID, 5.0)
    changed = thick != codes
    assert changed.any() and set(np.unique(codes[changed])) == {tissue.FAT}
    assert set(np.unique(thick[changed])) == {tissue.SKULL}
