"""sweep.json and sweep.csv: what is on disk, cell by cell."""

import csv
import json
import subprocess
import sys

import pytest
from cases import cases
from sweep_folders import grid, planned, put, record, sweep

from peftrun.sweep.summary import PlannedCell, find_axes, parse_command, write_summary


def rows_of(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_axes_are_the_keys_whose_resolved_values_differ_the_seed_last():
    found = find_axes([{"seed": 2, "lora.r": 8, "lora.bias": "none"}, {"seed": 1, "lora.r": 4, "lora.bias": "none"}])
    assert found == {"lora.r": [4, 8], "seed": [1, 2]} and list(found) == ["lora.r", "seed"]


def test_a_whole_nested_configuration_may_be_handed_over(tmp_path):
    cells = [
        PlannedCell(f"c{r}", [r], {"lora": {"r": r, "bias": "none"}, "seed": 0}, f"peftrun lora.r={r}") for r in (4, 8)
    ]
    assert write_summary(tmp_path, sweep(cells))["axes"] == {"lora.r": [4, 8]}


def test_a_number_is_the_same_with_a_point():
    assert find_axes([{"a": 0, "b": [1, 2.0]}, {"a": 0.0, "b": [1.0, 2]}]) == {}


def test_true_is_not_one():
    assert find_axes([{"lora.use_dora": True}, {"lora.use_dora": 1}]) == {"lora.use_dora": [True, 1]}


def test_what_is_written_is_what_the_records_say(tmp_path):
    grid(tmp_path, {"lora.r": [4, 8], "seed": [1, 2]}, lambda r, seed: 1 / r + seed / 100)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["axes"] == {"lora.r": [4, 8], "seed": [1, 2]}
    cell = found["cells"][3]
    assert cell["values"] == {"lora.r": 8, "seed": 2}
    assert (cell["objective"], cell["steps"], cell["tokens"], cell["trainable_parameters"]) == (0.145, 20, 640, 1000)
    assert cell["metrics"] == {"before": {"loss": 4.0}, "after": {"loss": 0.145}} and cell["attempts"] == 1
    assert cell["command"] == "peftrun lora.r=8 seed=2"


def test_the_table_has_a_row_a_cell_and_a_column_an_axis_and_a_metric(tmp_path):
    grid(tmp_path, {"lora.r": [4, 8], "seed": [1]}, lambda r, seed: 1 / r)
    first, second = rows_of(tmp_path)
    assert list(first)[:5] == ["cell", "lora.r", "status", "objective", "after.loss"]
    assert first["before.loss"] == "4.0" and second["after.loss"] == "0.125" and second["error"] == ""


def test_a_cell_that_has_not_begun_waits_and_one_that_failed_says_why(tmp_path):
    put(tmp_path, "b", record(status="failed", error='a "quoted", reason\nof two lines'))
    cells = [planned("a", 0, {"lora.r": 4}), planned("b", 1, {"lora.r": 8})]
    write_summary(tmp_path, sweep(cells))
    assert rows_of(tmp_path)[0]["status"] == "not started"
    write_summary(tmp_path, sweep(cells, status="running"))
    waiting, failed = rows_of(tmp_path)
    assert waiting["status"] == "waiting" and waiting["objective"] == ""
    assert failed["status"] == "failed" and failed["error"] == 'a "quoted", reason\nof two lines'


def test_refused_cells_show_what_was_typed(tmp_path):
    put(tmp_path, "a", record(0.5))
    refused = [
        PlannedCell("", [n], {}, f"peftrun lora.r={r}", how="refused", error="lora.r: must be above 0")
        for n, r in ((1, -1), (2, 0))
    ]
    found = write_summary(tmp_path, sweep([planned("a", 0, {"lora.r": 4, "trainer.max_steps": 9}), *refused]))
    assert found["axes"] == {"lora.r": [-1, 0, 4]}
    assert [(cell["status"], cell["values"], cell["attempts"]) for cell in found["cells"][1:]] == [
        ("failed", {"lora.r": -1}, 0), ("failed", {"lora.r": 0}, 0)]  # fmt: skip


def test_a_damaged_record_is_a_failed_cell_and_the_others_stand(tmp_path):
    put(tmp_path, "a", record(0.5))
    put(tmp_path, "b", record(0.6))
    (tmp_path / "b/record.json").write_text('{"status": "comp')
    found = write_summary(tmp_path, sweep([planned("a", 0, {"lora.r": 4}), planned("b", 1, {"lora.r": 8})]))
    assert [cell["status"] for cell in found["cells"]] == ["completed", "failed"]
    assert "not readable JSON" in found["cells"][1]["error"]


def test_figures_that_are_no_numbers_are_null(tmp_path):
    put(tmp_path, "a", record(float("nan")))
    write_summary(tmp_path, sweep([planned("a", 0, {})]))
    assert "NaN" not in (tmp_path / "sweep.json").read_text()


def test_earlier_attempts_count(tmp_path):
    put(tmp_path, "a", record(0.5))
    put(tmp_path / "attempts", "a-1", record(status="failed"))
    put(tmp_path / "attempts", "a-2", record(status="failed"))
    assert write_summary(tmp_path, sweep([planned("a", 0, {})]))["cells"][0]["attempts"] == 3


def costs(tmp_path, names):
    found = write_summary(tmp_path, sweep([planned(name, n, {"lora.r": n}) for n, name in enumerate(names)]))
    return [cell["cost_seconds"] for cell in found["cells"]]


def test_cells_trained_together_cost_what_their_record_says(tmp_path):
    for name, seconds in (("a", 25.0), ("b", 75.0)):
        put(tmp_path, name, record(0.5, seconds=100.0, together={"cells": 2, "seconds": seconds}))
    put(tmp_path, "c", record(0.5, seconds=30.0))
    assert costs(tmp_path, "abc") == [25.0, 75.0, 30.0]


@cases(
    "command, found",
    [
        ("peftrun 'a.b=[1, 2]' +c=x seed=1", {"a.b": "[1, 2]", "c": "x", "seed": "1"}),
        ("peftrun action.prompt='1+1=2'", {"action.prompt": "1+1=2"}),
        ("peftrun 'open", {}),
    ],
)
def test_what_a_command_types(command, found):
    assert parse_command(command) == found


@pytest.mark.slow
@cases("module", ["summary", "statistics", "report.page", "report.charts", "report.tables"])
def test_nothing_heavy_is_imported(module):
    code = f"import sys, peftrun.sweep.{module}; print([one for one in ('torch', 'transformers', 'peft', 'datasets', 'scipy') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
