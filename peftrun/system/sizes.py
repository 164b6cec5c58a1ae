"""Amounts of memory, as people write them. Light."""

import re

BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: object) -> int | None:
    """Bytes that `4GiB` or `60KB` name; None: it is no amount of memory."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)", str(text))
    unit = found[2].upper() if found else None
    return int(float(found[1]) * BYTE_UNITS[unit]) if found and unit in BYTE_UNITS else None


def format_gigabytes(size: float) -> str:
    """A size in bytes for people (10⁹ bytes)."""
    return f"{size / 1e9:.2f} GB"
