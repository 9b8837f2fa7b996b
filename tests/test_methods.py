"""Each method: a golden step, overfitting one batch, every conditioning, keys that ignore the batch."""

import functools
import json
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval
from scipy import stats

from cldm_jax.diffusion.noise import through_plane_weights
from cldm_jax.errors import UserError
from cldm_jax.methods.autoencoder import kl_divergence
from cldm_jax.methods.base import sample_noise
from cldm_jax.methods.common import optimizer_of
from cldm_jax.methods.latent_diffusion import _Cldm, channel_weights, ramp
from cldm_jax.methods.registry import make_method
from cldm_jax.runs import fit
from configs import (
    ae,
    attention_unet,
    cyclegan,
    distributional,
    ldm,
    monai_ldm,
    pix2pix,
    reproduce,
    unet,
)

GOLDEN = pathlib.Path(__file__).parent / "golden" / "steps.json"
CONFIGS = {
    "autoencoder": ae,
    "unet": unet,
    "ldm": ldm,
    "attention_unet": attention_unet,
    "cyclegan": cyclegan,
    "pix2pix": pix2pix,
    "distributional": distributional,
}
SIZE = (16, 16)


def recipe(name: str, num_train_steps: int = 100, warmup_steps: int = 50, **diffusion) -> dict:
    config = CONFIGS[name].get_config("tiny")
    out = config.recipe.to_dict()
    out["optim"] = {
        **out["optim"],
        "num_train_steps": num_train_steps,
        "warmup_steps": warmup_steps,
    }
    if name == "ldm":
        out["autoencoder"] = ae.get_config("tiny").recipe.model.to_dict()
        out["diffusion"].update(diffusion)
    return out


def images(batch: int = 4, context: int = 3) -> dict:
    """Smooth, learnable pictures: targets are functions of the source and the class."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(batch, 4, 4, 1)).astype(np.float32)
    base = np.tanh(coarse.repeat(SIZE[0] // 4, 1).repeat(SIZE[1] // 4, 2))
    label = (np.arange(batch) % 2 + 1).astype(np.int32)
    sign = np.where(label == 1, 1, -1).astype(np.float32)[:, None, None, None]
    return {
        "source": base.repeat(context, -1),
        "target": 0.8 * sign * base,
        "label": label,
        "mask": np.ones((batch, *SIZE, 1), np.float32),
        "subject": np.arange(batch, dtype=np.int32),
        "slice": np.arange(batch, dtype=np.int32) * 3,
    }


@functools.cache
def ldm_parts(source_encoding: str = "s2d"):
    """(batch of latents, frozen constants) from an untrained autoencoder: its linear code is exact."""
    batch = images()
    method = make_method("autoencoder", **recipe("autoencoder"))
    state = method.init(jax.random.key(0), batch, {})
    from cldm_jax.methods.codec import make_codec

    codec = make_codec(recipe("ldm")["autoencoder"])
    variables = {"params": state.ema_params, **state.frozen}
    z = np.asarray(codec.encode(variables, batch["target"], batch["label"]))
    mean, std = z.mean((0, 1, 2)), z.std((0, 1, 2)) + 1e-3
    stats = {"mean": np.tile(mean, (4, 1)), "std": np.tile(std, (4, 1))}
    out = {**batch, "target": z}
    if source_encoding == "latent":
        code = np.zeros(len(z), np.int32)
        parts = [codec.encode(variables, batch["source"][..., i, None], code) for i in range(3)]
        out["source"] = np.concatenate(parts, -1)
    parts = out, {"autoencoder": variables, "statistics": stats}
    return jax.device_get(parts)  # a test that gives its state away keeps them


def start(name: str, num_train_steps: int = 100, **diffusion):
    config = CONFIGS[name].get_config("tiny")
    method = make_method(config.method, **recipe(name, num_train_steps, **diffusion))
    batch, frozen = images(context=config.data.context), {}
    if name == "ldm":
        batch, frozen = ldm_parts(diffusion.get("source_encoding", "s2d"))
    return method, method.init(jax.random.key(0), batch, frozen), batch


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_step(name):
    """Two steps' numbers. A failure means that training changed: if that was intended, run with
    CLDM_UPDATE_GOLDEN=1 and say so in the commit."""
    method, state, batch = start(name, warmup_steps=0)  # with one, the first step would not move
    step = jax.jit(method.train_step)
    state, first = step(state, batch, jax.random.key(1))
    _, second = step(state, batch, jax.random.key(2))
    got = {
        "loss": [float(first["loss"]), float(second["loss"])],
        "grad_norm": [float(first["grad_norm"]), float(second["grad_norm"])],
        "params": int(sum(p.size for p in jax.tree.leaves(state.params))),
    }
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("CLDM_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**known, name: got}, indent=1) + "\n")
        known = json.loads(GOLDEN.read_text())
    assert got["params"] == known[name]["params"]
    np.testing.assert_allclose(got["loss"], known[name]["loss"], rtol=2e-4)
    np.testing.assert_allclose(got["grad_norm"], known[name]["grad_norm"], rtol=2e-3)


@pytest.mark.parametrize("name, changes", [*((n, {}) for n in CONFIGS), ("ldm", "sdedit")])
def test_a_step_reads_what_its_method_says_and_nothing_else(name, changes):
    """So nothing else is read from disk or sent to the devices: no mask, no names of people."""
    changes = {**READINGS["sdedit"]} if changes else {}
    method, state, batch = start(name, **changes)
    key = jax.random.key(1)
    closed = jax.make_jaxpr(method.train_step)(state, batch, key)
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    count = len(jax.tree.leaves(state))
    names = [path[0].key for path, _ in jax.tree.leaves_with_path(batch)]
    read = {n for n, is_used in zip(names, used[count:-1], strict=True) if is_used}
    assert read == set(method.reads)
    only = {k: batch[k] for k in method.reads}
    whole, alone = (jax.eval_shape(method.train_step, state, b, key) for b in (batch, only))
    assert jax.tree.structure(whole) == jax.tree.structure(alone)


def with_optim(name: str, **optim):
    settings = recipe(name, warmup_steps=0)
    settings["optim"].update(optim)
    return make_method(name if name in ("autoencoder", "ldm") else "unet", **settings)


@pytest.mark.parametrize("name", ["autoencoder", "unet", "ldm"])
@pytest.mark.parametrize("parts", [4])
def test_accumulated_parts_are_the_whole_batch(name, parts):
    """SGD-like view: the gradients themselves, before Adam's sign-like first step blows rounding up."""
    _, state, batch = start(name, warmup_steps=0)
    plain = dict(b1=0.0, b2=0.0, optimizer="adamw")
    whole, split = (with_optim(name, accumulate=n, **plain) for n in (1, parts))
    tx = optimizer_of({**recipe(name)["optim"], **plain})
    state = state._replace(opt_state=tx.init(state.params))
    (one, seen), (other, told) = (
        jax.jit(m.train_step)(state, batch, jax.random.key(1)) for m in (whole, split)
    )
    np.testing.assert_allclose(told["loss"], seen["loss"], rtol=1e-5)
    np.testing.assert_allclose(told["grad_norm"], seen["grad_norm"], rtol=1e-5)
    mu = [s.opt_state[1][0].mu for s in (one, other)]  # b1 = 0: the clipped gradient
    for a, b in zip(*map(jax.tree.leaves, mu), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
    repeated = jax.tree.map(lambda x: np.concatenate([x[:2]] * 2), batch)  # can fail: other rows
    wrong, _ = jax.jit(split.train_step)(state, repeated, jax.random.key(1))
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), mu[0], wrong.opt_state[1][0].mu)
    assert max(jax.tree.leaves(gaps)) > 1e-3


def in_bfloat16(tree: dict) -> dict:
    return {
        k: in_bfloat16(v) if isinstance(v, dict) else "bfloat16" if k == "dtype" else v
        for k, v in tree.items()
    }


@pytest.mark.parametrize("name", ["autoencoder", "unet", "ldm"])
def test_bfloat16_trains_as_float32_does(name):
    """Thirty steps on one batch: the losses stay within 3 %, everything kept is float32, and the two
    are not the same computation.
    """
    losses = []
    method, state, batch = start(name, warmup_steps=0)
    settings = in_bfloat16(recipe(name, warmup_steps=0))
    other = make_method(CONFIGS[name].get_config("tiny").method, **settings)
    for each in (method, other):
        step, found, now = jax.jit(each.train_step), [], state
        for k in range(30):
            now, metrics = step(now, batch, jax.random.key(k))
            found.append(float(metrics["loss"]))
        losses.append(np.array(found))
        assert {x.dtype for x in jax.tree.leaves(now.params)} == {np.dtype("float32")}
    gap = np.abs(losses[1] / losses[0] - 1)
    assert 0 < gap.max() < 0.03, gap.max()


@pytest.mark.parametrize("name", ["cyclegan", "pix2pix"])
def test_adversaries_do_not_accumulate(name):
    settings = recipe(name)
    settings["optim"]["accumulate"] = 2
    with pytest.raises(UserError, match="whole batches"):
        make_method(name, **settings)


OVERFIT = {"autoencoder": 0.6, "unet": 0.1, "attention_unet": 0.1, "ldm": 0.25, "pix2pix": 0.5}


@pytest.mark.parametrize("name, factor", OVERFIT.items())
def test_overfits_one_batch(name, factor):
    method, state, batch = start(name, num_train_steps=250, onestep_share=(1.0, 1.0))
    step = jax.jit(method.train_step, donate_argnums=0)
    losses = []
    for i in range(250):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < factor * losses[0]


PLAIN = dict(
    source_encoding="latent",
    onestep_share=(0.0, 0.0),
    target="v",
    gaussian_denoiser=False,
)
READINGS = {
    "concat": {},
    "plain": {
        **PLAIN,
        "noisy_weight_power": 0.0,
        "min_snr_gamma": 5.0,
        "schedule": "scaled_linear",
    },
    "eps": {**PLAIN, "target": "eps"},
    "sdedit": {**PLAIN, "conditioning": "sdedit"},
    "direct": {"gaussian_denoiser": False},
    "bridge": {**PLAIN, "conditioning": "bridge", "target": "x0", "noise_weight_power": 0.0},
    # Its network sees pixels; it begins at the middle slice's latent all the same.
    "bridge on pixels": {
        "conditioning": "bridge",
        "gaussian_denoiser": False,
        "noise_weight_power": 0.0,
    },
}


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_trains_and_predicts(reading):
    method, state, batch = start("ldm", **READINGS[reading])
    step, new = jax.jit(method.train_step), state
    for i in range(2):  # the warm-up's first step has learning rate 0
        new, metrics = step(new, batch, jax.random.key(i))
        assert np.isfinite(float(metrics["loss"])) and int(new.step) == i + 1
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, new.params)
    assert max(jax.tree.leaves(moved)) > 0
    before, after = ({k: v for k, v in s.frozen.items() if k != "young"} for s in (state, new))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, after))
    assert ("onestep" in method.predict) == (READINGS[reading].get("onestep_share") is None)
    source = images()
    # Which read-out does not matter to a reading: one of each kind, all of the default's.
    modes = method.predict if reading == "concat" else {"mean4": method.predict["mean4"]}
    for mode, predict in modes.items():
        out = jax.jit(predict)(new, source, jax.random.key(0))
        assert out.image.shape == (4, *SIZE, 1) and bool(jnp.isfinite(out.image).all()), mode
        assert (out.sd is None) == (mode in ("onestep", "mirror", "sample"))


def test_sdedit_starts_from_the_source_and_concat_does_not():
    """Little noise keeps the source's latent: the literal reading returns (nearly) its input."""
    settings = recipe("ldm", **READINGS["sdedit"])
    settings["sampling"]["sdedit_strength"] = 0.01
    method = make_method("ldm", **settings)
    batch, frozen = ldm_parts("latent")
    state = method.init(jax.random.key(0), batch, frozen)
    source = images()
    source["label"] = np.zeros(4, np.int32)  # decode with the source's own code
    out = jax.jit(method.predict["sample"])(state, source, jax.random.key(0)).image
    assert float(jnp.abs(out - source["source"][..., 1:2]).mean()) < 0.1


@pytest.mark.parametrize("reading, source", [("bridge", "latent"), ("bridge on pixels", "s2d")])
def test_the_mean_of_a_bridge_is_its_first_step(reading, source):
    """At t = T - 1 a bridge is at its source, without noise: a sample of one step is the mean."""
    settings = recipe("ldm", **{**READINGS[reading], "onestep_share": (0.5, 0.5)})
    settings["sampling"]["num_sampling_steps"] = 1
    method = make_method("ldm", **settings)
    batch, frozen = ldm_parts(source)
    state = method.init(jax.random.key(0), batch, frozen)
    state, metrics = jax.jit(method.train_step)(state, batch, jax.random.key(0))
    assert float(metrics["onestep_share"]) == 0.5 and float(metrics["loss_onestep"]) > 0
    one, sample = (
        jax.jit(method.predict[mode])(state, images(), jax.random.key(1)).image
        for mode in ("onestep", "sample")
    )
    np.testing.assert_allclose(one, sample, atol=1e-5)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"conditioning": "sdedit"}, "source_encoding 'latent'"),
        (
            {**PLAIN, "conditioning": "sdedit", "onestep_share": (1.0, 0.5)},
            "'sdedit' has no onestep rows",
        ),
        ({**PLAIN, "conditioning": "bridge"}, "predicts x0"),
        ({**PLAIN, "conditioning": "bridge", "target": "x0"}, "set noise_weight_power to 0.0"),
        (
            {**PLAIN, "conditioning": "bridge", "target": "x0", "gaussian_denoiser": True},
            "no noise to weigh: set gaussian_denoiser to False",
        ),
        ({"target": "v"}, "gaussian_denoiser gives x0"),
        ({"target": "eps", "gaussian_denoiser": False}, "onestep rows"),
        ({"conditioning": "film"}, "unknown conditioning"),
    ],
)
def test_impossible_combinations_are_refused(bad, message):
    with pytest.raises(UserError, match=f"config.recipe: .*{message}"):
        make_method("ldm", **recipe("ldm", **bad))


def test_what_never_learns_noisy_rows_draws_no_samples():
    """Whatever the sampling settings say, which `replace_sampling` gives to every run."""
    alone = recipe("ldm", onestep_share=(1.0, 1.0), young_at=0.0)
    assert alone["sampling"]["num_samples"] and alone["sampling"]["autoguidance_scale"] != 1
    assert set(make_method("ldm", **alone).predict) == {"onestep", "mirror"}
    some = recipe("ldm", onestep_share=(1.0, 0.5), young_at=0.0)
    with pytest.raises(UserError, match="no younger self"):
        make_method("ldm", **some)


def test_guidance_by_a_null_class_that_was_never_trained_is_refused():
    settings = recipe("ldm", class_dropout_prob=0.0)
    make_method("ldm", **settings)
    settings["sampling"]["guidance_scale"] = 2.0
    with pytest.raises(UserError, match="null class is never trained"):
        make_method("ldm", **settings)


def test_sampling_that_its_diffusion_cannot_carry_is_refused():
    """Else a traceback at the first validation."""
    settings = recipe("ldm", **READINGS["sdedit"])
    settings["sampling"]["sdedit_strength"] = 0.002
    with pytest.raises(UserError, match="4 sampling steps: give 1 to 2, .* sdedit_strength 0.002"):
        make_method("ldm", **settings)


def test_what_a_network_cannot_be_is_refused_by_init():
    """Found out where it is made, not by its settings."""
    settings = recipe("ldm")
    settings["model"]["unet"]["base_channels"] = 1
    batch, frozen = ldm_parts()
    method = make_method("ldm", **settings)
    with pytest.raises(UserError, match="config.recipe: base_channels 1"):
        method.init(jax.random.key(0), batch, frozen)


@pytest.mark.parametrize("preset", ["quick", "a6000"])
def test_only_x0_is_weighted_as_x0(preset):
    """The rows of the comparison, and MONAI's: the plain recipe has the plain loss."""
    trainings = {**reproduce.trainings(preset), "monai_ldm": monai_ldm.get_config(preset)}
    targets = set()
    for config in trainings.values():
        fit._check_loss(config)
        targets.add(config.recipe.to_dict().get("diffusion", {}).get("target"))
    assert {"x0", "v", "eps"} <= targets
    config = ldm.get_config(preset)
    config.recipe.diffusion.target = "v"
    with pytest.raises(UserError, match="noise_weight_power=1: is for target x0, and target is v"):
        fit._check_loss(config)


def test_unknown_method_names_the_known_ones():
    with pytest.raises(UserError, match="autoencoder, ldm, unet"):
        make_method("gan")


def test_a_patient_does_not_depend_on_the_batch():
    """Alone, first or last: the same noise, and the same image to float rounding."""
    plain = dict(target="v", gaussian_denoiser=False)  # hands its noise on from the first step
    method, state, batch = start("ldm", **plain)
    state, _ = jax.jit(method.train_step)(state, batch, jax.random.key(1))
    source = images()
    predict = jax.jit(method.predict["mean4"])
    whole = predict(state, source, jax.random.key(7)).image
    alone = {k: v[2:3] for k, v in source.items()}
    image = predict(state, alone, jax.random.key(7)).image
    np.testing.assert_allclose(image[0], whole[2], atol=2e-5)
    other = {**alone, "slice": alone["slice"] + 1}  # negative control: another slice, other noise
    image = predict(state, other, jax.random.key(7)).image
    assert float(jnp.abs(image[0] - whole[2]).max()) > 1e-3


@pytest.mark.parametrize("noise_slices", [0.0, 2.0])
def test_noise_of_a_patient_is_a_field(noise_slices):
    """Standard normal in every slice, correlated to the next ones; others have another."""
    weights = through_plane_weights(noise_slices)
    batch = {
        "label": np.ones(4, np.int32),
        "subject": np.array([3, 3, 3, 5], np.int32),
        "slice": np.array([7, 8, 12, 7], np.int32),
    }
    noise_fn = sample_noise(batch, jax.random.key(0), 2, weights)
    field = noise_fn(0, (48, 48, 4))  # rows: 4 examples x 2 samples
    rows = np.asarray(field).reshape(8, -1)
    correlation = np.corrcoef(rows)
    np.testing.assert_allclose(rows.std(1), 1, atol=0.04)
    wanted = [np.exp(-(d**2) / 16) if noise_slices else 0.0 for d in (1, 5)]
    np.testing.assert_allclose(correlation[0, [2, 4]], wanted, atol=0.04)
    np.testing.assert_allclose(correlation[0, [1, 3, 6, 7]], 0, atol=0.04)
    other_step = np.asarray(noise_fn(1, (48, 48, 4))).reshape(8, -1)
    assert abs(np.corrcoef(rows[0], other_step[0])[0, 1]) < 0.04


def test_class_code_and_guidance_change_the_prediction():
    method, state, batch = start("ldm", num_train_steps=40)
    step = jax.jit(method.train_step, donate_argnums=0)
    for i in range(40):
        state, _ = step(state, batch, jax.random.key(i))
    source = images()
    flipped = {**source, "label": (3 - source["label"]).astype(np.int32)}
    onestep = jax.jit(method.predict["onestep"])
    a, b = (onestep(state, x, jax.random.key(0)).image for x in (source, flipped))
    assert float(jnp.abs(a - b).mean()) > 0.01
    guided = recipe("ldm", 40)
    settings = guided["sampling"]
    settings["guidance_scale"] = 2.0
    strong = make_method("ldm", **guided)
    per_step = [m.evaluations["sample"] / settings["num_sampling_steps"] for m in (method, strong)]
    assert per_step == [2, 3]  # the younger self, the class-free one
    # The mean is that of the class, whose one step is trained; the null class's is not.
    same = jax.jit(strong.predict["onestep"])(state, source, jax.random.key(0)).image
    np.testing.assert_allclose(same, a, atol=1e-6)
    c, d = (
        jax.jit(m.predict["sample"])(state, source, jax.random.key(0)).image
        for m in (strong, method)
    )
    assert float(jnp.abs(c - d).mean()) > 1e-4


class TestYoungerSelf:
    """The average of an earlier step, kept for autoguidance."""

    def test_it_is_the_average_of_its_step(self):
        method, state, batch = start("ldm", num_train_steps=10, warmup_steps=0, young_at=0.3)
        step, averages = jax.jit(method.train_step), {}
        for i in range(1, 6):
            state, _ = step(state, batch, jax.random.key(i))
            averages[i] = state.ema_params
            young = jax.tree.leaves(state.frozen["young"])
            for kept, average in zip(young, jax.tree.leaves(averages[min(i, 3)]), strict=True):
                np.testing.assert_array_equal(kept, average)
        a, b = (jax.tree.leaves(averages[i])[0] for i in (3, 5))
        assert float(jnp.abs(a - b).max()) > 0

    def test_it_guides_the_samples_and_nothing_else(self):
        settings = recipe("ldm", young_at=0.3)
        plain = make_method("ldm", **settings)
        settings["sampling"].update(autoguidance_scale=1.5, num_sampling_steps=1)
        single = {**settings["sampling"], "autoguidance_scale": 1.0}
        unguided = make_method("ldm", **{**settings, "sampling": single})
        guided = make_method("ldm", **settings)
        assert guided.evaluations["sample"] == 2 * unguided.evaluations["sample"] == 2
        assert guided.evaluations["onestep"] == plain.evaluations["onestep"] == 1
        batch, frozen = ldm_parts()
        state = plain.init(jax.random.key(0), batch, frozen)
        shifted = jax.tree.map(lambda p: p + 0.03, state.ema_params)
        state = state._replace(ema_params=shifted)
        source = images()

        def draw(method, state, mode="sample"):
            return np.asarray(method.predict[mode](state, source, jax.random.key(0)).image)

        younger = state._replace(ema_params=state.frozen["young"])
        one, other = draw(unguided, state), draw(unguided, younger)
        assert np.abs(one - other).mean() > 1e-3
        # One step from noise: its answer is z0, and an untrained codec is linear.
        np.testing.assert_allclose(draw(guided, state), other + 1.5 * (one - other), atol=2e-5)
        np.testing.assert_array_equal(draw(guided, state, "onestep"), draw(plain, state, "onestep"))

    @pytest.mark.parametrize(
        ("young_at", "scale", "why"),
        [(0.0, 1.5, "no younger self"), (1.0, 1.0, "young_at 1"), (-0.1, 1.0, "young_at -0.1")],
    )
    def test_what_cannot_be_is_refused(self, young_at, scale, why):
        settings = recipe("ldm", young_at=young_at)
        settings["sampling"]["autoguidance_scale"] = scale
        with pytest.raises(UserError, match=why):
            make_method("ldm", **settings)


def test_the_jump_decides_at_which_steps_samples_are_drawn():
    """Of two steps the second is at half of the noise anyway."""
    drawn = {}
    batch, frozen = ldm_parts()
    for steps, jump in ((2, 0.0), (2, 0.5), (4, 0.0), (4, 0.5)):
        settings = recipe("ldm")
        settings["sampling"].update(num_sampling_steps=steps, jump_from=jump)
        method = make_method("ldm", **settings)
        state = method.init(jax.random.key(0), batch, frozen)
        shifted = jax.tree.map(lambda p: p + 0.03, state.ema_params)
        state = state._replace(ema_params=shifted)
        image = method.predict["sample"](state, images(), jax.random.key(0)).image
        drawn[steps, jump] = np.asarray(image)
    np.testing.assert_array_equal(drawn[2, 0.0], drawn[2, 0.5])
    assert np.abs(drawn[4, 0.0] - drawn[4, 0.5]).mean() > 1e-4


def test_mirror_is_the_mean_of_both_sides():
    method, state, _ = start("unet")
    state = state._replace(ema_params=jax.tree.map(lambda p: p + 0.05, state.ema_params))
    source = images()
    flipped = {**source, "source": source["source"][:, :, ::-1]}
    direct = method.predict["predict"](state, source, None).image
    other = method.predict["predict"](state, flipped, None).image[:, :, ::-1]
    mirror = method.predict["mirror"](state, source, None).image
    np.testing.assert_allclose(mirror, (direct + other) / 2, atol=1e-6)
    assert float(jnp.abs(mirror - direct).max()) > 1e-6


def test_ramp_and_weights():
    shares = [float(ramp(s, 100, 1.0, 0.5, 0.2, 0.7)) for s in (0, 20, 45, 70, 99)]
    np.testing.assert_allclose(shares, [1, 1, 0.75, 0.5, 0.5])
    steps = [float(ramp(s, 100, 1.0, 0.5, 0.5, 0.5)) for s in (0, 49, 50, 99)]
    np.testing.assert_allclose(steps, [1, 1, 0.5, 0.5])
    std = jnp.array([[2.0, 1.0, 1.0]])
    np.testing.assert_allclose(channel_weights(std, 2.0)[0, 0, 0], [2, 0.5, 0.5])
    np.testing.assert_allclose(channel_weights(std, 0.0)[0, 0, 0], 1)


def test_kl_of_standard_normal_is_zero_and_grows():
    zero = jnp.zeros((2, 3, 3, 2))
    np.testing.assert_allclose(kl_divergence(zero, zero), 0)
    np.testing.assert_allclose(kl_divergence(zero + 2, zero), 2 * 18)  # mean^2 / 2 per element


@pytest.mark.parametrize("samples", [2, 4])
def test_the_sd_of_a_read_out_covers_the_truth(samples):
    """Of a model whose decoded samples are standard normal, as the truth is: the error of their mean has
    variance sd^2 (1 + 1/K), and follows Student's t with K - 1 degrees of freedom.
    """
    rng = np.random.default_rng(1)
    size = (8, 64, 64, 1)
    drawn = jnp.asarray(rng.normal(size=(size[0] * samples, *size[1:])), jnp.float32)
    model = types.SimpleNamespace(
        image_source=lambda frozen, source: source,
        middle=lambda frozen, images, source: None,
        sampling={"noise_slices": 0.0},
        sample_latents=lambda *args: drawn,
        decode=lambda state, z, label: z,
    )
    batch = {"source": jnp.zeros(size), "label": jnp.zeros(size[0], jnp.int32)}
    state = types.SimpleNamespace(frozen={})
    made = _Cldm.predict_samples(model, state, batch, None, num_samples=samples)
    stack = np.asarray(drawn).reshape(size[0], samples, *size[1:])
    np.testing.assert_allclose(made.sd, stack.std(1, ddof=1), rtol=1e-5)
    half = stats.t.ppf(0.95, samples - 1) * made.sd * np.sqrt(1 + 1 / samples)
    inside = np.abs(made.image - rng.normal(size=size)) <= half
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
