"""The documentation as a site: it builds strictly, asks nothing of the network, can be searched, and its links are true in the repository too."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cases import cases

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / ".mkdocs"))
import pages
import reference

ROOT = Path(__file__).parents[2]

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "outputs/README.md")
]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def build(docs: Path, site: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(docs / ".mkdocs" / "mkdocs.yml"),
        "-d",
        str(site),
    ]
    return subprocess.run(
        command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser fetch by itself."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in LOADS and given.get("rel") != "canonical" and given.get(LOADS[tag]):
            self.found.add(given[LOADS[tag]])


def test_every_link_of_a_page_leads_to_a_page():
    """The strict build finds more, and takes half a minute."""
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*") if path.is_file()}
    known = own | set(pages.outside().values()) | set(reference.texts())
    for page in sorted(page for page in known if page.endswith(".md") and page not in reference.texts()):
        text = pages.with_links((ROOT / pages.file_of(page)).read_text(encoding="utf-8"), page)
        for link in pages.LINK.finditer(re.sub(r"^ *(```+).*?^ *\1`*$", "", text, flags=re.DOTALL | re.MULTILINE)):
            target = link["to"].partition("#")[0]
            if target and ":" not in target:
                assert os.path.normpath(os.path.join(os.path.dirname(page), target)) in known, (page, link[0])


@pytest.mark.slow
def test_no_page_asks_anything_of_the_network(site):
    for page in site.rglob("*.html"):
        fetched = Loaded(page.read_text()).found
        assert fetched and not [url for url in fetched if url.startswith(("http:", "https:", "//"))], page
        if page.name != "404.html":  # a server shows it under any address
            assert all((page.parent / url.partition("?")[0]).resolve().exists() for url in fetched), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_every_page_of_the_repository_is_there_and_in_the_menu(site):
    menu = (site / "index.html").read_text()
    for path in PAGES:
        page = pages.page_of(path.relative_to(ROOT).as_posix()).replace(".md", ".html")
        assert (site / page).is_file() and (page == "index.html" or f'href="{page}"' in menu), page


@pytest.mark.slow
def test_every_option_has_its_place_in_the_reference(site):
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        if path.name != "config.yaml":
            page, place = pages.page_of(path.relative_to(ROOT).as_posix()).split("#")
            text = (site / page.replace(".md", ".html")).read_text()
            assert f'id="{place}"' in text, path
    assert "peftrun lora=dora" in (site / "reference" / "lora.html").read_text()


def test_every_key_stands_in_the_reference_as_its_schema_has_it():
    text = "\n".join(reference.texts().values())
    for group in ("model", "task", "trainer", "device"):
        schema = json.loads((ROOT / "conf" / ".schemas" / f"{group}.json").read_text())
        keys = {f"| `{group}.{name}` |" for name in schema["properties"] if name != "defaults"}
        assert keys and not {key for key in keys if key not in text}
    assert "| `trainer.learning_rate` | a number > 0 | `0.001` | LoRA needs about ten times" in text
    assert "| `action.dtype` | `auto`, `float32`, `bfloat16`, `float16` |" in text
    assert "| `task.data.num_test_rows` | an integer ≥ 1 |" in text and "| `lora.boft_block_size` |" in text
    assert "| `seed` |" in text and "| `hydra/launcher.max_cells` |" in text


@pytest.mark.slow
def test_the_search_index_holds_what_is_said(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert any("target_modules" in one["text"] for one in index["docs"])
    assert (site / "search" / "search_index.js").is_file() and (site / "assets" / "iframe-worker.js").is_file()


@pytest.mark.slow
def test_pages_opened_as_files_can_be_searched(site):
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "reference" / "lora.html").as_uri())
        page.locator(".md-search__input").click()
        page.keyboard.type("perplexity", delay=20)
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        browser.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


BROKEN = {
    "a page that is not there": "[x](nowhere.md)",
    "a file that is not there": "[x](../benchmarks/nowhere.py)",
    "a place that is not there": "[x](sweeps.md#nowhere)",
    "an address of this site": "[x](/sweeps.md)",
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copied")
    for name in (
        "docs",
        "conf",
        "benchmarks",
        "outputs/README.md",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "tests/test_seeds.py",
    ):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
@cases("fault", BROKEN)
def test_a_link_that_leads_nowhere_breaks_the_build(copied, tmp_path, fault):
    page = copied / "docs" / "python.md"
    text = page.read_text()
    page.write_text(f"{text}\n{BROKEN[fault]}\n")
    done = build(copied / "docs", tmp_path)
    page.write_text(text)
    assert done.returncode != 0 and "python.md" in done.stderr + done.stdout


def anchors(path: Path) -> set[str]:
    """The places of a Markdown file, as code hosts name them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@cases("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_are_true_in_the_repository(path):
    """Seen on a code host, a link leads to a file that is there, and to a place in it that is there."""
    bare = pages.CODE.sub("", path.read_text())
    for found in pages.LINK.finditer(bare):
        to, _, place = found["to"].partition("#")
        if ":" in to:
            continue
        target = (path.parent / to).resolve() if to else path
        assert target.exists(), found[0]
        assert not place or place in anchors(target), found[0]
