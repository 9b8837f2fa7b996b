"""From measured costs to steps: arithmetic only."""

import itertools
import types

import ml_collections
import pytest

from cldm_jax.errors import UserError
from cldm_jax.jobs import budget

COSTS = {
    "reference": "unet",
    "cpu_seconds": 2.0,
    "ratios": {"unet": 1.0, "ldm": 0.2, "ae": 0.1, "encode": 0.001},
}


class FakePrepared:
    """Two training people of 50 slices; the second has no MR."""

    index = types.SimpleNamespace(people=[types.SimpleNamespace(n_slices=50)] * 2)

    def subjects(self, split):
        assert split == "train"
        return [0, 1]

    def has(self, subject, modality):
        return (subject, modality) != (1, "mr")


def recipe(kind, source_kind="image"):
    data = {"kind": kind, "source_kind": source_kind, "targets": ("ct", "mr")}
    return ml_collections.ConfigDict({"data": data})


def plan(name, kind, share=1, minutes=10.0, **data):
    return budget.plan(recipe(kind, **data), name, COSTS, minutes, share, FakePrepared(), 400)


def test_a_budget_is_counted_in_reference_steps():
    assert plan("unet", "images") == {"num_train_steps": 300, "budget": 300.0, "paid": 0.0}


def test_models_that_share_a_budget_get_their_part():
    assert plan("unet", "images", share=2)["num_train_steps"] == 150


def test_latent_methods_pay_for_autoencoder_and_latents():
    found = plan("ldm", "latents")
    assert found["paid"] == pytest.approx(400 * 0.1 + 150 * 0.001)
    assert found["num_train_steps"] == int((300 - found["paid"]) / 0.2)
    with_pet = plan("ldm", "latents", source_kind="latent")
    assert with_pet["paid"] == pytest.approx(400 * 0.1 + 250 * 0.001)


def test_a_budget_that_buys_too_little_is_refused():
    with pytest.raises(UserError, match=r"buys ldm 0 steps of 0\.40 CPU s"):
        plan("ldm", "latents", minutes=1.0)


def test_costs_are_measured_in_turns_and_without_the_first_call(monkeypatch):
    clock = itertools.count()
    now = [0.0]
    calls = []

    def spend(name, first, later):
        calls.append(name)
        now[0] += first if calls.count(name) == 1 else later

    monkeypatch.setattr(budget.time, "process_time", lambda: now[0] + 0 * next(clock))
    own, beside = budget._interleave(
        lambda: spend("own", 100.0, 1.0), lambda: spend("base", 50.0, 4.0), seconds=20.0
    )
    assert (own, beside) == (1.0, 4.0)
    assert calls == ["own", "base"] * (len(calls) // 2)
    assert len(calls) == 2 * (1 + 4)  # the first is not counted, 4 rounds of 5 s make 20
