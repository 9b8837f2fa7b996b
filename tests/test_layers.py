"""Which room may import which, and the presets of every config: both read from the code itself."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from cldm_jax.settings import JOBS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cldm_jax"
PRESETS = ("tiny", "quick", "cpu", "cpu1mm", "a6000", "multi")

# Room -> (rooms or modules of ours it may import, outside libraries it may import).
# Everyone may also import the base (console, errors, files), its own room and the standard library.
RULES = {
    "base": ("", ""),
    "__init__": ("volumes.synthesiser", ""),
    "main": ("jobs runtime kernels usage settings", "absl jax ml_collections"),
    "settings": ("", "ml_collections"),
    "predict": ("jobs runtime", "absl"),
    "jobs": (
        "runs scoring volumes uses methods data phantom metrics report runtime",
        "jax numpy clu",
    ),
    "volumes": ("runs data metrics report runtime.device runtime.progress", "jax numpy"),
    "scoring": ("runs data metrics report runtime.device", "jax numpy"),
    "runs": ("methods models.conv models.monai_names data metrics runtime", "jax numpy"),
    "methods": ("models diffusion runtime.train_state runtime.optim", "jax flax optax numpy"),
    "kernels": ("", "jax"),
    "models": ("kernels", "jax flax numpy"),
    "diffusion": ("", "jax numpy"),
    "runtime": ("kernels", "jax flax optax numpy orbax safetensors tensorboardX clu tqdm torch"),
    "data": ("", "numpy scipy grain nibabel pydicom SimpleITK"),
    "phantom": ("data.nifti", "numpy scipy"),
    "metrics": ("", "numpy scipy"),
    "uses": ("data metrics phantom", "numpy scipy"),
    "report": ("metrics", "numpy matplotlib PIL jinja2"),
}
# A library whose interface may change is spoken to in one place.
ONLY_IN = {
    "nibabel": ("data.nifti",),
    "pydicom": ("data.dicom_header",),
    "SimpleITK": ("data.register",),
    "grain": ("data.pipeline",),
    "orbax": ("runtime.checkpoint",),
    "safetensors": ("runtime.weights",),
    "torch": ("runtime.foreign",),
    "tensorboardX": ("runtime.writers",),
    "clu": ("runtime.writers", "jobs.train"),
}
# All that one method may import from the others.
SHARED_METHODS = tuple(
    f"methods.{m}" for m in ("base", "common", "codec", "adversarial", "readings")
)


def is_inside(module: str, rooms) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def imports(source: str, module: str):
    """Full dotted names imported anywhere in the source of `module`, lazy imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = f"cldm_jax.{module}".split(".")[: -node.level] if node.level else []
            base = ".".join([*parent, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    """What `module` (dotted, below cldm_jax) imports against the rules."""
    room = module.split(".")[0]
    ours, outside = (rule.split() for rule in RULES[room if room in RULES else "base"])
    wrong = []
    for name in imports(source, module):
        top, _, rest = name.partition(".")
        if top == "cldm_jax":
            allowed = is_inside(
                rest, ("", "console", "errors", "files", "__version__", room, *ours)
            )
            if is_inside(rest, ("runtime.progress",)):
                allowed = (
                    room in ("jobs", "volumes") or module == "runtime.processes"
                )  # which silences it
            if room == "methods" != module and is_inside(rest, ("methods",)):
                allowed = module == "methods.registry" or is_inside(rest, SHARED_METHODS)
        elif top in sys.stdlib_module_names:
            allowed = True
        else:
            allowed = top in outside and module in ONLY_IN.get(top, (module,))
        if not allowed:
            wrong.append(name)
    return wrong


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_follow_the_rules(path):
    assert violations(path.read_text(), module_name(path)) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("data.shards", "import jax.numpy as jnp"),
        ("data.shards", "def f():\n    import jax"),
        ("data.audit", "import nibabel"),
        ("metrics.image", "from cldm_jax.data import nifti"),
        ("metrics.image", "from ..data.nifti import read_volume"),
        ("models.unet", "from cldm_jax import diffusion"),
        ("models.unet", "import ml_collections"),
        ("diffusion.schedule", "from flax import linen"),
        ("methods.regression", "from cldm_jax.methods.autoencoder import make"),
        ("methods.regression", "from cldm_jax.runtime import checkpoint"),
        ("phantom.anatomy", "from cldm_jax.data import shards"),
        ("runtime.sharding", "from cldm_jax.runtime.progress import Progress"),
        ("runtime.optim", "import orbax.checkpoint as ocp"),
        ("runtime.weights", "def f():\n    import torch"),
        ("jobs.export", "from cldm_jax.models.monai import AutoencoderKL"),
        ("uses.tissue", "from cldm_jax.report import tables"),
        ("jobs.train", "from configs import ae"),
        ("runs.inputs", "def f():\n    from cldm_jax.jobs import train"),
        ("scoring.scorer", "from cldm_jax.volumes import synthesis"),
        ("jobs.train", "import tensorflow"),
        ("errors", "import numpy"),
    ],
)
def test_a_forbidden_import_is_seen(module, source):
    assert violations(source, module) != []


def test_allowed_imports_pass():
    assert violations("from . import image\nfrom .image import psnr", "metrics.scores") == []
    assert violations("from cldm_jax.methods import regression", "methods.registry") == []
    assert violations("from cldm_jax.data.nifti import write_volume", "phantom.cohort") == []
    assert violations("from cldm_jax import __version__, files\nimport json", "jobs.train") == []


def test_every_job_has_its_module():
    for job in JOBS:
        assert (PACKAGE / "jobs" / f"{job}.py").is_file(), job


@pytest.mark.parametrize("job", [job for job, uses_jax in JOBS.items() if not uses_jax])
def test_job_without_jax_never_imports_it(job):
    """Neither directly nor through anything it imports: its worker processes start in a moment."""
    if not (PACKAGE / "jobs" / f"{job}.py").is_file():
        pytest.skip(f"cldm_jax/jobs/{job}.py does not exist yet")
    code = (
        f"import sys, cldm_jax.jobs.{job}\n"
        "sys.exit(', '.join({'jax', 'jaxlib', 'flax', 'optax', 'grain'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def configs_with_a_job() -> list[str]:
    paths = sorted((ROOT / "configs").glob("*.py"))
    return [path.stem for path in paths if "def get_config(" in path.read_text()]


@pytest.fixture
def get_config(request, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"configs.{request.param}").get_config


def test_there_are_configs():
    assert {"ae", "ldm", "unet", "simulate"} <= set(configs_with_a_job())


@pytest.mark.parametrize("get_config", configs_with_a_job(), indirect=True)
def test_config_builds_at_every_preset(get_config):
    for preset in PRESETS:
        config = get_config(preset)
        assert config.preset == preset
        assert config.job in JOBS
    assert get_config().preset == "a6000"


@pytest.mark.parametrize("get_config", configs_with_a_job(), indirect=True)
def test_config_refuses_an_unknown_preset(get_config):
    with pytest.raises(ValueError) as refused:
        get_config("huge")
    assert "huge" in str(refused.value)
    for preset in PRESETS:
        assert preset in str(refused.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_import_only_ml_collections(path):
    names = {name.split(".")[0] for name in imports(path.read_text(), "configs")}
    assert names <= {"configs", "ml_collections", *sys.stdlib_module_names}
