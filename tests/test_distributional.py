"""The controls that answer with a distribution: proper scores, and networks that learn by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import images, recipe

from cldm_jax.errors import UserError
from cldm_jax.methods.distributional import energy_score, gaussian_loss
from cldm_jax.methods.registry import make_method


def test_energy_score_is_least_for_the_true_distribution():
    """Of normals with too small, the right and too large a spread, and of a shifted one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20000, 3))
    draws = rng.normal(size=(2, 20000, 3))
    score = {s: float(energy_score(jnp.asarray(s * draws), truth).mean()) for s in (0.5, 1.0, 1.5)}
    assert score[1.0] < min(score[0.5], score[1.5])
    assert score[1.0] < float(energy_score(jnp.asarray(draws + 0.5), truth).mean())
    # |x - y| of two independent normals in one dimension: 2 / sqrt(pi); half of it is left.
    one = energy_score(jnp.asarray(draws[..., :1]), truth[..., :1])
    np.testing.assert_allclose(one.mean(), 1 / np.sqrt(np.pi), rtol=0.03)


def test_energy_score_has_a_gradient_where_draws_agree():
    gradient = jax.grad(lambda x: energy_score(jnp.stack([x, x]), jnp.zeros((4, 2))).sum())
    assert bool(jnp.isfinite(gradient(jnp.ones((4, 2)))).all())


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gaussian_loss_is_least_at_the_error_s_variance(beta):
    """Of errors of size 0.3, log 0.09; the weight of beta does not move it."""
    target, candidates = jnp.float32(0.3), np.log([0.03, 0.09, 0.27])
    slope = [
        float(jax.grad(lambda v: gaussian_loss(0.0, v, target, beta))(jnp.float32(c)))
        for c in candidates
    ]
    assert slope[0] < -1e-3 and abs(slope[1]) < 1e-6 and slope[2] > 1e-3


def test_unknown_loss_is_refused():
    with pytest.raises(UserError, match="gaussian, energy"):
        make_method("distributional", **{**recipe("distributional"), "loss": "l2"})


@pytest.mark.parametrize("loss", ["gaussian", "energy"])
def test_learns_where_it_cannot_know(loss):
    """Left half: the target is the source. Right half: a coin. The SD must say so."""
    settings = {**recipe("distributional", 300, warmup_steps=10), "loss": loss}
    settings["sampling"]["noise_slices"] = 0.0
    settings["optim"].update(learning_rate=3e-3, optimizer="adamw")
    method = make_method("distributional", **settings)
    rng, batch = np.random.default_rng(0), images(8)

    def drawn():
        coin = rng.choice([-0.8, 0.8], size=(8, 1, 1, 1)).astype(np.float32)
        target = batch["target"].copy()
        target[:, :, 8:] = coin
        return {**batch, "target": target}

    state = method.init(jax.random.key(0), batch, {})
    step = jax.jit(method.train_step, donate_argnums=0)
    for i in range(300):
        state, metrics = step(state, drawn(), jax.random.key(i))
    mode = "predict" if loss == "gaussian" else "mean4"
    out = jax.jit(method.predict[mode])(state, batch, jax.random.key(1))
    known, coin = (np.asarray(out.sd[:, :, s]).mean() for s in (slice(0, 7), slice(9, 16)))
    assert coin > 0.4 and known < 0.5 * coin, (known, coin)
    assert np.abs(np.asarray(out.image - batch["target"])[:, :, :7]).mean() < 0.3
