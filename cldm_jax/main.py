"""The door: one flag file, one job looked up by name. A notebook needs nothing from here.

.venv/bin/python -m cldm_jax.main --config=configs/ae.py:quick
.venv/bin/python -m cldm_jax.main --config=configs/ldm.py:quick --config.train.batch_size=16
"""

import importlib
import logging
import os
import pathlib
import re
import sys
import traceback
import types

from cldm_jax import console

if __name__ == "__main__":  # before anything that an interpreter may lack
    console.start("cldm_jax.main")

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags

from cldm_jax import errors, settings, usage
from cldm_jax.errors import UserError
from cldm_jax.runtime import device
from cldm_jax.settings import JOBS

_MODULES = {"train": "make"}  # a training, after what it needs
MADE_FOR = ("preset", "job", "method", "data.kind")  # what a config's settings belong to
SHARED_JOBS = ("train", "encode", "evaluate", "predict")  # what several processes can do as one

_CONFIGS, _PACKAGE = pathlib.Path("configs"), pathlib.Path(__file__).resolve().parent
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and preset, e.g. configs/ldm.py:quick.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder of this run; default runs/<config>-<preset>. The same command resumes it.",
)
_CACHE = flags.DEFINE_bool(
    "cache", True, "Keep compiled programs and kernels in the user's cache folder (at most 2 GB)."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print what a training would need (memory, arithmetic, hours) and stop."
)
_DRY_RUN_DEVICES = flags.DEFINE_integer(
    "dry_run_devices", 0, "Devices to plan for without having them; default 1, preset multi 4.", 0
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes of one run, as Slurm, Open MPI, Kubernetes or Cloud TPU say.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Where they do not say it: host:port of process 0, for all processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many there are.", 1)
_PROCESS = flags.DEFINE_integer(
    "process", None, "With --coordinator: which one this is, from 0.", 0
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of a user error.")

_OWN_FLAGS = (_CONFIG, _WORKDIR, _CACHE, _DRY_RUN, _DRY_RUN_DEVICES)
_OWN_FLAGS += (_DISTRIBUTED, _COORDINATOR, _PROCESSES, _PROCESS, _DEBUG)


def main(argv) -> None:
    absl_logging.use_absl_handler()
    logging.getLogger().setLevel(logging.WARNING)
    config = _CONFIG.value
    stem = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = os.path.expanduser(_WORKDIR.value) or os.path.join("runs", f"{stem}-{config.preset}")
    job = "dry_run" if _DRY_RUN.value else _MODULES.get(config.job, config.job)
    try:
        if _DRY_RUN.value:
            config = device.plan_for(config, _DRY_RUN_DEVICES.value)
        if JOBS[config.job]:
            device.limit_arenas()
            device.enable_compilation_cache(_CACHE.value)
            device.choose_kernels(config.kernels)
        module = importlib.import_module(f"cldm_jax.jobs.{job}")
        if not (_DISTRIBUTED.value or _COORDINATOR.value):
            if JOBS[config.job]:
                device.check()
            module.run(config, workdir)
            return
        if config.job not in SHARED_JOBS:
            remedy = f"Start it once. For several processes: {', '.join(SHARED_JOBS)}"
            raise UserError(f"job '{config.job}'", "is one process's work", remedy)
        _run_distributed(lambda: module.run(config, workdir))
    except (UserError, OSError) as error:
        # A broken pipe: whoever read the output left, which is no fault of a disk.
        if _DEBUG.value or isinstance(error, BrokenPipeError):
            raise
        console.refuse(errors.of_system(error, workdir))


def _run_distributed(run) -> None:
    """`run` in one of several processes. What stops one ends it at once, and so all: nobody waits."""
    from cldm_jax.runtime import processes

    processes.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    try:
        with processes.losses_named():
            device.check()
            run()
    except Exception as error:
        is_named = isinstance(error, UserError)
        if processes.count() > 1:
            if is_named and not _DEBUG.value:
                print(f"error: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            processes.leave(2 if is_named else 1)
        raise


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with one line for what is misspelt or impossible: the flags_parser of `app.run`.

    For a job that computes the process may start again (`device.use_huge_pages`).
    """
    try:
        return _parse(argv, before_jax=device.use_huge_pages)
    except UserError as error:
        if "--debug" in argv:
            raise
        console.refuse(error)


def _parse(argv: list[str], before_jax=lambda: None) -> list[str]:
    argv = [re.sub("^--?dry-run(?=$|=)", "--dry_run", a) for a in argv]
    try:
        argv = flags.FLAGS.read_flags_from_files(argv)  # which may name the config
    except flags.Error as error:
        raise UserError("--flagfile", str(error), "Give a file of flags, one a line") from error
    if any(a in ("--help", "-help", "-h", "--helpshort") for a in argv[1:]):
        print(_help(argv))
        sys.exit(0)
    if sum(re.match(r"--?config(=|$)", a) is not None for a in argv[1:]) > 1:
        raise UserError("--config", "given twice", "Name one config and preset")
    known = settings.names(_load_config(argv))
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if match and match[1] not in known:
            nearest = settings.nearest(match[1], known, "--config.")
            raise UserError(f"--config.{match[1]}", "no such setting", nearest)
    try:
        rest = flags.FLAGS(_with_located(argv))
    except flags.UnrecognizedFlagError as error:
        names = [*(f"config.{n}" for n in known), *(f.name for f in _OWN_FLAGS)]
        remedy = settings.nearest(error.flagname, names, "--")
        raise UserError(f"--{error.flagname}", "no such flag", remedy) from error
    except (flags.Error, TypeError, ValueError, IndexError) as error:
        raise UserError(*settings.wrong_type(str(error), argv, known)) from error
    if len(rest) > 1:
        remedy = "Settings look like --config.seed=1"
        raise UserError(repr(rest[1]), "neither a flag nor a setting", remedy)
    _expand_home(_CONFIG.value)
    if JOBS.get(_CONFIG.value.get("job")):
        before_jax()  # which a check may load: words are looked up where the code keeps them
    given = settings.names(_CONFIG.value)
    settings.check_settings(given, known)
    settings.check_sampling(_CONFIG.value, "")
    _check_made(given, known, _given_config(argv).partition(":")[0])
    return rest


def _check_made(given: dict, known: dict, path: str) -> None:
    """UserError for an override of what a config was made for: its other settings are made already."""
    # The job without a config of its own.
    is_encoding = given.get("job") == "encode" and "encode_batch_size" in known
    for name in MADE_FOR:
        if given.get(name) == known.get(name) or (name == "job" and is_encoding):
            continue
        remedy = f"Name the preset in --config={path}:PRESET"
        if name != "preset":
            remedy = f"{path} is made for {known[name]}: give another config; --help lists them"
        raise UserError(f"--config.{name}={given[name]}", "changes no other setting", remedy)


def _expand_home(section) -> None:
    """`~` begins a home also behind a `=` or a comma, where the shell leaves it alone."""
    for key, value in section.items(preserve_field_references=True):
        if isinstance(value, config_dict.ConfigDict):
            _expand_home(value)
        elif isinstance(value, str) and "~" in value:
            section[key] = ",".join(os.path.expanduser(part) for part in value.split(","))


def _help(argv: list[str]) -> str:
    """Of everything, or of the config that argv names."""
    path, _, preset = _located(_given_config(argv)).partition(":")
    if not path:
        names = (f.name for f in _OWN_FLAGS)
        return usage.overview(_find_configs(), [(name, flags.FLAGS[name].help) for name in names])
    values = settings.names(_load_config(argv))
    leaves = {k: v for k, v in values.items() if not isinstance(v, config_dict.ConfigDict)}
    return usage.settings(pathlib.Path(path), str(leaves.get("preset", preset)), leaves)


def _given_config(argv: list[str]) -> str:
    given = ""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        if re.match(r"--?config(=|$)", argument):
            given = argument.partition("=")[2] if "=" in argument else following
    return given


def _find_configs() -> pathlib.Path:
    """The folder of configs: the working folder's, as in a checkout, else the one that was installed."""
    places = (_CONFIGS, _PACKAGE / "configs", _PACKAGE.parent / "configs")
    found = next((p for p in places if (p / "common.py").is_file()), _CONFIGS)
    if found != _CONFIGS and "configs" not in sys.modules:  # where configs import each other from
        package = sys.modules["configs"] = types.ModuleType("configs")
        package.__path__ = [str(found), str(_CONFIGS)]
    return found


def _located(given: str) -> str:
    """A file of configs/ (and preset) as given; the installed one where the working folder has none."""
    path, colon, preset = os.path.expanduser(given).partition(":")
    installed = _find_configs() / pathlib.Path(path).name
    is_ours = pathlib.Path(path).parent == _CONFIGS and installed.is_file()
    return f"{installed if is_ours and not os.path.isfile(path) else path}{colon}{preset}"


def _with_located(argv: list[str]) -> list[str]:
    """argv with its config where it lies."""
    given = _given_config(argv)
    words = (given, f"-config={given}", f"--config={given}")
    return [a.removesuffix(given) + _located(given) if a in words else a for a in argv]


def _load_config(argv: list[str]):
    """The config that argv names, before its overrides. Raises UserError where it names none."""
    given = _given_config(argv)
    path, _, preset = given.partition(":")
    if not pathlib.Path(_located(path)).is_file():
        known = {str(_CONFIGS / p.name): p for p in _find_configs().glob("*.py")}
        example = "Give a config file and a preset, like --config=configs/ldm.py:quick"
        meant = path if path in known else str(_CONFIGS / f"{pathlib.Path(path).stem}.py")
        is_given = path and known
        remedy = settings.nearest(meant, known, "--config=") if is_given else example
        raise UserError(f"--config={given}", "no such config file", remedy)
    try:
        return flags.FLAGS["config"].parser.parse(_located(given))
    except Exception as error:  # a config is a program
        own = error.__context__ or error  # ml_collections quotes a whole traceback
        words = re.findall(r"\w+", str(own).partition("known:")[2])
        if preset and preset not in words and words:
            remedy = settings.nearest(preset, words, "the preset ")
            raise UserError(f"--config={given}", str(own), remedy) from error
        reason = f"cannot be loaded ({type(own).__name__}: {own})"
        raise UserError(path, reason, "Repair it; --debug shows where") from error


if __name__ == "__main__":
    console.run(lambda: app.run(main, flags_parser=parse_flags))
