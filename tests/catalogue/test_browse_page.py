"""The page in a browser: the table, the filter, curves, two side by side, a run that goes on; a hostile name is a name."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from catalogue_runs import browsing, copies

from peftrun.artifacts.run_layout import METRICS, RECORD

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=document.title='gone'>"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is here")]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory) -> list[Path]:
    where = tmp_path_factory.mktemp("page")

    def change(number, record):
        record["metrics"]["after"]["exact_match"] = number / 10
        record["command"] = ["peftrun", f"seed={number}", HOSTILE]
        record["base"]["name"] = HOSTILE
        if number == 5:
            record |= {"status": "failed", "error": HOSTILE, "metrics": {}}
        return {"  r: 8\n": f"  r: {4 * (number + 1)}\n"}

    found = copies(trained, where / "outputs", 6, change)
    bad = found[0].with_name(f"9 {HOSTILE}")
    os.rename(found[0], bad)
    (bad / "report.html").write_text(
        f"<!doctype html><title>a report</title><style>p {{ color: red }}</style><p>words</p>{HOSTILE}"
    )
    return [bad, *found[1:]]


@pytest.fixture(scope="module")
def address(folders):
    with browsing(folders[0].parents[2]) as (found, _):
        yield found


@pytest.fixture
def page(browser, address):
    """A page that has shown the table; nothing on it was blocked, nothing came from elsewhere, nothing went wrong."""
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    page, faults, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#runs tbody tr")
    yield page
    assert page.title() != "gone" and not page.query_selector("main img")
    assert not faults and all(url.startswith((address, "data:")) for url in asked)
    context.close()


def rows(page) -> list[str]:
    return page.locator("#runs tbody tr").all_inner_texts()


def wait_for(page, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#runs tbody tr")).to_have_count(count, timeout=30_000)


def filtered(page, text: str) -> None:
    page.fill("#where", text)
    with page.expect_response(lambda answer: "/api/runs" in answer.url):
        page.press("#where", "Enter")


def test_the_table_shows_runs_and_sorts_them(page):
    assert len(rows(page)) == 6 and page.locator("#count").inner_text().startswith("6 runs below outputs")
    page.click("#by-metric")
    page.wait_for_selector('th[aria-sort="descending"] #by-metric')
    found = [text.split("→ ")[1].split()[0] for text in rows(page) if "→" in text]
    assert found == ["0.4000", "0.3000", "0.2000", "0.1000", "0.0000"]
    page.click("#by-metric")
    page.wait_for_selector('th[aria-sort="ascending"] #by-metric')
    assert "0.0000" in rows(page)[0]


def test_metric_and_date_are_in_sight_however_long_names_are(browser, trained, tmp_path):
    long = {"org": "a-very-long-name-of-a-base-model-" * 3}
    copies(trained, tmp_path / "outputs", 2, lambda _, record: record["base"].update(name=long["org"]) or {})
    os.rename(tmp_path / "outputs/train", tmp_path / f"outputs/{'trained-for-long-' * 4}")
    with browsing(tmp_path) as (address, _):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.wait_for_selector("#runs tbody tr")
        for name in ("metric", "date"):
            box = page.locator(f"#by-{name}").bounding_box()
            assert box["x"] + box["width"] <= 1280
        cell = page.locator("#runs td[title]").first
        assert "…" in cell.inner_text() and cell.get_attribute("title") == long["org"]
        page.close()


def test_the_filter_speaks_the_language_of_where(page):
    filtered(page, "exact_match>0.15 and lora.r<20")
    wait_for(page, 2)
    assert page.url.endswith("where=exact_match%3E0.15+and+lora.r%3C20")
    filtered(page, "exact_mtch>0.15")
    page.wait_for_selector("#problem:not([hidden])")
    assert (
        page.inner_text("#problem") == "where: there is no column exact_mtch; did you mean exact_match?"
        and len(rows(page)) == 2
    )
    filtered(page, "seed=99")
    page.wait_for_selector(".empty")
    assert page.is_hidden("#problem")
    page.click("#clear")
    wait_for(page, 6)


def test_two_runs_stand_side_by_side_with_their_curves_and_adapters(page):
    page.locator("#runs tbody input").nth(1).check()
    page.locator("#runs tbody input").nth(2).check()
    assert page.inner_text("#chosen-count") == "2 chosen"
    page.click("#beside")
    page.wait_for_selector("#beside-table")
    assert (
        page.locator("figure.loss svg path.curve.c0").count() and page.locator("figure.loss svg path.curve.c1").count()
    )
    assert page.locator("figure.eval_loss svg").count() == page.locator("figure.learning_rate svg").count() == 1
    table = page.inner_text("#beside-table")
    assert "lora.r\t20\t16" in table and "trainer.max_steps" not in table
    assert page.locator(".modules tbody tr").count() == 14
    page.go_back()
    page.wait_for_selector("#runs tbody tr.picked")


def test_one_run_is_shown_whole(page):
    page.locator("#runs tbody a").nth(1).click()
    page.wait_for_selector(".tiles")
    assert "exact_match" in page.inner_text(".tiles") and page.locator("figure.loss svg path").count()
    assert page.locator(".modules tbody tr").count() == 14
    page.click("summary")
    assert "trainer.learning_rate" in page.inner_text("details")


def test_a_hostile_name_is_a_name_wherever_it_is_shown(page, folders):
    assert any(HOSTILE[:12] in text for text in rows(page))  # long names are shortened
    for number in range(6):
        page.locator("#runs tbody input").nth(number).check()
    page.click("#beside")
    page.wait_for_selector("#beside-table")
    assert HOSTILE in page.inner_text(".legend")
    page.click(f".legend a:has-text('{HOSTILE[:12]}')")
    page.wait_for_selector(".tiles")
    assert HOSTILE in page.inner_text("h2")
    with page.context.expect_page() as opened:
        page.click("a.file")
    opened.value.wait_for_load_state()
    assert (
        opened.value.title() == "a report"
        and opened.value.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(255, 0, 0)"
    )
    page.goto(page.url.split("#")[0] + "#/")
    page.wait_for_selector("#runs tbody tr")
    page.locator("#runs tr:has(.failed) a").first.click()
    page.wait_for_selector(".fault")
    assert page.inner_text(".fault") == HOSTILE


def test_a_run_that_goes_on_is_followed(page, folders):
    """Its record says it runs, in this process; then a step more is logged."""
    record = json.loads((folders[4] / RECORD).read_text())
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    going = {**record, "status": "running", "pid": os.getpid(), "host": None, "started": now, "metrics": {}}
    try:
        (folders[4] / RECORD).write_text(json.dumps(going))
        page.reload()
        page.wait_for_selector(".status.running")
        assert "1 running" in page.inner_text("#count")
        with open(folders[4] / METRICS, "a") as file:
            file.write(json.dumps({"step": 4321, "loss": 0.1}) + "\n")
        page.wait_for_selector("#runs tr:has(.running):has-text('4321')")
    finally:
        (folders[4] / RECORD).write_text(json.dumps(record))


def test_a_small_screen_shows_the_same(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#runs tbody tr")
    page.locator("#runs tbody a").nth(1).click()
    page.wait_for_selector("figure.loss svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_the_end_of_the_program_is_told(browser, trained, tmp_path):
    copies(trained, tmp_path / "outputs", 1)
    context = browser.new_context()
    page = context.new_page()
    with browsing(tmp_path) as (address, _):
        page.goto(address)
        page.wait_for_selector("#runs tbody tr")
    page.evaluate("refresh()")
    page.wait_for_selector("#problem:not([hidden])")
    assert "has ended" in page.inner_text("#problem") and page.locator("#runs tbody tr").count() == 1
    context.close()
