"""A method is a record of pure functions; the loop, evaluation and prediction know nothing else."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Prediction(NamedTuple):
    """Images in model range [-1, 1]."""

    image: jax.Array  # [B, H, W, 1]
    sd: jax.Array | None = None  # [B, H, W, 1] over the K samples; None: a deterministic read-out


class Method(NamedTuple):
    """All functions are pure and jittable except `init`.

    batch: source [B,H,W,S] target [B,H,W,1] (latents: [B,h,w,C]) label [B] mask [B,H,W,1] subject [B]
    slice [B]. `train_step` is given what `reads` names and nothing else: only that is read from disk and
    sent to the devices.
    """

    init: Callable  # (rng, batch, frozen) -> TrainState; frozen: constants from earlier phases
    train_step: Callable  # (state, batch, rng) -> (TrainState, {name: scalar})
    predict: Mapping[str, Callable]  # mode -> (state, batch of images, rng) -> Prediction
    evaluations: Mapping[str, int]  # mode -> network evaluations per image
    reads: tuple[str, ...] = ("source", "target", "label")


def with_mirror(predict: Callable) -> Callable:
    """The mean of a deterministic read-out and of its answer for the left-right mirrored source,
    mirrored back. Heads are nearly symmetric; twice the evaluations. Columns run left to right.
    """

    def predict_mirrored(state, batch, rng):
        direct = predict(state, batch, rng).image
        mirrored = {**batch, "source": batch["source"][:, :, ::-1]}
        return Prediction((direct + predict(state, mirrored, rng).image[:, :, ::-1]) / 2)

    return predict_mirrored


def deterministic(init, train_step, predict: Callable, **reads) -> Method:
    """A method whose read-outs are `predict`, without samples, and its mean `with_mirror`."""
    read_outs = {"predict": predict, "mirror": with_mirror(predict)}
    return Method(init, train_step, read_outs, {"predict": 1, "mirror": 2}, **reads)


def sample_read_outs(predict_samples: Callable, counts, cost: int) -> tuple[dict, dict]:
    """(predict, evaluations) of the means of K samples, for each K of `counts`: "sample" for one, "mean8"
    for eight. predict_samples takes num_samples; cost: network evaluations of one sample.
    """
    names = {k: "sample" if k == 1 else f"mean{k}" for k in counts}
    predict = {n: functools.partial(predict_samples, num_samples=k) for k, n in names.items()}
    return predict, {name: k * cost for k, name in names.items()}


def example_keys(rng, batch: dict[str, Any], ahead: int = 0):
    """One key per example from its subject and slice (+ ahead): independent of batch size, order and
    device.
    """
    fold = jax.vmap(lambda s, z: jax.random.fold_in(jax.random.fold_in(rng, s), z))
    return fold(batch["subject"], batch["slice"] + ahead)


def sample_noise(
    batch: dict[str, Any], rng, num_samples: int, weights: tuple[float, ...]
) -> Callable:
    """noise_fn(i, shape) -> standard normal [B * K, *shape], the i-th field of K samples of each example.

    weights: of `diffusion.noise.through_plane_weights`: fields are correlated from slice to slice,
    though a row is computed from its own subject and slice number alone.
    """
    number = jnp.tile(jnp.arange(num_samples), batch["label"].shape[0])
    fold = jax.vmap(jax.random.fold_in)

    def draw(i, shape, ahead: int):
        keys = fold(jnp.repeat(example_keys(rng, batch, ahead), num_samples), number)
        keys = fold(keys, jnp.full(number.shape, i))
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def noise_fn(i, shape):
        return sum(w * draw(i, shape, ahead) for ahead, w in enumerate(weights))

    return noise_fn


def mean_of_samples(images, num_samples: int) -> Prediction:
    """Mean and SD of K samples of each example, images [B * K, H, W, 1]. The SD divides by K - 1: its
    square is the unbiased variance, as `metrics.calibration` takes it.
    """
    images = images.reshape(-1, num_samples, *images.shape[1:])
    sd = images.std(axis=1, ddof=1) if num_samples > 1 else None
    return Prediction(images.mean(axis=1), sd)
