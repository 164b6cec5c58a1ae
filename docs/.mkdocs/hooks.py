"""What MkDocs calls: pages from outside docs/ and the reference are added, links are led to pages, the menu is made."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import pages
import reference

HERE = Path(__file__).parent
START = ["index.md", "tutorial.md"]
CONTRIBUTING = ["contributing.md", "architecture.md", "benchmarks/index.md", "benchmarks/gpu.md", "changelog.md"]
# How something is done, in this order; pages that are not named here, and stand nowhere else, come behind them.
HOW_TO = [
    f"{name}.md"
    for name in [
        "data",
        "methods",
        "quantization",
        "settings",
        "commands",
        "preferences",
        "encoders",
        "devices",
        "planning",
        "sweeps",
        "clusters-and-search",
        "adapters",
        "report",
        "catalogue",
        "serve",
        "export",
        "trackers",
        "lm-eval",
        "replay",
        "explain",
        "teams",
        "editors",
        "python",
    ]
]
CONCEPTS = ["gotchas.md", "peers.md", "outputs.md"]


def on_config(config: Any) -> Any:
    """The menu."""
    own = sorted(path.relative_to(pages.ROOT / "docs").as_posix() for path in (pages.ROOT / "docs").glob("**/*.md"))
    known = {*START, *CONTRIBUTING, *CONCEPTS}
    how_to = [page for page in HOW_TO if page in own]
    recipes = [page for page in own if page.startswith("howto/")]
    how_to += recipes + [
        page for page in own if page not in {*known, *how_to, *recipes} and not page.startswith("reference/")
    ]
    results = [page for page in pages.outside().values() if page.startswith("benchmarks/results/")]
    config.nav = [
        {"Start": [page for page in START if page == "index.md" or page in own]},
        {"How to": how_to},
        {"Concepts": [page for page in CONCEPTS if page in own or page == "outputs.md"]},
        {"Reference": list(reference.texts())},
        {
            "Contributing": [
                *(page for page in CONTRIBUTING if page in {*own, *pages.outside().values()}),
                {"Figures": results},
            ]
        },
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Pages that lie elsewhere, and those that are made here."""
    for file, page in pages.outside().items():
        files.append(File.generated(config, page, abs_src_path=str(pages.ROOT / file)))
    for page, text in reference.texts().items():
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "assets/iframe-worker.js", abs_src_path=str(HERE / "iframe-worker.js")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are true in the repository, true in the site."""
    return pages.with_links(markdown, page.file.src_uri)
