"""`python -m peftrun.results.report RUN …`: makes the reports of earlier training runs anew."""

import sys
from pathlib import Path

from peftrun.artifacts.run_layout import RECORD
from peftrun.errors import ArtifactError, PeftrunError
from peftrun.io import atomic_files
from peftrun.results.report import page

USAGE = (
    "usage: python -m peftrun.results.report RUN_FOLDER …   (makes report.html and curves.svg of training runs anew)"
)


def main(folders: list[str]) -> int:
    """0 if every folder has its report now; each that has not is told with its reason."""
    if {"-h", "--help"} & {*folders}:
        print(USAGE)
        return 0
    if not folders:
        print(USAGE, file=sys.stderr)
        return 1
    failed = 0
    for folder in folders:
        try:
            print(_write_report(Path(folder)))
        except PeftrunError as error:
            failed = 1
            print(f"peftrun: {error}", file=sys.stderr)
    return failed


def _write_report(folder: Path) -> Path:
    """Raises: ArtifactError: it is no training run, or its record is torn."""
    record = folder / RECORD
    if record.is_file():
        try:
            action = atomic_files.read_json(record)["action"]
        except (ValueError, KeyError, TypeError, OSError, ArtifactError) as error:
            raise ArtifactError(f"{record}: is torn, so nothing is known of this run; no report was written") from error
        if action != "train":
            raise ArtifactError(f"{folder}: is a run of action={action}; only trainings have a report")
    return page.write_report(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
