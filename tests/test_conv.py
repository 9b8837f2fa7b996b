"""The compiled convolution against XLA's, forward and both gradients, and where it is chosen."""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cldm_jax.kernels import build, library
from cldm_jax.models import conv
from cldm_jax.models.layers import Conv

ROOT = pathlib.Path(__file__).resolve().parent.parent
RTOL = 1e-4


@pytest.fixture
def native(monkeypatch):
    """The compiled kernels, although the suite simulates two devices."""
    if library._load() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setattr(library, "is_enabled", lambda: True)


def reference(x, kernel, bias):
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + bias[None, None, None]


def assert_close(actual, expected):
    """Relative to the largest element, which is what float32 Winograd promises."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= RTOL * np.abs(expected).max()


def arrays(n, h, w, c, k, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (n, h, w, c), (3, 3, c, k), (k,), (n, h, w, k)
    return [rng.standard_normal(s, dtype=np.float32) for s in shapes]


# Odd sizes, ragged tiles, partial vectors and panels, several blocks of tiles, one row, one column.
SHAPES = [
    (1, 1, 1, 8, 8),
    (1, 4, 4, 8, 8),
    (2, 5, 7, 9, 13),
    (3, 1, 17, 16, 24),
    (1, 19, 2, 33, 40),
    (8, 16, 16, 32, 48),
    (2, 56, 48, 16, 32),
    (4, 8, 8, 130, 70),
    (1, 64, 64, 24, 96),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradients_equal_xla(native, shape):
    x, kernel, bias, g = arrays(*shape)
    expected, pull = jax.vjp(reference, x, kernel, bias)
    actual, native_pull = jax.vjp(conv._winograd, x, kernel, bias)
    assert_close(actual, expected)
    for a, e in zip(native_pull(g), pull(g), strict=True):
        assert_close(a, e)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 21), st.integers(1, 21), *[st.integers(1, 70)] * 2),
    st.integers(0, 2**16),
)
def test_any_shape_equals_xla(shape, seed):
    if library._load() is None:
        pytest.skip("no C++ compiler on this machine")
    x, kernel, bias, g = arrays(*shape, seed=seed)
    expected, pull = jax.vjp(reference, x, kernel, bias)
    dx, dkernel, _ = pull(g)
    weights = library.winograd_weights(kernel)
    assert_close(library.winograd_conv_prepared(x, weights, bias), expected)
    assert_close(library.winograd_conv(x, kernel, bias), expected)
    assert_close(library.winograd_conv(g, kernel, flip=True), dx)
    assert_close(library.winograd_weight_gradient(x, g), dkernel)


def test_conv2d_uses_the_kernel_only_where_it_is_made_for(native):
    def is_native(x_shape, kernel_shape, stride=1, dtype=jnp.float32):
        def f(x, kernel):
            return conv.conv2d(x, kernel, jnp.zeros(kernel_shape[-1], dtype), stride)

        shapes = (jax.ShapeDtypeStruct(s, dtype) for s in (x_shape, kernel_shape))
        return "winograd" in str(jax.make_jaxpr(f)(*shapes))

    assert is_native((8, 16, 16, 32), (3, 3, 32, 32))
    assert not is_native((8, 16, 16, 32), (3, 3, 32, 32), stride=2)
    assert not is_native((8, 16, 16, 32), (1, 1, 32, 32))
    assert not is_native((8, 16, 16, 4), (3, 3, 4, 32))
    assert not is_native((1, 4, 4, 32), (3, 3, 32, 32))
    assert not is_native((8, 16, 16, 32), (3, 3, 32, 32), dtype=jnp.bfloat16)


def test_prepared_parameters_give_the_same_image(native):
    module = Conv(24)
    x = arrays(2, 12, 12, 16, 24)[0]
    params = module.init(jax.random.key(0), x)["params"]
    prepared = conv.prepare_params({"a": {"b": params}, "scalar": 1.0})["a"]["b"]
    assert set(prepared) == {"kernel", "bias", "winograd"}
    one, other = (module.apply({"params": p}, x) for p in (params, prepared))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("settings", [{"stride": 2}, {"dtype": jnp.bfloat16}], ids=str)
def test_a_conv_not_made_for_the_kernel_ignores_prepared_weights(native, settings):
    module = Conv(24, **settings)
    x = arrays(2, 12, 12, 16, 24)[0]
    params = module.init(jax.random.key(0), x)["params"]
    one, other = (module.apply({"params": p}, x) for p in (params, conv.prepare_params(params)))
    np.testing.assert_array_equal(one, other)


def test_without_kernels_parameters_stay_as_they_are():
    params = {"conv": {"kernel": np.zeros((3, 3, 16, 16), np.float32), "bias": np.zeros(16)}}
    assert jax.device_count() == 2 and not library.is_enabled()
    assert set(conv.prepare_params(params)["conv"]) == {"kernel", "bias"}


CHILD = """
import jax, numpy as np, jax.numpy as jnp
from cldm_jax.kernels import library
from cldm_jax.models.conv import conv2d
{prepare}
rng = np.random.default_rng(0)
x, k = (rng.standard_normal(s, dtype=np.float32) for s in ((4, 20, 20, 32), (3, 3, 32, 32)))
y = jax.jit(lambda x: conv2d(x, k, jnp.zeros(32)))(x)
print(library.describe(), np.asarray(y).tobytes().hex()[:64], float(jnp.square(y).sum()))
"""


def child(tmp_path, prepare="", **env):
    """Runs CHILD with one device; returns (CompletedProcess, printed words)."""
    env = {"CLDM_CACHE_DIR": str(tmp_path / "cache"), "XLA_FLAGS": "", **env}
    code = CHILD.format(prepare=prepare)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done, done.stdout.split()


def test_compiled_once_then_found(native, tmp_path):
    first, words = child(tmp_path)
    assert words[0] == "native" and "compiling" in first.stderr
    assert len(list((tmp_path / "cache").glob("kernels-*.so"))) == 1
    second, again = child(tmp_path)
    assert again == words and "compiling" not in second.stderr


def test_result_does_not_depend_on_the_number_of_threads(native, tmp_path):
    _, one = child(tmp_path, NPROC="1", PJRT_NPROC="1")
    _, two = child(tmp_path, NPROC="2", PJRT_NPROC="2")
    assert one == two


def test_without_a_cache_folder_nothing_is_kept(native, tmp_path):
    done, words = child(tmp_path, CLDM_CACHE_DIR="", TMPDIR=str(tmp_path))
    assert words[0] == "native" and "compiling" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", [None, ""])
def test_a_user_without_a_home_keeps_nothing(monkeypatch, base):
    """A number alone, as in a container: neither a traceback nor a folder `~`."""

    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", library.CACHE_ENV):
        monkeypatch.delenv(name, raising=False)
    if base is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert library.cache_folder() is None
    monkeypatch.setenv("HOME", "/home/x")
    assert library.cache_folder() == pathlib.Path("/home/x/.cache/cldm_jax")
    monkeypatch.setenv(library.CACHE_ENV, "/there")
    assert library.cache_folder() == pathlib.Path("/there")


def test_xla_mode_and_a_missing_compiler_fall_back(tmp_path):
    _, switched_off = child(tmp_path, prepare="library.choose('xla')")
    assert switched_off[0] == "xla"
    broken, words = child(tmp_path, CXX="/nowhere/c++")
    assert words == switched_off
    assert "/nowhere/c++" in broken.stderr and "XLA's slower convolution" in broken.stderr


def test_a_failing_compiler_is_quoted(tmp_path, monkeypatch):
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho 'x.cc:1: error: no such flag' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(build.BuildError, match="no such flag"):
        build.build(jax.ffi.include_dir(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


TRAINING = """
import sys
import tempfile
sys.path[:0] = ["tests"]
import jax
import test_methods
from cldm_jax.kernels import library
library.choose(sys.argv[1])
method, state, batch = test_methods.start("unet", num_train_steps=100)
assert ("winograd" in str(jax.make_jaxpr(method.train_step)(state, batch, jax.random.key(0)))) == (
    sys.argv[1] == "native"
)
step = jax.jit(method.train_step)
for i in range(100):
    state, metrics = step(state, batch, jax.random.key(i))
    print(float(metrics["loss"]))
"""


@pytest.mark.slow
def test_hundred_training_steps_have_the_losses_of_xla(native, tmp_path):
    """Float rounding grows from step to step; the losses stay together for all that."""
    losses = {}
    for mode in library.MODES:
        env = {**os.environ, "XLA_FLAGS": ""}
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, mode],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        losses[mode] = np.array([float(line) for line in done.stdout.split()])
    assert len(losses["xla"]) == 100 and losses["xla"][-1] < 0.7 * losses["xla"][0]
    np.testing.assert_allclose(losses["native"][:20], losses["xla"][:20], rtol=1e-4)
    np.testing.assert_allclose(losses["native"], losses["xla"], rtol=1e-2)


def test_without_a_temporary_folder_xla_convolves(monkeypatch, caplog):
    """A full disk, or a container that may write nowhere: it was refused as if --out were at fault."""
    monkeypatch.setenv(library.CACHE_ENV, "")

    def nowhere(*args):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", nowhere)
    assert library._load.__wrapped__() is None
    assert "No usable temporary directory found. Going on with XLA's" in caplog.text
