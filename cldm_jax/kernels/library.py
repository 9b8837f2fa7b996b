"""Loads the compiled kernels, registers them with XLA and wraps each as a function of arrays.

`choose("xla")` switches them off for what is traced from then on.
"""

import contextlib
import ctypes
import functools
import logging
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp

from cldm_jax.kernels import build

CACHE_ENV = "CLDM_CACHE_DIR"  # the compilation cache's folder too; "" = keep nothing
MODES = ("native", "xla")
_mode = "native"


def choose(mode: str) -> None:
    """ "native": compiled kernels where they can be had and pay; "xla": XLA's own operations only."""
    global _mode
    _mode = mode


def cache_folder() -> pathlib.Path | None:
    """Where compiled things are kept: CLDM_CACHE_DIR, or a folder in the user's cache; None = nowhere, as
    for a user without a home.
    """
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    default = "" if home.startswith("~") else os.path.join(home, "cldm_jax")
    folder = os.environ.get(CACHE_ENV, default)
    return pathlib.Path(folder) if folder else None


@functools.cache
def _load() -> ctypes.CDLL | None:
    folder = cache_folder()
    try:
        with contextlib.ExitStack() as stack:
            if folder is None:  # a loaded library lives on
                temporary = tempfile.TemporaryDirectory(prefix="cldm_jax-")
                folder = pathlib.Path(stack.enter_context(temporary))
            library = ctypes.CDLL(str(build.build(jax.ffi.include_dir(), folder)))
    except (build.BuildError, OSError) as error:
        logging.warning("CPU kernels: %s. Going on with XLA's slower convolution.", error)
        return None
    for name in ("conv", "kernel_conv", "weights", "weight_gradient"):
        handler = jax.ffi.pycapsule(getattr(library, f"cldm_winograd_{name}"))
        jax.ffi.register_ffi_target(f"cldm_winograd_{name}", handler, platform="cpu")
    return library


def is_enabled() -> bool:
    """Whether code traced now may use the kernels: one CPU device, and a library that loads.

    Over several devices XLA would gather the batch in front of a foreign call; a CPU has several only
    where they are simulated.
    """
    if _mode != "native" or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    return _load() is not None


def describe() -> str:
    """For the run manifest."""
    if jax.default_backend() != "cpu":
        return jax.default_backend()
    return "native" if is_enabled() else "xla"


def _panel() -> int:
    return _load().cldm_panel()


def _array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def winograd_conv(x, kernel, bias=None, flip: bool = False):
    """x [N, H, W, C], kernel [3, 3, C, K], bias [K] -> [N, H, W, K].

    flip: the gradient with respect to the input instead: x [N, H, W, K] -> [N, H, W, C].
    """
    out = _array(*x.shape[:3], kernel.shape[2 if flip else 3])
    bias = jnp.zeros((0,)) if bias is None else bias
    return jax.ffi.ffi_call("cldm_winograd_kernel_conv", out)(x, kernel, bias, flip=flip)


def winograd_weights(kernel):
    """kernel [3, 3, C, K] -> weights for `winograd_conv_prepared`: opaque, 4 times the size."""
    panels = -(-kernel.shape[3] // _panel())
    out = _array(36, panels, kernel.shape[2], _panel())
    return jax.ffi.ffi_call("cldm_winograd_weights", out)(kernel)


def winograd_conv_prepared(x, weights, bias):
    """`winograd_conv` with weights of `winograd_weights`, bias [K]."""
    out = _array(*x.shape[:3], bias.shape[0])
    return jax.ffi.ffi_call("cldm_winograd_conv", out)(x, weights, bias)


def winograd_weight_gradient(x, g):
    """x [N, H, W, C], gradient of the output g [N, H, W, K] -> gradient of the kernel [3, 3, C, K]."""
    out = _array(3, 3, x.shape[-1], g.shape[-1])
    return jax.ffi.ffi_call("cldm_winograd_weight_gradient", out)(x, g)
