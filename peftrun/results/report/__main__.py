"""`python -m peftrun.results.report RUN …`: write the reports of earlier training runs again."""

import sys
from pathlib import Path

from peftrun.artifacts.run_layout import RECORD
from peftrun.errors import ArtifactError, PeftrunError
from peftrun.io import atomic_files
from peftrun.results.report import page

USAGE = (
    "usage: python -m peftrun.results.report RUN_FOLDER …   (writes report.html and curves.svg of training runs again)"
)


def main(folders: list[str]) -> int:
    """Exit code: 0 if every folder has its report; the reason is printed for each that has not."""
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
    """Raises: ArtifactError: it is no training run, or its record is unreadable."""
    record = folder / RECORD
    if record.is_file():
        try:
            action = atomic_files.read_json(record)["action"]
        except (ValueError, KeyError, TypeError, OSError, ArtifactError) as error:
            raise ArtifactError(
                f"{record}: is unreadable, so nothing is known of this run; no report was written"
            ) from error
        if action != "train":
            raise ArtifactError(f"{folder}: is a run of action={action}; only training runs have a report")
    return page.write_report(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
