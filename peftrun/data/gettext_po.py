"""Rows from a gettext catalogue (.po): what a program says, and what it says in another language."""

from pathlib import Path

from peftrun.errors import DataError


def read_po_entries(file: Path) -> list[dict[str, str]]:
    """`msgid` and `msgstr` of each entry; without those that are doubtful (fuzzy), obsolete, empty, or of several plurals.

    Raises: DataError: the package that reads such files is not installed.
    """
    try:
        import polib
    except ImportError as error:
        raise DataError(
            "task.data.path: .po files need package=polib, which is not installed; type `pip install polib`"
        ) from error
    return [
        {"msgid": entry.msgid, "msgstr": entry.msgstr}
        for entry in polib.pofile(str(file))
        if entry.msgstr.strip() and not (entry.fuzzy or entry.obsolete or entry.msgid_plural)
    ]
