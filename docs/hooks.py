"""What mkdocs.yml calls: README, CONTRIBUTING and CHANGELOG as pages, Markdown read as on the web.

The pages are made from the files at the root, so that no text is there twice.
"""

import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Files at the root of the repository -> where they are in the site.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
}
LINK = re.compile(r"\]\(([^)\s#]+)")


def moved_links(text: str, source: str) -> str:
    """The Markdown of `source`, a path in the repository, with its links as they are in the site."""
    own = posixpath.dirname(MOVED.get(source, source.removeprefix("docs/")))

    def moved(match) -> str:
        if re.match(r"[a-z]+:|/", match[1]):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if path not in MOVED and not path.startswith("docs/"):
            return match[0]  # to a file that the site lacks: --strict says so
        target = MOVED.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, own or '.')}"

    return LINK.sub(moved, text)


def spaced(text: str) -> str:
    """Blank lines around code and before lists, which Python-Markdown needs and the web does not."""
    made, is_code, in_list = [], False, False
    for line in text.splitlines():
        starts, before = re.match(r" *([-*]|\d+\.) ", line), made[-1].strip() if made else ""
        if re.match(r" *```", line):
            made += [""] if before and not is_code else []
            made += [line, ""] if is_code else [line]
            is_code, in_list = not is_code, False
            continue
        if not is_code:
            if starts and before and not in_list:
                made.append("")
            in_list = bool(starts) or (in_list and bool(line.strip()))
        made.append(line)
    return "\n".join(made) + "\n"


def on_config(config):
    """Lists continue after two spaces, as the pages have them; Python-Markdown asks for four."""
    from markdown import Extension

    class TwoSpaces(Extension):
        def extendMarkdown(self, md):
            md.tab_length = 2
            md.build_parser()  # it has taken the four already

    config.markdown_extensions.insert(0, TwoSpaces())
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    for source, target in MOVED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = moved_links(text, source) if source.endswith(".md") else text
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri not in MOVED.values():
        markdown = moved_links(markdown, f"docs/{page.file.src_uri}")
    return spaced(markdown)
