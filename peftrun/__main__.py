"""`python -m peftrun` is `peftrun`."""

import sys

from peftrun.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
