"""Reads rows from gettext catalogs (.po): messages of a program and their translations."""

from pathlib import Path

from peftrun.errors import DataError


def read_po_entries(file: Path) -> list[dict[str, str]]:
    """`msgid` and `msgstr` of each entry, without entries that are fuzzy, obsolete, untranslated, or have plurals.

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
