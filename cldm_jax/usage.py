"""What --help says: the jobs and presets there are, or every setting of one config.

Read from the config files themselves: their docstrings, and the comments beside their settings.
"""

import ast
import io
import pathlib
import shlex
import textwrap
import tokenize

from cldm_jax import console

WIDTH = 110
USAGE = "--config=configs/NAME.py:PRESET [--workdir=DIR] [--config.SETTING=X]"
# Sections that are another file's config, and are shown with that one.
ELSEWHERE = {
    "simulate": "simulate.py",
    "prepare": "prepare.py",
    "autoencoder.train": "ae.py",
    "eval": "eval.py",
    "trainings": "*.py of each training",
}
# Files whose settings others take over.
SHARED = ("common", "unet", "ldm", "ae", "cyclegan", "simulate")


def overview(folder: pathlib.Path, flags: list[tuple[str, str]]) -> str:
    """All configs and presets. flags: (name, what it does) of main's own."""
    main = console.command("cldm_jax.main")
    lines = [f"usage: {main} {USAGE}", "", "What there is to run (configs):"]
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("common", "__init__"):
            lines += _entry(f"{path.stem}.py", _docstring(path).splitlines()[0])
    _, _, presets = _docstring(folder / "common.py").partition("another method:\n")
    lines += ["", "Presets:", presets.rstrip(), "", "Flags:"]
    for name, text in flags:
        lines += _entry(f"--{name}", text)
    lines += ["", "Every setting of one of them, with its default:"]
    lines += [f"  {main} --config=configs/ldm.py:quick --help", ""]
    return "\n".join(lines)


def settings(path: pathlib.Path, preset: str, values: dict[str, object]) -> str:
    """The settings of the config file `path`: {dotted name: value}, sections left out."""
    about = {p.stem: comments(p.read_text(encoding="utf-8")) for p in path.parent.glob("*.py")}
    said = _docstring(path).replace(console.VENV_PYTHON, shlex.quote(console.interpreter()))
    lines = [said, "", f"Settings at preset {preset}:"]
    skipped: set[str] = set()
    for name, value in values.items():
        section, file = _elsewhere(name)
        if section:
            if section not in skipped:
                lines += _entry(f"--config.{section}. ...", f"settings of configs/{file}")
            skipped.add(section)
            continue
        homes = (about[h] for h in (path.stem, *SHARED) if h in about)
        ends = [name.split(".", i)[-1] for i in range(name.count(".") + 1)]  # a.b.c, b.c, c
        text = next((home[end] for home in homes for end in ends if end in home), "")
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines += _entry(f"--config.{name}={shown}", text)
    return "\n".join([*lines, ""])


def _elsewhere(name: str) -> tuple[str, str]:
    """(section, file) where a setting belongs to another file's config: the outermost such section."""
    found = ((f".{name}".find(f".{section}."), section) for section in ELSEWHERE)
    at, section = min(((at, s) for at, s in found if at >= 0), default=(0, ""))
    return (name[: at + len(section)], ELSEWHERE[section]) if section else ("", "")


def comments(source: str) -> dict[str, str]:
    """{name of a setting: the comment beside it, or above it, or ""} of a config file; of one in a
    dictionary of a dictionary also by both names, "correction.nac".
    """
    said, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            said[token.start[0]] = token.string.lstrip("# ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found: dict[str, str] = {}
    sections: dict[int, str] = {}  # of a dictionary inside another: its key there
    for node in ast.walk(ast.parse(source)):
        section = sections.get(id(node), "")
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            sections |= {id(v): k.value for k, v in pairs if isinstance(k, ast.Constant)}
        for name, first, last in _named(node):
            beside = [said[n] for n in range(first, last + 1) if n in said]
            above, line = [], first - 1
            while line in alone:
                above.insert(0, said[line])
                line -= 1
            text = " ".join(beside or above)
            for known in (name, f"{section}.{name}") if section else (name,):
                found[known] = found.get(known) or text
    return found


def _named(node: ast.AST):
    """(name, first line, last line) of the settings that a node sets."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        last = node.lineno if isinstance(node.value, ast.Dict) else node.end_lineno
        yield node.targets[0].attr, node.lineno, last
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                last = key.lineno if isinstance(value, ast.Dict) else value.end_lineno
                yield str(key.value), key.lineno, last
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.lineno, node.value.end_lineno


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _entry(name: str, text: str) -> list[str]:
    """A name and what it is, in two columns."""
    indent = 30
    if not text:
        return [f"  {name}"]
    wrapped = textwrap.wrap(text, WIDTH - indent)
    first = [f"  {name}"] if len(name) > indent - 4 else []
    head = " " * indent if first else f"  {name:{indent - 2}}"
    return [*first, head + wrapped[0], *(" " * indent + line for line in wrapped[1:])]
