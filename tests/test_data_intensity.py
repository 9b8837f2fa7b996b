"""The intensity contract: invertible, fitted on training people, honest about what is known."""

import json

import numpy as np
import pytest
from data_heads import make_head
from scipy import ndimage

from cldm_jax.data import intensity, mask
from cldm_jax.errors import UserError


def _spec(name, rule):
    low, high = (-1024, 3071) if name == "ct" else (0, {"pet": 1.5, "mr": 1.0}[name])
    percentile = {"pet": 99.0, "mr": 99.5, "ct": None}[name]
    return intensity.make(name, rule, low=low, high=high, percentile=percentile)


RULES = [
    ("ct", "window"),
    ("ct", intensity.ORACLE),
    ("pet", "volume_percentile"),
    ("pet", "train_percentile"),
    ("pet", intensity.ORACLE),
    ("mr", "volume_percentile"),
    ("mr", "train_percentile"),
    ("mr", intensity.ORACLE),
]


@pytest.mark.parametrize("name,rule", RULES)
def test_inverse_round_trip(name, rule):
    """Inside the limits, model range and back is exact to float32; limits are met, never crossed."""
    spec, volume = _spec(name, rule), make_head(0)[name]
    spec = intensity.fit(spec, [intensity.volume_scaling(spec, volume)[0]])
    scale, origin = intensity.volume_scaling(spec, volume)
    x = intensity.to_model(spec, volume, scale, origin)
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    back = intensity.from_model(spec, x, scale, origin)
    low, high = spec.low * scale + origin, spec.high * scale + origin
    np.testing.assert_allclose(back, np.clip(volume, low, high), atol=2e-6 * (high - low))
    assert intensity.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_known_values():
    ct = _spec("ct", "window")
    x = intensity.to_model(ct, np.array([-3000, -1024, 1023.5, 3071, 9000]), 1.0)
    np.testing.assert_allclose(x, [-1, -1, 0, 1, 1], atol=1e-6)
    mr = intensity.fit(_spec("mr", "volume_percentile"), [400.0, 600.0, 2000.0])
    assert mr.population_scale == 600
    np.testing.assert_allclose(intensity.from_model(mr, np.array([-1, 0, 1]), 800.0), [0, 400, 800])
    np.testing.assert_allclose(intensity.from_model(mr, np.array([-1, 0, 1])), [0, 300, 600])
    np.testing.assert_allclose(intensity.metric_units(mr, np.array([-1, 0, 1])), [0, 0.5, 1])
    pet = _spec("pet", "volume_percentile")
    np.testing.assert_allclose(intensity.metric_units(pet, np.array([-1, 0, 1])), [0, 0.75, 1.5])
    np.testing.assert_allclose(intensity.metric_units(ct, np.array([0.0]), 1.0), [1023.5])


def test_volume_percentile_removes_the_scanner_gain():
    """An input rule may use the input: gain changes nothing. Negative control: CT keeps its HU."""
    head = make_head(3)
    for name in ("pet", "mr"):
        spec = _spec(name, "volume_percentile")
        models = [
            intensity.to_model(spec, v, intensity.volume_scaling(spec, v)[0])
            for v in (head[name], 7 * head[name])
        ]
        np.testing.assert_allclose(models[0], models[1], atol=1e-5)
    ct = _spec("ct", "window")
    assert (
        np.abs(
            intensity.to_model(ct, head["ct"], 1.0) - intensity.to_model(ct, 0.7 * head["ct"], 1.0)
        ).max()
        > 0.1
    )


def test_padding_does_not_move_the_scale():
    for name in ("pet", "mr"):
        spec, volume = _spec(name, "volume_percentile"), np.maximum(make_head(4)[name], 0)
        padded = np.pad(volume, 20)
        a, b = intensity.volume_scaling(spec, volume)[0], intensity.volume_scaling(spec, padded)[0]
        assert np.isclose(a, b, rtol=1e-6)
        assert not np.isclose(np.percentile(volume, 90), np.percentile(padded, 90))


def test_train_percentile_is_the_training_constant():
    spec = intensity.fit(_spec("pet", "train_percentile"), [5.0, 7.0, 30.0])
    assert intensity.volume_scaling(spec, 100 * make_head(0)["pet"])[0] == 7.0


def test_one_scale_for_all_needs_one_unit():
    """Bq/ml beside SUV: whoever is in SUV would train as black images. Each by itself: no matter."""
    scales = {"a": 7.0, "b": 30.0, "c": 40_000.0}
    with pytest.raises(UserError, match=r"1 of 3 have another unit \(c: 2200 times"):
        intensity.check_units(intensity.fit(_spec("pet", "train_percentile"), [7, 30]), scales)
    intensity.check_units(intensity.fit(_spec("pet", "volume_percentile"), [7, 30]), scales)
    del scales["c"]
    intensity.check_units(intensity.fit(_spec("pet", "train_percentile"), [7, 30]), scales)


def test_prediction_scale_is_never_the_targets():
    """from_model without a scale is the population's: the same for any unseen target."""
    spec = intensity.fit(_spec("mr", "volume_percentile"), [500.0])
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    assert intensity.from_model(spec, x).max() == 500
    with pytest.raises(ValueError, match="not fitted"):
        intensity.from_model(_spec("mr", "volume_percentile"), x)


@pytest.mark.parametrize(
    "name,rule,fragment",
    [
        ("pet", "slice_minmax", "cannot be inverted"),
        ("ct", "slice_minmax", "cannot be inverted"),
        ("mr", "zscore", "unknown rule"),
        ("pet", "window", "does not fit"),
        ("ct", "volume_percentile", "does not fit"),
    ],
)
def test_refused_rules(name, rule, fragment):
    with pytest.raises(UserError, match=fragment):
        _spec(name, rule)
    with pytest.raises(UserError, match=fragment):
        intensity.from_json(
            {**_spec("mr", "volume_percentile").to_json(), "modality": name, "rule": rule}
        )


def test_bad_numbers_are_refused():
    with pytest.raises(UserError, match="percentile"):
        intensity.make("mr", "volume_percentile", low=0, high=1, percentile=0)
    with pytest.raises(UserError, match="empty"):
        intensity.make("ct", "window", low=5, high=5, percentile=None)
    with pytest.raises(UserError, match="no training person"):
        intensity.fit(_spec("mr", "volume_percentile"), [])
    with pytest.raises(ValueError, match="positive"):
        spec = _spec("pet", "volume_percentile")
        intensity.volume_scaling(spec, np.zeros((4, 4, 4), np.float32))


def test_head_masks_of_ct_and_mr_agree():
    head = make_head(1)
    ct, mr = (head[k].transpose(2, 1, 0) for k in ("ct", "mr"))
    a, b = mask.head_mask(ct, "ct"), mask.head_mask(mr, "mr")
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert dice > 0.97
    # Against the truth: the head, dilated by 2; sinuses and ventricles are filled, debris is not in.
    ct = ct.copy()
    ct[:, :2, :2] = 100.0  # a piece of the couch in a corner
    ct[9, 20:22, 17:19] = -1000.0  # air inside the head
    c = mask.head_mask(ct, "ct")
    np.testing.assert_array_equal(c, a)


def test_otsu_splits_two_classes():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 3, 6000), rng.normal(100, 10, 4000)])
    assert 20 < mask.otsu(values) < 75


def test_holes_are_filled_as_by_scipy_slice_by_slice():
    rng = np.random.default_rng(0)
    for share in np.linspace(0.2, 0.8, 40):
        tissue = mask.piece(rng.random((3, *rng.integers(1, 20, 2))) < share)
        filled = [ndimage.binary_fill_holes(s) for s in tissue]
        np.testing.assert_array_equal(mask.largest(tissue), filled)
