"""report.html: one page that needs nothing but itself, says what happened, and trusts no text of its user."""

import json
import re

import pytest
from cases import cases
from html_pages import Page
from sweep_folders import FINGERPRINT, grid, put, record, sweep

from peftrun.errors import ArtifactError
from peftrun.results.report import svg
from peftrun.sweep.report import charts
from peftrun.sweep.report import page as sweep_page
from peftrun.sweep.summary import PlannedCell, write_summary

EVIL = '<script>alert("x")</script> & <img src=x>'


def page_of(folder):
    return Page(sweep_page.write_sweep_report(folder).read_text())


AXES = {"lora.r": [4, 8], "trainer.learning_rate": [1e-4, 1e-3], "seed": [1, 2, 3]}


def score(r, learning_rate, seed):
    if (r, learning_rate, seed) == (4, 1e-3, 3):
        return record(status="failed", error=f"no number {EVIL}")
    if (r, learning_rate, seed) == (8, 1e-3, 3):
        return record(status="stopped")
    return 0.5 - learning_rate * 50 + r / 100 + seed / (100 + r)


@pytest.fixture
def page(tmp_path):
    grid(tmp_path, AXES, score)
    return page_of(tmp_path)


def test_nothing_is_asked_of_the_network(tmp_path):
    grid(tmp_path, AXES, score)
    text = sweep_page.write_sweep_report(tmp_path).read_text()
    found = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)
    assert not {"src", "href", "xlink:href", "onclick", "onload"} & {name for _, name, _ in found.attributes}
    assert "http" not in text and "@import" not in text and "url(" not in text


def test_what_the_user_wrote_is_text(page, tmp_path):
    assert EVIL in page.text and "<script" not in (tmp_path / "report.html").read_text()


def test_values_commands_and_names_are_escaped(tmp_path):
    put(tmp_path, "a", record(0.5, device=EVIL, base={"name": EVIL, "fingerprint": EVIL}), [{"step": 1, "loss": 1.0}])
    put(tmp_path, "b", record(0.6), [{"step": 1, "loss": 2.0}])
    cells = [
        PlannedCell(name, [n], {"task.prompt_template": f"{EVIL}{n}"}, f"peftrun 'task.prompt_template={EVIL}{n}'")
        for n, name in enumerate("ab")
    ]
    write_summary(tmp_path, sweep(cells, command=f"peftrun -m {EVIL}", status=EVIL, objective=EVIL))
    found = page_of(tmp_path)
    assert not {"script", "img"} & set(found.tags)


def test_the_best_cell_and_the_command_that_reproduces_it(page):
    assert "peftrun lora.r=4 trainer.learning_rate=0.001 seed=1" in page.text
    assert page.tags.index("pre") < page.tags.index("table")


def test_cells_that_failed_or_were_stopped_are_told_with_their_reason(page):
    assert "1 failed" in page.text and "1 stopped" in page.text and "10 completed" in page.text
    assert "cell 5 (lora.r=4, trainer.learning_rate=0.001, seed=3): failed, no number" in page.text
    assert "ended early" in page.text and "2 of 3" in page.text


def test_two_axes_are_a_heat_map_and_others_parallel_coordinates(page, tmp_path):
    assert "Heat map of loss" in page.text and "Parallel coordinates" not in page.text
    grid(
        tmp_path / "three",
        {"lora.r": [4, 8], "trainer.learning_rate": [1e-4, 1e-3], "lora.lora_dropout": [0.0, 0.1]},
        lambda r, learning_rate, lora_dropout: r * learning_rate + lora_dropout,
    )
    assert "Parallel coordinates of loss" in page_of(tmp_path / "three").text


def test_a_grid_that_is_mostly_empty_is_no_heat_map(tmp_path):
    cells = []
    for n in range(6):
        put(tmp_path, f"c{n}", record(0.5 + n))
        cells.append(PlannedCell(f"c{n}", [n], {"a.x": n * 1.5, "b.y": n * n}, f"peftrun a.x={n * 1.5} b.y={n * n}"))
    write_summary(tmp_path, sweep(cells))
    assert "Parallel coordinates" in page_of(tmp_path).text


def test_every_drawing_says_what_it_shows_under_a_name_of_its_own(page):
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names)) == 2 * page.tags.count("svg")
    assert all(f"{value.split()[0]}" in names for tag, name, value in page.attributes if name == "aria-labelledby")


def test_what_was_run(page):
    assert "peftrun -m lora.r=4,8" in page.text and FINGERPRINT in page.text and "torch 2.8.0" in page.text


def test_sentences_of_differences(page):
    assert re.search(
        r"(lora\.r=4 (is|may be) better than lora\.r=8|no difference shown between lora\.r=8 and lora\.r=4) with trainer\.learning_rate=0\.0001 at this budget",
        page.text,
    )


def test_with_one_seed_chance_is_named(tmp_path):
    grid(tmp_path, {"lora.r": [4, 8]}, lambda r: 1 / r)
    assert "no difference can be distinguished from chance" in page_of(tmp_path).text


def test_one_cell(tmp_path):
    grid(tmp_path, {}, lambda: 0.25)
    found = page_of(tmp_path)
    assert "Sweep of 1 cell" in found.text and "0.250" in found.text and "Heat map" not in found.text


def test_a_sweep_that_has_just_begun_and_one_in_which_all_failed(tmp_path):
    cells = [PlannedCell(name, [n], {"lora.r": n}, f"peftrun lora.r={n}") for n, name in enumerate("ab")]
    write_summary(tmp_path, sweep(cells, status="running"))
    assert "No cell is completed yet" in page_of(tmp_path).text and "2 waiting" in page_of(tmp_path).text
    for name in "ab":
        put(tmp_path, name, record(status="failed", error="no memory"))
    write_summary(tmp_path, sweep(cells, status="failed"))
    assert "2 failed" in page_of(tmp_path).text


@pytest.mark.slow
def test_three_hundred_cells_are_a_page_of_a_reasonable_size(tmp_path):
    axes = {
        "lora.r": [2, 4, 8, 16, 32],
        "trainer.learning_rate": [1e-5, 1e-4, 1e-3, 1e-2],
        "lora.lora_dropout": [0.0, 0.1, 0.2],
        "seed": [1, 2, 3, 4, 5],
    }
    grid(
        tmp_path,
        axes,
        lambda r, learning_rate, lora_dropout, seed: r * learning_rate + lora_dropout + seed / (r + 7),
        steps=500,
    )
    found = page_of(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert "300 completed" in found.text and "more configurations" in found.text and "53 others" in found.text


def test_damaged_curves_and_figures_that_are_no_numbers_are_passed_over(tmp_path):
    put(
        tmp_path,
        "a",
        record(0.5),
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}],
    )
    put(tmp_path, "b", record(0.6))
    (tmp_path / "b/metrics.jsonl").write_text('{"step": 1, "lo{"step": 2}\n')
    write_summary(
        tmp_path, sweep([PlannedCell(name, [n], {"lora.r": n}, f"peftrun lora.r={n}") for n, name in enumerate("ab")])
    )
    assert "nan" not in page_of(tmp_path).text.lower()


def test_without_a_summary_it_is_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"sweep\.json"):
        sweep_page.write_sweep_report(tmp_path)


def test_a_cell_that_has_a_report_of_its_own_is_led_to(tmp_path):
    put(tmp_path, "a cell", record(0.5))
    put(tmp_path, "b", record(0.6))
    (tmp_path / "a cell/report.html").write_text("")
    write_summary(
        tmp_path,
        sweep([PlannedCell(name, [n], {"lora.r": n}, f"peftrun lora.r={n}") for n, name in enumerate(["a cell", "b"])]),
    )
    assert [value for tag, name, value in page_of(tmp_path).attributes if name == "href"] == ["a%20cell/report.html"]


def test_the_report_reads_files_only(tmp_path):
    grid(tmp_path, AXES, score)
    summary = json.loads((tmp_path / "sweep.json").read_text())
    summary["command"] = "peftrun -m told=by,the=file"
    (tmp_path / "sweep.json").write_text(json.dumps(summary))
    assert "told=by,the=file" in page_of(tmp_path).text


def test_thinned_curves_keep_their_ends_and_their_mean():
    points = [(float(n), float(n % 7)) for n in range(1000)]
    found = charts.thin_points(points, 50)
    assert len(found) == 50 and found[0] == points[0] and found[-1] == points[-1]
    assert sum(y for _, y in found) / 50 == pytest.approx(3, abs=0.2)
    assert charts.thin_points(points[:50], 50) == points[:50]


def test_numbers_that_span_ten_times_are_on_a_logarithmic_scale():
    assert svg.build_scale([1e-4, 1e-3], 0, 100).log and not svg.build_scale([1, 9], 0, 100).log
    assert not svg.build_scale([0, 100], 0, 100).log and not svg.build_scale([-1, 100], 0, 100).log
    assert svg.build_scale([1e-4, 1e-3, 1e-2], 0, 100).at(1e-3) == pytest.approx(50)


@cases("values", [[0, 1], [3, 3], [0.031, 4.2], [1e-5, 7], [-3, 8], [99, 101], [1e-9, 1e9]])
def test_ticks_are_few_and_inside(values):
    found = svg.build_scale(values, 0, 100).compute_ticks(5)
    assert 1 <= len(found) <= 9 and all(min(values) * 0.99 <= tick <= max(values) * 1.01 for tick in found if tick > 0)


def test_labels_are_moved_apart_and_stay_inside():
    found = svg.spread_positions([10.0, 11, 11, 60], 14, 0, 100)
    assert all(b - a >= 13.99 for a, b in zip(sorted(found), sorted(found)[1:], strict=False))
    assert max(svg.spread_positions([99.0, 100, 100], 14, 0, 100)) == 100
