"""Amounts of memory, parsed and formatted. Light."""

import re

BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: object) -> int | None:
    """Bytes of `4GiB` or `60KB`; None if the text is no amount of memory."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)", str(text))
    unit = match[2].upper() if match else None
    return int(float(match[1]) * BYTE_UNITS[unit]) if match and unit in BYTE_UNITS else None


def format_gigabytes(size: float) -> str:
    """A size in bytes as `1.20 GB` (10⁹ bytes)."""
    return f"{size / 1e9:.2f} GB"
