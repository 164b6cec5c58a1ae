"""Runs tasks of lm-evaluation-harness on a loaded model, and compares base model and adapter row by row.

The harness is an optional extra, so it is imported inside functions.
"""

import contextlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from peftrun import console
from peftrun.compat.lm_eval import prepare_rows_in
from peftrun.config import paths
from peftrun.config.schema.run import LmEvalSpec
from peftrun.errors import ConfigError, DataError

NON_METRIC_KEYS = ("alias", "name", "sample_len", "samples")
EvalResults = dict[str, Any]  # as `lm_eval.simple_evaluate` returns them


@dataclass(frozen=True)
class MetricValue:
    """One metric of one task, as the harness reports it. `stderr`: None if it reports none."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (f" ± {self.stderr:.4f}" if self.stderr is not None else "")


@dataclass(frozen=True)
class MetricDifference:
    """Metric with the adapter minus the metric of the base model, on the same rows.

    Attributes:
        stderr: standard error of the mean difference per row.
        p: two-sided p-value of no difference; None if undefined.
        test: McNemar's exact test if every row is right or wrong, else the paired t-test.
        better, worse: number of rows on which the adapter's value is higher, or lower.
    """

    value: float
    rows: int
    stderr: float | None
    p: float | None
    test: str
    better: int
    worse: int

    def as_dict(self) -> dict[str, Any]:
        """Values for record.json."""
        return asdict(self)

    def __str__(self) -> str:
        spread = f" ± {self.stderr:.4f}" if self.stderr is not None else ""
        return f"{self.value:+.4f}{spread}" + (f", p {self.p:.2g}, {self.test}" if self.p is not None else "")


class LmEvalHarness:
    """The configured tasks, looked up once and run on any number of models."""

    def __init__(self, spec: LmEvalSpec, batch_size: int, seed: int) -> None:
        """Raises: ConfigError: there is no such task."""
        self.spec, self.batch_size, self.seed = spec, batch_size, seed
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about each task file that it skips
        self.manager, self.local = _load_task_manager(spec)

    def measure(self, model: Any, tokenizer: Any) -> EvalResults:
        """The harness's results. Raises: DataError: it cannot get the rows, or cannot evaluate this model on them."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        spec, seed = self.spec, self.seed
        if spec.apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "task.lm_eval.apply_chat_template=true: this model has no chat template; type task.lm_eval.apply_chat_template=false, "
                "or choose one: type model.chat_template=chatml, another name or a file"
            )
        try:
            with _redirect_datasets_cache(self.local), _hide_progress_bars():
                results = simple_evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
                    tasks=spec.tasks, num_fewshot=spec.num_fewshot, limit=spec.limit, task_manager=self.manager,
                    apply_chat_template=spec.apply_chat_template, log_samples=True,
                    random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                )  # fmt: skip
        except Exception as error:  # of the harness, of datasets, of the Hub's client: they share no base class
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(
                f"task.lm_eval.tasks=[{','.join(spec.tasks)}]: lm-evaluation-harness cannot measure it: {reason}"
            ) from error
        assert results is not None
        return dict(results)


def read_metrics(results: EvalResults) -> dict[str, MetricValue]:
    """`task/metric` → value; `task/metric,filter` if the task filters the answers."""
    metrics = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            if "_stderr" in key or key in NON_METRIC_KEYS or not isinstance(value, int | float):
                continue
            metric, comma, answer_filter = key.partition(",")  # "acc,none" has its error under "acc_stderr,none"
            stderr = values.get(f"{metric}_stderr{comma}{answer_filter}")  # "N/A" where the harness has none
            metrics[_format_metric_name(task, key)] = MetricValue(
                float(value), float(stderr) if isinstance(stderr, int | float) else None
            )
    return metrics


def compare_metrics(base: EvalResults, adapted: EvalResults) -> dict[str, MetricDifference]:
    """The same names → paired difference over rows, for metrics that the harness reports per row."""
    differences = {}
    for task in base.get("samples", {}):
        sides = [_group_by_row(results["samples"][task]) for results in (base, adapted)]
        for key in sides[0].keys() & sides[1].keys():
            rows = sorted(sides[0][key].keys() & sides[1][key].keys())
            if len(rows) > 1:  # a standard error needs two
                old, new = (np.array([side[key][row] for row in rows]) for side in sides)  # (rows,) each
                differences[_format_metric_name(task, key)] = compare_paired(old, new)
    return differences


def compare_paired(old: np.ndarray, new: np.ndarray) -> MetricDifference:
    """Paired difference of two arrays (rows,) of values of the same rows."""
    from scipy import stats  # importing it takes a second, and every action=evaluate imports this module

    change, rows = new - old, len(old)  # (rows,)
    stderr = float(change.std(ddof=1) / math.sqrt(rows))
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    p: float | None
    if {*old.tolist(), *new.tolist()} <= {0.0, 1.0}:
        # Among rows that changed, the chance of so uneven a split if both directions were equally likely.
        test, changed = "McNemar's exact test", better + worse
        p = float(stats.binomtest(better, changed).pvalue) if changed else 1.0
    else:
        test, p = "paired t test", float(stats.ttest_rel(new, old).pvalue) if stderr else None
    return MetricDifference(float(change.mean()), rows, stderr, p, test, better, worse)


def format_samples(sides: dict[str, EvalResults]) -> str:
    """One line of JSON for each question and side, as the harness reports it."""
    rows = (
        {"side": side, "task": task, **sample}
        for side, results in sides.items()
        for task, samples in results.get("samples", {}).items()
        for sample in samples
    )
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def describe_results(results: EvalResults) -> dict[str, Any]:
    """What the metrics depend on besides the model, for record.json."""
    names = ("versions", "n-shot", "n-samples", "higher_is_better")
    return {name.replace("-", "_"): results[name] for name in names if results.get(name)} | {
        "lm_eval": results.get("lm_eval_version")
    }


def format_row_counts(results: EvalResults) -> str:
    """Number of evaluated rows of each task."""
    return ", ".join(f"{task} {count['effective']}" for task, count in results.get("n-samples", {}).items())


def _format_metric_name(task: str, key: str) -> str:
    metric, _, answer_filter = key.partition(",")
    return f"{task}/{metric}" + (f",{answer_filter}" if answer_filter not in ("", "none") else "")


def _group_by_row(samples: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """`metric,filter` → row id → value, for metrics that have a number per row."""
    grouped: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample.get(metric), int | float):
                grouped.setdefault(f"{metric},{sample['filter']}", {})[sample["doc_id"]] = float(sample[metric])
    return grouped


def _load_task_manager(spec: LmEvalSpec) -> tuple[Any, bool]:
    """The harness's task manager, and whether all tasks are the user's own."""
    from lm_eval.tasks import TaskManager

    include_path = str(Path(spec.include_path).expanduser()) if spec.include_path else None
    if include_path is not None:
        # Without the defaults first: scanning the harness's 14,000 tasks takes ten seconds.
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if {*spec.tasks} <= {*manager.all_tasks}:
            return manager, True
        _check_yaml_files(Path(include_path), include_path)
    console.print_info("looking through the tasks of lm-evaluation-harness")
    manager = TaskManager(include_path=include_path)
    for name in spec.tasks:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=1, cutoff=0.6)
            advice = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them"
            raise ConfigError(f"task.lm_eval.tasks=[{','.join(spec.tasks)}]: there is no task {name}; {advice}")
    return manager, False


def _check_yaml_files(folder: Path, named: str) -> None:
    """Raises: ConfigError: a file is not YAML; the harness itself skips such a file silently."""
    for file in sorted(folder.glob("**/*.y*ml")):
        position = ""
        try:
            # `compose` builds no objects, so tags such as !function are not run.
            yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, yaml.MarkedYAMLError):
                mark, reason = error.problem_mark, str(error.problem)
                position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ConfigError(
                f"task.lm_eval.include_path={named}: {file}{position}: is not YAML ({reason}); fix the file"
            ) from error


@contextlib.contextmanager
def _redirect_datasets_cache(local: bool) -> Iterator[None]:
    """Has datasets prepare rows in peftrun's cache; rows of the user's own tasks in a temporary folder."""
    # datasets recognizes a local file by size and time only, so an edited file could hit a stale cache entry.
    with (
        tempfile.TemporaryDirectory(prefix="peftrun-lm-eval-") as scratch,
        prepare_rows_in(Path(scratch) if local else paths.cache_dir() / "datasets"),
    ):
        yield


@contextlib.contextmanager
def _hide_progress_bars() -> Iterator[None]:
    if console.is_terminal():  # progress bars would fill a log file
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
