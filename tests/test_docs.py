"""README, CONTRIBUTING, CHANGELOG, docs: links lead somewhere, commands name what exists; none is run."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys
import unicodedata
from unittest import mock

import pytest
from absl.testing import flagsaver
from test_contributing import BLOCKS

from cldm_jax import main, predict
from cldm_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOT_PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES = [*ROOT_PAGES, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```[^\n]*\n(.*?)^ *```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Without code, fenced or inline: what looks like a link there is none."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Of the headings, as the web makes them."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        kept = (c for c in heading if c in " -_" or unicodedata.category(c)[0] in "LN")
        found.append("".join(kept).replace(" ", "-"))
    return {
        a if found[:i].count(a) == 0 else f"{a}-{found[:i].count(a)}" for i, a in enumerate(found)
    }


def broken_links(page: pathlib.Path, text: str) -> list[str]:
    wrong = []
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or ROOT not in file.parents:
            wrong.append(target)
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if path else text):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen():
    page = ROOT / "README.md"
    text = "# A title, with `code`\n[a](docs/data.md#intensities) [b](#a-title-with-code) `[x](y)`"
    assert broken_links(page, text) == []
    for bad in ("docs/none.md", "docs/data.md#none", "#none", "../none"):
        assert broken_links(page, f"# Title\n[a]({bad})") == [bad]


# ---- pages that a tired person reads ----

WIDTH, BYTES, COUNT = 160, 10_000, 11


def unreadable(text: str) -> list[str]:
    """What is wrong with a page of docs/: no reader named, too long, lines too long."""
    wrong = [f"line of {len(s)}: {s[:40]}" for s in text.splitlines() if len(s) > WIDTH]
    if len(text.encode()) > BYTES:
        wrong.append(f"{len(text.encode())} bytes")
    if not re.match(r"# .+\n\n\*\*For:\*\* .+\.\n", text):
        wrong.append("does not open with who should read it")
    return wrong


def test_pages_are_few_and_short_and_say_for_whom():
    pages = {name(p): p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md")}
    assert 0 < len(pages) <= COUNT
    assert {p: w for p, text in pages.items() if (w := unreadable(text))} == {}
    good = "# Title\n\n**For:** whoever asks.\n"
    assert unreadable(good) == []
    for bad in ("# Title\n\nText.\n", good + "x" * (WIDTH + 1), good + "x\n" * (BYTES // 2)):
        assert len(unreadable(bad)) == 1


# ---- commands ----


def commands(text: str) -> list[str]:
    """Shell lines of the fenced blocks, and inline code that begins like one; continued lines joined."""
    blocks = [body for _, body in FENCE.findall(text)]
    blocks += re.findall(
        r"`((?:(?:\.venv[\w-]*/bin/)?python -m |(?:bash|sbatch) |cldm-predict )[^`]*)`",
        FENCE.sub("", text),
    )
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    variables, found = {}, []
    for line in lines:
        line = line.strip().removeprefix("$ ")
        if given := re.fullmatch(r'([A-Z]\w*)="([^"]*)"', line):
            variables[given[1]] = given[2]
        for key, value in variables.items():
            line = line.replace(f"${key}", value)
        found.append(line)
    return found


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


EXAMPLE = {path for path in BLOCKS if path.startswith("configs/")}  # run by test_contributing


def refusal(line: str) -> str:
    """What the command of `line` would be refused for; "" where it names what exists."""
    given = words(line)
    program, *arguments = given[given.index("-m") + 1 :] if "-m" in given else given
    if program in ("cldm_jax.predict", "cldm-predict"):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                predict._parse(arguments)
        except SystemExit as stopped:
            return "" if stopped.code == 0 else said.getvalue()
        return ""
    # NAMES and $VARIABLES stand for values that a reader puts in, numbers too.
    arguments = ["main", *(re.sub(r"=(\$\w+|[A-Z][A-Z_]+)$", "=1", a) for a in arguments)]
    # Flags are the process's own: put back as they were, those of a config's settings removed.
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", arguments):
        try:
            main._parse(arguments)
        except UserError as error:
            return str(error)
        except SystemExit as stopped:  # --help
            return "" if stopped.code == 0 else f"exit {stopped.code}"
    return ""


OURS = r"([\w./-]{0,30}python3?) -m cldm_jax\.(main|predict)\b"  # bounded: notebooks hold pictures


def is_ours(line: str) -> bool:
    return re.match(rf"{OURS}|cldm-predict\b", line) is not None


def all_commands(page: pathlib.Path) -> list[str]:
    found = [line for line in commands(page.read_text(encoding="utf-8")) if is_ours(line)]
    return [line for line in found if not any(f"={path}:" in line for path in EXAMPLE)]


@pytest.mark.parametrize("page", [p for p in PAGES if all_commands(p)], ids=name)
def test_commands_name_what_exists(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    wrong = {line: why for line in all_commands(page) if (why := refusal(line))}
    assert wrong == {}


@pytest.mark.parametrize(
    "line, why",
    [
        ("python -m cldm_jax.main --config=configs/ldm.py:huge", "huge"),
        ("python -m cldm_jax.main --config=configs/none.py:quick", "no such config"),
        ("python -m cldm_jax.main --config=configs/ldm.py:quick --config.sed=1", "no such setting"),
        ("python -m cldm_jax.main --config=configs/ldm.py:quick --wrkdir=x", "no such flag"),
        ("python -m cldm_jax.predict -i pet.nii.gz -o out --mode best", "best"),
        ("cldm-predict -i pet.nii.gz", "required"),
    ],
)
def test_a_wrong_command_is_seen(line, why, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    assert why in refusal(line)


def script_commands() -> list[tuple[str, str]]:
    """(page, "launch/x ...") of every use of a script, in code and in prose."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [*commands(text), *re.findall(r"launch/[\w/]+\.\w+", text)]
        found += [(name(page), use) for line in lines for use in re.findall(r"\blaunch/\S.*", line)]
    return sorted(set(found))


def script_refusal(use: str) -> str:
    """ "" where the script is there and names every flag: in its usage, or the job that gets them all."""
    script, *arguments = words(use)
    path = ROOT / script
    if not path.is_file():
        return f"{script}: no such script"
    text = path.read_text()
    if subprocess.run(["bash", "-n", path]).returncode:
        return f"{script}: does not parse"
    usage = re.match(r"#!.*\n((?:#.*\n)+)", text)[1]
    given = [a.partition("=")[0] for a in arguments if a.startswith("-")]
    missing = [f for f in given if not re.search(rf"(?<![\w-]){re.escape(f)}(?![\w-])", usage)]
    if missing and (module := re.search(r"-m (cldm_jax\.\w+)\b.*\"\$@\"", text)):
        return refusal(shlex.join(["python", "-m", module[1], *arguments]))
    return f"{script}: does not name {', '.join(missing)}" if missing else ""


def test_scripts_and_their_flags_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    used = script_commands()
    assert len({use for _, use in used}) > 8
    assert [(page, why) for page, use in used if (why := script_refusal(use))] == []
    assert "no such script" in script_refusal("launch/none.sh")
    assert "--none" in script_refusal("launch/docs.sh --none")


def test_tests_and_files_that_pages_name_exist():
    """`tests/x.py`, `faults/x.py` and the like in prose; in method.md also paths below cldm_jax/."""
    wrong = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        named = re.findall(
            r"`((?:tests|faults|configs|benchmarks|launch|cldm_jax|docs)/[\w./-]+)`", text
        )
        if page.name == "method.md":
            rooms = "models|methods|diffusion|jobs|runtime|data"
            named += [f"cldm_jax/{p}" for p in re.findall(rf"`((?:{rooms})/[\w.]+\.py)`", text)]
        wrong += [(name(page), p) for p in named if not (ROOT / p).exists() and "/x." not in p]
    assert [w for w in wrong if w[1] not in BLOCKS] == []


# ---- as they are pasted into a shell that entered nothing ----


def shown_commands() -> list[tuple[str, str]]:
    """(where, a command of ours with its interpreter) of whatever a person reads."""
    texts = {name(page): page.read_text(encoding="utf-8") for page in PAGES}
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "configs").glob("*.py")]:
        texts[name(path)] = path.read_text(encoding="utf-8")
    for path in [*(ROOT / "launch").rglob("*.*"), ROOT / "cldm_jax/main.py"]:
        texts[name(path)] = path.read_text(encoding="utf-8")
    found = [(where, m[0]) for where, text in texts.items() for m in re.finditer(OURS, text)]
    return [(where, use) for where, use in found if "$" not in use]


def test_every_shown_command_names_the_interpreter_of_the_setup():
    shown = shown_commands()
    assert len(shown) > 60 and {"README.md", "configs/ae.py"} <= {where for where, _ in shown}
    assert [(w, use) for w, use in shown if not use.startswith(".venv/bin/python ")] == []
    bare = re.compile(r"^cldm-predict |`cldm-predict -", re.M)
    assert [name(p) for p in PAGES if bare.search(p.read_text(encoding="utf-8"))] == []
    assert re.match(OURS, "python -m cldm_jax.main") and bare.search("cldm-predict -i x")


def pasted(page: pathlib.Path) -> list[str]:
    """The lines of a page's shell blocks, comments and blank ones left out."""
    text = re.sub(r"```python\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    lines = "\n".join(body for _, body in FENCE.findall(text)).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def paste_refusal(line: str) -> str:
    """Why `line` would not run in a fresh shell of a clone that is set up; "" where it would."""
    program, *rest = words(line)
    if program == "bash":
        return script_refusal(shlex.join(rest))
    if program != ".venv/bin/python":
        return f"{program}: neither bash nor the interpreter of the setup"
    return refusal(line) if is_ours(line) else "none of ours"


def test_every_line_of_readme_runs_as_it_is_pasted(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    lines = pasted(ROOT / "README.md")
    assert len(lines) > 9
    assert [(line, why) for line in lines if (why := paste_refusal(line))] == []
    for bad in (
        "python -m cldm_jax.main --config=configs/ae.py:quick",
        ".venv/bin/python -m cldm_jax.main --config=configs/ae.py:quik",
        ".venv/bin/python -m cldm_jax.predict -i pet.nii.gz",
        "bash launch/none.sh",
        "conda activate cldm",
    ):
        assert paste_refusal(bad), bad


# ---- the site ----


def test_docs_script_says_what_it_would_do_and_refuses_the_rest():
    def run(*flags: str, **env: str):
        command = ["bash", str(ROOT / "launch" / "docs.sh"), *flags]
        env = {**os.environ, **env}
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True)

    assert "runs/site" in run("--help").stdout
    assert "mkdocs build --strict" in run("--dry-run").stdout
    assert "mkdocs serve" in run("--serve", "--dry-run").stdout
    for refused in (run("--srve"), run("--dry-run", CLDM_DOCS_VENV="/none")):
        assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1


def test_lists_and_code_get_the_blank_lines_that_the_site_needs():
    spaced = hooks().spaced
    assert spaced("a\n- b\n- c\n  d\n") == "a\n\n- b\n- c\n  d\n"
    assert spaced("a\n```\n- b\n\n1. c\n```\nd") == "a\n\n```\n- b\n\n1. c\n```\n\nd\n"


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_has_every_page_and_links_that_lead_somewhere():
    made, docs = hooks(), ROOT / "docs"
    nav = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    moved = {made.MOVED[p.name] for p in ROOT_PAGES}
    assert nav == moved | {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    for page in PAGES:
        source = name(page)
        own = docs / made.MOVED.get(source, source.removeprefix("docs/"))
        text = prose(made.moved_links(page.read_text(encoding="utf-8"), source))
        for target in LINK.findall(text):
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                there = (own.parent / path).resolve()
                is_moved = there.relative_to(docs).as_posix() in made.MOVED.values()
                assert is_moved or there.exists(), (source, target)


def test_no_page_needs_the_network():
    """No web font, no script from elsewhere, no formula that only a script can show."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings and "extra_javascript" not in settings
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        assert "$$" not in text and "\\(" not in text and "<script" not in text, page
        assert not re.search(r"!\[[^\]]*\]\(https?:", text), page
        assert "```mermaid" not in page.read_text(encoding="utf-8")


def test_citation_has_the_version_of_the_package():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text()
