"""Packages of configs, written and found as installed ones are."""

from pathlib import Path


def write(folder: Path, option: str, text: str) -> Path:
    """`option`: group/name. Its two lines of header are added."""
    group, _, name = option.partition("/")
    head = "# @package _global_\n" if group == "experiment" else ""
    path = folder / f"{option}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}# Ours.\n# peftrun {group}={name}\n{text}")
    return path


def install(site: Path, name: str) -> Path:
    """A package `name` in `site` with the metadata that pip would leave; returns its folder."""
    folder = site / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('is looked for, not imported')\n")
    metadata = site / f"{name}-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[peftrun.configs]\n{name} = {name}\n")
    return folder
