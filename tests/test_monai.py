"""Weights from MONAI and back, without MONAI: `python -m benchmarks.check` compares with the real one."""

import importlib.util
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cldm_jax import files
from cldm_jax import settings as law
from cldm_jax.errors import UserError
from cldm_jax.jobs import dry_run, export, make
from cldm_jax.methods.registry import make_method
from cldm_jax.models import build, monai_names
from cldm_jax.models.conv import prepare_params
from cldm_jax.models.init import init_params
from cldm_jax.models.monai import AutoencoderKL, DiffusionModelUNet
from cldm_jax.runs import inputs, monai, readouts, record, stored
from cldm_jax.runtime import foreign
from cldm_jax.runtime.checkpoint import restore_for_inference
from configs import ae, ldm, monai_ae, monai_ldm
from configs import export as export_config

AE = dict(
    channels=(4, 8, 8),
    latent_channels=3,
    num_classes=4,
    num_res_blocks=(1, 2, 1),
    attention_levels=(False, True, False),
    norm_num_groups=4,
    with_encoder_nonlocal_attn=True,
    with_decoder_nonlocal_attn=False,
)
UNET = dict(
    latent_channels=3,
    channels=(4, 8),
    num_res_blocks=(2, 1),
    attention_levels=(True, False),
    norm_num_groups=2,
    num_head_channels=(2, 4),
    num_class_embeds=4,
)
NAMES = """
encoder.blocks.0.conv encoder.blocks.1.norm1 encoder.blocks.1.conv1.conv encoder.blocks.1.norm2
encoder.blocks.1.conv2.conv encoder.blocks.2.conv.conv encoder.blocks.3.norm1
encoder.blocks.3.conv1.conv encoder.blocks.3.norm2 encoder.blocks.3.conv2.conv
encoder.blocks.3.nin_shortcut.conv encoder.blocks.4 encoder.blocks.5.conv decoder.blocks.0.conv
decoder.blocks.1.norm1 decoder.blocks.1.conv1.conv decoder.blocks.1.norm2 decoder.blocks.1.conv2.conv
decoder.blocks.2.postconv.conv decoder.blocks.3.norm1 decoder.blocks.3.conv1.conv
decoder.blocks.3.norm2 decoder.blocks.3.conv2.conv decoder.blocks.3.nin_shortcut.conv
decoder.blocks.4 decoder.blocks.5.conv quant_conv_mu.conv quant_conv_log_sigma.conv
post_quant_conv.conv
"""  # of MONAI's AutoencoderKL with two levels, one block each, no attention


def images(net, batch: int = 2, size: int = 16):
    """(x, None, None, eps): arguments of the autoencoder."""
    x, eps = jnp.zeros((batch, size, size, 1)), size // net.factor
    x = x + jax.random.normal(jax.random.key(0), x.shape)
    return x, None, None, jnp.ones((batch, eps, eps, net.latent_channels))


def latents(channels: int = 3, condition: int | None = 3):
    z, s = (jnp.ones((2, 8, 8, c)) for c in (channels, condition or 1))
    return z, jnp.array([3, 900]), jnp.array([1, 2]), s if condition else None


def randomised(params, seed: int = 0):
    """No zeros in branches that start as identity."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: (0.3 * rng.standard_normal(p.shape)).astype(np.float32), params)


def ae_params(**settings):
    net = AutoencoderKL(**{**AE, **settings})
    return net, randomised(init_params(net, jax.random.key(0), *images(net)))


def unet_params(condition: int | None = 3, **settings):
    net = DiffusionModelUNet(**{**UNET, **settings})
    args = latents(condition=condition)
    return net, randomised(init_params(net, jax.random.key(0), *args))


# Networks


def test_autoencoder_has_the_interface_of_ours():
    net, params = ae_params()
    assert net.factor == 4
    x, label, patch, eps = images(net)
    x_hat, mean, logvar = net.apply({"params": params}, x, label, patch, eps)
    assert x_hat.shape == x.shape and mean.shape == logvar.shape == (2, 4, 4, 3)
    z = mean + jnp.exp(0.5 * logvar)
    decoded = net.apply({"params": params}, z, None, None, method="decode")
    np.testing.assert_allclose(x_hat, decoded, atol=1e-6)
    with pytest.raises(ValueError, match="patch_skip"):
        net.apply({"params": params}, x, label, {"mean": 0}, method="encode")


@pytest.mark.parametrize("condition, classes", [(3, 4), (None, 4), (6, 0)])
def test_unet_has_the_interface_of_ours(condition, classes):
    net, params = unet_params(condition, num_class_embeds=classes)
    args = latents(condition=condition)
    out = net.apply({"params": params}, *args)
    assert out.shape == (2, 8, 8, 3)
    other = net.apply({"params": params}, args[0], args[1], args[2] + 1, args[3])
    assert (classes > 0) == bool(jnp.abs(out - other).max() > 1e-3)
    assert ("class_embedding" in params) == (classes > 0)


def test_inference_remat_and_bfloat16_are_the_same_networks():
    for make_net, args in ((ae_params, None), (unet_params, latents())):
        net, params = make_net()
        args = args or images(net)
        first = jax.tree.leaves(net.apply({"params": params}, *args))[0]
        again = net.clone(remat=True).apply({"params": prepare_params(params)}, *args)
        np.testing.assert_allclose(jax.tree.leaves(again)[0], first, atol=1e-4)
        half = jax.tree.leaves(net.clone(dtype="bfloat16").apply({"params": params}, *args))[0]
        assert half.dtype == jnp.float32
        assert jnp.abs(half - first).max() < 0.1 * jnp.abs(first).max()


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (ae_params, {"num_res_blocks": (1, 2)}, "num_res_blocks has 2 values for 3 levels"),
        (ae_params, {"channels": (4, 6, 8)}, "multiples of norm_num_groups 4"),
        (unet_params, {"attention_levels": (True,)}, "attention_levels has 1 values"),
        (unet_params, {"num_head_channels": (3, 4)}, "num_head_channels 3 do not divide 4"),
        (unet_params, {"num_head_channels": (2, 0)}, "num_head_channels 0"),
        (unet_params, {"channels": (3, 6), "norm_num_groups": 3}, "odd"),
    ],
)
def test_what_monai_refuses_is_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_architecture_is_chosen_by_name():
    own = ae.get_config("tiny").recipe.model.to_dict()
    assert "architecture" not in own  # as in configs and checkpoints from before there was a choice
    assert build.make_autoencoder(own) == build.make_autoencoder({**own, "architecture": "cldm"})
    assert build.make_autoencoder({**AE, "architecture": "monai"}) == AutoencoderKL(**AE)
    with pytest.raises(ValueError, match="'monay'; known: cldm, monai"):
        build.make_latent_unet({"architecture": "monay"}, 3)


def test_one_step_read_out_needs_zero_terminal_snr():
    recipe = {
        **ldm.get_config("tiny").recipe.to_dict(),
        "autoencoder": {**AE, "architecture": "monai"},
    }
    recipe["optim"]["num_train_steps"] = 10
    make_method("ldm", **recipe)
    recipe["diffusion"]["schedule"] = "scaled_linear_plain"
    with pytest.raises(UserError, match="zero terminal SNR"):
        make_method("ldm", **recipe)


# Names


@pytest.mark.parametrize("make", [ae_params, unet_params])
def test_weights_survive_the_way_there_and_back(make):
    _, params = make()
    state = monai_names.to_state_dict(params)
    shapes = {name: value.shape for name, value in state.items()}
    assert shapes == monai_names.expected_shapes(params)
    assert sum(map(math.prod, shapes.values())) == sum(p.size for p in jax.tree.leaves(params))
    assert monai_names.explain(shapes, shapes) == ""
    back = monai_names.to_params(state, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, back))


def test_names_are_exactly_monais():
    plain = dict(with_encoder_nonlocal_attn=False, attention_levels=(False, False))
    _, params = ae_params(channels=(4, 8), num_res_blocks=1, **plain)
    wanted = {f"{name}.{kind}" for name in NAMES.split() for kind in ("weight", "bias")}
    assert monai_names.to_state_dict(params).keys() == wanted
    found = monai_names.to_state_dict(unet_params()[1]).keys()
    for name in (
        "conv_in.conv.weight",
        "time_embed.2.bias",
        "class_embedding.weight",
        "down_blocks.0.attentions.1.attn.to_k.weight",
        "down_blocks.0.downsampler.op.conv.bias",
        "middle_block.attention.attn.out_proj.weight",
        "middle_block.resnet_2.time_emb_proj.weight",
        "up_blocks.1.resnets.2.skip_connection.conv.weight",
        "up_blocks.0.upsampler.postconv.conv.weight",
        "out.0.weight",
        "out.2.conv.weight",
    ):
        assert name in found


def test_layouts():
    conv = np.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)  # OIHW
    assert monai_names._to_flax(conv)[1, 2, 0, 1] == conv[1, 0, 1, 2]
    np.testing.assert_array_equal(monai_names._to_torch(monai_names._to_flax(conv)), conv)


def test_combined_attention_matrices_are_split():
    _, params = unet_params()
    state, combined = monai_names.to_state_dict(params), {}
    for name, value in state.items():
        if ".attn.to_" not in name:
            combined[name] = value
        elif ".attn.to_q." in name:
            parts = [state[name.replace("to_q", f"to_{x}")] for x in "qkv"]
            combined[name.replace("to_q", "qkv")] = np.concatenate(parts)
    assert len(combined) < len(state)
    split = monai_names.split_qkv(combined)
    assert split.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(split[name], value)


@pytest.mark.parametrize(
    "make, settings, said",
    [
        (ae_params, {"num_res_blocks": (1, 1, 1)}, r"lacks decoder.*\(\d+ names differ\)"),
        (unet_params, {"num_res_blocks": (2, 2)}, "holds, against the settings, down_blocks"),
        (unet_params, {"num_class_embeds": 3}, r"weight \[3, \d+\], not .* \(1 shapes differ\)"),
        (unet_params, {"condition": None}, r"conv_in.conv.weight \[\d+, 3, 3, 3\], not \[\d+, 6"),
    ],
)
def test_the_first_parameter_that_differs_is_named(make, settings, said):
    found, wanted = (monai_names.expected_shapes(make(**s)[1]) for s in (settings, {}))
    assert re.search(said, monai_names.explain(found, wanted)), monai_names.explain(found, wanted)


@pytest.mark.parametrize(
    "name, said",
    [
        ("decoder.blocks.2.conv.conv.weight", "GenerativeModels"),
        ("encoder.blocks.2.to_q.weight", "GenerativeModels"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", "cross-attention"),
        ("down_blocks.0.downsampler.conv1.conv.weight", "resblock_updown"),
        ("decoder.blocks.2.deconv.weight", "use_convtranspose"),
    ],
)
def test_networks_of_other_kinds_are_named(name, said):
    assert said in monai_names.explain({name: (2, 2)}, {"x": (2, 2)})


def test_attention_without_its_projection_is_named():
    wanted = monai_names.expected_shapes(ae_params()[1])
    found = {name: shape for name, shape in wanted.items() if ".out_proj." not in name}
    assert "include_fc" in monai_names.explain(found, wanted)


@pytest.mark.slow
def test_the_command_takes_an_import_alone_and_accounts_for_it(capsys):
    config = monai_ldm.get_config("tiny")
    names = law.names(config)
    law.check_settings({**names, "train.num_train_steps": 0}, names)
    with pytest.raises(UserError, match="scale_factor=-1.0: out of range"):
        law.check_settings({**names, "autoencoder.scale_factor": -1.0}, names)
    dry_run.run(config, "never")
    assert "dry run of monai_ldm:tiny" in capsys.readouterr().out


def test_volumes_are_named():
    found = {"encoder.blocks.0.conv.weight": (4, 1, 3, 3, 3)}
    assert "3-D" in monai_names.explain(found, {"encoder.blocks.0.conv.weight": (4, 1, 3, 3)})


# Files


def tiny(module, study, tmp_path, **train_settings):
    """The tiny config of `module` (monai_ae or monai_ldm) on the study's people."""
    config = module.get_config("tiny")
    config.data.root = str(study.data_root)
    config.train.update(train_settings)
    return config


def weights_of(module, path, seed: int = 0, condition: int | None = 3) -> dict:
    """Random weights for the tiny networks of the config, saved as `path` under MONAI's names."""
    model = module.get_config("tiny").recipe.model.to_dict()
    del model["architecture"]
    if module is monai_ae:
        net = AutoencoderKL(**model)
        params = init_params(net, jax.random.key(0), *images(net))
    else:
        net = DiffusionModelUNet(latent_channels=3, **model)
        params = init_params(net, jax.random.key(0), *latents(condition=condition))
    state = monai_names.to_state_dict(randomised(params, seed))
    safetensors.numpy.save_file(state, path)
    return state


def imported(state, tmp_path, monkeypatch, content=None, key: str = ""):
    """(params, facts) of a PyTorch file that holds `content`, without torch."""
    config = monai_ae.get_config("tiny")
    config.init.weights, config.init.key = str(tmp_path / "ae.pt"), key
    (tmp_path / "ae.pt").touch()
    monkeypatch.setattr(foreign, "_load_torch", lambda path: state if content is None else content)
    model = config.recipe.model.to_dict()
    net = build.make_autoencoder(model)
    params = init_params(net, jax.random.key(0), *images(net))
    return monai.import_weights(config, params)


def test_state_dicts_are_found_in_checkpoints(tmp_path, monkeypatch):
    state = weights_of(monai_ae, tmp_path / "x.safetensors")
    other = {f"discriminator.{k}": v for k, v in state.items()}
    wrapped = {f"module.{k}": v for k, v in state.items()}
    optimizer = {"state": {0: {"exp_avg": np.zeros(3)}}, "param_groups": [{"lr": 1.0}]}
    plain, _ = imported(state, tmp_path, monkeypatch)
    content = {"epoch": 3, "autoencoder_state_dict": wrapped, "d": other, "optimizer": optimizer}
    params, facts = imported(state, tmp_path, monkeypatch, content)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, plain))
    assert facts.keys() == {"file", "sha256", "key"}
    assert (facts["file"], facts["key"]) == ("ae.pt", "autoencoder_state_dict")
    twice = {"model": {"net": state}, "ema": {k: v + 1 for k, v in state.items()}}
    with pytest.raises(
        UserError, match=r"several state dicts that fit \(model.net, ema\).*init.key"
    ):
        imported(state, tmp_path, monkeypatch, twice)
    shifted, facts = imported(state, tmp_path, monkeypatch, twice, key="ema")
    assert facts["key"] == "ema"
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b + 1), shifted, plain))
    with pytest.raises(UserError, match="no state dict 'emma'. It holds: model.net, ema"):
        imported(state, tmp_path, monkeypatch, twice, key="emma")
    with pytest.raises(UserError, match="none fits; a lacks.*init.key"):
        broken = {"a": dict(list(state.items())[:-1]), "d": other}
        imported(state, tmp_path, monkeypatch, broken)
    with pytest.raises(UserError, match="holds no state dict"):
        imported(state, tmp_path, monkeypatch, {"epoch": 3})


def test_unsound_and_old_weights_are_refused(tmp_path, monkeypatch):
    state = weights_of(monai_ae, tmp_path / "x.safetensors")
    name = next(iter(state))
    broken = {**state, name: state[name] * np.nan}
    with pytest.raises(UserError, match=f"ae.pt: {name} holds values that are not finite"):
        imported(broken, tmp_path, monkeypatch)
    old = {k.replace("postconv", "conv"): v for k, v in state.items()}
    with pytest.raises(UserError, match="GenerativeModels.*load_old_state_dict"):
        imported(old, tmp_path, monkeypatch)


def test_half_precision_is_read(tmp_path):
    value = np.array([[1.5, -2.25], [3e8, 0.0]], np.float32)
    bits = (value.view(np.uint32) >> 16).astype(np.uint16)
    header = b'{"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    data = len(header).to_bytes(8, "little") + header + bits.tobytes()
    (tmp_path / "b.safetensors").write_bytes(data)
    states = foreign.read_states(tmp_path / "b.safetensors")
    found = foreign.to_float32("b", states[""])["b"]
    np.testing.assert_allclose(found, value, rtol=1e-2)
    safetensors.numpy.save_file({"h": value[:1].astype(np.float16)}, tmp_path / "h.safetensors")
    states = foreign.read_states(tmp_path / "h.safetensors")
    found = foreign.to_float32("h", states[""])["h"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value[:1])


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file"):
        foreign.read_states(tmp_path / "none.pt")
    for damaged in (b"", b"not one", (99).to_bytes(8, "little") + b"{"):
        (tmp_path / "x.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="x.safetensors: not a safetensors file"):
            foreign.read_states(tmp_path / "x.safetensors")
    (tmp_path / "x.pt").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install torch. Or convert.*save_file"):
        foreign.read_states(tmp_path / "x.pt")


# Runs


@pytest.fixture(scope="module")
def runs(study, tmp_path_factory):
    """Folder with ae.safetensors, unet.safetensors, and the runs "ae" and "ldm" that only import them."""
    root = tmp_path_factory.mktemp("monai")
    for name, module in (("ae", monai_ae), ("unet", monai_ldm)):
        weights_of(module, root / f"{name}.safetensors")
    config = tiny(monai_ae, study, root, num_train_steps=0)
    config.init.weights = str(root / "ae.safetensors")
    make.run(config, str(root / "ae"))
    make.run(ldm_config(study, root), str(root / "ldm"))
    return root


def ldm_config(study, root, **train_settings):
    config = tiny(monai_ldm, study, root, **{"num_train_steps": 0, **train_settings})
    config.autoencoder.workdir = str(root / "ae")
    config.autoencoder.scale_factor = 0.5
    config.init.weights = str(root / "unet.safetensors")
    return config


def exported(run, out, **fields):
    config = export_config.get_config("tiny")
    config.run, config.format = str(run), "monai"
    config.update(fields)
    export.run(config, str(out))
    return files.read_json(out / "monai.json")


def test_an_import_is_a_finished_run(runs, study, capsys):
    for name, file in (("ae", "ae"), ("ldm", "unet")):
        manifest = files.read_json(runs / name / "run.json")
        path = runs / f"{file}.safetensors"
        sha256 = files.sha256_file(path)
        assert manifest["imported"] == {"file": path.name, "sha256": sha256, "key": ""}
        assert manifest["finished"] and manifest["step"] == 0 and manifest["best"] is None
        assert restore_for_inference(runs / name / "checkpoints")[0] == 0
    before = (runs / "ldm" / "run.json").read_bytes()
    make.run(ldm_config(study, runs), str(runs / "ldm"))
    assert "holds the imported weights" in capsys.readouterr().out
    assert (runs / "ldm" / "run.json").read_bytes() == before


def test_the_imported_networks_answer(runs, study):
    """The codec of the opened run computes what the network does with the file's weights."""
    run = stored.open_run(str(runs / "ldm"))
    assert list(run.method.predict) == ["sample", "mean4"] and run.step == 0
    stats = run.state.frozen["statistics"]
    assert (np.asarray(stats["mean"]) == 0).all() and (np.asarray(stats["std"]) == 2).all()
    config = ldm_config(study, runs)
    prepared = inputs.open_prepared(config.data)
    source = inputs.image_source(prepared, "test", ("ct", "mr"), config.data, slice_stride=8)
    codes = {"ct": 1, "mr": 2}
    entrant = readouts.make_entrants([run], ("ct", "mr"))[0]
    out = readouts.predict_entrant(entrant, "sample", source, codes, batch_size=4, seed=0)
    assert np.isfinite(out.images).all() and readouts.learning_curves(entrant) == {
        "ct": [],
        "mr": [],
    }
    model, variables, step = inputs.load_autoencoder(str(runs / "ae"))
    assert step == 0 and model["architecture"] == "monai"
    state = safetensors.numpy.load_file(runs / "ae.safetensors")
    net = build.make_autoencoder(model)
    x = images(net)[0]
    params = monai_names.to_params(state, variables["params"])
    want = net.apply({"params": params}, x, None, None, method="encode")[0]
    np.testing.assert_array_equal(run.codec.encode(variables, x, np.zeros(2, int)), want)


def test_export_gives_the_same_arrays_back(runs, tmp_path):
    card = exported(runs / "ldm", tmp_path / "both")
    for name, file in (("autoencoder", "ae"), ("unet", "unet")):
        path = tmp_path / "both" / card[name]["file"]
        assert files.sha256_file(path) == card[name]["sha256"]
        found, first = (
            safetensors.numpy.load_file(p) for p in (path, runs / f"{file}.safetensors")
        )
        assert found.keys() == first.keys()
        assert all(np.array_equal(found[k], first[k]) for k in first)
    keywords = card["unet"]["keywords"]
    assert (keywords["in_channels"], keywords["out_channels"]) == (6, 3)
    assert keywords["channels"] == [8, 16] and keywords["spatial_dims"] == 2
    assert "architecture" not in keywords and "dtype" not in keywords
    assert card["latent_statistics"]["std"][0] == [2.0] * 3 and card["class_codes"]["mr"] == 2
    assert card["imported"]["file"] == "unet.safetensors" and card["step"] == 0
    assert "unet" not in exported(runs / "ae", tmp_path / "ae")
    again = exported(runs / "ae", tmp_path / "both", overwrite=True)
    assert again["autoencoder"]["sha256"] == card["autoencoder"]["sha256"]
    for path in (tmp_path / "both").iterdir():
        assert str(runs).encode() not in path.read_bytes()


def test_the_usual_export_takes_imported_runs_too(runs, tmp_path):
    config = export_config.get_config("tiny")
    config.run = str(runs / "ldm")
    export.run(config, str(tmp_path))
    card = files.read_json(tmp_path / "model.json")
    assert card["training"]["imported"]["file"] == "unet.safetensors"
    opened = stored.open_run(str(tmp_path))
    assert opened.config["recipe"]["model"]["architecture"] == "monai"
    assert exported(tmp_path, tmp_path / "monai")["autoencoder"]["file"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "not MONAI's network.*configs/monai_ldm.py"),
        ({"dtype": "float16"}, "float32"),
        ({"steps": 5}, "no sampler"),
    ],
)
def test_exports_that_cannot_be_are_refused(study, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        exported(study.ldm, tmp_path, **fields)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fine_tuning_resumes_bit_for_bit_and_imports_once(runs, study, tmp_path):
    config = ldm_config(study, runs, num_train_steps=6, save_every=3, val_every=100)
    weights = tmp_path / "unet.safetensors"
    shutil.copy(runs / "unet.safetensors", weights)
    config.init.weights = str(weights)
    make.run(config, str(tmp_path / "whole"))
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "checkpoints" / "sha256-6.json").unlink()
    facts = files.read_json(cut / "run.json")["imported"]
    files.write_json(
        cut / "run.json", {**files.read_json(cut / "run.json"), "finished": False, "step": 3}
    )
    weights.unlink()  # a resumed run has no need of it
    make.run(config, str(cut))
    step, ours, _ = restore_for_inference(cut / "checkpoints")
    _, whole, _ = restore_for_inference(tmp_path / "whole" / "checkpoints")
    assert step == 6 and jax.tree.all(jax.tree.map(np.array_equal, ours, whole))
    assert files.read_json(cut / "run.json")["imported"] == facts is not None
    first = restore_for_inference(runs / "ldm" / "checkpoints")[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, whole)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1  # it began at the imported weights


@pytest.mark.parametrize(
    "steps, weights, message",
    [(0, "", "nothing to train or to import"), (2, "x.pt", "configs/monai_ae.py")],
)
def test_runs_that_cannot_be_are_refused(study, tmp_path, steps, weights, message):
    config = study.config("ae", num_train_steps=steps)
    config.init.weights = weights
    with pytest.raises(UserError, match=message):
        make.run(config, str(tmp_path / "run"))


def test_class_codes_need_their_rows(runs, study, tmp_path):
    for rows, targets, dropout, message in (
        (3, ("ct", "mr"), 0.1, r"no row for the class code of no class \(null_code\): 3"),
        (2, ("ct", "mr"), 0.0, "mr: 2"),
        (0, ("ct", "mr"), 0.0, "cannot tell ct from mr"),
    ):
        config = ldm_config(study, runs)
        config.recipe.model.num_class_embeds = rows
        config.recipe.diffusion.class_dropout_prob = dropout
        config.data.targets = targets
        with pytest.raises(UserError, match=message):
            inputs.open_inputs(config)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("unet", 2, "num_classes=2: has no row.*mr: 2"),
        ("ldm", 3, r"num_classes=3.*\(null_code\): 3"),
    ],
)
def test_so_do_those_of_our_networks(study, name, rows, message):
    config = study.config(name)
    config.recipe.model.num_classes = rows
    with pytest.raises(UserError, match=message):
        inputs.open_inputs(config)


@pytest.mark.parametrize("module", [ae, ldm])
def test_runs_from_before_these_settings_are_resumed(module, tmp_path):
    resolved = record.comparable(module.get_config("tiny"))
    old = {k: v for k, v in resolved.items() if k != "init"}
    if "autoencoder" in old:
        embedded = {k: v for k, v in old["autoencoder"]["train"].items() if k != "init"}
        old["autoencoder"] = {"workdir": old["autoencoder"]["workdir"], "train": embedded}
    files.write_json(tmp_path / "config.json", old)
    record.check_same_config(tmp_path, resolved)
    resolved["init"]["weights"] = "ae.pt"
    with pytest.raises(UserError, match="init.weights"):
        record.check_same_config(tmp_path, resolved)
