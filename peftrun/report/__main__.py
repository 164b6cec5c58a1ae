"""`python -m peftrun.report RUN …`: makes the reports of earlier training runs anew."""

import sys
from pathlib import Path

from peftrun.errors import PeftrunError
from peftrun.report import page


def main(folders: list[str]) -> int:
    """0 if every folder has its report now; each that has not is told with its reason."""
    if not folders:
        print("usage: python -m peftrun.report RUN_FOLDER …", file=sys.stderr)
        return 2
    failed = 0
    for folder in folders:
        try:
            print(page.write(Path(folder)))
        except PeftrunError as error:
            failed = 1
            print(error, file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
