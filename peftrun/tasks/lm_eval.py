"""Tasks of lm-evaluation-harness on a model that is there: the base, and the same with its adapter, row by row.

The harness is an extra, imported when it is asked for.
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
from peftrun.config import paths
from peftrun.config.schema.run import LmEvalSpec
from peftrun.errors import ConfigError, DataError

NON_METRIC_KEYS = ("alias", "name", "sample_len", "samples")
EvalResults = dict[str, Any]  # as `lm_eval.simple_evaluate` gives them


@dataclass(frozen=True)
class MetricValue:
    """What the harness says of one metric of one task. `stderr`: None where it knows none."""

    value: float
    stderr: float | None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + (f" ± {self.stderr:.4f}" if self.stderr is not None else "")


@dataclass(frozen=True)
class MetricDifference:
    """With the adapter, minus the base, on the same rows.

    Attributes:
        stderr: of the mean difference of a row. p: of no difference, two-sided; None where it cannot be told.
        test: McNemar's exact test where a row is right or wrong, else the paired t test.
        better, worse: rows on which the adapter's value is higher, or lower.
    """

    value: float
    rows: int
    stderr: float | None
    p: float | None
    test: str
    better: int
    worse: int

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    def __str__(self) -> str:
        spread = f" ± {self.stderr:.4f}" if self.stderr is not None else ""
        return f"{self.value:+.4f}{spread}" + (f", p {self.p:.2g}, {self.test}" if self.p is not None else "")


class LmEvalHarness:
    """The tasks that are asked for, found once and measured on as many models as wanted."""

    def __init__(self, spec: LmEvalSpec, batch_size: int, seed: int) -> None:
        """Raises: ConfigError: there is no such task."""
        self.spec, self.batch_size, self.seed = spec, batch_size, seed
        _silence_logging()
        self.manager, self.local = _load_task_manager(spec)

    def measure(self, model: Any, tokenizer: Any) -> EvalResults:
        """What the harness finds. Raises: DataError: it cannot get the rows, or cannot measure this model on them."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        spec, seed = self.spec, self.seed
        if spec.apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "task.lm_eval.apply_chat_template=true: this model has no chat template; type task.lm_eval.apply_chat_template=false"
            )
        try:
            with _redirect_datasets_cache(self.local), _hide_progress_bars():
                found = simple_evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size),
                    tasks=spec.tasks, num_fewshot=spec.num_fewshot, limit=spec.limit, task_manager=self.manager,
                    apply_chat_template=spec.apply_chat_template, log_samples=True,
                    random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                )  # fmt: skip
        except Exception as error:  # of the harness, of datasets, of the Hub's client
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(
                f"task.lm_eval.tasks=[{','.join(spec.tasks)}]: lm-evaluation-harness cannot measure it: {reason}"
            ) from error
        assert found is not None
        return dict(found)


def read_metrics(found: EvalResults) -> dict[str, MetricValue]:
    """`task/metric` → what was measured; `task/metric,filter` where a task's answers are filtered in some way."""
    return {
        _format_metric_name(task, key): MetricValue(float(value), _read_stderr(values, key))
        for task, values in found["results"].items()
        for key, value in values.items()
        if "_stderr" not in key and key not in NON_METRIC_KEYS and isinstance(value, int | float)
    }


def compare_metrics(base: EvalResults, adapted: EvalResults) -> dict[str, MetricDifference]:
    """The same names → how the two differ row by row, where the harness tells of rows."""
    found = {}
    for task in base.get("samples", {}):
        pairs = [_group_by_row(one["samples"][task]) for one in (base, adapted)]
        for key in pairs[0].keys() & pairs[1].keys():
            rows = sorted(pairs[0][key].keys() & pairs[1][key].keys())
            if len(rows) > 1:
                old, new = (np.array([side[key][row] for row in rows]) for side in pairs)
                found[_format_metric_name(task, key)] = compare_paired(old, new)
    return found


def compare_paired(old: np.ndarray, new: np.ndarray) -> MetricDifference:
    """How the values of the same rows differ."""
    from scipy import stats  # takes a second, and every action=evaluate comes by here

    change, rows = new - old, len(old)
    stderr = float(change.std(ddof=1) / math.sqrt(rows))
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    if {*old.tolist(), *new.tolist()} <= {0.0, 1.0}:
        test, p = "McNemar's exact test", _compute_mcnemar_pvalue(better, worse)
    else:
        test, p = "paired t test", float(stats.ttest_rel(new, old).pvalue) if stderr else None
    return MetricDifference(float(change.mean()), rows, stderr, p, test, better, worse)


def _compute_mcnemar_pvalue(better: int, worse: int) -> float | None:
    """Of rows that differ, how likely so uneven a split is by chance."""
    from scipy import stats

    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def format_samples(sides: dict[str, EvalResults]) -> str:
    """A line of JSON for each question and side, as the harness tells it."""
    rows = (
        {"side": side, "task": task, **row}
        for side, found in sides.items()
        for task, each in found.get("samples", {}).items()
        for row in each
    )
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def describe_results(found: EvalResults) -> dict[str, Any]:
    """What the figures depend on beside the model, for the record."""
    names = ("versions", "n-shot", "n-samples", "higher_is_better")
    return {name.replace("-", "_"): found[name] for name in names if found.get(name)} | {
        "lm_eval": found.get("lm_eval_version")
    }


def format_row_counts(found: EvalResults) -> str:
    """How many rows of each task were asked."""
    return ", ".join(f"{task} {number['effective']}" for task, number in found.get("n-samples", {}).items())


def _format_metric_name(task: str, key: str) -> str:
    metric, _, kind = key.partition(",")
    return f"{task}/{metric}" + (f",{kind}" if kind not in ("", "none") else "")


def _read_stderr(values: dict[str, Any], key: str) -> float | None:
    metric, comma, kind = key.partition(",")
    found = values.get(f"{metric}_stderr{comma}{kind}")
    return float(found) if isinstance(found, int | float) else None


def _group_by_row(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """`metric,filter` → row → value, of those metrics that a row has a number for."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for metric in row["metrics"]:
            if isinstance(row.get(metric), int | float):
                found.setdefault(f"{metric},{row['filter']}", {})[row["doc_id"]] = float(row[metric])
    return found


def _load_task_manager(spec: LmEvalSpec) -> tuple[Any, bool]:
    """What knows the tasks, and whether all of them are the user's own: the harness takes long to look through its 14,000."""
    from lm_eval.tasks import TaskManager

    own = str(Path(spec.include_path).expanduser()) if spec.include_path else None
    if own is not None:
        manager = TaskManager(include_path=own, include_defaults=False)
        if {*spec.tasks} <= {*manager.all_tasks}:
            return manager, True
        _check_yaml_files(Path(own), own)
    console.print_info("looking through the tasks of lm-evaluation-harness")
    manager = TaskManager(include_path=own)
    for name in spec.tasks:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, n=1, cutoff=0.6)
            advice = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them"
            raise ConfigError(f"task.lm_eval.tasks=[{','.join(spec.tasks)}]: there is no task {name}; {advice}")
    return manager, False


def _check_yaml_files(folder: Path, named: str) -> None:
    """The harness passes over a file that it cannot read. Raises: ConfigError: where one is broken."""
    for file in sorted(folder.glob("**/*.y*ml")):
        try:
            yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)  # nothing it names is made
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ConfigError(
                f"task.lm_eval.include_path={named}: {file}{place}: is not YAML ({error.problem}); mend it there"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"task.lm_eval.include_path={named}: {file}: is not YAML ({reason}); mend it there"
            ) from error


def _silence_logging() -> None:
    import lm_eval  # noqa: F401

    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@contextlib.contextmanager
def _redirect_datasets_cache(local: bool) -> Iterator[None]:
    """Rows are prepared in peftrun's own cache; those of the user's files anew, since datasets knows a file again by size and time alone."""
    import datasets
    from lm_eval import evaluator

    before = datasets.config.HF_DATASETS_CACHE, evaluator.get_git_commit_hash
    with tempfile.TemporaryDirectory(prefix="peftrun-lm-eval-") as room:
        datasets.config.HF_DATASETS_CACHE = Path(room) if local else paths.cache_dir() / "datasets"
        evaluator.get_git_commit_hash = lambda: None  # it asks git, which complains aloud where there is no repository
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE, evaluator.get_git_commit_hash = before


@contextlib.contextmanager
def _hide_progress_bars() -> Iterator[None]:
    if console.is_terminal():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
