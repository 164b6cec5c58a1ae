"""Seeds as replicates: figures against those computed by hand and by scipy's own tests."""

import pytest
from cases import cases
from scipy import stats
from sweep_folders import grid, put, record, sweep

from peftrun.formatting import format_bytes, format_duration, format_figure, format_metrics, format_value
from peftrun.sweep.statistics import ONE_SEED, adjust_holm, analyze_sweep, compute_interval, compute_paired_t_pvalue
from peftrun.sweep.summary import PlannedCell, write_summary

BAD, GOOD = {1: 0.50, 2: 0.56, 3: 0.53}, {1: 0.40, 2: 0.45, 3: 0.43}


def two(tmp_path, one, other):
    return analyze_sweep(
        grid(tmp_path, {"lora.r": [8, 16], "seed": [1, 2, 3]}, lambda r, seed: (one if r == 8 else other)[seed])
    )


def test_the_interval_of_three_values_by_hand():
    low, high = compute_interval([1.0, 2.0, 3.0])  # mean 2, s 1, t(2) = 4.302653
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)


def test_the_interval_is_scipys():
    values = [0.11, 0.14, 0.09, 0.2]
    assert compute_interval(values) == pytest.approx(stats.t.interval(0.95, 3, stats.tmean(values), stats.sem(values)))


def test_chance_is_scipys_paired_test():
    one, other = [0.5, 0.61, 0.55, 0.4], [0.47, 0.6, 0.5, 0.42]
    assert compute_paired_t_pvalue([a - b for a, b in zip(one, other, strict=True)]) == pytest.approx(
        stats.ttest_rel(one, other).pvalue
    )


def test_differences_without_any_spread():
    assert compute_paired_t_pvalue([0.1, 0.1]) == 0.0 and compute_paired_t_pvalue([0.0, 0.0]) == 1.0


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04, times 4 3 2 1: 0.04 0.06 0.06 0.04, never below a smaller one's
    assert adjust_holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0] and adjust_holm([]) == []


def test_a_configuration_is_the_cells_that_differ_in_the_seed_alone(tmp_path):
    found = two(tmp_path, BAD, GOOD)
    best, other = found.configurations
    assert found.axes == {"lora.r": [8, 16]} and best.values == {"lora.r": 16} and best.name == "lora.r=16"
    assert best.mean == pytest.approx(0.42666, abs=1e-4) and best.deviation == pytest.approx(0.025166, abs=1e-5)
    assert other.interval == pytest.approx(stats.t.interval(0.95, 2, 0.53, stats.sem([*BAD.values()])))


def test_a_difference_that_all_seeds_share_is_told(tmp_path):
    (difference,) = two(tmp_path, BAD, GOOD).differences
    assert difference.is_significant and difference.difference == pytest.approx(-0.103333, abs=1e-5)
    assert difference.p == pytest.approx(stats.ttest_rel([*GOOD.values()], [*BAD.values()]).pvalue)
    low, high = (format_figure(end) for end in difference.interval)
    assert difference.format_sentence("loss") == (
        f"lora.r=16 is better than lora.r=8 at this budget (difference of loss -0.103, 95 % interval {low} to {high}, 3 seeds)"
    )


def test_a_difference_that_chance_may_make_is_not(tmp_path):
    (difference,) = two(tmp_path, {1: 0.50, 2: 0.56, 3: 0.53}, {1: 0.51, 2: 0.53, 3: 0.54}).differences
    assert not difference.is_significant
    assert difference.format_sentence("loss").startswith(
        "no difference shown between lora.r=8 and lora.r=16 at this budget (difference of loss -0.00333"
    )


def test_what_stands_alone_but_not_among_many_is_left_open(tmp_path):
    apart = {1: 0.0, 2: 0.050, 3: 0.052, 4: 0.11}  # by r; the seeds' own noise differs from r to r
    noise = {1: (0, 0, 0), 2: (0.010, -0.008, -0.002), 3: (-0.009, 0.01, 0.001), 4: (0.01, -0.02, 0.01)}
    found = analyze_sweep(
        grid(tmp_path, {"lora.r": [1, 2, 3, 4], "seed": [0, 1, 2]}, lambda r, seed: 0.5 + apart[r] + noise[r][seed])
    )
    assert {one.family for one in found.differences} == {6}
    assert [one.adjusted for one in found.differences] == sorted(one.adjusted for one in found.differences)
    between = [one for one in found.differences if one.p < 0.05 <= one.adjusted]
    assert between and all(
        " may be better than " in one.format_sentence("loss") and "one of 6 comparisons" in one.format_sentence("loss")
        for one in between
    )


def test_only_those_that_differ_in_one_axis_are_compared_and_the_others_are_named(tmp_path):
    found = analyze_sweep(
        grid(
            tmp_path,
            {"lora.r": [4, 8], "trainer.learning_rate": [1e-3, 1e-4], "seed": [1, 2]},
            lambda r, learning_rate, seed: r * learning_rate + seed / (r + 9),
        )
    )
    assert [one.axis for one in found.differences] == ["lora.r"] * 2 + ["trainer.learning_rate"] * 2
    assert " with trainer.learning_rate=0.001 at this budget" in " ".join(
        one.format_sentence("loss") for one in found.differences
    )


def test_pairs_are_formed_over_shared_seeds_only(tmp_path):
    def score(r, seed):
        return (
            record(status="failed", error="out of memory") if (r, seed) == (8, 2) else (BAD if r == 8 else GOOD)[seed]
        )

    found = analyze_sweep(grid(tmp_path, {"lora.r": [8, 16], "seed": [1, 2, 3]}, score))
    assert found.differences[0].seeds == 2 and found.differences[0].difference == pytest.approx(-0.1)
    assert found.left_out == ["cell 1 (lora.r=8, seed=2): failed, out of memory"]


def test_stopped_cells_do_not_count_although_they_were_measured(tmp_path):
    found = analyze_sweep(
        grid(tmp_path, {"lora.r": [8, 16]}, lambda r: record(0.01, status="stopped") if r == 8 else 0.5)
    )
    assert [one.values["lora.r"] for one in found.configurations] == [16, 8] and found.configurations[1].mean is None
    assert found.left_out == ["cell 0 (lora.r=8): stopped, ended early, with a smaller budget"]


def test_with_one_seed_nothing_is_told(tmp_path):
    found = analyze_sweep(grid(tmp_path, {"lora.r": [8, 16], "seed": [1]}, lambda r, seed: 1 / r))
    assert found.note == ONE_SEED and not found.differences and found.configurations[0].interval is None


def test_a_choice_of_a_group_is_one_axis_whatever_follows_from_it(tmp_path):
    flags = {"lora": (False, False), "dora": (True, False), "rslora": (False, True)}
    cells = []
    for number, (name, seed) in enumerate((name, seed) for name in flags for seed in (1, 2)):
        put(tmp_path, f"c{number}", record(0.5 + number / 10))
        values = {"lora.use_dora": flags[name][0], "lora.use_rslora": flags[name][1], "seed": seed}
        cells.append(PlannedCell(f"c{number}", [number], values, f"peftrun lora={name} seed={seed}"))
    found = analyze_sweep(write_summary(tmp_path, sweep(cells)))
    assert found.axes == {"lora": ["dora", "lora", "rslora"]} and len(found.differences) == 3
    assert found.differences[0].format_sentence("loss").startswith("lora=")


def test_a_key_that_follows_from_a_typed_one_is_no_axis(tmp_path):
    cells = [PlannedCell(f"c{r}", [r], {"lora.lora_alpha": 2 * r, "lora.r": r}, f"peftrun lora.r={r}") for r in (4, 8)]
    assert analyze_sweep(write_summary(tmp_path, sweep(cells))).axes == {"lora.r": [4, 8]}


@cases(
    "shown, words",
    [
        (format_value(["q", "v"]), "[q,v]"), (format_value(0.0003), "0.0003"), (format_value(True), "true"),
        (format_value(None), "null"), (format_value("a"), "a"), (format_value("a\nb"), '"a\\nb"'), (format_value(""), '""'),
        (format_bytes(0), "0 bytes"), (format_bytes(37_100), "37 kB"), (format_bytes(9_823_000), "9.82 MB"),
        (format_bytes(538_060_032), "538 MB"), (format_bytes(24_710_000_000), "24.71 GB"),
        (format_duration(None), "unknown"), (format_duration(4.2471), "4.25 s"), (format_duration(185), "3 min 5 s"),
        (format_duration(7_800), "2 h 10 min"), (format_metrics({"loss": 0.12345, "rows": 12_000}), "loss 0.1235 · rows 12,000"),
    ],
)  # fmt: skip
def test_values_sizes_and_times_have_one_form(shown, words):
    assert shown == words
