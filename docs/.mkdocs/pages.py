"""Which files of the repository are pages of the site, and where a link between two of them leads."""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!\\)(?P<picture>!?)\[(?P<text>[^\]\[]*)\]\((?P<to>[^)\s]+)\)")
CODE = re.compile(
    r"(?P<named_by_code>\[`[^`\]]+`\]\([^)\s]+\))|"  # a link, whose text happens to be code
    r"(^ *(?P<fence>`{3,}).*?^ *(?P=fence)`*$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))",
    re.DOTALL | re.MULTILINE,
)
ALONE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/gpu/README.md": "benchmarks/gpu.md",
    "outputs/README.md": "outputs.md",
}


def outside() -> dict[str, str]:
    """File of the repository outside docs/ → the page that it becomes."""
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    return ALONE | {f"benchmarks/results/{path.name}": f"benchmarks/results/{path.name}" for path in results}


def page_of(file: str) -> str | None:
    """The page that a file of the repository is shown on; an option's YAML file has a place in the reference. None: on none."""
    if file in outside():
        return outside()[file]
    if file.startswith("docs/") and file.endswith(".md"):
        return file.removeprefix("docs/")
    option = re.fullmatch(r"conf/(?P<group>[a-z_/]+)/(?P<option>\w+)\.yaml", file)
    if option:
        return f"reference/{option['group'].replace('/', '-')}.md#{option['option']}"
    group = re.fullmatch(r"conf/(?P<group>[a-z_/]+?)/?", file)
    return f"reference/{group['group'].replace('/', '-')}.md" if group else None


def file_of(page: str) -> str:
    """The file of the repository that a page is made from."""
    return {to: file for file, to in outside().items()}.get(page, f"docs/{page}")


def with_links(text: str, page: str) -> str:
    """A page's text with its links leading to pages; a link to a file that is no page becomes the file's name.

    A link that leads nowhere stays, and the strict build fails for it.
    """
    return _outside_code(text, lambda part: LINK.sub(lambda found: _link(found, page), part))


def _link(found: re.Match[str], page: str) -> str:
    text, (path, _, anchor) = found["text"], found["to"].partition("#")
    if not path or ":" in path:
        return found[0]
    file = os.path.normpath(os.path.join(os.path.dirname(file_of(page)), path))
    if not (ROOT / file).exists():
        return found[0]
    to = page_of(file)
    if found["picture"] and file.startswith("docs/"):
        to = file.removeprefix("docs/")
    if to is None:
        return text if "`" in text else f"{text} (`{file}`)"
    relative = os.path.relpath(to.partition("#")[0], PurePosixPath(page).parent)
    anchor = anchor or to.partition("#")[2]
    return f"{found['picture']}[{text}]({relative}{'#' + anchor if anchor else ''})"


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    parts, last = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[last : code.start()]), change(code[0]) if code["named_by_code"] else code[0]]
        last = code.end()
    return "".join([*parts, change(text[last:])])
