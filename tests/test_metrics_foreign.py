"""Other people's conventions, and what some scores need beside the images."""

import numpy as np
import pytest

from cldm_jax.metrics.protocol import PROTOCOLS, Protocol, score_volume
from cldm_jax.metrics.scores import METRICS, Context


def images(seed=0, shape=(2, 24, 24)):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.1, 0.9, shape)
    return np.clip(target + rng.normal(0, 0.02, shape), 0, 1), target


def score(pred, target, protocol, name="mr", context=None):
    mask = np.ones(target.shape, bool)
    return score_volume(pred, target, mask, PROTOCOLS[protocol], name, context)


def test_selfrdb_by_hand():
    pred, target = images()
    p, t = pred[0] / pred[0].mean(), target[0] / target[0].mean()
    want = 10 * np.log10(t.max() ** 2 / np.mean((p - t) ** 2))
    assert score(pred, target, "selfrdb")["psnr"][0] == pytest.approx(want, abs=1e-9)
    ct = score(pred * 4024 - 1024, target * 4024 - 1024, "selfrdb", "ct")
    assert ct["psnr"][0] == pytest.approx(want, abs=1e-6)  # [0, 1] of the clip first


def test_abstract_oracle_by_hand():
    pred, target = images()
    width = np.ptp(target[0])
    want = 10 * np.log10(width**2 / np.mean((pred[0] - target[0]) ** 2))
    assert score(pred, target, "abstract-oracle")["psnr"][0] == pytest.approx(want, abs=1e-9)


def test_selfrdb_forgives_a_gain_error():
    _, target = images()
    foreign, own = (score(0.7 * target, target, p)["psnr"][0] for p in ("selfrdb", "cldm"))
    assert own < 20 and not foreign < 200  # exact after the division: infinite, or nearly


@pytest.mark.parametrize("name", ["selfrdb", "abstract-oracle"])
def test_they_say_what_they_are(name):
    protocol = PROTOCOLS[name]
    assert "NOT COMPARABLE" in " ".join(protocol.describe())
    assert Protocol.from_json(protocol.to_json()) == protocol
    assert set(score(*images(), name)) == {"psnr", "ssim"}


def test_a_record_older_than_the_field_is_read():
    record = PROTOCOLS["cldm"].to_json()
    del record["scaling"]
    assert Protocol.from_json(record) == PROTOCOLS["cldm"]


def test_scores_come_with_what_they_need():
    pred, target = images(shape=(4, 24, 24))
    labels = np.tile(np.repeat([1, 2, 3], 8)[:, None], (4, 1, 24))
    needing = {n for n, m in METRICS.items() if m.needs and m.applies(PROTOCOLS["cldm"].mr)}
    assert not needing & set(score(pred, target, "cldm"))
    full = Context((1.0, 1.0), np.arange(4), labels, np.zeros_like(labels))
    assert needing <= set(score(pred, target, "cldm", context=full))
    hu = score(pred * 1000, target * 1000, "cldm", "ct", Context(spacing_mm=(1.0, 1.0)))
    assert "attenuation" in hu and "consistency" not in hu


def test_only_neighbours_in_the_volume_are_compared():
    pred, target = images(shape=(4, 24, 24))
    context = Context(slices=np.array([0, 7, 8, 10]))
    found = score(pred, target, "cldm", context=context)
    direct = np.abs(pred[2] - pred[1]).mean() / np.abs(target[2] - target[1]).mean()
    assert found["consistency"] == pytest.approx([direct])
