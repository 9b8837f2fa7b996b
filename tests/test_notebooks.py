"""The notebooks: small, whole, without a trace of the machine they ran on. The slow test runs each."""

import ast
import os
import pathlib
import re
import shutil

import nbformat
import pytest

from cldm_jax.errors import UserError
from cldm_jax.runs.stored import read_stored, stored_method
from cldm_jax.volumes import opened
from configs import eval as eval_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
# A place on somebody's disk. Not "/" alone: ratios and dates have it as well.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(tmp|home|root|usr|opt|var|content|mnt|Users)/|\b[A-Z]:\\\w")


def read(path: pathlib.Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell) -> str:
    """All text of a cell that a reader can see."""
    parts = [cell.source]
    for output in cell.get("outputs", ()):
        found = [output.get("text", ""), *output.get("traceback", ())]
        found += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
        parts += ["".join(v) for v in found]
    return "\n".join(parts)


def test_all_six_are_there():
    assert [p.stem[:2] for p in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_as_a_reader_wants_it(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert "pip" in cells[0].source and "importlib.util.find_spec" in cells[0].source
    assert cells[0].source == code_cells(read(NOTEBOOKS[0]))[0].source  # one installer
    assert cells[-1].outputs
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))  # top to bottom
    kinds = [o.output_type for c in cells for o in c.outputs]
    assert "error" not in kinds
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.outputs)
    for cell in notebook.cells:
        assert not ABSOLUTE.search(words(cell)), words(cell)


@pytest.mark.parametrize("text", ["see /tmp/x", "/home/me/pet.nii", "'/mnt/a'", r"C:\data"])
def test_a_path_of_a_machine_is_seen(text):
    assert ABSOLUTE.search(text)


def defined(module: pathlib.Path) -> set[str]:
    """The names that a module or package of ours gives, without importing it."""
    names = {p.stem for p in module.glob("*") if p.is_dir() or p.suffix == ".py"}
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    for node in ast.parse(file.read_text()).body if file.is_file() else ():
        names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {getattr(node, "name", "")}
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
    return names


def unknown(source: str) -> list[str]:
    """Names of ours that the code imports, or takes from a module, and that are not there."""
    wrong, modules = [], {}
    tree = ast.parse("".join(s for s in source.splitlines(True) if not s.startswith("%")))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (ROOT / node.module.partition(".")[0]).is_dir():
            folder = ROOT / node.module.replace(".", "/")
            wrong += [
                f"{node.module}.{a.name}" for a in node.names if a.name not in defined(folder)
            ]
            files = {a.asname or a.name: folder / f"{a.name}.py" for a in node.names}
            modules |= {
                name: file.with_suffix("") for name, file in files.items() if file.is_file()
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and node.attr not in defined(module):
                wrong.append(f"{node.value.id}.{node.attr}")
    return wrong


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_it_takes_of_the_package_is_there(path):
    assert unknown("\n".join(cell.source for cell in code_cells(read(path)))) == []
    moved = "from cldm_jax.runs.readouts import predict_rows, open_run\n"
    assert unknown(moved) == ["cldm_jax.runs.readouts.open_run"]
    assert unknown("from cldm_jax.report import figures\nfigures.saved()") == ["figures.saved"]


def test_the_evaluation_asks_the_shipped_model_for_what_it_can():
    source = next(c.source for c in code_cells(read(NOTEBOOKS[3])) if "evaluate.run" in c.source)
    names = {"eval_config": eval_config, "opened": opened, "os": os, "WORK": ROOT}
    exec(source.partition("with contextlib")[0], names)
    sampling = names["config"].sampling.to_dict()
    stored_method(read_stored(str(opened.PHANTOM)), sampling)
    with pytest.raises(UserError, match="younger"):
        stored_method(read_stored(str(opened.PHANTOM)), {**sampling, "autoguidance_scale": 2.0})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_a_fresh_clone(path, tmp_path, monkeypatch):
    """With nothing made before: neither data nor compiled programs; no package is installed."""
    from nbclient import NotebookClient

    for name in ("cldm_jax", "configs", "faults", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setenv("CLDM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # of conftest.py: two devices
    notebook = read(path)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    assert code_cells(notebook)[-1].outputs
    assert not os.path.exists(tmp_path / "notebooks" / "runs")
