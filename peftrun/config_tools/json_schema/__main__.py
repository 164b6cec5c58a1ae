"""`python -m peftrun.config_tools.json_schema`: writes the schemas to `conf/.schemas` (`make schemas`)."""

import os

from peftrun.config import paths
from peftrun.io import atomic_files


def main() -> None:
    """Writes every schema, and deletes files that are no longer schemas."""
    # ORPO is experimental in TRL, which would print a warning on import.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from peftrun.config_tools.json_schema.schemas import build_schemas

    folder = paths.schemas_dir()
    folder.mkdir(exist_ok=True)
    texts = build_schemas()
    for path in folder.glob("*.json"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        atomic_files.write_text(folder / name, text)
    print(f"{len(texts)} schemas: {folder}")


if __name__ == "__main__":
    main()
