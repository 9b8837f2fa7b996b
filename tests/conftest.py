"""Set before JAX starts: CPU, two devices so that sharding is always exercised, no silent broadcast;
programs are compiled without LLVM's optimiser and by XLA's older emitters, in a sixth of the time: more
is saved than slower programs cost here.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=2",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # JAX 0.12, which Python 3.12 brings, has no older ones, and ends where it is told of them.
        *(["--xla_cpu_use_fusion_emitters=false"] if sys.version_info < (3, 12) else []),
    ]
)

import pathlib

import jax
import pytest

from cldm_jax.runtime import device

MANY_BYTES = 1.5 * 1024**3

jax.config.update("jax_numpy_rank_promotion", "raise")
device.enable_compilation_cache()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook, and is asked first else
def pytest_collection_modifyitems(items):
    """One worker per file, and one for all that uses the study, when run with `-n`."""
    for item in items:
        group = "study" if "study" in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _let_programs_go():
    """A worker that keeps every compiled program grows to 5 GB; one that keeps none compiles for long."""
    yield
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") > MANY_BYTES:
        jax.clear_caches()
        device.trim_heap()


class Study:
    """Every phase of the tiny preset, run once: paths only."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.data_root, self.ae, self.ldm, self.unet, self.report = (
            root / name for name in ("data", "ae", "ldm", "unet", "report")
        )
        self.prepared = self.data_root / "prepared"

    def config(self, name: str, **train):
        """The tiny config of a method on this study's data."""
        from configs import ae, ldm, unet

        config = {"ae": ae, "ldm": ldm, "unet": unet}[name].get_config("tiny")
        config.data.root = str(self.data_root)
        if name == "ldm":
            config.autoencoder.workdir = str(self.ae)
        config.train.update(train)
        return config


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Study:
    from cldm_jax.jobs import evaluate, make
    from configs import eval as eval_config

    made = Study(tmp_path_factory.mktemp("study"))
    for name in ("ae", "ldm", "unet"):
        make.run(made.config(name), str(getattr(made, name)))
    config = eval_config.get_config("tiny")
    config.runs = f"{made.unet},{made.ldm}"
    evaluate.run(config, str(made.report))
    return made
