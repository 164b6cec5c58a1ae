"""Convert a config of another tool into an experiment. No torch is imported."""

from pathlib import Path

from peftrun import console, formatting
from peftrun.artifacts import run_overrides
from peftrun.config.peers import tables
from peftrun.config.schema.actions import ImportAction
from peftrun.config.schema.run import RunSpec
from peftrun.config_tools.peer_import import draft, experiment_file, importer
from peftrun.config_tools.peer_import.translation import CARRIED, NO_COUNTERPART, NOT_NEEDED, Translation
from peftrun.io import atomic_files
from peftrun.result import RunResult

ACTION_KEYS = (
    "action",
    "action.source",
    "action.tool",
    "action.output",
)  # of this action itself, no part of the experiment


def run(spec: RunSpec, out_dir: Path) -> RunResult:
    """Writes the experiment and prints what became of each key. Raises: see `importer.import_config`."""
    action = spec.action
    assert isinstance(action, ImportAction) and action.source is not None
    typed = [
        text for text in run_overrides.read_overrides(out_dir) if text.lstrip("+").partition("=")[0] not in ACTION_KEYS
    ]
    output = Path(action.output).expanduser() if action.output else None
    imported = importer.import_config(
        Path(action.source).expanduser(), action.tool, output, typed, run_overrides.read_search_path(out_dir)
    )
    atomic_files.write_text(imported.path, imported.text)
    by_verdict = draft.list_verdicts(imported.lines)
    for text in formatting.align_rows([_format_row(line) for lines in by_verdict.values() for line in lines]):
        console.print_result(text.rstrip())
    for text in [f"{line.key}: {line.note}" for line in by_verdict[CARRIED] if line.note] + imported.faults:
        console.print_warning(f"check {text}")
    if missing := by_verdict[NO_COUNTERPART]:
        console.print_warning(f"{len(missing)} keys have no counterpart: {', '.join(line.key for line in missing)}")
    return _build_result(out_dir, imported, {verdict: len(lines) for verdict, lines in by_verdict.items()})


def _format_row(line: Translation) -> tuple[str, str, str]:
    settings = ", ".join(line.settings) if line.verdict == CARRIED else line.note
    return experiment_file.format_line(line), line.verdict, settings


def _build_result(out_dir: Path, imported: importer.ImportedExperiment, counts: dict[str, int]) -> RunResult:
    title = tables.read_table(imported.config.tool).title
    lines = [{"key": line.key, "verdict": line.verdict, "settings": line.settings, "note": line.note} for line in imported.lines]  # fmt: skip
    facts = {"import": {"tool": imported.config.tool, "source": str(imported.config.path), "counts": counts, "keys": lines}}  # fmt: skip
    summary = [
        ("experiment", str(imported.path)),
        (title, f"{counts[CARRIED]} keys carried, {counts[NOT_NEEDED]} not needed, {counts[NO_COUNTERPART]} without a counterpart"),
        *([] if imported.path.parent.name == importer.EXPERIMENT else [("to use it", f"move it into FOLDER/{importer.EXPERIMENT}/")]),
    ]  # fmt: skip
    return RunResult(out_dir, facts, summary=summary, next_commands=[f"{imported.command} action=preview", imported.command])  # fmt: skip
